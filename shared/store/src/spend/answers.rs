//! Answers that were paid, for a later attempt that asks the same.
//!
//! A checkpoint covers an answer when the run had been given the answer before it wrote the checkpoint. What the
//! ledger knows is how many checkpoints the run had written when the answer was settled, which is before the run gets
//! its end. So an answer is covered by any later checkpoint of its run, and by any checkpoint of a newer run.
//! A checkpoint that only says what was used covers none: a run that fails, or is handed back, ends with one, and the next
//! run begins where the session was before. It has counted what the answers cost, though.
//!
//! The statement that reserves notes whether there may be one, so that a call without one costs one round trip. Where there
//! may be one, nothing is held, and it is looked up in a second transaction. An answer that came from the cache is stored here
//! as well: a later attempt is given the same, whatever has become of the cache.

use job::Usage;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::settle::SettledCall;

/// A whole answer, as the run got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAnswer {
    /// Its `Content-Type`.
    pub content_type: String,
    /// Its bytes.
    pub body: Vec<u8>,
    /// How many checkpoints the run had written when it was settled.
    pub after_checkpoints: u32,
}

/// An answer that was paid before, and need not be paid again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenAnswer {
    /// Its `Content-Type`.
    pub content_type: String,
    /// Its bytes.
    pub body: Vec<u8>,
    /// Whether another job has paid it; else an earlier run of this one.
    pub cached: bool,
    /// What an earlier run of this job has paid for it, which no checkpoint says.
    pub paid: Usage,
}

/// Stores the answers of live jobs. One that a stale run settles late does not replace that of a newer run.
pub(super) const STORE: &str = "
    INSERT INTO harness_call_answers
           (job_id, request_hash, request_nth, session_id, epoch, after_checkpoints, call_id, content_type, body)
    SELECT t.* FROM unnest($1::uuid[], $2::bytea[], $3::int[], $4::text[], $5::bigint[], $6::int[], $7::uuid[],
                           $8::text[], $9::bytea[])
           AS t(job_id, request_hash, request_nth, session_id, epoch, after_checkpoints, call_id, content_type, body)
     WHERE EXISTS (SELECT FROM harness_jobs j WHERE j.job_id = t.job_id)
     ORDER BY t.job_id, t.request_hash, t.request_nth
    ON CONFLICT (job_id, request_hash, request_nth) DO UPDATE
       SET epoch = excluded.epoch, after_checkpoints = excluded.after_checkpoints, call_id = excluded.call_id,
           content_type = excluded.content_type, body = excluded.body, stored_at = excluded.stored_at
     WHERE harness_call_answers.epoch <= excluded.epoch";

/// Whether the checkpoint `c` changes its session, or says that an iteration was done.
macro_rules! is_progress {
    () => {
        "(c.iterations > 0 OR c.context_json IS NOT NULL OR c.delta ?| ARRAY['memory', 'context_window', 'feature_progress']
          OR (c.delta ->> 'replace_context')::boolean)"
    };
}

/// The CTE `answers`: what earlier runs of the jobs of the calls `came` were answered, unless a checkpoint covers it.
macro_rules! answers {
    () => {
        concat!(
            "answers AS MATERIALIZED (
            SELECT t.turn, s.content_type, s.body, false AS cached, coalesce(p.cost_microusd, 0) AS cost,
                   coalesce(p.input_tokens + p.cache_read_tokens + p.cache_write_tokens, 0) AS input,
                   coalesce(p.output_tokens, 0) AS output
              FROM came t
             CROSS JOIN LATERAL (
                   SELECT content_type, body, call_id, epoch, session_id, job_id, after_checkpoints
                     FROM harness_call_answers a
                    WHERE a.job_id = t.job_id AND a.request_hash = t.request_hash AND a.request_nth = t.request_nth
                      AND NOT EXISTS (SELECT FROM harness_checkpoints c
                                       WHERE c.session_id = a.session_id AND c.job_id = a.job_id AND c.epoch >= a.epoch
                                         AND (c.epoch > a.epoch OR c.ordinal >= a.after_checkpoints) AND ",
            is_progress!(),
            ")
                      AND (SELECT j.folded_epoch > a.epoch
                                  OR (j.folded_epoch = a.epoch AND j.folded_ordinal >= a.after_checkpoints)
                             FROM harness_jobs j WHERE j.job_id = a.job_id) IS NOT TRUE
                   OFFSET 0) s
              LEFT JOIN LATERAL (
                   SELECT * FROM harness_calls c
                    WHERE c.call_id = s.call_id AND c.state = 'settled' AND s.epoch < t.epoch
                      AND NOT EXISTS (SELECT FROM harness_checkpoints k
                                       WHERE k.session_id = s.session_id AND k.job_id = s.job_id AND k.epoch >= s.epoch
                                         AND (k.epoch > s.epoch OR k.ordinal >= s.after_checkpoints))
                   OFFSET 0) p ON true
             WHERE t.after_checkpoints IS NOT NULL AND t.alive
        )"
        )
    };
}
pub(super) use {answers, is_progress};

/// The answers of a batch, as [`STORE`] takes them.
pub(super) struct Answers<'a> {
    jobs: Vec<Uuid>,
    hashes: Vec<&'a [u8]>,
    nths: Vec<i32>,
    sessions: Vec<&'a str>,
    epochs: Vec<i64>,
    after: Vec<i32>,
    calls: Vec<Uuid>,
    content_types: Vec<&'a str>,
    bodies: Vec<&'a [u8]>,
}

impl<'a> Answers<'a> {
    /// Takes the last one where two answer the same request: one statement changes a row only once.
    pub fn of(batch: &[&'a SettledCall]) -> Answers<'a> {
        let mut answers = std::collections::BTreeMap::new();
        for settled in batch {
            if let Some(answer) = &settled.answer {
                let call = &settled.call;
                let job = Uuid::from(call.claim.job_id());
                answers.insert((job, call.request_hash, call.request_nth), (call, answer));
            }
        }
        let all = || answers.values();
        let int = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        Answers {
            jobs: all().map(|(call, _)| call.claim.job_id().into()).collect(),
            hashes: all().map(|(call, _)| call.request_hash.as_slice()).collect(),
            nths: all().map(|(call, _)| int(call.request_nth)).collect(),
            sessions: all().map(|(call, _)| call.claim.session_key()).collect(),
            epochs: all().map(|(call, _)| call.claim.epoch()).collect(),
            after: all().map(|(_, answer)| int(answer.after_checkpoints)).collect(),
            calls: all().map(|(call, _)| call.call_id).collect(),
            content_types: all().map(|(_, answer)| answer.content_type.as_str()).collect(),
            bodies: all().map(|(_, answer)| answer.body.as_slice()).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }

    pub fn params(&self) -> [&(dyn ToSql + Sync); 9] {
        [
            &self.jobs,
            &self.hashes,
            &self.nths,
            &self.sessions,
            &self.epochs,
            &self.after,
            &self.calls,
            &self.content_types,
            &self.bodies,
        ]
    }
}
