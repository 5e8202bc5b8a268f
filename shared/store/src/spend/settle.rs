//! Settle: records what became of a call. It asks for no lease, because what a call has cost is a fact. Only what its run
//! adds to its session in the same transaction is fenced.

use std::collections::{BTreeMap, HashSet};

use deadpool_postgres::Pool;
use job::{Change, Usd};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::account::{keys_of_call, micros};
use super::answers::{Answers, STORE, StoredAnswer};
use super::call::{CallTokens, Columns, NewCall, call_columns, call_values, check_cost};
use super::rates::{Uses, give_back};
use crate::database::{Batched, Params, Tx, read_ids};
use crate::jobs::{Append, Appends, CheckpointRow};
use crate::{Fenced, Store, StoreError};

/// What became of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallOutcome {
    /// The provider has reported what it used.
    Settled {
        /// What it costs.
        cost: Usd,
        /// The tokens.
        tokens: CallTokens,
        /// The model that answered.
        answered_by: String,
    },
    /// Nothing is billed: it was never sent, or refused before any work.
    Free,
    /// It was sent, and what it costs is not known. The reservation counts in full.
    Unknown {
        /// Why, for people.
        reason: String,
    },
}

/// The end of a call.
#[derive(Clone, Debug)]
pub struct SettledCall {
    /// The call, as it was reserved.
    pub call: NewCall,
    /// What became of it.
    pub outcome: CallOutcome,
    /// The id by which the provider finds it.
    pub provider_request_id: Option<String>,
    /// Its answer, for later attempts at the job; only if it was whole.
    pub answer: Option<StoredAnswer>,
    /// What it has used of each of the call's takes, in their order. What is missing was used as it was taken.
    pub used: Vec<u64>,
}

/// The answer to a settlement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// It is recorded now. It cost this much more than its reservation.
    Now {
        /// Zero, unless the bound was wrong.
        overrun: Usd,
    },
    /// It was recorded before, and nothing has changed.
    Before,
}

impl CallOutcome {
    fn state(&self) -> &'static str {
        match self {
            CallOutcome::Settled { .. } => "settled",
            CallOutcome::Free => "free",
            CallOutcome::Unknown { .. } => "unknown",
        }
    }
}

/// Inserts the calls that are not there: their reservation was refused, or has not arrived, and then it finds them
/// settled. They are held within this transaction only.
const INSERT_MISSING: &str = concat!(
    "WITH inserted AS (
        INSERT INTO harness_calls (",
    call_columns!(),
    ", on_session, on_job)
        SELECT ",
    call_values!(),
    ", false, false
          FROM unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::uuid[], $5::text[], $6::text[], $7::text[],
                      $8::text[], $9::text[], $10::bigint[], $11::bytea[], $12::int[])
               AS a(call_id, job_id, epoch, worker_id, session_id, agent_id, user_id, provider, model, reserved,
                    request_hash, request_nth)
         ORDER BY a.call_id
        ON CONFLICT DO NOTHING RETURNING *
    )
    INSERT INTO harness_account_moves (key, held_microusd)
    SELECT k.key, sum(c.reserved_microusd) FROM inserted c ",
    keys_of_call!(),
    " GROUP BY k.key"
);

/// Settles calls, once. What became `unknown` because its run was lost may still be settled: the process that made
/// the call knows.
macro_rules! settle {
    ($more:expr) => { concat!(
    "WITH incoming AS MATERIALIZED (
        SELECT * FROM unnest($1::uuid[], $2::text[], $3::bigint[], $4::text[], $5::bigint[], $6::bigint[], $7::bigint[],
                             $8::bigint[], $9::text[], $10::text[])
            AS t(call_id, state, cost, answered_by, input, cache_read, cache_write, output, request_id, reason)
    ), locked AS MATERIALIZED (
        SELECT call_id, state AS before, cost_microusd AS spent, reserved_microusd AS reserved FROM harness_calls
         WHERE call_id = ANY($1) AND state = ANY($11) ORDER BY call_id FOR UPDATE
    ), c AS (
        UPDATE harness_calls c
           SET state = i.state, settled_at = now(), answered_by = i.answered_by,
               cost_microusd = CASE i.state WHEN 'settled' THEN i.cost
                                            WHEN 'unknown' THEN c.reserved_microusd ELSE 0 END,
               overrun_microusd = CASE i.state WHEN 'settled' THEN greatest(i.cost - c.reserved_microusd, 0) ELSE 0 END,
               input_tokens = i.input, cache_read_tokens = i.cache_read, cache_write_tokens = i.cache_write,
               output_tokens = i.output, provider_request_id = coalesce(i.request_id, c.provider_request_id),
               reason = i.reason
          FROM incoming i JOIN locked l ON l.call_id = i.call_id
         WHERE c.call_id = ANY(ARRAY(SELECT call_id FROM locked)) AND c.call_id = i.call_id
           AND (l.before = 'held' OR i.state <> 'unknown')
        RETURNING c.*, l.before, l.spent, l.reserved
    ), moved AS (
        INSERT INTO harness_account_moves (key, spent_microusd, held_microusd, overrun_microusd)
        SELECT k.key, sum(c.cost_microusd - c.spent), -sum(CASE c.before WHEN 'held' THEN c.reserved ELSE 0 END),
               sum(c.overrun_microusd)
          FROM c ",
    keys_of_call!(),
    " GROUP BY k.key
    )",
    $more,
    "
    SELECT call_id, overrun_microusd FROM c"
    ) };
}

