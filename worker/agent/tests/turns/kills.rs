//! A kill at any moment: what was paid, what was made, and what is sent afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::provider::{Script, Turn};
use crate::world::{Speaks, World};

const TURNS: usize = 3;

/// Two calls a turn, with inputs that a parser would write otherwise.
pub fn script() -> Script {
    Arc::new(|at| {
        if at >= TURNS {
            return Turn::Says("Done, é.".to_owned(), "end_turn");
        }
        Turn::Calls(vec![
            (format!("look_{at}"), "look", format!(r#"{{"z": 1e{at}, "a":12345678901234567890123}}"#)),
            (format!("push_{at}"), "push", format!(r#"{{ "n" : {at}.50 }}"#)),
        ])
    })
}

/// Returns a body without what closes it.
pub fn open_ended(body: &str) -> &str {
    body.strip_suffix("]}").expect("messages come last")
}

pub fn check_letters(world: &World) {
    let mut asked = world.provider.asked();
    asked.sort();
    for pair in asked.windows(2) {
        let ((turn, before), (next, after)) = (&pair[0], &pair[1]);
        if turn == next {
            assert_eq!(before, after, "the same call is made again to the letter");
        } else {
            assert!(after.starts_with(open_ended(before)), "\n{before}\n{after}");
        }
        assert!(!after.contains("sk-test-key"), "the worker's key is not sent");
    }
    assert!(asked.last().expect("a request").1.contains("12345678901234567890123"));
}

async fn killed_everywhere(speaks: Speaks, takes_answers: bool) -> (usize, usize) {
    let (mut kills, mut repaid) = (0, 0);
    for kill_at in 1.. {
        let mut world = World::on(speaks, script()).await;
        world.takes_answers = takes_answers;
        if let Some(ended) = world.attempt(Some(kill_at)).await {
            assert_eq!(ended.expect("an output").as_str(), "\"Done, é.\"", "{kill_at} is behind its end");
            assert_eq!(world.provider.asked().len(), TURNS + 1);
            break;
        }
        kills += 1;
        assert_eq!(world.run().await.expect("an output").as_str(), "\"Done, é.\"", "killed at {kill_at}");
        let paid = world.provider.asked().len();
        assert!((TURNS + 1..=TURNS + 2).contains(&paid), "killed at {kill_at}: {paid} calls");
        repaid += paid - TURNS - 1;
        check_letters(&world);
        let pushed = world.runs("push");
        assert!(pushed.values().all(|runs| *runs == 1), "killed at {kill_at}: {pushed:?}");
        assert!((TURNS - 1..=TURNS).contains(&pushed.len()), "killed at {kill_at}: {pushed:?}");
        let looked = world.runs("look");
        assert_eq!(looked.len(), TURNS, "killed at {kill_at}: {looked:?}");
        assert!(looked.values().sum::<usize>() <= TURNS + 1, "killed at {kill_at}: {looked:?}");
        let session = world.session.lock().expect("not poisoned");
        assert_eq!(session.iteration_count, TURNS as u64 + 1, "killed at {kill_at}");
        assert!(session.answers_for_open_calls().is_empty());
    }
    (kills, repaid)
}

#[tokio::test]
async fn killed_at_any_moment_it_pays_at_most_the_call_in_flight_again_and_makes_no_unsafe_call_twice() {
    for (speaks, takes_answers) in Speaks::ALL.into_iter().flat_map(|it| [(it, true), (it, false)]) {
        let (kills, repaid) = killed_everywhere(speaks, takes_answers).await;
        // Less than half of the moments are between a request and its answer in the ledger.
        assert!(kills > 40 && repaid < kills, "{speaks:?} {takes_answers}: {kills} {repaid}");
    }
}

/// Pushes in its first answer, as the calls that were made count. A compaction takes answers out.
fn pushes() -> Script {
    let calls = AtomicUsize::new(0);
    Arc::new(move |_| match calls.fetch_add(1, Ordering::Relaxed) {
        0 => Turn::Calls(vec![("push_0".to_owned(), "push", "{}".to_owned())]),
        _ => Turn::Says("Done.".to_owned(), "end_turn"),
    })
}

/// Kills a job at each moment, changes its agent, and lets it go on. Where a push was made, the model knows.
async fn changed_everywhere(speaks: Speaks, models: &[&str], change: impl Fn(&mut World)) {
    let (mut kills, mut pushed) = (0, 0);
    for kill_at in 1.. {
        let mut world = World::of(speaks, pushes(), models).await;
        world.config["context_tokens"] = json!(100_000);
        world.next_job("Push. ".repeat(2_000).into());
        if world.attempt(Some(kill_at)).await.is_some() {
            break;
        }
        kills += 1;
        if world.session.lock().expect("not poisoned").context_window.is_empty() {
            // It begins as if nothing had been.
            continue;
        }
        let was_pushed = world.runs("push").len();
        pushed += was_pushed;
        let before = world.provider.asked().len();
        change(&mut world);
        let ended = world.run().await;
        assert_eq!(ended.expect("an output").as_str(), "\"Done.\"", "{speaks:?} {kill_at}");
        assert!(world.runs("push").values().all(|runs| *runs == 1), "{speaks:?} {kill_at}");
        let asked = world.provider.asked();
        assert!(!asked.iter().any(|(_, body)| body.contains("may be missing above")), "{speaks:?} {kill_at}");
        let knows =
            |(_, body): &(usize, String)| body.contains("push {}") || body.contains("may have taken effect");
        let knows = asked.iter().any(knows) || asked.len() == before;
        assert!(
            was_pushed == 0 || knows,
            "{speaks:?}: killed at {kill_at}, and nobody says that it was pushed"
        );
    }
    assert!(kills > 20 && pushed > 3, "{speaks:?}: {kills} {pushed}");
}

#[tokio::test]
async fn a_push_whose_answer_was_stored_is_known_although_the_agent_has_less_of_the_window() {
    for speaks in Speaks::ALL {
        changed_everywhere(speaks, &[speaks.model()], |world| world.config["context_tokens"] = json!(2_000))
            .await;
    }
}

#[tokio::test]
async fn a_push_before_a_kill_is_known_although_the_agent_has_another_model() {
    for (speaks, gone, stays) in [
        (Speaks::Messages, "claude-opus-5-5", "claude-haiku-4-5"),
        (Speaks::Responses, "gpt-6-sol", "claude-opus-5-5"),
        (Speaks::Chat, "claude-opus-5-5", "gpt-6-sol"),
    ] {
        changed_everywhere(speaks, &[gone, stays], |world| world.models = vec![stays.to_owned()]).await;
    }
}

#[tokio::test]
async fn a_later_job_of_the_session_extends_the_conversation_to_the_letter() {
    for speaks in Speaks::ALL {
        let mut world = World::on(speaks, script()).await;
        world.run().await.expect("an output");
        world.next_job("And again.".into());
        // The script has nothing left but its last words.
        world.run().await.expect("an output");
        assert_eq!(world.provider.asked().len(), TURNS + 2);
        check_letters(&world);
        let session = world.session.lock().expect("it works");
        let heads = session.context_window.iter().filter(|entry| entry.as_str().contains("\"head\""));
        assert_eq!(heads.count(), 1, "{speaks:?}: the head stays");
    }
}
