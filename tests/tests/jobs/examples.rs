//! What is in `examples/` works as it is: the agents, the jobs, the shell agent and the Rust publisher.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use command::CommandConfig;
use job::JobState;
use serde_json::{Value, json};
use tests::{Api, Fleet, Launch, Ran, binary, job, until_ok};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().expect("the repository")
}

fn example(name: &str) -> PathBuf {
    repository().join("examples").join(name)
}

/// A worker with `examples/agents.toml`, started in the repository's folder as its programs want it.
fn worker(fleet: &Fleet, name: &str) -> Launch {
    let root = repository();
    let launch = fleet.worker(name).through(&["env", "-C", &root.to_string_lossy()]);
    launch.set("AGENTS_FILE", "examples/agents.toml")
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn the_jobs_run_with_the_agents() {
    let fleet = Fleet::new().await;
    let _worker = worker(&fleet, "worker").start().await;
    let jobs = example("jobs.jsonl");
    let ran = fleet.producer(&["enqueue", "--strict", "--file", &jobs.to_string_lossy()]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let look = async || match fleet.database.texts("SELECT job_id::text FROM harness_results").await {
        ids if ids.len() == 3 => Ok(ids),
        ids => Err(ids),
    };
    for id in until_ok("three jobs have ended", look).await {
        let view = fleet.ended(id.parse().expect("a job id")).await;
        assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{view:?}");
    }
}

#[tokio::test]
async fn the_publisher_in_python_shows_what_became_of_each_line() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let publish = async |agent: &str| {
        let mut command = Command::new(example("publish.py"));
        command
            .arg(agent)
            .env("HARNESS_URL", Api::of(&door).await.base())
            .env("PYTHONDONTWRITEBYTECODE", "1");
        Ran::of(command, "one\nzwei\n").await
    };
    let ran = publish("echo").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let outputs: Vec<Value> = ran.json().into_iter().map(|line| line["output"].clone()).collect();
    assert_eq!(outputs, [json!("one"), json!("zwei")]);
    let ran = publish("nobody").await;
    assert_eq!((ran.code, ran.json()[1]["state"].as_str()), (1, Some("failed")), "{ran:?}");
}

#[test]
fn the_file_of_agents_has_every_key_there_is() {
    let refused =
        serde_json::from_value::<CommandConfig>(json!({"?": 1})).expect_err("an unknown key").to_string();
    let (_, keys) = refused.split_once("expected one of ").expect("the names of the known keys");
    let keys: BTreeSet<&str> = keys.split('`').skip(1).step_by(2).collect();
    let text = std::fs::read_to_string(example("agents.toml")).expect("examples/agents.toml");
    let set: BTreeSet<&str> =
        text.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key).collect();
    assert!(keys.len() >= 9, "{refused}");
    let missing: Vec<_> = keys.difference(&set).collect();
    assert!(missing.is_empty(), "examples/agents.toml does not show {missing:?}");
}

#[tokio::test]
async fn the_shell_agent_goes_on_at_its_last_checkpoint_on_another_worker() {
    let fleet = Fleet::new().await;
    let mut first = worker(&fleet, "first").set("DRAIN_GRACE_S", 0).start().await;
    let texts = ["one", "zwei \"2\"", "três", "four"];
    let order = job("shell", "shell", json!({"texts": texts, "delay_s": 1.5}));
    fleet.enqueue(std::slice::from_ref(&order)).await;
    fleet.iterated(order.job_id, 1).await;
    first.terminate();
    first.exit().await;
    assert!(!fleet.view(order.job_id).await.expect("the job").state.is_end(), "it has ended too soon");

    let _second = worker(&fleet, "second").start().await;
    let view = fleet.ended(order.job_id).await;
    assert_eq!((view.state, view.iterations), (JobState::Succeeded, 4), "{view:?}");
    let output = json(view.output.as_ref().expect("an output").as_str());
    let written = output["texts"].as_array().expect("texts");
    assert_eq!(written.len(), 4, "{output}");
    assert_eq!(
        (&written[0], &written[1], &written[3]),
        (&json!("ONE"), &json!("ZWEI \"2\""), &json!("FOUR"))
    );
}

#[tokio::test]
async fn the_shell_agent_says_what_is_wrong_with_an_input() {
    let fleet = Fleet::new().await;
    let _worker = worker(&fleet, "worker").start().await;
    let orders = [json!(null), json!({"texts": [1]}), json!({"texts": [], "delay_s": "long"})];
    let orders = orders.map(|input| job("shell", "shell", input));
    fleet.enqueue(&orders).await;
    for order in &orders {
        let view = fleet.ended(order.job_id).await;
        let failure = view.failure.as_ref().expect("a failure");
        assert!(failure.message.contains("input: expected"), "{view:?}");
    }
}

#[tokio::test]
async fn the_rust_publisher_prints_what_its_job_has_put_out() {
    let fleet = Fleet::new().await;
    let _worker = worker(&fleet, "worker").start().await;
    let publish = async |arguments: &[&str]| {
        let mut command = Command::new(binary("publisher"));
        command.args(arguments).env("AMQP_URL", &fleet.vhost.url);
        Ran::of(command, "").await
    };
    let ran = publish(&["from-rust", "echo", "[1, 2, 3]"]).await;
    assert_eq!((ran.code, ran.out.trim_end()), (0, "[1,2,3]"), "{ran:?}");
    let (id, _) = ran.err.split_once(" is accepted").expect("the id");
    assert_eq!(fleet.ended(id.parse().expect("a job id")).await.state, JobState::Succeeded);

    let ran = publish(&["from-rust", "shell", "{}"]).await;
    assert!(ran.code == 1 && ran.err.contains("harness_error"), "{ran:?}");
}
