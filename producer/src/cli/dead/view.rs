//! `producer dead list` and `show`: failed jobs and messages side by side. Looking takes nothing away.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Args;
use comfy_table::ColumnConstraint;
use job::{Glimpse, JobId, one_line, pretty_lines, shown};
use queue::{DeadLetter, HeldLetter, pool_of_queue};
use dispatch::Dispatch;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use service::{note, out};
use store::{FailedJob, Standing, Store};

use super::filter::{Filter, Kind};
use crate::cli::status;
use crate::letter::is_of_failed;

/// Letters that are asked for in the ledger at once.
pub const CHUNK: usize = 256;
/// No more than this is kept of letters for one list.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// The longest message id that is shown as it is.
const MAX_ID: usize = 64;

#[derive(Debug, Args)]
pub struct List {
    #[command(flatten)]
    filter: Filter,
    /// At most so many
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// One JSON object per line
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub struct Show {
    /// A job's id, a message's id as the list shows it, or a number in the list without filters
    id: String,
    /// One JSON object in one line
    #[arg(long)]
    json: bool,
}

/// A line of the list.
enum Row {
    Job(FailedJob),
    /// With when it died, or when the one before it did: in milliseconds of Unix time.
    Message(Box<DeadLetter>, Glimpse, u64),
}

impl List {
    pub async fn run(&self, dispatch: &Dispatch) -> anyhow::Result<ExitCode> {
        let (rows, total) = read(dispatch, &self.filter, self.limit).await?;
        if self.json {
            for row in &rows {
                out!("{}", one_line(row.json().to_string()));
            }
            return Ok(ExitCode::SUCCESS);
        }
        let mut table = status::table();
        table.set_header(["#", "kind", "id", "session", "agent", "code", "reason", "attempts", "when"]);
        for (number, row) in (1..).zip(&rows) {
            table.add_row(row.cells(number));
        }
        // An id that is broken over lines cannot be copied.
        for column in [2, 8] {
            if let Some(column) = table.column_mut(column) {
                column.set_constraint(ColumnConstraint::ContentWidth);
            }
        }
        out!("{table}");
        note!(
            "{} of {total} dead letters; `producer dead show ID` shows one, `redrive` and `drop` settle them",
            rows.len()
        );
        Ok(ExitCode::SUCCESS)
    }
}

impl Show {
    pub async fn run(&self, dispatch: &Dispatch) -> anyhow::Result<ExitCode> {
        let Some(found) = self.find(dispatch).await? else {
            note!("{}: no such dead letter", self.id);
            return Ok(ExitCode::FAILURE);
        };
        let text = match self.json {
            true => one_line(serde_json::to_string(&found)?),
            false => pretty_lines(serde_json::to_string_pretty(&found)?),
        };
        out!("{text}");
        Ok(ExitCode::SUCCESS)
    }

