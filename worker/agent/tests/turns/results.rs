//! Results of calls: what of them a provider takes, and what a checkpoint and a session have room for.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::{OpenTools, Opening, Toolkit};
use async_trait::async_trait;
use harness::{ClosedInput, InputAnswer, MAX_DELTA_BYTES, RunError, Stop};
use job::Json;
use serde_json::json;
use tools::{Call, CallError, Content, Ended, Output, Tool};

use crate::provider::{Fault, Script, Turn};
use crate::world::{Speaks, World};

/// Tools that return what a test says, and say of themselves what it says.
struct Kit {
    tools: Vec<Tool>,
    output: Arc<dyn Fn() -> Vec<Content> + Send + Sync>,
    notices: Arc<Mutex<Vec<String>>>,
}

impl Kit {
    fn of(world: &World, output: impl Fn() -> Vec<Content> + Send + Sync + 'static) -> Arc<Kit> {
        let look = world.tools.iter().filter(|tool| tool.name == "look").cloned();
        Arc::new(Kit { tools: look.collect(), output: Arc::new(output), notices: Arc::default() })
    }
}

#[async_trait]
impl OpenTools for Kit {
    async fn open(&self, _: &Opening<'_>) -> Result<Arc<dyn Toolkit>, RunError> {
        let Kit { tools, output, notices } = self;
        Ok(Arc::new(Kit { tools: tools.clone(), output: output.clone(), notices: notices.clone() }))
    }
}

#[async_trait]
impl Toolkit for Kit {
    fn tools(&self) -> &[Tool] {
        &self.tools
    }

    async fn call(&self, _: &Call<'_>) -> Result<Output, CallError> {
        Ok(Output { content: (self.output)(), is_error: false, ended: Ended::Done })
    }

    fn notices(&self) -> Vec<String> {
        std::mem::take(&mut self.notices.lock().expect("not poisoned"))
    }

    async fn close(self: Arc<Self>) {}
}

fn text(text: impl Into<String>) -> Vec<Content> {
    vec![Content::Text(text.into())]
}

/// Calls `look` so often in one answer, and ends. A compaction takes answers out, so the calls of the model count.
fn side_by_side(times: usize) -> Script {
    let calls = AtomicUsize::new(0);
    Arc::new(move |_| match calls.fetch_add(1, Ordering::Relaxed) {
        0 => Turn::Calls((0..times).map(|at| (format!("look_{at}"), "look", "{}".to_owned())).collect()),
        _ => Turn::Says("Done.".to_owned(), "end_turn"),
    })
}

