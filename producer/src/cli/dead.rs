//! `producer dead`: messages that no worker could use. They stay where they are: in the queue `harness.dead`.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use queue::DeadLetter;
use serde_json::{Value, json};

use super::context::Context;
use super::status;

#[derive(Debug, Args)]
pub struct Dead {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List dead letters, oldest first, with the reason of each
    List {
        /// At most so many
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter whole: its reason, headers and body
    ///
    /// Exit codes: 0 shown, 1 there is no such dead letter.
    Show {
        /// Its message id, or its number in the list
        letter: String,
        /// Look at no more than so many
        #[arg(long, default_value_t = 10_000)]
        limit: usize,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
}

impl Dead {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let broker = context.broker("producer dead").await?;
        let limit = match &self.command {
            Command::List { limit, .. } | Command::Show { limit, .. } => *limit,
        };
        let letters = broker.dead_letters(limit).await.context("reading harness.dead")?;
        let total = broker.dead_letter_count().await.context("counting harness.dead")?;
        broker.close().await;
        match self.command {
            Command::List { json, .. } => list(&letters, total, json),
            Command::Show { letter, json, .. } => show(&letters, &letter, json),
        }
    }
}

fn list(letters: &[DeadLetter], total: u64, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        for letter in letters {
            println!("{}", serde_json::to_string(&as_json(letter))?);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = status::table();
    table.set_header(["#", "message id", "from", "code", "reason", "bytes"]);
    for (number, letter) in (1..).zip(letters) {
        table.add_row([
            number.to_string(),
            letter.message_id.clone().unwrap_or_else(|| "-".to_owned()),
            letter.source_queue.clone().unwrap_or_else(|| "-".to_owned()),
            letter.code.clone(),
            letter.reason.clone(),
            letter.body.len().to_string(),
        ]);
    }
    println!("{table}");
    eprintln!(
        "{} of {} dead letters; `producer dead show NUMBER` shows one",
        letters.len(),
        total.max(letters.len() as u64)
    );
    Ok(ExitCode::SUCCESS)
}

fn show(letters: &[DeadLetter], wanted: &str, json: bool) -> anyhow::Result<ExitCode> {
    let by_number = wanted.parse::<usize>().ok().and_then(|number| letters.get(number.checked_sub(1)?));
    let by_id = letters.iter().find(|letter| letter.message_id.as_deref() == Some(wanted));
    let Some(letter) = by_id.or(by_number) else {
        eprintln!("{wanted}: no such dead letter among the oldest {}", letters.len());
        return Ok(ExitCode::FAILURE);
    };
    let shown = as_json(letter);
    println!("{}", if json { serde_json::to_string(&shown)? } else { serde_json::to_string_pretty(&shown)? });
    Ok(ExitCode::SUCCESS)
}

/// The body as JSON where it is JSON, else as text.
fn as_json(letter: &DeadLetter) -> Value {
    let body = serde_json::from_slice(&letter.body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&letter.body).into_owned()));
    json!({
        "message_id": letter.message_id,
        "type": letter.kind,
        "queue": letter.source_queue,
        "code": letter.code,
        "reason": letter.reason,
        "dead_at_unix_ms": letter.dead_at_unix_ms,
        "headers": letter.headers,
        "bytes": letter.body.len(),
        "body": body,
    })
}
