//! What ends an agent's job without an output has a code, and what it cost until then is on its record.

use job::{FailureCode, JobSpec, JobState};
use serde_json::{Value, json};
use tests::provider::{PROVIDER_KEY, Provider, Script};
use tests::{Fleet, job};

/// A way to fail: the agent's table beside its model, the plays of the model, and the job.
struct Row {
    name: &'static str,
    table: &'static str,
    /// The turns of the play of this name.
    turns: &'static str,
    change: fn(JobSpec) -> JobSpec,
    code: FailureCode,
    /// Calls that are paid: settled, or counted in full.
    calls: i64,
}

fn as_it_is(spec: JobSpec) -> JobSpec {
    spec
}

const CALLS: &str = r#"{"times": 50, "tools": [{"name": "list_files", "input": {}}]}"#;

fn rows() -> [Row; 12] {
    let row = |name, table, turns, code, calls| Row { name, table, turns, change: as_it_is, code, calls };
    [
        row("refused", "", r#"{"text": "No.", "stop": "refusal"}"#, FailureCode::ProviderRefused, 1),
        row(
            "option",
            "options.anthropic = { question = 1 }",
            r#"{"text": "x"}"#,
            FailureCode::ProviderRefused,
            0,
        ),
        // Four tries, each of which may have been paid.
        Row {
            change: |spec| JobSpec {
                input: job::Json::parse(r#""Break. play:broken""#).expect("JSON"),
                ..spec
            },
            ..row("broken", "models = [\"gpt-6-sol\"]", r#"{"text": "x"}"#, FailureCode::ProviderError, 4)
        },
        row("answers", "files = true\nmax_iterations = 2", CALLS, FailureCode::BudgetExhausted, 2),
        row("dollars", "files = true\nmax_cost_usd = \"0.02\"", CALLS, FailureCode::BudgetExhausted, -1),
        Row {
            change: |spec| {
                let long = json!(format!("{} play:long", "word ".repeat(3_000)));
                JobSpec { input: job::Json::from_value(&long).expect("JSON"), ..spec }
            },
            ..row("long", "context_tokens = 2000", r#"{"text": "x"}"#, FailureCode::ContextOverflow, 0)
        },
        row(
            "server",
            "mcp.s = { command = [\"/bin/false\"] }",
            r#"{"text": "x"}"#,
            FailureCode::ToolError,
            0,
        ),
        Row {
            change: |spec| JobSpec { input: job::Json::parse(r#""Bad. play:input""#).expect("JSON"), ..spec },
            ..row(
                "input",
                "input_schema = { type = \"object\" }",
                r#"{"text": "x"}"#,
                FailureCode::BadInput,
                0,
            )
        },
        row(
            "output",
            "native_output = false\noutput_schema = { type = \"object\" }",
            r#"{"times": 9, "text": "no object"}"#,
            FailureCode::OutputInvalid,
            4,
        ),
        row(
            "hangs",
            "timeout_ms = 6000\ntools.hang = { command = [\"sleep\", \"600\"], description = \"Hangs.\" }",
            r#"{"tools": [{"name": "hang", "input": {}}]}"#,
            FailureCode::Timeout,
            1,
        ),
        Row {
            change: |spec| JobSpec { max_stalled_iterations: Some(3), ..spec },
            ..row("circles", "files = true", CALLS, FailureCode::NoProgress, -1)
        },
        // 64 KiB are the most that a session may have here.
        Row {
            change: |spec| {
                let large = json!(format!("{} play:large", "word ".repeat(14_000)));
                JobSpec { input: job::Json::from_value(&large).expect("JSON"), ..spec }
            },
            ..row("large", "", r#"{"text": "x"}"#, FailureCode::ContextOverflow, 0)
        },
    ]
}

#[tokio::test]
async fn each_way_to_fail_has_its_code_and_what_it_cost() {
    let rows = rows();
    let plays: Vec<String> = rows.iter().map(|row| format!("\"{}\": [{}]", row.name, row.turns)).collect();
    let script = Script::parse(&format!("{{\"plays\": {{{}}}}}", plays.join(","))).expect("a script");
    let failing = Script::parse(r#"{"faults": [{"fault": {"fails": 500}, "every": 1}]}"#).expect("a script");
    let (fleet, provider) = (Fleet::new().await, Provider::playing(script).await);
    let broken = Provider::playing(failing).await;
    let mut toml = String::new();
    for Row { name, table, .. } in &rows {
        let models = if table.contains("models") { "" } else { "models = [\"claude-opus-5-5\"]\n" };
        toml += &format!(
            "[agents.{name}]\nharness = \"agent\"\n{models}max_output_tokens = 200\nsandbox = {{ level = \"off\" }}\n{table}\n"
        );
    }
    let agents = fleet.folder.path().join("agents.toml");
    std::fs::write(&agents, toml).expect("written");
    let launch = fleet.worker("worker").set("AGENTS_FILE", agents.display()).set("WORKER_SLOTS", rows.len());
    let launch = launch.set("OPENAI_API_KEY", PROVIDER_KEY).set("OPENAI_BASE_URL", broken.base_url());
    let launch = launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url());
    let _worker = launch.set("MAX_SESSION_BYTES", 65_536).start().await;
    let jobs: Vec<JobSpec> = rows
        .iter()
        .map(|row| {
            let mut spec = job(row.name, row.name, json!(format!("Do it. play:{}", row.name)));
            // A failure that may pass ends the job at once.
            spec.retry.max_attempts = 1;
            (row.change)(spec)
        })
        .collect();
    fleet.enqueue(&jobs).await;
    for (row, spec) in rows.iter().zip(&jobs) {
        let view = fleet.ended(spec.job_id).await;
        let failure = view.failure.clone().expect(row.name);
        assert_eq!((view.state, failure.code), (JobState::Failed, row.code), "{}: {view:?}", row.name);
        assert!(!failure.message.is_empty(), "{}", row.name);
        let of_job = format!("FROM harness_calls WHERE job_id = '{}' AND state <> 'free'", spec.job_id);
        let calls = fleet.database.count(&format!("SELECT count(*) {of_job}")).await;
        let sum = format!("SELECT coalesce(sum(cost_microusd), 0)::bigint {of_job}");
        let counted = fleet.database.count(&sum).await;
        assert!(row.calls == calls || row.calls < 0 && calls > 0, "{}: {calls} calls", row.name);
        assert_eq!(view.cost_usd.micros() as i64, counted, "{}: {view:?}", row.name);
        assert_eq!(counted > 0, calls > 0, "{}", row.name);
        let shown = fleet.producer(&["status", "--json", &spec.job_id.to_string()]).await;
        let shown: Value = shown.json().remove(0);
        assert_eq!(shown["failure"]["code"], json!(row.code.to_string()), "{shown}");
    }
    let counted = "SELECT coalesce(sum(cost_microusd), 0)::bigint FROM harness_calls";
    let bill = provider.bill_micros() + broken.bill_micros();
    assert!(bill as i64 <= fleet.database.count(counted).await);
    fleet.database.audited().await;
}
