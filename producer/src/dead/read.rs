//! Reads failed jobs and messages together. It removes nothing.

use std::time::SystemTime;

use anyhow::Context;
use dispatch::Dispatch;
use job::{JobId, Peek};
use queue::{DeadLetter, HeldLetter};
use store::{FailedJob, JobView, Standing, Store};

use super::plan::is_of_failed;
use super::selection::{Filter, Kind};

/// Letters per query to the ledger.
pub(super) const CHUNK: usize = 256;
/// The most bytes of letters that one list keeps.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// The longest message id that is shown unchanged.
const MAX_ID: usize = 64;

/// A dead letter.
pub enum DeadEntry {
    /// A job that has failed.
    Job(FailedJob),
    /// A message, the peek at its job, and when it died in milliseconds of Unix time. If its own time is unknown, that
    /// of the letter before it is used.
    Message(Box<DeadLetter>, Peek, u64),
}

/// Dead letters, the oldest first.
pub struct List {
    /// At most as many as were asked for.
    pub letters: Vec<DeadEntry>,
    /// How many there are, as far as is known without reading all.
    pub known: u64,
    /// How many more there may be.
    pub unseen: u64,
}

/// One dead letter with all its details.
pub enum DeadEntryDetail {
    /// A job that has failed, with its record.
    Job(FailedJob, Option<Box<JobView>>),
    /// A message.
    Message(Box<DeadLetter>, Peek),
}

impl DeadEntry {
    fn died_at(&self) -> u64 {
        match self {
            DeadEntry::Job(job) => u64::try_from(job.finished_unix_ms).unwrap_or(0),
            DeadEntry::Message(_, _, died) => *died,
        }
    }
}

/// Lists the oldest letters that pass the filter.
pub async fn list(dispatch: &Dispatch, filter: &Filter, limit: usize) -> anyhow::Result<List> {
    let (mut letters, mut known, mut unseen) = (Vec::new(), 0, 0);
    if filter.takes(Kind::Job) {
        let most = i64::try_from(limit).unwrap_or(i64::MAX);
        let jobs = dispatch.store.failed_jobs(&filter.of, most).await.context("reading failed jobs")?;
        known = dispatch.store.count_failed(&filter.of).await.context("counting failed jobs")?;
        letters.extend(jobs.into_iter().map(DeadEntry::Job));
    }
    if filter.takes(Kind::Message) {
        let (messages, behind) = read_messages(dispatch, filter, limit).await?;
        known += messages.len() as u64;
        unseen = behind;
        letters.extend(messages);
    }
    letters.sort_by_key(DeadEntry::died_at);
    letters.truncate(limit);
    Ok(List { letters, known, unseen })
}

/// Finds one letter by a job's id, by a message's id, or by its number in the unfiltered list.
pub async fn find(dispatch: &Dispatch, id: &str) -> anyhow::Result<Option<DeadEntryDetail>> {
    if let Ok(job_id) = id.parse::<JobId>()
        && let Some(failed) = failed(&dispatch.store, &[job_id]).await?.pop()
    {
        return whole(&dispatch.store, failed).await.map(Some);
    }
    if let Ok(number) = id.parse::<usize>() {
        let mut letters = list(dispatch, &Filter::default(), number).await?.letters;
        return match (letters.len() == number).then(|| letters.pop()).flatten() {
            Some(DeadEntry::Job(job)) => match failed(&dispatch.store, &[job.job_id]).await?.pop() {
                Some(failed) => whole(&dispatch.store, failed).await.map(Some),
                None => Ok(None),
            },
            Some(DeadEntry::Message(letter, peek, _)) => Ok(Some(DeadEntryDetail::Message(letter, peek))),
            None => Ok(None),
        };
    }
    let mut cursor = dispatch.broker.dead_letter_cursor().await.context("reading harness.dead")?;
    let mut found = None;
    while found.is_none()
        && let Some(held) = cursor.next().await.context("reading harness.dead")?
    {
        found = Some(held.letter).filter(|letter| is_called(letter, id));
    }
    cursor.close().await.context("closing harness.dead")?;
    Ok(found.map(|letter| {
        let peek = peek(&letter);
        DeadEntryDetail::Message(Box::new(letter), peek)
    }))
}

