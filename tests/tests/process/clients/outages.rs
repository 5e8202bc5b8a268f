//! A client tries again by the id that it made: what was lost on the way is neither lost nor doubled.

use std::collections::HashSet;
use std::future::Future;
use std::time::Duration;

use futures::StreamExt;
use harness_fleet::{Client, JobSpec};
use serde_json::json;
use tests::{Api, Fleet, Ran, Worker, job, until};

use super::python;

/// Jobs of a batch that is cut off.
pub const JOBS: usize = 10_000;

/// Kills the door while a client submits [`JOBS`] jobs, and starts it again at the same address. Returns what the client
/// returned.
pub async fn survives_a_kill<T>(fleet: &Fleet, mut door: Worker, client: impl Future<Output = T>) -> T {
    let address = Api::of(&door).await.base().replace("http://", "");
    let killing = async {
        let accepted = "SELECT count(*) FROM harness_jobs";
        let begun = async || (fleet.database.count(accepted).await >= 1_000).then_some(());
        until("a part is accepted", begun).await;
        door.kill();
        door.ended().await;
        let reached = fleet.database.count(accepted).await;
        assert!(reached < JOBS as i64, "the batch was over: {reached}");
        fleet.door("the next door").set("API_ADDR", address).start().await
    };
    let (returned, _door) = tokio::join!(client, killing);
    returned
}

/// Each job is in the ledger once, in the order given, under the id that the client was answered.
async fn are_whole(fleet: &Fleet, ids: &[String]) {
    assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len()), (JOBS, JOBS));
    let of_ledger = "SELECT job_id || ' ' || (message ->> 'input') FROM harness_jobs ORDER BY seq";
    let expected: Vec<String> = ids.iter().enumerate().map(|(n, id)| format!("{id} {n}")).collect();
    assert!(fleet.database.texts(of_ledger).await == expected, "another order, or other jobs");
}

#[tokio::test]
async fn a_door_that_is_killed_in_a_batch_loses_and_doubles_nothing_with_the_python_client() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let mut command = python("batch.py", &Api::of(&door).await, "");
    command.arg(JOBS.to_string());
    let client = async {
        let ran = Ran::of(command, "").await;
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let ids = survives_a_kill(&fleet, door, client).await;
    are_whole(&fleet, &ids).await;
}

#[tokio::test]
async fn a_door_that_is_killed_in_a_batch_loses_and_doubles_nothing_with_the_rust_client() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let client = Client::new(Api::of(&door).await.base(), None).expect("an address");
    let jobs: Vec<JobSpec> = (0..JOBS).map(|n| job("batch", "echo", json!(n))).collect();
    let submitting = async {
        let batch = client.submit_all(&jobs).await;
        assert!(batch.error.is_none(), "{:?}", batch.error);
        batch.answers.iter().map(|answer| answer.job_id.expect("an id").to_string()).collect::<Vec<_>>()
    };
    let ids = survives_a_kill(&fleet, door, submitting).await;
    assert!(jobs.iter().map(|job| job.job_id.to_string()).eq(ids.iter().cloned()));
    are_whole(&fleet, &ids).await;
}

#[tokio::test]
async fn a_stream_of_jobs_ends_with_the_first_error_where_no_door_comes_back() {
    let fleet = Fleet::new().await;
    let mut door = fleet.door("door").start().await;
    let client = Client::new(Api::of(&door).await.base(), None).expect("an address");
    let client = client.retrying_for(Duration::from_millis(500));
    let jobs = futures::stream::iter((0..3).map(|n| job("batch", "echo", json!(n))));
    let mut answers = std::pin::pin!(client.batch(jobs.clone()));
    assert_eq!(answers.next().await.expect("an answer").expect("accepted").status, 202);
    assert_eq!(answers.count().await, 2);
    door.kill();
    door.ended().await;
    let answers: Vec<_> = client.batch(jobs).collect().await;
    let [Err(error)] = &answers[..] else { panic!("{answers:?}") };
    assert!(error.to_string().contains("gives no answer"), "{error}");
}
