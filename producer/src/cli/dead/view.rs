//! `producer dead list` and `show`.

use std::process::ExitCode;

use clap::Args;
use comfy_table::ColumnConstraint;
use dispatch::Dispatch;
use harness_fleet::Client;
use job::{SessionKey, one_line, pretty_lines, shown};
use service::{note, out};

use super::filter::Flags;
use crate::cli::{api, status};
use crate::dead::{DeadEntry, DeadEntryDetail, Kind, find, id_of, list, rfc3339};

#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    flags: Flags,
    /// Show at most this many
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Show {
    /// A job's id, a message's id as the list shows it, or a number in the unfiltered list
    id: String,
    /// Print one JSON object on one line
    #[arg(long)]
    json: bool,
}

impl List {
    pub async fn run(&self, dispatch: &Dispatch) -> anyhow::Result<ExitCode> {
        let found = list(dispatch, &self.flags.filter(), self.limit).await?;
        self.print(&found.letters);
        if !self.json {
            let total = match found.unseen {
                0 => found.known.to_string(),
                unseen => format!("up to {}", found.known + unseen),
            };
            let count = found.letters.len();
            note!(
                "{count} of {total} dead letters; `producer dead show ID` shows one, `redrive` and `drop` settle them"
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The same over the HTTP API.
    pub async fn over(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let filter = self.flags.filter();
        if !self.flags.fit_the_api() {
            return Ok(ExitCode::from(2));
        }
        let letters = api::list(client, &filter, self.limit).await?;
        self.print(&letters);
        if !self.json {
            note!("{} failed jobs; `producer dead show ID` shows one, `redrive` settles it", letters.len());
        }
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, letters: &[DeadEntry]) {
        if self.json {
            for letter in letters {
                out!("{}", one_line(letter.json().to_string()));
            }
            return;
        }
        let mut table = status::table();
        table.set_header(["#", "kind", "id", "session", "agent", "code", "reason", "attempts", "when"]);
        for (number, letter) in (1..).zip(letters) {
            table.add_row(cells(number, letter));
        }
        // An id that is broken over two lines cannot be copied.
        for column in [2, 8] {
            if let Some(column) = table.column_mut(column) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        out!("{table}");
    }
}

impl Show {
    pub async fn run(&self, dispatch: &Dispatch) -> anyhow::Result<ExitCode> {
        self.print(find(dispatch, &self.id).await?)
    }

    /// The same over the HTTP API.
    pub async fn over(&self, client: &Client) -> anyhow::Result<ExitCode> {
        self.print(api::show(client, &self.id).await?)
    }

    fn print(&self, found: Option<DeadEntryDetail>) -> anyhow::Result<ExitCode> {
        let Some(found) = found else {
            note!("{}: no such dead letter", self.id);
            return Ok(ExitCode::FAILURE);
        };
        let found = found.json()?;
        let text = if self.json {
            one_line(serde_json::to_string(&found)?)
        } else {
            pretty_lines(serde_json::to_string_pretty(&found)?)
        };
        out!("{text}");
        Ok(ExitCode::SUCCESS)
    }
}

fn cells(number: usize, letter: &DeadEntry) -> Vec<String> {
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    match letter {
        DeadEntry::Job(job) => vec![
            number.to_string(),
            Kind::Job.to_string(),
            job.job_id.to_string(),
            SessionKey::new(&job.tenant, &job.session_id).to_string(),
            job.agent_id.clone(),
            job.code.clone(),
            shown(&job.reason).into_owned(),
            job.attempts.to_string(),
            job.finished_at.clone(),
        ],
        DeadEntry::Message(letter, peek, _) => vec![
            number.to_string(),
            Kind::Message.to_string(),
            id_of(letter),
            or_dash(peek.session_key().as_ref().map(ToString::to_string)),
            or_dash(peek.agent_id.as_ref().map(ToString::to_string)),
            shown(&letter.code).into_owned(),
            shown(&letter.reason).into_owned(),
            "-".to_owned(),
            or_dash(letter.dead_at_unix_ms.map(rfc3339)),
        ],
    }
}
