//! `producer spend`: what model calls have cost.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use job::{Usd, one_line, shown};
use serde_json::{Map, Value, json};
use service::{note, out};
use store::{SpendBy, SpendRow, Store};
use uuid::Uuid;

use super::budget::{dollars, parse_usd};
use super::context::Context;
use super::operator::operator;
use super::status;

/// Show what model calls have cost, or settle those whose cost is not known
///
/// Without a command, sums by what --by names, over the last --days days; today is one of them. Costs are in
/// dollars. A call whose cost is not known counts in full until it is settled.
///
/// Examples:
///   producer spend --by day,agent --days 7
///   producer spend --by user,model --days 31 --csv > november.csv
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, verbatim_doc_comment)]
pub struct SpendArgs {
    #[command(subcommand)]
    command: Option<Command>,
    /// What the sums are taken by, one or more, with commas between them
    #[arg(long, value_delimiter = ',', default_value = "day", value_name = "BY")]
    by: Vec<By>,
    /// How many days, with today
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    days: u32,
    /// Comma-separated values with a heading
    #[arg(long, conflicts_with = "json")]
    csv: bool,
    /// One JSON object per line, with amounts in millionths of a dollar
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List calls whose cost is not known, oldest first
    ///
    /// They were sent, and no usage came: a connection was lost, or a worker died. Each counts with its
    /// reservation. Look for the request id, or the time and the model, in the provider's record of usage, and
    /// settle them.
    Unknown {
        /// At most so many
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
        limit: u32,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Record what a call has cost, after a look at the provider's record
    ///
    /// Once: a call that is settled stays as it is. The act is in `producer log`.
    ///
    /// Exit codes: 0 it is settled, 1 there is no call of unknown cost with that id, 2 wrong arguments.
    Settle {
        /// Its id, from `producer spend unknown`
        call: Uuid,
        /// What the provider bills for it, such as 0.0123; 0 if nothing
        #[arg(long, value_name = "USD", value_parser = parse_usd)]
        cost_usd: Usd,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    Day,
    Agent,
    User,
    Tenant,
    Model,
    Job,
}

impl By {
    fn of_store(self) -> SpendBy {
        match self {
            By::Day => SpendBy::Day,
            By::Agent => SpendBy::Agent,
            By::User => SpendBy::User,
            By::Tenant => SpendBy::Tenant,
            By::Model => SpendBy::Model,
            By::Job => SpendBy::Job,
        }
    }

    fn name(self) -> &'static str {
        match self {
            By::Day => "day",
            By::Agent => "agent",
            By::User => "user",
            By::Tenant => "tenant",
            By::Model => "model",
            By::Job => "job",
        }
    }
}

impl SpendArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let store = context.checked_ledger().await?.store;
        match self.command {
            None => {
                let by: Vec<SpendBy> = self.by.iter().map(|by| by.of_store()).collect();
                let rows = store.spend(&by, self.days).await.context("summing up calls")?;
                if self.csv {
                    print_csv(&self.by, &rows);
                } else if self.json {
                    print_json(&self.by, &rows);
                } else {
                    print_table(&self.by, &rows);
                }
                Ok(ExitCode::SUCCESS)
            }
            Some(Command::Unknown { limit, json }) => unknown(&store, limit, json).await,
            Some(Command::Settle { call, cost_usd }) => {
                let settled = store.settle_unknown(call, cost_usd, &operator()).await;
                if settled.context("settling a call")? {
                    out!("{call} is settled");
                    return Ok(ExitCode::SUCCESS);
                }
                note!(
                    "{call}: there is no call of unknown cost with that id; `producer spend unknown` lists them"
                );
                Ok(ExitCode::FAILURE)
            }
        }
    }
}

const SUMS: [&str; 8] = [
    "calls",
    "cost_usd",
    "unknown_usd",
    "held_usd",
    "input_tokens",
    "cache_read_tokens",
    "cache_write_tokens",
    "output_tokens",
];

fn sums(row: &SpendRow) -> [String; 8] {
    [
        row.calls.to_string(),
        dollars(row.cost_microusd),
        dollars(row.unknown_microusd),
        dollars(row.held_microusd),
        row.input_tokens.to_string(),
        row.cache_read_tokens.to_string(),
        row.cache_write_tokens.to_string(),
        row.output_tokens.to_string(),
    ]
}

fn print_csv(by: &[By], rows: &[SpendRow]) {
    let heading: Vec<&str> = by.iter().map(|by| by.name()).chain(SUMS).collect();
    out!("{}", heading.join(","));
    for row in rows {
        let of = row.of.iter().map(|text| quoted(text));
        out!("{}", of.chain(sums(row)).collect::<Vec<_>>().join(","));
    }
}

/// A field of RFC 4180. One that a spreadsheet would take for a formula gets an apostrophe before it.
fn quoted(text: &str) -> String {
    let text = shown(text);
    let formula = if text.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    let plain = !text.contains([',', '"', '\n', '\r']);
    if plain { format!("{formula}{text}") } else { format!("\"{formula}{}\"", text.replace('"', "\"\"")) }
}

fn print_json(by: &[By], rows: &[SpendRow]) {
    for row in rows {
        let mut object = Map::new();
        for (by, of) in by.iter().zip(&row.of) {
            object.insert(by.name().to_owned(), Value::from(of.as_str()));
        }
        let Value::Object(sums) = json!({
            "calls": row.calls,
            "cost_microusd": row.cost_microusd,
            "unknown_microusd": row.unknown_microusd,
            "held_microusd": row.held_microusd,
            "input_tokens": row.input_tokens,
            "cache_read_tokens": row.cache_read_tokens,
            "cache_write_tokens": row.cache_write_tokens,
            "output_tokens": row.output_tokens,
        }) else {
            continue;
        };
        object.extend(sums);
        out!("{}", one_line(Value::Object(object).to_string()));
    }
}

fn print_table(by: &[By], rows: &[SpendRow]) {
    let mut table = status::table();
    let names = ["calls", "cost $", "unknown $", "held $", "input", "cache read", "cache write", "output"];
    table.set_header(by.iter().map(|by| by.name()).chain(names));
    for row in rows {
        table.add_row(row.of.iter().map(|text| shown(text).into_owned()).chain(sums(row)));
    }
    out!("{table}");
}

async fn unknown(store: &Store, limit: u32, json: bool) -> anyhow::Result<ExitCode> {
    let calls = store.unknown_calls(limit).await.context("reading calls")?;
    if json {
        for call in &calls {
            out!("{}", one_line(serde_json::to_string(call)?));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = status::table();
    table.set_header([
        "call",
        "reserved at",
        "counts $",
        "provider",
        "model",
        "request id",
        "agent",
        "job",
        "why",
    ]);
    for call in &calls {
        table.add_row([
            call.call_id.to_string(),
            call.reserved_at.clone(),
            dollars(call.cost_microusd),
            call.provider.clone(),
            shown(&call.model).into_owned(),
            call.provider_request_id.as_deref().map_or("-".to_owned(), |id| shown(id).into_owned()),
            shown(&call.agent_id).into_owned(),
            call.job_id.to_string(),
            call.reason.as_deref().map_or(String::new(), |text| shown(text).into_owned()),
        ]);
    }
    out!("{table}");
    Ok(ExitCode::SUCCESS)
}
