//! `producer sessions`: a session's state and its history, as text or as JSON.

mod history;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use job::{Json, Name, SessionKey, Tenant, one_line, pretty_lines, shown};
use serde_json::Value;
use service::{note, out};

use super::context::Context;
use crate::SessionNow;

#[derive(Debug, Args)]
pub struct Sessions {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show one session: memory, context window, progress, usage, and checkpoints that are not folded yet
    ///
    /// Exit codes: 0 shown, 1 no session has that name.
    Show(Which),
    /// Print everything that was ever appended to a session's context, also what a compaction has replaced since
    ///
    /// With --json, each line is a checkpoint, and its entries are as they were written, to the letter. History is kept
    /// as long as results are.
    ///
    /// Exit codes: 0 printed, 1 no session has that name.
    History(Which),
}

#[derive(Debug, Args)]
struct Which {
    /// The session's name
    session: Name,
    /// The tenant whose session it is
    #[arg(long, default_value_t)]
    tenant: Tenant,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Sessions {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let (Command::Show(which) | Command::History(which)) = &self.command;
        let key = SessionKey::new(&which.tenant, &which.session);
        let ledger = context.checked_ledger().await?;
        let Some(session) = SessionNow::read(&ledger.store, &key).await? else {
            note!("{}: no such session", which.session);
            return Ok(ExitCode::FAILURE);
        };
        match &self.command {
            Command::Show(which) if which.json => out!("{}", one_line(serde_json::to_string(&session)?)),
            Command::Show(_) => print(&session)?,
            Command::History(which) => {
                history::print(&ledger.store, &key, session.iteration_count, which.json).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(session: &SessionNow) -> anyhow::Result<()> {
    if let Some(tenant) = session.tenant.unless_default() {
        out!("tenant       {tenant}");
    }
    out!("session      {}", session.session_id);
    out!("agent        {}", session.agent_id);
    if let Some(user) = &session.user_id {
        out!("user         {}", shown(user));
    }
    out!("created      {}", session.created_at);
    out!("updated      {}", session.last_updated);
    out!("jobs ended   {}", session.version);
    out!("iterations   {}", session.iteration_count);
    out!("cost         {}", session.cost_usd);
    out!("tokens       {} read, {} written", session.input_tokens, session.output_tokens);
    let pretty =
        |value: &Value| -> anyhow::Result<String> { Ok(pretty_lines(serde_json::to_string_pretty(value)?)) };
    out!("memory\n{}", pretty(&session.memory)?);
    out!("context ({} entries)", session.context_window.len());
    print_entries(&session.context_window);
    out!("progress\n{}", pretty(&session.feature_progress)?);
    if !session.checkpoints.is_empty() {
        out!("checkpoints since the last fold ({})", session.checkpoints.len());
    }
    for checkpoint in &session.checkpoints {
        out!(
            "{}  job {}  {}",
            checkpoint.created_at,
            checkpoint.job_id,
            one_line(serde_json::to_string(&checkpoint.delta)?)
        );
    }
    Ok(())
}

/// One entry a line, as it is: a pretty one would no longer be what a model gets.
fn print_entries(entries: &[Json]) {
    for entry in entries {
        out!("  {}", one_line(entry.as_str().to_owned()));
    }
}
