//! Time is Postgres's: a host whose clock is wrong by weeks takes the same jobs, dies and rescues at the same moments,
//! and keeps the same results.

use job::JobState;
use serde_json::json;
use tests::{Fleet, SetClock, job};

#[tokio::test]
async fn workers_whose_clocks_are_weeks_apart_run_and_rescue_as_ever() {
    const TWENTY_DAYS_S: i64 = 20 * 86_400;
    let fleet = Fleet::new().await;
    let (ahead, behind) = (SetClock::new(TWENTY_DAYS_S), SetClock::new(-TWENTY_DAYS_S));
    let skewed = |name, clock: &SetClock| {
        let launch = fleet.worker(name);
        clock.environment().into_iter().fold(launch, |launch, (name, value)| launch.set(name, value))
    };
    let partitions = "SELECT inhrelid::regclass::text FROM pg_inherits ORDER BY 1";
    let before = fleet.database.texts(partitions).await;
    let mut early = skewed("early", &ahead).short_lease().start().await;
    let long = job("s", "scripted", json!({"count": 10, "delay_ms": 200}));
    let short = job("t", "echo", json!(1));
    fleet.enqueue(&[long.clone(), short.clone()]).await;
    assert_eq!(fleet.ended(short.job_id).await.state, JobState::Succeeded);
    fleet.iterated(long.job_id, 3).await;

    early.kill();
    let late = skewed("late", &behind).start().await;
    let view = fleet.ended(long.job_id).await;
    assert_eq!((view.state, view.attempts, view.iterations), (JobState::Succeeded, 2, 10), "{view:?}");
    assert_eq!(view.worker_id.unwrap().to_string(), late.id().await);
    assert_eq!(fleet.vhost.dead_letters().await, []);
    assert_eq!(fleet.database.texts(partitions).await, before, "none was made or dropped too early");
}
