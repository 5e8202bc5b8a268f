//! Answers of models that need a way of their own, on a real worker: one that is paused, one whose provider falls silent or
//! is down, one with letters that our own texts may not hold.

use job::{FailureCode, JobSpec, JobState};
use serde_json::json;
use tests::provider::{PROVIDER_KEY, Provider, Script};
use tests::{Fleet, job, until_ok};

use super::desk::{AGENTS, Desk, jobs, output};

#[tokio::test]
async fn an_answer_that_is_paused_goes_on_and_goes_back_as_it_came() {
    let search =
        r#"{"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}"#;
    let play = format!(
        r#""paused": [{{"thinking": "I look.", "block": {search}, "stop": "pause_turn"}},
            {{"thinking": "I see.", "text": "It is there.", "tools": [{{"name": "note", "input": {{"say": "it"}}}}]}},
            {{"text": "Done."}}]"#
    );
    let desk = Desk::new(&play).await;
    let _worker = desk.worker("worker", "").start().await;
    let spec = job("s", "messages", json!("Do it. play:paused"));
    desk.fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = desk.fleet.ended(spec.job_id).await;
    let ended = (view.state, view.attempts, view.iterations, output(&view));
    assert_eq!(ended, (JobState::Succeeded, 1, 3, "\"Done.\""), "{view:?}");
    assert_eq!(desk.notes("s"), 1);
    assert_eq!(desk.provider.charged().len(), 3);
    desk.nothing_is_wrong().await;
}

/// What a provider may say, and a text of ours may not: NUL. A signature holds for it.
#[tokio::test]
async fn letters_that_our_own_texts_may_not_hold_go_back_as_they_came() {
    let play = r#""odd": [
        {"thinking": "a\u0000b \ud83d\ude00", "text": "c\u0000d", "tools": [{"name": "note", "input": {"say": "e\u0000f"}}]},
        {"thinking": "g\u0000", "tools": [{"name": "note", "input": {"say": "more"}}]},
        {"thinking": "\u0000h", "text": "Do\u0000ne."}],
        "says": [{"text": "Said."}]"#;
    let desk = Desk::new(play).await;
    let mut first = desk.worker("first", "").start().await;
    let jobs = jobs("odd");
    desk.fleet.enqueue(&jobs).await;
    for spec in &jobs {
        let view = desk.fleet.ended(spec.job_id).await;
        let ended = (view.state, view.attempts, view.iterations, output(&view));
        assert_eq!(ended, (JobState::Succeeded, 1, 3, "\"Do\u{fffd}ne.\""), "{view:?}");
        // A call that cannot be kept as a text of ours is answered, and not made.
        assert_eq!(desk.notes(spec.session_id.as_str()), 1);
        let said = desk.said(spec).await;
        assert!(said.contains("its input is no JSON object that can be kept"), "{said}");
    }
    first.terminate();
    assert_eq!(first.exit().await, 0);
    let _second = desk.worker("second", "").start().await;
    let say = |agent: &&str| job(&format!("s-{agent}"), agent, json!("Say it. play:says"));
    let later: Vec<JobSpec> = AGENTS.iter().map(say).collect();
    desk.fleet.enqueue(&later).await;
    for spec in &later {
        let view = desk.fleet.ended(spec.job_id).await;
        assert_eq!((view.state, output(&view)), (JobState::Succeeded, "\"Said.\""), "{view:?}");
    }
    assert_eq!(desk.provider.charged().len(), 4 * AGENTS.len());
    desk.nothing_is_wrong().await;
}

/// What a provider does not take back: a thought that was cut, a thought that nothing follows, a text of white space.
#[tokio::test]
async fn a_session_goes_on_behind_answers_of_which_nothing_goes_back() {
    // More words than the agents' limit of output has tokens.
    let cut = json!({"thinking": "Hm ".repeat(300)});
    let call = json!([{"name": "note", "input": {"say": "it"}}]);
    let of_one = [
        cut.clone(),
        json!({"thinking": "So be it.", "text": "\n\n", "tools": call}),
        cut,
        json!({"thinking": "And now.", "text": "Done."}),
        json!({"thinking": "Nothing is left to say."}),
        json!({"thinking": "So.", "text": "Said."}),
    ];
    let script = json!({"answers": AGENTS.map(|_| of_one.clone()).concat()});
    let script = Script::parse(&script.to_string()).expect("a script");
    let desk = Desk { fleet: Fleet::new().await, provider: Provider::playing(script).await };
    let _worker = desk.worker("worker", "").start().await;
    for agent in AGENTS {
        let session = format!("s-{agent}");
        for (input, says, iterations) in
            [("Do it.", "Done.", 4), ("And now?", "", 1), ("And then?", "Said.", 1)]
        {
            let spec = job(&session, agent, json!(format!("{input} You are {agent}.")));
            desk.fleet.enqueue(std::slice::from_ref(&spec)).await;
            let view = desk.fleet.ended(spec.job_id).await;
            let ended = (view.state, view.attempts, view.iterations, output(&view));
            let says = format!("{says:?}");
            assert_eq!(ended, (JobState::Succeeded, 1, iterations, says.as_str()), "{agent}: {view:?}");
        }
        assert_eq!(desk.notes(&session), 1, "{agent}");
    }
    desk.nothing_is_wrong().await;
}

