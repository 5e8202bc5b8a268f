//! The witness: what really ran, as seen from outside the ledger.
//!
//! `chaos witness FILE` is a program for the harness `command`. It appends a line to FILE when it starts, before each
//! iteration, and at its end: `job_id epoch what pid`. All runs of a scenario append to one file, each line with one
//! write. So the order of the lines is the order of the events, and no clock is involved.
//!
//! Two figures are derived from it:
//!
//! * **duplicate starts**: runs that began under an epoch under which their job had begun before, or while an earlier
//!   run of their job continued (it wrote another line afterwards). The ledger lets neither commit anything twice, but
//!   each is wasted work. The program of a paused or cut-off worker lives on for a while, so with those faults the
//!   figure is not 0.
//! * **rerun iterations**: iterations that began more than once, counted beyond their first time. They were in flight
//!   when their worker was lost.

use std::collections::{HashMap, HashSet};
use std::fs::OpenOptions;
use std::io::{Write, stdin};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, getppid};
use serde_json::{Value, json};

/// Runs as the program of a job.
pub fn run(file: &Path) -> anyhow::Result<()> {
    let order: Value = serde_json::from_reader(stdin()).context("reading the job")?;
    let (job, script) = (&order["job"], &order["job"]["input"]);
    let id = job["job_id"].as_str().context("no job_id")?;
    let mut file = OpenOptions::new().create(true).append(true).open(file).context("opening the account")?;
    let mut testify = |what: &str| -> anyhow::Result<()> {
        let line = format!("{id} {} {what} {}\n", job["epoch"], std::process::id());
        file.write_all(line.as_bytes()).context("writing the account")
    };
    testify("start")?;
    if script["kills_worker"] == true {
        kill(Pid::from_raw(getppid().as_raw()), Signal::SIGKILL).context("killing the worker")?;
    }
    let says = script["says"].as_array().context("no says")?;
    let delay = Duration::from_millis(script["delay_ms"].as_u64().unwrap_or(0));
    let progress = &order["session"]["feature_progress"];
    let done = progress[id]["done"].as_u64().unwrap_or(0) as usize;
    // A job of a session begins only after the one before it has ended, so its older notes do not matter.
    let mut notes = progress.as_object().cloned().unwrap_or_default();
    notes.values_mut().for_each(|note| *note = Value::Null);
    for (at, say) in says.iter().enumerate().skip(done) {
        testify(&at.to_string())?;
        std::thread::sleep(delay);
        notes.insert(id.to_owned(), json!({"done": at + 1}));
        let entry = json!({"role": "assistant", "content": say});
        println!("{}", json!({"type": "checkpoint", "context_window": [entry], "feature_progress": notes}));
    }
    let output = match script["unstorable"] == true {
        true => json!("\0"),
        false => json!({"iterations": says.len()}),
    };
    println!("{}", json!({"type": "result", "output": output}));
    testify("end")
}

/// The events in the file.
#[derive(Debug, Default, PartialEq)]
pub struct Account {
    pub starts: u64,
    pub duplicate_starts: u64,
    pub rerun_iterations: u64,
}

impl Account {
    pub fn read(file: &Path) -> anyhow::Result<Account> {
        match file.exists() {
            true => Account::of(&std::fs::read_to_string(file).context("reading the witnesses' account")?),
            false => Ok(Account::default()),
        }
    }

    fn of(text: &str) -> anyhow::Result<Account> {
        // The runs of each job, in the order of their starts.
        let mut runs: HashMap<&str, Vec<Run>> = HashMap::new();
        let mut begun: HashSet<(&str, &str)> = HashSet::new();
        let mut account = Account::default();
        for (at, line) in text.lines().enumerate() {
            let words: Vec<&str> = line.split(' ').collect();
            let &[job, epoch, what, pid] = words.as_slice() else {
                anyhow::bail!("line {} of the witnesses' account is torn: {line}", at + 1);
            };
            let runs = runs.entry(job).or_default();
            match what {
                "start" => {
                    account.starts += 1;
                    runs.push(Run { epoch, pid, first: at, last: at });
                }
                _ => {
                    let run = runs.iter_mut().rev().find(|run| run.epoch == epoch && run.pid == pid);
                    run.with_context(|| format!("line {} of the account has no start: {line}", at + 1))?
                        .last = at;
                    if what != "end" && !begun.insert((job, what)) {
                        account.rerun_iterations += 1;
                    }
                }
            }
        }
        for runs in runs.values() {
            for (at, run) in runs.iter().enumerate() {
                let earlier = &runs[..at];
                let twice = earlier.iter().any(|other| other.epoch == run.epoch || other.last > run.first);
                account.duplicate_starts += u64::from(twice);
            }
        }
        Ok(account)
    }
}

struct Run<'a> {
    epoch: &'a str,
    pid: &'a str,
    /// The run's first line in the file.
    first: usize,
    last: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(lines: &[&str]) -> Account {
        Account::of(&lines.join("\n")).unwrap()
    }

    #[test]
    fn a_run_after_a_cut_off_one_repeats_only_what_was_in_flight() {
        let seen = account(&["a 1 start 7", "a 1 0 7", "a 1 1 7", "a 2 start 8", "a 2 1 8", "a 2 end 8"]);
        assert_eq!(seen, Account { starts: 2, duplicate_starts: 0, rerun_iterations: 1 });
    }

    #[test]
    fn runs_side_by_side_or_under_one_epoch_are_duplicates() {
        let seen =
            account(&["a 1 start 7", "a 2 start 8", "a 1 0 7", "a 2 0 8", "b 3 start 9", "b 3 start 9"]);
        assert_eq!(seen, Account { starts: 4, duplicate_starts: 2, rerun_iterations: 1 });
    }

    #[test]
    fn a_torn_line_is_an_error() {
        assert!(Account::of("a 1 start 7\na 1 ").is_err());
    }
}
