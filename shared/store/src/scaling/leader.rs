//! Leadership: of several autoscalers one acts. A row per name, with an epoch that every change of the leader raises.
//!
//! What a leader writes is fenced by the same row, which it locks meanwhile: a successor waits for it, and after that
//! nothing of the predecessor's is taken any more.

use std::time::Duration;

use tokio::time::Instant;

use crate::database::{BEAT_BOUND, millis, query, query_within};
use crate::{Store, StoreError};

/// The right to act, for a while.
#[derive(Clone, Debug)]
pub struct Leadership {
    /// What is led.
    pub name: String,
    /// Who leads.
    pub holder: String,
    /// The fencing token: greater than that of every leader before.
    pub epoch: i64,
    /// Until when, by this host's monotonic clock; Postgres's idea of it is never earlier.
    pub until: Instant,
}

impl Leadership {
    /// How much longer it lasts.
    pub fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

/// Renews, or takes what is free. A leadership that has lapsed is another one afterwards, also in the same hands. One that was
/// renewed in the future was renewed before Postgres's clock went back: a leader that lives renews it soon, and one that died then
/// would have it for as long as the clock was ahead. (A clock that is only put right by a little takes the lead from nobody.)
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
    /// Takes or renews the leadership of a name; `None` while somebody else has it. `holder` is one boot of one
    /// process, never a host. To be called a few times per `lease`.
    pub async fn lead(
        &self,
        name: &str,
        holder: &str,
        lease: Duration,
    ) -> Result<Option<Leadership>, StoreError> {
        // Counted from before it was sent, it is over here first.
        let until = Instant::now() + lease;
        let rows =
            query_within(BEAT_BOUND, &self.beats, "lead", LEAD, &[&name, &holder, &millis(lease)]).await?;
        let leadership =
            |epoch| Leadership { name: name.to_owned(), holder: holder.to_owned(), epoch, until };
        Ok(rows.first().map(|row| leadership(row.get(0))))
    }

    /// Gives the leadership up, so that the next one need not wait for it to lapse.
    pub async fn resign(&self, leadership: &Leadership) -> Result<(), StoreError> {
        let Leadership { name, holder, epoch, .. } = leadership;
        query(&self.pool, "resign", RESIGN, &[name, holder, epoch]).await?;
        Ok(())
    }
}
