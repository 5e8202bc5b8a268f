//! Labels of jobs: written with the row that first records a job, and read by job or by label.
//!
//! A statement writes them only where a job of the batch has some, so that jobs without labels cost nothing.

use std::collections::HashSet;

use job::{JobSpec, Labels};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// Follows the statements that insert jobs, and writes the labels of those that this transaction has inserted, which
/// their time shows. A job that was known keeps the labels that it has. A label must not make its job fail, so one
/// without a partition is left out: partitions are made ahead, and upkeep may have been down for days.
const WRITE_LABELS: &str = "
    INSERT INTO harness_labels (tenant, label, job_id)
    SELECT j.tenant, t.label, t.job_id
      FROM unnest($1::uuid[], $2::text[]) AS t(job_id, label)
     CROSS JOIN LATERAL (SELECT tenant, accepted_at FROM harness_jobs j WHERE j.job_id = t.job_id OFFSET 0) j
     CROSS JOIN LATERAL (
           SELECT ('x' || substr(replace(t.job_id::text, '-', ''), 1, 12))::bit(48)::bigint / 604800000 AS week OFFSET 0) w
     WHERE j.accepted_at = now()
       AND (SELECT i.inhparent FROM pg_inherits i
             WHERE i.inhrelid = to_regclass('harness_labels_w' || w.week) AND NOT i.inhdetachpending)
           = 'harness_labels'::regclass
    ON CONFLICT DO NOTHING";

/// The labels of a batch, one vector per column.
#[derive(Default)]
pub(crate) struct LabelColumns {
    jobs: Vec<Uuid>,
    labels: Vec<String>,
}

impl LabelColumns {
    /// Of an id that occurs twice, the first counts, as it does for the job's row.
    pub(crate) fn of<'a>(specs: impl Iterator<Item = &'a JobSpec>) -> LabelColumns {
        let mut columns = LabelColumns::default();
        let mut seen = HashSet::new();
        for spec in specs.filter(|spec| !spec.labels.is_empty()) {
            if seen.insert(spec.job_id) {
                for label in spec.labels.texts() {
                    columns.jobs.push(spec.job_id.into());
                    columns.labels.push(label);
                }
            }
        }
        columns
    }

    /// Returns the statement that writes them, if there are any.
    pub(crate) fn statement(&self) -> Option<&'static str> {
        (!self.jobs.is_empty()).then_some(WRITE_LABELS)
    }

    pub(crate) fn params(&self) -> [&(dyn ToSql + Sync); 2] {
        [&self.jobs, &self.labels]
    }
}

/// A job's labels, as a column of a query.
macro_rules! labels_of {
    ($job_id:literal) => {
        concat!("(SELECT array_agg(l.label) FROM harness_labels l WHERE l.job_id = ", $job_id, ")")
    };
}
pub(super) use labels_of;

/// Whether a job has all of some labels, as a condition.
macro_rules! has_labels {
    ($tenant:literal, $job_id:literal, $labels:literal) => {
        concat!(
            "(SELECT count(*) FROM unnest(",
            $labels,
            "::text[]) AS o(label)
               WHERE (SELECT m.job_id FROM harness_labels m
                       WHERE m.tenant = ",
            $tenant,
            " AND m.label = o.label AND m.job_id = ",
            $job_id,
            ") IS NOT NULL) = cardinality(",
            $labels,
            "::text[])"
        )
    };
}
pub(super) use has_labels;

/// Returns the labels in a column that [`labels_of`] has made.
pub(super) fn read_labels(row: &Row, column: usize) -> Labels {
    Labels::stored(row.get::<_, Option<Vec<String>>>(column).unwrap_or_default())
}
