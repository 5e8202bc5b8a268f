//! What autoscalers decided. A decision is written under the leader's epoch before it is carried out, and
//! read back after a restart.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use job::Name;
use tokio_postgres::Row;

use super::leader::Leadership;
use crate::database::{LOCK_LEADERSHIP, Tx, leads, millis, query, read_name};
use crate::{Fenced, Store, StoreError};

/// A decision that is about to be carried out.
#[derive(Clone, Debug)]
pub struct NewDecision {
    /// The pool.
    pub pool: Name,
    /// When it was made, by Postgres's clock: Unix time in milliseconds.
    pub at_ms: u64,
    /// The number of workers in the workload's specification.
    pub from: u32,
    /// What the demand asks for, before any behaviour was applied; `None` when it is unknown.
    pub recommended: Option<u32>,
    /// The number of workers that it is to have.
    pub desired: u32,
    /// The rule that changed the number last.
    pub reason: String,
    /// JSON: what was seen.
    pub inputs: String,
    /// JSON: each rule's proposal.
    pub decision: String,
}

/// A decision in the ledger.
#[derive(Clone, Debug)]
pub struct DecisionView {
    /// Grows with every decision, across all pools.
    pub id: i64,
    /// The leader that made it.
    pub epoch: i64,
    /// As it was written.
    pub made: NewDecision,
    /// What came of it; `None` while that is not known.
    pub outcome: Option<DecisionOutcome>,
}

/// What came of a decision.
#[derive(Clone, Debug)]
pub struct DecisionOutcome {
    /// One word.
    pub outcome: String,
    /// Details, for people.
    pub detail: Option<String>,
    /// Unix time in milliseconds.
    pub at_ms: u64,
}

/// Refuses a decision under a lower epoch than the pool's last one, so that a pool's last decision always has
/// its highest epoch.
const INSERT: &str = concat!(
    "
    INSERT INTO harness_scale_decisions
           (pool, decided_at, epoch, from_replicas, recommended_replicas, desired_replicas, reason, inputs, decision)
    SELECT t.pool, to_timestamp(t.at_ms / 1000.0), $3, t.was, t.recommended, t.desired, t.reason,
           t.inputs::json, t.decision::json
      FROM unnest($4::text[], $5::bigint[], $6::int[], $7::int[], $8::int[], $9::text[], $10::text[], $11::text[])
      WITH ORDINALITY AS t(pool, at_ms, was, recommended, desired, reason, inputs, decision, turn)
     WHERE ",
    leads!(),
    "
       AND coalesce((SELECT d.epoch FROM harness_scale_decisions d
                      WHERE d.pool = t.pool ORDER BY d.id DESC LIMIT 1), 0) <= $3
     ORDER BY turn
    RETURNING id, pool"
);

const FINISH: &str = "
    UPDATE harness_scale_decisions SET outcome = $2, detail = $3, finished_at = clock_timestamp()
     WHERE id = $1 AND outcome IS NULL RETURNING id";

macro_rules! decision_columns {
    () => {
        "id, pool, (extract(epoch FROM decided_at) * 1000)::bigint, epoch, from_replicas, recommended_replicas,
         desired_replicas, reason, inputs::text, decision::text, outcome, detail,
         (extract(epoch FROM finished_at) * 1000)::bigint"
    };
}

const READ_SINCE: &str = concat!(
    "SELECT ",
    decision_columns!(),
    " FROM harness_scale_decisions
       WHERE decided_at >= clock_timestamp() - $2 * interval '1 millisecond' AND pool = ANY($1)
       ORDER BY decided_at DESC, id DESC LIMIT $3"
);

const READ_LAST: &str = concat!(
    "SELECT ",
    decision_columns!(),
    " FROM harness_scale_decisions WHERE pool = $1 ORDER BY id DESC LIMIT $2"
);

/// Deletes a limited number at a time. The next round takes the others.
const FORGET: &str = "
    DELETE FROM harness_scale_decisions WHERE id = ANY(ARRAY(
        SELECT id FROM harness_scale_decisions
         WHERE decided_at < clock_timestamp() - $1 * interval '1 millisecond' ORDER BY decided_at LIMIT 50000))";

