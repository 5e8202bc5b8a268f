//! A command does not depend on a reader of its output, and does not wait for more input than has come.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use job::{JobId, JobState};
use serde_json::json;
use sqlx::{Connection, PgConnection, Postgres, Transaction};
use tests::{Fleet, autoscaler_command, ended, job, terminate, until};

/// A pipe whose reader is closed.
fn closed() -> Stdio {
    let (_, writer) = std::io::pipe().expect("a pipe");
    OwnedFd::from(writer).into()
}

fn full_disk() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").expect("/dev/full").into()
}

/// Runs a command with these outputs. Returns its exit code and its stderr.
async fn printing(mut command: Command, out: Stdio, err: Stdio) -> (i32, String) {
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    let run = move || command.output();
    let Output { status, stderr, .. } =
        tokio::task::spawn_blocking(run).await.expect("a thread").expect("a process");
    (status.code().unwrap_or_else(|| panic!("{status}")), String::from_utf8(stderr).expect("UTF-8"))
}

#[tokio::test]
async fn every_command_ends_as_ever_when_nobody_reads_it_and_fails_when_it_cannot_be_written() {
    let fleet = Fleet::new().await;
    let [good, bad] = fleet.after_one_success_and_one_failure().await;
    let lines = fleet.folder.path().join("lines");
    std::fs::write(&lines, "{\"session_id\":\"t\",\"agent_id\":\"echo\"}\n".repeat(3)).expect("written");
    let lines = lines.to_string_lossy();
    let producer: [&[&str]; 18] = [
        &["migrate"],
        &["doctor"],
        &["status", &good],
        &["status", &good, "--json"],
        &["wait", &bad, "--json"],
        &["cancel", &good],
        &["sessions", "show", "s"],
        &["sessions", "show", "s", "--json"],
        &["dead", "list"],
        &["dead", "list", "--json"],
        &["dead", "show", &bad],
        &["dead", "redrive", &bad, "--dry-run"],
        &["audit"],
        &["audit", "--json"],
        &["audit", "--watch", "1", "--json"],
        &["enqueue", "--session", "s", "--agent", "echo"],
        &["enqueue", "--file", &lines, "--print-ids"],
        &["revive"],
    ];
    let process = fleet.processes().to_string_lossy().into_owned();
    let autoscaler: [&[&str]; 3] = [
        &["observe"],
        &["once", "--dry-run", "--target", "process", "--process-dir", &process],
        &["once", "--dry-run", "--json", "--target", "process", "--process-dir", &process],
    ];
    let commands = producer.map(|words| (words, fleet.producer_command(words)));
    let commands =
        commands.into_iter().chain(autoscaler.map(|words| (words, fleet.autoscaler_command(words))));
    let trace = concat!(env!("CARGO_MANIFEST_DIR"), "/../ops/traces/burst.csv");
    let simulate: [&[&str]; 2] =
        [&["simulate", "--trace", trace, "--json"], &["simulate", "--trace", trace, "--explain"]];
    let commands = commands.chain(simulate.map(|words| (words, autoscaler_command(words))));
    for (words, command) in commands {
        let again = || {
            let mut same = Command::new(command.get_program());
            same.args(command.get_args()).env_clear();
            same.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
            same
        };
        let endless = words.contains(&"--watch");
        let usual = match endless {
            false => printing(again(), Stdio::null(), Stdio::piped()).await.0,
            true => 0,
        };
        let (code, said) = printing(again(), closed(), Stdio::piped()).await;
        assert_eq!(code, usual, "{words:?}: {said}");
        let (code, _) = printing(again(), closed(), closed()).await;
        assert_eq!(code, usual, "{words:?}, and stderr is not read");
        let (code, said) = printing(again(), full_disk(), Stdio::piped()).await;
        assert_eq!(code, 1, "{words:?}: {said}");
        let report = "not all results could be written to stdout: No space left on device";
        assert!(said.contains(report) && !said.contains("panicked"), "{words:?}: {said}");
        let (code, _) = printing(again(), full_disk(), full_disk()).await;
        assert_eq!(code, 1, "{words:?}");
    }
    for program in [fleet.producer_command(&["--help"]), autoscaler_command(&["--help"])] {
        assert_eq!(printing(program, closed(), Stdio::piped()).await, (0, String::new()));
    }
}

