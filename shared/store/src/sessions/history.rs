//! A session's history: its checkpoints, whether they were folded or not, in order. A fold moves them, and a compaction
//! shortens nothing here. They are kept as long as the result of the job whose end folded them.

use job::{JobId, SessionKey, Usd};

use crate::database::{query, read_job_id, read_usd, rfc3339};
use crate::jobs::Contents;
use crate::{Store, StoreError};

/// A checkpoint in a session's history.
#[derive(Clone, Debug)]
pub struct HistoryRow {
    /// The job that wrote it.
    pub job_id: JobId,
    /// The run that wrote it.
    pub epoch: i64,
    /// Its number within that run.
    pub ordinal: i32,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// Iterations it finished.
    pub iterations: i64,
    /// What it cost.
    pub cost: Usd,
    /// Tokens read.
    pub input_tokens: i64,
    /// Tokens written.
    pub output_tokens: i64,
    /// Whether its entries took the place of the context before them.
    pub replaces: bool,
    /// Whether its job was rolled back.
    pub undone: bool,
    /// A JSON array of the entries that it added to the context.
    pub entries: Option<String>,
}

/// Behind this place, so that a long history is read in parts. A checkpoint is in one of the two tables.
const READ: &str = concat!(
    "SELECT job_id, epoch, ordinal, ",
    rfc3339!("created_at"),
    ", iterations, cost_microusd, input_tokens, output_tokens, replaces, undone, entries, blobs
  FROM (SELECT * FROM (
               SELECT job_id, epoch, ordinal, created_at, iterations, cost_microusd, input_tokens, output_tokens,
                      replaces, undone, context_json::text AS entries, blobs
                 FROM harness_history WHERE session_id = $1 AND (epoch, ordinal) > ($2, $3)
                ORDER BY epoch, ordinal LIMIT $4) folded
        UNION ALL
        SELECT * FROM (
               SELECT job_id, epoch, ordinal, created_at, iterations, cost_microusd, input_tokens, output_tokens,
                      coalesce((delta -> 'replace_context')::boolean, false), false,
                      coalesce(context_json::text, (delta -> 'context_window')::text), blobs
                 FROM harness_checkpoints WHERE session_id = $1 AND (epoch, ordinal) > ($2, $3)
                ORDER BY epoch, ordinal LIMIT $4) left_to_fold) all_of_them
 ORDER BY epoch, ordinal LIMIT $4"
);

const BLOBS: &str = "
    SELECT json_object_agg(encode(hash, 'hex'), content)::text FROM harness_blobs WHERE session_id = $1 AND hash = ANY($2)";

/// The most rows of one reading.
const ROWS: i64 = 200;

impl Store {
    /// Returns the checkpoints of a session behind one, given as its run and its number, and whether there may be more.
    pub async fn history(
        &self,
        key: &SessionKey,
        after: (i64, i32),
    ) -> Result<(Vec<HistoryRow>, bool), StoreError> {
        let (epoch, ordinal) = after;
        let rows = query(&self.pool, "history", READ, &[&key.as_str(), &epoch, &ordinal, &ROWS]).await?;
        let refers_to = |row: &tokio_postgres::Row| row.get::<_, Option<Vec<Vec<u8>>>>(11);
        let hashes: Vec<Vec<u8>> = rows.iter().filter_map(refers_to).flatten().collect();
        let blobs = if hashes.is_empty() {
            Vec::new()
        } else {
            query(&self.pool, "history_blobs", BLOBS, &[&key.as_str(), &hashes]).await?
        };
        let blobs = blobs.first().and_then(|row| row.get::<_, Option<&str>>(0));
        let blobs = Contents::of(blobs.unwrap_or("{}"));
        let entries = |row: &tokio_postgres::Row| {
            let entries: Option<String> = row.get(10);
            match refers_to(row) {
                Some(_) => entries.map(|text| blobs.join(&text, &mut None)),
                None => entries,
            }
        };
        let read = |row: &tokio_postgres::Row| HistoryRow {
            job_id: read_job_id(row, 0),
            epoch: row.get(1),
            ordinal: row.get(2),
            created_at: row.get(3),
            iterations: row.get(4),
            cost: read_usd(row, 5),
            input_tokens: row.get(6),
            output_tokens: row.get(7),
            replaces: row.get(8),
            undone: row.get(9),
            entries: entries(row),
        };
        Ok((rows.iter().map(read).collect(), rows.len() as i64 == ROWS))
    }
}
