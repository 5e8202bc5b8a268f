//! How a request gets its reservation: in its turn, with a place at its provider, and with another model where the agent
//! says so.

use chrono::Utc;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::exchange::{Exchange, Replied};
use super::next_model;
use super::waiting::{Room, Waiting};
use crate::ledger::Call;

impl Exchange {
    /// Reserves, as soon as there is room.
    pub(super) async fn room(&mut self, reply: &mut oneshot::Sender<Replied>) -> Room {
        let mut waiting = Waiting::begin(&self.inner, &self.attempt, &self.rates());
        loop {
            if let Some(end) = waiting.turn(reply).await {
                return end;
            }
            // Nothing is held by a call that waits for its place.
            self.slot = match waiting.slot(self.inner.places(self.call.provider), reply).await {
                Ok(slot) => slot,
                Err(end) => return end,
            };
            let reserved = self.attempt.attempt.ledger.reserve(&self.call).await;
            match waiting.answered(reserved, &self.rates()) {
                Some(Room::Spent(_)) if self.degrade() => {}
                Some(end) => return end,
                None => {}
            }
            self.slot = None;
        }
    }

    /// Returns the name of the line of those that wait for the key's limits of this model.
    fn rates(&self) -> String {
        format!("{} {}", self.call.provider.name(), self.call.model)
    }

    /// Takes the agent's next model whose cost has a bound. Its answer is stored under the request that the program sent.
    fn degrade(&mut self) -> bool {
        let may = &self.attempt.attempt;
        if !may.degrades {
            return false;
        }
        let (today, named) = (Utc::now().date_naive(), self.call.model.clone());
        for model in next_model::after(&may.models, &named) {
            let Ok(body) = next_model::with_model(&self.body, model) else { return false };
            let Ok(ask) = self.call.wire.read(&body, may.caps) else { continue };
            let bound =
                self.attempt.with_counted(|counted| ask.bound(&self.inner.settings.prices, today, counted));
            let Ok(bound) = bound else { continue };
            self.call = Call { id: Uuid::now_v7(), model: model.clone(), bound, ..self.call.clone() };
            (self.ask, self.body, self.degraded) = (ask, body, true);
            return true;
        }
        false
    }
}
