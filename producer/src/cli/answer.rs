//! `producer answer`: a person's answer to what a job asks.

use std::process::ExitCode;

use clap::Args;
use job::{CallId, Input, JobId, Json};
use service::{note, out};
use store::Answered;

use super::api::{self, ApiArgs};
use super::context::Context;
use super::operator::operator;

/// Answer a question of a job that waits for a person.
///
/// `producer status` shows what a job asks, and the call of each question. The first answer to a call counts; the job goes
/// on when all its questions are answered. A job that has not asked yet takes an answer in advance.
///
/// Exit codes: 0 it counts, 1 something failed, 2 wrong arguments, 3 it does not count: the call was answered in another
/// way, its time is over, or the job has ended or is not known.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct AnswerArgs {
    /// The job's id
    job: JobId,
    /// The call that is answered
    #[arg(long)]
    call: CallId,
    #[command(flatten)]
    answer: Given,
    /// Who answers: for the job, and for those who look at it later
    #[arg(long)]
    by: Option<String>,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Given {
    /// The answer to a question: any JSON
    #[arg(long)]
    json: Option<String>,
    /// The answer to a request for approval: yes
    #[arg(long)]
    approve: bool,
    /// The answer to a request for approval: no
    #[arg(long)]
    deny: bool,
}

impl AnswerArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let AnswerArgs { job, call, answer: Given { json, approve, deny }, by, api } = self;
        let json = match json.as_deref().map(Json::parse).transpose() {
            Ok(json) => json,
            Err(error) => {
                note!("--json: {error}, expected any JSON, such as '\"yes\"'");
                return Ok(ExitCode::from(2));
            }
        };
        let input = match Input::of(job, call, (json, (approve || deny).then_some(approve)), by) {
            Ok(input) => input,
            Err(error) => {
                note!("{error}");
                return Ok(ExitCode::from(2));
            }
        };
        if let Some(client) = api.client(&mut context)? {
            return api::answer(&client, job, &input.call_id, &input.answer, input.by.as_deref()).await;
        }
        let ledger = context.checked_ledger().await?;
        let answered = ledger.store.answer(Some(&operator()), &input, None).await?;
        if let Some((field, problem)) = answered.refused(&input.call_id) {
            note!("{field}: {problem}");
            return Ok(ExitCode::from(3));
        }
        out!("{job} {}", words(&answered));
        Ok(ExitCode::SUCCESS)
    }
}

fn words(answered: &Answered) -> &'static str {
    match answered {
        Answered::Counts { due: true } => "goes on",
        Answered::Counts { due: false } => "waits for other answers",
        Answered::Early => "has not asked yet; the answer waits for its question",
        _ => "was answered so before",
    }
}
