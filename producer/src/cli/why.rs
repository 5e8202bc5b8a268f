//! `producer why`: what a job waits for, or how it ended, in one sentence.

use std::process::ExitCode;

use clap::Args;
use job::{JobId, shown};
use service::{note, out};

use super::api::{self, ApiArgs};
use super::context::Context;
use crate::why::{Fleet, why};

/// Say in one sentence what a job waits for, or how it ended.
///
/// Exit codes: 0 said, 1 the ledger does not know the job.
#[derive(Debug, Args)]
pub struct Why {
    /// The job's id
    job: JobId,
    #[command(flatten)]
    api: ApiArgs,
}

impl Why {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        if let Some(client) = self.api.client(&mut context)? {
            return api::why(&client, self.job).await;
        }
        let ledger = context.checked_ledger().await?;
        let Some(facts) = ledger.store.facts(self.job).await? else {
            note!(
                "{}: no such job in the ledger (a message that no worker has claimed yet is not known here)",
                self.job
            );
            return Ok(ExitCode::FAILURE);
        };
        out!("{}", shown(&why(&facts, Fleet::Numbers)));
        Ok(ExitCode::SUCCESS)
    }
}
