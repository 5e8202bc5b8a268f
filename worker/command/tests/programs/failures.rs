//! Every way to go wrong ends as a failure that says what happened, and whether another attempt could help.

use command::CommandConfig;
use harness::testing::{MemoryJournal, assert_failure};
use harness::{RunError, Shortage};
use job::FailureCode;

use crate::support::Bench;

#[tokio::test]
async fn garbage_on_stdout_is_quoted_with_its_line() {
    let bench = Bench::new();
    let program =
        bench.python("say('checkpoint')\nprint('Loading model weights', flush=True)\ntime.sleep(60)");
    let failure = bench.failure(program).await;
    assert_failure(&failure, FailureCode::Protocol, false, "stdout line 2: expected a JSON object");
    assert_failure(&failure, FailureCode::Protocol, false, "\"Loading model weights\"");
}

#[tokio::test]
async fn an_unknown_type_and_a_wrong_field_are_named() {
    let bench = Bench::new();
    let failure = bench.failure(bench.python("say('chekpoint')\ntime.sleep(60)")).await;
    assert_failure(&failure, FailureCode::Protocol, false, "type: got \"chekpoint\"");
    let failure = bench.failure(bench.python("say('checkpoint', cost_usd='a lot')\ntime.sleep(60)")).await;
    assert_failure(&failure, FailureCode::Protocol, false, "checkpoint.cost_usd: invalid type: string");
}

#[tokio::test]
async fn what_postgres_cannot_hold_is_refused_by_its_field() {
    let bench = Bench::new();
    let journal = MemoryJournal::new();
    let program = bench.python("say('checkpoint', memory={'note': 'a\\0b'})\ntime.sleep(60)");
    let failure = harness::testing::failure(bench.end(program, &journal).await);
    assert_failure(&failure, FailureCode::Unstorable, false, "stdout line 1: memory.note: a string contains");
    assert_eq!(journal.deltas(), []);
    let failure = bench.failure(bench.python("say('result', output=['\\ud800'])")).await;
    assert_failure(&failure, FailureCode::Unstorable, false, "output[0]: ");
}

#[tokio::test]
async fn a_line_of_ten_megabytes_is_refused_at_the_limit() {
    let bench = Bench::new();
    let failure = bench.failure(bench.python("print('x' * 10_000_000, flush=True)\ntime.sleep(60)")).await;
    assert_failure(
        &failure,
        FailureCode::OutputLimit,
        false,
        "line 1 is longer than max_line_bytes = 1048576",
    );
}

