//! What an MCP server does wrong is an answer to the model, within bounds, and the next call finds a server that works.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tools::{CallError, Ended, Toolbox};

use crate::support::{Bench, processes_of};

async fn failed(bench: &Bench, toolbox: &Toolbox, tool: &str) -> (Ended, String) {
    let output = bench.call(toolbox, &format!("s__{tool}"), "{}").await;
    assert!(output.is_error, "{tool}: {output:?}");
    (output.ended, output.text())
}

#[tokio::test]
async fn one_that_cannot_start_says_why() {
    let bench = Bench::new();
    let said = bench.refusal(&bench.server_table("dies", "")).await;
    assert!(said.starts_with("s: ") && said.contains("I have no configuration"), "{said}");
    for (start, problem) in [("silent", "not ready within 500 ms"), ("unlisted", "not ready within 500 ms")] {
        let said = bench.refusal(&bench.server_table(start, "start_timeout_ms = 500")).await;
        assert!(said.contains(problem), "{said}");
        bench.nothing_is_left().await;
    }
    let said = bench.refusal(&bench.server_table("endless", "")).await;
    assert!(said.contains("more than 64 pages"), "{said}");
    let said = bench.refusal("[mcp.s]\ncommand = ['cat', '/dev/zero']\nstart_timeout_ms = 2000").await;
    assert!(
        said.contains("not ready within 2000 ms") || said.contains("closed") || said.contains("has ended"),
        "{said}"
    );
    bench.nothing_is_left().await;
}

#[tokio::test]
async fn one_that_dies_is_started_anew_and_the_model_is_told() {
    let bench = Bench::new();
    let toolbox = bench.server("well", "").await;
    assert_eq!(bench.ask(&toolbox, "count").await, "1");
    let (ended, said) = failed(&bench, &toolbox, "die").await;
    assert!(ended == Ended::Broken && said.contains("The call may have taken effect."), "{said}");
    assert_eq!(bench.ask(&toolbox, "count").await, "1");
    assert!(toolbox.notices()[0].starts_with("The MCP server s has started anew."));
    assert_eq!(toolbox.notices(), [""; 0]);
    toolbox.close().await;
}

#[tokio::test]
async fn one_that_dies_again_and_again_is_not_started_in_a_circle() {
    let bench = Bench::new();
    let toolbox = bench.server("well", "").await;
    let begun = Instant::now();
    for _ in 0..4 {
        failed(&bench, &toolbox, "die").await;
    }
    // No wait after the first death, then one second and two.
    assert!(begun.elapsed() >= Duration::from_secs(3), "{:?}", begun.elapsed());
    toolbox.close().await;
}

#[tokio::test]
async fn one_that_never_answers_is_asked_to_cancel_and_lives_on() {
    let bench = Bench::new();
    let toolbox = bench.server("well", "timeout_ms = 500").await;
    assert_eq!(bench.ask(&toolbox, "count").await, "1");
    for tool in ["hang", "late"] {
        let (ended, said) = failed(&bench, &toolbox, tool).await;
        assert!(ended == Ended::TimedOut && said.contains("did not answer within 500 ms"), "{said}");
    }
    let cancelled: Vec<u64> = serde_json::from_str(&bench.ask(&toolbox, "cancelled").await).unwrap();
    assert_eq!(cancelled.len(), 2);
    // The late answer comes meanwhile, and is nobody's.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.ask(&toolbox, "count").await, "2");
    assert_eq!(toolbox.notices(), [""; 0]);
    toolbox.close().await;
}

#[tokio::test]
async fn one_that_hears_nothing_any_more_is_replaced() {
    let bench = Bench::new();
    let toolbox = bench.server("well", "timeout_ms = 300\nstop_grace_ms = 0").await;
    assert_eq!(
        (bench.ask(&toolbox, "count").await, bench.ask(&toolbox, "deaf").await),
        ("1".into(), "deaf now".into())
    );
    failed(&bench, &toolbox, "count").await;
    assert_eq!(bench.ask(&toolbox, "count").await, "1");
    assert!(toolbox.notices()[0].contains("has started anew"));
    toolbox.close().await;
    bench.nothing_is_left().await;
}

#[tokio::test]
async fn a_stopped_call_is_cancelled_at_the_server() {
    let bench = Bench::new();
    let toolbox = bench.server("well", "").await;
    let stop = tokio::time::sleep(Duration::from_millis(200));
    let stopped = bench.call_until(&toolbox, "s__hang", "{}", stop).await;
    assert_eq!(stopped, Err(CallError::Stopped));
    let cancelled: Vec<u64> = serde_json::from_str(&bench.ask(&toolbox, "cancelled").await).unwrap();
    assert_eq!(cancelled.len(), 1);
    toolbox.close().await;
}

