//! Blobs: long strings in the entries of a session's context, kept once however often rows move or are written whole.
//!
//! What is long in a context are images, documents and outputs of tools: strings. Each row that has such a string has a
//! reference in its place, itself a JSON string with the hash of what it stands for, and lists the hash in its column
//! `blobs`. So a row that lists none is as it was written. In one that does, every string that begins like a reference is
//! one: an entry's own string that begins so is kept as a blob as well, however short it is.
//!
//! A blob is its session's, and lies beside it under the session's lock. A blob of a tenant, or of the fleet, would save
//! more where many sessions hold the same document; but sessions that never met would wait for each other's rows, a blob
//! would have to know all sessions that have it, and whether a text was known could be seen by the caller that sends it.
//!
//! A blob goes when neither the session nor its history refers to it any more. It is `live` while the session, the state
//! before its live job or an unfolded checkpoint may; each fold looks ([`KEEP_BLOBS`]). After that it is kept until the
//! partition of the history is dropped in which it may be.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::fold::Fold;
use crate::database::query;
use crate::{Store, StoreError};

/// Longer strings are kept as blobs; with their quotes and escapes, in bytes.
const LONG: usize = 64 * 1024;
/// How a reference begins.
const MARK: &str = "\"harness-blob:";

type Hash = [u8; 32];

fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A long string of a text.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(super) hash: Hash,
    /// Where it is, with its quotes.
    pub(super) at: Range<usize>,
}

/// Returns the next string of a JSON text, with its quotes.
fn next_string(text: &str, from: usize) -> Option<Range<usize>> {
    let bytes = text.as_bytes();
    let start = from + bytes.get(from..)?.iter().position(|byte| *byte == b'"')?;
    let mut at = start + 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(start..at + 1),
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
}

fn strings(text: &str) -> impl Iterator<Item = Range<usize>> {
    let next = |last: &Range<usize>| next_string(text, last.end);
    std::iter::successors(next_string(text, 0), next)
}

/// Returns the strings of a JSON text that are to be kept as blobs, with their hashes.
fn long(text: &str) -> Vec<(Range<usize>, Hash)> {
    if text.len() <= LONG && !text.contains(MARK) {
        return Vec::new();
    }
    let is_long = |at: &Range<usize>| at.len() > LONG || text[at.clone()].starts_with(MARK);
    strings(text).filter(is_long).map(|at| (at.clone(), Sha256::digest(&text[at]).into())).collect()
}

/// Writes references in the place of these strings.
fn refer(text: &str, strings: &[(Range<usize>, Hash)]) -> String {
    let mut parted = String::with_capacity(text.len().min(LONG));
    let mut from = 0;
    for (at, hash) in strings {
        parted.push_str(&text[from..at.start]);
        parted.push_str(MARK);
        parted.push_str(&hex(hash));
        parted.push('"');
        from = at.end;
    }
    parted.push_str(&text[from..]);
    parted
}

/// Returns a JSON text with references in the place of its long strings, and these, each once; `None` if it has none.
pub(crate) fn part(text: &str) -> Option<(String, Vec<Blob>)> {
    let strings = long(text);
    if strings.is_empty() {
        return None;
    }
    let mut seen = HashSet::new();
    let new = strings.iter().filter(|(_, hash)| seen.insert(*hash));
    let blobs = new.map(|(at, hash)| Blob { hash: *hash, at: at.clone() }).collect();
    Some((refer(text, &strings), blobs))
}

/// The blobs of a session, read from JSON: an object from hash to content.
pub(crate) struct Contents<'a>(HashMap<&'a str, &'a RawValue>);

