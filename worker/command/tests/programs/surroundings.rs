//! A program sees what it needs, and none of the worker's secrets.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use command::CommandConfig;
use harness::testing::{MemoryJournal, run, task};
use serde_json::Value;

use crate::support::Bench;

/// Returns the environment a program is started with, before its interpreter adds to it, and its working directory.
async fn seen(
    bench: &Bench,
    change: impl FnOnce(&mut CommandConfig),
    traceparent: Option<&str>,
) -> BTreeMap<String, String> {
    let mut config = bench.sh(r#"cat /proc/$$/environ >environ; pwd >cwd; echo '{"type":"result"}'"#);
    change(&mut config);
    let mut task = task(Value::Null);
    task.traceparent = traceparent.map(|text| text.parse().unwrap());
    bench.build(config).run(&mut run(&task, &MemoryJournal::new())).await.unwrap();
    let read = |name| std::fs::read_to_string(bench.workspaces().join("session-1").join(name)).unwrap();
    let variables = read("environ");
    let variables = variables.split_terminator('\0').map(|entry| entry.split_once('=').unwrap());
    let mut seen: BTreeMap<_, _> = variables.map(|(name, value)| (name.into(), value.into())).collect();
    seen.insert("cwd".to_owned(), read("cwd").trim().to_owned());
    assert_eq!(seen["HARNESS_JOB_ID"], task.job_id.to_string());
    seen
}

#[tokio::test]
async fn the_workers_environment_stays_with_the_worker() {
    // Cargo gives this test a variable that no setting names, as a worker has DATABASE_URL.
    assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some());
    let bench = Bench::new();
    let seen = seen(&bench, |_| {}, None).await;
    assert!(!seen.contains_key("CARGO_MANIFEST_DIR"), "{seen:?}");
    let ours = [
        "HARNESS_EPOCH",
        "HARNESS_JOB_ID",
        "HARNESS_SESSION_ID",
        "HARNESS_WORKSPACE",
        "HOME",
        "LANG",
        "LC_ALL",
        "PATH",
        "TZ",
        "cwd",
    ];
    let strange: Vec<_> = seen.keys().filter(|name| !ours.contains(&name.as_str())).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[tokio::test]
async fn what_is_named_passes_and_what_is_fixed_wins() {
    let bench = Bench::new();
    let seen = seen(
        &bench,
        |config| {
            config.env_allow = vec!["CARGO_MANIFEST_DIR".into(), "CARGO_PKG_NAME".into(), "NOT_SET".into()];
            config.env.extend([("CARGO_PKG_NAME".into(), "fixed".into()), ("MODE".into(), "test".into())]);
        },
        Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    )
    .await;
    assert_eq!(seen["CARGO_MANIFEST_DIR"], env!("CARGO_MANIFEST_DIR"));
    assert_eq!((&seen["CARGO_PKG_NAME"], &seen["MODE"]), (&"fixed".to_owned(), &"test".to_owned()));
    assert_eq!(seen["TRACEPARENT"], "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert!(!seen.contains_key("NOT_SET"));
}

#[tokio::test]
async fn the_program_works_in_its_sessions_folder_which_is_its_home() {
    let bench = Bench::new();
    let seen = seen(&bench, |_| {}, None).await;
    let folder = bench.workspaces().join("session-1");
    for name in ["cwd", "HOME", "HARNESS_WORKSPACE"] {
        assert_eq!(seen[name], folder.to_str().unwrap(), "{name}");
    }
    assert_eq!(
        (&seen["HARNESS_SESSION_ID"], &seen["HARNESS_EPOCH"]),
        (&"session-1".to_owned(), &"7".to_owned())
    );
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn files_stay_for_the_sessions_next_job() {
    let bench = Bench::new();
    let program = bench.sh(r#"echo x >>seen; printf '{"type":"result","output":%s}' $(wc -l <seen)"#);
    for count in ["1", "2"] {
        assert_eq!(bench.end(program.clone(), &MemoryJournal::new()).await.unwrap().as_str(), count);
    }
}

#[tokio::test]
async fn a_workspace_is_never_a_link_to_another() {
    let bench = Bench::new();
    let config = bench.sh("true");
    let harness = bench.build(config);
    std::os::unix::fs::symlink("/", bench.workspaces().join("session-1")).unwrap();
    let ended = harness.run(&mut run(&task(Value::Null), &MemoryJournal::new())).await;
    let failure = harness::testing::failure(ended);
    assert_eq!(failure.code, job::FailureCode::StartFailed, "{failure}");
}
