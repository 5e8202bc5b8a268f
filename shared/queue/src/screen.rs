//! Repairs what lapin's parser cannot survive, before lapin sees it.
//!
//! RabbitMQ hands properties on as they came. A short string that is not UTF-8 makes lapin 4.12 drop the
//! connection, and header tables nested some thousand levels deep overflow its stack and end the process. Either
//! message would come again, and again. So the bytes from the broker pass through here: bad UTF-8 turns into `?`,
//! and a table nested too deep into a byte string. Both keep every length as it is, so nothing else moves.
//!
//! This module is pure, and knows of AMQP only what it must: frames, the place of short strings in a few methods,
//! and content headers (AMQP 0-9-1, sections 2.3.5 and 4.2; field types as RabbitMQ has them,
//! <https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>).

/// Tables and arrays inside each other; `x-death` needs three.
const MAX_DEPTH: usize = 16;
/// The broker never sends more than what was negotiated, by default 128 KiB.
const MAX_FRAME: usize = 16 * 1024 * 1024;
const FRAME_HEAD: usize = 7;
const FRAME_END: usize = 1;

/// Bytes on their way from the broker to lapin.
pub(crate) struct Screen {
    buffer: Vec<u8>,
    /// `buffer[start..passed]` may go on, `buffer[passed..end]` has been read but not looked at.
    start: usize,
    passed: usize,
    end: usize,
    /// So much of the present frame goes on without being looked at.
    through: usize,
}

/// The broker sends a frame that is larger than any it may send.
#[derive(Debug, thiserror::Error)]
#[error("the broker sent a frame of {bytes} bytes")]
pub(crate) struct FrameTooLarge {
    bytes: usize,
}

impl Screen {
    pub(crate) fn new() -> Screen {
        Screen { buffer: vec![0; 256 * 1024], start: 0, passed: 0, end: 0, through: 0 }
    }

    /// Where the next bytes are to be read into; never empty.
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

    /// So many bytes were read into [`Screen::space`].
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
            let size = u32::from_be_bytes([a, b, c, d]) as usize;
            match kind {
                1 | 2 if size > MAX_FRAME => return Err(FrameTooLarge { bytes: size }),
                1 | 2 if rest.len() < size + FRAME_END => return Ok(()),
                1 => repair_method(&mut rest[..size]).unwrap_or_default(),
                2 => repair_content_header(&mut rest[..size]).unwrap_or_default(),
                // The broker's answer to a version it does not speak. Nothing follows.
                b'A' => {
                    self.through = usize::MAX;
                    continue;
                }
                _ => {}
            }
            self.through = FRAME_HEAD + size + FRAME_END;
        }
    }

    /// Moves what may go on.
    pub(crate) fn take(&mut self, into: &mut [u8]) -> usize {
        let bytes = into.len().min(self.passed - self.start);
        into[..bytes].copy_from_slice(&self.buffer[self.start..self.start + bytes]);
        self.start += bytes;
        bytes
    }
}

/// What a method's arguments are made of, as far as we look.
enum Argument {
    Bytes(usize),
    ShortString,
}

/// Short strings in methods that can hold what some client has made up.
fn arguments(class: u16, method: u16) -> &'static [Argument] {
    use Argument::{Bytes, ShortString};
    match (class, method) {
        // connection.close, channel.close: reply-code, reply-text
        (10, 50) | (20, 40) => &[Bytes(2), ShortString],
        // connection.blocked: reason
        (10, 60) => &[ShortString],
        // basic.return: reply-code, reply-text, exchange, routing-key
        (60, 50) => &[Bytes(2), ShortString, ShortString, ShortString],
        // basic.deliver: consumer-tag, delivery-tag, redelivered, exchange, routing-key
        (60, 60) => &[ShortString, Bytes(9), ShortString, ShortString],
        // basic.get-ok: delivery-tag, redelivered, exchange, routing-key
        (60, 71) => &[Bytes(9), ShortString, ShortString],
        _ => &[],
    }
}

/// `None` for what is malformed, here and below: lapin says what is wrong with it.
fn repair_method(payload: &mut [u8]) -> Option<()> {
    let mut rest = payload;
    let (class, method) = (number(&mut rest)?, number(&mut rest)?);
    for argument in arguments(class, method) {
        match argument {
            Argument::Bytes(count) => drop(take(&mut rest, *count)?),
            Argument::ShortString => repair_short_string(&mut rest)?,
        }
    }
    Some(())
}

