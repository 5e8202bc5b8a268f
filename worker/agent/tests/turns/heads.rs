//! What requests begin with is changed between two jobs of a session: a long conversation is compacted with it, once, and a short
//! one is sent anew as a whole. The provider refuses thinking whose beginning was changed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use harness::Stop;
use serde_json::json;
use tools::Tool;

use crate::kills::open_ended;
use crate::provider::{Fault, Script, Turn};
use crate::world::{Speaks, World};

const SUMMARY: &str = "oldest part no longer fits";

/// Looks four times in the first job and twice in the second, by the answers that a request has.
fn looks_in_both(in_second: Arc<AtomicBool>) -> Script {
    let first_of_second = AtomicUsize::new(usize::MAX);
    Arc::new(move |at| {
        let (job, done, all) = match in_second.load(Ordering::Relaxed) {
            false => (1, at, 4),
            true => {
                let first = first_of_second.fetch_min(at, Ordering::Relaxed).min(at);
                (2, at - first, 2)
            }
        };
        if done >= all {
            return Turn::Says(format!("Done with {job}."), "end_turn");
        }
        Turn::Calls(vec![(format!("look_{job}_{done}"), "look", format!(r#"{{ "n":{done}e0 }}"#))])
    })
}

/// A world whose session has had a job of some 3,400 tokens, and begins another one.
async fn after_a_job(speaks: Speaks, models: &[&str], context_tokens: u64) -> (World, usize) {
    let in_second = Arc::new(AtomicBool::new(false));
    let mut world = World::of(speaks, looks_in_both(in_second.clone()), models).await;
    world.output_bytes = 3_000;
    world.config["context_tokens"] = json!(context_tokens);
    world.run().await.expect("an output");
    assert!(world.journal.lock().expect("not poisoned").iter().all(|delta| !delta.replace_context));
    in_second.store(true, Ordering::Relaxed);
    world.next_job("And the rest?".into());
    let asked = world.provider.asked().len();
    (world, asked)
}

const LONG: u64 = 6_000;

/// The requests of the second job: those for a summary, and the others.
fn since(world: &World, asked: usize) -> (Vec<String>, Vec<String>) {
    let bodies = world.provider.asked().split_off(asked).into_iter().map(|(_, body)| body);
    bodies.partition(|body| body.contains(SUMMARY))
}

/// Checks that each request is the one before it or extends it, and that none has thinking from before the first of them.
fn extend_each_other(requests: &[String]) {
    assert!(!requests[0].contains("signed by"), "{}", requests[0]);
    for pair in requests.windows(2) {
        assert!(
            pair[0] == pair[1] || pair[1].starts_with(open_ended(&pair[0])),
            "\n{}\n{}",
            pair[0],
            pair[1]
        );
    }
}

fn compactions(world: &World) -> usize {
    world.journal.lock().expect("not poisoned").iter().filter(|delta| delta.replace_context).count()
}

fn heads(world: &World) -> usize {
    let session = world.session.lock().expect("not poisoned");
    session.context_window.iter().filter(|entry| entry.as_str().starts_with("{\"harness\":\"head\"")).count()
}

type Change = fn(&mut World);

#[tokio::test]
async fn a_long_conversation_is_compacted_once_with_whatever_changes_its_head() {
    let grow = |world: &mut World| {
        let grow = Tool { name: "grow".to_owned(), ..world.tools[0].clone() };
        world.tools.insert(0, grow);
    };
    let changes: [(Change, &str); 4] = [
        (|world| world.config["system"] = json!("You are another test."), "You are another test."),
        (grow, "\"grow\""),
        (|world| world.config["max_output_tokens"] = json!(499), ":499,"),
        (
            |world| {
                let temperature = json!({"temperature": 0.5});
                world.config["options"] = json!({"anthropic": temperature, "openai": temperature});
            },
            "\"temperature\":0.5",
        ),
    ];
    for speaks in Speaks::ALL {
        for (change, seen) in &changes {
            let (mut world, asked) = after_a_job(speaks, &[speaks.model()], LONG).await;
            change(&mut world);
            assert_eq!(
                world.run().await.expect("an output").as_str(),
                "\"Done with 2.\"",
                "{speaks:?} {seen}"
            );
            let (summaries, requests) = since(&world, asked);
            assert_eq!((summaries.len(), requests.len()), (1, 3), "{speaks:?} {seen}");
            assert_eq!((compactions(&world), heads(&world)), (1, 1), "{speaks:?} {seen}");
            extend_each_other(&requests);
            let first = &requests[0];
            assert!(first.contains(seen) && first.contains("All was well so far."), "{speaks:?}: {first}");
            assert_eq!(first.matches("And the rest?").count(), 1, "{speaks:?}: {first}");
            let before = world.provider.asked()[asked - 1].1.len();
            assert!(first.len() < before / 2, "{speaks:?}: {} {before}", first.len());
            // The head stays from then on.
            world.next_job("And?".into());
            world.run().await.expect("an output");
            assert_eq!((compactions(&world), heads(&world)), (1, 1), "{speaks:?} {seen}");
        }
    }
}

#[tokio::test]
async fn a_short_conversation_is_sent_anew_as_a_whole() {
    for speaks in Speaks::ALL {
        let (mut world, asked) = after_a_job(speaks, &[speaks.model()], 3 * LONG).await;
        world.config["system"] = json!("You are another test.");
        world.run().await.expect("an output");
        let (summaries, requests) = since(&world, asked);
        assert_eq!((summaries.len(), requests.len(), compactions(&world)), (0, 3, 0), "{speaks:?}");
        extend_each_other(&requests);
        assert!(requests[0].contains("look_1_0") && requests[0].contains("Done with 1."), "{speaks:?}");
    }
}

#[tokio::test]
async fn a_large_head_makes_no_conversation_long() {
    for speaks in Speaks::ALL {
        let mut world = World::on(speaks, Arc::new(|_| Turn::Says("Yes.".to_owned(), "end_turn"))).await;
        world.config["context_tokens"] = json!(LONG);
        for system in ["one", "two"] {
            world.config["system"] = json!(format!("{system} {}", "x".repeat(13_000)));
            world.next_job("Is it well?".into());
            world.run().await.expect("an output");
        }
        assert_eq!((world.provider.asked().len(), compactions(&world)), (2, 0), "{speaks:?}");
    }
}

#[tokio::test]
async fn killed_at_any_moment_a_change_of_the_head_pays_at_most_the_call_in_flight_again() {
    for speaks in Speaks::ALL {
        let (mut kills, mut repaid, mut repaid_summaries) = (0, 0, 0);
        let (before, _) = after_a_job(speaks, &[speaks.model()], LONG).await;
        for kill_at in 1.. {
            let script = looks_in_both(Arc::new(AtomicBool::new(true)));
            let mut world = World::on(speaks, script).await;
            *world.session.lock().expect("not poisoned") =
                before.session.lock().expect("not poisoned").clone();
            (world.config, world.output_bytes) = (before.config.clone(), before.output_bytes);
            world.config["system"] = json!("You are another test.");
            world.next_job("And the rest?".into());
            let is_killed = world.attempt(Some(kill_at)).await.is_none();
            if is_killed {
                world.run().await.expect("an output");
            }
            let (summaries, requests) = since(&world, 0);
            let again = summaries.len() + requests.len() - 4;
            assert!(again <= usize::from(is_killed), "{speaks:?}: killed at {kill_at}: {again} calls again");
            assert!(summaries.iter().all(|summary| *summary == summaries[0]), "{speaks:?} {kill_at}");
            assert_eq!((compactions(&world), heads(&world)), (1, 1), "{speaks:?}: killed at {kill_at}");
            extend_each_other(&requests);
            assert!(requests[0].contains("You are another test."), "{speaks:?} {kill_at}");
            assert_eq!(requests[0].matches("And the rest?").count(), 1, "{speaks:?} {kill_at}");
            if !is_killed {
                break;
            }
            kills += 1;
            repaid += again;
            repaid_summaries += summaries.len() - 1;
        }
        assert!(kills > 30 && repaid < kills, "{speaks:?}: {kills} {repaid}");
        assert!((1..20).contains(&repaid_summaries), "{speaks:?}: {repaid_summaries}");
    }
}

#[tokio::test]
async fn without_a_summary_the_oldest_outputs_go_and_the_job_goes_on() {
    for speaks in Speaks::ALL {
        let (mut world, asked) = after_a_job(speaks, &[speaks.model()], LONG).await;
        world.config["system"] = json!("You are another test.");
        world.provider.fault(Fault::Refuses(401));
        world.run().await.expect("an output");
        let (summaries, requests) = since(&world, asked);
        assert_eq!((summaries.len(), requests.len(), compactions(&world)), (0, 3, 1), "{speaks:?}");
        extend_each_other(&requests);
        assert!(requests[0].contains("This output was removed"), "{speaks:?}");
        assert!(requests[0].contains("look_1_0"), "{speaks:?}: the calls stay");
    }
}

#[tokio::test]
async fn a_conversation_that_nothing_makes_shorter_goes_on_whole_where_its_window_has_room() {
    for speaks in Speaks::ALL {
        let mut world = World::on(speaks, Arc::new(|_| Turn::Says("Yes.".to_owned(), "end_turn"))).await;
        world.config["context_tokens"] = json!(LONG);
        world.next_job("y".repeat(14_000).into());
        world.run().await.expect("an output");
        world.config["system"] = json!("You are another test.");
        world.next_job("And the rest?".into());
        world.provider.fault(Fault::Refuses(401));
        world.run().await.expect("an output");
        let asked = world.provider.asked();
        assert_eq!(asked.len(), 2, "{speaks:?}");
        assert!(asked[1].1.contains(&"y".repeat(14_000)) && !asked[1].1.contains("signed by"), "{speaks:?}");
        assert_eq!((compactions(&world), heads(&world)), (1, 1), "{speaks:?}");
    }
}

/// Which model writes the summary, where a session's model changes.
async fn summarised(speaks: Speaks, models: [&str; 2], stays: &[&str], fault: Option<Fault>) -> String {
    let (mut world, asked) = after_a_job(speaks, &models[..1], LONG).await;
    world.models = stays.iter().map(|model| (*model).to_owned()).collect();
    fault.into_iter().for_each(|fault| world.provider.fault(fault));
    world.run().await.expect("an output");
    let (summaries, requests) = since(&world, asked);
    assert_eq!((summaries.len(), requests.len()), (1, 3), "{speaks:?} {stays:?}");
    assert_eq!((compactions(&world), heads(&world)), (1, 1), "{speaks:?} {stays:?}");
    extend_each_other(&requests);
    assert!(requests.iter().all(|body| body.contains(&format!("\"model\":\"{}\"", stays[0]))), "{stays:?}");
    let summary: serde_json::Value = serde_json::from_str(&summaries[0]).expect("JSON");
    summary["model"].as_str().expect("a text").to_owned()
}

#[tokio::test]
async fn the_model_before_writes_the_summary_as_long_as_the_agent_has_it_and_it_answers() {
    for (speaks, before, after) in [
        (Speaks::Messages, "claude-opus-5-5", "claude-haiku-4-5"),
        (Speaks::Responses, "gpt-6-sol", "claude-opus-5-5"),
        (Speaks::Responses, "claude-opus-5-5", "gpt-6-sol"),
        (Speaks::Chat, "claude-opus-5-5", "gpt-6-sol"),
        (Speaks::Chat, "gpt-6-sol", "claude-opus-5-5"),
    ] {
        let models = [before, after];
        assert_eq!(summarised(speaks, models, &[after, before], None).await, before, "{speaks:?}");
        let gone = Some(Fault::Refuses(404));
        assert_eq!(summarised(speaks, models, &[after, before], gone).await, after, "{speaks:?}");
        assert_eq!(summarised(speaks, models, &[after], None).await, after, "{speaks:?}");
    }
}

const APIS: [(Speaks, &str); 2] = [(Speaks::Chat, "responses"), (Speaks::Responses, "chat")];

#[tokio::test]
async fn an_agent_that_changes_its_api_between_two_jobs_has_what_stays_written_for_the_new_one() {
    for (speaks, after) in APIS {
        let (mut world, asked) = after_a_job(speaks, &[speaks.model()], LONG).await;
        world.config["openai_api"] = after.into();
        world.run().await.expect("an output");
        let (summaries, requests) = since(&world, asked);
        assert_eq!((summaries.len(), requests.len(), compactions(&world)), (1, 3, 1), "{speaks:?}");
        extend_each_other(&requests);
    }
}

#[tokio::test]
async fn an_agent_that_changes_its_api_within_a_job_goes_on_with_the_new_one_from_a_compaction() {
    for (speaks, after) in APIS {
        let calls = AtomicUsize::new(0);
        let script = Arc::new(move |_| match calls.fetch_add(1, Ordering::Relaxed) {
            at @ 0..8 => Turn::Calls(vec![(format!("look_{at}"), "look", "{}".to_owned())]),
            _ => Turn::Says("Done.".to_owned(), "end_turn"),
        });
        let mut world = World::on(speaks, script).await;
        world.config["context_tokens"] = json!(LONG);
        world.output_bytes = 3_000;
        *world.stop_in_look.lock().expect("not poisoned") = Some(Stop::HandBack);
        world.run().await.expect_err("it is handed back");
        world.config["openai_api"] = after.into();
        assert_eq!(world.run().await.expect("an output").as_str(), "\"Done.\"", "{speaks:?} to {after}");
        assert!(compactions(&world) > 0, "{speaks:?} to {after}");
        let (_, requests) = since(&world, 0);
        let wire = if after == "chat" { "\"messages\":[" } else { "\"input\":[" };
        let first = requests.iter().find(|body| body.contains(wire)).expect("a request to the new API");
        assert!(first.contains("call_id\":\"look_"), "{speaks:?} to {after}: the last call stays: {first}");
    }
}

#[tokio::test]
async fn a_summary_of_the_next_model_is_not_paid_again_when_the_one_before_answers_after_a_kill() {
    let models = ["claude-haiku-4-5", "claude-opus-5-5"];
    let (before, _) = after_a_job(Speaks::Messages, &models[1..], LONG).await;
    let mut paid_before = 0;
    for kill_at in 1.. {
        let script = looks_in_both(Arc::new(AtomicBool::new(true)));
        let mut world = World::new(script, &models).await;
        *world.session.lock().expect("not poisoned") = before.session.lock().expect("not poisoned").clone();
        (world.config, world.output_bytes) = (before.config.clone(), before.output_bytes);
        world.next_job("And the rest?".into());
        world.provider.fault(Fault::Refuses(404));
        if world.attempt(Some(kill_at)).await.is_some() || compactions(&world) > 0 {
            break;
        }
        let is_paid = world.paid() > 0;
        paid_before += usize::from(is_paid);
        world.run().await.expect("an output");
        let (summaries, _) = since(&world, 0);
        assert!(!is_paid || summaries.len() == 1, "killed at {kill_at}: {} summaries", summaries.len());
    }
    assert!(paid_before > 1, "{paid_before}");
}

#[tokio::test]
async fn the_limit_of_output_is_at_most_what_the_model_takes() {
    let limits = |world: &World| -> Vec<u64> {
        let bodies = world.provider.asked().into_iter();
        let bodies = bodies.map(|(_, body)| serde_json::from_str::<serde_json::Value>(&body).expect("JSON"));
        bodies.map(|body| body["max_tokens"].as_u64().expect("a number")).collect()
    };
    let says: Script = Arc::new(|_| Turn::Says("Done.".to_owned(), "end_turn"));
    // The provider would take 64,000 tokens from the second one.
    let models = ["claude-opus-5-5", "claude-haiku-4-5"];
    for (configured, taken) in [(500, 500), (100_000, 64_000)] {
        let mut world = World::new(says.clone(), &models).await;
        world.config["max_output_tokens"] = json!(configured);
        world.provider.fault(Fault::Refuses(404));
        world.run().await.expect("an output");
        assert_eq!(limits(&world), [taken], "the next model");
        world.next_job("And now?".into());
        world.run().await.expect("an output");
        assert_eq!(limits(&world), [taken, configured], "the first one again");
    }
    let mut world = World::new(says, &models[1..]).await;
    world.config["max_output_tokens"] = json!(100_000);
    world.run().await.expect("an output");
    assert_eq!(limits(&world), [64_000], "the only one");
}
