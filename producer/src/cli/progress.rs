//! A progress bar with a rate on a terminal; elsewhere only the messages.

use std::io::stdin;
use std::time::Duration;

use console::Term;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use service::{Notes, note, out};

/// The most redraws per second.
const FRAMES: u8 = 20;

/// Progress over a known or unknown number of items.
pub struct Progress(ProgressBar);

impl Progress {
    /// Draws to stderr if that is a terminal.
    pub fn new(total: Option<u64>) -> Progress {
        let (bar, template) = match total {
            Some(total) => {
                (ProgressBar::new(total), "{bar:40} {human_pos}/{human_len}  {per_sec}  {eta} left")
            }
            None => (ProgressBar::new_spinner(), "{spinner} {human_pos}  {per_sec}"),
        };
        // Drawn through the same writer as all other output, so the order is kept and a stalled terminal blocks
        // nothing.
        bar.set_draw_target(ProgressDrawTarget::term(Term::read_write_pair(stdin(), Notes), FRAMES));
        bar.set_style(ProgressStyle::with_template(template).expect("the templates are right"));
        Progress(bar)
    }

    /// Adds to the number of items done.
    pub fn advance(&self, count: u64) {
        self.0.inc(count);
    }

    /// Prints a line above the bar.
    pub fn say(&self, line: &str) {
        self.0.suspend(|| note!("{line}"));
    }

    /// Prints a line to stdout; the bar is hidden meanwhile.
    pub fn print(&self, line: &str) {
        self.0.suspend(|| out!("{line}"));
    }

    /// Time since the start.
    pub fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}
