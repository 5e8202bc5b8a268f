//! `producer sessions`: a session's state, readable or as JSON.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use job::{Name, one_line, pretty_lines, shown};
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
    /// Exit codes: 0 shown, 1 there is none of that name.
    Show {
        /// The session's name
        session: Name,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

impl Sessions {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let Command::Show { session, json } = self.command;
        let ledger = context.checked_ledger().await?;
        let Some(view) = ledger.store.session(&session).await? else {
            eprintln!("{session}: no such session; one is made when its first job is claimed");
            return Ok(ExitCode::FAILURE);
        };
        if json {
            println!("{}", one_line(serde_json::to_string(&view)?));
        } else {
            print(&view)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(view: &SessionView) -> anyhow::Result<()> {
    println!("session      {}", view.session_id);
    println!("agent        {}", view.agent_id);
    if let Some(user) = &view.user_id {
        println!("user         {}", shown(user));
    }
    println!("created      {}", view.created_at);
    println!("updated      {}", view.last_updated);
    println!("jobs folded  {}", view.version);
    println!("iterations   {}", view.iteration_count);
    println!("cost         {}", view.cost_usd);
    println!("tokens       {} read, {} written", view.input_tokens, view.output_tokens);
    for (name, value) in
        [("memory", &view.memory), ("context", &view.context_window), ("progress", &view.feature_progress)]
    {
        println!("{name}\n{}", pretty_lines(serde_json::to_string_pretty(value)?));
    }
    if !view.checkpoints.is_empty() {
        println!("checkpoints since ({})", view.checkpoints.len());
    }
    for checkpoint in &view.checkpoints {
        println!(
            "{}  job {}  {}",
            checkpoint.created_at,
            checkpoint.job_id,
            one_line(serde_json::to_string(&checkpoint.delta)?)
        );
    }
    Ok(())
}
