//! `producer sessions`: a session's state, as text or as JSON.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use job::{Name, one_line, pretty_lines, shown};
use service::{note, out};
use store::SessionView;

use super::context::Context;

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
    Show {
        /// The session's name
        session: Name,
        /// Print one JSON object
        #[arg(long)]
        json: bool,
    },
}

impl Sessions {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let Command::Show { session, json } = self.command;
        let ledger = context.checked_ledger().await?;
        let Some(view) = ledger.store.session(&session).await? else {
            note!("{session}: no such session; a session is created when its first job is claimed");
            return Ok(ExitCode::FAILURE);
        };
        if json {
            out!("{}", one_line(serde_json::to_string(&view)?));
        } else {
            print(&view)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(view: &SessionView) -> anyhow::Result<()> {
    out!("session      {}", view.session_id);
    out!("agent        {}", view.agent_id);
    if let Some(user) = &view.user_id {
        out!("user         {}", shown(user));
    }
    out!("created      {}", view.created_at);
    out!("updated      {}", view.last_updated);
    out!("jobs folded  {}", view.version);
    out!("iterations   {}", view.iteration_count);
    out!("cost         {}", view.cost_usd);
    out!("tokens       {} read, {} written", view.input_tokens, view.output_tokens);
    for (name, value) in
        [("memory", &view.memory), ("context", &view.context_window), ("progress", &view.feature_progress)]
    {
        out!("{name}\n{}", pretty_lines(serde_json::to_string_pretty(value)?));
    }
    if !view.checkpoints.is_empty() {
        out!("checkpoints since ({})", view.checkpoints.len());
    }
    for checkpoint in &view.checkpoints {
        out!(
            "{}  job {}  {}",
            checkpoint.created_at,
            checkpoint.job_id,
            one_line(serde_json::to_string(&checkpoint.delta)?)
        );
    }
    Ok(())
}
