//! The autoscaler on worker processes: a pool follows its backlog, and no job is ever interrupted by that.

use job::{JobSpec, JobState};
use serde_json::{Value, json};
use tests::{Fleet, Launch, Processes, Worker, http, steps, until, until_ok};

/// One to four workers, one per four jobs, with no limit on the speed.
const POOL: &str = r#"
    [pools.default]
    target = "process"
    [pools.default.policy]
    min_replicas = 1
    max_replicas = 4
    mode = { type = "backlog", jobs_per_worker = 4 }
    scale_up = { stabilization_window_s = 0, select_policy = "Max", policies = [], tolerance = 0.0 }
    scale_down = { stabilization_window_s = 1, select_policy = "Max", policies = [], tolerance = 0.0 }
"#;

const ALIVE: &str = "SELECT count(*) FROM harness_workers WHERE state = 'alive'";

/// Waits until the pool's list of targets names this many workers, and each of them answers.
async fn found_by_prometheus(fleet: &Fleet, workers: usize) {
    let list = fleet.processes().join("default/targets.json");
    let look = async || {
        let text = std::fs::read_to_string(&list).map_err(|error| error.to_string())?;
        let groups: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        assert_eq!(groups[0]["labels"], json!({"component": "worker", "pool": "default"}));
        let targets = groups[0]["targets"].as_array().expect("targets");
        let metrics = |target: &Value| format!("http://{}/metrics", target.as_str().expect("an address"));
        let answers = targets.iter().filter(|target| {
            http::get(&metrics(target))
                .is_ok_and(|(code, text)| code == 200 && text.contains("harness_worker_slots"))
        });
        if targets.len() == workers && answers.count() == workers { Ok(()) } else { Err(text) }
    };
    until_ok(&format!("Prometheus finds {workers} workers"), look).await;
}

async fn start(fleet: &Fleet, launch: Launch) -> Worker {
    let autoscaler = launch.launch();
    autoscaler.said("watches the backlog").await;
    fleet.workers_alive(1).await;
    autoscaler
}

#[tokio::test]
async fn a_pool_grows_at_once_with_a_burst_and_shrinks_behind_it_with_no_job_interrupted() {
    let fleet = Fleet::new().await;
    let _processes = Processes::of(&fleet);
    let mut autoscaler = start(&fleet, fleet.autoscaler("autoscaler", POOL)).await;
    let long = steps(0, 1_000, 100);
    let burst: Vec<JobSpec> = (1..16).map(|session| steps(session, 30, 100)).collect();
    fleet.enqueue(std::slice::from_ref(&long)).await;
    fleet.enqueue(&burst).await;
    fleet.workers_alive(4).await;
    found_by_prometheus(&fleet, 4).await;

    fleet.undisturbed(&burst).await;
    // The long job still runs, so the three idle workers of the four go.
    fleet.workers_alive(1).await;
    assert_eq!(
        fleet.view(long.job_id).await.unwrap().state,
        JobState::Running,
        "the pool shrank too late for this test"
    );
    let cancelled = fleet.producer(&["cancel", &long.job_id.to_string()]).await;
    assert_eq!(cancelled.code, 0, "{cancelled:?}");
    let ended = fleet.ended(long.job_id).await;
    assert_eq!((ended.state, ended.attempts), (JobState::Cancelled, 1), "{ended:?}");
    let most = "SELECT max(desired_replicas - from_replicas)::bigint FROM harness_scale_decisions WHERE outcome = 'resized'";
    let most = fleet.database.count(most).await;
    assert!(most >= 2, "from one worker to four in one write or two: {most} at most in one");

    autoscaler.terminate();
    assert_eq!(autoscaler.exit().await, 0);
    assert_eq!(fleet.database.count(ALIVE).await, 0, "its workers end with it");
    found_by_prometheus(&fleet, 0).await;
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_pool_scales_on_where_its_list_for_prometheus_cannot_be_written() {
    let fleet = Fleet::new().await;
    let _processes = Processes::of(&fleet);
    std::fs::create_dir_all(fleet.processes().join("default/targets.json.new"))
        .expect("a folder in its place");
    let mut autoscaler = start(&fleet, fleet.autoscaler("autoscaler", POOL)).await;
    let burst: Vec<JobSpec> = (0..16).map(|session| steps(session, 60, 100)).collect();
    fleet.enqueue(&burst).await;
    fleet.workers_alive(4).await;
    autoscaler.said("cannot be listed for Prometheus").await;
    autoscaler.terminate();
    assert_eq!(autoscaler.exit().await, 0);
}

#[tokio::test]
async fn an_autoscaler_that_is_killed_leaves_its_workers_to_the_next_which_remembers_its_windows() {
    let fleet = Fleet::new().await;
    let _processes = Processes::of(&fleet);
    let slow = POOL.replace("stabilization_window_s = 1", "stabilization_window_s = 600");
    let mut first = start(&fleet, fleet.autoscaler("first", &slow).set("AUTOSCALER_LEASE_S", 8)).await;
    let jobs: Vec<JobSpec> = (0..12).map(|session| steps(session, 40, 100)).collect();
    fleet.enqueue(&jobs).await;
    fleet.workers_alive(3).await;
    fleet.undisturbed(&jobs).await;
    let pods =
        "SELECT string_agg(pod_name, ' ' ORDER BY pod_name) FROM harness_workers WHERE state = 'alive'";
    let before = fleet.database.texts(pods).await;
    first.kill();

    let mut second = fleet.autoscaler("second", &slow).set("AUTOSCALER_LEASE_S", 8).launch();
    second.said("leads").await;
    // A decision of the second autoscaler: nothing to do, and yet no worker goes.
    let stabilized = "SELECT count(*) FROM harness_scale_decisions
                       WHERE epoch = (SELECT max(epoch) FROM harness_leases) AND reason = 'scale_down_stabilized'
                         AND from_replicas = 3 AND desired_replicas = 3";
    until("the second one has decided", async || (fleet.database.count(stabilized).await > 0).then_some(()))
        .await;
    assert_eq!(fleet.database.texts(pods).await, before, "the same workers");
    second.terminate();
    assert_eq!(second.exit().await, 0);
    assert_eq!(fleet.database.count(ALIVE).await, 0);
}

#[tokio::test]
async fn a_queue_that_was_never_there_is_unknown_and_the_time_without_it_grows() {
    let fleet = Fleet::new().await;
    let pool = POOL.replace("default", "nobody").replace("min_replicas = 1", "min_replicas = 0");
    let mut autoscaler = fleet.autoscaler("autoscaler", &pool).launch();
    autoscaler.said("watches the backlog").await;
    let age = r#"harness_autoscaler_observation_age_seconds{pool="nobody",source="queue"}"#;
    until("it has looked for the queue in vain", async || (autoscaler.metric(age).await > 2.0).then_some(()))
        .await;
    let (_, metrics) = autoscaler.get("/metrics").await;
    assert!(!metrics.contains("harness_queue_depth{"), "unknown is not zero:\n{metrics}");
    autoscaler.terminate();
    assert_eq!(autoscaler.exit().await, 0);
}