#[tokio::test]
async fn output_without_end_is_cut_at_the_limit() {
    let bench = Bench::new();
    let config = CommandConfig {
        max_output_bytes: 200_000,
        max_line_bytes: 100_000,
        ..bench.sh(r#"exec yes '{"type":"event","name":"again"}'"#)
    };
    let failure = bench.failure(config).await;
    assert_failure(&failure, FailureCode::OutputLimit, false, "max_output_bytes = 200000");
}

#[tokio::test]
async fn a_checkpoint_over_four_mebibytes_is_refused() {
    let bench = Bench::new();
    let mut program = bench.python("say('checkpoint', context_window=['x' * 5_000_000])\ntime.sleep(60)");
    program.max_line_bytes = 8 * 1024 * 1024;
    let failure = bench.failure(program).await;
    assert_failure(&failure, FailureCode::OutputLimit, false, "stdout line 1: got a delta of 5000");
}

#[tokio::test]
async fn a_crash_reports_the_exit_code_and_the_last_of_stderr() {
    let bench = Bench::new();
    let journal = MemoryJournal::new();
    let program =
        bench.python("say('checkpoint')\nprint('x' * 9000, file=sys.stderr)\nraise ValueError('odd')");
    let failure = harness::testing::failure(bench.end(program, &journal).await);
    assert_failure(
        &failure,
        FailureCode::Crashed,
        true,
        "the program ended with exit code 1 before a result",
    );
    assert!(failure.message.ends_with("ValueError: odd"), "{failure}");
    assert_eq!(journal.deltas().len(), 1);
}

#[tokio::test]
async fn a_death_by_signal_is_named_by_the_signal() {
    let bench = Bench::new();
    let failure = bench.failure(bench.sh("kill -SEGV $$")).await;
    assert_failure(&failure, FailureCode::Crashed, true, "was ended by signal 11 (SIGSEGV)");
    let failure = bench.failure(bench.sh("kill -KILL $$")).await;
    assert_failure(&failure, FailureCode::Crashed, true, "perhaps the machine ran out of memory");
    // A real-time signal has no name.
    let failure = bench.failure(bench.sh("kill -40 $$")).await;
    assert_failure(&failure, FailureCode::Crashed, true, "was ended by signal 40");
}

#[tokio::test]
async fn a_line_torn_by_a_crash_is_a_crash_and_otherwise_a_broken_line() {
    let bench = Bench::new();
    let failure = bench.failure(bench.sh(r#"printf '{"type":"res'; exit 7"#)).await;
    assert_failure(&failure, FailureCode::Crashed, true, "exit code 7");
    let failure = bench.failure(bench.sh(r#"printf '{"type":"res'"#)).await;
    assert_failure(&failure, FailureCode::Protocol, false, "stdout line 1: expected a JSON object");
}

#[tokio::test]
async fn an_end_without_a_last_word_is_a_broken_contract() {
    let bench = Bench::new();
    let failure = bench.failure(bench.sh("echo thinking >&2")).await;
    assert_failure(
        &failure,
        FailureCode::Protocol,
        false,
        "ended with exit code 0, but without a line of type",
    );
    assert!(failure.message.ends_with("thinking"), "{failure}");
}

#[tokio::test]
async fn closing_stdout_without_a_last_word_is_a_broken_contract_too() {
    let bench = Bench::new();
    let config = CommandConfig { stop_grace_ms: 100, ..bench.sh("exec >&-; sleep 60") };
    let failure = bench.failure(config).await;
    assert_failure(&failure, FailureCode::Protocol, false, "closed stdout");
}

#[tokio::test]
async fn silence_and_the_wall_clock_have_limits() {
    let bench = Bench::new();
    let config = CommandConfig { idle_timeout_ms: 150, ..bench.sh("exec sleep 60") };
    let failure = bench.failure(config).await;
    assert_failure(&failure, FailureCode::IdleTimeout, true, "longer than idle_timeout_ms = 150");

    let talkative = "while True:\n    say('event', name='tick')\n    time.sleep(0.05)";
    let config = CommandConfig { idle_timeout_ms: 5_000, timeout_ms: 300, ..bench.python(talkative) };
    let failure = bench.failure(config).await;
    assert_failure(&failure, FailureCode::Timeout, true, "longer than timeout_ms = 300");
}

#[tokio::test]
async fn a_limit_of_time_leaves_the_grace_for_a_checkpoint() {
    let bench = Bench::new();
    let journal = MemoryJournal::new();
    let program = r#"trap 'echo "{\"type\":\"checkpoint\"}"; exit 0' TERM; sleep 60 & wait"#;
    let config = CommandConfig { idle_timeout_ms: 1_000, ..bench.sh(program) };
    let failure = harness::testing::failure(bench.end(config, &journal).await);
    assert_failure(&failure, FailureCode::IdleTimeout, true, "idle_timeout_ms");
    assert_eq!(journal.deltas().len(), 1);
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_named() {
    let bench = Bench::new();
    let failure = bench.failure(bench.program("#!/no/such/interpreter\n")).await;
    assert_failure(&failure, FailureCode::StartFailed, true, "No such file or directory");

    let harness = bench.build(bench.sh("true"));
    std::fs::remove_dir_all(bench.workspaces()).unwrap();
    std::fs::write(bench.workspaces(), "a file where the folder was").unwrap();
    let task = harness::testing::task(serde_json::Value::Null);
    let ended = harness.run(&mut harness::testing::run(&task, &MemoryJournal::new())).await;
    let Err(RunError::Short(Shortage::Workspace(problem))) = ended else { panic!("{ended:?}") };
    assert!(problem.starts_with("the workspace of session session-1, "), "{problem}");
}

#[tokio::test]
async fn memory_has_a_limit() {
    let bench = Bench::new();
    let program = "block = bytearray(600 * 1024 * 1024)\nsay('result')";
    assert!(bench.end(bench.python(program), &MemoryJournal::new()).await.is_ok());
    let config = CommandConfig { memory_limit_mb: Some(256), ..bench.python(program) };
    let failure = bench.failure(config).await;
    assert_failure(&failure, FailureCode::Crashed, true, "limited to memory_limit_mb = 256");
    assert!(failure.message.ends_with("MemoryError"), "{failure}");
}

#[tokio::test]
async fn stderr_without_end_neither_blocks_nor_grows() {
    let bench = Bench::new();
    let program = "for _ in range(300):\n    sys.stderr.write('x' * 10_000)\nsay('result')";
    assert!(bench.end(bench.python(program), &MemoryJournal::new()).await.is_ok());
}
