//! The list of jobs with certain labels. It goes along the index of one label, so that it costs what that label finds,
//! however many other jobs there are.

use job::{JobState, Label};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

use super::labels::has_labels;
use super::list::{JobFilter, JobLine, LOOKED_AT, read_line};
use crate::database::{query, rfc3339};
use crate::{Store, StoreError};

/// Returns, for the label that reaches furthest back within `$4` rows, that label and the last of these rows. No row: it
/// has fewer.
const FURTHEST: &str = "
    SELECT t.label, (SELECT l.job_id FROM harness_labels l
                      WHERE l.tenant = $1 AND l.label = t.label AND l.job_id < $2 AND l.job_id >= $3
                      ORDER BY l.job_id DESC OFFSET $4 LIMIT 1) AS last
      FROM unnest($5::text[]) WITH ORDINALITY AS t(label, turn)
     ORDER BY last NULLS FIRST, turn LIMIT 1";

/// The jobs of a label, as they are looked up in a table, with the conditions of the filter.
macro_rules! labelled {
    ($finished_at:expr, $table:literal, $more:literal) => {
        concat!(
            "SELECT j.job_id, j.session_id, j.agent_id, j.pool, j.state, j.attempts, ",
            rfc3339!("j.accepted_at"),
            ", ",
            $finished_at,
            ", j.failure ->> 'code'
               FROM harness_labels l
              CROSS JOIN LATERAL (SELECT * FROM ",
            $table,
            " j WHERE j.job_id = l.job_id OFFSET 0) j
              WHERE l.tenant = $8 AND l.label = $9 AND l.job_id < $1 AND l.job_id >= $2
                AND j.tenant = $8 AND (j.session_id < '~') = ($8 = 'default')
                AND (cardinality($3::text[]) = 0 OR j.state = ANY($3))
                AND ($4::text IS NULL OR j.agent_id = $4)
                AND ($5::text IS NULL OR j.session_id = $5)
                AND ($6::text IS NULL OR j.pool = $6)
                AND ",
            has_labels!("$8", "l.job_id", "$10"),
            $more,
            " ORDER BY l.job_id DESC LIMIT $7"
        )
    };
}

const LIVE: &str = labelled!("NULL::text", "harness_jobs", "");

const ENDED: &str = labelled!(
    rfc3339!("j.finished_at"),
    "harness_results",
    " AND (NOT $11 OR (j.state = 'failed' AND j.redriven_as IS NULL AND j.dismissed_at IS NULL))"
);

/// A label's jobs from one id to another, which are looked at.
pub(super) struct LabelRange {
    label: String,
    /// The other labels that a job must have.
    others: Vec<String>,
    /// Where the look ends, if there may be more behind it.
    pub(super) lowest: Option<Uuid>,
}

impl Store {
    /// Returns the label whose jobs are looked at, the rarest as far as a bounded look shows.
    pub(super) async fn rarest_label(
        &self,
        filter: &JobFilter,
        before: Uuid,
        since: Uuid,
    ) -> Result<LabelRange, StoreError> {
        let labels: Vec<String> = filter.labels.iter().map(Label::to_string).collect();
        let (first, furthest) = (labels.first().cloned().unwrap_or_default(), labels.len());
        let look = async |labels: &[String], rows: i64| -> Result<(String, Option<Uuid>), StoreError> {
            let tenant = filter.tenant.as_str();
            let params: [&(dyn ToSql + Sync); 5] = [&tenant, &before, &since, &(rows - 1), &labels];
            let rows = query(&self.pool, "furthest_label", FURTHEST, &params).await?;
            Ok(rows.first().map_or((first.clone(), None), |row| (row.get(0), row.get(1))))
        };
        let share = LOOKED_AT / i64::try_from(furthest).unwrap_or(i64::MAX).max(1);
        let (label, mut lowest) = look(&labels, share.max(1)).await?;
        if lowest.is_some() && furthest > 1 {
            (_, lowest) = look(std::slice::from_ref(&label), LOOKED_AT).await?;
        }
        let others = labels.into_iter().filter(|other| *other != label).collect();
        Ok(LabelRange { label, others, lowest })
    }

    /// Returns the jobs of a label between two ids that pass the filter: live ones first, then ended ones, each newest
    /// first.
    pub(super) async fn list_labelled(
        &self,
        filter: &JobFilter,
        of: &LabelRange,
        [before, from]: [Uuid; 2],
        limit: i64,
    ) -> Result<Vec<JobLine>, StoreError> {
        let states: Vec<&str> = filter.states.iter().copied().map(JobState::as_str).collect();
        let (agent, pool) = (filter.agent_text(), filter.pool_text());
        let (session, tenant) = (filter.session_key(), filter.tenant.as_str());
        let session = session.as_ref().map(job::SessionKey::as_str);
        let mut params: Vec<&(dyn ToSql + Sync)> =
            vec![&before, &from, &states, &agent, &session, &pool, &limit, &tenant, &of.label, &of.others];
        let mut found = Vec::new();
        if !filter.dead {
            let rows = query(&self.pool, "list_live_labelled", LIVE, &params).await?;
            found.extend(rows.iter().map(read_line));
        }
        params.push(&filter.dead);
        let rows = query(&self.pool, "list_ended_labelled", ENDED, &params).await?;
        found.extend(rows.iter().map(read_line));
        Ok(found)
    }
}
