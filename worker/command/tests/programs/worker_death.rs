//! When the worker is killed, its programs die too. When only one of its threads ends, they do not.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use harness::testing::{MemoryJournal, run, task};
use job::JobId;
use serde_json::Value;

use crate::support::{Bench, nothing_is_left_of, processes_of};

/// The worker of the test below, and not a test itself: it runs only when that test starts it, and never to its end.
#[tokio::test]
#[ignore = "the process that the next test kills"]
async fn worker_to_be_killed() {
    let Ok(job_id) = std::env::var("TEST_JOB_ID") else { return };
    let bench = Bench::new();
    let mut task = task(Value::Null);
    task.job_id = job_id.parse().unwrap();
    let program = bench.python(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nsubprocess.Popen(['sleep', '60'])\ntime.sleep(60)",
    );
    let ended = bench.build(program).run(&mut run(&task, &MemoryJournal::new())).await;
    panic!("ended: {ended:?}");
}

#[tokio::test]
async fn a_killed_worker_takes_its_program_and_what_that_started_with_it() {
    let job_id = JobId::now();
    let mut worker = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "worker_death::worker_to_be_killed", "--ignored"])
        .env("TEST_JOB_ID", job_id.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // No event crosses from that process to this one.
    let deadline = Instant::now() + Duration::from_secs(10);
    while processes_of(job_id).len() < 2 {
        assert!(Instant::now() < deadline, "no program was started, or not its child");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    worker.kill().unwrap();
    worker.wait().unwrap();
    nothing_is_left_of(job_id).await;
}

#[test]
fn a_program_outlives_the_thread_that_asked_for_it() {
    let bench = Bench::new();
    let harness =
        bench.build(bench.python("say('event', name='ready')\ntime.sleep(0.3)\nsay('result', output=1)"));
    let journal = MemoryJournal::new();
    let task = task(Value::Null);
    let mut run = run(&task, &journal);
    // The first polls, which start the program, happen on a thread that then ends. The rest happen on this one.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut running = Box::pin(harness.run(&mut run));
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                runtime.block_on(async {
                    tokio::select! {
                        ended = &mut running => panic!("ended: {ended:?}"),
                        () = journal.reached(1) => {}
                    }
                });
            })
            .join()
            .unwrap();
    });
    assert_eq!(runtime.block_on(running).unwrap().as_str(), "1");
}
