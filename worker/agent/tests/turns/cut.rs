//! What of an answer goes back that the limit of output has cut, or that says nothing; and that such answers are no progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use harness::{RunError, Stop};
use job::{FailureCode, Json};
use serde_json::{Value, json};

use crate::kills::open_ended;
use crate::provider::{Fault, Script, Turn};
use crate::world::{Shown, Speaks, World};

/// These turns in order. An answer that does not go back is not counted in the requests after it.
fn turns(turns: Vec<Turn>) -> Script {
    let at = AtomicUsize::new(0);
    Arc::new(move |_| turns[at.fetch_add(1, Ordering::Relaxed)].clone())
}

fn done() -> Turn {
    Turn::Says("Done.".to_owned(), "end_turn")
}

fn look(at: usize) -> Turn {
    Turn::Calls(vec![(format!("look_{at}"), "look", format!(r#"{{"n":{at}}}"#))])
}

/// Checks that each request extends the one before. What is said behind the last message of a user is one with it on Messages.
fn check_extends(world: &World, from: usize) {
    let asked = world.provider.asked();
    for pair in asked[from..].windows(2) {
        let (before, after) = (open_ended(&pair[0].1), &pair[1].1);
        let before = before.strip_suffix("]}").unwrap_or(before);
        assert!(after.starts_with(before), "\n{before}\n{after}");
    }
}

#[tokio::test]
async fn a_session_goes_on_behind_an_answer_that_was_cut_while_it_thought() {
    for speaks in Speaks::ALL {
        let cut = || Turn::Thinks("max_tokens");
        let part = Turn::Says("It ".to_owned(), "max_tokens");
        let script = turns(vec![look(1), cut(), part, cut(), done(), cut(), done()]);
        let mut world = World::on(speaks, script).await;
        assert_eq!(world.run().await.unwrap().as_str(), "\"It Done.\"", "{speaks:?}");
        let asked = world.provider.asked();
        for (at, is_told) in [(2, "Think less"), (3, "exactly where it ended"), (4, "Think less")] {
            assert!(asked[at].1.contains(is_told), "{speaks:?} {at}: {}", asked[at].1);
        }
        world.next_job("And now?".into());
        assert_eq!(world.run().await.unwrap().as_str(), "\"Done.\"", "{speaks:?}");
        check_extends(&world, 0);
    }
}

#[tokio::test]
async fn a_session_goes_on_behind_an_answer_that_says_nothing() {
    for speaks in Speaks::ALL {
        let blank = Turn::SaysAndCalls("\n\n".to_owned(), ("x".to_owned(), "look", "{}".to_owned()));
        let script = turns(vec![blank, Turn::Thinks("end_turn"), done()]);
        let mut world = World::on(speaks, script).await;
        assert_eq!(world.run().await.unwrap().as_str(), "\"\"", "{speaks:?}");
        assert_eq!(world.runs("look").len(), 1, "{speaks:?}");
        world.next_job("And now?".into());
        assert_eq!(world.run().await.unwrap().as_str(), "\"Done.\"", "{speaks:?}");
        check_extends(&world, 0);
    }
}

/// Older releases have kept what no provider takes back.
#[tokio::test]
async fn a_session_in_which_such_an_answer_was_kept_goes_on() {
    let kept = [
        r#"{"role":"assistant","content":[{"type":"thinking","thinking":"Hm","signature":""}]}"#,
        r#"{"role":"user","content":[{"type":"text","text":"Go on."}]}"#,
        r#"{"role":"assistant","content":[{"type":"text","text":"\n\n"},{"type":"text","text":"It is."},{"type":"thinking","thinking":"Hm","signature":""}]}"#,
        r#"{"role":"user","content":[{"type":"text","text":"Go on."}]}"#,
    ];
    for is_same_head in [true, false] {
        let script = turns(vec![look(1), done(), look(2), done(), done()]);
        let mut world = World::on(Speaks::Messages, script).await;
        world.run().await.unwrap();
        let kept = kept.map(|entry| Json::parse(entry).unwrap());
        world.session.lock().unwrap().context_window.extend(kept);
        if !is_same_head {
            world.config["system"] = json!("You are another test.");
        }
        for input in ["And now?", "And then?"] {
            world.next_job(input.into());
            assert_eq!(world.run().await.unwrap().as_str(), "\"Done.\"", "{is_same_head}");
        }
        check_extends(&world, if is_same_head { 0 } else { 2 });
        assert!(world.provider.asked()[2].1.contains("It is."), "{is_same_head}");
    }
}

async fn stalls(world: &World) -> (FailureCode, usize) {
    match world.run().await {
        Err(RunError::Failed(failure)) => (failure.code, world.provider.asked().len()),
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[tokio::test]
async fn an_answer_of_which_nothing_is_left_is_no_progress() {
    for speaks in Speaks::ALL {
        let mut world = World::on(speaks, Arc::new(|_| Turn::Thinks("max_tokens"))).await;
        world.task.max_stalled_iterations = Some(3);
        assert_eq!(stalls(&world).await, (FailureCode::NoProgress, 3), "{speaks:?}");
        // What was said is progress.
        let part = || Turn::Says("It ".to_owned(), "max_tokens");
        let cut = || Turn::Thinks("max_tokens");
        let script = turns(vec![cut(), cut(), part(), cut(), cut(), part(), done()]);
        let mut world = World::on(speaks, script).await;
        world.task.max_stalled_iterations = Some(3);
        assert_eq!(world.run().await.unwrap().as_str(), "\"It It Done.\"", "{speaks:?}");
    }
}

#[tokio::test]
async fn the_same_call_cut_again_is_no_progress_whatever_is_said_beside_it() {
    for speaks in Speaks::ALL {
        let torn = |at: usize| {
            let call = (format!("look_{at}"), "look", r#"{"n":"#.to_owned());
            if at.is_multiple_of(2) {
                Turn::Calls(vec![call])
            } else {
                Turn::SaysAndCalls(format!("Again, {at}."), call)
            }
        };
        let mut world = World::on(speaks, Arc::new(torn)).await;
        world.task.max_stalled_iterations = Some(2);
        // After the input and two answers. A later attempt knows what this one has seen.
        world.wanted_back_at = Some(2);
        assert!(matches!(world.run().await, Err(RunError::Stopped(Stop::Drain))), "{speaks:?}");
        world.wanted_back_at = None;
        assert_eq!(stalls(&world).await, (FailureCode::NoProgress, 4), "{speaks:?}");
    }
}

#[tokio::test]
async fn followers_are_told_which_text_counts_no_more() {
    for (speaks, text_ends) in [(Speaks::Messages, 7), (Speaks::Chat, 2), (Speaks::Responses, 5)] {
        let world = World::on(speaks, Arc::new(|_| Turn::Says("é. Done.".to_owned(), "end_turn"))).await;
        world.provider.fault(Fault::Refuses(503));
        world.provider.fault(Fault::CutAfter(text_ends));
        assert!(world.run().await.is_ok(), "{speaks:?}");
        let text = Shown::Text("é. Done.".to_owned());
        let void = Shown::Event("text_void".to_owned(), json!({"characters": 8}));
        assert_eq!(*world.shown.lock().unwrap(), [text.clone(), void, text], "{speaks:?}");
    }
    let script = Arc::new(|_| Turn::Says("No.".to_owned(), "refusal"));
    let world = World::on(Speaks::Messages, script).await;
    assert!(world.run().await.is_err());
    let shown = world.shown.lock().unwrap();
    let last: Option<&Value> = match shown.last() {
        Some(Shown::Event(name, data)) if name == "text_void" => Some(data),
        _ => None,
    };
    assert_eq!(last, Some(&json!({"characters": 3})), "{shown:?}");
}