const SETTLE: &str = settle!("");

/// As [`SETTLE`], for calls that have used less of their keys' rate limits than they took.
const SETTLE_WITH_RATES: &str = settle!(give_back!());

/// The states from which the one who made a call settles it.
const OPEN: [&str; 2] = ["held", "unknown"];

/// As [`INSERT_MISSING`] and [`SETTLE`] take them.
struct Outcomes<'a> {
    calls: Vec<Uuid>,
    states: Vec<&'static str>,
    costs: Vec<i64>,
    answered_by: Vec<Option<&'a str>>,
    tokens: [Vec<i64>; 4],
    request_ids: Vec<Option<&'a str>>,
    reasons: Vec<Option<&'a str>>,
}

impl<'a> Outcomes<'a> {
    fn of(batch: &[(Uuid, &'a CallOutcome, Option<&'a str>)]) -> Outcomes<'a> {
        let settled = |outcome: &'a CallOutcome| match outcome {
            CallOutcome::Settled { cost, tokens, answered_by } => {
                Some((*cost, *tokens, answered_by.as_str()))
            }
            CallOutcome::Free | CallOutcome::Unknown { .. } => None,
        };
        let tokens = |of: fn(CallTokens) -> u64| {
            let count = |(_, outcome, _): &(Uuid, &'a CallOutcome, Option<&'a str>)| {
                settled(outcome).map_or(0, |(_, tokens, _)| i64::try_from(of(tokens)).unwrap_or(i64::MAX))
            };
            batch.iter().map(count).collect()
        };
        Outcomes {
            calls: batch.iter().map(|it| it.0).collect(),
            states: batch.iter().map(|it| it.1.state()).collect(),
            costs: batch.iter().map(|it| settled(it.1).map_or(0, |(cost, ..)| micros(cost))).collect(),
            answered_by: batch.iter().map(|it| settled(it.1).map(|(_, _, model)| model)).collect(),
            tokens: [
                tokens(|it| it.input),
                tokens(|it| it.cache_read),
                tokens(|it| it.cache_write),
                tokens(|it| it.output),
            ],
            request_ids: batch.iter().map(|it| it.2).collect(),
            reasons: batch
                .iter()
                .map(|it| match it.1 {
                    CallOutcome::Unknown { reason } => Some(reason.as_str()),
                    CallOutcome::Settled { .. } | CallOutcome::Free => None,
                })
                .collect(),
        }
    }

    fn params<'b>(&'b self, from: &'b &'b [&'static str]) -> [&'b (dyn ToSql + Sync); 11] {
        let [input, cache_read, cache_write, output] = &self.tokens;
        [
            &self.calls,
            &self.states,
            &self.costs,
            &self.answered_by,
            input,
            cache_read,
            cache_write,
            output,
            &self.request_ids,
            &self.reasons,
            from,
        ]
    }
}

/// A settlement on its way into the ledger.
#[derive(Clone)]
pub(crate) struct Settling {
    call: SettledCall,
    /// What the run adds to its session for the answer.
    append: Option<Append>,
}

impl Batched for Settling {
    type Answer = (Settled, Option<Fenced<()>>);
    const MAX_ROWS: usize = 64;

    fn bytes(&self) -> usize {
        let answer = self.call.answer.as_ref().map_or(0, |answer| answer.body.len());
        answer + self.append.as_ref().map_or(0, Append::bytes) + 700
    }

    fn key(&self) -> u128 {
        self.call.call.call_id.as_u128()
    }

    /// A transaction takes one delta of a job.
    fn more_keys(&self) -> impl Iterator<Item = u128> {
        self.append.iter().map(Append::key)
    }

