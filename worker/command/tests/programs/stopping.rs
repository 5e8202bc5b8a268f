//! A program ends when it must, with everything it started, and what it saved in time counts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use command::CommandConfig;
use harness::testing::{MemoryJournal, task};
use harness::{RunError, Session, Stop, Stopper};
use job::{JobId, Json};
use serde_json::{Value, json};

use crate::support::{Bench, nothing_is_left_of, processes_of};

/// Says when it is ready, waits for SIGTERM, saves and exits.
const POLITE: &str = "say('event', name='ready')\nwait()\nsay('checkpoint', memory={'saved': True})";
/// Says when it is ready, and ignores SIGTERM.
const STUBBORN: &str =
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay('event', name='ready')\ntime.sleep(60)";

/// Runs a program up to its first event or checkpoint, stops it, and waits for its end.
async fn stopped_at_once(
    bench: &Bench,
    config: CommandConfig,
    stop: Stop,
    journal: &Arc<MemoryJournal>,
) -> (Result<Json, RunError>, Session) {
    let stopper = Stopper::default();
    let task = task(Value::Null);
    let mut run = harness::Run::new(task.clone(), Session::default(), journal.clone(), stopper.signal());
    let harness = bench.build(config);
    let (ended, ()) = tokio::join!(harness.run(&mut run), async {
        journal.reached(1).await;
        stopper.ask(stop);
    });
    nothing_is_left_of(task.job_id).await;
    (ended, run.into_session())
}

