//! The asker: a program that calls a model, as any other would, and keeps asking.
//!
//! `chaos asker` is a program for the harness `command`. It has one conversation a job, and a checkpoint for each answer.
//! Every request extends the last one to the letter, also in a later attempt: what was answered is in the script of the
//! provider. It knows the gateway by its environment alone, and asks again after every failure that may pass.

use std::io::stdin;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use ureq::Agent;

/// The model that it calls.
pub const MODEL: &str = "claude-haiku-4-5";
/// Longer than any outage here.
const PATIENCE: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(100);

/// The script of the provider: every answer is one word that its question names, and much goes wrong.
pub const SCRIPT: &str = r#"{
    "retry_after_s": 1,
    "plays": {
        "chaos": [{"times": 1000, "thinking": "", "text": "answer {turn}"}],
        "notes": [
            {"times": 6, "thinking": "Step {turn}.", "tools": [{"name": "note", "input": {"z": 1e5, "text": "step {turn}"}}]},
            {"text": "Noted."}
        ],
        "signs": [
            {"times": 3, "thinking": "Step {turn}.", "tools": [{"name": "sign", "input": {"step": "{turn}"}}]},
            {"thinking": "But which?", "tools": [{"name": "note", "input": {"text": "asked"}}, {"name": "ask_human", "input": {"question": "Which?"}}]},
            {"text": "Noted."}
        ]
    },
    "faults": [
        {"fault": {"cut_after": 4}, "every": 13, "first": 5},
        {"fault": {"cut_after_event": "content_block_stop"}, "every": 19, "first": 9},
        {"fault": {"cut_after_event": "message_delta"}, "every": 23, "first": 11},
        {"fault": {"fails": 500}, "every": 17, "first": 7},
        {"fault": "garbage", "every": 43, "first": 20},
        {"fault": "usage_twice", "every": 29, "first": 3},
        {"fault": "no_usage", "every": 47, "first": 30},
        {"fault": {"refuses": 429}, "every": 37, "first": 15, "times": 3},
        {"fault": {"refuses": 529}, "every": 41, "first": 16, "times": 3}
    ]
}"#;

/// Runs as the program of a job.
pub fn run() -> anyhow::Result<()> {
    let order: Value = serde_json::from_reader(stdin()).context("reading the job")?;
    let (job, input) = (&order["job"], &order["job"]["input"]);
    let id = job["job_id"].as_str().context("no job_id")?;
    let says = input["says"].as_array().context("no says")?;
    let progress = &order["session"]["feature_progress"];
    let done = progress[id]["done"].as_u64().unwrap_or(0) as usize;
    let mut notes = progress.as_object().cloned().unwrap_or_default();
    notes.values_mut().for_each(|note| *note = Value::Null);
    let gateway = Gateway::find()?;
    // The answers so far, each with its thought, as they came.
    let mut answers: Vec<Value> = progress[id]["answers"].as_array().cloned().unwrap_or_default();
    for (at, say) in says.iter().enumerate().skip(done) {
        let mut messages = vec![json!({"role": "user", "content": format!("Job {id}. play:chaos")})];
        for answer in &answers {
            messages.push(json!({"role": "assistant", "content": answer}));
            messages.push(json!({"role": "user", "content": "Go on."}));
        }
        let answer = gateway.ask(&messages, at % 2 == 0)?;
        anyhow::ensure!(said(&answer) == format!("answer {at}"), "another answer: {answer}");
        answers.push(answer);
        notes.insert(id.to_owned(), json!({"done": at + 1, "answers": answers}));
        let entry = json!({"role": "assistant", "content": say});
        println!("{}", json!({"type": "checkpoint", "context_window": [entry], "feature_progress": notes}));
    }
    println!("{}", json!({"type": "result", "output": {"iterations": says.len()}}));
    Ok(())
}

/// Returns the text of an answer.
fn said(answer: &Value) -> String {
    answer.as_array().into_iter().flatten().filter_map(|block| block["text"].as_str()).collect()
}

struct Gateway {
    url: String,
    key: String,
    agent: Agent,
}

impl Gateway {
    fn find() -> anyhow::Result<Gateway> {
        let url = std::env::var("ANTHROPIC_BASE_URL").context("no gateway")?;
        let key = std::env::var("ANTHROPIC_API_KEY").context("no key")?;
        let config = Agent::config_builder().http_status_as_error(false).proxy(None);
        Ok(Gateway { url: format!("{url}/v1/messages"), key, agent: config.build().into() })
    }

    /// Asks until there is an answer, and returns its content.
    fn ask(&self, messages: &[Value], stream: bool) -> anyhow::Result<Value> {
        let body =
            json!({"model": MODEL, "max_tokens": 200, "messages": messages, "stream": stream}).to_string();
        let begun = Instant::now();
        loop {
            let answer = self.try_once(&body);
            let problem = match &answer {
                Ok((200, text)) => {
                    let content = if stream { streamed(text) } else { whole(text) };
                    if let Some(content) = content {
                        return Ok(content);
                    }
                    format!("no answer: {text}")
                }
                Ok((status, text)) if [429, 500, 502, 503, 529].contains(status) => {
                    format!("{status} {text}")
                }
                Ok((status, text)) => bail!("the gateway said {status} {text}"),
                Err(error) => error.to_string(),
            };
            if begun.elapsed() > PATIENCE {
                bail!("no answer for {} s: {problem}", PATIENCE.as_secs());
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn try_once(&self, body: &str) -> Result<(u16, String), ureq::Error> {
        let request = self.agent.post(&self.url).header("x-api-key", &self.key);
        let request = request.header("anthropic-version", "2023-06-01").content_type("application/json");
        let mut answer = request.send(body)?;
        Ok((answer.status().as_u16(), answer.body_mut().read_to_string()?))
    }
}

fn whole(text: &str) -> Option<Value> {
    let mut answer: Value = serde_json::from_str(text).ok()?;
    Some(answer["content"].take()).filter(Value::is_array)
}

/// Reads the events of a stream; `None` without its end.
fn streamed(text: &str) -> Option<Value> {
    let mut blocks: Vec<Value> = Vec::new();
    let mut ended = false;
    for data in text.lines().filter_map(|line| line.strip_prefix("data: ")) {
        let event: Value = serde_json::from_str(data).ok()?;
        match event["type"].as_str()? {
            "content_block_start" => blocks.push(event["content_block"].clone()),
            "content_block_delta" => {
                let block = blocks.last_mut()?;
                for field in ["text", "thinking", "signature"] {
                    if let Some(piece) = event["delta"][field].as_str() {
                        let so_far = block[field].as_str().unwrap_or_default();
                        block[field] = json!(format!("{so_far}{piece}"));
                    }
                }
            }
            "message_stop" => ended = true,
            _ => {}
        }
    }
    ended.then_some(Value::Array(blocks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_an_answer_only_with_its_end() {
        let stream = "data: {\"type\":\"content_block_start\",\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n\
            data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":\"answer 1\"}}\n\n";
        assert_eq!(streamed(stream), None);
        let ended = format!("{stream}data: {{\"type\":\"message_stop\"}}\n\n");
        assert_eq!(said(&streamed(&ended).unwrap()), "answer 1");
    }
}
