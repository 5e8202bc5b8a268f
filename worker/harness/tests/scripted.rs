//! The scripted harness plays its input, and goes on where it was stopped.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, like the test itself")]

use std::sync::Arc;
use std::time::Duration;

use harness::testing::{MemoryJournal, assert_failure, failure, run, task};
use harness::{Echo, Harness, Run, RunError, Scripted, Session, Stop, Stopper, Task};
use job::{FailureCode, Json, Usd};
use serde_json::{Value, json};

async fn play(
    task: &Task,
    session: Session,
    journal: &Arc<MemoryJournal>,
) -> (Result<Json, RunError>, Session) {
    let mut run = Run::new(task.clone(), session, journal.clone(), Stopper::default().signal());
    let ended = Scripted.run(&mut run).await;
    (ended, run.into_session())
}

fn read(ended: Result<Json, RunError>) -> Value {
    serde_json::from_str(ended.unwrap().as_str()).unwrap()
}

#[tokio::test]
async fn echo_returns_its_input_to_the_letter() {
    let mut task = task(Value::Null);
    task.input = Json::parse(r#"{ "b":1.0, "a":12345678901234567890123 }"#).unwrap();
    let journal = MemoryJournal::new();
    assert_eq!(Echo.run(&mut run(&task, &journal)).await.unwrap(), task.input);
    assert_eq!(journal.deltas(), []);
}

#[tokio::test]
async fn every_iteration_is_one_checkpoint_with_what_it_declares() {
    let task = task(json!({
        "iterations": [
            {"say": "hello", "memory": {"mood": "good"}, "cost_usd": 0.001, "input_tokens": 10, "output_tokens": 20},
            {"feature_progress": {"login": "done"}, "memory": {"mood": null}},
        ],
        "output": {"answer": 42},
    }));
    let journal = MemoryJournal::new();
    let (ended, session) = play(&task, Session::default(), &journal).await;
    assert_eq!(read(ended), json!({"answer": 42}));
    assert_eq!((journal.deltas().len(), journal.events().len()), (2, 2));
    assert_eq!(session.iteration_count, 2);
    assert_eq!(
        session.context_window[0].to_value().unwrap(),
        json!({"role": "assistant", "content": "hello"})
    );
    assert_eq!(
        session.context_window[1].to_value().unwrap(),
        json!({"role": "assistant", "content": "iteration 2 of 2"})
    );
    assert_eq!(session.usage.cost, Usd::from_micros(1_000));
    assert!(session.memory.is_empty());
    assert_eq!(session.feature_progress["login"], "done");
}

#[tokio::test]
async fn a_job_goes_on_at_the_iteration_it_had_reached_whoever_takes_it_over() {
    let task = task(json!({"count": 6}));
    // The first worker's lease is lost after two, the second one's after two more.
    let mut session = Session::default();
    let mut checkpoints = 0;
    for resumed_at in [0, 2] {
        let journal =
            MemoryJournal::with(
                Duration::ZERO,
                |before| if before == 2 { Err(Stop::LeaseLost) } else { Ok(()) },
            );
        let (ended, reached) = play(&task, session, &journal).await;
        assert_eq!(ended, Err(RunError::Stopped(Stop::LeaseLost)));
        assert_eq!(reached.feature_progress[&task.job_id.to_string()]["done"], resumed_at + 2);
        checkpoints += journal.deltas().len();
        session = reached;
    }
    let journal = MemoryJournal::new();
    let (ended, session) = play(&task, session, &journal).await;
    assert_eq!(read(ended), json!({"iterations": 6, "resumed_at": 4, "attempt": 1}));
    assert_eq!((checkpoints + journal.deltas().len(), session.iteration_count), (6, 6));

    // The worker died before the end was recorded, and nothing is done again.
    let journal = MemoryJournal::new();
    let (ended, session) = play(&task, session, &journal).await;
    assert_eq!(read(ended)["resumed_at"], 6);
    assert_eq!((journal.deltas().len(), session.iteration_count), (0, 6));

    // Another job of the session starts at its own beginning.
    let (ended, session) =
        play(&harness::testing::task(json!({"count": 2})), session, &MemoryJournal::new()).await;
    assert_eq!(read(ended)["resumed_at"], 0);
    assert_eq!(session.iteration_count, 8);
}

#[tokio::test]
async fn a_stop_ends_the_wait_and_keeps_what_is_committed() {
    let journal = MemoryJournal::new();
    let stopper = Stopper::default();
    let task = task(json!({"iterations": [{}, {"delay_ms": 3_600_000}]}));
    let mut run = Run::new(task.clone(), Session::default(), journal.clone(), stopper.signal());
    let (ended, ()) = tokio::join!(Scripted.run(&mut run), async {
        journal.reached(1).await;
        stopper.ask(Stop::Drain);
    });
    assert_eq!(ended, Err(RunError::Stopped(Stop::Drain)));
    assert_eq!(run.into_session().iteration_count, 1);
}

#[tokio::test]
async fn an_iteration_fails_for_as_many_attempts_as_its_input_says() {
    let input =
        json!({"iterations": [{}, {"fail": {"message": "busy", "retryable": true, "attempts": 1}}, {}]});
    let mut task = task(input);
    let (ended, session) = play(&task, Session::default(), &MemoryJournal::new()).await;
    assert_failure(&failure(ended), FailureCode::HarnessError, true, "busy");
    assert_eq!(session.iteration_count, 1);
    task.attempt = 2;
    let (ended, session) = play(&task, session, &MemoryJournal::new()).await;
    assert_eq!(read(ended), json!({"iterations": 3, "resumed_at": 1, "attempt": 2}));
    assert_eq!(session.iteration_count, 3);
}

#[tokio::test]
async fn a_wrong_script_fails_before_its_first_iteration() {
    let journal = MemoryJournal::new();
    let task = task(json!({"iterations": [{}, {"dely_ms": 1}]}));
    let (ended, _) = play(&task, Session::default(), &journal).await;
    assert_failure(&failure(ended), FailureCode::BadInput, false, "input.iterations[1]");
    assert_eq!(journal.deltas(), []);
}

#[tokio::test]
async fn a_note_that_cannot_be_read_fails_instead_of_paying_twice() {
    let task = task(json!({"count": 1}));
    let mut session = Session::default();
    session.feature_progress.insert(task.job_id.to_string(), json!("half"));
    let (ended, _) = play(&task, session, &MemoryJournal::new()).await;
    assert_failure(&failure(ended), FailureCode::HarnessError, false, "feature_progress.");
}
