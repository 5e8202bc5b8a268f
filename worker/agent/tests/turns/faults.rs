//! What goes wrong at a provider, and what becomes of the job.

use std::time::Duration;

use harness::{RunError, Stop};
use job::FailureCode;
use serde_json::json;
use tools::Tool;

use crate::bounds::looks;
use crate::kills::{check_letters, script};
use crate::provider::Fault;
use crate::world::{Speaks, World};

fn code(ended: Result<job::Json, RunError>) -> (FailureCode, bool) {
    match ended {
        Err(RunError::Failed(failure)) => (failure.code, failure.retryable),
        other => panic!("expected a failure, got {other:?}"),
    }
}

#[tokio::test]
async fn what_another_try_can_mend_is_tried_again() {
    for speaks in Speaks::ALL {
        let world = World::on(speaks, script()).await;
        for fault in [Fault::Refuses(529), Fault::CutAfter(3), Fault::Refuses(429), Fault::CutAfter(0)] {
            world.provider.fault(fault);
        }
        assert!(world.run().await.is_ok(), "{speaks:?}");
    }
}

#[tokio::test]
async fn after_a_silence_the_provider_is_asked_again_and_has_as_long_as_before() {
    let mut world = World::on(Speaks::Messages, script()).await;
    world.config["idle_timeout_ms"] = json!(1_000);
    world.provider.fault(Fault::Stalls);
    assert!(world.run().await.is_ok());
}

#[tokio::test]
async fn what_a_tool_takes_is_no_silence_of_the_provider() {
    let mut world = World::on(Speaks::Messages, script()).await;
    world.config["idle_timeout_ms"] = json!(1_000);
    world.look_takes = Duration::from_millis(1_100);
    assert!(world.run().await.is_ok());
}

#[tokio::test]
async fn what_no_try_can_mend_is_given_up_with_its_reason() {
    for speaks in Speaks::ALL {
        for status in [401, 400] {
            let world = World::on(speaks, script()).await;
            world.provider.fault(Fault::Refuses(status));
            assert_eq!(code(world.run().await), (FailureCode::ProviderRefused, false), "{speaks:?} {status}");
        }
        let world = World::on(speaks, script()).await;
        (0..4).for_each(|_| world.provider.fault(Fault::CutAfter(2)));
        let ended = code(world.run().await);
        assert_eq!(ended, (FailureCode::ProviderError, true), "{speaks:?}: paid for four times is enough");
    }
}

#[tokio::test]
async fn a_stream_that_is_cut_after_any_event_is_no_answer() {
    for speaks in Speaks::ALL {
        for events in 0.. {
            let world = World::on(speaks, script()).await;
            world.provider.fault(Fault::CutAfter(events));
            assert!(world.run().await.is_ok(), "{speaks:?} {events}");
            let asked = world.provider.asked();
            assert!(asked.len() <= 5, "{speaks:?} {events}: {}", asked.len());
            if asked.len() == 4 {
                assert!(events >= 8, "{speaks:?}: the end comes last, not after {events}");
                break;
            }
            assert_eq!(asked[0].1, asked[1].1, "{speaks:?} {events}: the same is asked again");
        }
    }
}

#[tokio::test]
async fn the_agent_s_next_model_goes_on_without_the_thinking_of_the_first() {
    use Speaks::{Chat, Messages, Responses};
    for (speaks, first, next) in [
        (Messages, "claude-opus-5-5", "claude-haiku-4-5"),
        (Chat, "claude-opus-5-5", "gpt-6-sol"),
        (Responses, "claude-opus-5-5", "gpt-6-sol"),
        (Responses, "gpt-6-sol", "gpt-6-luna"),
        (Responses, "gpt-6-sol", "claude-opus-5-5"),
        (Chat, "gpt-6-sol", "claude-opus-5-5"),
    ] {
        let mut world = World::of(speaks, script(), &[first, next]).await;
        assert!(world.run().await.is_ok());
        world.next_job("Once more.".into());
        world.provider.fault(Fault::Refuses(404));
        assert!(world.run().await.is_ok(), "{next}");
        let asked = world.provider.asked();
        let (_, last) = asked.last().unwrap();
        assert!(last.contains(&format!("\"model\":\"{next}\"")), "{last}");
        assert!(!last.contains(&format!("signed by {first}")), "{last}");
        assert!(last.contains("12345678901234567890123"), "{last}");
        // The next job comes back to the preferred one.
        world.next_job("And now?".into());
        assert!(world.run().await.is_ok());
        let asked = world.provider.asked();
        assert!(asked.last().unwrap().1.contains(&format!("\"model\":\"{first}\"")));
    }
}

