//! A worker is killed at every one of an agent's iterations: before a call is worked on, while it is, in its stream, before
//! and after the effect of a tool. One kill hits fifty jobs on all wires, each at another place.

use std::collections::HashSet;
use std::fmt::Write;
use std::fs::{exists, read_dir, read_to_string};

use job::{JobSpec, JobState};
use serde_json::json;
use tests::provider::{PROVIDER_KEY, Provider, Script};
use tests::{Fleet, Launch, job, until_ok};

/// One job for each iteration that is hit.
const JOBS: usize = 50;
const STAGES: usize = 5;
const HELD: usize = 0;
const WORKED: usize = 1;
const STREAMED: usize = 2;
const BEFORE_TOOL: usize = 3;

/// Notes the key of its call, and stops before or after that until it may go on.
const TOOL: &str = r#"#!/bin/sh
input=$(cat)
halt() {
    : > "$FOLDER/halted.$HARNESS_JOB_ID"
    while [ ! -e "$FOLDER/go" ]; do sleep 0.1; done
}
case $input in *before*) halt ;; esac
echo "$HARNESS_CALL_KEY" >> "$FOLDER/notes.$HARNESS_SESSION_ID"
case $input in *after*) halt ;; esac
echo noted
"#;

/// The play of the job that is hit at this iteration: a call of the tool in each iteration, then the end.
fn play(hit: usize) -> String {
    let stage = hit % STAGES;
    let turn = |text: &str, more: &str| {
        format!(
            r#"{{"thinking": "So be it.", "tools": [{{"name": "note", "input": {{"halt": "{text}", "turn": "{{turn}}"}}}}]{more}}}"#
        )
    };
    let many = |times: usize| match times {
        0 => String::new(),
        times => format!("{},", turn("no", &format!(r#", "times": {times}"#))),
    };
    let at = match stage {
        HELD => turn("no", r#", "fault": "holds""#),
        WORKED => turn("no", r#", "fault": "stalls""#),
        STREAMED => turn("no", r#", "fault": {"stalls_after": 4}"#),
        BEFORE_TOOL => turn("before", ""),
        _ => turn("after", ""),
    };
    format!(r#""hit-{hit}": [{}{at},{}{{"text": "Done."}}]"#, many(hit), many(JOBS - hit - 1))
}

/// An agent for each wire, with what its table says of it.
const AGENTS: [(&str, &str); 3] = [
    ("messages", "models = [\"claude-opus-5-5\"]"),
    ("chat", "models = [\"gpt-6-sol\"]"),
    ("responses", "models = [\"gpt-6-sol\"]\nopenai_api = \"responses\""),
];

fn worker(fleet: &Fleet, provider: &Provider, name: &str) -> Launch {
    let tool = fleet.program("note", TOOL);
    let agents = fleet.folder.path().join("agents.toml");
    let toml = AGENTS.map(|(agent, model)| {
        format!(
            "[agents.{agent}]\nharness = \"agent\"\n{model}\nmax_output_tokens = 200\n\
             [agents.{agent}.sandbox]\nlevel = \"off\"\n\
             [agents.{agent}.tools.note]\ncommand = [{tool:?}]\ndescription = \"Notes.\"\nenv = {{ FOLDER = {:?} }}\n\
             input_schema = {{ type = \"object\", properties = {{ halt = {{ type = \"string\" }} }} }}\n",
            fleet.folder.path()
        )
    });
    std::fs::write(&agents, toml.concat()).expect("written");
    let launch = fleet.worker(name).set("AGENTS_FILE", agents.display()).set("WORKER_SLOTS", JOBS);
    let launch = launch.set("OPENAI_API_KEY", PROVIDER_KEY).set("OPENAI_BASE_URL", provider.base_url());
    launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url())
}

fn halted(fleet: &Fleet) -> usize {
    let files = read_dir(fleet.folder.path()).expect("the folder").flatten();
    files.filter(|file| file.file_name().to_string_lossy().starts_with("halted.")).count()
}

#[tokio::test]
async fn a_kill_at_any_of_fifty_iterations_costs_at_most_the_call_in_flight_and_runs_no_tool_twice() {
    let mut plays = String::new();
    for hit in 0..JOBS {
        let comma = if hit == 0 { "" } else { "," };
        write!(plays, "{comma}{}", play(hit)).expect("a string");
    }
    let script = Script::parse(&format!("{{\"plays\": {{{plays}}}}}")).expect("a script");
    let (fleet, provider) = (Fleet::new().await, Provider::playing(script).await);
    // Fifty jobs with tools keep a busy machine from more than one beat.
    let mut first = worker(&fleet, &provider, "first").set("LEASE_S", 6).start().await;
    let jobs: Vec<JobSpec> = (0..JOBS)
        .map(|hit| {
            // Each wire is hit at all stages.
            let (agent, _) = AGENTS[hit / STAGES % AGENTS.len()];
            job(&format!("s-{hit}"), agent, json!(format!("Note what is to be noted. play:hit-{hit}")))
        })
        .collect();
    fleet.enqueue(&jobs).await;
    // Each job stands at its place: a call that hangs, or a tool.
    let in_tools = JOBS / STAGES * 2;
    let mut seen = 0;
    loop {
        let there = provider.hung() as usize + halted(&fleet);
        if there == JOBS {
            break;
        }
        // Progress is what is waited for, not a time.
        let moved = async || match provider.charged().len() + provider.hung() as usize + halted(&fleet) {
            sum if sum > seen => Ok(sum),
            sum => Err(sum),
        };
        seen = until_ok("the jobs come nearer to their places", moved).await;
    }
    assert_eq!(halted(&fleet), in_tools);
    first.kill();
    std::fs::write(fleet.folder.path().join("go"), "").expect("written");
    let _second = worker(&fleet, &provider, "second").start().await;
    for (hit, spec) in jobs.iter().enumerate() {
        let mut seen = 0;
        let view = loop {
            let view = fleet.view(spec.job_id).await.expect("known");
            if view.state.is_end() {
                break view;
            }
            let moved = async || match provider.charged().len() {
                sum if sum > seen => Ok(sum),
                sum => match fleet.view(spec.job_id).await {
                    Some(view) if view.state.is_end() => Ok(sum),
                    _ => Err(sum),
                },
            };
            seen = until_ok("a call more is made, or the job ends", moved).await;
        };
        assert_eq!((view.state, view.attempts), (JobState::Succeeded, 2), "hit at {hit}: {view:?}");
        assert_eq!(view.output.as_ref().map(job::Json::as_str), Some("\"Done.\""), "hit at {hit}");
    }

    // Every request extended the last one to the letter.
    assert!(provider.findings().is_empty(), "{:#?}", provider.findings());
    assert_eq!(provider.conversations(), JOBS);
    let (each, answers) = (JOBS / STAGES, JOBS * (JOBS + 1));
    let charged = provider.charged();
    assert_eq!(charged.len(), answers + 2 * each, "what it worked on, and nobody has got, is paid again");
    assert!(!charged.iter().any(|call| call.again), "no whole answer is paid again");
    for (hit, spec) in jobs.iter().enumerate() {
        let notes = fleet.folder.path().join(format!("notes.{}", spec.session_id));
        assert!(exists(&notes).expect("the folder"), "{hit}");
        let text = read_to_string(notes).expect("notes");
        let keys: Vec<&str> = text.lines().collect();
        let once: HashSet<&&str> = keys.iter().collect();
        assert_eq!(once.len(), keys.len(), "hit at {hit}: a call of the tool ran twice");
        // What was killed before its effect is not run again by itself: the model is told.
        let lost = usize::from(hit % STAGES == BEFORE_TOOL);
        assert_eq!(keys.len(), JOBS - lost, "hit at {hit}");
    }
    let calls = |state: &str| format!("SELECT count(*) FROM harness_calls WHERE state = '{state}'");
    let settled = fleet.database.count(&calls("settled")).await;
    let unknown = fleet.database.count(&calls("unknown")).await;
    assert_eq!((settled as usize, unknown as usize), (answers, 3 * each));
    // What the first worker had paid and could not checkpoint counts with the run that was given its answers.
    let paid = "SELECT sum(cost_microusd)::bigint FROM harness_calls WHERE state = 'settled'";
    let of_jobs = "SELECT sum(cost_microusd)::bigint FROM harness_results";
    assert_eq!(fleet.database.count(of_jobs).await, fleet.database.count(paid).await);
    let tokens = "SELECT sum(input_tokens + cache_read_tokens + cache_write_tokens + output_tokens)::bigint
                    FROM harness_calls WHERE state = 'settled'";
    let of_jobs = "SELECT sum(input_tokens + output_tokens)::bigint FROM harness_results";
    assert_eq!(fleet.database.count(of_jobs).await, fleet.database.count(tokens).await);
    let counted = fleet.database.count("SELECT sum(cost_microusd)::bigint FROM harness_calls").await;
    assert!(provider.bill_micros() as i64 <= counted);
    fleet.database.audited().await;
}
