use std::path::Path;

use model::Opened;
use tests::python_with;
use tokio::process::Command;

use crate::bench::Bench;

/// Runs a program of these packages, each a module's name and what `pip` installs, as an attempt.
async fn run(attempt: &Opened, program: &str, packages: &'static [(&str, &str)]) {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(program).with_extension("");
    let python = tokio::task::spawn_blocking(move || python_with(&folder, packages)).await;
    let mut command = Command::new(python.expect("a Python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gateway").join(program));
    let home = tempfile::tempdir().expect("a folder");
    command.env("HOME", home.path());
    command.env_remove("http_proxy").env_remove("HTTP_PROXY").env_remove("all_proxy").env_remove("ALL_PROXY");
    let ran = command.envs(attempt.environment()).kill_on_drop(true).output().await.expect("ran");
    let said = [ran.stdout, ran.stderr].concat();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[tokio::test]
async fn an_unchanged_program_works_with_the_official_sdks() {
    let bench = Bench::start().await;
    run(&bench.attempt, "sdks.py", &[("anthropic", "anthropic==2.14.0"), ("openai", "openai==3.57.0")]).await;
    assert_eq!(bench.attempt.metered().calls, 6);
    assert_eq!(bench.attempt.metered().cost.micros(), bench.provider.bill_micros());
}

#[tokio::test]
async fn what_a_program_of_the_claude_agent_sdk_has_paid_is_not_paid_again() {
    let bench = Bench::start().await;
    let packages = &[("claude_agent_sdk", "claude-agent-sdk==0.2.189")];
    run(&bench.attempt, "agent_sdk.py", packages).await;
    let (paid, bill) = (bench.attempt.metered(), bench.provider.bill_micros());
    assert!(paid.calls > 0 && paid.cost.micros() == bill, "{paid:?}, the bill is {bill}");
    let again = bench.another_attempt();
    run(&again, "agent_sdk.py", packages).await;
    assert_eq!((again.metered().replayed, bench.provider.bill_micros()), (paid.calls, bill));
}
