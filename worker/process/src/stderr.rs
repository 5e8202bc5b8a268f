//! Reads what a program writes to stderr: for the log, and its last lines for the failure's message. It is always read
//! to the end, so that a program never blocks on it. What is kept and what is logged are bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// Bytes of a line that are kept.
const KEEP_BYTES: usize = 1_000;
/// Lines that go into a failure's message.
const KEEP_LINES: usize = 20;
/// Bytes of a line that go to the log.
const LOG_BYTES: usize = 1_000;
/// Lines of one run that go to the log.
const LOG_LINES: u64 = 2_000;
/// How long to wait for the end of stderr once the program is dead: another process may hold the pipe.
const DRAIN: Duration = Duration::from_millis(500);

/// The reader of one program's stderr.
pub struct Stderr {
    tail: Arc<Mutex<VecDeque<String>>>,
    reader: AbortOnDropHandle<()>,
}

impl Stderr {
    /// Starts to read. The first lines are passed to `log` as they come, clipped and cleaned. The last ones are kept so.
    pub fn follow(
        pipe: impl AsyncRead + Unpin + Send + 'static,
        log: impl Fn(&str) + Send + 'static,
    ) -> Stderr {
        Stderr::keep(pipe, KEEP_LINES, KEEP_BYTES, log)
    }

    /// As [`Stderr::follow`], but keeps so many lines, and so many bytes of each.
    pub fn keep(
        pipe: impl AsyncRead + Unpin + Send + 'static,
        keep_lines: usize,
        keep_bytes: usize,
        log: impl Fn(&str) + Send + 'static,
    ) -> Stderr {
        let tail = Arc::new(Mutex::new(VecDeque::new()));
        let kept = tail.clone();
        let reading = async move {
            let mut count = 0;
            let mut pipe = BufReader::new(pipe);
            while let Some(line) = next_line(&mut pipe, keep_bytes).await {
                count += 1;
                if count <= LOG_LINES {
                    log(&line[..line.floor_char_boundary(LOG_BYTES)]);
                }
                if count == LOG_LINES {
                    log(&format!("(these were {LOG_LINES} lines; further lines are not logged)"));
                }
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.push_back(line);
                if kept.len() > keep_lines {
                    kept.pop_front();
                }
            }
        };
        // The current span names the job.
        let reader = tokio::spawn(reading.in_current_span());
        Stderr { tail, reader: AbortOnDropHandle::new(reader) }
    }

    /// Returns the last lines, once the program is dead.
    pub async fn tail(self) -> Vec<String> {
        // If the time runs out, what has come so far must suffice.
        let _ = tokio::time::timeout(DRAIN, self.reader).await;
        let mut kept = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        kept.drain(..).collect()
    }
}

/// Returns the next line that is not blank, clipped and fit for a log, or `None` at the end.
async fn next_line(pipe: &mut (impl AsyncBufReadExt + Unpin), keep_bytes: usize) -> Option<String> {
    let mut line = Vec::new();
    loop {
        let chunk = pipe.fill_buf().await.ok()?;
        let at_end = chunk.is_empty();
        let newline = chunk.iter().position(|byte| *byte == b'\n');
        let piece = &chunk[..newline.unwrap_or(chunk.len())];
        line.extend_from_slice(&piece[..piece.len().min(keep_bytes.saturating_sub(line.len()))]);
        let used = piece.len() + usize::from(newline.is_some());
        pipe.consume(used);
        let blank = line.trim_ascii().is_empty();
        if !blank && (newline.is_some() || at_end) {
            return Some(printable(&line));
        }
        if at_end {
            return None;
        }
        if newline.is_some() {
            line.clear();
        }
    }
}

/// Replaces control characters: with escape sequences a program could overwrite the log.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line.trim_ascii_end());
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_clipped_cleaned_and_blank_ones_skipped() {
        let text = format!("one\r\n\n  \n{}\n\x1b[31mred\nlast", "x".repeat(5_000));
        let mut pipe = BufReader::new(text.as_bytes());
        assert_eq!(next_line(&mut pipe, KEEP_BYTES).await.unwrap(), "one");
        assert_eq!(next_line(&mut pipe, KEEP_BYTES).await.unwrap().len(), KEEP_BYTES);
        assert_eq!(next_line(&mut pipe, KEEP_BYTES).await.unwrap(), "\u{fffd}[31mred");
        assert_eq!(next_line(&mut pipe, KEEP_BYTES).await.unwrap(), "last");
        assert_eq!(next_line(&mut pipe, KEEP_BYTES).await, None);
    }
}
