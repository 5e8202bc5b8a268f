//! Jobs that wait in a line and ask something of their session, which is busy: to make room, or an answer at once.

use job::{JobId, OnBusy};
use tokio_postgres::Row;
use uuid::Uuid;

use crate::database::{query, read_job_id};
use crate::{Store, StoreError};

/// Where a reading of jobs that ask goes on: behind the one that came to the line at this time, by Postgres's clock in
/// microseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskingPlace {
    entered: i64,
    job_id: JobId,
}

/// Of each of these jobs, in their order by the index `harness_jobs_line_asking`, whether the session is busy with
/// another one that was not asked as much yet. A job that has not begun makes no session busy.
const ASKING: &str = "
    WITH page AS MATERIALIZED (
        SELECT job_id, session_id, seq, state_since, message ->> 'on_busy' AS on_busy FROM harness_jobs
         WHERE state = 'waiting' AND epoch = 0 AND coalesce(message ->> 'on_busy', 'enqueue') <> 'enqueue'
           AND (state_since, job_id) > ('epoch'::timestamptz + $1::bigint * interval '1 microsecond', $2::uuid)
         ORDER BY state_since, job_id LIMIT $3
    )
    SELECT job_id, (extract(epoch FROM state_since) * 1000000)::bigint, on_busy,
           (SELECT o.job_id FROM harness_jobs o
             WHERE o.session_id = p.session_id AND o.epoch > 0
               AND (on_busy = 'reject'
                    OR (o.seq < p.seq AND o.state IN ('running', 'awaiting_input')
                        AND (o.asked IS NULL OR (o.asked = 'interrupt' AND on_busy = 'rollback'))))) IS NOT NULL
      FROM page p ORDER BY state_since, job_id";

impl Store {
    /// Reads the next jobs, at most `most`, that wait in a line and do not just wait for their session, behind this
    /// place or from the first. Returns those that have something to ask of it now, and where to go on; nowhere behind
    /// the last one.
    pub async fn asking_in_line(
        &self,
        behind: Option<AskingPlace>,
        most: i64,
    ) -> Result<(Vec<(JobId, OnBusy)>, Option<AskingPlace>), StoreError> {
        let (entered, last) = behind.map_or((0, Uuid::nil()), |place| (place.entered, place.job_id.into()));
        let rows = query(&self.pool, "asking_in_line", ASKING, &[&entered, &last, &most]).await?;
        let place = |row: &Row| AskingPlace { entered: row.get(1), job_id: read_job_id(row, 0) };
        let next = rows.last().filter(|_| rows.len() as i64 >= most).map(place);
        let asks = rows.iter().filter(|row| row.get(3)).filter_map(|row| {
            let word: &str = row.get::<_, Option<&str>>(2)?;
            Some((read_job_id(row, 0), OnBusy::ALL.into_iter().find(|on_busy| on_busy.as_str() == word)?))
        });
        Ok((asks.collect(), next))
    }
}
