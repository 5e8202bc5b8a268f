//! The wires that are spoken, and what a request on one of them can cost.
//!
//! [`Wire::read`] looks at a request beside its bytes, which are passed on unchanged. What cannot be bounded is refused by
//! name. [`Ask::bound`] is the most that the request can cost:
//!
//! - **Input**: the tokens that the provider counted for the same beginning of the conversation last time ([`Counted`]),
//!   and one for every byte since, because a token never has less than a byte. Images count as the provider's largest.
//!   What is not in the request (files by id, documents, stored conversations and items) counts as the whole context window.
//! - **Output**: the limit that the request names, or the model's, times the choices.
//! - **Rates**: the dearest that can apply, see [`crate::Price::most`].
//!
//! Sources: the API references at platform.claude.com/docs/en/api/messages and platform.openai.com/docs/api-reference
//! (chat/create, responses/create, embeddings/create), as of November 2026.

use chrono::NaiveDate;
use job::Usd;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

mod content;
mod counted;
mod fit;
mod hosted;
mod messages;
mod openai;

use crate::json;
use crate::prices::{CacheWrites, Factor, Price, Prices, Unpriced};
use crate::provider::Provider;

pub use counted::Counted;
pub use hosted::HostedCaps;

use hosted::Hosted;

/// A protocol for a model call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    /// Anthropic's `/v1/messages`.
    Messages,
    /// OpenAI's `/v1/chat/completions`.
    Chat,
    /// OpenAI's `/v1/responses`.
    Responses,
    /// OpenAI's `/v1/embeddings`.
    Embeddings,
}

/// A request that is not sent, because what it can cost has no bound, or because it is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Refused {
    /// The field, or what takes its place.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

impl Refused {
    fn new(field: &str, problem: impl Into<String>) -> Refused {
        Refused { field: field.to_owned(), problem: problem.into() }
    }
}

/// What a call can cost at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Tokens of input.
    pub input: u64,
    /// Tokens of output, of all choices.
    pub output: u64,
    /// Whether the request itself names that limit.
    pub names_output: bool,
    /// The cost.
    pub cost: Usd,
}

/// Which factor applies to all rates.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    /// The one of this name.
    Named(String),
    /// The provider, or a setting of its account, chooses.
    Any,
}

/// One part of a conversation, in its order.
#[derive(Clone, Copy, Debug)]
struct Step {
    /// The hash of everything up to and with this part.
    hash: [u8; 32],
    /// The most tokens that it adds.
    most_tokens: u64,
}

/// A request, as far as it costs.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Its wire.
    pub wire: Wire,
    /// The model that it names.
    pub model: String,
    /// Whether the answer is a stream of events.
    pub stream: bool,
    /// Whether a chat stream was asked for its usage by the program itself.
    pub includes_usage: bool,
    /// Equal for requests that are the same but for what SDKs make fresh each time (`metadata`, `user`).
    pub hash: [u8; 32],
    output_limit: Option<u64>,
    /// The least limit of output with which the provider takes it.
    least_output: u64,
    choices: u64,
    tier: Choice,
    region: Choice,
    pub(crate) writes: CacheWrites,
    steps: Vec<Step>,
    /// Whether it names something else than an item that is not in it.
    whole_window: bool,
    /// Whether it names an item that is not in it.
    by_id: bool,
    hosted: Hosted,
}

/// The largest request that is read, as Anthropic's own limit: 32 MiB.
pub const MAX_REQUEST_BYTES: usize = 32 << 20;

/// Tokens that a provider adds by itself: the marks between messages, and the text that introduces tools.
const ADDED_BY_PROVIDER: u64 = 2_000;
/// Tokens of the marks around one message or item.
const ADDED_PER_STEP: u64 = 16;
/// Tokens of the description of a tool whose schema is the provider's own (bash, text editor, computer).
const ADDED_PER_KNOWN_TOOL: u64 = 2_000;
/// More choices than any provider takes.
const MAX_CHOICES: u64 = 128;
/// Larger than any limit of tokens, and than any count of them; a larger one is a mistake.
pub(crate) const MAX_LIMIT: u64 = 100_000_000;

impl Wire {
    /// Returns the company that speaks it.
    pub fn provider(self) -> Provider {
        match self {
            Wire::Messages => Provider::Anthropic,
            Wire::Chat | Wire::Responses | Wire::Embeddings => Provider::OpenAi,
        }
    }