impl Store {
    /// Writes decisions down before they are carried out. Returns for each, in their order, the row's id, or
    /// `Lost` if this leader was replaced: altogether, or in this pool, where a later leader has decided.
    pub async fn decide(
        &self,
        leadership: &Leadership,
        decisions: &[NewDecision],
    ) -> Result<Vec<Fenced<i64>>, StoreError> {
        let pools: Vec<&str> = decisions.iter().map(|new| new.pool.as_str()).collect();
        let at_ms: Vec<i64> = decisions.iter().map(|new| new.at_ms as i64).collect();
        let from: Vec<i32> = decisions.iter().map(|new| new.from as i32).collect();
        let recommended: Vec<Option<i32>> =
            decisions.iter().map(|new| new.recommended.map(|count| count as i32)).collect();
        let desired: Vec<i32> = decisions.iter().map(|new| new.desired as i32).collect();
        let reasons: Vec<&str> = decisions.iter().map(|new| new.reason.as_str()).collect();
        let inputs: Vec<&str> = decisions.iter().map(|new| new.inputs.as_str()).collect();
        let texts: Vec<&str> = decisions.iter().map(|new| new.decision.as_str()).collect();

        let Leadership { name, holder, epoch, .. } = leadership;
        let tx = Tx::prepare(&self.pool, "decide", [LOCK_LEADERSHIP, INSERT]).await?;
        let [_, inserted] = tx
            .run([
                &[name, holder, epoch],
                &[
                    name,
                    holder,
                    epoch,
                    &pools,
                    &at_ms,
                    &from,
                    &recommended,
                    &desired,
                    &reasons,
                    &inputs,
                    &texts,
                ],
            ])
            .await?;
        let mut ids = HashMap::<&str, VecDeque<i64>>::new();
        for row in &inserted {
            ids.entry(row.get(1)).or_default().push_back(row.get(0));
        }
        let mut answers = Vec::with_capacity(pools.len());
        for pool in &pools {
            let id = ids.get_mut(pool).and_then(VecDeque::pop_front);
            answers.push(id.map_or(Fenced::Lost, Fenced::Done));
        }
        Ok(answers)
    }

    /// Notes what came of a decision, once. Returns whether this call was the first.
    pub async fn finish_decision(
        &self,
        id: i64,
        outcome: &str,
        detail: Option<&str>,
    ) -> Result<bool, StoreError> {
        let rows = query(&self.pool, "finish_decision", FINISH, &[&id, &outcome, &detail]).await?;
        Ok(!rows.is_empty())
    }

    /// Returns the decisions of these pools that are not older than this, oldest first. If there are more
    /// than `limit`, it returns the latest.
    pub async fn decisions_since(
        &self,
        pools: &[Name],
        age: Duration,
        limit: u32,
    ) -> Result<Vec<DecisionView>, StoreError> {
        let pools: Vec<&str> = pools.iter().map(Name::as_str).collect();
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
            [&pools, &millis(age), &i64::from(limit)];
        let rows = query(&self.pool, "decisions_since", READ_SINCE, &params).await?;
        Ok(rows.iter().rev().filter_map(read_decision).collect())
    }

    /// Returns the last decisions of a pool, oldest first.
    pub async fn last_decisions(&self, pool: &Name, limit: u32) -> Result<Vec<DecisionView>, StoreError> {
        let rows =
            query(&self.pool, "last_decisions", READ_LAST, &[&pool.as_str(), &i64::from(limit)]).await?;
        Ok(rows.iter().rev().filter_map(read_decision).collect())
    }

    /// Deletes decisions older than this.
    pub async fn forget_decisions(&self, older_than: Duration) -> Result<(), StoreError> {
        query(&self.pool, "forget_decisions", FORGET, &[&millis(older_than)]).await?;
        Ok(())
    }
}

/// Reads [`decision_columns`].
fn read_decision(row: &Row) -> Option<DecisionView> {
    let unsigned = |column: usize| row.get::<_, i32>(column).unsigned_abs();
    let made = NewDecision {
        pool: read_name(row, 1)?,
        at_ms: row.get::<_, i64>(2).unsigned_abs(),
        from: unsigned(4),
        recommended: row.get::<_, Option<i32>>(5).map(i32::unsigned_abs),
        desired: unsigned(6),
        reason: row.get(7),
        inputs: row.get(8),
        decision: row.get(9),
    };
    let outcome = row.get::<_, Option<String>>(10).map(|outcome| DecisionOutcome {
        outcome,
        detail: row.get(11),
        at_ms: row.get::<_, Option<i64>>(12).unwrap_or_default().unsigned_abs(),
    });
    Some(DecisionView { id: row.get(0), epoch: row.get(3), made, outcome })
}
