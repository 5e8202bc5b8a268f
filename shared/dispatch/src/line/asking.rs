//! Jobs that wait in a line and whose `on_busy` asks something of their session: they ask while they wait, because
//! their turn may come only when the session is free again by itself.
//!
//! All that ask are read again and again, so whatever a job waits for when it comes, or what begins before it later, is
//! asked. Nothing is lost with who asks: a successor begins with the first. What was asked before is found as asked,
//! and is not written again.

use std::time::Duration;

use job::{JobId, OnBusy, Trouble};
use store::{Ask, AskingPlace, StoreError, Unwanted};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::Dispatch;
use crate::tick::{REST, SHORTEST_PAUSE, note};

/// Jobs of one reading.
const PAGE: i64 = 500;

/// Who asks for them.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// While it works, it is not here.
    at_work: Option<JoinHandle<Round>>,
    round: Round,
}

#[derive(Debug, Default)]
struct Round {
    behind: Option<AskingPlace>,
    again: Option<Instant>,
    trouble: Trouble,
}

impl Asking {
    /// Asks for the next ones, beside the looks.
    pub(super) async fn go_on(&mut self, dispatch: &Dispatch) {
        if let Some(done) = self.at_work.take_if(|at_work| at_work.is_finished()) {
            self.round = done.await.unwrap_or_default();
        }
        let rests = self.round.again.is_some_and(|again| Instant::now() < again);
        if self.at_work.is_none() && !rests {
            let (dispatch, mut round) = (dispatch.clone(), std::mem::take(&mut self.round));
            self.at_work = Some(tokio::spawn(async move {
                let begun = Instant::now();
                let asked = round.ask(&dispatch).await;
                note(&asked, &mut round.trouble, "jobs that wait in line cannot ask their busy sessions");
                let failed = if asked.is_err() { Duration::from_secs(1) } else { SHORTEST_PAUSE };
                round.again = Some(begun + (begun.elapsed() * REST).max(failed));
                round
            }));
        }
    }
}

impl Round {
    async fn ask(&mut self, dispatch: &Dispatch) -> Result<(), StoreError> {
        let (asking, next) = dispatch.store.asking_in_line(self.behind, PAGE).await?;
        // What fails below is asked again in the next round, and holds up no other.
        self.behind = next;
        let of = |wanted: OnBusy| -> Vec<JobId> {
            asking.iter().filter(|(_, on_busy)| *on_busy == wanted).map(|(job, _)| *job).collect()
        };
        let asks = |wanted, ask| of(wanted).into_iter().map(move |job| (job, ask));
        let make_room: Vec<(JobId, Ask)> =
            asks(OnBusy::Interrupt, Ask::Interrupt).chain(asks(OnBusy::Rollback, Ask::Rollback)).collect();
        let asked = match make_room.is_empty() {
            true => Ok(()),
            false => dispatch.store.make_room(&make_room).await,
        };
        let rejected = of(OnBusy::Reject);
        if !rejected.is_empty() {
            dispatch.end_each(&rejected, Unwanted::Rejected).await?;
        }
        asked
    }
}
