//! A person's part: approvals and questions, over attempts and kills.

use std::sync::Arc;

use harness::{Ask, ClosedInput, InputAnswer, InputKind, RunError};
use job::Json;
use serde_json::json;

use crate::provider::{Script, Turn};
use crate::world::World;

fn script(tool: &'static str, input: &'static str) -> Script {
    Arc::new(move |at| match at {
        0 => Turn::Calls(vec![
            ("look_1".to_owned(), "look", "{}".to_owned()),
            ("call_1".to_owned(), tool, input.to_owned()),
        ]),
        _ => Turn::Says("Done.".to_owned(), "end_turn"),
    })
}

fn asked(ended: Result<Json, RunError>) -> Ask {
    match ended {
        Err(RunError::Asks(mut asks)) if asks.len() == 1 => asks.remove(0),
        other => panic!("expected one question, got {other:?}"),
    }
}

/// Answers the call of the model's first answer.
fn answer(world: &mut World, answer: Option<InputAnswer>) {
    let timed_out = answer.is_none();
    world.answers.insert("call_1-1".parse().expect("an id"), ClosedInput { answer, by: None, timed_out });
}

#[tokio::test]
async fn a_call_waits_for_its_approval_and_is_made_once_then() {
    let mut world = World::new(script("pay", r#"{"n":1e2}"#), &["claude-opus-5-5"]).await;
    let ask = asked(world.run().await);
    assert_eq!((ask.call_id.as_str(), ask.kind), ("call_1-1", InputKind::Approval));
    assert_eq!(ask.content.as_str(), r#"{"tool":"pay","input":{"n":1e2}}"#);
    assert_eq!((world.runs("look").len(), world.runs("pay").len()), (1, 0), "what needs nobody is done");
    answer(&mut world, Some(InputAnswer::Approve { approve: true }));
    assert!(world.run().await.is_ok());
    assert!(world.runs("look").values().chain(world.runs("pay").values()).all(|runs| *runs == 1));
    assert_eq!((world.runs("pay").len(), world.provider.asked().len()), (1, 2));
    assert_eq!(*world.opened.lock().unwrap(), [false, true], "what was opened has started anew");
    world.next_job("And now?".into());
    assert!(world.run().await.is_ok());
    assert_eq!(world.opened.lock().unwrap().last(), Some(&false), "another job has used nothing yet");
}

#[tokio::test]
async fn a_call_whose_id_was_there_before_is_another_call() {
    let calls = |input: &str| Turn::Calls(vec![("call_0".to_owned(), "pay", input.to_owned())]);
    let script: Script = Arc::new(move |at| match at {
        0 => calls(r#"{"n":1}"#),
        1 => calls(r#"{"n":1000}"#),
        _ => Turn::Says("Done.".to_owned(), "end_turn"),
    });
    let mut world = World::new(script, &["gpt-6-sol"]).await;
    for (times, input) in [(1, r#"{"n":1}"#), (2, r#"{"n":1000}"#)] {
        let ask = asked(world.run().await);
        assert_eq!(ask.content.as_str(), format!(r#"{{"tool":"pay","input":{input}}}"#));
        assert_eq!(world.runs("pay").len(), times - 1, "an approval is for one call");
        let answer = Some(InputAnswer::Approve { approve: true });
        world.answers.insert(ask.call_id, ClosedInput { answer, by: None, timed_out: false });
    }
    assert!(world.run().await.is_ok());
    assert_eq!(world.runs("pay").len(), 2, "each has a key of its own");
}

#[tokio::test]
async fn a_later_job_s_call_of_the_same_id_is_made_as_well() {
    let script: Script = Arc::new(move |at| match at {
        0 | 2 => Turn::Calls(vec![("call_1".to_owned(), "pay", "{}".to_owned())]),
        _ => Turn::Says("Done.".to_owned(), "end_turn"),
    });
    let mut world = World::new(script, &["gpt-6-sol"]).await;
    for jobs in [1, 2] {
        asked(world.run().await);
        answer(&mut world, Some(InputAnswer::Approve { approve: true }));
        assert!(world.run().await.is_ok());
        assert_eq!(world.runs("pay").len(), jobs, "each job's call is its own");
        world.answers.clear();
        world.next_job("Again.".into());
    }
}

#[tokio::test]
async fn to_wait_for_a_person_is_no_lack_of_progress() {
    let script: Script = Arc::new(|at| match at {
        0 => Turn::Calls(vec![("call_1".to_owned(), "pay", "{}".to_owned())]),
        _ => Turn::Says("Done.".to_owned(), "end_turn"),
    });
    let mut world = World::new(script, &["claude-opus-5-5"]).await;
    world.task.max_stalled_iterations = Some(1);
    asked(world.run().await);
    answer(&mut world, Some(InputAnswer::Approve { approve: true }));
    assert!(world.run().await.is_ok());
    assert_eq!(world.session.lock().unwrap().iteration_count, 2, "each answer counts once");
}

#[tokio::test]
async fn an_approved_call_that_was_killed_is_not_made_twice() {
    for kill_at in 1.. {
        let mut world = World::new(script("pay", "{}"), &["claude-opus-5-5"]).await;
        asked(world.run().await);
        answer(&mut world, Some(InputAnswer::Approve { approve: true }));
        if let Some(ended) = world.attempt(Some(kill_at)).await {
            assert!(ended.is_ok() && kill_at > 10, "{kill_at}: {ended:?}");
            return;
        }
        assert!(world.run().await.is_ok(), "killed at {kill_at}");
        assert!(world.runs("pay").values().all(|runs| *runs == 1), "killed at {kill_at}");
        let told = world.provider.asked().iter().any(|(_, body)| body.contains("may have taken effect"));
        assert!(
            told || world.runs("pay").len() == 1,
            "killed at {kill_at}: it is made, or the model is told"
        );
    }
}

#[tokio::test]
async fn a_denied_call_is_not_made_and_the_model_is_told() {
    for (decision, said) in
        [(Some(InputAnswer::Approve { approve: false }), "has not approved"), (None, "in time")]
    {
        let mut world = World::new(script("pay", "{}"), &["gpt-6-sol"]).await;
        asked(world.run().await);
        answer(&mut world, decision);
        assert!(world.run().await.is_ok());
        assert!(world.runs("pay").is_empty());
        assert!(world.provider.asked()[1].1.contains(said));
    }
}

#[tokio::test]
async fn a_question_waits_for_its_answer() {
    let mut world = World::new(script("ask_human", r#"{"question":"Which?"}"#), &["claude-opus-5-5"]).await;
    world.config["ask_human"] = json!(true);
    world.config["answer_timeout_ms"] = json!(60_000);
    let ask = asked(world.run().await);
    assert_eq!((ask.kind, ask.content.as_str()), (InputKind::Question, r#"{"question":"Which?"}"#));
    assert_eq!(ask.timeout.unwrap().as_secs(), 60);
    answer(&mut world, Some(InputAnswer::Answer { answer: Json::parse("\"The second.\"").unwrap() }));
    assert!(world.run().await.is_ok());
    assert!(world.provider.asked()[1].1.contains("The second."));
}
