//! `producer jobs`: a list of jobs, newest first.

use std::process::ExitCode;

use clap::Args;
use comfy_table::ColumnConstraint;
use job::{JobState, Label, MAX_LABELS, Name, Tenant, one_line};
use serde_json::json;
use service::{note, out};
use store::{JobFilter, JobLine, Store};

use super::api::{self, ApiArgs};
use super::context::Context;
use super::status;

/// List jobs, newest first.
///
/// Exit codes: 0 listed, 1 something failed, 2 wrong arguments.
#[derive(Debug, Args)]
pub struct Jobs {
    /// Only in these states, separated by commas
    #[arg(long, value_delimiter = ',')]
    state: Vec<JobState>,
    /// Only of this agent
    #[arg(long)]
    agent: Option<Name>,
    /// Only of this session
    #[arg(long)]
    session: Option<Name>,
    /// Only of this pool
    #[arg(long)]
    pool: Option<Name>,
    /// Only with this label; may be given up to 8 times, and then all must be there
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Label>,
    /// The tenant whose jobs are listed
    #[arg(long, default_value_t)]
    tenant: Tenant,
    /// Show at most this many
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: ApiArgs,
}

impl Jobs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let Jobs { state: states, agent, session, pool, labels, tenant, limit, json, api } = self;
        if !are_few(&labels) {
            return Ok(ExitCode::from(2));
        }
        let client = api.client(&mut context)?;
        let filter = JobFilter { tenant, states, agent, session, pool, labels, ..JobFilter::default() };
        let mut lines = Vec::new();
        match client {
            Some(_) if !api::is_of_key(&filter.tenant) => return Ok(ExitCode::from(2)),
            Some(client) => api::every_line(&client, filter, limit, |line| lines.push(line)).await?,
            None => {
                let ledger = context.checked_ledger().await?;
                read(&ledger.store, &filter, limit, &mut lines).await?;
            }
        }
        print(&lines, json);
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether so many labels can be asked for; says so if not.
pub fn are_few(labels: &[Label]) -> bool {
    let few = labels.len() <= MAX_LABELS;
    if !few {
        note!("--label: got {}, expected at most {MAX_LABELS}", labels.len());
    }
    few
}

/// One look finds a bounded number of jobs, so it takes several.
async fn read(
    store: &Store,
    filter: &JobFilter,
    limit: usize,
    lines: &mut Vec<JobLine>,
) -> anyhow::Result<()> {
    let mut before = None;
    while lines.len() < limit {
        let page = store.list_jobs(filter, before, (limit - lines.len()).min(500)).await?;
        lines.extend(page.found);
        before = page.next;
        if before.is_none() {
            break;
        }
    }
    Ok(())
}

fn print(lines: &[JobLine], json: bool) {
    if json {
        for line in lines {
            let JobLine { job_id, session_id, agent_id, pool, state, attempts, .. } = line;
            let line = json!({
                "job_id": job_id, "session_id": session_id, "agent_id": agent_id, "pool": pool, "state": state,
                "attempts": attempts, "accepted_at": line.accepted_at, "finished_at": line.finished_at,
                "code": line.code,
            });
            out!("{}", one_line(line.to_string()));
        }
        return;
    }
    let mut table = status::table();
    table
        .set_header(["job", "session", "agent", "pool", "state", "attempts", "accepted", "finished", "code"]);
    for line in lines {
        table.add_row([
            line.job_id.to_string(),
            line.session_id.clone(),
            line.agent_id.clone(),
            line.pool.clone(),
            line.state.to_string(),
            line.attempts.to_string(),
            line.accepted_at.clone(),
            line.finished_at.clone().unwrap_or_default(),
            line.code.clone().unwrap_or_default(),
        ]);
    }
    // An id that is broken over two lines cannot be copied.
    if let Some(column) = table.column_mut(0) {
        column.set_constraint(ColumnConstraint::ContentWidth);
    }
    out!("{table}");
}
