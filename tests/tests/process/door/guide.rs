//! The walks of docs/guides/http.md and of the README work as they are written.

use std::path::Path;
use std::process::Command;

use serde_json::json;
use tests::{Api, Fleet, Ran, binary};

/// The job of the guide's walk.
const JOB: &str = "0198c0de-7a00-7000-8000-000000000001";

/// The commands of a page.
fn blocks(page: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(page);
    let page = std::fs::read_to_string(page).expect("the page");
    let blocks = page.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks.map(str::to_owned).collect()
}

/// Runs commands that ask this API. Returns what they said, and the statuses that are shown with it.
async fn walk(fleet: &Fleet, api: &Api, commands: &str) -> (Ran, Vec<String>) {
    let address = api.base().strip_prefix("http://").expect("an address");
    let script = commands.replace("localhost:8080", address);
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
    let is_status = |line: &&str| line.len() == 3 && line.bytes().all(|b| b.is_ascii_digit());
    let statuses: Vec<String> = ran.out.lines().filter(is_status).map(str::to_owned).collect();
    let asked = script.matches("\ncurl -").count();
    assert_eq!(statuses.len(), asked, "{ran:?}");
    (ran, statuses)
}

#[tokio::test]
async fn the_walk_of_the_readme_works_as_it_is_written() {
    let commands: Vec<String> =
        blocks("README.md").into_iter().filter(|block| block.contains("localhost:8080")).collect();
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let (ran, statuses) = walk(&fleet, &Api::of(&door).await, &commands.concat()).await;
    // Why, events, result; cancel, its end; the failure, redrive.
    assert!(matches!(statuses[3].as_str(), "200" | "202"), "{ran:?}");
    let others = [&statuses[..3], &statuses[4..]].concat();
    assert_eq!(others, ["200", "200", "200", "200", "200", "202"], "{ran:?}");
    for state in ["\"state\":\"succeeded\"", "\"state\":\"cancelled\"", "\"state\":\"failed\""] {
        assert!(ran.out.contains(state), "{state}: {ran:?}");
    }
    assert!(ran.out.contains("event: end"), "{ran:?}");
}

#[tokio::test]
async fn the_walk_of_the_guide_works_as_it_is_written() {
    let blocks = blocks("docs/guides/http.md");
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
    let (ran, statuses) = walk(&fleet, &api, &blocks.concat().replace(JOB, &failed)).await;
    // The walk's job has ended when it is cancelled, and was redriven when it is dropped.
    let expected = |status: &String| matches!(status.as_str(), "200" | "201" | "202" | "204" | "409");
    assert!(statuses.iter().all(expected), "{ran:?}");
    assert_eq!(statuses.iter().filter(|status| **status == "409").count(), 2, "{ran:?}");
}
