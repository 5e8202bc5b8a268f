//! What a tenant may submit now: the bounds of what waits, then its rate.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::Response;
use store::StoreError;

use super::Door;
use super::auth::Principal;
use super::ledger::Timeout;
use super::metrics::refused_submissions;
use super::problem::{Kind, Problem};
use crate::access::Granted;
use crate::backlog::Full;

/// When a caller is asked to come back that has met a bound of what waits: about when it is counted again.
const COUNTED_AGAIN: Duration = Duration::from_secs(2);

/// How many of a caller's jobs may be accepted now.
pub struct Admitted {
    /// So many, the first ones.
    pub count: usize,
    /// Why not the others.
    pub refused: Option<Problem>,
    /// What is left of its rate, if it has one.
    pub rate: Option<RateLimit>,
}

/// The headers `RateLimit-*`: the burst, what is left of it, and in how many seconds it is whole again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    limit: u32,
    remaining: u32,
    reset_s: u64,
}

impl From<Granted> for RateLimit {
    fn from(granted: Granted) -> RateLimit {
        RateLimit {
            limit: granted.limit,
            remaining: granted.remaining,
            reset_s: granted.whole_in.as_millis().div_ceil(1_000) as u64,
        }
    }
}

impl RateLimit {
    /// Adds the headers to an answer.
    pub fn note(&self, response: &mut Response) {
        for (name, value) in [
            ("ratelimit-limit", u64::from(self.limit)),
            ("ratelimit-remaining", u64::from(self.remaining)),
            ("ratelimit-reset", self.reset_s),
        ] {
            response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from(value));
        }
    }
}

/// Admits a caller's jobs, or the first of them. Each counts against the rate, also if it turns out to be known.
pub async fn admit(
    door: &Door,
    principal: &Principal,
    wanted: usize,
    timeout: Timeout,
) -> Result<Admitted, Problem> {
    let (tenant, wanted) = (principal.tenant(), wanted as u32);
    let asking = async {
        let limits = door.limits_of.of(tenant).await?;
        let (room, full) = door.backlog.room(tenant, limits.max_waiting, wanted).await?;
        let rate = match limits.rate {
            Some(rate) if room > 0 => Some((rate, door.rates.take(tenant, rate, room).await?)),
            _ => None,
        };
        Ok::<_, StoreError>((room, full, rate))
    };
    let (room, full, rate) = timeout.ask(asking).await?;
    let count = rate.map_or(room, |(_, granted)| granted.count);
    let headers = rate.map(|(_, granted)| RateLimit::from(granted));
    let problem = match (rate, full) {
        (Some((rate, granted)), _) if granted.count < room => {
            let detail =
                format!("expected at most {} jobs per second, and {} at once", rate.per_s, rate.burst);
            let problem = Problem::new(Kind::RateLimited, detail).retry_after(granted.next_in);
            Some(("rate", problem.of_rate(headers)))
        }
        (_, Some(Full::Tenant(most))) => {
            let detail = format!("{most} jobs of the tenant wait, which is its bound");
            Some(("tenant_backlog", Problem::new(Kind::TenantBacklog, detail).retry_after(COUNTED_AGAIN)))
        }
        (_, Some(Full::All(most))) => {
            let detail = format!("{most} jobs have not ended, which is the bound of this fleet");
            Some(("backlog", Problem::new(Kind::Backlog, detail).retry_after(COUNTED_AGAIN)))
        }
        (_, None) => None,
    };
    let refused = problem.map(|(reason, problem)| {
        refused_submissions(reason, u64::from(wanted - count));
        problem
    });
    Ok(Admitted { count: count as usize, refused, rate: headers })
}