fn repair_content_header(payload: &mut [u8]) -> Option<()> {
    enum Property {
        ShortString,
        Table,
        Bytes(usize),
    }
    use Property::{Bytes, ShortString, Table};
    // content-type, content-encoding, headers, delivery-mode, priority, correlation-id, reply-to, expiration,
    // message-id, timestamp, type, user-id, app-id, cluster-id
    const PROPERTIES: [Property; 14] = [
        ShortString,
        ShortString,
        Table,
        Bytes(1),
        Bytes(1),
        ShortString,
        ShortString,
        ShortString,
        ShortString,
        Bytes(8),
        ShortString,
        ShortString,
        ShortString,
        ShortString,
    ];
    let mut rest = payload;
    // class, weight, body size
    take(&mut rest, 12)?;
    let flags = number(&mut rest)?;
    for (place, property) in PROPERTIES.iter().enumerate() {
        if flags & (0x8000 >> place) == 0 {
            continue;
        }
        match property {
            ShortString => repair_short_string(&mut rest)?,
            Table => repair_table(long(&mut rest)?, 1)?,
            Bytes(count) => drop(take(&mut rest, *count)?),
        }
    }
    Some(())
}

fn repair_table(mut table: &mut [u8], depth: usize) -> Option<()> {
    while !table.is_empty() {
        repair_short_string(&mut table)?;
        repair_value(&mut table, depth)?;
    }
    Some(())
}

fn repair_array(mut array: &mut [u8], depth: usize) -> Option<()> {
    while !array.is_empty() {
        repair_value(&mut array, depth)?;
    }
    Some(())
}

fn repair_value(rest: &mut &mut [u8], depth: usize) -> Option<()> {
    let kind = &mut take(rest, 1)?[0];
    match *kind {
        b'V' => {}
        b't' | b'b' | b'B' => drop(take(rest, 1)?),
        b's' | b'u' | b'U' => drop(take(rest, 2)?),
        b'I' | b'i' | b'f' => drop(take(rest, 4)?),
        b'D' => drop(take(rest, 5)?),
        b'L' | b'l' | b'd' | b'T' => drop(take(rest, 8)?),
        b'S' | b'x' => drop(long(rest)?),
        b'F' | b'A' if depth >= MAX_DEPTH => {
            // A byte string has the same shape.
            *kind = b'x';
            long(rest)?;
        }
        b'F' => repair_table(long(rest)?, depth + 1)?,
        b'A' => repair_array(long(rest)?, depth + 1)?,
        _ => return None,
    }
    Some(())
}

fn repair_short_string(rest: &mut &mut [u8]) -> Option<()> {
    let length = take(rest, 1)?[0];
    let mut text = take(rest, length.into())?;
    while let Err(error) = std::str::from_utf8(text) {
        let bad = &mut text[error.valid_up_to()..];
        // No length: the end of the string cuts a character off.
        let count = error.error_len().unwrap_or(bad.len());
        bad[..count].fill(b'?');
        text = &mut bad[count..];
    }
    Some(())
}

fn long<'a>(rest: &mut &'a mut [u8]) -> Option<&'a mut [u8]> {
    let length = take(rest, 4)?.try_into().map(u32::from_be_bytes).ok()?;
    take(rest, length as usize)
}

fn number(rest: &mut &mut [u8]) -> Option<u16> {
    take(rest, 2)?.try_into().map(u16::from_be_bytes).ok()
}

fn take<'a>(rest: &mut &'a mut [u8], bytes: usize) -> Option<&'a mut [u8]> {
    rest.split_off_mut(..bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
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

    /// What comes out when the bytes come in pieces of this size.
    fn pass(bytes: &[u8], piece: usize) -> Vec<u8> {
        let mut screen = Screen::new();
        let mut out = Vec::new();
        for piece in bytes.chunks(piece) {
            let mut piece = piece;
            while !piece.is_empty() {
                let space = screen.space();
                let count = piece.len().min(space.len());
                space[..count].copy_from_slice(&piece[..count]);
                piece = &piece[count..];
                screen.filled(count).unwrap();
                let mut some = [0; 1000];
                while let taken @ 1.. = screen.take(&mut some) {
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
    fn a_frame_that_cannot_be_is_an_error() {
        let mut screen = Screen::new();
        screen.space()[..7].copy_from_slice(&[1, 0, 1, 0xff, 0xff, 0xff, 0xff]);
        assert!(screen.filled(7).is_err());
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

        #[test]
        fn a_short_string_is_always_utf8_afterwards(id in proptest::collection::vec(any::<u8>(), 0..=255)) {
            let mut bytes = short(&id);
            repair_short_string(&mut &mut bytes[..]).unwrap();
            prop_assert!(std::str::from_utf8(&bytes[1..]).is_ok());
        }
    }
}
