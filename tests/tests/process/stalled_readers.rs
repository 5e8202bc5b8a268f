//! A reader that stalls delays neither a signal nor the end; a reader that is slow loses nothing.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Stdio};

use job::JobId;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tests::{Fleet, ended, terminate, until};

/// A pipe takes that much at a time.
const PAGE: usize = 4_096;

/// Makes a full pipe; its reader stalls as long as it is kept.
fn full() -> (PipeReader, Stdio) {
    let (reader, mut writer) = std::io::pipe().expect("a pipe");
    let has_room = |writer: &std::io::PipeWriter| {
        let mut ready = [PollFd::new(writer.as_fd(), PollFlags::POLLOUT)];
        poll(&mut ready, PollTimeout::ZERO).expect("an answer") > 0
    };
    while has_room(&writer) {
        writer.write_all(&[b'\n'; PAGE]).expect("written");
    }
    (reader, OwnedFd::from(writer).into())
}

/// Waits until a command has printed something.
async fn prints(child: &Child) {
    let tasks = format!("/proc/{}/task", child.id());
    let names =
        || std::fs::read_dir(&tasks).expect("a process").flatten().map(|task| task.path().join("comm"));
    let prints = async || {
        names().any(|name| std::fs::read_to_string(name).is_ok_and(|name| name == "print\n")).then_some(())
    };
    until("it prints", prints).await;
}

/// Writes a file of this many copies of a line.
fn lines(fleet: &Fleet, line: &str, count: usize) -> String {
    let path = fleet.folder.path().join("lines");
    std::fs::write(&path, format!("{line}\n").repeat(count)).expect("written");
    path.to_string_lossy().into_owned()
}

const GOOD: &str = "{\"session_id\":\"s\",\"agent_id\":\"echo\"}";

#[tokio::test]
async fn every_command_hears_a_signal_while_its_reader_stalls() {
    let fleet = Fleet::new().await;
    let [good, bad] = fleet.after_one_success_and_one_failure().await;
    let file = lines(&fleet, GOOD, 3);
    let producer: [&[&str]; 13] = [
        &["migrate"],
        &["doctor"],
        &["status", &good],
        &["wait", &bad, "--json"],
        &["cancel", &good],
        &["sessions", "show", "s"],
        &["dead", "list", "--json"],
        &["dead", "show", &bad],
        &["dead", "redrive", &bad, "--dry-run"],
        &["audit"],
        &["audit", "--watch", "1", "--json"],
        &["enqueue", "--session", "s", "--agent", "echo"],
        &["enqueue", "--file", &file, "--print-ids"],
    ];
    let process = fleet.processes().to_string_lossy().into_owned();
    let autoscaler: [&[&str]; 2] =
        [&["observe"], &["once", "--dry-run", "--target", "process", "--process-dir", &process]];
    let producer = producer.map(|words| (words, fleet.producer_command(words)));
    let autoscaler = autoscaler.map(|words| (words, fleet.autoscaler_command(words)));
    let started = producer.into_iter().chain(autoscaler).map(|(words, mut command)| {
        let (reader, stdout) = full();
        let child = command.stdout(stdout).stderr(Stdio::piped()).spawn().expect("a process");
        (words, reader, child)
    });
    let started: Vec<_> = started.collect();
    for (_, _, child) in &started {
        prints(child).await;
        terminate(child);
    }
    for (words, _reader, child) in started {
        let (code, said) = ended(child).await;
        let text = "not all results could be written to stdout: stopped by a signal";
        assert!(code == 130 && said.contains(text), "{words:?}: {code}: {said}");
    }
}

/// Starts `enqueue --print-ids` with these lines and does not read the ids. Waits until more jobs are accepted than the
/// pipe holds ids.
async fn holding_up(fleet: &Fleet, count: usize) -> (Child, PipeReader) {
    let file = lines(fleet, GOOD, count);
    let mut command = fleet.producer_command(&["enqueue", "--print-ids", "--file", &file]);
    let (mut ids, stdout) = full();
    // There is room for one page: a busy machine takes long to accept jobs for the 64 KiB of a pipe.
    ids.read_exact(&mut [0; PAGE]).expect("what fills it");
    let child = command.stdout(stdout).stderr(Stdio::piped()).spawn().expect("producer");
    let accepted = async || {
        let jobs = fleet.database.count("SELECT count(*) FROM harness_jobs").await;
        (jobs * (JobId::now().to_string().len() as i64 + 1) > PAGE as i64).then_some(())
    };
    until("more are accepted than the pipe holds", accepted).await;
    (child, ids)
}

/// The ids behind what has filled the pipe.
fn printed(ids: PipeReader) -> impl Iterator<Item = JobId> {
    let lines = BufReader::new(ids).lines().map(|line| line.expect("UTF-8"));
    lines.filter(|line| !line.is_empty()).map(|line| line.parse().expect("an id"))
}

#[tokio::test]
async fn a_bulk_whose_reader_stalls_ends_after_a_signal_with_its_summary() {
    let fleet = Fleet::new().await;
    let (child, ids) = holding_up(&fleet, 8_000).await;
    terminate(&child);
    let (code, said) = ended(child).await;
    let accepted = fleet.database.count("SELECT count(*) FROM harness_jobs").await;
    assert_eq!(code, 130, "{said}");
    assert!(accepted < 8_000 && said.contains(&format!("{accepted} jobs accepted")), "{accepted}: {said}");
    assert!(said.contains(&format!("stopped by a signal after line {accepted};")), "{accepted}: {said}");
    assert!(said.contains("not all results could be written to stdout: stopped by a signal"), "{said}");
    printed(ids).next().expect("an id");
}

#[tokio::test]
async fn a_slow_reader_of_ids_slows_a_bulk_and_loses_none() {
    let fleet = Fleet::new().await;
    let (child, ids) = holding_up(&fleet, 4_000).await;
    let read = move || printed(ids).collect::<HashSet<JobId>>();
    let ids = tokio::task::spawn_blocking(read).await.expect("a thread");
    let (code, said) = ended(child).await;
    assert!(code == 0 && said.contains("4000 jobs accepted"), "{code}: {said}");
    assert_eq!(ids.len(), 4_000);
}

#[tokio::test]
async fn a_reader_of_errors_that_stalls_holds_up_no_signal() {
    let fleet = Fleet::new().await;
    // Far more than is read ahead.
    let file = lines(&fleet, "{", 100_000);
    let mut command = fleet.producer_command(&["enqueue", "--file", &file]);
    let (_reader, stderr) = full();
    let child = command.stdout(Stdio::null()).stderr(stderr).spawn().expect("producer");
    prints(&child).await;
    terminate(&child);
    assert_eq!(ended(child).await.0, 130);
}