#[tokio::test]
async fn a_bulk_goes_on_when_the_reader_of_its_ids_has_gone() {
    let fleet = Fleet::new().await;
    let file = fleet.folder.path().join("lines");
    std::fs::write(&file, "{\"session_id\":\"s\",\"agent_id\":\"echo\"}\n".repeat(3_000)).expect("written");
    let mut command = fleet.producer_command(&["enqueue", "--print-ids", "--file", &file.to_string_lossy()]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("producer");
    let mut first = String::new();
    let mut ids = BufReader::new(child.stdout.take().expect("stdout"));
    ids.read_line(&mut first).expect("an id");
    first.trim().parse::<JobId>().expect("an id");
    drop(ids);
    let output = tokio::task::spawn_blocking(|| child.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("3000 jobs accepted"), "{said}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 3_000);
}

/// Starts `enqueue --file -` with an open stdin.
fn reads_stdin(fleet: &Fleet) -> Child {
    let mut command = fleet.producer_command(&["enqueue", "--file", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("producer")
}

#[tokio::test]
async fn ids_to_wait_for_are_read_like_lines_and_a_signal_is_heard_meanwhile() {
    let fleet = Fleet::new().await;
    let spec = job("s", "echo", json!(1));
    let ids = format!("\u{feff}{}\r\n\n\tnone\n", spec.job_id);
    let ran = fleet.producer_with_input(&ids, &["wait"]).await;
    let report = "stdin, line 3: job id: got \"none\", expected a UUID of version 7";
    assert!(ran.code == 1 && ran.err.contains(report), "{ran:?}");

    let mut command = fleet.producer_command(&["wait"]);
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("producer");
    let mut stdin = child.stdin.take().expect("stdin");
    // More than the pipe holds: once all of it is written, it is being read.
    let many = format!("{}\n", spec.job_id).repeat(4_000);
    let writing = tokio::task::spawn_blocking(move || stdin.write_all(many.as_bytes()).map(|()| stdin));
    let _stdin = writing.await.unwrap().expect("written");
    terminate(&child);
    assert_eq!(ended(child).await.0, 130);
}

#[tokio::test]
async fn a_line_that_came_is_sent_while_the_pipe_stays_open() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let mut child = reads_stdin(&fleet);
    let mut stdin = child.stdin.take().expect("stdin");
    for n in 0..3 {
        let spec = job("s", "echo", json!(n));
        writeln!(stdin, "{}", job::encode(&spec)).expect("written");
        assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    }
    drop(stdin);
    let (code, said) = ended(child).await;
    assert!(code == 0 && said.contains("3 jobs accepted"), "{code}: {said}");
}

#[tokio::test]
async fn a_signal_ends_a_bulk_after_every_line_that_left_the_pipe() {
    let fleet = Fleet::new().await;
    // Accepting jobs waits for this transaction.
    let mut connection = fleet.database.connect().await;
    let holding = lock_jobs(&mut connection).await;
    let (mut pipe, mut stdin) = std::io::pipe().expect("a pipe");
    let mut command = fleet.producer_command(&["enqueue", "--file", "-"]);
    command.stdin(OwnedFd::from(pipe.try_clone().expect("a pipe"))).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::piped()).spawn().expect("producer");
    drop(command);
    let text: String =
        (0..4_000).map(|n| format!("{}\n", job::encode(&job(&format!("s-{n}"), "echo", json!(n))))).collect();
    // Written page by page, so that the pipe is as full as possible, until far more lines were read than a batch and
    // the lines that wait for the next one.
    let written = Arc::new(AtomicUsize::new(0));
    let (count, all) = (written.clone(), text.clone());
    let writing = tokio::task::spawn_blocking(move || {
        for page in all.as_bytes().chunks(4_096) {
            stdin.write_all(page).expect("written");
            count.fetch_add(page.len(), Ordering::SeqCst);
        }
    });
    let enough = 64 * 1_024 + text.lines().take(600).map(|line| line.len() + 1).sum::<usize>();
    until("it has read ahead", async || (written.load(Ordering::SeqCst) > enough).then_some(())).await;
    terminate(&child);
    let mut stderr = BufReader::new(child.stderr.take().expect("stderr"));
    let mut said = String::new();
    while !said.contains("asked to stop") {
        assert!(stderr.read_line(&mut said).expect("UTF-8") > 0, "{said}");
    }
    holding.rollback().await.expect("unlocked");
    stderr.read_to_string(&mut said).expect("UTF-8");
    let (code, _) = ended(child).await;
    assert_eq!(code, 130, "{said}");
    let reading = move || pipe.read_to_end(&mut Vec::new());
    let (left, ended) = tokio::join!(tokio::task::spawn_blocking(reading), writing);
    ended.expect("all is written");
    let read = text.len() - left.unwrap().expect("read");
    let lines = text[..read].matches('\n').count();
    assert!(lines > 600, "{lines}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, lines as i64, "{said}");
    assert!(said.contains(&format!("{lines} jobs accepted")), "{lines}: {said}");
    assert!(said.contains(&format!("stopped by a signal after line {lines};")), "{lines}: {said}");
}

/// Holds a lock; until it is released, no job is accepted.
async fn lock_jobs(connection: &mut PgConnection) -> Transaction<'_, Postgres> {
    let mut holding = connection.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE harness_jobs IN EXCLUSIVE MODE").execute(&mut *holding).await.expect("locked");
    holding
}

#[tokio::test]
async fn a_signal_after_the_last_line_stops_nothing() {
    let fleet = Fleet::new().await;
    let good = "{\"session_id\":\"s\",\"agent_id\":\"echo\"}\n".repeat(3);
    for (text, expected) in [(good.clone(), 0), (format!("{good}{{\n"), 3)] {
        let file = fleet.folder.path().join("lines");
        std::fs::write(&file, &text).expect("written");
        let mut connection = fleet.database.connect().await;
        let holding = lock_jobs(&mut connection).await;
        let mut command = fleet.producer_command(&["enqueue", "--file", &file.to_string_lossy()]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("producer");
        let waiting = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND wait_event_type = 'Lock'";
        until("the jobs wait", async || (fleet.database.count(waiting).await > 0).then_some(())).await;
        // It is closed once its end was seen.
        let open = || {
            let files = std::fs::read_dir(format!("/proc/{}/fd", child.id())).expect("a process");
            files.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|path| path == file))
        };
        until("all is read", async || (!open()).then_some(())).await;
        terminate(&child);
        holding.rollback().await.expect("unlocked");
        let (code, said) = ended(child).await;
        assert_eq!(code, expected, "{said}");
        assert!(said.contains("3 jobs accepted") && !said.contains("stopped by a signal"), "{said}");
    }
}

#[tokio::test]
async fn a_named_pipe_is_opened_once_and_may_be_waited_for() {
    let fleet = Fleet::new().await;
    let path = fleet.folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&path).status().expect("mkfifo").success());
    let arguments = ["enqueue", "--file", &path.to_string_lossy()].map(str::to_owned);
    let arguments = arguments.each_ref().map(String::as_str);
    for n in 0..12 {
        let writing = write_once(&path, format!("{}\n", job::encode(&job("s", "echo", json!(n)))));
        let (ran, ()) = tokio::join!(fleet.producer(&arguments), writing);
        assert!(ran.code == 0 && ran.err.contains("1 jobs accepted"), "{n}: {ran:?}");
    }
    // Nothing writes to the pipe.
    let mut command = fleet.producer_command(&arguments);
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("producer");
    connected(&fleet).await;
    terminate(&child);
    let (code, said) = ended(child).await;
    assert!(code == 130 && !said.contains("panicked"), "{code}: {said}");
}

