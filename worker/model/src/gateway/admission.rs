//! How a request gets its reservation: in its turn, with a place at its provider. Where a limit leaves no room for it, its
//! input is counted, and with the agent's leave its output is limited, or another model is asked.

use bytes::Bytes;
use chrono::Utc;
use job::Usd;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::exchange::{Exchange, Replied};
use super::refusal::Refusal;
use super::waiting::{Room, Waiting};
use super::{counting, next_model};
use crate::ledger::{Call, MOST_OF_A_CALL, WithoutRoom};

impl Exchange {
    /// Reserves, as soon as there is room.
    pub(super) async fn room(&mut self, reply: &mut oneshot::Sender<Replied>) -> Room {
        let mut waiting = Waiting::begin(&self.inner, &self.attempt, &self.rates());
        let places = self.inner.places(self.call.provider).clone();
        // What was paid before is not waited for. Otherwise one question to the ledger does for both.
        if let Some(end) = waiting.durable(reply).await {
            return end;
        }
        if waiting.has_others_before() || !places.has_room() {
            match self.attempt.attempt.ledger.look_up(&self.call).await {
                Ok(Some(given)) => return Room::Answered(given),
                Ok(None) => {}
                // Nothing is held.
                Err(error) => return Room::Refused(Refusal::ledger(&error)),
            }
        }
        loop {
            if let Some(end) = waiting.turn(reply).await {
                return end;
            }
            if let Some(end) = waiting.durable(reply).await {
                return end;
            }
            // Nothing is held by a call that waits for its place.
            self.slot = match waiting.slot((self.call.provider, &places), reply).await {
                Ok(slot) => slot,
                Err(end) => return end,
            };
            let reserved = self.attempt.attempt.ledger.reserve(&self.call).await;
            match waiting.answered(reserved, &self.rates()) {
                Some(Room::Spent { room, .. }) if self.count().await || self.fit(room) || self.degrade() => {}
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

    /// Bounds its input by the provider's own count, once. Returns whether it costs less by that.
    async fn count(&mut self) -> bool {
        let Some(conversation) = self.ask.conversation().filter(|_| !self.is_counted) else { return false };
        self.is_counted = true;
        let of = (self.call.wire, &self.headers);
        match counting::count(&self.inner, &self.upstream, of, &self.body, self.slot.as_ref()).await {
            Some(tokens) if tokens < self.call.bound.input => {
                self.attempt.with_counted(|counted| counted.remember(conversation, tokens));
                let cache_key = self.call.cache_key;
                let is_bound = self.ask_with(self.body.clone());
                self.call.cache_key = cache_key;
                is_bound
            }
            _ => false,
        }
    }

    /// Lowers its limit of output to what there is room for, if its agent allows that.
    fn fit(&mut self, room: Usd) -> bool {
        let Some(least) = self.attempt.attempt.fit else { return false };
        let (today, prices) = (Utc::now().date_naive(), &self.inner.settings.prices);
        let limit =
            self.attempt.with_counted(|counted| self.ask.fitting(prices, today, counted, room, least));
        let Ok(Some(limit)) = limit else { return false };
        let Ok(body) = self.ask.with_output_limit(&self.body, limit) else { return false };
        self.lowered_to = Some(limit);
        self.ask_with(body)
    }

    /// Returns it as one for which there is no room.
    pub(super) fn without_room(&self) -> WithoutRoom {
        let (request, most) = (Some(self.call.request.hash), self.call.bound.cost);
        let (today, prices) = (Utc::now().date_naive(), &self.inner.settings.prices);
        let least = self.attempt.attempt.fit.and_then(|least| {
            self.attempt.with_counted(|counted| self.ask.least_cost(prices, today, counted, least)).ok()
        });
        WithoutRoom { request, most, least: least.unwrap_or(most) }
    }

    /// Takes the agent's next model whose cost has a bound.
    fn degrade(&mut self) -> bool {
        if !self.attempt.attempt.degrades {
            return false;
        }
        let attempt = self.attempt.clone();
        let named = self.call.model.clone();
        let (today, inner) = (Utc::now().date_naive(), self.inner.clone());
        for model in next_model::after(&attempt.attempt.models, &named, &inner.settings.prices, today) {
            let Ok(body) = next_model::with_model(&self.body, model) else { return false };
            let Some((body, lowered_to)) = self.within_model(body, model) else { continue };
            if self.ask_with(body) {
                self.lowered_to = lowered_to.or(self.lowered_to);
                (self.degraded, self.is_counted) = (true, false);
                return true;
            }
        }
        false
    }

    /// Returns the body with the largest limit of output that the model takes, if the body names a larger one. There is none if
    /// it must not be that low.
    fn within_model(&self, body: Bytes, model: &str) -> Option<(Bytes, Option<u64>)> {
        let (today, prices) = (Utc::now().date_naive(), &self.inner.settings.prices);
        let ask = self.call.wire.read(&body, self.attempt.attempt.caps).ok()?;
        let most = prices.find(model, today).ok()?.max_output;
        match ask.output_limit() {
            Some(named) if named > most => {
                let body = ask.with_output_limit(&body, most).ok().filter(|_| ask.least_output() <= most)?;
                Some((body, Some(most)))
            }
            _ => Some((body, None)),
        }
    }

    /// Makes the call with another body, if what that can cost has a bound. Its answer is stored under the request that the
    /// program sent, for this job alone.
    fn ask_with(&mut self, body: Bytes) -> bool {
        let Ok(ask) = self.call.wire.read(&body, self.attempt.attempt.caps) else { return false };
        let (today, prices) = (Utc::now().date_naive(), &self.inner.settings.prices);
        let bound = self.attempt.with_counted(|counted| ask.bound(prices, today, counted)).ok();
        let Some(bound) = bound.filter(|bound| bound.cost <= MOST_OF_A_CALL) else { return false };
        self.call = Call {
            id: Uuid::now_v7(),
            model: ask.model.clone(),
            bound,
            cache_key: None,
            ..self.call.clone()
        };
        (self.ask, self.body) = (ask, body);
        true
    }
}
