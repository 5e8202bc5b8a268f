//! Takes the lines of a run, one after the other.

use harness::{Delta, Run, Stop, Usage};
use job::{Failure, FailureCode, InputRequest, Json};
use tokio::io::AsyncRead;

use crate::contract::{self, Message};
use crate::lines::{LineError, Lines};
use crate::silence::Silence;

/// The last thing that a program said.
#[derive(Clone, Debug, PartialEq)]
pub enum LastMessage {
    /// `result`.
    Result(Json),
    /// `error`.
    Error(Failure),
    /// The end of its lines, after one `ask` or several.
    Asks(Vec<InputRequest>),
    /// A line that breaks the contract, or output over a limit.
    Broken(Failure),
    /// A checkpoint that was refused.
    Refused(Stop),
    /// The end of its lines. `torn` says what is wrong with a torn last line.
    Nothing {
        /// What is wrong with it.
        torn: Option<Failure>,
    },
}

/// Reads what a program writes.
pub struct Listener<'a, R> {
    run: &'a mut Run,
    lines: Lines<R>,
    silence: &'a Silence,
    /// Usage that was reported with `cost` and is in no checkpoint yet.
    unpaid: Usage,
    /// What was asked with `ask`.
    asks: Vec<InputRequest>,
}

impl<'a, R: AsyncRead + Unpin> Listener<'a, R> {
    /// Listens for a run.
    pub fn new(run: &'a mut Run, lines: Lines<R>, silence: &'a Silence) -> Listener<'a, R> {
        Listener { run, lines, silence, unpaid: Usage::default(), asks: Vec::new() }
    }

    /// Takes one line after the other, up to the last word. A checkpoint is durable before the next line is looked at:
    /// while we commit, the pipe fills and the program waits.
    pub async fn listen(&mut self) -> LastMessage {
        loop {
            let line = match self.silence.until(self.lines.next()).await {
                Ok(Some(line)) => line,
                Ok(None) if !self.asks.is_empty() => {
                    return LastMessage::Asks(std::mem::take(&mut self.asks));
                }
                Ok(None) => return LastMessage::Nothing { torn: None },
                Err(error) => return LastMessage::Broken(cannot_read(error)),
            };
            let message = match contract::parse(&line) {
                Ok(Some(message)) => message,
                Ok(None) => continue,
                Err(failure) if line.complete => return LastMessage::Broken(failure),
                Err(failure) => return LastMessage::Nothing { torn: Some(failure) },
            };
            match message {
                Message::Checkpoint(delta) => {
                    if let Err(stop) = self.checkpoint(delta).await {
                        return LastMessage::Refused(at_line(stop, line.source, line.number));
                    }
                }
                Message::Event(event) => self.run.event(event),
                Message::Text(text) => self.run.text(&text),
                Message::Cost(usage) => self.unpaid += usage,
                Message::Ask(request) => {
                    self.asks.push(request);
                    if let Err(error) = InputRequest::check(&self.asks) {
                        let problem = format!("{} line {}: ask.{error}", line.source, line.number);
                        return LastMessage::Broken(Failure::permanent(FailureCode::Protocol, problem));
                    }
                }
                Message::Result(_) if !self.asks.is_empty() => {
                    let problem = format!(
                        "{} line {}: got a result after an ask, expected one of the two",
                        line.source, line.number
                    );
                    return LastMessage::Broken(Failure::permanent(FailureCode::Protocol, problem));
                }
                Message::Result(output) => return LastMessage::Result(output),
                Message::Error(failure) => return LastMessage::Error(failure),
            }
        }
    }

    /// Records what was spent, however the attempt ended, unless its checkpoints are no longer accepted.
    pub async fn settle(&mut self, last_message: &LastMessage) -> Result<(), Stop> {
        if let Some(meter) = self.run.meter() {
            meter.close();
        }
        match last_message {
            LastMessage::Refused(_) => Ok(()),
            _ => self.checkpoint(Delta::default()).await,
        }
    }

    /// Reads to the end and keeps nothing. Cancel-safe.
    pub async fn discard(&mut self) {
        self.lines.discard().await;
    }

    /// Returns how many bytes were discarded.
    pub fn discarded(&self) -> u64 {
        self.lines.discarded()
    }

    async fn checkpoint(&mut self, mut delta: Delta) -> Result<(), Stop> {
        delta.usage += self.unpaid;
        self.run.checkpoint(delta).await?;
        self.unpaid = Usage::default();
        Ok(())
    }
}

/// Adds the line's number if the refused checkpoint is the program's fault.
fn at_line(stop: Stop, source: &str, number: u64) -> Stop {
    match stop {
        Stop::Unstorable(problem) => Stop::Unstorable(format!("{source} line {number}: {problem}")),
        Stop::OutputLimit(problem) => Stop::OutputLimit(format!("{source} line {number}: {problem}")),
        _ => stop,
    }
}

fn cannot_read(error: LineError) -> Failure {
    match &error {
        LineError::TooLong { .. } | LineError::TooMuch { .. } => {
            Failure::permanent(FailureCode::OutputLimit, error.to_string())
        }
        LineError::Io { source, .. } => {
            Failure::retryable(FailureCode::Crashed, format!("{error}: {source}"))
        }
    }
}
