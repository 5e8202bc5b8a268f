//! `producer sessions history`.

use job::{Json, SessionKey, one_line};
use serde::{Deserialize, Serialize};
use service::{note, out};
use store::{HistoryRow, Store};

use super::print_entries;

/// A line of JSON.
#[derive(Serialize)]
struct Line<'a> {
    job_id: String,
    epoch: i64,
    ordinal: i32,
    created_at: &'a str,
    iterations: i64,
    cost_usd: job::Usd,
    input_tokens: i64,
    output_tokens: i64,
    replaces: bool,
    undone: bool,
    entries: &'a [Json],
}

#[derive(Deserialize)]
#[serde(transparent)]
struct Entries(#[serde(deserialize_with = "job::verbatim_list")] Vec<Json>);

/// Prints all checkpoints. `iterations` is how many the session has had.
pub async fn print(store: &Store, key: &SessionKey, iterations: i64, json: bool) -> anyhow::Result<()> {
    let (mut after, mut printed) = ((0, -1), 0);
    loop {
        let (rows, more) = store.history(key, after).await?;
        for row in &rows {
            let entries = match &row.entries {
                Some(text) => serde_json::from_str::<Entries>(text)?.0,
                None => Vec::new(),
            };
            printed += row.iterations;
            after = (row.epoch, row.ordinal);
            if json {
                out!("{}", one_line(serde_json::to_string(&line(row, &entries))?));
            } else {
                print_row(row, &entries);
            }
        }
        if !more {
            break;
        }
    }
    if printed < iterations {
        let earlier = iterations - printed;
        note!(
            "{earlier} earlier iterations are not in the history: they were folded by jobs whose results are gone, or \
             before the ledger kept a history, or the session was emptied"
        );
    }
    Ok(())
}

fn line<'a>(row: &'a HistoryRow, entries: &'a [Json]) -> Line<'a> {
    Line {
        job_id: row.job_id.to_string(),
        epoch: row.epoch,
        ordinal: row.ordinal,
        created_at: &row.created_at,
        iterations: row.iterations,
        cost_usd: row.cost,
        input_tokens: row.input_tokens,
        output_tokens: row.output_tokens,
        replaces: row.replaces,
        undone: row.undone,
        entries,
    }
}

fn print_row(row: &HistoryRow, entries: &[Json]) {
    if entries.is_empty() && !row.replaces {
        return;
    }
    let replaces = if row.replaces { "  replaces the context before it" } else { "" };
    let undone = if row.undone { "  undone" } else { "" };
    out!("{}  job {}{replaces}{undone}", row.created_at, row.job_id);
    print_entries(entries);
}
