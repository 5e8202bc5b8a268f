//! Reports what becomes of dead letters: each as it happens, and a summary.

use std::process::ExitCode;

use job::{one_line, shown};
use serde_json::json;

use service::{note, printed};
use tokio_util::sync::CancellationToken;

use crate::cli::progress::Progress;
use crate::dead::{Disposition, Event, Kind, Listener};

/// How many reasons are printed for a bulk; further ones are only counted.
const REASONS: u64 = 20;

/// Prints and counts events.
pub struct Report {
    progress: Progress,
    stop: CancellationToken,
    json: bool,
    /// Nothing is really done.
    dry_run: bool,
    /// Print a line for each letter; otherwise only for the first [`REASONS`] that were kept.
    each: bool,
    redriven: u64,
    returned: u64,
    dropped: u64,
    cleared: u64,
    kept: u64,
    missing: u64,
}

impl Report {
    pub fn new(progress: Progress, stop: CancellationToken, json: bool, dry_run: bool, each: bool) -> Report {
        let (redriven, returned, dropped, cleared, kept, missing) = (0, 0, 0, 0, 0, 0);
        Report { progress, stop, json, dry_run, each, redriven, returned, dropped, cleared, kept, missing }
    }

    fn note(&mut self, kind: Kind, id: &str, disposition: &Disposition) {
        let (count, word) = match disposition {
            Disposition::Redriven(_) => (&mut self.redriven, "redriven"),
            Disposition::Returned(_) => (&mut self.returned, "returned"),
            Disposition::Dropped => (&mut self.dropped, "dropped"),
            Disposition::Cleared => (&mut self.cleared, "cleared"),
            Disposition::Kept(_) => (&mut self.kept, "kept"),
        };
        *count += 1;
        let count = *count;
        let would = if self.dry_run { "would be " } else { "" };
        if self.json {
            let (job_id, queue, reason) = match disposition {
                Disposition::Redriven(job_id) => (Some(job_id), None, None),
                Disposition::Returned(queue) => (None, Some(queue), None),
                Disposition::Kept(reason) => (None, None, Some(reason)),
                Disposition::Dropped | Disposition::Cleared => (None, None, None),
            };
            // In a dry run there is no new job yet.
            let job_id = job_id.filter(|_| !self.dry_run);
            let line = json!({
                "kind": kind.to_string(), "id": id, "fate": word, "dry_run": self.dry_run,
                "redriven_as": job_id, "queue": queue, "reason": reason,
            });
            return self.progress.print(&one_line(line.to_string()));
        }
        match disposition {
            Disposition::Kept(reason) if self.each || count <= REASONS => {
                self.progress.say(&format!("{kind} {id} {would}kept: {}", shown(reason)));
            }
            Disposition::Kept(_) if count == REASONS + 1 => {
                self.progress.say("and others; --json prints the reason for each");
            }
            Disposition::Redriven(job_id) if self.each && !self.dry_run => {
                self.progress.print(&format!("{id} redriven as {job_id}"));
            }
            Disposition::Returned(queue) if self.each => {
                self.progress.print(&format!("{id} {would}returned to {queue}"));
            }
            Disposition::Redriven(_) | Disposition::Dropped if self.each => {
                self.progress.print(&format!("{id} {would}{word}"));
            }
            _ => {}
        }
    }

    /// Ends with a summary.
    pub fn finish(self) -> ExitCode {
        self.progress.finish();
        let would = if self.dry_run { "would be " } else { "" };
        let counts = [
            (self.redriven, "jobs", "redriven"),
            (self.returned, "messages", "returned to their queues"),
            (self.dropped, "letters", "dropped"),
            (self.cleared, "messages of settled jobs", "removed"),
            (self.kept, "letters", "kept"),
        ];
        let text: Vec<String> = counts
            .iter()
            .filter(|(count, ..)| *count > 0)
            .map(|(count, what, done)| format!("{count} {what} {would}{done}"))
            .collect();
        if self.missing == 0 || !text.is_empty() {
            note!("{}", if text.is_empty() { "nothing to do".to_owned() } else { text.join(", ") });
        }
        match (self.missing, self.kept) {
            (0, 0) => ExitCode::SUCCESS,
            (0, _) => ExitCode::from(3),
            _ => ExitCode::FAILURE,
        }
    }
}

impl Listener for Report {
    fn hear(&mut self, event: Event<'_>) {
        match event {
            Event::Settled { kind, id, disposition } => self.note(kind, id, disposition),
            Event::Missing { id, why } => {
                self.missing += 1;
                self.progress.say(&format!("{id}: {why}"));
            }
            Event::Looked(count) => self.progress.advance(count),
        }
    }

    async fn keep_up(&mut self) {
        printed(&self.stop).await;
    }
}
