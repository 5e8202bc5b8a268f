//! One attempt at a job, as the gateway knows it: by a token that dies with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::header::{CONTENT_TYPE, HeaderValue};
use axum::response::Response;
use job::Usd;
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::bodies::Bodies;
use super::lines::Owner;
use super::lock;
use super::purchase::Payment;
use super::refusal::Refusal;
use crate::ledger::{Given, Ledger, RequestKey};
use crate::provider::Provider;
use crate::usage::Outcome;
use crate::wire::{Counted, HostedCaps};

/// The variables that lead an unchanged SDK to the gateway.
pub const GATEWAY_VARIABLES: [&str; 6] = [
    "ANTHROPIC_BASE_URL",
    "ANTHROPIC_API_KEY",
    "OPENAI_BASE_URL",
    "OPENAI_API_KEY",
    "HARNESS_GATEWAY_URL",
    "HARNESS_GATEWAY_TOKEN",
];

/// What an attempt may do.
pub struct Attempt {
    /// Its accounts.
    pub ledger: Arc<dyn Ledger>,
    /// The models that its agent names.
    pub models: Vec<String>,
    /// Whether a call for which a limit leaves no room is made with the next of the models.
    pub degrades: bool,
    /// The fewest tokens to which its limit of output may be lowered, where a limit leaves no room for more.
    pub fit: Option<u64>,
    /// What it may use of the tools that a provider runs.
    pub caps: HostedCaps,
}

/// What an attempt's calls have cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metered {
    /// Calls that were settled, whatever their outcome.
    pub calls: u64,
    /// What they cost, unknown ones in full; and what earlier attempts have paid for answers that were given
    /// again.
    pub cost: Usd,
    /// Input of all classes.
    pub input_tokens: u64,
    /// Output.
    pub output_tokens: u64,
    /// Answers that an earlier attempt had paid.
    pub replayed: u64,
    /// Answers that another job had paid.
    pub cached: u64,
}

/// An attempt whose token is valid until this is dropped.
pub struct Opened {
    addr: SocketAddr,
    token: SecretString,
    shared: Arc<Shared>,
    /// The most tokens of an answer of each of its models.
    most_output: HashMap<String, u64>,
    close: Box<dyn Fn() + Send + Sync>,
}

pub(super) struct Shared {
    pub attempt: Attempt,
    /// Cancelled when the attempt ends.
    pub ended: CancellationToken,
    /// Its exchanges that are under way, whether or not its program still waits.
    pub exchanges: TaskTracker,
    /// The bytes of its requests.
    pub bodies: Bodies,
    /// Who of its requests waits for a place at each provider.
    turns: [tokio::sync::Mutex<()>; 2],
    state: Mutex<Progress>,
}

struct Progress {
    metered: Metered,
    counted: Counted,
    /// The places of equal requests.
    taken: HashMap<[u8; 32], Taken>,
    last_traffic: Instant,
    /// Requests that wait for room.
    waiting: usize,
    /// Purchases that are not settled, with the most that each can cost.
    purchases: HashMap<Uuid, (oneshot::Sender<Payment>, Usd)>,
    /// Whether its program has ended, so that nothing more is settled.
    closed: bool,
}

/// Which answers to equal requests are given or asked for.
#[derive(Default)]
struct Taken {
    /// Those that no checkpoint covers, and how many checkpoints were written before each that is given.
    places: BTreeMap<u32, Option<u32>>,
    /// All of the attempt.
    of_attempt: BTreeSet<u32>,
}

/// The place of a request among equal ones. It is free again when this is dropped, unless it was answered.
pub(super) struct Place {
    shared: Arc<Shared>,
    pub key: RequestKey,
    /// Its number among all equal requests of the attempt.
    pub of_attempt: u32,
    answered: Option<u32>,
}

/// A request that waits for room, until this is dropped.
pub(super) struct Waits(Arc<Shared>);

impl Opened {
    pub(super) fn new(
        addr: SocketAddr,
        token: SecretString,
        shared: Arc<Shared>,
        most_output: HashMap<String, u64>,
        close: Box<dyn Fn() + Send + Sync>,
    ) -> Opened {
        Opened { addr, token, shared, most_output, close }
    }

