//! JSON logs: one flat object per line, with the fields that ops/telemetry.md lists.

use std::collections::BTreeSet;
use std::path::Path;

use job::JobState;
use serde_json::{Map, Value, json};
use tests::{Fleet, Worker, job};

type Line = Map<String, Value>;

/// The fields in the tables of the page's section on logs: those of every line, those about a job, and the others.
fn documented() -> [BTreeSet<String>; 3] {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/telemetry.md");
    let page = std::fs::read_to_string(page).expect("ops/telemetry.md");
    let (_, logs) = page.split_once("\n## Logs\n").expect("a part on logs");
    let (logs, _) = logs.split_once("\n## Traces\n").expect("a part on traces");
    let tables = logs.split("| field | |\n").skip(1);
    let names = |table: &str| {
        let rows = table.lines().skip(1).map_while(|line| line.strip_prefix("| ")?.split(" | ").next());
        rows.flat_map(|cell| cell.split('`').skip(1).step_by(2).map(str::to_owned)).collect()
    };
    let tables: Vec<BTreeSet<String>> = tables.map(names).collect();
    tables.try_into().expect("three tables of fields")
}

fn lines(worker: &Worker) -> Vec<Line> {
    let log = worker.log();
    let line = |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    log.lines().map(line).collect()
}

#[tokio::test]
async fn a_workers_log_has_the_fields_that_are_documented_and_names_each_job() {
    const CALLERS_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    let fleet = Fleet::new().await;
    let crashing = fleet.program("crashing", "#!/bin/sh\necho 'said \"so\"' >&2\nexit 3\n");
    let agents = fleet.agents(&[("crashing", &crashing), ("scripted", "")]);
    let worker = fleet.worker("worker").set("AGENTS_FILE", agents).set("LOG_JSON", "true");
    // Enough to produce every line that a job can cause.
    let mut worker = worker.set("LOG_LEVEL", "info,worker=debug,dispatch=debug").launch();
    fleet.workers_alive(1).await;

    let failing = json!({"iterations": [{"fail": {"message": "no", "retryable": true, "attempts": 1}}, {}]});
    let mut specs = [
        job("s-1", "crashing", Value::Null),
        job("s-2", "scripted", failing.clone()),
        // Both are of one session: the end of the first also claims the second.
        job("s-2", "scripted", failing),
        job("s-3", "nobody", Value::Null),
    ];
    specs[0].retry.max_attempts = 2;
    specs[0].traceparent = format!("00-{CALLERS_TRACE}-b7ad6b7169203331-01").parse().ok();
    specs[3].reply_to = Some("nowhere".to_owned());
    fleet.enqueue(&specs).await;
    fleet.vhost.publish(vec![(b"no job".to_vec(), Default::default())]).await;
    let mut traces = Vec::new();
    for spec in &specs {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!(view.state == JobState::Succeeded, spec.agent_id.as_str() == "scripted", "{view:?}");
        traces.push(view.trace_id.to_string());
    }
    assert_eq!(traces[0], CALLERS_TRACE);
    worker.said("a message was dead-lettered").await;
    worker.said("replied").await;
    worker.terminate();
    assert_eq!(worker.exit().await, 0);

    let [always, of_jobs, others] = documented();
    let known: BTreeSet<&String> = always.iter().chain(&of_jobs).chain(&others).collect();
    let lines = lines(&worker);
    for line in &lines {
        let unknown: Vec<_> = line.keys().filter(|name| !known.contains(name)).collect();
        assert!(unknown.is_empty(), "{unknown:?} are in no table of ops/telemetry.md: {line:?}");
        assert!(always.iter().all(|name| line[name].is_string()), "{line:?}");
        assert_eq!(line["service"], json!("harness-worker"));
        assert!(line.values().all(|value| !value.is_object() && !value.is_array()), "not flat: {line:?}");
        if line.contains_key("job_id") {
            let at = specs.iter().position(|spec| line["job_id"] == json!(spec.job_id)).expect("one of ours");
            assert_eq!(line["session_id"], json!(specs[at].session_id), "{line:?}");
            assert_eq!(line["trace_id"], json!(traces[at]), "{line:?}");
        }
    }
    let text = |message: &str, at: usize| -> Vec<&Line> {
        let of_job = |line: &&Line| line.get("job_id") == Some(&json!(specs[at].job_id));
        let found: Vec<_> = lines.iter().filter(of_job).filter(|line| line["message"] == message).collect();
        assert!(!found.is_empty(), "\"{message}\" is not said of job {at}: {}", worker.log());
        found
    };
    let failed = text("an attempt failed", 0);
    let attempts: Vec<_> = failed.iter().map(|line| line["attempt"].clone()).collect();
    assert_eq!(attempts, [json!(1), json!(2)]);
    assert!(failed.iter().all(|line| line["code"] == "crashed" && line["retryable"] == true));
    let said = text("said \"so\"", 0);
    assert!(said.iter().all(|line| line["target"] == "harness::command::stderr" && line["attempt"].is_u64()));
    for at in [1, 2] {
        assert_eq!(text("an attempt failed", at)[0]["attempt"], json!(1));
    }
    assert!(text("replied", 3)[0].contains_key("attempt"));
    text("a message was dead-lettered", 3);
}

#[tokio::test]
async fn a_log_for_people_names_each_job_as_well() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").set("LOG_LEVEL", "warn,worker=info").launch();
    fleet.workers_alive(1).await;
    let spec = job("s", "scripted", json!({"iterations": [{"fail": {"message": "no"}}]}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let line = worker.said("an attempt failed").await;
    let trace = spec.job_id.to_string().replace('-', "");
    for part in [format!("job_id={}", spec.job_id), format!("trace_id={trace}"), "session_id=s ".to_owned()] {
        assert!(line.contains(&part), "{part} is not in: {line}");
    }
    assert!(line.contains("attempt=1"), "{line}");
}
