//! The HTTP API: routes that parse, call one operation, and answer. Every failure is a problem document.
//!
//! It decides nothing about jobs: what is one, `shared/job` says, and the operations at this crate's root do the
//! rest. A 202 means that a job is in the ledger. While Postgres is away or silent a caller has its 503 within two
//! seconds; that RabbitMQ is away is no error.

mod problem;
mod client;
mod shares;
mod sign_ins;
mod bodies;
mod answers;
mod auth;
mod unread;
mod body;
mod prefer;
mod view;
mod ledger;
mod query;
mod path;
mod items;
mod metrics;
mod limits;
mod keys;
mod jobs;
mod batches;
mod followers;
mod inputs;
mod batch;
mod limit_keys;
mod lists;
mod sessions;
mod spend;
mod removal;
mod events;
mod tickets;
mod cors;
mod webhooks;
mod schedules;
mod router;
mod connections;
mod protocol;
mod server;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use dispatch::Dispatch;
use job::{Limits, ReplyRule};
use store::Clock;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

pub use answers::Answers;
pub use auth::Auth;
pub use batches::Batches;
pub use bodies::Bodies;
pub use client::TrustedProxies;
pub use connections::Bounded;
pub use cors::Origins;
pub use followers::Followers;
pub use router::router;
pub use server::{Server, Tls};
pub use sign_ins::SignIns;
pub use tickets::Tickets;
pub use view::Job;
pub use webhooks::Trying;

use self::ledger::Timeout;
use self::problem::Problem;
use crate::access::{Keys, Limits as TenantsLimits, Rates};
use crate::backlog::Backlog;
use crate::following::Following;
use crate::intake_limits::IntakeLimits;
use crate::publishing::Publishing;
use crate::pulse::Pulse;
use crate::served::Served;
use crate::webhooks::Outbound;

/// What the routes need.
pub struct Door {
    pub dispatch: Dispatch,
    pub auth: Auth,
    pub keys: Arc<Keys>,
    pub sign_ins: SignIns,
    pub proxies: TrustedProxies,
    pub max_bytes: usize,
    pub retention: Duration,
    pub replies: ReplyRule,
    pub pulse: Pulse,
    pub publishing: Publishing,
    pub following: Following,
    /// How long the ledger may take for all that a request asks it.
    pub answer_within: Duration,
    pub served: Served,
    pub batches: Batches,
    pub followers: Followers,
    pub bodies: Bodies,
    pub answers: Answers,
    pub tickets: Tickets,
    /// What goes on to its end although its caller waits no longer.
    pub begun: TaskTracker,
    pub limits_of: TenantsLimits,
    pub rates: Rates,
    pub backlog: Arc<Backlog>,
    pub outbound: Arc<Outbound>,
    /// A place for each message that tries a webhook.
    pub trying: Trying,
    /// Cancelled when the process is asked to stop: callers that wait for an end wait no longer.
    pub stop: CancellationToken,
}

type Shared = axum::extract::State<Arc<Door>>;

impl Door {
    /// The time limit for what a caller asks the ledger from now on.
    fn timeout(&self) -> Timeout {
        Timeout::begin(self.answer_within)
    }

    fn clock(&self) -> Result<Clock, Problem> {
        self.pulse.clock().ok_or_else(Problem::unavailable)
    }

    /// Postgres's time, in milliseconds of the Unix epoch.
    fn now_unix_ms(&self) -> Result<u64, Problem> {
        Ok(self.clock()?.now_unix_ms())
    }

    /// Does something to its end, even if the caller goes away or waits no longer: what follows a commit must not be lost
    /// with it.
    async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = anyhow::Result<T>> + Send + 'static,
    ) -> anyhow::Result<T> {
        self.begun.spawn(work.in_current_span()).await.context("a task of the API failed")?
    }

    /// What jobs are measured by at this moment.
    fn limits(&self) -> Result<Limits, Problem> {
        let clock = self.clock()?;
        Ok(IntakeLimits::new(clock, self.max_bytes, self.retention, self.replies.clone()).current())
    }
}
