//! The crash: which worker was killed, which jobs it held, and when each of them resumed elsewhere.

use job::JobId;

use crate::ledger::{Held, LedgerReader, Resumed};
use crate::workers::Worker;

/// The kill of a worker, and what followed.
pub struct Crash {
    pub worker: char,
    pub pid: u32,
    /// Seconds since the enqueue.
    pub after_s: f64,
    /// Unix time, by Postgres's clock.
    at_s: f64,
    pub held: Vec<Held>,
    pub resumed: Vec<Resumed>,
}

impl Crash {
    /// Kills the worker. What it held is known a moment later, from [`Crash::look`].
    pub async fn cause(
        worker: &mut Worker,
        ledger: &mut LedgerReader,
        after_s: f64,
    ) -> anyhow::Result<Crash> {
        let at_s = ledger.now_s().await?;
        worker.kill().await?;
        // What the worker had sent to Postgres is soon committed or gone; its lease lasts far longer than that.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let held = ledger.held(worker.name).await?;
        Ok(Crash { worker: worker.name, pid: worker.pid, after_s, at_s, held, resumed: Vec::new() })
    }

    /// Looks for jobs that have resumed since the last look. Returns how many.
    pub async fn look(&mut self, ledger: &mut LedgerReader) -> anyhow::Result<usize> {
        let waiting: Vec<&Held> =
            self.held.iter().filter(|held| self.resumption(held.job_id).is_none()).collect();
        if waiting.is_empty() {
            return Ok(0);
        }
        let resumed = ledger.resumed(&waiting, self.worker).await?;
        let count = resumed.len();
        self.resumed.extend(resumed);
        Ok(count)
    }

    pub fn all_resumed(&self) -> bool {
        self.resumed.len() == self.held.len()
    }

    pub fn held_in(&self, session_id: &str) -> Option<&Held> {
        self.held.iter().find(|held| held.session_id == session_id)
    }

    pub fn held_job(&self, job_id: JobId) -> Option<&Held> {
        self.held.iter().find(|held| held.job_id == job_id)
    }

    pub fn resumption(&self, job_id: JobId) -> Option<&Resumed> {
        self.resumed.iter().find(|resumed| resumed.job_id == job_id)
    }

    /// Seconds from the kill until this job ran again.
    pub fn recovery_s(&self, resumed: &Resumed) -> f64 {
        (resumed.at_s - self.at_s).max(0.0)
    }

    /// The first and the last recovery, in seconds.
    pub fn recoveries_s(&self) -> Option<(f64, f64)> {
        let all = self.resumed.iter().map(|resumed| self.recovery_s(resumed));
        let first = all.clone().min_by(f64::total_cmp)?;
        Some((first, all.max_by(f64::total_cmp)?))
    }

    /// Describes one resumption.
    pub fn report(&self, held: &Held, resumed: &Resumed) -> String {
        format!(
            "{} was at iteration {} on worker {}, resumed at {} on {} after {:.1} s",
            held.session_id,
            held.session_done,
            self.worker,
            resumed.session_done,
            resumed.worker,
            self.recovery_s(resumed)
        )
    }
}