    /// Returns the path of its requests.
    pub fn path(self) -> &'static str {
        match self {
            Wire::Messages => "/v1/messages",
            Wire::Chat => "/v1/chat/completions",
            Wire::Responses => "/v1/responses",
            Wire::Embeddings => "/v1/embeddings",
        }
    }

    /// Returns the fields that limit an answer; the newest is the first.
    fn output_limits(self) -> &'static [&'static str] {
        match self {
            Wire::Messages => &["max_tokens"],
            Wire::Chat => &["max_completion_tokens", "max_tokens"],
            Wire::Responses => &["max_output_tokens"],
            Wire::Embeddings => &[],
        }
    }

    /// Reads what a request can cost. `caps` are the agent's own.
    pub fn read(self, body: &[u8], caps: HostedCaps) -> Result<Ask, Refused> {
        let value = json::parse(body).map_err(|error| Refused::new("body", format!("no JSON: {error}")))?;
        let Value::Object(fields) = value else {
            return Err(Refused::new("body", "it is no JSON object"));
        };
        match self {
            Wire::Messages => messages::read(fields, caps),
            Wire::Chat | Wire::Responses | Wire::Embeddings => openai::read(self, fields, caps),
        }
    }
}

impl Ask {
    /// Returns the most that it can cost, or what of it has no price. A call that begins shortly before midnight may be
    /// reserved after it, so the dearer of this day's and the next day's prices counts.
    pub fn bound(&self, prices: &Prices, day: NaiveDate, counted: &Counted) -> Result<Bound, Unpriced> {
        self.bound_within(prices, day, counted, self.output_limit)
    }

    /// Returns the most that it can cost with this limit of output.
    fn bound_within(
        &self,
        prices: &Prices,
        day: NaiveDate,
        counted: &Counted,
        output_limit: Option<u64>,
    ) -> Result<Bound, Unpriced> {
        let price = prices.find(&self.model, day)?;
        let today = self.bound_at(price, counted, output_limit)?;
        let next = day.succ_opt().and_then(|day| prices.find(&self.model, day).ok());
        let next = next.filter(|next| !std::ptr::eq(*next, price));
        let next = next.and_then(|price| self.bound_at(price, counted, output_limit).ok());
        Ok(next.filter(|next| next.cost > today.cost).unwrap_or(today))
    }

    fn bound_at(
        &self,
        price: &Price,
        counted: &Counted,
        output_limit: Option<u64>,
    ) -> Result<Bound, Unpriced> {
        let passes = self.hosted.calls.saturating_add(1);
        let input = match self.hosted.calls {
            // Here the window is that of each text, and the request may have many.
            _ if self.wire == Wire::Embeddings => self.counted_input(counted),
            0 if !self.whole_window => self.counted_input(counted).min(price.context_window),
            _ => price.context_window,
        };
        let output = output_limit.unwrap_or(price.max_output).saturating_mul(self.choices);
        // What a hosted tool finds is input of one more pass.
        let (input, output) = (input.saturating_mul(passes), output.saturating_mul(passes));
        let (tier, region) = (self.tier(price)?, self.region(price)?);
        let fee = self.hosted.fee(price)?;
        let names_output = output_limit.is_some();
        Ok(Bound {
            input,
            output,
            names_output,
            cost: price.most(input, output, self.writes, tier, region) + fee,
        })
    }

    /// Returns the hash of the whole conversation, under which its counted tokens are remembered.
    pub fn conversation(&self) -> Option<[u8; 32]> {
        let in_full = !self.whole_window && self.hosted.calls == 0;
        self.steps.last().filter(|_| in_full).map(|step| step.hash)
    }

    /// Returns the dearest factor of a tier that it can get.
    pub(crate) fn tier(&self, price: &Price) -> Result<Factor, Unpriced> {
        match &self.tier {
            Choice::Named(name) => price.tier(Some(name)),
            Choice::Any => Ok(price.dearest_tier()),
        }
    }

    /// Returns the dearest factor of a region that it can get.
    pub(crate) fn region(&self, price: &Price) -> Result<Factor, Unpriced> {
        match &self.region {
            Choice::Named(name) => price.region(Some(name)),
            Choice::Any => Ok(price.dearest_region()),
        }
    }

    /// Returns whether all that it is about is in it, so that equal requests have equal answers.
    pub(crate) fn is_whole(&self) -> bool {
        !self.by_id && self.conversation().is_some()
    }

    fn counted_input(&self, counted: &Counted) -> u64 {
        let mut since = 0_u64;
        for step in self.steps.iter().rev() {
            if let Some(known) = counted.tokens(&step.hash) {
                return since.saturating_add(known);
            }
            since = since.saturating_add(step.most_tokens);
        }
        since.saturating_add(ADDED_BY_PROVIDER)
    }
}