#[tokio::test]
async fn an_empty_answer_of_a_person_ends_no_job_of_the_session() {
    for (speaks, answer) in Speaks::ALL.into_iter().flat_map(|on| [(on, r#""""#), (on, r#"" \n""#)]) {
        let script: Script = Arc::new(|at| match at {
            0 => Turn::Calls(vec![("ask".to_owned(), "ask_human", r#"{"question":"Which?"}"#.to_owned())]),
            _ => Turn::Says("Done.".to_owned(), "end_turn"),
        });
        let mut world = World::on(speaks, script).await;
        world.config["ask_human"] = json!(true);
        assert!(matches!(world.run().await, Err(RunError::Asks(_))));
        let answer = Some(InputAnswer::Answer { answer: Json::parse(answer).expect("JSON") });
        let answered = ClosedInput { answer, by: None, timed_out: false };
        world.answers.insert("ask-1".parse().expect("an id"), answered);
        assert!(world.run().await.is_ok(), "{speaks:?}");
        world.next_job("And now?".into());
        assert!(world.run().await.is_ok(), "{speaks:?}");
    }
}

#[tokio::test]
async fn an_empty_result_is_taken_by_the_model_that_goes_on() {
    for speaks in [Speaks::Chat, Speaks::Responses] {
        let mut world = World::of(speaks, side_by_side(2), &["gpt-6-sol", "claude-opus-5-5"]).await;
        world.other_tools = Some(Kit::of(&world, || text("")));
        // The first model answers once.
        [Fault::CutAfter(usize::MAX), Fault::Refuses(404)]
            .into_iter()
            .for_each(|fault| world.provider.fault(fault));
        assert!(world.run().await.is_ok(), "{speaks:?}");
        let (_, last) = world.provider.asked().pop().expect("a request");
        assert!(last.contains(r#""model":"claude-opus-5-5""#), "{last}");
        world.next_job("And now?".into());
        world.provider.fault(Fault::Refuses(404));
        assert!(world.run().await.is_ok(), "{speaks:?}: a result of an earlier turn is one");
    }
}

#[tokio::test]
async fn the_ids_of_another_provider_s_calls_are_written_as_messages_takes_them() {
    let script: Script = Arc::new(|at| match at {
        // Each answer numbers its calls anew.
        0 | 1 => Turn::Calls(vec![
            ("call_0".to_owned(), "look", "{}".to_owned()),
            (format!("functions.look:{at}"), "functions.look", "{}".to_owned()),
            (format!("é{}", "x".repeat(300)), "look", "{}".to_owned()),
        ]),
        3 => Turn::Calls(vec![("toolu_1".to_owned(), "look", "{}".to_owned())]),
        _ => Turn::Says("Done.".to_owned(), "end_turn"),
    });
    for speaks in [Speaks::Chat, Speaks::Responses] {
        let mut world = World::of(speaks, script.clone(), &["gpt-6-sol", "claude-opus-5-5"]).await;
        let number = AtomicUsize::new(0);
        world.other_tools =
            Some(Kit::of(&world, move || text(format!("Seen {}.", number.fetch_add(1, Ordering::Relaxed)))));
        assert!(world.run().await.is_ok(), "{speaks:?}");
        let asked = world.provider.asked().len();
        world.next_job("And now?".into());
        world.models.reverse();
        assert!(world.run().await.is_ok(), "{speaks:?}");
        let all = world.provider.asked().split_off(asked);
        assert_eq!(all.len(), 2, "{speaks:?}");
        let open_ended = all[0].1.strip_suffix("]}").expect("messages come last");
        assert!(all[1].1.starts_with(open_ended), "{speaks:?}: it is written alike each time");
        let request: serde_json::Value = serde_json::from_str(&all[1].1).expect("JSON");
        let blocks = request["messages"].as_array().expect("a list").iter();
        let blocks = blocks.flat_map(|message| message["content"].as_array().expect("a list"));
        let mut calls = Vec::new();
        let mut results = Vec::new();
        for block in blocks {
            match block["type"].as_str() {
                Some("tool_use") => calls.push(block["id"].to_string()),
                Some("tool_result") => results.push(block["tool_use_id"].to_string()),
                _ => {}
            }
        }
        assert_eq!(calls.len(), 7, "{speaks:?}: {calls:?}");
        calls.sort_unstable();
        results.sort_unstable();
        assert_eq!(calls, results, "{speaks:?}: each result names its call");
    }
}

/// The largest delta that was checkpointed.
fn largest_delta(world: &World) -> usize {
    let deltas = world.journal.lock().expect("not poisoned");
    deltas.iter().map(|delta| delta.check().expect("a delta that can be kept")).max().expect("a delta")
}

#[tokio::test]
async fn results_that_end_together_are_kept_one_after_the_other_where_one_checkpoint_cannot_hold_them() {
    for speaks in [Speaks::Messages, Speaks::Responses] {
        let mut world = World::on(speaks, side_by_side(5)).await;
        world.image_bytes = 1_500_000;
        world.config["context_tokens"] = json!(10_000_000);
        world.most_bytes = 64 << 20;
        // They all end while the first one is kept.
        world.commit_takes = Duration::from_millis(300);
        world.look_takes = Duration::from_millis(50);
        assert_eq!(world.run().await.expect("an output").as_str(), "\"Done.\"", "{speaks:?}");
        let asked = world.provider.asked();
        assert_eq!(asked[1].1.matches("AAAA\"").count(), 5, "{speaks:?}: no image is left out");
        assert!(largest_delta(&world) <= MAX_DELTA_BYTES);
        assert_eq!(world.session.lock().expect("not poisoned").iteration_count, 2, "{speaks:?}");
    }
}

#[tokio::test]
async fn a_result_that_no_checkpoint_can_hold_is_cut_and_says_so() {
    for speaks in Speaks::ALL {
        let mut world = World::on(speaks, side_by_side(1)).await;
        world.most_bytes = 64 << 20;
        world.config["context_tokens"] = json!(10_000_000);
        // As JSON each of these is six bytes.
        world.other_tools = Some(Kit::of(&world, || text(format!("begin{}end", "\u{1}".repeat(800_000)))));
        assert_eq!(world.run().await.expect("an output").as_str(), "\"Done.\"", "{speaks:?}");
        let (_, last) = world.provider.asked().pop().expect("a request");
        assert!(last.contains("begin\\u0001") && last.contains("\\u0001end"), "{speaks:?}");
        assert!(last.contains("are left out, because the session has no room"), "{speaks:?}");
        assert!(largest_delta(&world) > MAX_DELTA_BYTES / 2, "{speaks:?}: it is cut no more than needed");
    }
}

#[tokio::test]
async fn the_texts_of_one_answer_leave_room_in_the_session() {
    for speaks in Speaks::ALL {
        let mut world = World::on(speaks, side_by_side(12)).await;
        world.most_bytes = 1 << 20;
        world.other_tools = Some(Kit::of(&world, || text("x".repeat(200_000))));
        assert_eq!(world.run().await.expect("an output").as_str(), "\"Done.\"", "{speaks:?}");
    }
}

/// A job whose first attempt was handed back behind its first results. A server has started anew since.
async fn resumed(speaks: Speaks) -> (World, Arc<Kit>) {
    let mut world = World::on(speaks, side_by_side(1)).await;
    *world.stop_in_look.lock().expect("not poisoned") = Some(Stop::HandBack);
    assert!(matches!(world.run().await, Err(RunError::Stopped(Stop::Drain))), "{speaks:?}");
    let kit = Kit { tools: world.tools.clone(), output: Arc::new(|| text("")), notices: Arc::default() };
    let kit = Arc::new(kit);
    kit.notices.lock().expect("not poisoned").push("The server is new.".to_owned());
    world.other_tools = Some(kit.clone());
    (world, kit)
}

#[tokio::test]
async fn a_model_is_told_before_its_first_answer_after_a_resume_that_a_server_has_started_anew() {
    for speaks in Speaks::ALL {
        let (world, _) = resumed(speaks).await;
        assert!(world.run().await.is_ok(), "{speaks:?}");
        let asked = world.provider.asked();
        assert_eq!(asked.len(), 2, "{speaks:?}");
        assert!(asked[1].1.contains("The server is new."), "{speaks:?}: {}", asked[1].1);
        let before = asked[0].1.strip_suffix("]}").expect("messages come last");
        assert!(asked[1].1.starts_with(before), "{speaks:?}");
    }
}

#[tokio::test]
async fn killed_at_any_moment_of_a_resume_an_answer_is_paid_once_and_the_model_is_told() {
    for speaks in Speaks::ALL {
        let (mut kills, mut repaid) = (0, 0);
        for kill_at in 1.. {
            let (world, kit) = resumed(speaks).await;
            let ended = world.attempt(Some(kill_at)).await;
            if let Some(ended) = ended {
                assert!(ended.is_ok() && kill_at > 5, "{speaks:?} {kill_at}: {ended:?}");
                break;
            }
            kills += 1;
            // It has started once more.
            *kit.notices.lock().expect("not poisoned") = vec!["The server is new.".to_owned()];
            assert!(world.run().await.is_ok(), "{speaks:?}: killed at {kill_at}");
            let asked = world.provider.asked();
            assert!(asked.len() <= 3, "{speaks:?}: killed at {kill_at}: {}", asked.len());
            repaid += asked.len() - 2;
            for (_, body) in &asked[1..] {
                assert_eq!(body.matches("The server is new.").count(), 1, "{speaks:?} {kill_at}: {body}");
            }
        }
        assert!(kills > 5 && repaid < kills, "{speaks:?}: {kills} {repaid}");
    }
}

#[tokio::test]
async fn an_answer_that_was_stored_before_a_resume_is_used_as_it_is() {
    for speaks in Speaks::ALL {
        let (mut used, mut told) = (0, 0);
        for kill_at in 1.. {
            let mut world = World::on(speaks, side_by_side(1)).await;
            if world.attempt(Some(kill_at)).await.is_some() {
                break;
            }
            let paid = world.provider.asked().len();
            let kit =
                Kit { tools: world.tools.clone(), output: Arc::new(|| text("")), notices: Arc::default() };
            kit.notices.lock().expect("not poisoned").push("The server is new.".to_owned());
            world.other_tools = Some(Arc::new(kit));
            assert!(world.run().await.is_ok(), "{speaks:?}: killed at {kill_at}");
            let asked = world.provider.asked();
            assert!(asked.len() <= 3, "{speaks:?}: killed at {kill_at}: {}", asked.len());
            match asked.len() - paid {
                0 => used += 1,
                _ => {
                    told +=
                        usize::from(asked[paid..].iter().any(|(_, body)| body.contains("The server is new.")))
                }
            }
        }
        assert!(used > 0 && told > 5, "{speaks:?}: {used} {told}");
    }
}
