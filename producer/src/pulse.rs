//! Whether Postgres answers, and what its clock shows: asked every second by a process that serves.

use std::time::Duration;

use job::Trouble;
use service::with_causes;
use store::{Clock, Store};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often.
const EVERY: Duration = Duration::from_secs(1);
/// A question without an answer for so long is unanswered.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What was answered last; clones share it.
#[derive(Clone)]
pub struct Pulse(watch::Sender<Felt>);

struct Felt {
    trouble: Option<String>,
    clock: Option<Clock>,
}

impl Pulse {
    /// Nothing is known yet.
    pub fn new() -> Pulse {
        Pulse(watch::Sender::new(Felt { trouble: Some("starting".to_owned()), clock: None }))
    }

    /// Why Postgres cannot be used, if so.
    pub fn trouble(&self) -> Option<String> {
        self.0.borrow().trouble.clone()
    }

    /// Its clock as it was read last, however long ago; nothing before the first answer.
    pub fn clock(&self) -> Option<Clock> {
        self.0.borrow().clock
    }

    /// Asks again and again until `end` is cancelled.
    pub async fn keep(self, store: Store, end: CancellationToken) {
        let mut beats = interval(EVERY);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut trouble = Trouble::default();
        let asking = async {
            loop {
                beats.tick().await;
                let answer = match timeout(ANSWER_WITHIN, store.clock()).await {
                    Ok(answer) => answer.map_err(|error| with_causes(&error)),
                    Err(_) => Err(format!("no answer within {} s", ANSWER_WITHIN.as_secs())),
                };
                match answer {
                    Ok(clock) => {
                        if trouble.ends() {
                            info!("Postgres answers again");
                        }
                        self.0.send_replace(Felt { trouble: None, clock: Some(clock) });
                    }
                    Err(why) => {
                        if trouble.begins() {
                            warn!("Postgres does not answer, requests are answered with 503: {why}");
                        }
                        self.0.send_modify(|felt| felt.trouble = Some(why));
                    }
                }
            }
        };
        end.run_until_cancelled(asking).await.unwrap_or(())
    }
}