    async fn find(&self, dispatch: &Dispatch) -> anyhow::Result<Option<Value>> {
        if let Ok(job_id) = self.id.parse::<JobId>()
            && let Some(failed) = failed(&dispatch.store, &[job_id]).await?.pop()
        {
            return whole(&dispatch.store, failed).await.map(Some);
        }
        if let Ok(number) = self.id.parse::<usize>() {
            let (mut rows, _) = read(dispatch, &Filter::default(), number).await?;
            return match (rows.len() == number).then(|| rows.pop()).flatten() {
                Some(Row::Job(job)) => match failed(&dispatch.store, &[job.job_id]).await?.pop() {
                    Some(failed) => whole(&dispatch.store, failed).await.map(Some),
                    None => Ok(None),
                },
                Some(row) => Ok(Some(row.json())),
                None => Ok(None),
            };
        }
        let mut walk = dispatch.broker.walk_dead_letters().await.context("reading harness.dead")?;
        let mut found = None;
        while found.is_none()
            && let Some(held) = walk.next().await.context("reading harness.dead")?
        {
            found = Some(held.letter).filter(|letter| is_called(letter, &self.id));
        }
        walk.close().await.context("closing harness.dead")?;
        Ok(found.map(|letter| letter_json(&letter, &glimpse(&letter))))
    }
}

/// The oldest that pass, and how many there are, as far as that is known without looking at all.
async fn read(dispatch: &Dispatch, filter: &Filter, limit: usize) -> anyhow::Result<(Vec<Row>, String)> {
    let (mut jobs, mut count) = (Vec::new(), 0);
    if filter.takes(Kind::Job) {
        let of_jobs = filter.of_jobs();
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        jobs = dispatch.store.failed_jobs(&of_jobs, most).await.context("reading failed jobs")?;
        count = dispatch.store.count_failed(&of_jobs).await.context("counting failed jobs")?;
    }
    let mut rows: Vec<Row> = jobs.into_iter().map(Row::Job).collect();
    let mut unseen = 0;
    if filter.takes(Kind::Message) {
        let messages = read_messages(dispatch, filter, limit).await?;
        count += messages.rows.len() as u64;
        unseen = messages.unseen;
        rows.extend(messages.rows);
    }
    rows.sort_by_key(Row::died_at);
    rows.truncate(limit);
    let total = if unseen == 0 { count.to_string() } else { format!("up to {}", count + unseen) };
    Ok((rows, total))
}

struct Messages {
    rows: Vec<Row>,
    /// Letters behind the last one that was looked at.
    unseen: u64,
}

async fn read_messages(dispatch: &Dispatch, filter: &Filter, limit: usize) -> anyhow::Result<Messages> {
    let mut walk = dispatch.broker.walk_dead_letters().await.context("reading harness.dead")?;
    let now = SystemTime::now();
    let (mut rows, mut bytes, mut seen, mut died) = (Vec::new(), 0, 0, 0);
    let mut more = true;
    while more && rows.len() < limit && bytes < MAX_BYTES {
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK.min(limit - rows.len()) && bytes < MAX_BYTES {
            let Some(HeldLetter { letter, .. }) = walk.next().await.context("reading harness.dead")? else {
                more = false;
                break;
            };
            seen += 1;
            died = letter.dead_at_unix_ms.unwrap_or(died);
            let glimpse = glimpse(&letter);
            if filter.passes(&letter, &glimpse, now) {
                bytes += letter.body.len();
                chunk.push((letter, glimpse, died));
            }
        }
        let standing = standing(&dispatch.store, chunk.iter().map(|(_, glimpse, _)| glimpse)).await?;
        for (letter, glimpse, died) in chunk {
            // Shown as the job.
            let hidden = of(&standing, &glimpse)
                .is_some_and(|standing| standing.open && is_of_failed(&glimpse, Some(standing)));
            if !hidden {
                rows.push(Row::Message(Box::new(letter), glimpse, died));
            }
        }
    }
    let unseen = if more { walk.total().saturating_sub(seen) } else { 0 };
    walk.close().await.context("closing harness.dead")?;
    Ok(Messages { rows, unseen })
}

impl Row {
    fn died_at(&self) -> u64 {
        match self {
            Row::Job(job) => u64::try_from(job.finished_unix_ms).unwrap_or(0),
            Row::Message(_, _, died) => *died,
        }
    }

    fn cells(&self, number: usize) -> Vec<String> {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        match self {
            Row::Job(job) => vec![
                number.to_string(),
                Kind::Job.to_string(),
                job.job_id.to_string(),
                job.session_id.clone(),
                job.agent_id.clone(),
                job.code.clone(),
                shown(&job.reason).into_owned(),
                job.attempts.to_string(),
                job.finished_at.clone(),
            ],
            Row::Message(letter, glimpse, _) => vec![
                number.to_string(),
                Kind::Message.to_string(),
                id_of(letter),
                or_dash(glimpse.session_id.as_ref().map(ToString::to_string)),
                or_dash(glimpse.agent_id.as_ref().map(ToString::to_string)),
                shown(&letter.code).into_owned(),
                shown(&letter.reason).into_owned(),
                "-".to_owned(),
                or_dash(letter.dead_at_unix_ms.map(rfc3339)),
            ],
        }
    }