impl<'a> Contents<'a> {
    /// Reads [`session_blobs`].
    pub(crate) fn of(json: &'a str) -> Contents<'a> {
        // Keys are hashes: without escapes.
        Contents(serde_json::from_str(json).unwrap_or_default())
    }

    /// As [`Contents::join`], for the entries in a list of checkpoints.
    pub(super) fn join_appended(&self, text: &str, missing: &mut Option<String>) -> String {
        let mut rows: Vec<Appended<'_>> = serde_json::from_str(text).unwrap_or_default();
        for entries in rows.iter_mut().filter_map(|appended| appended.entries.as_mut()) {
            let joined = self.join(entries.get(), missing);
            *entries = RawValue::from_string(joined).expect("strings for strings");
        }
        serde_json::to_string(&rows).expect("JSON texts are written without errors")
    }

    /// Puts the blobs into a JSON text that refers to them. One that is not there leaves its reference, and its hash is
    /// noted.
    pub(crate) fn join(&self, text: &str, missing: &mut Option<String>) -> String {
        let mut joined = String::with_capacity(text.len());
        let mut from = 0;
        for at in strings(text).filter(|at| text[at.clone()].starts_with(MARK)) {
            let hash = &text[at.start + MARK.len()..at.end - 1];
            joined.push_str(&text[from..at.start]);
            match self.0.get(hash) {
                Some(content) => joined.push_str(content.get()),
                None => {
                    joined.push_str(&text[at.clone()]);
                    missing.get_or_insert_with(|| hash.to_owned());
                }
            }
            from = at.end;
        }
        joined.push_str(&text[from..]);
        joined
    }
}

/// A checkpoint that is not folded yet, as JSON. Only its entries have references.
#[derive(Deserialize, Serialize)]
struct Appended<'a> {
    #[serde(borrow)]
    job_id: &'a RawValue,
    #[serde(borrow)]
    delta: &'a RawValue,
    entries: Option<Box<RawValue>>,
}

/// The live blobs of a session as JSON, where a condition says that something refers to them.
macro_rules! session_blobs {
    ($if:literal, $session:literal) => {
        concat!(
            "CASE WHEN ",
            $if,
            " THEN coalesce((SELECT json_object_agg(encode(b.hash, 'hex'), b.content) FROM harness_blobs b
                              WHERE b.session_id = ",
            $session,
            " AND b.live), '{}')::text END"
        )
    };
}
pub(crate) use session_blobs;

