//! Reads lines from a stream of bytes, and never holds more of them in memory than the limits allow. It does not know what a line
//! means.

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};

/// Reads lines of at most `max_line` bytes, and `max_total` bytes in all.
pub struct Lines<R> {
    /// What is read, as people know it.
    source: &'static str,
    stream: BufReader<R>,
    max_line: usize,
    max_total: u64,
    line: Vec<u8>,
    number: u64,
    total: u64,
    discarded: u64,
}

/// One line, without its newline.
#[derive(Debug, PartialEq)]
pub(crate) struct Line {
    /// Where it comes from, as people know it.
    pub source: &'static str,
    /// 1 for the first.
    pub number: u64,
    /// Its bytes, as they came.
    pub bytes: Vec<u8>,
    /// False for a last line without a newline: it may be torn.
    pub complete: bool,
}

/// Why no further line can be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error("{stream} line {number} is longer than max_line_bytes = {limit}")]
    TooLong { stream: &'static str, number: u64, limit: usize },
    #[error("{stream} is longer than max_output_bytes = {limit} (reached in line {number})")]
    TooMuch { stream: &'static str, number: u64, limit: u64 },
    #[error("{stream} cannot be read after line {number}")]
    Io {
        stream: &'static str,
        number: u64,
        #[source]
        source: std::io::Error,
    },
}

impl<R: AsyncRead + Unpin> Lines<R> {
    /// Reads what people know by this name.
    pub fn new(source: &'static str, stream: R, max_line: usize, max_total: u64) -> Lines<R> {
        let stream = BufReader::new(stream);
        Lines { source, stream, max_line, max_total, line: Vec::new(), number: 0, total: 0, discarded: 0 }
    }

    /// Returns the next line, or `None` at the end. Cancel-safe: a partly read line is kept for the next call.
    pub(crate) async fn next(&mut self) -> Result<Option<Line>, LineError> {
        loop {
            let (stream, number) = (self.source, self.number + 1);
            let chunk = self.stream.fill_buf().await.map_err(|source| LineError::Io {
                stream,
                number: number - 1,
                source,
            })?;
            if chunk.is_empty() {
                return Ok((!self.line.is_empty()).then(|| self.take(false)));
            }
            let newline = chunk.iter().position(|byte| *byte == b'\n');
            let piece = &chunk[..newline.unwrap_or(chunk.len())];
            let used = piece.len() + usize::from(newline.is_some());
            if self.line.len() + piece.len() > self.max_line {
                return Err(LineError::TooLong { stream, number, limit: self.max_line });
            }
            if self.total + used as u64 > self.max_total {
                return Err(LineError::TooMuch { stream, number, limit: self.max_total });
            }
            self.line.extend_from_slice(piece);
            self.total += used as u64;
            self.stream.consume(used);
            if newline.is_some() {
                return Ok(Some(self.take(true)));
            }
        }
    }

    /// Reads to the end and keeps nothing. Cancel-safe.
    pub(crate) async fn discard(&mut self) {
        while let Ok(chunk) = self.stream.fill_buf().await
            && !chunk.is_empty()
        {
            let used = chunk.len();
            self.discarded += used as u64;
            self.stream.consume(used);
        }
    }

    /// Returns how many bytes were discarded.
    pub(crate) fn discarded(&self) -> u64 {
        self.discarded
    }

    fn take(&mut self, complete: bool) -> Line {
        self.number += 1;
        Line { source: self.source, number: self.number, bytes: std::mem::take(&mut self.line), complete }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn all(text: &[u8], max_line: usize, max_total: u64) -> (Vec<Line>, Option<String>) {
        let mut lines = Lines::new("stdout", text, max_line, max_total);
        let mut seen = Vec::new();
        loop {
            match lines.next().await {
                Ok(Some(line)) => seen.push(line),
                Ok(None) => return (seen, None),
                Err(error) => return (seen, Some(error.to_string())),
            }
        }
    }

    fn line(number: u64, text: &str, complete: bool) -> Line {
        Line { source: "stdout", number, bytes: text.as_bytes().to_vec(), complete }
    }

    #[tokio::test]
    async fn lines_are_numbered_and_a_torn_one_is_marked() {
        let (lines, error) = all(b"a\n\nbc", 10, 100).await;
        assert_eq!(lines, [line(1, "a", true), line(2, "", true), line(3, "bc", false)]);
        assert_eq!(error, None);
    }

    #[tokio::test]
    async fn both_limits_are_named_with_the_line_that_passed_them() {
        let (lines, error) = all(b"ok\nfour\n", 3, 100).await;
        assert_eq!(lines.len(), 1);
        assert_eq!(error.unwrap(), "stdout line 2 is longer than max_line_bytes = 3");
        let (lines, error) = all(b"ok\nok\nok\n", 3, 8).await;
        assert_eq!(lines.len(), 2);
        assert!(error.unwrap().contains("max_output_bytes = 8"));
    }
}