#[tokio::test]
async fn a_job_goes_on_with_a_model_that_the_agent_still_has() {
    for (speaks, gone, stays) in [
        (Speaks::Messages, "claude-opus-5-5", "claude-haiku-4-5"),
        (Speaks::Responses, "gpt-6-sol", "claude-opus-5-5"),
        (Speaks::Chat, "claude-opus-5-5", "gpt-6-sol"),
    ] {
        let mut world = World::of(speaks, script(), &[gone, stays]).await;
        *world.stop_in_look.lock().unwrap() = Some(Stop::HandBack);
        assert!(matches!(world.run().await, Err(RunError::Stopped(Stop::Drain))), "{gone}");
        world.models = vec![stays.to_owned()];
        assert!(world.run().await.is_ok(), "{gone}");
        let asked = world.provider.asked();
        assert!(asked[0].1.contains(&format!("\"model\":\"{gone}\"")));
        assert!(asked[1].1.contains(&format!("\"model\":\"{stays}\"")), "{}", asked[1].1);
    }
}

#[tokio::test]
async fn a_worker_that_drains_gets_the_job_back_at_the_next_checkpoint() {
    let world = World::on(Speaks::Responses, script()).await;
    *world.stop_in_look.lock().unwrap() = Some(Stop::HandBack);
    let ended = world.run().await;
    assert!(matches!(ended, Err(RunError::Stopped(Stop::Drain))), "{ended:?}");
    assert_eq!(world.provider.asked().len(), 1, "no other call is begun");
    assert!(world.session.lock().unwrap().answers_for_open_calls().is_empty(), "its tools have ended");
    assert!(world.run().await.is_ok());
    assert_eq!(world.provider.asked().len(), 4, "nothing is paid again");
    assert_eq!(*world.opened.lock().unwrap(), [false, true], "the second run continues the first");
    assert!(world.runs("push").values().all(|runs| *runs == 1) && world.runs("push").len() == 3);
}

#[tokio::test]
async fn a_job_that_goes_on_with_other_tools_is_told_once_which_came_and_went() {
    for speaks in Speaks::ALL {
        let mut world = World::on(speaks, script()).await;
        *world.stop_in_look.lock().unwrap() = Some(Stop::HandBack);
        assert!(matches!(world.run().await, Err(RunError::Stopped(Stop::Drain))), "{speaks:?}");
        world.tools.retain(|tool| tool.name != "pay");
        let grow = Tool { name: "grow".to_owned(), ..world.tools[0].clone() };
        world.tools.insert(0, grow);
        // It goes on twice.
        *world.stop_in_look.lock().unwrap() = Some(Stop::HandBack);
        assert!(matches!(world.run().await, Err(RunError::Stopped(Stop::Drain))), "{speaks:?}");
        assert!(world.run().await.is_ok());
        let asked = world.provider.asked();
        check_letters(&world);
        let last = &asked[3].1;
        let said = "tools have changed: gone are pay. New, but not before the next job, are grow.";
        assert!(asked[1].1.contains(said), "{speaks:?}: before the first call: {}", asked[1].1);
        assert_eq!(
            (last.matches(said).count(), last.matches("tools have changed").count()),
            (1, 1),
            "{last}"
        );
        world.next_job("And now?".into());
        assert!(world.run().await.is_ok());
        let (_, next) = world.provider.asked().pop().unwrap();
        assert!(next.contains("To look.") && next.contains("\"grow\""), "{next}");
    }
}

/// Runs a job that is wanted back at its n-th checkpoint. Returns false if it has fewer.
async fn wanted_back(world: &mut World, at: usize) -> bool {
    world.wanted_back_at = Some(at);
    let ended = world.run().await;
    let until_then = *world.asked_until_then.lock().expect("not poisoned");
    if let Some(asked) = until_then {
        assert_eq!(world.provider.asked().len(), asked, "a call was begun behind checkpoint {at}");
        assert!(matches!(ended, Ok(_) | Err(RunError::Stopped(Stop::Drain))), "{at}: {ended:?}");
    }
    until_then.is_some()
}

#[tokio::test]
async fn no_call_begins_once_the_job_is_wanted_back_whatever_the_checkpoint_was_for() {
    for at in 0.. {
        let mut world = World::new(looks(6), &["claude-opus-5-5", "gpt-6-sol"]).await;
        world.output_bytes = 3_000;
        world.config["context_tokens"] = json!(4_000);
        world.provider.fault(Fault::Refuses(404));
        if !wanted_back(&mut world, at).await {
            assert!(world.journal.lock().unwrap().iter().any(|delta| delta.replace_context));
            assert!(at > 8, "{at}");
            break;
        }
    }
    for at in 0.. {
        let mut world = World::new(script(), &["claude-opus-5-5"]).await;
        assert!(world.run().await.is_ok());
        world.next_job("More.".into());
        world.provider.fault(Fault::TooLong);
        if !wanted_back(&mut world, at).await {
            assert!(at > 2, "{at}");
            break;
        }
    }
}
