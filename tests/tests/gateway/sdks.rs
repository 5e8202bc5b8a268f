use std::path::{Path, PathBuf};
use std::process::Stdio;

use model::Opened;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tests::provider::Script;
use tests::{SDKS, python_with, until};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::bench::Bench;

const AGENT_SDK: &[(&str, &str)] = &[("claude_agent_sdk", "claude-agent-sdk==0.2.189")];

/// A program of these packages, each a module's name and what `pip` installs, as an attempt. Its home is this folder.
async fn command(attempt: &Opened, home: &Path, program: &str, packages: &'static [(&str, &str)]) -> Command {
    static INSTALLS: Mutex<()> = Mutex::const_new(());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(packages[0].0);
    let installs = INSTALLS.lock().await;
    let python = tokio::task::spawn_blocking(move || python_with(&folder, packages)).await;
    drop(installs);
    let mut command = Command::new(python.expect("a Python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gateway").join(program));
    command.env("HOME", home);
    command.env_remove("http_proxy").env_remove("HTTP_PROXY").env_remove("all_proxy").env_remove("ALL_PROXY");
    command.envs(attempt.environment()).kill_on_drop(true);
    command
}

async fn succeeds(mut command: Command) {
    let ran = command.output().await.expect("ran");
    let said = [ran.stdout, ran.stderr].concat();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&said));
}

async fn run(attempt: &Opened, program: &str, packages: &'static [(&str, &str)]) {
    let home = tempfile::tempdir().expect("a folder");
    succeeds(command(attempt, home.path(), program, packages).await).await;
}

#[tokio::test]
async fn an_unchanged_program_works_with_the_official_sdks() {
    let bench = Bench::start().await;
    run(&bench.attempt, "sdks.py", SDKS).await;
    assert_eq!(bench.attempt.metered().calls, 6);
    assert_eq!(bench.attempt.metered().cost.micros(), bench.provider.bill_micros());
}

#[tokio::test]
async fn what_a_program_of_the_claude_agent_sdk_has_paid_is_not_paid_again() {
    let bench = Bench::start().await;
    run(&bench.attempt, "agent_sdk.py", AGENT_SDK).await;
    let (paid, bill) = (bench.attempt.metered(), bench.provider.bill_micros());
    assert!(paid.calls > 0 && paid.cost.micros() == bill, "{paid:?}, the bill is {bill}");
    let again = bench.another_attempt();
    run(&again, "agent_sdk.py", AGENT_SDK).await;
    assert_eq!((again.metered().replayed, bench.provider.bill_micros()), (paid.calls, bill));
}

#[tokio::test]
async fn a_program_of_the_claude_agent_sdk_that_is_killed_in_its_fourth_tool_pays_for_the_rest_only() {
    let bench = Bench::start().await;
    let script = r#"{"plays": {"notes": [
        {"times": 6, "tools": [{"name": "mcp__desk__note", "input": {"page": "p-{turn}"}}]}, {"text": "All noted."}]}}"#;
    bench.provider.play(Script::parse(script).expect("a script"));
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str| -> PathBuf { folder.path().join(name) };
    let program = async |attempt: &Opened, notes: &str| {
        let mut command = command(attempt, folder.path(), "agent_sdk_tools.py", AGENT_SDK).await;
        command.env("NOTES", file(notes)).env("GO", file("go"));
        command
    };
    let first = bench.another_attempt();
    let mut begun = program(&first, "first").await;
    let mut child = begun.process_group(0).stdout(Stdio::null()).spawn().expect("started");
    let group = Pid::from_raw(child.id().expect("it runs") as i32);
    let noted = async || {
        let notes = std::fs::read_to_string(file("first")).unwrap_or_default();
        (notes.lines().count() == 4).then_some(())
    };
    until("it is in its fourth tool", noted).await;
    killpg(group, Signal::SIGKILL).expect("killed");
    child.wait().await.expect("its end");
    let (paid, bill) = (first.metered(), bench.provider.bill_micros());
    assert!(paid.calls >= 4 && paid.cost.micros() == bill, "{paid:?}, the bill is {bill}");
    drop(first);

    std::fs::write(file("go"), "").expect("written");
    let second = bench.another_attempt();
    succeeds(program(&second, "second").await).await;
    let rest = second.metered();
    assert_eq!(rest.replayed, paid.calls, "{rest:?}");
    assert!(rest.calls >= 3, "two tools and the last word: {rest:?}");
    assert_eq!(rest.cost.micros(), bench.provider.bill_micros() - bill, "it pays for the rest");
    assert!(!bench.provider.charged().iter().any(|call| call.again), "an answer is paid again");
    bench.check_bill();
}