#[tokio::test]
async fn a_stopped_program_can_still_checkpoint() {
    for stop in [Stop::Drain, Stop::Cancelled, Stop::Timeout] {
        let bench = Bench::new();
        let (ended, session) =
            stopped_at_once(&bench, bench.python(POLITE), stop.clone(), &MemoryJournal::new()).await;
        assert_eq!(ended, Err(RunError::Stopped(stop)));
        assert_eq!(session.memory["saved"], json!(true));
    }
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_killed_after_the_grace() {
    let bench = Bench::new();
    let config = CommandConfig { stop_grace_ms: 200, ..bench.python(STUBBORN) };
    let start = Instant::now();
    let (ended, _) = stopped_at_once(&bench, config, Stop::Drain, &MemoryJournal::new()).await;
    assert_eq!(ended, Err(RunError::Stopped(Stop::Drain)));
    assert!((Duration::from_millis(200)..Duration::from_secs(5)).contains(&start.elapsed()));
}

#[tokio::test]
async fn a_lost_lease_kills_at_once_and_takes_nothing() {
    let bench = Bench::new();
    let journal = MemoryJournal::new();
    let (ended, session) = stopped_at_once(&bench, bench.python(POLITE), Stop::LeaseLost, &journal).await;
    assert_eq!(ended, Err(RunError::Stopped(Stop::LeaseLost)));
    assert_eq!((journal.deltas(), session), (vec![], Session::default()));
}

#[tokio::test]
async fn a_lease_lost_during_the_grace_or_during_a_commit_ends_it() {
    let bench = Bench::new();
    let saving = "say('event', name='ready')\nsay('checkpoint')\ntime.sleep(60)";
    for (program, slow) in [(STUBBORN, Duration::ZERO), (saving, Duration::from_secs(60))] {
        let journal = MemoryJournal::with(slow, |_| Ok(()));
        let stopper = Stopper::default();
        let task = task(Value::Null);
        let mut run = harness::Run::new(task.clone(), Session::default(), journal.clone(), stopper.signal());
        let harness = bench.build(CommandConfig { stop_grace_ms: 60_000, ..bench.python(program) });
        let start = Instant::now();
        let (ended, ()) = tokio::join!(harness.run(&mut run), async {
            journal.reached(1).await;
            stopper.ask(Stop::Drain);
            tokio::task::yield_now().await;
            stopper.ask(Stop::LeaseLost);
        });
        assert_eq!(ended, Err(RunError::Stopped(Stop::LeaseLost)));
        assert!(start.elapsed() < Duration::from_secs(10));
        nothing_is_left_of(task.job_id).await;
    }
}

#[tokio::test]
async fn work_finished_in_the_grace_counts_for_a_drain_but_not_for_a_cancellation() {
    let finishing = "say('event', name='ready')\nwait()\nsay('result', output='finished')";
    let bench = Bench::new();
    let (ended, _) =
        stopped_at_once(&bench, bench.python(finishing), Stop::Drain, &MemoryJournal::new()).await;
    assert_eq!(ended.unwrap().as_str(), "\"finished\"");
    let (ended, _) =
        stopped_at_once(&bench, bench.python(finishing), Stop::Cancelled, &MemoryJournal::new()).await;
    assert_eq!(ended, Err(RunError::Stopped(Stop::Cancelled)));
}

#[tokio::test]
async fn what_a_program_says_of_its_stop_is_no_failure() {
    for words in ["say('error', message='terminated')", "print('Terminated')", "sys.exit(143)"] {
        let bench = Bench::new();
        let program = format!("say('event', name='ready')\nwait()\n{words}\nsys.exit(1)");
        let (ended, _) =
            stopped_at_once(&bench, bench.python(&program), Stop::Drain, &MemoryJournal::new()).await;
        assert_eq!(ended, Err(RunError::Stopped(Stop::Drain)), "{words}");
    }
}

#[tokio::test]
async fn a_stop_that_was_there_before_starts_nothing() {
    let bench = Bench::new();
    let stopper = Stopper::default();
    stopper.ask(Stop::Drain);
    let mut run =
        harness::Run::new(task(Value::Null), Session::default(), MemoryJournal::new(), stopper.signal());
    let ended = bench.build(bench.sh("touch started")).run(&mut run).await;
    assert_eq!(ended, Err(RunError::Stopped(Stop::Drain)));
    assert!(!bench.workspaces().join("session-1").exists());
}

#[tokio::test]
async fn a_grandchild_dies_with_the_program_and_cannot_hold_up_its_end() {
    let bench = Bench::new();
    // It inherits stdout and stderr, so without the kill both pipes would stay open for a minute.
    let program = "subprocess.Popen(['sleep', '60'])\nsay('result', output=1)";
    let start = Instant::now();
    assert_eq!(bench.end(bench.python(program), &MemoryJournal::new()).await.unwrap().as_str(), "1");
    let stubborn = format!("subprocess.Popen(['sleep', '60'])\n{STUBBORN}");
    let config = CommandConfig { stop_grace_ms: 50, ..bench.python(&stubborn) };
    let (ended, _) = stopped_at_once(&bench, config, Stop::Cancelled, &MemoryJournal::new()).await;
    assert_eq!(ended, Err(RunError::Stopped(Stop::Cancelled)));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[tokio::test]
async fn a_process_that_left_the_group_cannot_hold_up_the_end() {
    let bench = Bench::new();
    let program = "subprocess.Popen(['sleep', '60'], start_new_session=True)\nsay('result', output=1)";
    let start = Instant::now();
    let task = task(Value::Null);
    let harness = bench.build(bench.python(program));
    let ended = harness.run(&mut harness::testing::run(&task, &MemoryJournal::new())).await;
    assert_eq!(ended.unwrap().as_str(), "1");
    assert!(start.elapsed() < Duration::from_secs(5));
    crate::support::kill_all_of(task.job_id);
}

#[tokio::test]
async fn dropping_the_run_kills_the_group() {
    let bench = Bench::new();
    let program = format!("subprocess.Popen(['sleep', '60'])\n{STUBBORN}");
    let harness = bench.build(bench.python(&program));
    let (journal, task) = (MemoryJournal::new(), task(Value::Null));
    let mut run = harness::testing::run(&task, &journal);
    tokio::select! {
        ended = harness.run(&mut run) => panic!("ended: {ended:?}"),
        () = journal.reached(1) => {}
    }
    nothing_is_left_of(task.job_id).await;
}

#[tokio::test]
async fn programs_do_not_disturb_each_other() {
    let bench = Bench::new();
    let harness = bench.build(bench.python("say('result', output=order['job']['input'])"));
    let jobs = (0..24).map(|number| {
        let (task, harness) = (task(json!(number)), harness.clone());
        tokio::spawn(async move {
            let ended = harness.run(&mut harness::testing::run(&task, &MemoryJournal::new())).await;
            (number, ended.unwrap().as_str().parse::<i32>().unwrap())
        })
    });
    for job in jobs.collect::<Vec<_>>() {
        let (asked, answered) = job.await.unwrap();
        assert_eq!(asked, answered);
    }
}

#[test]
fn the_look_for_processes_sees_this_kind_of_process() {
    let job_id = JobId::now();
    let mut child = std::process::Command::new("sleep")
        .arg("60")
        .env("HARNESS_JOB_ID", job_id.to_string())
        .spawn()
        .unwrap();
    assert_eq!(processes_of(job_id).len(), 1);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(processes_of(job_id).len(), 0);
}
