//! `autoscaler simulate` shows what a policy would do with a trace, without any service, and reports what is wrong with
//! its input.

use std::path::Path;

use tempfile::TempDir;
use tests::{Ran, autoscaler_command};

async fn simulate(input: &str, arguments: &[&str]) -> Ran {
    let mut command = autoscaler_command(&["simulate"]);
    command.args(arguments).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."));
    Ran::of(command, input).await
}

#[tokio::test]
async fn the_shipped_burst_is_played_under_two_policies_and_drawn() {
    let folder = TempDir::new().expect("a folder");
    let svg = folder.path().join("out.svg");
    let svg = svg.to_str().expect("UTF-8");
    let both =
        ["--trace", "ops/traces/burst.csv", "--compare", "ops/policies/target_wait.toml", "--plot", svg];
    let table = simulate("", &both).await;
    assert_eq!((table.code, table.err.as_str()), (0, ""), "{table:?}");
    for part in ["built-in policy", "target_wait", "difference", "wait p95 (s)", "worker-hours", "flaps"] {
        assert!(table.out.contains(part), "{part}: {}", table.out);
    }
    let drawn = std::fs::read_to_string(svg).expect("the picture");
    assert!(drawn.starts_with("<svg") && drawn.contains("burst.csv: 587 jobs"), "{drawn:.300}");

    let json = simulate("", &[&both[..4], &["--json"]].concat()).await;
    let text = &json.json()[0];
    let hours = |which: &str| text[which]["worker_hours"].as_f64().expect("hours");
    for which in ["first", "second"] {
        assert_eq!(text[which]["jobs"], 587);
        assert_eq!((&text[which]["unfinished"], &text[which]["interrupted"]), (&0.into(), &0.into()));
        assert_eq!(text[which]["hours"], text["first"]["hours"], "both for the same time");
    }
    let difference = text["difference"]["worker_hours"].as_f64().expect("hours");
    assert!((hours("second") - hours("first") - difference).abs() < 1e-9, "{text}");
    assert_eq!(json.out, simulate("", &[&both[..4], &["--json"]].concat()).await.out, "the same again");
}

#[tokio::test]
async fn a_trace_comes_from_stdin_and_flags_change_the_policy() {
    let line = "{\"arrival_s\": 1, \"service_s\": 30}\n";
    let flags = ["--trace", "-", "--slots", "1", "--min", "0", "--max", "7", "--no-up-limits", "--json"];
    let ran = simulate(&line.repeat(50), &flags).await;
    let text = &ran.json()[0];
    assert_eq!((&text["jobs"], &text["peak_workers"]), (&50.into(), &7.into()), "{ran:?}");
    let synthetic =
        ["--synthetic", "poisson", "--hours", "1", "--sessions", "9", "--mode", "target-wait", "--json"];
    let ran = simulate("", &synthetic).await;
    assert!(ran.json()[0]["jobs"].as_u64().expect("jobs") > 250, "{ran:?}");
}

#[tokio::test]
async fn all_that_is_wrong_is_reported_at_once() {
    let folder = TempDir::new().expect("a folder");
    let policy = folder.path().join("policy.toml");
    std::fs::write(&policy, "min_replicas = 9\nmax_replicas = 3\n").expect("written");
    let policy = policy.to_str().expect("UTF-8");
    let trace = "arrival_s,service_s\n1,2\n2,soon\n";
    let ran =
        simulate(trace, &["--trace", "-", "--policy", policy, "--slots", "0", "--start", "today"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{ran:?}");
    for part in [
        "4 settings are wrong",
        "--trace: stdin: line 3: service_s: got \"soon\", expected seconds from 0 to 2678400",
        "min_replicas: 9 is more than max_replicas (3)",
        "--slots: got 0, expected 1 to 256",
        "--start: got \"today\", expected a time since 1970 such as 2026-01-05T00:00:00Z",
    ] {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    let ran = simulate("", &["--trace", "nowhere.csv", "--compare", "nowhere.toml"]).await;
    assert!(ran.err.contains("--trace: nowhere.csv: No such file"), "{ran:?}");
    assert!(ran.err.contains("--compare: nowhere.toml: No such file"), "{ran:?}");
}