/// Waits until a command has connected and goes on to read.
async fn connected(fleet: &Fleet) {
    let connections = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND application_name = 'harness-fleet'";
    let connected = async || (fleet.database.count(connections).await > 0).then_some(());
    until("it has connected", connected).await;
}

/// Writes to a named pipe as soon as a reader opens it.
async fn write_once(path: &Path, text: String) {
    let path = path.to_owned();
    let write = move || {
        OpenOptions::new().write(true).open(path).and_then(|mut pipe| pipe.write_all(text.as_bytes()))
    };
    tokio::task::spawn_blocking(write).await.expect("a thread").expect("a reader");
}

#[tokio::test]
async fn a_line_without_end_is_refused_unread_and_the_next_one_is_sent() {
    let fleet = Fleet::new().await;
    let mut child = reads_stdin(&fleet);
    let stdin = child.stdin.take().expect("stdin");
    let good = job("s", "echo", json!(1));
    let text = job::encode(&good);
    const LONG: usize = 512 << 20;
    let writing = tokio::task::spawn_blocking(move || {
        let mut stdin = stdin;
        let block = vec![b'x'; 1 << 20];
        for _ in 0..LONG >> 20 {
            stdin.write_all(&block).expect("written");
        }
        writeln!(stdin, "\n{text}").expect("written");
        stdin
    });
    let stdin = writing.await.unwrap();
    until("the good line is sent", async || fleet.view(good.job_id).await).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("a process");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let peak_kb: usize = peak.trim().trim_end_matches(" kB").parse().expect("kilobytes");
    assert!(peak_kb < 160 << 10, "{peak_kb} kB");
    drop(stdin);
    let (code, said) = ended(child).await;
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("line 1: longer than 1048576 bytes (MAX_MESSAGE_BYTES)"), "{said}");
    assert!(said.contains("1 jobs accepted") && said.contains("1 lines refused"), "{said}");
}

