use std::path::Path;

use tests::python_with;
use tokio::process::Command;

use crate::bench::Bench;

#[tokio::test]
async fn an_unchanged_program_works_with_the_official_sdks() {
    let bench = Bench::start().await;
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let packages = [("anthropic", "anthropic==2.14.0"), ("openai", "openai==3.57.0")];
    let python = tokio::task::spawn_blocking(move || python_with(&folder.join("sdks"), &packages)).await;
    let mut program = Command::new(python.expect("a Python"));
    program.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/gateway/sdks.py"));
    program.env_remove("http_proxy").env_remove("HTTP_PROXY").env_remove("all_proxy").env_remove("ALL_PROXY");
    let ran = program.envs(bench.attempt.environment()).kill_on_drop(true).output().await.expect("ran");
    let said = [ran.stdout, ran.stderr].concat();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&said));
    assert_eq!(bench.attempt.metered().calls, 6);
    assert_eq!(bench.attempt.metered().cost.micros(), bench.provider.bill_micros());
}
