//! The inbox: takes the jobs that services have enqueued by SQL, and publishes them.
//!
//! Of all relays the one that leads (lease `line`) looks every 10 ms, or ten times as long as finding rows took. It takes a job
//! in as the HTTP API does, decoded by the same decoder. What is no job has its end recorded as `invalid`, under the id
//! that the service was given. A row is removed after its job is in the ledger, so a crash in between repeats the step, which
//! then finds the job there.
//!
//! What starts goes first: it is published before what is no job gets its end. A job that the ledger fails on, for a reason
//! that may lie in it alone, is kept apart for a while, and the others go on without it.
//!
//! No job ends for want of a worker: it is published to its pool's queue, and is the demand for which workers are started.
//! But a pool's name that no worker has ever had, and no autoscaler, is taken for a wrong one, as over HTTP: nothing would
//! ever read the queue that it makes, and each such name would make one. What was once known stays known, so the same job
//! never has another answer because time has passed.
//!
//! A tenant that has as many waiting jobs as it may have leaves its rows where they are until there is room. The rate of
//! a tenant is the HTTP API's: a service that commits is not made to wait.

mod intake;
mod looks;

use std::sync::LazyLock;
use std::time::Duration;

use job::{Limits, ReplyRule, Trouble};
use prometheus::{IntCounterVec, register_int_counter_vec};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::looks::Looks;
use crate::tick::{OTHER_LEADS, SHORTEST_PAUSE, pause_after};
use crate::{Dispatch, Leader, schedules};

/// Who leads takes from the inbox.
const LEASE_NAME: &str = "line";
const LEASE: Duration = Duration::from_secs(5);

static METRICS: LazyLock<IntCounterVec> = LazyLock::new(|| {
    let metric = register_int_counter_vec!(
        "harness_inbox_jobs_total",
        "Jobs enqueued by SQL that were taken from the inbox, by outcome: accepted, known (the id or a key was there), invalid",
        &["outcome"]
    )
    .expect("every metric has a name of its own, so that registering cannot fail");
    for outcome in ["accepted", "known", "invalid"] {
        metric.with_label_values(&[outcome]);
    }
    metric
});

/// What jobs in the inbox must keep.
#[derive(Clone, Debug)]
pub struct InboxRules {
    /// The largest job, in bytes.
    pub max_bytes: usize,
    /// How old a job's id may be.
    pub retention: Duration,
    /// Where results may be sent.
    pub replies: ReplyRule,
}

impl InboxRules {
    /// Those of these limits.
    pub fn of(limits: &Limits) -> InboxRules {
        let Limits { max_bytes, retention, now_unix_ms: _, ref replies } = *limits;
        InboxRules { max_bytes, retention, replies: replies.clone() }
    }

    fn at(&self, now_unix_ms: u64) -> Limits {
        let InboxRules { max_bytes, retention, ref replies } = *self;
        Limits { max_bytes, retention, now_unix_ms, replies: replies.clone() }
    }

    fn largest(&self) -> i64 {
        i64::try_from(self.max_bytes).unwrap_or(i64::MAX)
    }
}

/// Takes from the inbox and fires schedules while this process leads, until asked to stop.
pub(crate) async fn run(dispatch: &Dispatch, rules: &InboxRules, stop: &CancellationToken) {
    LazyLock::force(&METRICS);
    let leader = Leader::new(LEASE_NAME.to_owned(), LEASE, |_| {});
    tokio::join!(
        leader.keep(&dispatch.store, stop),
        take(dispatch, rules, &leader, stop),
        schedules::run(&dispatch.store, &leader, stop)
    );
}

async fn take(dispatch: &Dispatch, rules: &InboxRules, leader: &Leader, stop: &CancellationToken) {
    let (mut looks, mut trouble) = (Looks::default(), Trouble::default());
    let mut pause = SHORTEST_PAUSE;
    while stop.run_until_cancelled(sleep(pause)).await.is_some() {
        if leader.leadership().is_none() {
            looks = Looks::default();
            pause = OTHER_LEADS;
            continue;
        }
        let looked = looks.look(dispatch, rules).await;
        pause = pause_after(looked, &mut trouble, "jobs enqueued by SQL cannot be taken in");
    }
}