/// Waits until so many calls of a job, whose answers never came, count in full: their ends are waited for a while.
async fn counted_in_full(desk: &Desk, spec: &JobSpec, calls: i64) {
    let look = async || match desk.calls_of(spec.job_id, "unknown").await {
        unknown if unknown == calls => Ok(()),
        other => Err(other),
    };
    until_ok("calls without an end count in full", look).await;
}

#[tokio::test]
async fn a_provider_that_falls_silent_is_asked_again_and_what_it_worked_counts() {
    let play = r#""two": [
        {"thinking": "So be it.", "text": "I note it.", "tools": [{"name": "note", "input": {"say": "it"}}], "fault": {"stalls_after": 4}},
        {"text": "Done.", "fault": "stalls"}]"#;
    let desk = Desk::new(play).await;
    let _worker =
        desk.worker_with("worker", "idle_timeout_ms = 4000", "").set("USAGE_DRAIN_S", 1).start().await;
    let jobs = jobs("two");
    desk.fleet.enqueue(&jobs).await;
    for spec in &jobs {
        desk.done(spec, 1).await;
        assert_eq!(desk.notes(spec.session_id.as_str()), 1);
        assert_eq!(desk.calls_of(spec.job_id, "settled").await, 2);
        counted_in_full(&desk, spec, 2).await;
    }
    desk.all_is_counted().await;
}

#[tokio::test]
async fn a_provider_that_stays_silent_is_a_provider_error_that_names_the_setting() {
    let silent = Script::parse(r#"{"faults": [{"fault": "stalls", "every": 1}]}"#).expect("a script");
    let desk = Desk { fleet: Fleet::new().await, provider: Provider::playing(silent).await };
    let _worker =
        desk.worker_with("worker", "idle_timeout_ms = 500", "").set("USAGE_DRAIN_S", 1).start().await;
    let mut jobs = jobs("none");
    jobs.iter_mut().for_each(|spec| spec.retry.max_attempts = 1);
    desk.fleet.enqueue(&jobs).await;
    for spec in &jobs {
        let view = desk.fleet.ended(spec.job_id).await;
        let failure = view.failure.clone().expect("a failure");
        assert_eq!((failure.code, failure.retryable), (FailureCode::ProviderError, true), "{failure:?}");
        assert!(failure.message.contains("idle_timeout_ms = 500"), "{failure:?}");
        // Paid for four times is enough.
        counted_in_full(&desk, spec, 4).await;
    }
    desk.all_is_counted().await;
}

/// In the middle of a conversation the first model's provider breaks down: it fails at each request, or it cannot be reached.
#[tokio::test]
async fn where_a_provider_is_down_the_agent_s_next_model_goes_on_with_the_conversation() {
    let play = r#""plays": {"two": [{"thinking": "So be it.", "text": "I note it.", "tools": [{"name": "note", "input": {"say": "halt"}}]},
        {"text": "Done."}]}"#;
    for fails in [true, false] {
        let faults = r#", "faults": [{"fault": {"fails": 500}, "every": 1, "first": 1}]"#;
        let script = |more: &str| Script::parse(&format!("{{{play}{more}}}")).expect("a script");
        let down = Provider::playing(script(if fails { faults } else { "" })).await;
        let desk = Desk { fleet: Fleet::new().await, provider: Provider::playing(script("")).await };
        let launch = desk.worker_with("worker", "", "");
        let agents = desk.fleet.folder.path().join("agents.toml");
        let table = std::fs::read_to_string(&agents).expect("the agents");
        let both = table.replacen("[\"claude-opus-5-5\"]", "[\"claude-opus-5-5\", \"gpt-6-sol\"]", 1);
        assert_ne!(both, table);
        std::fs::write(&agents, both).expect("written");
        let launch = launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", down.base_url());
        let _worker = launch.start().await;
        let spec = job("s", "messages", json!("Do it. play:two"));
        desk.fleet.enqueue(std::slice::from_ref(&spec)).await;
        desk.halted(std::slice::from_ref(&spec)).await;
        if !fails {
            down.close().await;
        }
        desk.go();
        let view = desk.done(&spec, 1).await;
        assert_eq!(desk.notes("s"), 1);
        let asked = desk.provider.asked();
        assert_eq!(asked.len(), 1, "the next model is asked once");
        let body = String::from_utf8_lossy(&asked[0].body);
        for said in ["Do it. play:two", "I note it.", "noted"] {
            assert!(body.contains(said), "the next model is not told: {said}: {body}");
        }
        let states = ["settled", if fails { "unknown" } else { "free" }];
        let counts =
            [desk.calls_of(spec.job_id, states[0]).await, desk.calls_of(spec.job_id, states[1]).await];
        assert_eq!(counts, [2, 4], "{states:?}");
        assert_eq!(view.cost_usd.micros() as i64, desk.counted(spec.job_id).await);
        let bill = down.bill_micros() + desk.provider.bill_micros();
        assert!(bill as i64 <= desk.counted(spec.job_id).await);
        assert!(down.findings().is_empty(), "{:#?}", down.findings());
        desk.all_is_counted().await;
    }
}
