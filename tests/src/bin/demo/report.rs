//! The end: a table, the verdict, and where to look next. It goes to stdout.

use std::io::stdout;
use std::path::Path;

use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use job::Usd;

use crate::check::Findings;
use crate::crash::Crash;
use crate::display::{GREEN, RED, bold};
use crate::workload::Workload;

/// How many problems are printed in full.
const TOLD: usize = 10;

/// What is known at the end.
pub struct Report<'a> {
    pub workload: &'a Workload,
    pub findings: &'a Findings,
    pub crash: Option<&'a Crash>,
    /// Reasons of this run's dead letters.
    pub dead_letters: &'a [String],
    pub seconds: f64,
    pub lease_s: u64,
    pub folder: &'a Path,
    pub producer: &'a Path,
}

impl Report<'_> {
    pub fn print(&self) {
        println!("\n{}", self.table());
        match self.findings.problems.as_slice() {
            [] => {
                println!(
                    "{}",
                    bold(&stdout(), GREEN, "Nothing lost, nothing committed twice, nothing paid twice.")
                );
                self.print_ways_on();
            }
            problems => {
                println!("{}", bold(&stdout(), RED, "The ledger is not as declared:"));
                problems.iter().take(TOLD).for_each(|problem| println!("  {problem}"));
                if problems.len() > TOLD {
                    println!("  … and {} more", problems.len() - TOLD);
                }
                println!(
                    "This run's jobs and queue stay as they are; its logs are in {}",
                    self.folder.display()
                );
            }
        }
    }

    fn table(&self) -> Table {
        let found = self.findings;
        let declared = self.workload;
        let cost: Usd = declared.jobs().map(|job| job.cost).sum();
        let tokens: u64 = declared.jobs().map(|job| job.input_tokens + job.output_tokens).sum();
        let (jobs, strays) = (declared.job_ids().len(), declared.strays.len());
        let ended = found.succeeded + found.failed + found.cancelled;
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
        table.set_header(["", "declared", "in the ledger", ""]);
        for at in [1, 2] {
            table.column_mut(at).expect("there are four").set_cell_alignment(CellAlignment::Right);
        }
        let mut row = |what: &str, declared: String, found: String, note: String| {
            table.add_row([what.to_owned(), declared, found, note]);
        };
        let states = format!("{} succeeded, {} failed ({strays} expected)", found.succeeded, found.failed);
        row("jobs ended", count(jobs as u64), count(ended as u64), states);
        let open = format!("{} lost, {} unfinished", found.lost, found.unfinished);
        row("  not ended", count(0), count((found.lost + found.unfinished) as u64), open);
        let whole = "hold every iteration once, in order".to_owned();
        row("sessions", count(declared.sessions.len() as u64), count(found.whole_sessions as u64), whole);
        let twice = format!("{} committed twice", found.iterations_twice);
        row("iterations", count(declared.iterations()), count(found.iterations), twice);
        row("cost", cost.to_string(), found.cost.to_string(), format!("{} paid twice", found.cost_twice));
        row("tokens", count(tokens), count(found.tokens), "read and written".to_owned());
        let letters =
            self.dead_letters.first().map(|reason| reason.trim_start_matches("unknown_agent: ").to_owned());
        let found_letters = count(self.dead_letters.len() as u64);
        row("dead letters", count(strays as u64), found_letters, letters.unwrap_or_default());

        if let Some(crash) = self.crash {
            let held = count(crash.held.len() as u64);
            let killed =
                format!("jobs ran on worker {}, {:.1} s after the enqueue", crash.worker, crash.after_s);
            row("SIGKILL", String::new(), held.clone(), killed);
            let rightly = "resumed exactly where the ledger was".to_owned();
            row("  resumed", held, count(found.resumed_rightly as u64), rightly);
            if let Some((first_s, last_s)) = crash.recoveries_s() {
                let lease =
                    format!("after the kill; the lease is {} s from the last heartbeat", self.lease_s);
                row("  recovery", String::new(), format!("{first_s:.2} – {last_s:.2} s"), lease);
            }
            let flight = "iterations were cut off, repeated, and paid once".to_owned();
            row("  in flight", String::new(), count(self.in_flight(crash)), flight);
            let known = ended + found.unfinished;
            let again = found.attempts.saturating_sub(known as u64);
            let note = format!("{known} jobs, {again} repeated ({} after the kill)", crash.resumed.len());
            row("attempts", String::new(), count(found.attempts), note);
        }
        let rate = format!("{:.1} jobs/s; the scripts spend it waiting", ended as f64 / self.seconds);
        row("time", String::new(), format!("{:.1} s", self.seconds), rate);
        table
    }

    /// A held job with iterations left had one of them in flight.
    fn in_flight(&self, crash: &Crash) -> u64 {
        let left = |job: &&crate::workload::Job| {
            let held = crash.held_job(job.spec.job_id);
            held.is_some_and(|held| held.done.unsigned_abs() < job.iterations())
        };
        self.workload.jobs().filter(left).count() as u64
    }

    fn print_ways_on(&self) {
        let producer = self.producer.display();
        let held = self.crash.and_then(|crash| crash.held.first());
        let session = held.map_or("SESSION", |held| held.session_id.as_str());
        let job = held.map_or("JOB".to_owned(), |held| held.job_id.to_string());
        println!(
            "\nTo look further (this run stays in the ledger, its logs are in {}):\n",
            self.folder.display()
        );
        for (what, command) in [
            ("a lasting fleet", "make up; eval \"$(ops/dev/services env)\"".to_owned()),
            ("a session", format!("{producer} sessions show {session}")),
            ("a job", format!("{producer} status {job}")),
            ("dead letters", format!("{producer} dead list")),
            ("everything else", format!("{producer} --help")),
            ("the end", "make down".to_owned()),
        ] {
            println!("  {what:<17} {command}");
        }
    }
}

/// Formats a number with blanks between thousands.
fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}
