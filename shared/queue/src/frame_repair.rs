//! The bytes from the broker, frame by frame, on their way to lapin. What lapin cannot survive is repaired.
//!
//! A message that ended the connection would come again on the next one, and again. So frames whose content could do
//! that go through [`crate::repair`] before lapin sees them. This module is pure, and knows only the frames of AMQP
//! (AMQP 0-9-1, section 2.3.5).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::headers::{FRAME_END, FRAME_HEAD, FRAME_OVERHEAD};
use crate::repair;

/// The largest frame that is held in memory for inspection, whatever was negotiated.
const MAX_FRAME: usize = 16 * 1024 * 1024;

/// The largest frame that lapin takes, once that is negotiated. lapin gives up the connection at a larger one. RabbitMQ
/// limits only bodies by it. Its content headers may be of any size.
#[derive(Clone)]
pub(crate) struct FrameMax(Arc<AtomicUsize>);

impl FrameMax {
    pub(crate) fn unknown() -> FrameMax {
        FrameMax(Arc::new(AtomicUsize::new(usize::MAX)))
    }

    pub(crate) fn negotiated(&self, bytes: u32) {
        self.0.store(bytes as usize, Ordering::Relaxed);
    }

    /// Returns what is left of it for a payload.
    fn payload(&self) -> usize {
        self.0.load(Ordering::Relaxed) - FRAME_OVERHEAD
    }
}

/// Bytes on their way from the broker to lapin.
pub(crate) struct FrameRepair {
    buffer: Vec<u8>,
    /// `buffer[start..passed]` may be taken, `buffer[passed..end]` has been read but not inspected.
    start: usize,
    passed: usize,
    end: usize,
    /// How many bytes of the present frame pass without inspection.
    through: usize,
    frame_max: FrameMax,
}

/// The broker sent a frame that is larger than [`MAX_FRAME`], and so than any that it may send.
#[derive(Debug, thiserror::Error)]
#[error("the broker sent a frame of {bytes} bytes")]
pub(crate) struct FrameTooLarge {
    bytes: usize,
}

impl FrameRepair {
    pub(crate) fn new(frame_max: FrameMax) -> FrameRepair {
        FrameRepair { buffer: vec![0; 256 * 1024], start: 0, passed: 0, end: 0, through: 0, frame_max }
    }

