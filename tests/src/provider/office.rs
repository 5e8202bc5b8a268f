//! What it does with a request: check, remember, charge, answer.

mod embeddings;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::HeaderMap;
use serde::Serialize;

use super::Asked;
use super::answer::{self, Block, Said, Usage};
use super::cache::Cache;
use super::check::{self, Against};
use super::fault::{Fault, Faults};
use super::memory::{Memory, named};
use super::price::{Model, Models, Used};
use super::request::Asking;
use super::script::{Script, Turn};
use super::seal;
use super::wire::{Refusal, Speaks};

pub(super) use embeddings::PATH as EMBEDDINGS;

const MOST_BYTES: usize = 32 * 1_024 * 1_024;

/// A call that it has worked on, and that is on its bill.
#[derive(Clone, Debug, Serialize)]
pub struct Charged {
    /// The request's number, from one.
    pub request: u64,
    /// Its conversation.
    pub conversation: String,
    /// Its path.
    pub path: &'static str,
    /// The model that answered.
    pub model: String,
    /// Its tokens.
    pub used: Used,
    /// Its price, in micro-dollars.
    pub micros: u64,
    /// Whether all of the answer has left.
    pub whole: bool,
    /// Whether this request had been answered before, so that it is paid again.
    pub again: bool,
}

pub(super) struct Office {
    pub key: String,
    /// Whether it keeps the bodies of all requests.
    pub keeps_bodies: bool,
    pub faults: Mutex<VecDeque<Fault>>,
    pub asked: Mutex<Vec<Asked>>,
    pub words: AtomicU64,
    pub pause_ms: AtomicU64,
    pub retry_after_s: AtomicU64,
    pub counts_nothing: AtomicBool,
    /// Requests that it let hang on order.
    pub hung: AtomicU64,
    pub headers: Mutex<HeaderMap>,
    requests: AtomicU64,
    models: Models,
    books: Mutex<Books>,
}

#[derive(Default)]
pub(super) struct Books {
    pub bill_micros: u64,
    pub charged: Vec<Charged>,
    pub memory: Memory,
    script: Script,
    cache: Cache,
    faults: Faults,
    valid: u64,
}

/// What a valid request gets.
pub(super) struct Plan {
    pub said: Said,
    pub fault: Option<Fault>,
    pub pause: Duration,
    pub request: serde_json::Value,
    /// Its place among what was charged.
    pub charged: usize,
}

/// Why a request gets no answer.
pub(super) enum Refused {
    /// As the real provider would.
    Rightly(Refusal),
    /// On order.
    Ordered(u16),
    /// It waits for ever, on order.
    Held,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Refused {
        Refused::Rightly(refusal)
    }
}

impl Office {
    pub fn new(key: &str, script: Script) -> Office {
        let office = Office {
            key: key.to_owned(),
            keeps_bodies: true,
            faults: Mutex::default(),
            asked: Mutex::default(),
            words: 20.into(),
            pause_ms: 0.into(),
            retry_after_s: 7.into(),
            counts_nothing: false.into(),
            hung: 0.into(),
            headers: Mutex::default(),
            requests: 0.into(),
            models: Models::today(),
            books: Mutex::default(),
        };
        office.play(script);
        office
    }

    /// Keeps no bodies of requests: for a process that runs for long.
    pub fn without_bodies(self) -> Office {
        Office { keeps_bodies: false, ..self }
    }

    /// Answers by this script from now on.
    pub fn play(&self, script: Script) {
        if let Some(words) = script.words {
            self.words.store(words, Ordering::Relaxed);
        }
        if let Some(seconds) = script.retry_after_s {
            self.retry_after_s.store(seconds, Ordering::Relaxed);
        }
        self.pause_ms.store(script.pause_ms, Ordering::Relaxed);
        let mut books = self.books();
        books.faults.rules = script.faults.iter().map(|rule| (rule.clone(), 0)).collect();
        books.script = script;
    }