    /// Deltas come first: jobs are locked before calls, as a rescue locks them.
    async fn commit(pool: &Pool, batch: &[Self]) -> Result<Vec<Self::Answer>, StoreError> {
        let calls: Vec<&SettledCall> = batch.iter().map(|it| &it.call).collect();
        let columns = Columns::of(calls.iter().map(|settled| &settled.call));
        let outcomes: Vec<_> = calls
            .iter()
            .map(|it| (it.call.call_id, &it.outcome, it.provider_request_id.as_deref()))
            .collect();
        let outcomes = Outcomes::of(&outcomes);
        let mut uses = Uses::default();
        calls.iter().for_each(|it| uses.add(&it.call, &it.used));
        let open = OPEN.as_slice();
        let mut params = outcomes.params(&open).to_vec();
        let mut settle = SETTLE;
        if !uses.is_empty() {
            settle = SETTLE_WITH_RATES;
            params.extend(uses.params());
        }
        let appends: Vec<&Append> = batch.iter().filter_map(|it| it.append.as_ref()).collect();
        let appends = Appends::of(&appends);
        let appending = appends.as_ref().map(Appends::steps).unwrap_or_default();
        let (inserting, answers) = (columns.params(), Answers::of(&calls));
        let storing = answers.params();
        let mut steps: Vec<_> = appending.iter().map(|(sql, params)| (*sql, params.as_slice())).collect();
        let settles = steps.len() + 1;
        steps.extend([(INSERT_MISSING, inserting.as_slice()), (settle, params.as_slice())]);
        if !answers.is_empty() {
            steps.push((STORE, storing.as_slice()));
        }
        let rows = Tx::run_steps(pool, "settle", &steps).await?;
        let held = appends.as_ref().map_or_else(HashSet::new, |_| read_ids(&rows[0]));
        let settled: BTreeMap<Uuid, Usd> = rows[settles].iter().map(read_settled).collect();
        let answer = |it: &Settling| {
            let overrun = settled.get(&it.call.call.call_id);
            let settled = overrun.map_or(Settled::Before, |overrun| Settled::Now { overrun: *overrun });
            (settled, it.append.as_ref().map(|append| Appends::answer(&held, append)))
        };
        Ok(batch.iter().map(answer).collect())
    }

    fn changed(&self, (_, written): &Self::Answer, changes: &mut Vec<Change>) {
        if let (Some(append), Some(written)) = (&self.append, written) {
            append.changed(written, changes);
        }
    }
}

fn read_settled(row: &Row) -> (Uuid, Usd) {
    (row.get(0), Usd::from_micros(row.get::<_, i64>(1).max(0).unsigned_abs()))
}

const LOG: &str = "
    INSERT INTO harness_audit_log (actor, act, detail)
    SELECT $1, 'call_settled', jsonb_build_object('call', $2::uuid::text, 'cost_microusd', $3::bigint)
     WHERE EXISTS (SELECT FROM harness_calls
                    WHERE call_id = $2 AND state IN ('settled', 'free') AND settled_at = now())";

impl Store {
    /// Records what became of a call, with its answer. Works after the end of its run. Safe to repeat after a lost
    /// reply. A cost above [`MOST_OF_A_CALL`](super::MOST_OF_A_CALL) is refused.
    pub async fn settle(&self, settled: SettledCall) -> Result<Settled, StoreError> {
        Ok(self.settle_with(settled, None).await?.0)
    }

    /// As [`Store::settle`], and appends in the same transaction what the run adds to its session for the answer. If the run has lost
    /// its job, the call is settled all the same. Repeated with the same row, it appends nothing again.
    pub async fn settle_and_checkpoint(
        &self,
        settled: SettledCall,
        row: CheckpointRow,
    ) -> Result<(Settled, Fenced<()>), StoreError> {
        let append = Append::of(row, self.switches.schema_26());
        let (settled, written) = self.settle_with(settled, Some(append)).await?;
        Ok((settled, written.unwrap_or(Fenced::Lost)))
    }

    async fn settle_with(
        &self,
        call: SettledCall,
        append: Option<Append>,
    ) -> Result<(Settled, Option<Fenced<()>>), StoreError> {
        if let CallOutcome::Settled { cost, .. } = call.outcome {
            check_cost(cost)?;
        }
        self.settlements.call(Settling { call, append }).await
    }

    /// Settles a call whose cost is not known, after an operator has looked at the provider's record. Returns whether
    /// there was such a call.
    pub async fn settle_unknown(&self, call_id: Uuid, cost: Usd, actor: &str) -> Result<bool, StoreError> {
        check_cost(cost)?;
        let outcome = match cost {
            Usd::ZERO => CallOutcome::Free,
            cost => CallOutcome::Settled { cost, tokens: CallTokens::default(), answered_by: String::new() },
        };
        let outcomes = [(call_id, &outcome, None)];
        let outcomes = Outcomes::of(&outcomes);
        let cost = micros(cost);
        let from = ["unknown"];
        let from = from.as_slice();
        let params = outcomes.params(&from);
        let log: [&(dyn ToSql + Sync); 3] = [&actor, &call_id, &cost];
        let tx = Tx::prepare(&self.pool, "settle_unknown", [SETTLE, LOG]).await?;
        let [settled, _] = tx.run([&params as &Params<'_>, &log]).await?;
        Ok(read_ids(&settled).contains(&call_id))
    }
}
