//! `producer cancel`: ends jobs that nobody wants any more.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::Args;
use job::{JobId, Name};
use service::{note, out};
use store::Cancelled;

use super::context::{Context, REPLIED_WITHIN};

/// Cancel jobs: queued, scheduled, blocked and running ones.
///
/// One that waits has ended when this returns. A running one gets its stop signal within a second and ends as its worker
/// hears it, unless it is done before; `producer wait` tells. A job that nobody has seen yet is cancelled ahead: its
/// message finds its end. Prints a line for each job. Exit codes: 0 all are cancelled or stopping, 3 one had ended before.
#[derive(Debug, Args)]
pub struct Cancel {
    /// The jobs' ids
    #[arg(required_unless_present = "session")]
    jobs: Vec<JobId>,
    /// All live jobs of this session
    #[arg(long)]
    session: Option<Name>,
}

impl Cancel {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let (yardstick, relay) = context.relay("producer cancel").await?;
        let mut jobs = self.jobs;
        if let Some(session) = &self.session {
            let live = relay.store.jobs_of(session).await.context("reading the session's jobs")?;
            // The last ones first, so that none of them starts meanwhile.
            jobs.extend(live.into_iter().rev());
        }
        let limits = yardstick.limits();
        for job_id in &jobs {
            if let Err(error) = job_id.check_window(limits.now_unix_ms, limits.retention) {
                note!("nothing was cancelled: job_id: {error}");
                return Ok(ExitCode::from(2));
            }
        }
        let answers = relay::cancel(&relay.store, &relay.replies, &jobs).await.context("cancelling jobs")?;
        relay.close(REPLIED_WITHIN).await;
        let mut late = false;
        for (job_id, answer) in jobs.iter().zip(&answers) {
            match answer {
                Cancelled::Now => out!("{job_id} cancelled"),
                Cancelled::Stopping => out!("{job_id} stopping"),
                Cancelled::Before(state) => out!("{job_id} had ended before: {state}"),
            }
            late |= matches!(answer, Cancelled::Before(_));
        }
        Ok(if late { ExitCode::from(3) } else { ExitCode::SUCCESS })
    }
}
