//! Leadership: of several processes, only one acts. There is one row per name, with an epoch that rises with
//! every change of the leader.
//!
//! A leader's writes are fenced by the same row, which they lock. A successor waits for the writes under way,
//! and after that none of its predecessor's writes is accepted.

use std::time::Duration;

use tokio::time::Instant;

use crate::database::{BEAT_BOUND, millis, query, query_within};
use crate::{Store, StoreError};

/// The right to act, for a while.
#[derive(Clone, Debug)]
pub struct Leadership {
    /// The name of what is led.
    pub name: String,
    /// The process that leads.
    pub holder: String,
    /// The fencing token: greater than that of every leader before.
    pub epoch: i64,
    /// When it ends, by this host's monotonic clock. By Postgres's clock it never ends earlier.
    pub until: Instant,
}

impl Leadership {
    /// Returns how much longer it lasts.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// Renews a leadership, or takes one that is free. A leadership that has lapsed gets a new epoch, even in the
/// same hands. If its renewal lies in the future, Postgres's clock has gone back since, and it is free for
/// others: a leader that is alive renews it soon, and a dead one would keep it for as long as the clock was
/// ahead. (No process loses the leadership through a small correction of the clock.)
const LEAD: &str = "
    WITH kept AS (
        UPDATE harness_leases
           SET holder = $2, renewed_at = clock_timestamp(), expires_at = clock_timestamp() + $3 * interval '1 millisecond',
               epoch = CASE WHEN holder = $2 AND expires_at > clock_timestamp() THEN epoch
                            ELSE nextval('harness_leader_epoch') END
         WHERE name = $1
           AND (holder = $2 OR expires_at <= clock_timestamp() OR renewed_at > clock_timestamp() + interval '1 second')
        RETURNING epoch
    ), first AS (
        INSERT INTO harness_leases (name, holder, epoch, renewed_at, expires_at)
        SELECT $1, $2, nextval('harness_leader_epoch'), clock_timestamp(), clock_timestamp() + $3 * interval '1 millisecond'
         WHERE NOT EXISTS (SELECT FROM harness_leases WHERE name = $1)
        ON CONFLICT DO NOTHING
        RETURNING epoch
    )
    SELECT epoch FROM kept UNION ALL SELECT epoch FROM first";

const RESIGN: &str = "
    UPDATE harness_leases SET expires_at = clock_timestamp() WHERE name = $1 AND holder = $2 AND epoch = $3";

impl Store {
    /// Takes or renews the leadership of a name. Returns `None` while another process has it. `holder` is one
    /// boot of one process, never a host. Call this a few times per `lease`.
    pub async fn lead(
        &self,
        name: &str,
        holder: &str,
        lease: Duration,
    ) -> Result<Option<Leadership>, StoreError> {
        // It is counted from before the request is sent, so that it ends here first.
        let until = Instant::now() + lease;
        let rows =
            query_within(BEAT_BOUND, &self.beats, "lead", LEAD, &[&name, &holder, &millis(lease)]).await?;
        let leadership =
            |epoch| Leadership { name: name.to_owned(), holder: holder.to_owned(), epoch, until };
        Ok(rows.first().map(|row| leadership(row.get(0))))
    }

    /// Gives the leadership up, so that the next leader need not wait for it to lapse.
    pub async fn resign(&self, leadership: &Leadership) -> Result<(), StoreError> {
        let Leadership { name, holder, epoch, .. } = leadership;
        query(&self.pool, "resign", RESIGN, &[name, holder, epoch]).await?;
        Ok(())
    }
}