async fn whole(store: &Store, failed: FailedJob) -> anyhow::Result<DeadEntryDetail> {
    let view = store.jobs(&[failed.job_id]).await.context("reading a job")?.pop();
    Ok(DeadEntryDetail::Job(failed, view.map(Box::new)))
}

/// Returns the messages that pass, and how many letters follow the last one that was read.
async fn read_messages(
    dispatch: &Dispatch,
    filter: &Filter,
    limit: usize,
) -> anyhow::Result<(Vec<DeadEntry>, u64)> {
    let mut cursor = dispatch.broker.dead_letter_cursor().await.context("reading harness.dead")?;
    let now = SystemTime::now();
    let (mut letters, mut bytes, mut seen, mut died) = (Vec::new(), 0, 0, 0);
    let mut more = true;
    while more && letters.len() < limit && bytes < MAX_BYTES {
        let mut chunk = Vec::new();
        while chunk.len() < CHUNK.min(limit - letters.len()) && bytes < MAX_BYTES {
            let Some(HeldLetter { letter, .. }) = cursor.next().await.context("reading harness.dead")? else {
                more = false;
                break;
            };
            seen += 1;
            died = letter.dead_at_unix_ms.unwrap_or(died);
            let peek = peek(&letter);
            if filter.passes(&letter, &peek, now) {
                bytes += letter.body.len();
                chunk.push((letter, peek, died));
            }
        }
        let standing = standing(&dispatch.store, chunk.iter().map(|(_, peek, _)| peek)).await?;
        for (letter, peek, died) in chunk {
            // It is listed as the job instead.
            let hidden = standing_of(&standing, &peek)
                .is_some_and(|standing| standing.open && is_of_failed(&peek, Some(standing)));
            if !hidden {
                letters.push(DeadEntry::Message(Box::new(letter), peek, died));
            }
        }
    }
    let unseen = if more { cursor.total().saturating_sub(seen) } else { 0 };
    cursor.close().await.context("closing harness.dead")?;
    Ok((letters, unseen))
}

/// Returns what can be read of a letter's job.
pub(super) fn peek(letter: &DeadLetter) -> Peek {
    job::peek(&letter.body, letter.message_id.as_deref())
}

/// The id of a letter in lists: its message id, or its mark if that is missing, too long or not one printable word.
pub fn id_of(letter: &DeadLetter) -> String {
    let is_word = |id: &&String| (1..=MAX_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    letter.message_id.as_ref().filter(is_word).unwrap_or(&letter.mark).clone()
}

/// Whether an id names this letter.
pub(super) fn is_called(letter: &DeadLetter, id: &str) -> bool {
    letter.mark == id || letter.message_id.as_deref() == Some(id)
}

/// Reads what the ledger says about the jobs of letters.
pub(super) async fn standing(
    store: &Store,
    letters: impl Iterator<Item = &Peek>,
) -> anyhow::Result<Vec<Standing>> {
    let mut jobs: Vec<JobId> = letters.filter_map(|peek| peek.job_id).collect();
    jobs.sort();
    jobs.dedup();
    if jobs.is_empty() {
        return Ok(Vec::new());
    }
    store.standing(&jobs).await.context("asking the ledger for the jobs of letters")
}

/// Finds the standing of a letter's job.
pub(super) fn standing_of<'a>(standing: &'a [Standing], peek: &Peek) -> Option<&'a Standing> {
    let job_id = peek.job_id?;
    standing.iter().find(|standing| standing.job_id == job_id)
}

/// Returns the failed ones among these jobs.
pub(super) async fn failed(store: &Store, jobs: &[JobId]) -> anyhow::Result<Vec<FailedJob>> {
    store.failed_among(jobs).await.context("reading failed jobs")
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
}
