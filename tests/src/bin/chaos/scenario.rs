//! The scenarios by name, and how one is played.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;

use futures::FutureExt;
use futures::future::LocalBoxFuture;

use crate::arena::Arena;
use crate::report::Played;
use crate::services::Services;
use crate::workload::Size;
use crate::{broker, input, models, network, postgres, workers};

/// What all scenarios of a run have in common.
pub struct Settings {
    pub size: Size,
    pub seed: u64,
    pub services: Services,
    /// The folder for the logs of broken scenarios.
    pub logs: PathBuf,
    /// Whether the logs of the other scenarios are kept too.
    pub keep_logs: bool,
}

/// A fault and its expected consequences.
pub struct Scenario {
    pub name: &'static str,
    /// The fault, and the start and end of the recovery that is measured.
    pub about: &'static str,
    marks: &'static [Mark],
    play: Play,
}

#[derive(PartialEq)]
enum Mark {
    /// It breaks a whole server, and with it everything else that uses the server.
    Breaks,
    /// It belongs to the short form.
    Short,
}

type Play = for<'a> fn(&'a mut Arena) -> LocalBoxFuture<'a, anyhow::Result<()>>;

macro_rules! scenarios {
    ($($name:literal $about:literal $play:path $(, $mark:ident)*;)*) => {
        /// All scenarios, in the order in which they are played.
        pub const ALL: &[Scenario] = &[$(Scenario {
            name: $name,
            about: $about,
            marks: &[$(Mark::$mark),*],
            play: |arena| Box::pin($play(arena)),
        }),*];
    };
}

scenarios! {
    "worker-kill" "SIGKILL to one of three workers; until its jobs run again" workers::kill, Short;
    "worker-kills" "SIGKILL to one worker after the other, each replaced; until the last one's jobs run again" workers::kills;
    "worker-pause" "SIGSTOP for longer than the lease, then SIGCONT; until its jobs run again" workers::pause;
    "worker-drain" "SIGTERM under load; until it is gone, its jobs handed over, no attempt spent" workers::drain, Short;
    "poison" "a job that kills each worker that runs it; until those workers' jobs run again (suspects wait for each other)" workers::poison;
    "broker-restart" "the broker stops and starts; from its return until free slots consume and a new job has run" broker::restart, Breaks, Short;
    "broker-kill" "SIGKILL to the broker; from its return until free slots consume and a new job has run" broker::kill, Breaks;
    "connections-closed" "all connections closed at the broker, three times; until free slots consume and a new job has run" broker::connections_closed, Short;
    "consumers-cancelled" "the empty queue deleted, three times; until free slots consume and a new job has run" broker::consumers_cancelled;
    "queue-lost" "the full queue purged and deleted; until all jobs whose messages were in it have gone on" broker::queue_lost;
    "ack-timeout" "the broker closes channels for late acks; until free slots consume and a new job has run" broker::ack_timeout, Breaks;
    "disk-alarm" "the broker blocks publishers for 8 s; from the alarm's end until a new job has run" broker::disk_alarm, Breaks;
    "broker-cut" "one worker's connections to the broker are cut for 8 s; from the end of the cut until free slots consume" network::broker_cut;
    "broker-half-open" "the link of one worker to the broker is frozen for 15 s; from the end of the freeze until free slots consume" network::broker_half_open;
    "postgres-cut" "one worker is cut off from Postgres; until its jobs run again elsewhere" network::postgres_cut;
    "postgres-half-open" "the link of one worker to Postgres is frozen; until its jobs run again elsewhere" network::postgres_half_open;
    "replies-lost" "the workers get no answers from Postgres for 1, 2 and 12 s; from the end of each until a new job has run" network::replies_lost;
    "postgres-restart" "Postgres restarts; from its return until free slots consume and a new job has run" postgres::restart, Breaks;
    "postgres-kill" "SIGKILL to Postgres; from its return until free slots consume and a new job has run" postgres::kill, Breaks;
    "terminate-backend" "all connections to Postgres terminated for 6 s; from the end of that until a new job has run" postgres::terminate;
    "pool-exhausted" "two connections for 32 slots, and all sessions locked; from the last unlock until a new job has run" postgres::pool_exhausted;
    "idle-transaction" "a third of the sessions locked for 14 s; from the unlock until a new job has run" postgres::idle_transaction;
    "publisher-kill" "producer killed while it publishes, a raw client cut off before its confirms; all is sent again" input::publisher_kill, Short;
    "malformed" "10,000 messages that are not jobs, among the good ones; each becomes a dead letter" input::malformed;
    "bad-frames" "messages whose headers fill a frame, among the good ones; each becomes a dead letter, no connection ends" input::bad_frames, Short;
    "bad-replies" "replies to names that break the connection on which they are sent; until a new job has run" input::bad_replies, Short;
    "refused-output" "a job whose output Postgres refuses in every batch" input::refused, Short;
    "hot-session" "a session with hundreds of jobs, some that grow without end, one whose ends Postgres refuses; until a new job has run" input::hot_session, Short;
    "model-calls" "a worker killed, another drained, and a provider that fails in every way, under calls of models; until the killed one's jobs run again" models::workers, Short;
    "model-calls-restarts" "Postgres and the broker restart under calls of models; from the return of each until a new job has run" models::services, Breaks;
    "unroutable" "messages for a pool that no worker serves; each becomes a dead letter" input::unroutable;
}

impl Scenario {
    /// Whether it breaks a whole server.
    pub fn breaks(&self) -> bool {
        self.marks.contains(&Mark::Breaks)
    }

    /// Whether it belongs to the short form.
    pub fn is_short(&self) -> bool {
        self.marks.contains(&Mark::Short)
    }

    /// Plays the scenario. Leaves nothing behind except the logs of a broken one.
    pub async fn play(&self, settings: &Settings) -> Played {
        let broken = |error: String| Played::Broken { scenario: self.name, error };
        // The helpers of the tests panic where a test would fail.
        match AssertUnwindSafe(self.play_out(settings)).catch_unwind().await {
            Ok(Ok(played)) => played,
            Ok(Err(error)) => broken(format!("{error:#}")),
            Err(panic) => broken(match panic.downcast_ref::<String>() {
                Some(text) => text.clone(),
                None => panic.downcast_ref::<&str>().copied().unwrap_or("it has panicked").to_owned(),
            }),
        }
    }

    async fn play_out(&self, settings: &Settings) -> anyhow::Result<Played> {
        let mut arena = Arena::new(self.name, settings).await?;
        let played = (self.play)(&mut arena).await;
        arena.published().await?;
        // Check the jobs in any case: what became of them says more than the error.
        let settled = arena.settle().await;
        let mut figures = arena.judge().await?;
        for error in [played, settled].into_iter().filter_map(Result::err) {
            figures.problems.insert(0, format!("{error:#}"));
        }
        match figures.problems.is_empty() && !settings.keep_logs {
            true => arena.forget_logs(),
            false => arena.keep_logs().await?,
        }
        Ok(Played::Out(figures))
    }
}