/// A list of hashes as a literal of the type `bytea[]`; `None` if it is empty.
pub(super) fn literal<'a>(hashes: impl IntoIterator<Item = &'a [u8]>) -> Option<String> {
    let texts: Vec<String> = hashes.into_iter().map(|hash| format!(r#""\\x{}""#, hex(hash))).collect();
    (!texts.is_empty()).then(|| format!("{{{}}}", texts.join(",")))
}

/// Keeps the blobs of checkpoints that the jobs' holders append.
pub(super) const STORE_BLOBS: &str = "
    INSERT INTO harness_blobs (session_id, hash, content)
    SELECT DISTINCT ON (b.session_id, b.hash) b.session_id, b.hash, b.content::json
      FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::text[], $5::bytea[], $6::text[])
           AS b(worker_id, job_id, epoch, session_id, hash, content)
     WHERE EXISTS (SELECT FROM harness_jobs j
                    WHERE j.job_id = b.job_id AND j.session_id = b.session_id AND j.epoch = b.epoch
                      AND j.worker_id IS NOT DISTINCT FROM b.worker_id)
     ORDER BY b.session_id, b.hash
    ON CONFLICT (session_id, hash) DO UPDATE SET live = true WHERE NOT harness_blobs.live";

/// Sees which blobs of sessions are live, after folds. What was live is now in the history of the job that has folded, or was
/// before: it is kept as long as that.
pub(super) const KEEP_BLOBS: &str = "
    UPDATE harness_blobs b
       SET kept_by = greatest(b.kept_by, k.job_id),
           live = b.hash = ANY(coalesce(s.blobs, '{}'))
               OR EXISTS (SELECT FROM harness_jobs j WHERE j.session_id = b.session_id AND b.hash = ANY(j.before_blobs))
               OR EXISTS (SELECT FROM harness_checkpoints c WHERE c.session_id = b.session_id AND b.hash = ANY(c.blobs))
      FROM unnest($1::text[], $2::uuid[]) AS k(session_id, job_id), harness_sessions s
     WHERE s.session_id = k.session_id AND b.session_id = k.session_id AND b.live";

const KNOWN: &str = "SELECT hash FROM harness_blobs WHERE session_id = $1 AND hash = ANY($2) AND live";

impl Store {
    /// Writes references into a session's whole state, where its strings are kept as blobs. (One that was appended before
    /// there were blobs is kept in the state itself.)
    pub(crate) async fn refer_in_fold(&self, session: &str, fold: &mut Fold) -> Result<(), StoreError> {
        fold.blobs = self.refer_in(session, &mut fold.state[1]).await?;
        Ok(())
    }

    /// As [`Store::refer_in_fold`], for a context alone. Returns the hashes.
    pub(super) async fn refer_in(
        &self,
        session: &str,
        context: &mut String,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut strings = if self.switches.schema_26() { long(context) } else { Vec::new() };
        if strings.is_empty() {
            return Ok(Vec::new());
        }
        let hashes: Vec<&[u8]> = strings.iter().map(|(_, hash)| hash.as_slice()).collect();
        let known = query(&self.pool, "known_blobs", KNOWN, &[&session, &hashes]).await?;
        let known: HashSet<Vec<u8>> = known.iter().map(|row| row.get(0)).collect();
        strings.retain(|(_, hash)| known.contains(hash.as_slice()));
        *context = refer(context, &strings);
        Ok(known.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn json(text: &str, blobs: &[Blob]) -> String {
        let one = |blob: &Blob| format!("\"{}\" : {}", hex(&blob.hash), &text[blob.at.clone()]);
        format!("{{ {} }}", blobs.iter().map(one).collect::<Vec<_>>().join(", "))
    }

    /// Parts a text and joins it again.
    fn there_and_back(text: &str) -> (String, usize) {
        let (parted, blobs) = part(text).unwrap_or_else(|| (text.to_owned(), Vec::new()));
        assert!(serde_json::from_str::<&RawValue>(&parted).is_ok(), "{parted:.200}");
        let mut missing = None;
        assert_eq!(Contents::of(&json(text, &blobs)).join(&parted, &mut missing), text);
        assert_eq!(missing, None);
        (parted, blobs.len())
    }

    #[test]
    fn only_long_strings_are_taken_out_and_each_is_kept_once() {
        let image = format!(r#""{}\u0000\"é""#, "A".repeat(LONG));
        let text = format!(r#"[{{"b":1E5, "data":{image}}},"short",{image},{{"a\\":{image}}}]"#);
        let (parted, blobs) = there_and_back(&text);
        assert!(blobs == 1 && parted.len() < 500 && parted.contains(r#"{"b":1E5, "data":"#), "{parted}");
        let short = format!(r#"["{}"]"#, "A".repeat(LONG - 2));
        assert_eq!(there_and_back(&short), (short.clone(), 0));
    }

    #[test]
    fn what_only_looks_like_a_reference_comes_back_as_it_was() {
        let forged =
            format!(r#"["harness-blob:{}", "say \"harness-blob:\"", "harness-blob:"]"#, "0".repeat(64));
        let (parted, blobs) = there_and_back(&forged);
        assert!(blobs == 2 && parted.contains(r#""say \"harness-blob:\"""#), "{parted}");
    }

    #[test]
    fn a_blob_that_is_not_there_leaves_its_reference_and_is_named() {
        let (text, blobs) = part(&format!(r#"["{}"]"#, "x".repeat(LONG))).unwrap();
        let mut missing = None;
        assert_eq!(Contents::of("{}").join(&text, &mut missing), text);
        assert_eq!(missing, Some(hex(&blobs[0].hash)));
    }

    proptest! {
        #[test]
        fn any_text_comes_back_to_the_letter(
            parts in prop::collection::vec(("[ a-z\"\\\\:{}é]{0,12}", any::<bool>(), any::<bool>()), 0..8),
        ) {
            let string = |(text, long, marked): &(String, bool, bool)| {
                let mark = if *marked { "harness-blob:" } else { "" };
                let long = if *long { "z".repeat(LONG) } else { String::new() };
                serde_json::to_string(&format!("{mark}{long}{text}")).unwrap()
            };
            let strings: Vec<String> = parts.iter().map(string).collect();
            there_and_back(&format!("[{}]", strings.join(" , ")));
        }
    }
}
