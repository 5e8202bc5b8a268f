//! The walk of docs/guides/http.md works as it is written.

use std::path::Path;
use std::process::Command;

use serde_json::json;
use tests::{Api, Fleet, Ran, binary};

/// The job of the page's walk.
const JOB: &str = "0198c0de-7a00-7000-8000-000000000001";

#[tokio::test]
async fn the_walk_of_the_guide_works_as_it_is_written() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guides/http.md");
    let page = std::fs::read_to_string(page).expect("the guide");
    let blocks: Vec<&str> =
        page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(blocks.len() >= 3, "{blocks:?}");
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    // The one that runs again.
    let failed = api.submit(&json!({"agent_id": "nobody"})).await.is(202).text("job_id");
    api.wait(&failed).await.is(200);
    // Its session is there when it is looked at.
    let first = api.submit(&json!({"agent_id": "echo", "session_id": "hello"})).await.is(202).text("job_id");
    api.wait(&first).await.is(200);
    let lines = "{\"agent_id\":\"echo\"}\n".repeat(3);
    std::fs::write(fleet.folder.path().join("jobs.jsonl"), lines).expect("written");
    let address = api.base().strip_prefix("http://").expect("an address");
    let script = blocks.concat().replace("localhost:8080", address).replace(JOB, &failed);
    let script = format!(
        "set -eu\ncurl() {{ command curl --noproxy '*' -w '\\n%{{http_code}}\\n' \"$@\"; }}\n{script}"
    );
    let mut command = Command::new("bash");
    let programs = binary("producer").parent().expect("a folder").display().to_string();
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
    command.args(["-c", &script]).current_dir(fleet.folder.path()).env("PATH", path);
    command.env("DATABASE_URL", &fleet.database.url).env_remove("AMQP_URL");
    let ran = Ran::of(command, "").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let statuses: Vec<&str> =
        ran.out.lines().filter(|line| line.len() == 3 && line.bytes().all(|b| b.is_ascii_digit())).collect();
    let asked = script.matches("\ncurl -").count();
    // The walk's job has ended when it is cancelled, and was redriven when it is dropped.
    let expected = |status: &&str| matches!(*status, "200" | "201" | "202" | "204" | "409");
    assert!(statuses.len() == asked && statuses.iter().all(expected), "{asked}: {ran:?}");
    assert_eq!(statuses.iter().filter(|status| **status == "409").count(), 2, "{ran:?}");
}
