//! A client tries again by the id that it made: what was lost on the way is neither lost nor doubled.

use std::collections::HashSet;
use std::process::Command;

use tests::{Api, Fleet, Ran, Worker, until};

use super::python;

const JOBS: usize = 10_000;

/// Kills the door while a client submits a batch, and starts it again at the same address.
async fn survives_a_kill(fleet: &Fleet, door: Worker, client: Command) -> Ran {
    let address = Api::of(&door).await.base().replace("http://", "");
    let killing = async {
        let accepted = "SELECT count(*) FROM harness_jobs";
        let begun = async || (fleet.database.count(accepted).await >= 1_000).then_some(());
        until("a part is accepted", begun).await;
        let mut door = door;
        door.kill();
        door.ended().await;
        let reached = fleet.database.count(accepted).await;
        assert!(reached < JOBS as i64, "the batch was over: {reached}");
        fleet.door("the next door").set("API_ADDR", address).start().await
    };
    let (ran, _door) = tokio::join!(Ran::of(client, ""), killing);
    assert_eq!(ran.code, 0, "{ran:?}");
    ran
}

/// Each job is in the ledger once, in the order given, under the id that the client was answered.
async fn is_whole(fleet: &Fleet, ran: &Ran) {
    let ids: Vec<&str> = ran.out.lines().collect();
    assert_eq!((ids.len(), ids.iter().collect::<HashSet<_>>().len()), (JOBS, JOBS));
    let of_ledger = "SELECT job_id || ' ' || (message ->> 'input') FROM harness_jobs ORDER BY seq";
    let expected: Vec<String> = ids.iter().zip(0..).map(|(id, n): (_, usize)| format!("{id} {n}")).collect();
    assert!(fleet.database.texts(of_ledger).await == expected, "another order, or other jobs");
}

#[tokio::test]
async fn a_door_that_is_killed_in_a_batch_loses_and_doubles_nothing_with_the_python_client() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let mut client = python("batch.py", &Api::of(&door).await, "");
    client.arg(JOBS.to_string());
    let ran = survives_a_kill(&fleet, door, client).await;
    is_whole(&fleet, &ran).await;
}
