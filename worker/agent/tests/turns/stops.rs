//! A stop ends a model's call at once, and reaches the tools that run: each has the time to end that its table gives it, unless
//! the lease is lost. A checkpoint that is slow takes nothing of that time.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use agent::AgentTools;
use harness::{RunError, Stop, Stopper};
use serde_json::{Value, json};
use tempfile::TempDir;
use tools::{Machine, ToolsConfig};

use crate::kills;
use crate::provider::{Fault, Script, Turn};
use crate::world::{Speaks, World, tls};

/// Notes that it runs, and after SIGTERM takes a moment to note that it ends.
const HOLDS: &str = r#"#!/bin/sh
trap 'sleep 0.2; echo x > "ended-$HARNESS_CALL_KEY"; exit 0' TERM
echo $$ > "begun-$HARNESS_CALL_KEY"
while :; do sleep 0.05; done
"#;

/// A world whose model calls such a tool twice, side by side.
struct Holding {
    world: World,
    dir: TempDir,
}

impl Holding {
    async fn new() -> Holding {
        let call = |id: &str| (id.to_owned(), "hold", "{}".to_owned());
        let script: Script = Arc::new(move |_| Turn::Calls(vec![call("one"), call("other")]));
        let settings = json!({"description": "Holds.", "side_by_side": true, "stop_grace_ms": 60_000});
        Holding::with(script, HOLDS, settings).await
    }

    /// A world whose tool `hold` is this program, with these settings.
    async fn with(script: Script, program: &str, mut settings: Value) -> Holding {
        let mut world = World::on(Speaks::Messages, script).await;
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("hold");
        fs::write(&path, program).expect("a file");
        settings["command"] = json!(["sh", path]);
        let table = json!({"tools": {"hold": settings}});
        let config: ToolsConfig = serde_json::from_value(table).expect("settings of tools");
        let toolset = config.build(&Machine { tls: &tls(), variable: &|_| None });
        let toolset = Arc::new(toolset.unwrap_or_else(|errors| panic!("{errors:?}")));
        world.other_tools = Some(Arc::new(AgentTools::new(toolset, &dir.path().join("workspaces"))));
        Holding { world, dir }
    }

    /// Returns the files of the workspace whose names begin so.
    fn files(&self, name: &str) -> Vec<PathBuf> {
        let workspace = self.dir.path().join("workspaces").join(self.world.task.session_id.as_str());
        let entries = fs::read_dir(workspace).into_iter().flatten().filter_map(Result::ok);
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(name))
            .map(|entry| entry.path())
            .collect()
    }

    /// Runs the job, and stops it once both tools run.
    async fn stopped(&self, stop: Stop) -> RunError {
        let begun = || self.files("begun-").iter().filter(|path| written(path).is_some()).count() == 2;
        let stopping = async {
            until("both tools run", begun).await;
            self.world.stopper.lock().expect("not poisoned").ask(stop);
        };
        let (ended, ()) = tokio::join!(self.world.run(), stopping);
        ended.expect_err("it was stopped")
    }
}

fn written(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'))
}

/// Waits until something is so. No event crosses from another process to this one.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(50);
    while !is_so() {
        assert!(Instant::now() < deadline, "not so in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn each_tool_of_a_run_that_is_stopped_has_its_time_to_end() {
    for stop in [Stop::Drain, Stop::Cancelled, Stop::Timeout, Stop::Interrupted] {
        let holding = Holding::new().await;
        let ended = holding.stopped(stop.clone()).await;
        assert!(matches!(&ended, RunError::Stopped(why) if *why == stop), "{stop:?}: {ended:?}");
        assert_eq!(holding.files("ended-").len(), 2, "{stop:?}");
        assert_eq!(holding.world.provider.asked().len(), 1, "no other call of the model is begun");
    }
}

/// What ends a run before its worker does.
const STOPS: [Stop; 4] = [Stop::Cancelled, Stop::Deadline, Stop::Interrupted, Stop::RolledBack];

#[tokio::test]
async fn a_stop_ends_a_models_call_and_the_wait_for_another_try_at_once() {
    for (stop, fault) in STOPS.iter().flat_map(|stop| [(stop, Fault::Stalls), (stop, Fault::Later)]) {
        let world = World::on(Speaks::Messages, kills::script()).await;
        world.provider.fault(fault);
        let stopping = async {
            until("the provider has the call", || world.provider.faults_left() == 0).await;
            world.stopper.lock().expect("not poisoned").ask(stop.clone());
            Instant::now()
        };
        let (ended, asked_at) = tokio::join!(world.run(), stopping);
        assert!(matches!(&ended, Err(RunError::Stopped(why)) if why == stop), "{stop:?}: {ended:?}");
        assert!(asked_at.elapsed() < Duration::from_secs(5), "{stop:?} {fault:?}");
    }
}

#[tokio::test]
async fn no_tool_begins_after_a_stop_that_came_while_the_model_answered() {
    for stop in STOPS {
        let stopper = Arc::new(OnceLock::<Arc<Mutex<Stopper>>>::new());
        let (asks, why) = (stopper.clone(), stop.clone());
        let script: Script = Arc::new(move |at| {
            asks.get().expect("it runs").lock().expect("not poisoned").ask(why.clone());
            kills::script()(at)
        });
        let world = World::on(Speaks::Messages, script).await;
        stopper.set(world.stop_cell.clone()).expect("once");
        let ended = world.run().await;
        assert!(matches!(&ended, Err(RunError::Stopped(why)) if *why == stop), "{stop:?}: {ended:?}");
        assert!(world.effects.lock().expect("not poisoned").is_empty(), "{stop:?}");
    }
}

#[tokio::test]
async fn the_tools_of_a_run_that_has_lost_its_lease_are_killed_at_once() {
    let holding = Holding::new().await;
    let ended = holding.stopped(Stop::LeaseLost).await;
    assert!(matches!(ended, RunError::Stopped(Stop::LeaseLost)), "{ended:?}");
    let pids: Vec<String> = holding.files("begun-").iter().filter_map(|path| written(path)).collect();
    // What has ended and is not reaped yet has no command line any more.
    let lives =
        |pid: &String| fs::read(format!("/proc/{}/cmdline", pid.trim())).is_ok_and(|line| !line.is_empty());
    until("both are gone", || !pids.iter().any(lives)).await;
    assert!(holding.files("ended-").is_empty());
}

/// Ends at once in its first call, and after a moment, with more than a pipe holds, in its second.
const LOUD: &str = r#"#!/bin/sh
mkdir first 2>/dev/null && exit 0
sleep 0.5; head -c 300000 /dev/zero | tr '\0' x
"#;

#[tokio::test]
async fn a_tool_is_listened_to_while_a_checkpoint_commits() {
    let call = |id: &str| (id.to_owned(), "hold", "{}".to_owned());
    let calls = vec![call("one"), call("other")];
    let script: Script = Arc::new(move |at| match at {
        0 => Turn::Calls(calls.clone()),
        _ => Turn::Says("Done.".to_owned(), "end_turn"),
    });
    let settings = json!({"description": "Holds.", "side_by_side": true, "timeout_ms": 2_000});
    let mut holding = Holding::with(script, LOUD, settings).await;
    holding.world.commit_takes = Duration::from_millis(2_500);
    assert!(holding.world.run().await.is_ok());
    let asked = holding.world.provider.asked();
    assert!(asked[1].1.contains("the output has 300000 bytes"), "{}", asked[1].1);
    assert!(!asked[1].1.contains("took longer"), "{}", asked[1].1);
}
