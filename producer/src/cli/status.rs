//! `producer status`: the state of jobs, as a table or as JSON lines.

use std::process::ExitCode;

use clap::Args;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use comfy_table::{ContentArrangement, Table};
use job::{JobId, JobState, one_line, shown};
use service::{note, out};
use store::{JobView, OpenInput};

use super::api::{self, ApiArgs};
use super::context::Context;

/// Show the state of jobs.
///
/// Exit codes: 0 all succeeded, 1 one failed, was cancelled or is unknown, 3 none of these, but one has not ended.
#[derive(Debug, Args)]
pub struct Status {
    /// The jobs' ids
    #[arg(required = true)]
    jobs: Vec<JobId>,
    /// Print one JSON object per line, with the outputs, instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

impl Status {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        if let Some(client) = self.api.client(&mut context)? {
            return api::status(&client, &self.jobs, self.json).await;
        }
        let ledger = context.checked_ledger().await?;
        let views = ledger.store.jobs(&self.jobs).await?;
        print(&views, self.json)?;
        Ok(exit_code(&self.jobs, &views))
    }
}

/// Prints jobs to stdout.
pub fn print(views: &[JobView], json: bool) -> anyhow::Result<()> {
    if json {
        for view in views {
            out!("{}", one_line(serde_json::to_string(view)?));
        }
        return Ok(());
    }
    if views.is_empty() {
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    let mut header =
        vec!["job", "session", "agent", "state", "attempts", "iterations", "cost", "finished", "result"];
    let labelled = views.iter().any(|view| !view.labels.is_empty());
    if labelled {
        header.insert(1, "labels");
    }
    // A trace that the caller did not choose is the job's id without its dashes, and needs no column.
    let traced = views.iter().any(|view| view.trace_id != view.job_id.into());
    if traced {
        header.insert(1, "trace");
    }
    let of_tenants = views.iter().any(|view| !view.tenant.is_default());
    if of_tenants {
        header.insert(1, "tenant");
    }
    table.set_header(header);
    for view in views {
        let result = match (&view.output, &view.failure) {
            (Some(output), _) => clip(&shown(output.as_str())),
            (None, Some(failure)) => clip(&shown(&failure.to_string())),
            (None, None) => asked(&view.questions),
        };
        let mut row = vec![
            view.job_id.to_string(),
            view.session_id.clone(),
            view.agent_id.clone(),
            view.state.to_string(),
            view.attempts.to_string(),
            view.iterations.to_string(),
            view.cost_usd.to_string(),
            view.finished_at.clone().unwrap_or_default(),
            result,
        ];
        if labelled {
            row.insert(1, view.labels.texts().collect::<Vec<_>>().join("\n"));
        }
        if traced {
            row.insert(1, view.trace_id.to_string());
        }
        if of_tenants {
            row.insert(1, view.tenant.to_string());
        }
        table.add_row(row);
    }
    out!("{table}");
    Ok(())
}

/// What a job asks, and the calls by which it is answered.
fn asked(questions: &[OpenInput]) -> String {
    let question = |open: &OpenInput| {
        clip(&shown(&format!("{} {}: {}", open.kind, open.call_id, open.question.as_str())))
    };
    questions.iter().map(question).collect::<Vec<_>>().join("\n")
}

/// Returns an empty table that fits the terminal, or 160 columns if there is none.
pub fn table() -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    if !table.is_tty() {
        table.set_width(160);
    }
    table
}

/// Returns the exit code for these jobs; names unknown jobs on stderr.
pub fn exit_code(asked: &[JobId], views: &[JobView]) -> ExitCode {
    let unknown: Vec<&JobId> =
        asked.iter().filter(|id| !views.iter().any(|view| view.job_id == **id)).collect();
    for id in &unknown {
        note!(
            "{id}: no such job in the ledger (one that another program published is known once a worker claims it)"
        );
    }
    let all_succeeded = views.iter().all(|view| view.state == JobState::Succeeded);
    let one_failed = views.iter().any(|view| matches!(view.state, JobState::Failed | JobState::Cancelled));
    match (unknown.is_empty(), one_failed, all_succeeded) {
        (true, false, true) => ExitCode::SUCCESS,
        (true, false, false) => ExitCode::from(3),
        _ => ExitCode::FAILURE,
    }
}

fn clip(text: &str) -> String {
    const KEEP: usize = 120;
    match text.char_indices().nth(KEEP) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
