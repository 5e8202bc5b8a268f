//! What an answer has cost: read beside its bytes, from JSON or from a stream of events.
//!
//! A stream is an answer only with its own end: `message_stop` (Messages), `[DONE]` (Chat), `response.completed` or
//! `response.incomplete` (Responses). Until then its usage is not the last word, whatever it says.
//!
//! Counts are never added up: a provider reports totals so far, and the largest of each field counts. A field that costs
//! and that nobody here knows makes the whole call unpriced, and then its reservation counts. So does a count that no call can have.

use std::collections::BTreeMap;

use chrono::NaiveDate;
use job::Usd;
use serde_json::{Map, Value};

mod counts;
mod refusals;

use crate::prices::{CacheWrites, Prices, Tokens, Unpriced};
use crate::wire::{Ask, Wire};
use counts::Counts;

/// What became of a call's reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The provider reported what it used.
    Settled(Settled),
    /// Nothing is billed: it was never sent, or refused before any work.
    Free,
    /// It was sent, and what it costs is not known. The reservation counts in full.
    Unknown(NoUsage),
}

/// A cost that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// What it costs.
    pub cost: Usd,
    /// The tokens by class.
    pub tokens: Tokens,
    /// The model that answered, as the provider named it.
    pub model: String,
}

/// Why a cost is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoUsage {
    /// The provider failed, and may have worked before it did.
    #[error("the provider answered {0}")]
    Status(u16),
    /// The connection ended before an answer.
    #[error("the connection ended before an answer")]
    NoAnswer,
    /// The answer ended before its own end.
    #[error("the answer has no end")]
    NoEnd,
    /// What the answer says is no usage report of this wire.
    #[error("the answer is not what this wire sends")]
    Garbage,
    /// The answer was whole, and had no usage report.
    #[error("the answer reports no usage")]
    Missing,
    /// The answer reports that its input had no token.
    #[error("the answer reports a usage of zero")]
    Zero,
    /// The answer reports more tokens, or calls of tools, than any call can have.
    #[error("the answer reports more than any call can use")]
    Absurd,
    /// It reports something without a price.
    #[error("{0}")]
    Unpriced(Unpriced),
    /// It was given up, by the program or by us, and did not end in the time that was left.
    #[error("the answer was given up before its end")]
    GivenUp,
    /// Its program did not settle it.
    #[error("it was not settled before its attempt ended")]
    NotSettled,
}

/// Returns whether a status says that the provider did no work. 500, 502 and 504 do not: it may have failed in the
/// middle.
pub fn refused_before_work(status: u16) -> bool {
    matches!(status, 400..=499 | 503 | 529)
}

/// What one event is to the one who passes it on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// A part of the answer.
    Part,
    /// The extra event of a chat stream that only reports usage.
    UsageAlone,
    /// The answer's own end.
    End,
}

/// Reads one answer.
#[derive(Debug)]
pub struct Meter {
    wire: Wire,
    counts: Counts,
    model: Option<String>,
    ended: bool,
    failed: bool,
    garbage: bool,
    /// Whether the model, or a filter before it, has refused to answer.
    refused: bool,
    /// Calls of hosted tools, where an answer shows them as items.
    items: Hosted,
}

/// Items of an answer of Responses, and the tools as the price table names them: its usage does not count them.
const HOSTED_ITEMS: [(&str, &str); 2] =
    [("web_search_call", "web_search"), ("file_search_call", "file_search")];

impl Meter {
    /// Begins with an answer on this wire.
    pub fn new(wire: Wire) -> Meter {
        let counts = Counts::default();
        Meter {
            wire,
            counts,
            model: None,
            ended: false,
            failed: false,
            garbage: false,
            refused: false,
            items: Hosted::new(),
        }
    }

    /// Reads a whole answer that is no stream.
    pub fn body(&mut self, body: &[u8]) {
        let Ok(Value::Object(answer)) = serde_json::from_slice(body) else {
            self.garbage = true;
            return;
        };
        let text = |name: &str| answer.get(name).and_then(Value::as_str);
        match self.wire {
            Wire::Messages => self.ended = text("type") == Some("message") && text("stop_reason").is_some(),
            Wire::Chat => self.ended = answer.get("choices").is_some_and(Value::is_array),
            Wire::Embeddings => self.ended = answer.get("data").is_some_and(Value::is_array),
            Wire::Responses => self.response_status(text("status")),
        }
        self.failed |= answer.get("error").is_some_and(|error| !error.is_null());
        self.refused |= refusals::refuses(self.wire, &answer);
        self.report(&answer);
    }

    /// Reads the data of one event of a stream.
    pub fn event(&mut self, data: &str) -> Seen {
        if data.is_empty() {
            return Seen::Part;
        }
        if self.wire == Wire::Chat && data.trim() == "[DONE]" {
            self.ended = true;
            return Seen::End;
        }
        let Ok(Value::Object(event)) = serde_json::from_str(data) else {
            self.garbage = true;
            return Seen::Part;
        };
        self.failed |= event.get("error").is_some_and(|error| !error.is_null());
        self.refused |= refusals::refuses(self.wire, &event);
        match self.wire {
            Wire::Messages => self.message_event(&event),
            Wire::Chat => self.chat_event(&event),
            Wire::Responses => self.response_event(&event),
            Wire::Embeddings => Seen::Part,
        }
    }

