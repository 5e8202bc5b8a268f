//! What lapin cannot survive in a frame, and what it is replaced with.
//!
//! RabbitMQ passes properties on as they came. A short string that is not UTF-8 makes lapin 4.12 drop the connection,
//! and header tables nested some thousand levels deep overflow its stack and end the process. So bad UTF-8 becomes
//! `?`, and a table nested too deep becomes a byte string. Both replacements keep every length.
//!
//! RabbitMQ also writes headers of its own into messages (`x-delivery-count`, `x-death`), and sends the result even if
//! it is larger than the agreed frame size. lapin then closes the connection. Such a message loses its largest
//! headers, and gets one that says so.
//!
//! Pure. It knows where the short strings are in a few methods, and it knows content headers (AMQP 0-9-1, section 4.2;
//! field types as RabbitMQ has them, <https://www.rabbitmq.com/amqp-0-9-1-errata#section_3>).

use std::ops::Range;

use crate::headers::{self, DROPPED};

/// The deepest nesting of tables and arrays. `x-death` needs three levels.
const MAX_DEPTH: usize = 16;

/// One part of a method's arguments, as far as we look.
enum Argument {
    Bytes(usize),
    ShortString,
}

/// Returns the arguments up to the last short string that may hold text made up by a client.
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

/// Repairs a method's arguments in place.
pub(crate) fn method(payload: &mut [u8]) {
    repair_method(payload).unwrap_or_default();
}

/// Repairs a content header in place. If it is larger than `room`, returns one with fewer headers.
pub(crate) fn content_header(payload: &mut [u8], room: usize) -> Option<Vec<u8>> {
    let table = repair_content_header(payload).unwrap_or_default();
    if payload.len() <= room { None } else { without_the_largest(payload, table?, room) }
}

/// Returns `None` for malformed input, as do the functions below. lapin reports what is wrong with it.
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

/// Returns the range of the header table's content, if there is one.
fn repair_content_header(payload: &mut [u8]) -> Option<Option<Range<usize>>> {
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
    let size = payload.len();
    let mut table = None;
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
            Table => {
                let inside = long(&mut rest)?;
                let end = size - rest.len();
                table = Some(end - inside.len()..end);
                repair_table(inside, 1)?;
            }
            Bytes(count) => drop(take(&mut rest, *count)?),
        }
    }
    Some(table)
}

/// Returns the content header without its largest headers, so that it fits, and with one that says so.
fn without_the_largest(payload: &mut [u8], table: Range<usize>, room: usize) -> Option<Vec<u8>> {
    let mut entries = Vec::new();
    let mut rest = &mut payload[table.clone()];
    while !rest.is_empty() {
        let start = table.end - rest.len();
        repair_short_string(&mut rest)?;
        let name = start + 1..table.end - rest.len();
        repair_value(&mut rest, 1)?;
        entries.push((name, start..table.end - rest.len()));
    }
    let (before, after) = (&payload[..table.start - 4], &payload[table.end..]);
    let mark = |dropped: usize| {
        [&[DROPPED.len() as u8], DROPPED.as_bytes(), b"l", &(dropped as u64).to_be_bytes()].concat()
    };
    let others = before.len() + 4 + mark(0).len() + after.len();
    let weighed = entries.iter().map(|(name, entry)| (&payload[name.clone()], entry.len()));
    let kept: Vec<&[u8]> = headers::that_fit(weighed, room.checked_sub(others)?)
        .into_iter()
        .map(|place| &payload[entries[place].1.clone()])
        .collect();
    let kept = kept.concat();
    let table = [&kept[..], &mark(table.len() - kept.len())].concat();
    Some([before, &(table.len() as u32).to_be_bytes(), &table, after].concat())
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
            // A byte string has the same layout.
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
        // Without a length, the end of the string cuts off a character.
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

    fn with_length(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u32).to_be_bytes()[..], bytes].concat()
    }

    fn entry(name: &str, bytes: usize) -> Vec<u8> {
        [&[name.len() as u8], name.as_bytes(), b"S", &with_length(&vec![b'x'; bytes])].concat()
    }

    /// Returns a content header with these headers, a delivery mode and a message id.
    fn header(table: &[u8]) -> Vec<u8> {
        let fixed = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0x30, 0x80];
        [&fixed[..], &with_length(table), b"\x02", b"\x02id"].concat()
    }

    fn dropped(bytes: u64) -> Vec<u8> {
        [&[DROPPED.len() as u8], DROPPED.as_bytes(), b"l", &bytes.to_be_bytes()].concat()
    }

    #[test]
    fn what_does_not_fit_loses_its_largest_headers_and_says_so() {
        let (small, large, death) = (entry("small", 10), entry("large", 3_000), entry("x-death", 500));
        let mut whole = header(&[&large[..], &small, &death].concat());
        let room = whole.len();
        assert_eq!(content_header(&mut whole, room), None);
        let cut = content_header(&mut whole, room - 1).unwrap();
        assert_eq!(cut, header(&[&small[..], &death, &dropped(large.len() as u64)].concat()));
        // What the broker says about a death is kept longest.
        let cut = content_header(&mut whole, 580).unwrap();
        assert_eq!(cut, header(&[&death[..], &dropped((large.len() + small.len()) as u64)].concat()));
    }

    proptest! {
        #[test]
        fn whatever_the_headers_are_what_comes_out_fits(
            sizes in proptest::collection::vec(0usize..3_000, 0..20), room in 200usize..20_000,
        ) {
            let table: Vec<u8> = sizes.iter().flat_map(|bytes| entry("name", *bytes)).collect();
            let mut whole = header(&table);
            match content_header(&mut whole, room) {
                None => prop_assert!(whole.len() <= room),
                Some(cut) => prop_assert!(cut.len() <= room && cut.ends_with(b"\x02\x02id")),
            }
        }

        #[test]
        fn a_short_string_is_always_utf8_afterwards(id in proptest::collection::vec(any::<u8>(), 0..=255)) {
            let mut bytes = [&[id.len() as u8], &id[..]].concat();
            repair_short_string(&mut &mut bytes[..]).unwrap();
            prop_assert!(std::str::from_utf8(&bytes[1..]).is_ok());
        }
    }
}
