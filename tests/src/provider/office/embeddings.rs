//! Embeddings: a list of numbers for each text. No conversation, no stream, and no output that costs. Faults are not
//! ordered for them.
//!
//! Source: "Create embeddings" of the API reference at developers.openai.com/api/docs (fields; at most 2,048 inputs, none
//! of them empty or longer than the model's window).

use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::{Charged, Office};
use crate::provider::check::{head, strange};
use crate::provider::price::{Model, Used};
use crate::provider::wire::{Refusal, Speaks};

/// Its path.
pub(in crate::provider) const PATH: &str = "/v1/embeddings";

const FIELDS: [&str; 5] = ["dimensions", "encoding_format", "input", "model", "user"];
const MOST_INPUTS: usize = 2_048;

impl Office {
    /// Answers a request for embeddings and charges it. All of the answer leaves at once.
    pub fn embed(&self, number: u64, headers: &HeaderMap, body: &[u8]) -> Result<Value, Refusal> {
        let read = || -> Result<_, Refusal> {
            let (request, model) = head(Speaks::Chat, headers, body, &self.key, &self.models)?;
            Ok((tokens(&request, model)?, request, model))
        };
        let mut books = self.books();
        let (tokens, request, model) = match read() {
            Ok(read) => read,
            Err(refused) => {
                books.memory.refused(number, &refused.message);
                return Err(refused);
            }
        };
        let used = Used { input: tokens.iter().sum(), ..Used::default() };
        let (micros, name) =
            (model.cost_micros(&used, None, None), request["model"].as_str().unwrap_or_default());
        books.bill_micros += micros;
        books.charged.push(Charged {
            request: number,
            conversation: String::new(),
            path: PATH,
            model: name.to_owned(),
            used,
            micros,
            whole: true,
            again: false,
        });
        // 0.25 and -0.5, as numbers or as their bytes.
        let is_packed = request["encoding_format"] == "base64";
        let numbers = if is_packed { json!("AACAPgAAAL8=") } else { json!([0.25, -0.5]) };
        let each = |index| json!({"object": "embedding", "index": index, "embedding": numbers});
        let data: Vec<Value> = (0..tokens.len()).map(each).collect();
        let usage = json!({"prompt_tokens": used.input, "total_tokens": used.input});
        Ok(json!({"object": "list", "data": data, "model": name, "usage": usage}))
    }
}

/// Returns the tokens of each input.
fn tokens(request: &Value, model: &Model) -> Result<Vec<u64>, Refusal> {
    let invalid = |problem: String| Refusal::invalid(problem).param("input");
    let fields = request.as_object().ok_or_else(|| Refusal::invalid("We could not parse your request."))?;
    if let Some(name) = strange(fields, &FIELDS).next() {
        return Err(Refusal::invalid(format!("Unrecognized request argument supplied: {name}")));
    }
    if model.max_output > 0 {
        return Err(Refusal::new(403, "You are not allowed to generate embeddings from this model"));
    }
    let inputs = match &request["input"] {
        Value::Array(items) if items.iter().all(Value::is_u64) && !items.is_empty() => {
            vec![items.len() as u64]
        }
        Value::Array(items) => items.iter().map(weigh).collect::<Option<_>>().unwrap_or_default(),
        one => weigh(one).into_iter().collect::<Vec<u64>>(),
    };
    if inputs.is_empty() || inputs.len() > MOST_INPUTS || inputs.contains(&0) {
        return Err(invalid("'$.input' is invalid. Please check the API reference.".to_owned()));
    }
    let window = model.context_window;
    if let Some(tokens) = inputs.iter().find(|tokens| **tokens > window) {
        return Err(invalid(format!(
            "This model's maximum context length is {window} tokens, however you requested {tokens} tokens"
        )));
    }
    Ok(inputs)
}

/// Four bytes of a text are a token, as everywhere here.
fn weigh(input: &Value) -> Option<u64> {
    match input {
        Value::String(text) => Some((text.len() as u64).div_ceil(4)),
        Value::Array(tokens) if tokens.iter().all(Value::is_u64) => Some(tokens.len() as u64),
        _ => None,
    }
}
