//! Server-sent events as the bytes that they came in.
//!
//! The parsers on crates.io give events without their bytes. The gateway passes bytes on unchanged, takes single events
//! out and holds the last one back, so it has to know where each one begins and ends.
//!
//! Source: html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream.

use bytes::{Bytes, BytesMut};

/// The bytes of one event, including the blank line behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame(Bytes);

/// Splits a stream into its events.
#[derive(Debug, Default)]
pub struct Frames {
    buffer: BytesMut,
    /// How much of the buffer has been searched for an end.
    searched: usize,
}

/// An event that is larger than any that a provider sends.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event has more than {MOST} bytes")]
pub struct Oversized;

/// More than the largest answer: 128,000 tokens have some 600 KiB of text.
const MOST: usize = 16 << 20;

impl Frames {
    /// Adds what has arrived. Call [`Frames::take`] until it returns nothing.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Oversized> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() > MOST { Err(Oversized) } else { Ok(()) }
    }

    /// Returns the next whole event.
    pub fn take(&mut self) -> Option<Frame> {
        let from = self.searched.saturating_sub(3);
        match end(&self.buffer[from..]) {
            Some(end) => {
                self.searched = 0;
                Some(Frame(self.buffer.split_to(from + end).freeze()))
            }
            None => {
                self.searched = self.buffer.len();
                None
            }
        }
    }

    /// Returns what has arrived of an event that has not ended.
    pub fn rest(&mut self) -> Bytes {
        self.searched = 0;
        self.buffer.split().freeze()
    }
}

/// Returns where the first event ends: behind two ends of lines.
fn end(bytes: &[u8]) -> Option<usize> {
    let after_break = |at: usize| match (bytes.get(at), bytes.get(at + 1)) {
        (Some(b'\r'), Some(b'\n')) => Some(at + 2),
        (Some(b'\n' | b'\r'), _) => Some(at + 1),
        _ => None,
    };
    (0..bytes.len()).find_map(|at| after_break(at).and_then(after_break))
}

impl Frame {
    /// Returns its bytes, as they came.
    pub fn bytes(&self) -> &Bytes {
        &self.0
    }

    /// Returns the lines of its data, joined; empty if it has none, as a comment or a ping.
    pub fn data(&self) -> String {
        let text = String::from_utf8_lossy(&self.0);
        let text = text.trim_start_matches('\u{feff}');
        let lines = text.split(['\n', '\r']).filter_map(|line| line.strip_prefix("data:"));
        lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(pieces: &[&[u8]]) -> (Vec<Frame>, Bytes) {
        let mut frames = Frames::default();
        let mut all = Vec::new();
        for piece in pieces {
            frames.push(piece).expect("small");
            all.extend(std::iter::from_fn(|| frames.take()));
        }
        (all, frames.rest())
    }

    #[test]
    fn events_end_at_a_blank_line_of_any_kind() {
        let (all, rest) =
            split(&[b"event: a\ndata: 1\n\ndata:2\r\n\r\n: ping\n\ndata: 3\rdata: 4\r\rdata: cut"]);
        let data: Vec<String> = all.iter().map(Frame::data).collect();
        assert_eq!(data, ["1", "2", "", "3\n4"]);
        assert_eq!(rest, "data: cut");
    }

    #[test]
    fn an_event_without_an_end_does_not_grow_without_bound() {
        let mut frames = Frames::default();
        assert_eq!(frames.push(&vec![b'x'; MOST]), Ok(()));
        assert_eq!(frames.push(b"x"), Err(Oversized));
    }

    proptest! {
        #[test]
        fn no_byte_is_lost_wherever_the_stream_is_cut(
            text in "(data: [a-c]{0,3}|event: x|: y|\r\n|\n|\n\n){0,12}",
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
        ) {
            // A CR at the end of a piece may belong to a CRLF whose LF is still to come: only LF is cut freely here.
            let text = text.replace('\r', "");
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            places.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for place in places.into_iter().chain([text.len()]) {
                pieces.push(&text.as_bytes()[from..place]);
                from = place;
            }
            let whole = split(&[text.as_bytes()]);
            let cut = split(&pieces);
            prop_assert_eq!(&whole, &cut);
            let mut joined: Vec<u8> = whole.0.iter().flat_map(|frame| frame.bytes().to_vec()).collect();
            joined.extend_from_slice(&whole.1);
            prop_assert_eq!(joined, text.as_bytes());
        }
    }
}
