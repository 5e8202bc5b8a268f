//! Leaders are killed one after the other: what services have committed runs, each job once, and nothing else does. Meanwhile
//! the door takes jobs in as ever.

use std::time::Duration;

use job::{JobId, JobState, Lane};
use serde_json::json;
use sqlx::Connection;
use tests::{Api, Fleet, TIMEOUT, Worker, until, until_ok};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::sync::CancellationToken;

use super::transactional_enqueue::{connect, enqueue, service};

/// A POST waits for no leader, no broker and no foreign transaction. In a debug build, on two cores that also start processes,
/// it takes some tens of milliseconds; of ten, nine take less than this.
const POSTED_WITHIN: Duration = Duration::from_secs(1);
/// Behind a lease that runs out, which takes four to five seconds, each of the two callers would wait for longer than this after
/// each kill of its leader: four times at least. Both wait once where the door or Postgres stands still.
const SLOW: Duration = Duration::from_secs(3);

/// Enqueues one job after the other, each in a transaction, and rolls back every second one. Returns the ids of those that it
/// has committed, and of the others.
async fn serve(url: String, stop: CancellationToken) -> [Vec<JobId>; 2] {
    let mut connection = connect(&url).await;
    let (mut committed, mut rolled_back) = (Vec::new(), Vec::new());
    let mut clock = interval(Duration::from_millis(40));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for n in 0usize.. {
        if stop.run_until_cancelled(clock.tick()).await.is_none() {
            break;
        }
        let mut transaction = connection.begin().await.expect("a transaction");
        let job = json!({"agent_id": "echo", "input": n, "lane": Lane::ALL[n % 3]}).to_string();
        let id = enqueue(&mut transaction, &job).await.expect("an id");
        if n % 2 == 0 {
            transaction.commit().await.expect("a commit");
            committed.push(id);
        } else {
            transaction.rollback().await.expect("a rollback");
            rolled_back.push(id);
        }
    }
    [committed, rolled_back]
}

/// Submits one job after the other. Returns their ids, and how long it took until each was accepted.
async fn post(api: Api, stop: CancellationToken) -> Vec<(JobId, Duration)> {
    let mut posted = Vec::new();
    let mut clock = interval(Duration::from_millis(100));
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(clock.tick()).await.is_some() {
        let (job_id, asked) = (JobId::now(), Instant::now());
        let spec = json!({"agent_id": "echo", "job_id": job_id.to_string()});
        let mut reply = api.submit(&spec).await;
        // Where Postgres was silent for too long. The id makes it safe to try again.
        while reply.status == 503 && asked.elapsed() < TIMEOUT {
            sleep(Duration::from_millis(100)).await;
            reply = api.submit(&spec).await;
        }
        assert!(matches!(reply.status, 200 | 202), "{reply:?}");
        posted.push((job_id, asked.elapsed()));
    }
    posted
}

/// Starts two relays and a worker, which may lead too: the process of this number, for the time after so many kills.
async fn start(fleet: &Fleet, number: usize, kills: usize) -> Worker {
    if number == 2 {
        return fleet.worker(&format!("worker-{kills}")).short_lease().start().await;
    }
    let relay = fleet.relay(&format!("relay-{number}-{kills}")).launch();
    relay.said("relays due jobs").await;
    relay
}

/// Waits until one of these processes leads, and returns which: the one that has said so under the lease's epoch.
async fn leader(fleet: &Fleet, processes: &[Worker], lease: &str) -> usize {
    let valid =
        format!("SELECT epoch::text FROM harness_leases WHERE name = '{lease}' AND expires_at > now()");
    let look = async || {
        let epoch = format!("epoch={}", fleet.database.texts(&valid).await.pop()?);
        let (bare, quoted) = (format!("lease={lease}"), format!("lease=\"{lease}\""));
        let says = |line: &str| {
            let has = |wanted: &str| line.split_whitespace().any(|word| word == wanted);
            line.contains("leads: decides from now on") && has(&epoch) && (has(&bare) || has(&quoted))
        };
        processes.iter().position(|process| process.log().lines().any(says))
    };
    until(&format!("one of them has the lease {lease}"), look).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn leaders_that_are_killed_in_turn_run_exactly_what_was_committed_and_the_door_goes_on() {
    let fleet = Fleet::new().await;
    fleet.line("default").await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let mut processes = Vec::new();
    for which in 0..3 {
        processes.push(start(&fleet, which, 0).await);
    }
    let (_, url) = service(&fleet, "default").await;
    let mut open = connect(&url).await;
    let mut kept_open = open.begin().await.expect("a transaction");
    let late = enqueue(&mut kept_open, r#"{"agent_id":"echo"}"#).await.expect("an id");

    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(url.clone(), stop.clone()));
    let posting = [(); 2].map(|()| tokio::spawn(post(api.clone(), stop.clone())));
    let ended = "SELECT count(*) FROM harness_results";
    for (round, lease) in ["line", "admission", "line", "admission"].into_iter().enumerate() {
        let leads = leader(&fleet, &processes, lease).await;
        processes[leads].kill();
        processes[leads] = start(&fleet, leads, round + 1).await;
        leader(&fleet, &processes, lease).await;
        let before = fleet.database.count(ended).await;
        let more = async || (fleet.database.count(ended).await >= before + 50).then_some(());
        until("jobs go on under the next leader", more).await;
    }
    stop.cancel();
    let [committed, rolled_back] = serving.await.expect("a service");
    let mut posted = Vec::new();
    for posting in posting {
        posted.extend(posting.await.expect("a caller"));
    }

    let mut wanted: Vec<JobId> = posted.iter().map(|(id, _)| *id).chain(committed.iter().copied()).collect();
    wanted.sort_unstable();
    // There may be a backlog, of which some end all the time.
    let left = "SELECT 'inbox ' || job_id FROM harness_inbox UNION ALL
                SELECT concat_ws(' ', state, job_id, state_since) FROM harness_jobs";
    let mut have = 0;
    while have < wanted.len() as i64 {
        let more = async || match fleet.database.count(ended).await {
            now if now > have => Ok(now),
            now => Err((now, wanted.len(), fleet.database.texts(left).await)),
        };
        have = until_ok("more have ended", more).await;
    }
    let found = "SELECT job_id || ' ' || state FROM harness_results ORDER BY job_id";
    let wanted: Vec<String> = wanted.iter().map(|id| format!("{id} succeeded")).collect();
    assert_eq!(fleet.database.texts(found).await, wanted);
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 0);
    assert!(fleet.store.jobs(&rolled_back).await.expect("the ledger").is_empty());
    let (kept, gone) = (committed.len(), rolled_back.len());
    assert!(kept > 100 && gone > 100, "{kept} were committed, {gone} rolled back");
    // It was open all the time. Now it commits.
    kept_open.commit().await.expect("a commit");
    assert_eq!(fleet.ended(late).await.state, JobState::Succeeded);

    let mut took: Vec<Duration> = posted.into_iter().map(|(_, took)| took).collect();
    took.sort_unstable();
    let p90 = took[took.len() * 9 / 10];
    assert!(took.len() > 100 && p90 < POSTED_WITHIN, "{} were posted, p90 {p90:?}", took.len());
    let slow: Vec<&Duration> = took.iter().filter(|took| **took > SLOW).collect();
    assert!(slow.len() < 4, "{slow:?}");
    fleet.database.audited().await;
}
