//! Agents on real workers, on each wire: a drain, an interrupt, a rollback, a deadline. What was answered is paid once, and
//! each request extends the last one of its conversation to the letter.

use job::{FailureCode, JobSpec, JobState, OnBusy};
use serde_json::json;
use tests::{job, until};

use super::desk::{AGENTS, Desk, jobs, nothing_runs_for, output};

const TURNS: &str = r#""two": [{"thinking": "So be it.", "tools": [{"name": "note", "input": {"say": "halt"}}]},
    {"thinking": "And now.", "text": "I note.", "tools": [{"name": "note", "input": {"say": "more"}}]},
    {"text": "Done."}]"#;

#[tokio::test]
async fn a_drain_hands_a_session_back_after_its_tools_and_begins_no_other_call() {
    let desk = Desk::new(TURNS).await;
    let mut first = desk.worker("first", "").start().await;
    let jobs = jobs("two");
    desk.fleet.enqueue(&jobs).await;
    desk.halted(&jobs).await;
    first.terminate();
    first.said("draining").await;
    desk.go();
    assert_eq!(first.exit().await, 0);
    assert_eq!(desk.provider.charged().len(), AGENTS.len(), "no call is begun after SIGTERM");
    for spec in &jobs {
        let view = desk.fleet.view(spec.job_id).await.expect("known");
        assert!(!view.state.is_end() && view.attempts == 0, "{view:?}");
        assert_eq!(view.iterations, 1, "its answer and the result of its tool are kept: {view:?}");
    }
    let _second = desk.worker("second", "").start().await;
    for spec in &jobs {
        desk.done(spec, 1).await;
        assert_eq!(desk.notes(spec.session_id.as_str()), 2);
        assert_eq!(desk.calls_of(spec.job_id, "settled").await, 3);
    }
    assert_eq!(desk.provider.charged().len(), 3 * AGENTS.len());
    desk.nothing_is_wrong().await;
}

#[tokio::test]
async fn a_drain_waits_for_the_answer_that_is_on_its_way_and_for_its_tools() {
    // The first answer takes some seconds, in which the worker is asked to end.
    let slow = TURNS.replacen("{\"thinking\"", "{\"pause_ms\": 400, \"thinking\"", 1).replace("halt", "slow");
    let desk = Desk::new(&slow).await;
    let mut first = desk.worker("first", "").start().await;
    let jobs = jobs("two");
    desk.fleet.enqueue(&jobs).await;
    let streams = async || (desk.provider.charged().len() == AGENTS.len()).then_some(());
    until("all models stream", streams).await;
    first.terminate();
    assert_eq!(first.exit().await, 0);
    let charged = desk.provider.charged();
    assert_eq!(charged.len(), AGENTS.len(), "no call is begun after SIGTERM");
    assert!(charged.iter().all(|call| call.whole), "{charged:?}");
    for spec in &jobs {
        assert_eq!(desk.notes(spec.session_id.as_str()), 1, "its tools ran with their answer");
        let view = desk.fleet.view(spec.job_id).await.expect("known");
        assert_eq!((view.state.is_end(), view.attempts, view.iterations), (false, 0, 1), "{view:?}");
    }
    let _second = desk.worker("second", "").start().await;
    for spec in &jobs {
        assert_eq!(desk.fleet.ended(spec.job_id).await.state, JobState::Succeeded);
        assert_eq!(desk.notes(spec.session_id.as_str()), 2);
    }
    assert_eq!(desk.provider.charged().len(), 3 * AGENTS.len());
    desk.nothing_is_wrong().await;
}

/// Later jobs of the sessions, which do this to the running ones.
fn later(on_busy: OnBusy) -> Vec<JobSpec> {
    let say =
        |agent: &&str| JobSpec { on_busy, ..job(&format!("s-{agent}"), agent, json!("Say it. play:says")) };
    AGENTS.iter().map(say).collect()
}