    /// Returns whether the answer is whole and none of failure, so that it may be kept and given again.
    pub fn is_answer(&self) -> bool {
        self.ended && !self.failed && !self.garbage
    }

    /// Returns whether others who ask the same may be given the answer as well: it is one, and refuses nothing.
    pub fn is_shareable(&self) -> bool {
        self.is_answer() && !self.refused
    }

    /// Returns the input that the provider has counted.
    pub fn counted_input(&self) -> Option<u64> {
        (self.ended && !self.counts.absurd)
            .then(|| self.counts.tokens(self.wire, CacheWrites::None).all_input())
            .filter(|tokens| *tokens > 0)
    }

    /// Returns what the call has cost, once nothing more of its answer will be read.
    pub fn outcome(&self, ask: &Ask, prices: &Prices, day: NaiveDate) -> Outcome {
        match self.settled(ask, prices, day) {
            Ok(settled) => Outcome::Settled(settled),
            Err(reason) => Outcome::Unknown(reason),
        }
    }

    fn settled(&self, ask: &Ask, prices: &Prices, day: NaiveDate) -> Result<Settled, NoUsage> {
        if self.garbage {
            return Err(NoUsage::Garbage);
        }
        if !self.ended {
            return Err(NoUsage::NoEnd);
        }
        if self.counts.absurd {
            return Err(NoUsage::Absurd);
        }
        if let Some(field) = &self.counts.unknown_field {
            return Err(NoUsage::Unpriced(Unpriced::Field(field.clone())));
        }
        if !self.counts.reported {
            return Err(NoUsage::Missing);
        }
        let tokens = self.counts.tokens(self.wire, ask.writes);
        if tokens.all_input() == 0 {
            return Err(NoUsage::Zero);
        }
        let model = self.model.clone().unwrap_or_else(|| ask.model.clone());
        let cost = || {
            let price = prices.find(&model, day)?;
            // What the answer does not say was the dearest that the request can get.
            let tier = self.counts.tier.as_deref();
            let tier = tier.map_or_else(|| ask.tier(price), |name| price.tier(Some(name)))?;
            let region = self.counts.region.as_deref();
            let region = region.map_or_else(|| ask.region(price), |name| price.region(Some(name)))?;
            let tokens_cost = price.cost_at(&tokens, tier, region)?;
            let mut hosted = self.counts.hosted.clone();
            hosted.extend(self.items.clone());
            let fees = hosted.iter().map(|(tool, calls)| price.fee(tool, *calls));
            fees.into_iter().try_fold(tokens_cost, |sum, fee| Ok(sum + fee?))
        };
        let cost = cost().map_err(NoUsage::Unpriced)?;
        Ok(Settled { cost, tokens, model })
    }

    /// Takes the usage report, the model and the tier from the object that holds them.
    fn report(&mut self, holder: &Map<String, Value>) {
        if let Some(model) = holder.get("model").and_then(Value::as_str) {
            self.model = Some(model.to_owned());
        }
        if let Some(tier) = holder.get("service_tier").and_then(Value::as_str) {
            self.counts.tier = Some(tier.to_owned());
        }
        match holder.get("usage") {
            None | Some(Value::Null) => {}
            Some(Value::Object(usage)) => self.counts.read(self.wire, usage),
            Some(_) => self.garbage = true,
        }
        let items = holder.get("output").and_then(Value::as_array).into_iter().flatten();
        let kinds: Vec<&str> = items.filter_map(|item| item.get("type")?.as_str()).collect();
        for (item, tool) in HOSTED_ITEMS {
            let calls = kinds.iter().filter(|kind| **kind == item).count() as u64;
            if calls > 0 {
                let most = self.items.entry(tool.to_owned()).or_default();
                *most = calls.max(*most);
            }
        }
    }

    fn message_event(&mut self, event: &Map<String, Value>) -> Seen {
        match event.get("type").and_then(Value::as_str) {
            Some("message_start") => {
                if let Some(Value::Object(message)) = event.get("message") {
                    self.report(message);
                }
            }
            Some("message_delta") => self.report(event),
            Some("message_stop") => {
                self.ended = true;
                return Seen::End;
            }
            Some("error") => self.failed = true,
            _ => {}
        }
        Seen::Part
    }

    fn chat_event(&mut self, event: &Map<String, Value>) -> Seen {
        self.report(event);
        let no_choice = event.get("choices").and_then(Value::as_array).is_some_and(Vec::is_empty);
        if no_choice && event.get("usage").is_some_and(Value::is_object) {
            Seen::UsageAlone
        } else {
            Seen::Part
        }
    }

    fn response_event(&mut self, event: &Map<String, Value>) -> Seen {
        let response = event.get("response").and_then(Value::as_object);
        if let Some(response) = response {
            self.report(response);
        }
        match event.get("type").and_then(Value::as_str) {
            Some("response.completed" | "response.incomplete" | "response.failed") => {
                let status = response.and_then(|response| response.get("status")).and_then(Value::as_str);
                self.response_status(status);
                Seen::End
            }
            Some("error") => {
                self.failed = true;
                Seen::Part
            }
            _ => Seen::Part,
        }
    }

    fn response_status(&mut self, status: Option<&str>) {
        self.ended = matches!(status, Some("completed" | "incomplete" | "failed"));
        self.failed |= status == Some("failed");
    }
}

/// Calls of hosted tools, by name.
type Hosted = BTreeMap<String, u64>;

#[cfg(test)]
mod tests;