    pub fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().expect("not poisoned")
    }

    /// Notes a request; returns its number.
    pub fn note(&self, path: &str, headers: &HeaderMap, body: &Bytes) -> u64 {
        if self.keeps_bodies {
            let (path, headers, body) = (path.to_owned(), headers.clone(), body.clone());
            let asked = Asked { path, headers, body, at: Instant::now() };
            self.asked.lock().expect("not poisoned").push(asked);
        }
        self.requests.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Returns the tokens of a request, for nothing.
    pub fn count(&self, headers: &HeaderMap, body: &[u8]) -> Result<u64, Refusal> {
        let books = self.books();
        let asking = self.read(&books.memory, Speaks::Messages, headers, body, true)?.0;
        Ok(asking.tokens())
    }

    fn read<'a>(
        &'a self,
        memory: &Memory,
        speaks: Speaks,
        headers: &HeaderMap,
        body: &[u8],
        counts_only: bool,
    ) -> Result<(Asking, &'a Model), Refusal> {
        if body.len() > MOST_BYTES {
            return Err(Refusal::new(413, "Request exceeds the maximum size"));
        }
        let (request, model) = check::head(speaks, headers, body, &self.key, &self.models)?;
        let against = Against { models: &self.models, memory, counts_only };
        check::rest(speaks, &request, model, &against)?;
        let text = str::from_utf8(body).map_err(|error| Refusal::invalid(error.to_string()))?;
        Ok((Asking::read(speaks, text, request), model))
    }

    /// Decides what a request gets, and charges it.
    pub fn plan(
        &self,
        number: u64,
        speaks: Speaks,
        headers: &HeaderMap,
        body: &[u8],
        ordered: Option<Fault>,
    ) -> Result<Plan, Refused> {
        let mut books = self.books();
        let books = &mut *books;
        let (asking, model) = match self.read(&books.memory, speaks, headers, body, false) {
            Ok(read) => read,
            Err(refused) => {
                books.memory.refused(number, &refused.message);
                return Err(refused.into());
            }
        };
        let window = books.script.context_window.unwrap_or(model.context_window).min(model.context_window);
        let input = asking.tokens();
        if input > window {
            return Err(overflow(speaks, input, window).into());
        }
        let valid = books.valid;
        books.valid += 1;
        books.memory.asked(number, &asking);
        let turn = books.turn(&asking);
        let own = turn.as_ref().and_then(|(place, turn)| {
            let fault = turn.fault.clone()?;
            books.faults.done.insert((asking.conversation, place.0.clone(), place.1)).then_some(fault)
        });
        let fault = ordered.or(own).or_else(|| books.faults.ruled(valid));
        match fault {
            Some(Fault::Refuses(status)) => return Err(Refused::Ordered(status)),
            Some(Fault::Holds) => return Err(Refused::Held),
            _ => {}
        }
        let limit = asking.limit().unwrap_or(model.max_output);
        let room = (window - input).max(1);
        let (blocks, stop) = match &turn {
            Some(((_, at), turn)) => {
                answer::blocks(turn, *at, number, &asking.model, &seal::before_answer(&asking.value))
            }
            None => (answer::words(self.words.load(Ordering::Relaxed)), "end_turn".to_owned()),
        };
        let (blocks, output, cut) = answer::within(blocks, limit.min(room));
        let stop = match cut {
            true if room < limit => "model_context_window_exceeded".to_owned(),
            true => "max_tokens".to_owned(),
            false => stop,
        };
        let used = books.cache.input(&asking, model.bills_cache_writes(), Instant::now());
        let used = Used { output, ..used };
        let said = said(&asking, blocks, stop, used, &fault);
        let tier = if speaks == Speaks::Messages { said.speed.as_deref() } else { Some(&*said.tier) };
        let micros = model.cost_micros(&used, tier, Some(&said.region));
        books.bill_micros += micros;
        let arrives = matches!(fault, None | Some(Fault::NoUsage | Fault::ZeroUsage | Fault::UsageTwice));
        let again = arrives && books.memory.answered(number, &asking, &said);
        let (conversation, model) = (named(asking.conversation), asking.model.clone());
        let charged = books.charged.len();
        books.charged.push(Charged {
            request: number,
            conversation,
            path: speaks.path(),
            model,
            used,
            micros,
            whole: false,
            again,
        });
        let pause = turn.and_then(|(_, turn)| turn.pause_ms);
        let pause = Duration::from_millis(pause.unwrap_or_else(|| self.pause_ms.load(Ordering::Relaxed)));
        Ok(Plan { said, fault, pause, request: asking.value, charged })
    }

    /// Notes that all of an answer has left.
    pub fn left(&self, charged: usize) {
        self.books().charged[charged].whole = true;
    }
}

impl Books {
    /// Returns the turn that a request gets, with its place in the script.
    fn turn(&mut self, asking: &Asking) -> Option<((String, usize), Turn)> {
        if let Some((play, number)) = &asking.play
            && let Some(turn) = self.script.turn(play, *number)
        {
            return Some(((play.clone(), *number), turn.clone()));
        }
        let turn = self.script.answers.pop_front()?;
        Some(((String::new(), self.script.answers.len()), turn))
    }
}

fn said(
    asking: &Asking,
    blocks: Vec<(Block, Vec<String>)>,
    stop: String,
    used: Used,
    fault: &Option<Fault>,
) -> Said {
    let text = |name: &str| asking.value[name].as_str();
    let usage = match fault {
        Some(Fault::NoUsage) => Usage::Missing,
        Some(Fault::ZeroUsage) => Usage::Zero,
        Some(Fault::UsageTwice) => Usage::Twice,
        _ => Usage::Once,
    };
    Said {
        // Each answer of a conversation has its own, and the same request gets the same one.
        id: format!("{}{:04x}", named(asking.conversation), asking.segments.len()),
        encrypts: includes_reasoning(&asking.value),
        model: asking.model.clone(),
        blocks,
        stop,
        used,
        usage,
        tier: text("service_tier").filter(|tier| *tier != "auto").unwrap_or("default").to_owned(),
        region: text("inference_geo").unwrap_or("global").to_owned(),
        speed: text("speed").map(str::to_owned),
    }
}

/// Whether a request asks for the reasoning, encrypted.
fn includes_reasoning(request: &serde_json::Value) -> bool {
    let included = request["include"].as_array();
    included.is_some_and(|names| names.iter().any(|name| name == "reasoning.encrypted_content"))
}

fn overflow(speaks: Speaks, input: u64, window: u64) -> Refusal {
    match speaks {
        Speaks::Messages => Refusal::invalid(format!("prompt is too long: {input} tokens > {window} maximum")),
        Speaks::Chat => Refusal::invalid(format!(
            "This model's maximum context length is {window} tokens. However, your messages resulted in {input} tokens. Please reduce the length of the messages."
        ))
        .param("messages")
        .code("context_length_exceeded"),
        Speaks::Responses => {
            let problem = "Your input exceeds the context window of this model. Please adjust your input and try again.";
            Refusal::invalid(problem).param("input").code("context_length_exceeded")
        }
    }
}