#[tokio::test]
async fn what_it_writes_is_mended_cut_or_ignored() {
    let bench = Bench::new();
    let toolbox = bench.server("well", "").await;
    assert_eq!(bench.ask(&toolbox, "garbage").await, "well");
    assert_eq!(bench.ask(&toolbox, "nul").await, "a\u{fffd}b");
    assert_eq!(bench.ask(&toolbox, "half").await, "a\u{fffd}b");
    assert_eq!(bench.ask(&toolbox, "byte").await, "a\u{fffd}b");
    let big = bench.ask(&toolbox, "big").await;
    assert!(big.len() <= 32 * 1024 && big.contains("1000000 bytes"), "{}", big.len());
    assert_eq!(std::fs::metadata(bench.kept("call_1")).unwrap().len(), 1_000_000);
    for (tool, problem) in [
        ("huge", "more than 16777216"),
        ("deep", "cannot be read"),
        ("wrong", "it answered an error: not \u{fffd} like this"),
    ] {
        let (ended, said) = failed(&bench, &toolbox, tool).await;
        assert!(ended == Ended::Failed && said.contains(problem), "{tool}: {said}");
    }
    assert_eq!(failed(&bench, &toolbox, "fail").await, (Ended::Failed, "no such thing".to_owned()));
    assert_eq!(toolbox.notices(), [""; 0]);
    toolbox.close().await;
}

#[tokio::test]
async fn one_that_floods_is_ended() {
    let bench = Bench::new();
    for flood in ["flood", "stream", "pester"] {
        let toolbox = bench.server("well", "").await;
        let (ended, said) = failed(&bench, &toolbox, flood).await;
        assert!(ended == Ended::Broken, "{flood}: {said}");
        assert_eq!(bench.ask(&toolbox, "count").await, "1");
        toolbox.close().await;
        bench.nothing_is_left().await;
    }
}

#[tokio::test]
async fn a_changed_list_is_said_and_changes_nothing() {
    let bench = Bench::new();
    let toolbox = bench.server("eager", "allow = ['echo', 'count', 'fresh', 'change']").await;
    // It said at once that its list had changed, and it had not.
    let names: Vec<String> = toolbox.tools().iter().map(|tool| tool.name.clone()).collect();
    assert_eq!(
        (names, toolbox.notices()),
        (["s__change", "s__count", "s__echo"].map(str::to_owned).into(), vec![])
    );
    bench.ask(&toolbox, "change").await;
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut notices = Vec::new();
    while notices.is_empty() {
        assert!(Instant::now() < deadline, "nothing was said");
        tokio::time::sleep(Duration::from_millis(5)).await;
        notices = toolbox.notices();
    }
    let said = "The MCP server s has other tools now: new: fresh; gone: count; changed: echo.";
    assert!(notices.len() == 1 && notices[0].starts_with(said), "{notices:?}");
    assert_eq!((toolbox.notices().len(), toolbox.tools().len()), (0, 3));
    toolbox.close().await;
}

#[tokio::test]
async fn nothing_that_it_asks_for_is_given() {
    let bench = Bench::new();
    let toolbox = bench.server("well", "").await;
    bench.ask(&toolbox, "ask").await;
    let mut answers: Vec<Value> = Vec::new();
    let deadline = Instant::now() + Duration::from_secs(10);
    while answers.len() < 4 {
        assert!(Instant::now() < deadline, "{answers:?}");
        answers = serde_json::from_str(&bench.ask(&toolbox, "answers").await).unwrap();
    }
    answers.sort_by_key(|answer| answer["id"].as_u64());
    assert_eq!(answers[0]["error"]["code"], json!(-32601), "{answers:?}");
    assert_eq!(answers[1]["result"]["action"], json!("decline"), "{answers:?}");
    assert_eq!(answers[2]["error"]["code"], json!(-32601), "{answers:?}");
    assert_eq!(answers[3]["error"]["code"], json!(-32601), "{answers:?}");
    toolbox.close().await;
}

#[tokio::test]
async fn a_grandchild_neither_holds_up_its_end_nor_outlives_it() {
    let bench = Bench::new();
    let toolbox = bench.server("well", "").await;
    bench.ask(&toolbox, "child").await;
    failed(&bench, &toolbox, "die").await;
    // The child held the pipe.
    assert_eq!(bench.ask(&toolbox, "count").await, "1");
    assert_eq!(processes_of(bench.job).len(), 1);
    toolbox.close().await;
    bench.nothing_is_left().await;
}