    /// Returns the space for the next bytes. It is never empty.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.passed, self.end) = (0, 0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.passed, self.end) = (self.passed - self.start, self.end - self.start);
            self.start = 0;
            if self.end == self.buffer.len() {
                self.buffer.resize(self.end * 2, 0);
            }
        }
        &mut self.buffer[self.end..]
    }

    /// Records that this many bytes were read into [`FrameRepair::space`], and inspects them.
    pub(crate) fn filled(&mut self, bytes: usize) -> Result<(), FrameTooLarge> {
        self.end += bytes;
        loop {
            let known = self.through.min(self.end - self.passed);
            self.passed += known;
            self.through -= known;
            let waiting = &mut self.buffer[self.passed..self.end];
            let Some((&mut [kind, _, _, a, b, c, d], rest)) = waiting.split_first_chunk_mut::<FRAME_HEAD>()
            else {
                return Ok(());
            };
            let mut size = u32::from_be_bytes([a, b, c, d]) as usize;
            match kind {
                1 | 2 if size > MAX_FRAME => return Err(FrameTooLarge { bytes: size }),
                1 | 2 if rest.len() < size + FRAME_END => return Ok(()),
                1 => repair::method(&mut rest[..size]),
                2 => {
                    if let Some(smaller) = repair::content_header(&mut rest[..size], self.frame_max.payload())
                    {
                        self.replace(size, &smaller);
                        size = smaller.len();
                    }
                }
                // The broker answers this to a version it does not speak. Nothing follows.
                b'A' => {
                    self.through = usize::MAX;
                    continue;
                }
                _ => {}
            }
            self.through = FRAME_OVERHEAD + size;
        }
    }

    /// Replaces the present frame's payload with a smaller one.
    fn replace(&mut self, size: usize, smaller: &[u8]) {
        let payload = self.passed + FRAME_HEAD;
        self.buffer[payload - 4..payload].copy_from_slice(&(smaller.len() as u32).to_be_bytes());
        self.buffer[payload..payload + smaller.len()].copy_from_slice(smaller);
        self.buffer.copy_within(payload + size..self.end, payload + smaller.len());
        self.end -= size - smaller.len();
    }

    /// Moves bytes that may be taken. Returns how many.
    pub(crate) fn take(&mut self, into: &mut [u8]) -> usize {
        let bytes = into.len().min(self.passed - self.start);
        into[..bytes].copy_from_slice(&self.buffer[self.start..self.start + bytes]);
        self.start += bytes;
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::headers::DROPPED;
    use proptest::prelude::*;

    fn short(bytes: &[u8]) -> Vec<u8> {
        [&[bytes.len() as u8], bytes].concat()
    }

    fn with_length(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        [&[kind, 0, 1], &with_length(payload)[..], &[0xce]].concat()
    }

    fn content_header(flags: u16, properties: &[u8]) -> Vec<u8> {
        let fixed = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4];
        frame(2, &[&fixed[..], &flags.to_be_bytes(), properties].concat())
    }

    fn deliver(exchange: &[u8], routing_key: &[u8]) -> Vec<u8> {
        let tag = [0; 9];
        frame(1, &[&[0, 60, 0, 60][..], &short(b"tag"), &tag, &short(exchange), &short(routing_key)].concat())
    }

    fn frame_max(bytes: u32) -> FrameMax {
        let frame_max = FrameMax::unknown();
        frame_max.negotiated(bytes);
        frame_max
    }

    /// Returns what comes out when the bytes come in pieces of this size.
    fn pass(bytes: &[u8], piece: usize) -> Vec<u8> {
        pass_to(FrameMax::unknown(), bytes, piece)
    }

    fn pass_to(frame_max: FrameMax, bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut frame_repair = FrameRepair::new(frame_max);
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            let mut piece = piece;
            while !piece.is_empty() {
                let space = frame_repair.space();
                let count = piece.len().min(space.len());
                space[..count].copy_from_slice(&piece[..count]);
                piece = &piece[count..];
                frame_repair.filled(count).unwrap();
                let mut some = [0; 1000];
                while let taken @ 1.. = frame_repair.take(&mut some) {
                    out.extend_from_slice(&some[..taken]);
                }
            }
        }
        out
    }

    #[test]
    fn bad_utf8_in_short_strings_turns_into_question_marks() {
        let bytes = [
            deliver(b"ex\xff", b"\xf0\x9f\x98"),
            content_header(0x8080, &[short(b"a\xc3"), short(b"\xff\xc3\xa9")].concat()),
        ];
        let wanted = [
            deliver(b"ex?", b"???"),
            content_header(0x8080, &[short(b"a?"), short("?é".as_bytes())].concat()),
        ];
        assert_eq!(pass(&bytes.concat(), 7), wanted.concat());
    }

    #[test]
    fn bad_utf8_in_the_keys_of_nested_tables_is_found_and_values_are_left_alone() {
        let table = |key: &[u8]| {
            let inner = [short(key), b"S".to_vec(), with_length(b"\xff")].concat();
            let array = [b"F".to_vec(), with_length(&inner), b"tVl".to_vec()];
            let array = [&array[0][..], &array[1], b"t\x01", b"V", b"l\0\0\0\0\0\0\0\x01"].concat();
            let outer = [short(b"list"), b"A".to_vec(), with_length(&array)].concat();
            content_header(0x2000, &with_length(&outer))
        };
        assert_eq!(pass(&table(b"k\xfe"), 1), table(b"k?"));
    }

    #[test]
    fn a_table_nested_too_deep_turns_into_a_byte_string() {
        let mut table = Vec::new();
        for _ in 0..5_000 {
            table = [short(b"n"), b"F".to_vec(), with_length(&table)].concat();
        }
        let bytes = content_header(0x2000, &with_length(&table));
        let out = pass(&bytes, 4096);
        assert_eq!(out.len(), bytes.len());
        let changed: Vec<_> = bytes.iter().zip(&out).filter(|(before, after)| before != after).collect();
        assert_eq!(changed, [(&b'F', &b'x')]);
    }

    #[test]
    fn bodies_and_heartbeats_pass_untouched_however_large() {
        let body = vec![0xff; 300_000];
        let bytes = [frame(3, &body), frame(8, b""), frame(3, b"\xff\xff")].concat();
        assert_eq!(pass(&bytes, 100_000), bytes);
    }

    #[test]
    fn a_header_larger_than_the_buffer_is_still_looked_at() {
        let table =
            [short(b"big"), b"S".to_vec(), with_length(&vec![b'x'; 600_000]), short(b"\xff"), b"V".to_vec()];
        let out = pass(&content_header(0x2000, &with_length(&table.concat())), 60_000);
        assert_eq!(&out[out.len() - 4..], b"\x01?V\xce");
    }

    #[test]
    fn a_header_larger_than_any_frame_is_cut_down_and_what_follows_stays() {
        let table =
            [short(b"big"), b"S".to_vec(), with_length(&vec![b'x'; 131_000]), short(b"b"), b"V".to_vec()];
        let header = content_header(0x2000, &with_length(&table.concat()));
        assert!(header.len() <= 131_072);
        let whole = [&header[..], &deliver(b"e", b"k"), &header, &header, &frame(3, b"body")].concat();
        assert_eq!(pass_to(frame_max(header.len() as u32), &whole, 70_000), whole);
        let mark = [short(DROPPED.as_bytes()), b"l".to_vec(), 131_009u64.to_be_bytes().to_vec()].concat();
        let table = [&b"\x01bV"[..], &mark].concat();
        let cut = content_header(0x2000, &with_length(&table));
        let cut = [&cut[..], &deliver(b"e", b"k"), &cut, &cut, &frame(3, b"body")].concat();
        for piece in [1_000, 70_000, 1_000_000] {
            assert_eq!(pass_to(frame_max(header.len() as u32 - 1), &whole, piece), cut);
        }
    }

    #[test]
    fn a_frame_that_cannot_be_is_an_error() {
        let mut frame_repair = FrameRepair::new(FrameMax::unknown());
        frame_repair.space()[..7].copy_from_slice(&[1, 0, 1, 0xff, 0xff, 0xff, 0xff]);
        assert!(frame_repair.filled(7).is_err());
    }

    #[test]
    fn another_protocol_version_passes() {
        assert_eq!(pass(b"AMQP\x00\x01\x00\x00", 3), b"AMQP\x00\x01\x00\x00");
    }

    proptest! {
        #[test]
        fn whatever_comes_its_length_stays(
            kind in 1u8..4, payload in proptest::collection::vec(any::<u8>(), 0..300), piece in 1usize..400,
        ) {
            let bytes = [frame(kind, &payload), deliver(b"e", b"k")].concat();
            let out = pass(&bytes, piece);
            prop_assert_eq!(out.len(), bytes.len());
            prop_assert_eq!(&out[out.len() - 20..], &bytes[bytes.len() - 20..]);
        }

        #[test]
        fn what_was_right_stays_as_it_is(id in "[a-zé😀]{0,50}", key in "[a-z]{0,9}", piece in 1usize..99) {
            let table = [short(key.as_bytes()), b"S".to_vec(), with_length(b"\xff")].concat();
            let properties = [with_length(&table), short(id.as_bytes())].concat();
            let bytes = content_header(0x2080, &properties);
            prop_assert_eq!(pass(&bytes, piece), bytes);
        }
    }
}