    fn json(&self) -> Value {
        match self {
            Row::Job(job) => job_json(job),
            Row::Message(letter, glimpse, _) => letter_json(letter, glimpse),
        }
    }
}

/// What can be read of a letter's job.
pub fn glimpse(letter: &DeadLetter) -> Glimpse {
    job::glimpse(&letter.body, letter.message_id.as_deref())
}

/// What a letter is called in lists: its message id, or its mark where that is missing or no word.
pub fn id_of(letter: &DeadLetter) -> String {
    let is_word = |id: &&String| (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    letter.message_id.as_ref().filter(is_word).unwrap_or(&letter.mark).clone()
}

/// Whether a letter answers to an id.
pub fn is_called(letter: &DeadLetter, id: &str) -> bool {
    letter.mark == id || letter.message_id.as_deref() == Some(id)
}

/// Where the ledger has the jobs of letters.
pub async fn standing(
    store: &Store,
    letters: impl Iterator<Item = &Glimpse>,
) -> anyhow::Result<Vec<Standing>> {
    let mut jobs: Vec<JobId> = letters.filter_map(|glimpse| glimpse.job_id).collect();
    jobs.sort();
    jobs.dedup();
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    store.standing(&jobs).await.context("asking the ledger for the jobs of letters")
}

/// The one that a letter's job has.
pub fn of<'a>(standing: &'a [Standing], glimpse: &Glimpse) -> Option<&'a Standing> {
    let job_id = glimpse.job_id?;
    standing.iter().find(|standing| standing.job_id == job_id)
}

/// The failed ones among these jobs.
pub async fn failed(store: &Store, jobs: &[JobId]) -> anyhow::Result<Vec<FailedJob>> {
    store.failed_among(jobs).await.context("reading failed jobs")
}

/// A job with everything that the ledger has of it.
async fn whole(store: &Store, failed: FailedJob) -> anyhow::Result<Value> {
    let view = store.jobs(&[failed.job_id]).await.context("reading a job")?.pop();
    let envelope = failed.message.as_deref().map(serde_json::from_str::<Box<RawValue>>).transpose()?;
    let mut shown = job_json(&failed);
    shown["redriven_as"] = json!(failed.redriven_as);
    shown["dismissed_at"] = json!(failed.dismissed_at);
    shown["result"] = serde_json::to_value(view)?;
    shown["envelope"] = serde_json::to_value(envelope)?;
    Ok(shown)
}

fn job_json(job: &FailedJob) -> Value {
    json!({
        "kind": "job",
        "id": job.job_id,
        "session_id": job.session_id,
        "agent_id": job.agent_id,
        "pool": job.pool,
        "code": job.code,
        "reason": job.reason,
        "attempts": job.attempts,
        "dead_at": job.finished_at,
        "dead_at_unix_ms": job.finished_unix_ms,
    })
}

/// The body as JSON where it is JSON, else as text.
fn letter_json(letter: &DeadLetter, glimpse: &Glimpse) -> Value {
    let body = serde_json::from_slice(&letter.body)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&letter.body).into_owned()));
    json!({
        "kind": "message",
        "id": id_of(letter),
        "session_id": glimpse.session_id,
        "agent_id": glimpse.agent_id,
        "pool": letter.source_queue.as_deref().and_then(pool_of_queue),
        "code": letter.code,
        "reason": letter.reason,
        "dead_at": letter.dead_at_unix_ms.map(rfc3339),
        "dead_at_unix_ms": letter.dead_at_unix_ms,
        "message_id": letter.message_id,
        "mark": letter.mark,
        "type": letter.kind,
        "queue": letter.source_queue,
        "headers": letter.headers,
        "bytes": letter.body.len(),
        "body": body,
    })
}

fn rfc3339(unix_ms: u64) -> String {
    // A header can hold any number.
    let latest = Duration::from_secs(253_402_300_799);
    let at = UNIX_EPOCH + Duration::from_millis(unix_ms).min(latest);
    humantime::format_rfc3339_millis(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(message_id: Option<&str>) -> DeadLetter {
        DeadLetter {
            mark: "00ff".to_owned(),
            body: Vec::new(),
            message_id: message_id.map(str::to_owned),
            kind: None,
            reason: "r".to_owned(),
            code: "c".to_owned(),
            source_queue: None,
            dead_at_unix_ms: None,
            headers: Default::default(),
        }
    }

    #[test]
    fn a_letter_is_called_by_its_message_id_or_else_by_its_mark() {
        let cases = [(Some("m-1"), "m-1"), (None, "00ff"), (Some(""), "00ff"), (Some("\u{1b}[2J"), "00ff")];
        for (message_id, id) in cases {
            let letter = letter(message_id);
            assert_eq!(id_of(&letter), id);
            assert!(is_called(&letter, id) && is_called(&letter, "00ff") && !is_called(&letter, "1"));
        }
        assert_eq!(id_of(&letter(Some(&"x".repeat(65)))), "00ff");
    }

    #[test]
    fn any_time_can_be_shown() {
        assert_eq!(rfc3339(1_500), "1970-01-01T00:00:01.500Z");
        assert!(rfc3339(u64::MAX).starts_with("9999-12-31"));
    }
}