    /// Returns [`GATEWAY_VARIABLES`] with their values.
    pub fn environment(&self) -> [(&'static str, String); 6] {
        let (root, token) = (format!("http://{}", self.addr), self.token.expose_secret().to_owned());
        let [anthropic, anthropic_key, openai, openai_key, gateway, gateway_token] = GATEWAY_VARIABLES;
        [
            (anthropic, root.clone()),
            (anthropic_key, token.clone()),
            (openai, format!("{root}/v1")),
            (openai_key, token.clone()),
            (gateway, root),
            (gateway_token, token),
        ]
    }

    /// Returns the gateway's port.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }

    /// Returns the most tokens that one answer of a model can have, if the agent names it and it has a price.
    pub fn most_output(&self, model: &str) -> Option<u64> {
        self.most_output.get(model).copied()
    }

    /// Returns what its calls have cost.
    pub fn metered(&self) -> Metered {
        lock(&self.shared.state).metered
    }

    /// Notes that its program has ended: what that has bought and not settled is never settled, and counts in full from now
    /// on.
    pub fn close(&self) {
        let mut state = lock(&self.shared.state);
        state.closed = true;
        let purchases = std::mem::take(&mut state.purchases);
        for (_payment, most) in purchases.into_values() {
            state.metered.calls += 1;
            state.metered.cost += most;
        }
    }

    /// Returns its exchanges that are under way. They outlive it: what was sent is settled in every case.
    pub fn exchanges(&self) -> TaskTracker {
        self.shared.exchanges.clone()
    }

    /// Returns how long nothing has passed, in either direction. While a request waits for room, this is no time: its
    /// program can do nothing about it.
    pub fn idle(&self) -> Duration {
        let state = lock(&self.shared.state);
        if state.waiting > 0 { Duration::ZERO } else { state.last_traffic.elapsed() }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        self.shared.ended.cancel();
        (self.close)();
    }
}

impl Shared {
    pub fn new(attempt: Attempt, ended: CancellationToken) -> Shared {
        let progress = Progress {
            metered: Metered::default(),
            counted: Counted::default(),
            taken: HashMap::new(),
            last_traffic: Instant::now(),
            waiting: 0,
            purchases: HashMap::new(),
            closed: false,
        };
        Shared {
            attempt,
            ended,
            exchanges: TaskTracker::new(),
            bodies: Bodies::default(),
            turns: Default::default(),
            state: Mutex::new(progress),
        }
    }

    /// Returns a number that no other open attempt has.
    pub fn id(self: &Arc<Shared>) -> Owner {
        Arc::as_ptr(self).addr()
    }

    /// Returns what the one of its requests holds that waits for a place at a provider.
    pub fn turn(&self, provider: Provider) -> &tokio::sync::Mutex<()> {
        let [anthropic, openai] = &self.turns;
        match provider {
            Provider::Anthropic => anthropic,
            Provider::OpenAi => openai,
        }
    }

    pub fn check_model(&self, model: &str) -> Result<(), Refusal> {
        let allowed = &self.attempt.models;
        if allowed.iter().any(|name| name == model) { Ok(()) } else { Err(Refusal::model(model, allowed)) }
    }

    /// Takes the first place among equal requests that has no answer yet, once what the program wrote before is durable: answers
    /// that a checkpoint covers no longer count.
    pub async fn place(self: &Arc<Shared>, hash: [u8; 32]) -> Result<Place, Refusal> {
        self.until_durable().await?;
        let covering = self.attempt.ledger.checkpoints().covering;
        let mut state = lock(&self.state);
        let Taken { places, of_attempt: all } = state.taken.entry(hash).or_default();
        places.retain(|_, answered| answered.is_none_or(|after| after >= covering));
        let nth = (0..).find(|nth| !places.contains_key(nth)).unwrap_or(u32::MAX);
        let of_attempt = (0..).find(|nth| !all.contains(nth)).unwrap_or(u32::MAX);
        places.insert(nth, None);
        all.insert(of_attempt);
        Ok(Place { shared: self.clone(), key: RequestKey { hash, nth }, of_attempt, answered: None })
    }