#[tokio::test]
async fn a_line_is_known_by_its_number_and_refused_in_words_of_its_fields() {
    let fleet = Fleet::new().await;
    let lines: Vec<(Vec<u8>, Option<&str>)> = vec![
        // The byte order mark of some editors, and their line ends.
        (b"\xef\xbb\xbf{\"session_id\":\"s\",\"agent_id\":\"echo\",\"input\":1}\r".to_vec(), None),
        (b"\r".to_vec(), None),
        (
            b"{\"session_id\":\"s\",\"agent_id\":\"echo\",\"input\":\"caf\xe9\"}".to_vec(),
            Some("byte 49 is not UTF-8, expected JSON in UTF-8"),
        ),
        // These do not end a line.
        (
            "{\"session_id\":\"s\",\"agent_id\":\"echo\",\"input\":\"a\u{2028}b\u{2029}c\u{85}d\"}".into(),
            None,
        ),
        (b"{".to_vec(), Some("not JSON: EOF while parsing an object at byte 1")),
        (b"7".to_vec(), Some("got a number, expected a JSON object")),
        (
            b"{\"session_id\":7,\"agent_id\":\"echo\"}".to_vec(),
            Some("session_id: invalid type: integer `7`, expected a string"),
        ),
        (b"{\"session_id\":\"s\"}".to_vec(), Some("agent_id: missing field `agent_id`")),
        (
            b"{\"session_id\":\"s\",\"agent_id\":\"echo\",\"timeout_ms\":\"1\"}".to_vec(),
            Some("timeout_ms: invalid type: string \"1\", expected a whole number from 0"),
        ),
        (
            b"{\"session_id\":\"s\",\"agent_id\":\"echo\",\"job_id\":\"me\"}".to_vec(),
            Some("job_id: got \"me\", expected a UUID of version 7"),
        ),
    ];
    let file = fleet.folder.path().join("lines");
    std::fs::write(&file, lines.iter().map(|(line, _)| &line[..]).collect::<Vec<_>>().join(&b'\n')).unwrap();
    let ran = fleet.producer(&["enqueue", "--file", &file.to_string_lossy()]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    let wrong = lines.iter().enumerate().filter_map(|(at, (_, report))| Some((at + 1, (*report)?)));
    for (number, report) in wrong.clone() {
        assert!(
            ran.err.contains(&format!("line {number}: {report}")),
            "line {number}: {report} is not in {}",
            ran.err
        );
    }
    let summary = format!("2 jobs accepted, 0 accepted before, {} lines refused", wrong.count());
    assert!(ran.err.contains(&summary), "{}", ran.err);
    for foreign in ["line 1 ", "struct", "column", "Given", "u64"] {
        assert!(!ran.err.contains(foreign), "{foreign}: {}", ran.err);
    }
    let kept = fleet.database.texts("SELECT message->>'input' FROM harness_jobs ORDER BY job_id").await;
    assert_eq!(kept, ["1", "a\u{2028}b\u{2029}c\u{85}d"]);
}
