//! Programs: a program cannot learn what its parent knows.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, chown};

use serde_json::{Value, json};
use tests::{Fleet, is_root, job};

/// A user without rights.
const USER: u32 = 61_234;

/// Looks for what its parent, the worker, knows.
const CURIOUS: &str = r#"#!/bin/sh
environ=$(cat /proc/$PPID/environ 2>/dev/null | tr '\0' '\n' | grep -c _URL=)
memory=closed
(exec 3</proc/$PPID/mem) 2>/dev/null && memory=open
inherited=$(env | grep -c _URL)
printf '{"type":"result","output":{"environ":%s,"memory":"%s","inherited":%s}}\n' "$environ" "$memory" "$inherited"
"#;

#[tokio::test]
async fn a_program_learns_nothing_from_the_process_that_started_it() {
    let fleet = Fleet::new().await;
    std::fs::set_permissions(fleet.folder.path(), Permissions::from_mode(0o755)).expect("ours");
    let workspaces = fleet.folder.path().join("workspaces");
    std::fs::create_dir(&workspaces).expect("made");
    if is_root() {
        chown(&workspaces, Some(USER), Some(USER)).expect("given away");
    }
    let agents = fleet.agents(&[("curious", &fleet.program("curious", CURIOUS))]);
    let _worker = fleet.worker("worker").user(USER).set("AGENTS_FILE", agents).start().await;
    let spec = job("s", "curious", Value::Null);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let output = fleet.ended(spec.job_id).await.output.expect("an output");
    let output: Value = serde_json::from_str(output.as_str()).expect("JSON");
    assert_eq!(output, json!({"environ": 0, "memory": "closed", "inherited": 0}));
}

#[tokio::test]
async fn a_secret_may_stand_in_a_file_but_not_in_two_places() {
    let fleet = Fleet::new().await;
    let path = fleet.folder.path().join("database_url");
    std::fs::write(&path, format!("{}\n", fleet.database.url)).expect("written");
    let by_file = fleet.worker("by file").set("DATABASE_URL_FILE", path.display());
    let worker = by_file.unset("DATABASE_URL").start().await;
    drop(worker);

    let mut twice = fleet.worker("twice").set("DATABASE_URL_FILE", path.display()).launch();
    assert_eq!(twice.exit().await, 2);
    let log = twice.log();
    assert!(log.contains("DATABASE_URL_FILE") && log.contains("DATABASE_URL is set as well"), "{log}");

    let missing = fleet.worker("missing").unset("DATABASE_URL").unset("AMQP_URL");
    let mut missing = missing.set("DATABASE_URL_FILE", "/no/such/file").launch();
    assert_eq!(missing.exit().await, 2);
    let log = missing.log();
    assert!(log.contains("/no/such/file") && log.contains("AMQP_URL: not set"), "{log}");
}

#[tokio::test]
async fn no_agent_is_given_a_secret_of_the_workers() {
    let fleet = Fleet::new().await;
    let path = fleet.folder.path().join("agents.toml");
    let toml = "[agents.a]\nharness = \"command\"\ncommand = [\"true\"]\nenv_allow = [\"DATABASE_URL\"]\n";
    std::fs::write(&path, toml).expect("written");
    let mut worker = fleet.worker("worker").set("AGENTS_FILE", path.display()).launch();
    assert_eq!(worker.exit().await, 2);
    assert!(
        worker.log().contains("env_allow[0]: got DATABASE_URL, a secret of the worker's"),
        "{}",
        worker.log()
    );
}
