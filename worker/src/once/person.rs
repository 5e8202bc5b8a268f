//! A person at the terminal, who is asked what the agent asks.

use std::io::{IsTerminal, stderr, stdin};
use std::thread;

use harness::{Ask, CallId, ClosedInput, InputAnswer, InputKind};
use job::{shown, shown_lines};
use serde_json::Value;
use service::note;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::settings::json_or_text;

/// Nobody can answer, and why.
pub struct Unanswered(pub String);

/// The terminal. What is typed is read from the first question on.
#[derive(Default)]
pub struct Terminal(Option<mpsc::Receiver<String>>);

impl Terminal {
    /// Asks one question after the other.
    pub async fn answers(&mut self, asks: &[Ask]) -> Result<Vec<(CallId, ClosedInput)>, Unanswered> {
        if let Some(ask) = asks.first().filter(|_| !(stdin().is_terminal() && stderr().is_terminal())) {
            return Err(Unanswered(format!(
                "it asks a person ({} of call {}: {}), expected a terminal to ask on, or an agent that asks \
                 nobody",
                ask.kind,
                ask.call_id,
                shown(ask.content.as_str())
            )));
        }
        let mut answers = Vec::new();
        for ask in asks {
            answers.push((ask.call_id.clone(), self.answer(ask).await?));
        }
        Ok(answers)
    }

    async fn answer(&mut self, ask: &Ask) -> Result<ClosedInput, Unanswered> {
        let lines = self.0.get_or_insert_with(typed);
        // What was typed before is no answer to this.
        while lines.try_recv().is_ok() {}
        note!("? {}", question(ask));
        let answer = read(ask.kind, lines);
        let answered = match ask.timeout {
            Some(limit) => timeout(limit, answer).await.ok(),
            None => Some(answer.await),
        };
        match answered {
            Some(Some(answer)) => Ok(ClosedInput { answer: Some(answer), by: None, timed_out: false }),
            Some(None) => Err(Unanswered("it asks a person, and the terminal was closed".to_owned())),
            None => {
                note!("  nobody has answered in time");
                Ok(ClosedInput { answer: None, by: None, timed_out: true })
            }
        }
    }
}

/// Reads the terminal in a thread of its own: nothing else ends such a wait.
fn typed() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(16);
    thread::spawn(move || {
        for line in stdin().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Returns what is asked, and how it is answered.
fn question(ask: &Ask) -> String {
    let content: Value = serde_json::from_str(ask.content.as_str()).unwrap_or_default();
    match ask.kind {
        InputKind::Approval => format!("{} Is this approved? [y/n]", shown(ask.content.as_str())),
        InputKind::Question => match content["question"].as_str().or(content.as_str()) {
            Some(text) => format!("{} [one line: a text or JSON]", shown_lines(text)),
            None => format!("{} [one line: a text or JSON]", shown(ask.content.as_str())),
        },
    }
}

/// Reads lines up to one that answers. Returns nothing if there are no more.
async fn read(kind: InputKind, lines: &mut mpsc::Receiver<String>) -> Option<InputAnswer> {
    loop {
        let line = lines.recv().await?;
        match (kind, line.trim().to_lowercase().as_str()) {
            (InputKind::Approval, "y" | "yes") => return Some(InputAnswer::Approve { approve: true }),
            (InputKind::Approval, "n" | "no") => return Some(InputAnswer::Approve { approve: false }),
            (InputKind::Approval, _) => note!("  expected y or n"),
            (InputKind::Question, _) => {
                let answer = json_or_text(line.trim()).and_then(|answer| {
                    InputAnswer::of(Some(answer), None).map_err(|error| error.to_string())
                });
                match answer {
                    Ok(answer) => return Some(answer),
                    Err(problem) => note!("  {problem}"),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use job::Json;

    use super::*;

    async fn typing(kind: InputKind, typed: &[&str]) -> Option<InputAnswer> {
        let (sender, mut lines) = mpsc::channel(16);
        for line in typed {
            sender.send((*line).to_owned()).await.expect("room");
        }
        drop(sender);
        read(kind, &mut lines).await
    }

    #[tokio::test]
    async fn an_approval_is_yes_or_no_and_nothing_else() {
        let approve = |approve| Some(InputAnswer::Approve { approve });
        assert_eq!(typing(InputKind::Approval, &["", "maybe", "Y"]).await, approve(true));
        assert_eq!(typing(InputKind::Approval, &["no"]).await, approve(false));
        assert_eq!(typing(InputKind::Approval, &["perhaps"]).await, None);
    }

    #[tokio::test]
    async fn an_answer_is_json_or_a_text() {
        let answer = |text: &str| Some(InputAnswer::Answer { answer: Json::parse(text).expect("JSON") });
        assert_eq!(typing(InputKind::Question, &["{broken", "next week "]).await, answer("\"next week\""));
        assert_eq!(typing(InputKind::Question, &["{\"days\": 7}"]).await, answer("{\"days\": 7}"));
    }
}
