//! What a run does, as it is shown: text on stdout as it comes, all else in short on stderr. Nothing is kept.

use std::borrow::Cow;
use std::io::IsTerminal;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use harness::{Delta, Event, Journal, Part, Stop, Work};
use job::{shown, shown_lines};
use serde_json::Value;
use service::{note, print_piece};

/// The most characters of an event that are shown.
const SHOWN: usize = 200;

pub struct Shown {
    /// Shows nothing.
    is_quiet: bool,
    /// A terminal is not given what it would act on.
    is_terminal: bool,
    text: Mutex<Text>,
}

#[derive(Default)]
struct Text {
    /// What was streamed since the last iteration but one.
    streamed: String,
    /// Whether the iteration that streamed it is over.
    is_over: bool,
}

impl Shown {
    pub fn new(is_quiet: bool) -> Shown {
        Shown { is_quiet, is_terminal: std::io::stdout().is_terminal(), text: Mutex::default() }
    }

    /// Ends the line of text that was begun, so that what is printed next stands on its own.
    pub fn end_line(&self) {
        let mut text = self.text();
        if !text.streamed.is_empty() && !text.streamed.ends_with('\n') {
            text.streamed.push('\n');
            print_piece("\n");
        }
    }

    /// Returns whether a terminal shows stdout.
    pub fn is_terminal(&self) -> bool {
        self.is_terminal
    }

    /// Returns what the last iteration has streamed.
    pub fn last_text(&self) -> String {
        self.text().streamed.clone()
    }

    /// Says something on stderr.
    fn say(&self, line: &str) {
        if !self.is_quiet {
            self.end_line();
            note!("{line}");
        }
    }

    fn text(&self) -> MutexGuard<'_, Text> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Journal for Shown {
    async fn checkpoint(&self, delta: &Delta) -> Result<(), Stop> {
        self.text().is_over |= delta.iterations > 0;
        Ok(())
    }

    fn event(&self, event: Event) {
        let field =
            |name: &str| event.data[name].as_str().map_or_else(Cow::default, |text| shown(text.trim_end()));
        match event.name.as_str() {
            "tool_call" => self.say(&format!("> {} {}", field("tool"), field("input"))),
            "tool_result" => {
                self.say(&format!("< {} {}: {}", field("tool"), field("outcome"), field("text")));
            }
            "text_void" => {
                self.say("* the text so far counts no more: its answer did not come whole");
                self.text().streamed.clear();
            }
            name => {
                let data = if event.data == Value::Null { String::new() } else { event.data.to_string() };
                self.say(&format!("* {} {}", shown(name), shown(&clipped(&data))));
            }
        }
    }

    fn text(&self, text: &str) {
        if self.is_quiet || text.is_empty() {
            return;
        }
        if std::mem::take(&mut self.text().is_over) {
            self.end_line();
            self.text().streamed.clear();
        }
        self.text().streamed.push_str(text);
        print_piece(&if self.is_terminal { shown_lines(text) } else { text.into() });
    }

    fn part(&self, part: &Part) {
        match (&part.work, part.failed) {
            (Work::Chat { model, .. }, Some(failed)) => self.say(&format!("* {model}: {failed}")),
            (Work::Compaction, None) => self.say("* the conversation was made shorter"),
            _ => {}
        }
    }
}

fn clipped(text: &str) -> String {
    text.chars().take(SHOWN).collect()
}