    /// Waits until what the program wrote before is durable. Returns an error if its attempt has ended meanwhile.
    pub async fn until_durable(&self) -> Result<(), Refusal> {
        tokio::select! {
            biased;
            () = self.attempt.ledger.until_durable() => Ok(()),
            () = self.ended.cancelled() => Err(Refusal::dead_token()),
        }
    }

    pub fn with_counted<T>(&self, look: impl FnOnce(&mut Counted) -> T) -> T {
        look(&mut lock(&self.state).counted)
    }

    pub fn note_traffic(&self) {
        lock(&self.state).last_traffic = Instant::now();
    }

    /// Notes that a request waits for room.
    pub fn waits(self: &Arc<Shared>) -> Waits {
        lock(&self.state).waiting += 1;
        Waits(self.clone())
    }

    /// Returns whether it is open now. It is not if the program has ended.
    pub fn open_purchase(&self, id: Uuid, payment: oneshot::Sender<Payment>, most: Usd) -> bool {
        let mut state = lock(&self.state);
        if !state.closed {
            state.purchases.insert(id, (payment, most));
        }
        !state.closed
    }

    pub fn take_purchase(&self, id: &Uuid) -> Option<oneshot::Sender<Payment>> {
        lock(&self.state).purchases.remove(id).map(|(payment, _)| payment)
    }

    /// Returns the most that an open purchase can cost.
    pub fn most_of(&self, id: &Uuid) -> Option<Usd> {
        lock(&self.state).purchases.get(id).map(|(_, most)| *most)
    }

    pub fn open_purchases(&self) -> usize {
        lock(&self.state).purchases.len()
    }

    /// Counts an answer that was paid before. What an earlier attempt has paid for it is the job's usage all the
    /// same, and this attempt is the first that can checkpoint it.
    pub fn note_given(&self, given: &Given) {
        let metered = &mut lock(&self.state).metered;
        *(if given.cached { &mut metered.cached } else { &mut metered.replayed }) += 1;
        metered.cost += given.paid.cost;
        metered.input_tokens = metered.input_tokens.saturating_add(given.paid.input_tokens);
        metered.output_tokens = metered.output_tokens.saturating_add(given.paid.output_tokens);
    }

    pub fn note_settled(&self, outcome: &Outcome, reserved: Usd) {
        let metered = &mut lock(&self.state).metered;
        metered.calls += 1;
        match outcome {
            Outcome::Settled(settled) => {
                metered.cost += settled.cost;
                metered.input_tokens = metered.input_tokens.saturating_add(settled.tokens.all_input());
                metered.output_tokens = metered.output_tokens.saturating_add(settled.tokens.output);
            }
            Outcome::Unknown(_) => metered.cost += reserved,
            Outcome::Free => {}
        }
    }

    pub fn models_response(&self, provider: Provider) -> Response {
        let models = self.attempt.models.iter();
        let body = match provider {
            Provider::Anthropic => {
                let data: Vec<_> = models
                    .map(|id| {
                        json!({"type": "model", "id": id, "display_name": id,
                    "created_at": "1970-01-01T00:00:00Z"})
                    })
                    .collect();
                let ends = (self.attempt.models.first(), self.attempt.models.last());
                json!({"data": data, "has_more": false, "first_id": ends.0, "last_id": ends.1})
            }
            Provider::OpenAi => {
                let data: Vec<_> = models
                    .map(|id| json!({"id": id, "object": "model", "created": 0, "owned_by": "agent"}))
                    .collect();
                json!({"object": "list", "data": data})
            }
        };
        let mut response = Response::new(Body::from(body.to_string()));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }
}

impl Place {
    /// Keeps it for an answer that was settled after this many checkpoints.
    pub fn answered(mut self, after_checkpoints: u32) {
        self.answered = Some(after_checkpoints);
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.waiting -= 1;
        state.last_traffic = Instant::now();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = lock(&self.shared.state);
        let Some(Taken { places, of_attempt }) = state.taken.get_mut(&self.key.hash) else { return };
        if let Some(after) = self.answered {
            places.insert(self.key.nth, Some(after));
        } else {
            places.remove(&self.key.nth);
            of_attempt.remove(&self.of_attempt);
        }
    }
}
