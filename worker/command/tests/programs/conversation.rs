//! A program that keeps to the contract is understood.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use harness::testing::{MemoryJournal, assert_failure, failure, run, task};
use harness::{Delta, Event, Run, Session, Stop, Stopper, Usage};
use job::{FailureCode, Json, Usd};
use serde_json::{Value, json};

use crate::support::Bench;

fn usage(dollars: f64, input_tokens: u64, output_tokens: u64) -> Usage {
    Usage { cost: Usd::from_dollars(dollars).unwrap(), input_tokens, output_tokens }
}

#[tokio::test]
async fn checkpoints_events_and_the_result_arrive_in_order() {
    let bench = Bench::new();
    let program = bench.python(
        "say('checkpoint', memory={'a': 1}, context_window=['x'], cost_usd=0.5, input_tokens=1)\n\
         say('event', name='half', data={'percent': 50})\n\
         say('checkpoint', memory={'a': None, 'b': 2}, feature_progress={'p': 1}, iterations=3)\n\
         say('checkpoint', context_window=['y'], replace_context=True)\n\
         say('result', output={'done': True})",
    );
    let (task, journal) = (task(Value::Null), MemoryJournal::new());
    let mut run = run(&task, &journal);
    let output = bench.build(program).run(&mut run).await.unwrap();
    assert_eq!(output.as_str(), r#"{"done": true}"#);
    assert_eq!(journal.deltas().len(), 3);
    assert_eq!(journal.events(), [Event::new("half", json!({"percent": 50}))]);

    let session = run.into_session();
    assert_eq!(Value::Object(session.memory.clone()), json!({"b": 2}));
    assert_eq!(session.context_window, [Json::parse(r#""y""#).unwrap()]);
    assert_eq!((session.iteration_count, session.usage), (5, usage(0.5, 1, 0)));
    let mut folded = Session::default();
    journal.deltas().iter().for_each(|delta| folded.apply(delta));
    assert_eq!(folded, session);
}

#[tokio::test]
async fn the_program_gets_everything_about_its_job() {
    let bench = Bench::new();
    let program = bench.python("order['eof'] = sys.stdin.read() == ''\nsay('result', output=order)");
    let task = task(json!({"question": "6 × 7\nor so"}));
    let mut session = Session { iteration_count: 9, usage: usage(1.25, 3, 4), ..Session::default() };
    session.memory.insert("name".to_owned(), json!("Ada"));
    let mut run = Run::new(task.clone(), session, MemoryJournal::new(), Stopper::default().signal());
    let output = bench.build(program).run(&mut run).await.unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(output.as_str()).unwrap(),
        json!({
            "protocol": "harness.command.v1",
            "job": {"job_id": task.job_id, "tenant": "default", "session_id": "session-1", "agent_id": "agent-1",
                    "user_id": "somebody", "labels": {}, "input": {"question": "6 × 7\nor so"}, "attempt": 1, "epoch": 7},
            "session": {"memory": {"name": "Ada"}, "context_window": [], "feature_progress": {},
                        "iteration_count": 9, "cost_usd": 1.25, "input_tokens": 3, "output_tokens": 4},
            "workspace": bench.workspaces().join("session-1"),
            "eof": true,
        })
    );
}

#[tokio::test]
async fn a_program_that_talks_before_it_listens_and_one_that_never_listens_are_fine() {
    let bench = Bench::new();
    let big = json!("x".repeat(900_000));
    for program in [
        r#"head -c 200000 /dev/zero | tr '\0' ' '; echo; cat >/dev/null; echo '{"type":"result"}'"#,
        r#"echo '{"type":"result"}'"#,
    ] {
        let task = task(big.clone());
        let ended = bench.build(bench.sh(program)).run(&mut run(&task, &MemoryJournal::new())).await;
        assert_eq!(ended.unwrap().as_str(), "null");
    }
}

#[tokio::test]
async fn a_result_without_a_newline_counts() {
    let bench = Bench::new();
    let ended = bench.end(bench.sh(r#"printf '{"type":"result","output":1}'"#), &MemoryJournal::new()).await;
    assert_eq!(ended.unwrap().as_str(), "1");
}

#[tokio::test]
async fn cost_goes_into_the_next_checkpoint_or_into_a_last_one_however_it_ends() {
    let bench = Bench::new();
    let lines = "say('cost', cost_usd=0.1, input_tokens=5)\n\
                 say('cost', cost_usd=0.2)\n\
                 say('checkpoint', cost_usd=0.4, output_tokens=6)\n\
                 say('cost', cost_usd=0.8)\n";
    for (end, succeeds) in [
        ("say('result')", true),
        ("say('error', message='no')", false),
        ("sys.exit(3)", false),
        ("print('garbage')", false),
    ] {
        let journal = MemoryJournal::new();
        let ended = bench.end(bench.python(&format!("{lines}{end}")), &journal).await;
        assert_eq!(ended.is_ok(), succeeds, "{end}");
        let used: Vec<_> = journal.deltas().iter().map(|delta| (delta.iterations, delta.usage)).collect();
        assert_eq!(used, [(1, usage(0.7, 5, 6)), (0, usage(0.8, 0, 0))], "{end}");
    }
}

#[tokio::test]
async fn an_error_line_is_the_failure_as_the_program_writes_it() {
    let bench = Bench::new();
    let failure = bench.failure(bench.python("say('error', message='no such file', retryable=False)")).await;
    assert_failure(&failure, FailureCode::HarnessError, false, "no such file");
    let failure =
        bench.failure(bench.python("say('error', message='try later', retryable=True); sys.exit(1)")).await;
    assert_failure(&failure, FailureCode::HarnessError, true, "try later");
}

#[tokio::test]
async fn after_the_result_neither_further_lines_nor_the_exit_code_count() {
    let bench = Bench::new();
    let journal = MemoryJournal::new();
    let program =
        bench.python("say('result', output=1)\nsay('checkpoint')\nprint('x' * 300000)\nsys.exit(9)");
    assert_eq!(bench.end(program, &journal).await.unwrap().as_str(), "1");
    assert_eq!(journal.deltas(), []);
}

#[tokio::test]
async fn a_program_that_does_not_exit_after_its_result_is_killed() {
    let bench = Bench::new();
    let mut program = bench.python("say('result', output=1)\ntime.sleep(60)");
    program.stop_grace_ms = 100;
    assert_eq!(bench.end(program, &MemoryJournal::new()).await.unwrap().as_str(), "1");
}

#[tokio::test]
async fn a_program_waits_while_a_checkpoint_is_committed() {
    let bench = Bench::new();
    // Each checkpoint is larger than a pipe, so the program cannot be two ahead of what is durable.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (path, noted) = (bench.dir.path().join("sent"), seen.clone());
    let program = bench.python(&format!(
        "for at in range(6):\n    open({path:?}, 'w').write(str(at))\n    say('checkpoint', context_window=['x' * 200000])\n\
         say('result')"
    ));
    let journal = MemoryJournal::with(Duration::from_millis(20), move |before| {
        let sent: usize = std::fs::read_to_string(&path).unwrap().parse().unwrap_or(before);
        noted.lock().unwrap().push(sent.saturating_sub(before));
        Ok(())
    });
    bench.end(program, &journal).await.unwrap();
    let ahead = seen.lock().unwrap().clone();
    assert!(ahead.len() == 6 && ahead.iter().all(|ahead| *ahead <= 1), "{ahead:?}");
}

#[tokio::test]
async fn a_slow_journal_is_not_the_programs_silence() {
    let bench = Bench::new();
    let mut program = bench.sh(r#"echo '{"type":"checkpoint"}'; echo '{"type":"result"}'"#);
    program.idle_timeout_ms = 1_000;
    let journal = MemoryJournal::with(Duration::from_millis(1_500), |_| Ok(()));
    bench.end(program, &journal).await.unwrap();
}

#[tokio::test]
async fn a_refused_checkpoint_ends_the_run_with_the_journals_reason() {
    let bench = Bench::new();
    let lines = "say('checkpoint')\nsay('checkpoint')\nsay('cost', cost_usd=1)\ntime.sleep(60)";
    for stop in [Stop::Cancelled, Stop::LeaseLost] {
        let refusal = stop.clone();
        let journal =
            MemoryJournal::with(
                Duration::ZERO,
                move |before| if before == 1 { Err(refusal.clone()) } else { Ok(()) },
            );
        let ended = bench.end(bench.python(lines), &journal).await;
        assert_eq!(ended, Err(harness::RunError::Stopped(stop)));
        assert_eq!(journal.deltas().len(), 1);
    }
    let journal = MemoryJournal::with(Duration::ZERO, |_| Err(Stop::Unstorable("memory: no".to_owned())));
    let failure = failure(bench.end(bench.python(lines), &journal).await);
    assert_failure(&failure, FailureCode::Unstorable, false, "stdout line 1: memory: no");
}

#[tokio::test]
async fn an_empty_checkpoint_is_not_written() {
    let bench = Bench::new();
    let journal = MemoryJournal::new();
    bench.end(bench.python("say('checkpoint', iterations=0)\nsay('result')"), &journal).await.unwrap();
    assert_eq!(journal.deltas(), Vec::<Delta>::new());
}
