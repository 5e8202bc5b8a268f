//! One failed job again, for a caller that waits for the answer. It needs no broker: a letter of the job is removed
//! by whichever walk meets it.

use dispatch::Dispatch;
use job::{JobId, Limits};

use super::plan::renewed;
use super::read::failed;
use super::settle::settled;
use crate::submit::{self, Submitted};

/// What became of it.
pub enum Renewal {
    /// A new job does its work, which is still to be published.
    Redriven(JobId, Box<Submitted>),
    /// Nothing, and why.
    Kept(String),
}

/// Redrives one job. The operators' log names the actor.
pub async fn redrive_one(
    dispatch: &Dispatch,
    actor: &str,
    job_id: JobId,
    limits: &Limits,
) -> anyhow::Result<Renewal> {
    let Some(job) = failed(&dispatch.store, &[job_id]).await?.pop() else {
        return Ok(Renewal::Kept("it has not failed".to_owned()));
    };
    if let Some(why) = settled(&job) {
        return Ok(Renewal::Kept(format!("it {why}")));
    }
    let spec = match renewed(&job, None, limits) {
        Ok(spec) => spec,
        Err(why) => return Ok(Renewal::Kept(why)),
    };
    let new = spec.job_id;
    let submitted = submit::redrive(dispatch, actor, vec![(job_id, spec)], limits).await?;
    Ok(match submitted.new.is_empty() {
        false => Renewal::Redriven(new, Box::new(submitted)),
        true => Renewal::Kept("it was redriven or dropped just now".to_owned()),
    })
}