/// The fields that change no token of the input.
const NOT_INPUT: [&str; 19] = [
    "cache_control",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "metadata",
    "user",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "top_k",
    "n",
    "stop",
    "stop_sequences",
    "seed",
    "service_tier",
    "inference_geo",
    "speed",
    "store",
];
/// The fields that SDKs fill anew for each request.
const FRESH_EACH_TIME: [&str; 2] = ["metadata", "user"];

/// A conversation as its head and its items, each with the hash of all up to it.
struct Steps {
    steps: Vec<Step>,
    /// Whether something else than an item is not in the request.
    whole_window: bool,
    /// Whether an item is not in the request. What is stored under an id does not change, so once its tokens were counted it
    /// is as if it were there.
    by_id: bool,
}

/// Splits a conversation.
fn steps(
    wire: Wire,
    head: &Map<String, Value>,
    items: &[Value],
    largest_image: u64,
) -> Result<Steps, Refused> {
    let mut sum = Sha256::new();
    sum.update(wire.path());
    let mut tokens = 0_u64;
    let mut whole_window = false;
    for (name, value) in head.iter().filter(|(name, _)| !NOT_INPUT.contains(&name.as_str())) {
        sum.update((name.len() as u64).to_be_bytes());
        sum.update(name);
        json::hash(value, &["cache_control"], &mut sum);
        let weight = content::weigh(value, largest_image)?;
        whole_window |= weight.whole_window;
        tokens = tokens.saturating_add(weight.tokens).saturating_add(name.len() as u64);
    }
    let mut hash: [u8; 32] = sum.finalize().into();
    let mut all = vec![Step { hash, most_tokens: tokens }];
    let mut by_id = false;
    for item in items {
        let mut sum = Sha256::new();
        sum.update(hash);
        json::hash(item, &["cache_control"], &mut sum);
        hash = sum.finalize().into();
        let weight = content::weigh(item, largest_image)?;
        whole_window |= weight.whole_window;
        let is_stored = wire == Wire::Responses && content::is_stored(item);
        by_id |= is_stored;
        let tokens = if is_stored { u64::MAX } else { weight.tokens };
        all.push(Step { hash, most_tokens: tokens.saturating_add(ADDED_PER_STEP) });
    }
    Ok(Steps { steps: all, whole_window, by_id })
}

fn request_hash(wire: Wire, fields: &Map<String, Value>) -> [u8; 32] {
    let mut sum = Sha256::new();
    sum.update(wire.path());
    for (name, value) in fields.iter().filter(|(name, _)| !FRESH_EACH_TIME.contains(&name.as_str())) {
        sum.update((name.len() as u64).to_be_bytes());
        sum.update(name);
        json::hash(value, &[], &mut sum);
    }
    sum.finalize().into()
}

/// Returns a text field; `None` if it is missing or null.
fn text(fields: &Map<String, Value>, name: &str) -> Result<Option<String>, Refused> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Refused::new(name, "it is no text")),
    }
}

/// Returns a count; `None` if it is missing or null.
fn count(fields: &Map<String, Value>, name: &str, most: u64) -> Result<Option<u64>, Refused> {
    let Some(value) = fields.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
    let shown = || json::number(value).map_or_else(|| value.to_string(), str::to_owned);
    let wrong = || Refused::new(name, format!("`{}` is no whole number from 1 to {most}", shown()));
    value.as_u64().filter(|given| (1..=most).contains(given)).map(Some).ok_or_else(wrong)
}

fn flag(fields: &Map<String, Value>, name: &str) -> Result<bool, Refused> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(Refused::new(name, "it is neither true nor false")),
    }
}

fn model(fields: &Map<String, Value>) -> Result<String, Refused> {
    text(fields, "model")?
        .filter(|name| !name.is_empty())
        .ok_or_else(|| Refused::new("model", "it is missing"))
}

/// Returns whether a field is there and says something.
fn is_given(fields: &Map<String, Value>, name: &str) -> bool {
    match fields.get(name) {
        None | Some(Value::Null | Value::Bool(false)) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(Value::Object(members)) => !members.is_empty(),
        Some(_) => true,
    }
}

fn refuse(fields: &Map<String, Value>, names: &[(&str, &str)]) -> Result<(), Refused> {
    match names.iter().find(|(name, _)| is_given(fields, name)) {
        Some((name, why)) => Err(Refused::new(name, *why)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