#[tokio::test]
async fn an_interrupt_keeps_what_an_agent_did_and_the_next_job_goes_on_from_it() {
    // It would go on for long after the call in which it is asked to give way.
    let long = TURNS.replace("\"more\"}}]}", "\"more\"}}], \"times\": 90}");
    let desk = Desk::new(&format!("{long}, \"says\": [{{\"text\": \"Said.\"}}]")).await;
    let _worker = desk.worker("worker", "").set("WORKER_SLOTS", 6).start().await;
    let jobs = jobs("two");
    desk.fleet.enqueue(&jobs).await;
    desk.halted(&jobs).await;
    let later = later(OnBusy::Interrupt);
    desk.fleet.enqueue(&later).await;
    desk.go();
    for (spec, next) in jobs.iter().zip(&later) {
        let view = desk.fleet.ended(spec.job_id).await;
        let code = view.failure.as_ref().map(|failure| failure.code);
        assert_eq!((view.state, code), (JobState::Cancelled, Some(FailureCode::Interrupted)), "{view:?}");
        // A call that was given up is read on for its cost after the end.
        assert!(view.cost_usd.micros() as i64 <= desk.counted(spec.job_id).await);
        let view = desk.fleet.ended(next.job_id).await;
        assert_eq!((view.state, output(&view)), (JobState::Succeeded, "\"Said.\""), "{view:?}");
        assert!(desk.notes(spec.session_id.as_str()) < 90);
    }
    // The next job's request has each call with its result, or that it was interrupted and may have taken effect: without
    // one it would be refused.
    let asked = desk.provider.asked();
    let goes_on = |asked: &&tests::provider::Asked| {
        let text = String::from_utf8_lossy(&asked.body);
        let has_result = text.contains("noted") || text.contains("It may have taken effect");
        text.contains("Say it.") && text.contains("Do it for") && has_result
    };
    assert_eq!(asked.iter().filter(goes_on).count(), AGENTS.len());
    desk.nothing_is_wrong_but_given_up().await;
}

#[tokio::test]
async fn the_next_job_of_a_session_knows_of_the_call_in_which_the_last_worker_of_the_one_before_died() {
    let halts = r#"{"tools": [{"name": "note", "input": {"say": "halt"}}]}"#;
    let desk = Desk::new(&format!("\"dies\": [{halts}], \"says\": [{{\"text\": \"Said.\"}}]")).await;
    for spec in &mut jobs("dies") {
        spec.retry.max_attempts = 1;
        let mut worker = desk.worker(spec.agent_id.as_str(), "").short_lease().start().await;
        desk.fleet.enqueue(std::slice::from_ref(spec)).await;
        // Its tool has begun, and nothing has come of it yet.
        desk.halted(std::slice::from_ref(spec)).await;
        worker.kill();
    }
    let _worker = desk.worker("last", "").short_lease().start().await;
    let later = later(OnBusy::Enqueue);
    for (spec, next) in jobs("dies").iter().zip(&later) {
        desk.fleet.enqueue(std::slice::from_ref(next)).await;
        let view = desk.fleet.ended(next.job_id).await;
        assert_eq!((view.state, output(&view)), (JobState::Succeeded, "\"Said.\""), "{view:?}");
        assert!(desk.said(spec).await.contains("It may have taken effect"), "{}", desk.said(spec).await);
        assert_eq!(desk.notes(spec.session_id.as_str()), 1, "nobody has called it again");
    }
    desk.nothing_is_wrong().await;
}

#[tokio::test]
async fn an_interrupt_ends_a_models_call_at_once_and_what_that_costs_is_known() {
    // The first answer takes some seconds, in which a later job takes the place.
    let slow = TURNS.replacen("{\"thinking\"", "{\"pause_ms\": 700, \"thinking\"", 1).replace("halt", "slow");
    let desk = Desk::new(&format!("{slow}, \"says\": [{{\"text\": \"Said.\"}}]")).await;
    let _worker = desk.worker("worker", "").set("WORKER_SLOTS", 6).start().await;
    let jobs = jobs("two");
    desk.fleet.enqueue(&jobs).await;
    let streams = async || (desk.provider.charged().len() == AGENTS.len()).then_some(());
    until("all models stream", streams).await;
    let later = later(OnBusy::Interrupt);
    desk.fleet.enqueue(&later).await;
    for (spec, next) in jobs.iter().zip(&later) {
        let view = desk.fleet.ended(spec.job_id).await;
        let code = view.failure.as_ref().map(|failure| failure.code);
        assert_eq!((view.state, code), (JobState::Cancelled, Some(FailureCode::Interrupted)), "{view:?}");
        assert_eq!((view.iterations, desk.notes(spec.session_id.as_str())), (0, 0), "no tool has begun");
        assert_eq!(desk.fleet.ended(next.job_id).await.state, JobState::Succeeded);
        let is_settled = async || (desk.calls_of(spec.job_id, "settled").await == 1).then_some(());
        until("the call that was given up is settled", is_settled).await;
    }
    desk.nothing_is_wrong_but_given_up().await;
}

