//! `producer cancel`: ends jobs that are no longer wanted.

use std::process::ExitCode;

use clap::Args;
use job::{JobId, Name, SessionKey, Tenant};
use serde_json::{Value, json};
use service::{note, out, unless_stopped};
use store::Cancelled;

use super::api::{self, ApiArgs};
use super::context::{Context, REPLIED_WITHIN};
use super::operator::operator;
use crate::cancel::{Answer, cancel};

/// Cancel jobs: queued, scheduled, blocked and running ones.
///
/// A waiting job has ended when this command returns. A running job gets its stop signal within a second and ends when
/// its worker acts on it, unless it finishes first; `producer wait` shows its end. A job that is not known yet is
/// cancelled in advance: its message will find its end recorded (not over the HTTP API, where the id may become another
/// tenant's). Prints a line for each job.
///
/// Exit codes: 0 all are cancelled or stopping, 1 something failed, 2 wrong arguments, 3 a job had ended before or is
/// not known (yet): its message may be on its way, or the id is wrong.
#[derive(Debug, Args)]
pub struct Cancel {
    /// The jobs' ids
    #[arg(required_unless_present = "session")]
    jobs: Vec<JobId>,
    /// All live jobs of this session
    #[arg(long)]
    session: Option<Name>,
    /// The tenant of that session
    #[arg(long, requires = "session", default_value_t)]
    tenant: Tenant,
    /// Print one JSON object per line: job_id, answer (cancelled, stopping, not_known or ended_before) and, for a job
    /// that had ended before, its state
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

impl Cancel {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        if let Some(client) = self.api.client(&mut context)? {
            if !api::is_of_key(&self.tenant) {
                return Ok(ExitCode::from(2));
            }
            let cancelling = api::cancel(&client, self.jobs, self.session, self.json);
            return unless_stopped(&context.stop, cancelling).await;
        }
        let (intake_limits, dispatch) = context.dispatch("producer cancel").await?;
        let session = self.session.map(|session| SessionKey::new(&self.tenant, &session));
        let limits = intake_limits.current();
        let answer = cancel(&dispatch, &operator(), self.jobs, session.as_ref(), &limits).await?;
        dispatch.close(REPLIED_WITHIN).await;
        let answers = match answer {
            Answer::Done(answers) => answers,
            Answer::Refused(error) => {
                note!("nothing was cancelled: job_id: {error}");
                return Ok(ExitCode::from(2));
            }
        };
        for (job_id, answer) in &answers {
            if self.json { out!("{}", json(*job_id, *answer)) } else { out!("{job_id} {}", words(*answer)) }
        }
        let stopped =
            |(_, answer): &(JobId, Cancelled)| matches!(answer, Cancelled::Now | Cancelled::Stopping);
        Ok(if answers.iter().all(stopped) { ExitCode::SUCCESS } else { ExitCode::from(3) })
    }
}

fn words(answer: Cancelled) -> String {
    match answer {
        Cancelled::Now => "cancelled".to_owned(),
        Cancelled::Stopping => "stopping".to_owned(),
        Cancelled::Unseen => {
            "is not known (yet): its end is recorded as cancelled, so that its message finds it".to_owned()
        }
        Cancelled::Before(state) => format!("had ended before: {state}"),
    }
}

fn json(job_id: JobId, answer: Cancelled) -> Value {
    let (answer, state) = match answer {
        Cancelled::Now => ("cancelled", None),
        Cancelled::Stopping => ("stopping", None),
        Cancelled::Unseen => ("not_known", None),
        Cancelled::Before(state) => ("ended_before", Some(state.as_str())),
    };
    json!({"job_id": job_id, "answer": answer, "state": state})
}
