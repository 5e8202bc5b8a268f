//! What a session's stream shows of the time in which its client was away.

use std::collections::BTreeSet;

use serde_json::json;
use tests::{Api, Fleet, ServerEvent};

use super::{at, counting};

/// Results of the session: so many, with ids of this time after now, that ended this time ago.
fn results(count: u32, id_after: &str, ended_ago: &str) -> String {
    results_of("s", 0, count, id_after, ended_ago)
}

/// The same of any session. Ids of the same time differ by the group.
fn results_of(session: &str, group: u32, count: u32, id_after: &str, ended_ago: &str) -> String {
    format!(
        "INSERT INTO harness_results (job_id, session_id, agent_id, pool, state, attempts, iterations, cost_microusd,
                                      input_tokens, output_tokens, epoch, accepted_at, finished_at)
         SELECT (lpad(to_hex((extract(epoch FROM now() + interval '{id_after}') * 1000)::bigint), 12, '0')
                 || '70008' || lpad(to_hex({group}), 3, '0') || lpad(to_hex(n), 12, '0'))::uuid,
                '{session}', 'echo', 'default', 'succeeded', 1, 0, 0, 0, 0, 0, now(), now() - interval '{ended_ago}'
           FROM generate_series(1, {count}) n"
    )
}

/// A session with one ended job, and the last event of its stream.
async fn left(fleet: &Fleet, api: &Api) -> ServerEvent {
    let first = api.submit(&counting(1, 100)).await.is(202).text("job_id");
    let mut stream = api.events("/v1/sessions/s/events", &[]).await;
    let mut worker = fleet.worker("worker").start().await;
    let end = stream.named("end").await;
    assert_eq!(end.text("job_id"), first);
    worker.terminate();
    worker.exit().await;
    end
}

/// The id of an event a minute before this one.
fn a_minute_before(event: &ServerEvent) -> String {
    let (_, rest) = event.id.split_once('.').expect("an id");
    format!("{}.{rest}", at(event) - 60_000)
}

#[tokio::test]
async fn all_ends_come_however_many_there_were_while_the_client_was_away() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let last = a_minute_before(&left(&fleet, &api).await);
    fleet.database.execute(&results(300, "0 s", "40 s")).await;
    let (mut ends, mut from) = (BTreeSet::new(), last);
    // It is cut off in the middle, too.
    for wanted in [10, 300] {
        let mut stream = api.events("/v1/sessions/s/events", &[("last-event-id", &from)]).await;
        while ends.len() < wanted {
            let end = stream.named("end").await;
            if end.text("agent_id") == "echo" {
                ends.insert(end.text("job_id").to_owned());
            }
            from = end.id;
        }
    }
    assert_eq!(ends.len(), 300);
}

#[tokio::test]
async fn clients_of_many_sessions_that_come_back_at_once_all_have_all_ends() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    // More than are looked through in one question, each with more results than are looked at first.
    let sessions = (0..12).map(|n| format!("many-{n}")).collect::<Vec<_>>();
    for (session, group) in sessions.iter().zip(0..) {
        api.submit(&json!({"agent_id": "echo", "session_id": session})).await.is(202);
        fleet.database.execute(&results_of(session, group, 150, "0 s", "40 s")).await;
    }
    let begins = format!("{}.0.-1.0", std::time::UNIX_EPOCH.elapsed().expect("a time").as_millis() - 60_000);
    let (api, begins) = (&api, begins.as_str());
    let coming_back = sessions.iter().map(|session| async move {
        let path = format!("/v1/sessions/{session}/events");
        let mut stream = api.events(&path, &[("last-event-id", begins)]).await;
        let mut ends = BTreeSet::new();
        for _ in 0..150 {
            let end = stream.named("end").await;
            assert!(ends.insert(end.text("job_id").to_owned()), "{end:?} came twice");
        }
    });
    futures::future::join_all(coming_back).await;
}

#[tokio::test]
async fn the_end_of_an_old_job_comes_behind_many_newer_ones_and_what_is_not_looked_at_is_said() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let last = left(&fleet, &api).await;
    fleet.database.execute(&results(150, "2 s", "1 hour")).await;
    fleet.database.execute(&results(1, "1 s", "0 s")).await;
    let mut stream = api.events("/v1/sessions/s/events", &[("last-event-id", &last.id)]).await;
    let mut shown = Vec::new();
    while shown.last().is_none_or(|event: &ServerEvent| event.text("agent_id") != "echo") {
        shown.push(stream.next().await.expect("the old job's end"));
    }
    assert!(shown.iter().all(|event| event.name == "end"), "nothing is missing: {shown:?}");

    fleet.database.execute(&results(10_001, "3 s", "1 hour")).await;
    let mut stream = api.events("/v1/sessions/s/events", &[("last-event-id", &last.id)]).await;
    assert_eq!(stream.named("gap").await.data, json!({"iterations": 0, "ends": true}));
}

#[tokio::test]
async fn a_job_that_began_and_was_folded_while_the_client_was_away_has_a_gap() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let last = left(&fleet, &api).await;
    let _worker = fleet.worker("next").start().await;
    let job_id = api.submit(&counting(3, 0)).await.is(202).text("job_id");
    api.wait(&job_id).await.is(200);
    fleet.database.execute("DELETE FROM harness_checkpoints").await;
    let mut stream = api.events("/v1/sessions/s/events", &[("last-event-id", &last.id)]).await;
    assert_eq!(stream.named("gap").await.data, json!({"job_id": job_id, "iterations": 3}));
    assert_eq!(stream.named("end").await.text("job_id"), job_id);
}
