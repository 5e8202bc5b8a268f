//! The window, the limits, and what goes in and comes out.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use harness::{RunError, Stop};
use job::FailureCode;
use serde_json::json;

use crate::kills::script;
use crate::provider::{Fault, Script, Turn};
use crate::world::{Speaks, World};

fn failed(ended: Result<job::Json, RunError>) -> (FailureCode, String) {
    match ended {
        Err(RunError::Failed(failure)) => (failure.code, failure.message),
        other => panic!("expected a failure, got {other:?}"),
    }
}

/// Looks so often. A compaction takes answers out, so the calls that were made show the end.
pub fn looks(times: usize) -> Script {
    let calls = AtomicUsize::new(0);
    Arc::new(move |_| {
        let at = calls.fetch_add(1, Ordering::Relaxed);
        if at >= times {
            return Turn::Says("Done.".to_owned(), "end_turn");
        }
        Turn::Calls(vec![(format!("look_{at}"), "look", format!(r#"{{"n":{at}}}"#))])
    })
}

#[tokio::test]
async fn a_conversation_that_outgrows_its_share_is_summarised_between_its_tools() {
    for speaks in Speaks::ALL {
        let mut world = World::on(speaks, looks(12)).await;
        world.output_bytes = 3_000;
        world.config["context_tokens"] = json!(4_000);
        assert_eq!(world.run().await.unwrap().as_str(), "\"Done.\"");
        let asked = world.provider.asked();
        let summaries = asked.iter().filter(|(_, body)| body.contains("oldest part no longer fits")).count();
        assert!(summaries >= 1, "{speaks:?}");
        assert_eq!(asked.len(), 13 + summaries, "{speaks:?}");
        let longest = asked.iter().map(|(_, body)| body.len()).max().unwrap();
        // Four bytes are a token here.
        assert!(longest < 4_000 * 4 + 4_000, "{speaks:?}: {longest}");
        assert!(asked.last().unwrap().1.contains("All was well so far."), "{speaks:?}");
        assert!(
            world.journal.lock().unwrap().iter().filter(|delta| delta.replace_context).count() == summaries
        );
    }
}

#[tokio::test]
async fn images_leave_the_conversation_before_the_session_is_full_of_them() {
    for speaks in [Speaks::Messages, Speaks::Responses] {
        let mut world = World::on(speaks, looks(25)).await;
        world.most_bytes = 1 << 20;
        world.image_bytes = 100_000;
        world.config["context_tokens"] = json!(10_000_000);
        assert_eq!(world.run().await.unwrap().as_str(), "\"Done.\"", "{speaks:?}");
        let asked = world.provider.asked();
        assert_eq!(asked.len(), 26, "{speaks:?}: no summary is paid where images are all that is too much");
        let longest = asked.iter().map(|(_, body)| body.len()).max().unwrap();
        assert!(longest < (1 << 20) / 4 * 3, "{speaks:?}: {longest}");
        let images = |body: &str| body.matches("AAAA\"").count();
        assert!(images(&asked[4].1) == 4 && (1..6).contains(&images(&asked[25].1)), "{speaks:?}");
        assert!(asked[25].1.contains("look {\\\"n\\\":0}"), "{speaks:?}: the text stays");
    }
}

#[tokio::test]
async fn the_images_of_one_answer_leave_room_in_the_session() {
    let looks = (0..12).map(|at| (format!("look_{at}"), "look", "{}".to_owned())).collect::<Vec<_>>();
    let calls = AtomicUsize::new(0);
    let script = Arc::new(move |_| match calls.fetch_add(1, Ordering::Relaxed) {
        0 => Turn::Calls(looks.clone()),
        _ => Turn::Says("Done.".to_owned(), "end_turn"),
    });
    let mut world = World::on(Speaks::Messages, script).await;
    world.most_bytes = 1 << 20;
    world.image_bytes = 100_000;
    assert_eq!(world.run().await.unwrap().as_str(), "\"Done.\"");
    let deltas = world.journal.lock().unwrap();
    let kept: String =
        deltas.iter().flat_map(|delta| &delta.context_window).map(|entry| entry.as_str()).collect();
    assert!(kept.contains("An image is left out") && kept.contains("AAAA"));
}

#[tokio::test]
async fn a_session_that_is_full_before_its_job_is_compacted_with_its_input() {
    for speaks in Speaks::ALL {
        let mut world = World::on(speaks, looks(4)).await;
        world.output_bytes = 10_000;
        world.run().await.unwrap();
        let before = world.session.lock().unwrap().bytes();
        world.most_bytes = before + 100;
        world.next_job("Look again, at all of it.".into());
        assert_eq!(world.run().await.unwrap().as_str(), "\"Done.\"", "{speaks:?}");
        let asked = world.provider.asked();
        let (summary, last) = (&asked[asked.len() - 2].1, &asked[asked.len() - 1].1);
        assert!(summary.contains("oldest part no longer fits"), "{speaks:?}");
        assert_eq!(last.matches("Look again, at all of it.").count(), 1, "{speaks:?}");
        assert!(world.session.lock().unwrap().bytes() < before / 2, "{speaks:?}");
    }
}

#[tokio::test]
async fn a_session_that_cannot_be_made_smaller_says_what_to_do_and_stays_usable() {
    let mut world = World::on(Speaks::Messages, looks(0)).await;
    world.most_bytes = 60_000;
    for (notes, input, problem) in [
        (70_000, "Look.".to_owned(), "the session is full"),
        (0, "Look at all of it. ".repeat(5_000), "cannot be made shorter"),
    ] {
        world.session.lock().unwrap().memory.insert("notes".to_owned(), "x".repeat(notes).into());
        let before = world.session.lock().unwrap().clone();
        world.next_job(input.into());
        let (code, message) = failed(world.run().await);
        assert_eq!(code, FailureCode::ContextOverflow);
        assert!(message.contains(problem) && message.contains("MAX_SESSION_BYTES (60000)"), "{message}");
        assert!(*world.session.lock().unwrap() == before, "the session stays as it was");
    }
    world.next_job("Look.".into());
    assert_eq!(world.run().await.unwrap().as_str(), "\"Done.\"");
}

#[tokio::test]
async fn a_provider_that_finds_a_conversation_too_long_gets_a_shorter_one_once() {
    for speaks in Speaks::ALL {
        let mut world = World::on(speaks, script()).await;
        world.run().await.unwrap();
        world.next_job("More.".into());
        world.provider.fault(Fault::TooLong);
        world.run().await.unwrap();
        let asked = world.provider.asked();
        assert!(asked.iter().any(|(_, body)| body.contains("oldest part no longer fits")));
        world.next_job("And more.".into());
        (0..2).for_each(|_| world.provider.fault(Fault::TooLong));
        let (code, _) = failed(world.run().await);
        assert_eq!(code, FailureCode::ContextOverflow, "{speaks:?}");
    }
}

#[tokio::test]
async fn a_job_has_its_limits() {
    for (limit, value) in [("max_iterations", 2), ("max_tokens", 300)] {
        let mut world = World::new(script(), &["claude-opus-5-5"]).await;
        world.config[limit] = json!(value);
        let (code, message) = failed(world.run().await);
        assert_eq!(code, FailureCode::BudgetExhausted);
        assert!(message.contains(limit), "{message}");
        assert!(world.provider.asked().len() < 4);
    }
}

#[tokio::test]
async fn what_a_summary_has_used_counts_before_the_next_call() {
    for speaks in Speaks::ALL {
        let mut world = World::on(speaks, looks(12)).await;
        world.output_bytes = 9_000;
        world.config["context_tokens"] = json!(4_000);
        world.next_job("x".repeat(6_000).into());
        // The first answer has used some 1,800, and the summary of the input some 1,200 more.
        world.config["max_tokens"] = json!(2_400);
        let (code, message) = failed(world.run().await);
        assert_eq!(code, FailureCode::BudgetExhausted, "{speaks:?}");
        assert!(message.contains("max_tokens = 2400"), "{message}");
        let asked = world.provider.asked();
        assert!(asked.last().unwrap().1.contains("oldest part no longer fits"), "{speaks:?}: {asked:?}");
    }
}

#[tokio::test]
async fn a_job_lowers_the_limits_of_its_agent_and_never_raises_them() {
    for (job, agent, limit) in [
        ((Some(2), None), (9, None), "max_iterations = 2"),
        ((Some(9), None), (2, None), "max_iterations = 2"),
        ((None, Some(300)), (100, None), "max_tokens = 300"),
        ((None, Some(300)), (100, Some(1_000_000)), "max_tokens = 300"),
        ((None, Some(1_000_000)), (100, Some(300)), "max_tokens = 300"),
    ] {
        let mut world = World::new(script(), &["claude-opus-5-5"]).await;
        (world.task.max_iterations, world.task.max_tokens) = job;
        world.config["max_iterations"] = json!(agent.0);
        world.config["max_tokens"] = json!(agent.1);
        let (code, message) = failed(world.run().await);
        assert_eq!(code, FailureCode::BudgetExhausted, "{limit}");
        assert!(message.ends_with(limit), "{message}");
    }
    let mut world = World::new(script(), &["claude-opus-5-5"]).await;
    (world.task.max_iterations, world.task.max_tokens) = (Some(100), Some(1_000_000));
    assert!(world.run().await.is_ok());
}

#[tokio::test]
async fn an_input_that_does_not_fit_is_refused_before_any_call() {
    let mut world = World::new(script(), &["claude-opus-5-5"]).await;
    world.config["input_schema"] = json!({"type": "object", "required": ["task"]});
    let (code, message) = failed(world.run().await);
    assert_eq!(code, FailureCode::BadInput);
    assert!(message.starts_with("input: "), "{message}");
    assert!(world.provider.asked().is_empty());
}

#[tokio::test]
async fn an_output_that_does_not_fit_is_repaired_a_few_times() {
    let says = |texts: &'static [&'static str]| {
        Arc::new(move |at: usize| Turn::Says(texts[at.min(texts.len() - 1)].to_owned(), "end_turn"))
    };
    let schema = json!({"type": "object", "properties": {"sum": {"type": "integer"}}, "required": ["sum"]});
    for (speaks, native) in [
        (Speaks::Messages, r#""output_config":{"format":{"type":"json_schema","schema""#),
        (Speaks::Chat, r#""response_format":{"type":"json_schema","json_schema":{"name":"output""#),
        (Speaks::Responses, r#""text":{"format":{"type":"json_schema","name":"output","schema""#),
    ] {
        let script = says(&["It is 7.", "{\"sum\": \"7\"}", "```json\n{\"sum\":  7}\n```"]);
        let mut world = World::on(speaks, script).await;
        world.config["output_schema"] = schema.clone();
        assert_eq!(world.run().await.unwrap().as_str(), r#"{"sum":  7}"#);
        let asked = world.provider.asked();
        assert!(asked[0].1.contains(native), "{}", asked[0].1);
        assert!(asked[2].1.contains("sum: "), "the problem is named: {}", asked[2].1);
    }
    let mut world = World::new(says(&["never"]), &["claude-opus-5-5"]).await;
    world.config["output_schema"] = schema;
    let (code, _) = failed(world.run().await);
    assert_eq!((code, world.provider.asked().len()), (FailureCode::OutputInvalid, 4));
}

#[tokio::test]
async fn an_answer_that_the_limit_of_output_has_cut_goes_on() {
    for speaks in Speaks::ALL {
        let script = Arc::new(|at: usize| match at {
            0 => Turn::Says("It is ".to_owned(), "max_tokens"),
            _ => Turn::Says("7.".to_owned(), "end_turn"),
        });
        let world = World::on(speaks, script).await;
        assert_eq!(world.run().await.unwrap().as_str(), "\"It is 7.\"");
    }
}

#[tokio::test]
async fn an_answer_that_was_cut_is_whole_although_a_compaction_took_its_beginning() {
    for speaks in Speaks::ALL {
        let calls = AtomicUsize::new(0);
        let script = Arc::new(move |_| match calls.fetch_add(1, Ordering::Relaxed) {
            0 => Turn::Says("It is ".to_owned(), "max_tokens"),
            _ => Turn::Says("7.".to_owned(), "end_turn"),
        });
        let mut world = World::on(speaks, script).await;
        world.next_job("x".repeat(6_000).into());
        // The first call is answered, and the second one is too long.
        [Fault::CutAfter(usize::MAX), Fault::TooLong]
            .into_iter()
            .for_each(|fault| world.provider.fault(fault));
        assert_eq!(world.run().await.unwrap().as_str(), "\"It is 7.\"", "{speaks:?}");
        assert!(world.journal.lock().unwrap().iter().any(|delta| delta.replace_context), "{speaks:?}");
    }
}

#[tokio::test]
async fn a_tool_may_take_long_without_being_a_lack_of_progress() {
    let mut world = World::new(looks(1), &["claude-opus-5-5"]).await;
    world.task.max_stalled_iterations = Some(1);
    // The answer that calls it is checkpointed meanwhile.
    world.look_takes = Duration::from_millis(2_200);
    assert!(world.run().await.is_ok());
    assert_eq!(world.session.lock().unwrap().iteration_count, 2);
    let mut world = World::new(script(), &["claude-opus-5-5"]).await;
    world.task.max_stalled_iterations = Some(1);
    assert!(world.run().await.is_ok(), "other results each time");
}

#[tokio::test]
async fn the_same_result_again_is_no_progress() {
    let same = |_| Turn::Calls(vec![("look_1".to_owned(), "look", "{}".to_owned())]);
    let mut world = World::new(Arc::new(same), &["gpt-6-sol"]).await;
    world.task.max_stalled_iterations = Some(2);
    let (code, _) = failed(world.run().await);
    assert_eq!((code, world.provider.asked().len()), (FailureCode::NoProgress, 3));
}

#[tokio::test]
async fn a_result_that_an_attempt_before_has_seen_is_no_progress() {
    for speaks in Speaks::ALL {
        let same = |at| Turn::Calls(vec![(format!("look_{at}"), "look", "{}".to_owned())]);
        let mut world = World::on(speaks, Arc::new(same)).await;
        world.task.max_stalled_iterations = Some(2);
        // After the input, and two answers with their results.
        world.wanted_back_at = Some(4);
        assert!(matches!(world.run().await, Err(RunError::Stopped(Stop::Drain))), "{speaks:?}");
        world.wanted_back_at = None;
        let before = world.session.lock().expect("not poisoned").feature_progress.clone();
        let (code, _) = failed(world.run().await);
        assert_eq!((code, world.provider.asked().len()), (FailureCode::NoProgress, 4), "{speaks:?}");
        assert_eq!(world.session.lock().expect("not poisoned").feature_progress, before, "{speaks:?}");
    }
}

#[tokio::test]
async fn an_answer_that_the_provider_has_paused_goes_on_without_a_word_of_ours() {
    let script = Arc::new(|at: usize| match at {
        0 => Turn::Says("I look ".to_owned(), "pause_turn"),
        1 => Turn::Calls(vec![("x".to_owned(), "look", "{}".to_owned())]),
        _ => Turn::Says("Found.".to_owned(), "end_turn"),
    });
    let world = World::on(Speaks::Messages, script).await;
    assert_eq!(world.run().await.unwrap().as_str(), "\"Found.\"");
    let asked = world.provider.asked();
    assert_eq!(asked.len(), 3);
    for pair in asked.windows(2) {
        let before = pair[0].1.strip_suffix("]}").unwrap();
        assert!(pair[1].1.starts_with(before), "\n{before}\n{}", pair[1].1);
    }
    let said: serde_json::Value = serde_json::from_str(&asked[1].1).unwrap();
    let roles: Vec<&str> = said["messages"]
        .as_array()
        .unwrap()
        .iter()
        .map(|message| message["role"].as_str().unwrap())
        .collect();
    assert_eq!(roles, ["user", "assistant"]);
}

#[tokio::test]
async fn an_unknown_tool_is_answered_and_a_refusal_ends_the_job() {
    for speaks in Speaks::ALL {
        let script = Arc::new(|at: usize| match at {
            0 => Turn::Calls(vec![("x".to_owned(), "unknown", "{}".to_owned())]),
            _ => Turn::Says("I see.".to_owned(), "end_turn"),
        });
        let world = World::on(speaks, script).await;
        assert!(world.run().await.is_ok());
        assert!(world.provider.asked()[1].1.contains("there is no tool"));
        let refuses = Arc::new(|_: usize| Turn::Says("No.".to_owned(), "refusal"));
        let world = World::on(speaks, refuses).await;
        assert_eq!(failed(world.run().await).0, FailureCode::ProviderRefused, "{speaks:?}");
    }
}

#[tokio::test]
async fn a_call_whose_input_is_no_object_is_answered_and_never_made() {
    for speaks in Speaks::ALL {
        let script = Arc::new(|at: usize| match at {
            0 => Turn::Calls(vec![("x".to_owned(), "look", "[1".to_owned())]),
            1 => Turn::Calls(vec![
                ("y".to_owned(), "look", "7".to_owned()),
                ("z".to_owned(), "push", "{}".to_owned()),
            ]),
            _ => Turn::Says("I see.".to_owned(), "end_turn"),
        });
        let world = World::on(speaks, script).await;
        assert!(world.run().await.is_ok());
        assert!(world.provider.asked()[1].1.contains("no JSON object"));
        assert!(world.runs("look").is_empty(), "{speaks:?}");
        assert_eq!(world.runs("push").len(), 1);
        let session = world.session.lock().unwrap();
        assert!(session.answers_for_open_calls().is_empty());
    }
}

#[tokio::test]
async fn an_input_that_two_readers_read_differently_is_never_made_and_the_session_goes_on() {
    let (long, deep) = ("9".repeat(400), format!("{}{}", "[".repeat(124), "]".repeat(124)));
    for input in [
        r#"{"path":"a","path":"b"}"#.to_owned(),
        r#"{"n":{"m":1e400}}"#.to_owned(),
        format!(r#"{{"n":{long}}}"#),
        format!(r#"{{"n":{deep}}}"#),
    ] {
        let given = input.clone();
        let script = Arc::new(move |at: usize| match at {
            0 => Turn::Calls(vec![("x".to_owned(), "look", given.clone())]),
            _ => Turn::Says("I see.".to_owned(), "end_turn"),
        });
        let mut world = World::on(Speaks::Messages, script).await;
        assert!(world.run().await.is_ok(), "{input}");
        assert!(world.runs("look").is_empty(), "{input}");
        world.next_job("And now?".into());
        assert!(world.run().await.is_ok(), "{input}");
    }
}