#[tokio::test]
async fn a_rollback_undoes_what_an_agent_said_and_counts_its_cost() {
    let desk = Desk::new(&format!("{TURNS}, \"says\": [{{\"text\": \"Said.\"}}]")).await;
    let _worker = desk.worker("worker", "").set("WORKER_SLOTS", 6).start().await;
    let before = later(OnBusy::Enqueue);
    desk.fleet.enqueue(&before).await;
    for spec in &before {
        assert_eq!(desk.fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    }
    let jobs = jobs("two");
    desk.fleet.enqueue(&jobs).await;
    desk.halted(&jobs).await;
    let later = later(OnBusy::Rollback);
    desk.fleet.enqueue(&later).await;
    for (spec, next) in jobs.iter().zip(&later) {
        // The tool hangs on, so it was ended for the rollback.
        assert_eq!(desk.fleet.ended(spec.job_id).await.state, JobState::Cancelled);
        nothing_runs_for(spec.job_id).await;
        assert_eq!(desk.fleet.ended(next.job_id).await.state, JobState::Succeeded);
        let session = desk.fleet.session(spec.session_id.as_str()).await;
        let text: String = session.context_window.iter().map(job::Json::as_str).collect();
        assert!(!text.contains("Do it for") && text.matches("Say it.").count() == 2, "{text}");
        let mut sum = 0;
        for job_id in [before[0].job_id, before[1].job_id, before[2].job_id, spec.job_id, next.job_id] {
            let view = desk.fleet.view(job_id).await.expect("known");
            if view.session_id == spec.session_id.as_str() {
                sum += view.cost_usd.micros();
            }
        }
        assert_eq!(session.cost_usd.micros(), sum, "what was undone was paid");
    }
    // The last request extends the first one, as if the second had never been.
    let asked = desk.provider.asked();
    assert_eq!(asked.len(), 3 * AGENTS.len());
    let bodies = |path: &str| -> Vec<String> {
        let on_wire = asked.iter().filter(|asked| asked.path == path);
        on_wire.map(|asked| String::from_utf8_lossy(&asked.body).into_owned()).collect()
    };
    for path in ["/v1/messages", "/v1/chat/completions", "/v1/responses"] {
        let bodies = bodies(path);
        let open = bodies[0].strip_suffix("]}").expect("messages come last");
        assert!(
            bodies[2].starts_with(open) && !bodies[2].contains("Do it for"),
            "\n{}\n{}",
            bodies[0],
            bodies[2]
        );
    }
    desk.fleet.database.audited().await;
}

#[tokio::test]
async fn a_deadline_ends_a_tool_that_hangs_and_the_session_goes_on() {
    let desk = Desk::new(&format!("{TURNS}, \"says\": [{{\"text\": \"Said.\"}}]")).await;
    let _worker = desk.worker("worker", "").start().await;
    let jobs: Vec<JobSpec> =
        jobs("two").into_iter().map(|spec| JobSpec { deadline_ms: Some(12_000), ..spec }).collect();
    desk.fleet.enqueue(&jobs).await;
    desk.halted(&jobs).await;
    for spec in &jobs {
        let view = desk.fleet.ended(spec.job_id).await;
        let code = view.failure.as_ref().map(|failure| failure.code);
        assert_eq!((view.state, code), (JobState::Failed, Some(FailureCode::DeadlineExceeded)), "{view:?}");
        assert_eq!(view.cost_usd.micros() as i64, desk.counted(spec.job_id).await);
        assert_eq!(desk.calls_of(spec.job_id, "settled").await, 1);
        nothing_runs_for(spec.job_id).await;
    }
    let later = later(OnBusy::Enqueue);
    desk.fleet.enqueue(&later).await;
    for spec in &later {
        let view = desk.fleet.ended(spec.job_id).await;
        assert_eq!((view.state, output(&view)), (JobState::Succeeded, "\"Said.\""), "{view:?}");
        assert_eq!(desk.notes(spec.session_id.as_str()), 1);
    }
    desk.nothing_is_wrong().await;
}
