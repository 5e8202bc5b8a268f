//! Cutting a batch into its items while it arrives: the elements of a JSON array, or the lines of NDJSON. Pure;
//! whether an item is a job is for others to say.

/// How the items are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// One JSON array.
    Array,
    /// One JSON value a line; empty lines are ignored.
    Lines,
}

/// One item.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Its text.
    Text(Vec<u8>),
    /// It is larger than one may be.
    TooLarge,
}

/// Where the text of an array is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before `[`.
    Before,
    /// Within, in so many brackets of an element; in a string, or behind a backslash of one.
    Within { depth: usize, in_string: bool, escaped: bool },
    /// Behind `]`.
    Behind,
}

/// Cuts a text that arrives in pieces.
pub struct Items {
    format: Format,
    /// The most bytes of an item.
    most: usize,
    place: Place,
    item: Vec<u8>,
    too_large: bool,
    /// Whether an element has to follow, because of a comma.
    after_comma: bool,
}

impl Items {
    /// Nothing has arrived yet.
    pub fn new(format: Format, most: usize) -> Items {
        let item = Vec::new();
        Items { format, most, place: Place::Before, item, too_large: false, after_comma: false }
    }

    /// Takes a piece, and adds the items that it completes. An error says why nothing can be read any more.
    pub fn feed(&mut self, piece: &[u8], items: &mut Vec<Item>) -> Result<(), &'static str> {
        match self.format {
            Format::Lines => {
                let mut lines = piece.split(|byte| *byte == b'\n');
                self.push(lines.next().unwrap_or_default());
                for line in lines {
                    self.end_line(items);
                    self.push(line);
                }
                Ok(())
            }
            Format::Array => {
                let mut rest = piece;
                while let Some((byte, behind)) = rest.split_first() {
                    let plain = self.plain(rest);
                    if plain > 0 {
                        self.push(&rest[..plain]);
                        rest = &rest[plain..];
                    } else {
                        self.step(*byte, items)?;
                        rest = behind;
                    }
                }
                Ok(())
            }
        }
    }

    /// How many of the first bytes lie within a string, and end neither it nor begin an escape.
    fn plain(&self, text: &[u8]) -> usize {
        let Place::Within { in_string: true, escaped: false, .. } = self.place else { return 0 };
        text.iter().position(|byte| matches!(byte, b'"' | b'\\')).unwrap_or(text.len())
    }

    /// The text has ended. An error says what is missing.
    pub fn end(&mut self, items: &mut Vec<Item>) -> Result<(), &'static str> {
        match (self.format, self.place) {
            (Format::Lines, _) => {
                self.end_line(items);
                Ok(())
            }
            (Format::Array, Place::Behind) => Ok(()),
            (Format::Array, Place::Before | Place::Within { .. }) => {
                Err("the JSON array ends in the middle, expected ]")
            }
        }
    }

    fn step(&mut self, byte: u8, items: &mut Vec<Item>) -> Result<(), &'static str> {
        let is_space = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        match self.place {
            Place::Before | Place::Behind if is_space => {}
            Place::Before if byte == b'[' => {
                self.place = Place::Within { depth: 0, in_string: false, escaped: false };
            }
            Place::Before => return Err("not a JSON array, expected [ first"),
            Place::Behind => return Err("something follows the JSON array, expected nothing behind ]"),
            Place::Within { depth, in_string: true, escaped } => {
                self.push(&[byte]);
                let escapes = !escaped && byte == b'\\';
                let in_string = escaped || byte != b'"';
                self.place = Place::Within { depth, in_string, escaped: escapes };
            }
            Place::Within { depth: 0, .. } if byte == b',' => {
                self.end_element(items)?;
                self.after_comma = true;
            }
            Place::Within { depth: 0, .. } if byte == b']' => {
                if self.after_comma || !self.is_empty() {
                    self.end_element(items)?;
                }
                self.place = Place::Behind;
            }
            Place::Within { depth: 0, .. } if is_space && self.is_empty() => {}
            Place::Within { depth, .. } => {
                self.push(&[byte]);
                let depth = match byte {
                    b'[' | b'{' => depth + 1,
                    b']' | b'}' => depth.saturating_sub(1),
                    _ => depth,
                };
                self.place = Place::Within { depth, in_string: byte == b'"', escaped: false };
            }
        }
        Ok(())
    }

    fn is_empty(&self) -> bool {
        self.item.is_empty() && !self.too_large
    }

    fn push(&mut self, text: &[u8]) {
        let room = self.most - self.item.len();
        self.too_large |= text.len() > room;
        self.item.extend_from_slice(&text[..text.len().min(room)]);
    }

    fn take(&mut self) -> Item {
        let text = std::mem::take(&mut self.item);
        if std::mem::take(&mut self.too_large) { Item::TooLarge } else { Item::Text(text) }
    }

    fn end_element(&mut self, items: &mut Vec<Item>) -> Result<(), &'static str> {
        if self.is_empty() {
            return Err(
                "an element of the JSON array is empty, expected a value before each , and behind it",
            );
        }
        self.after_comma = false;
        items.push(self.take());
        Ok(())
    }

    fn end_line(&mut self, items: &mut Vec<Item>) {
        if self.too_large || !self.item.trim_ascii().is_empty() {
            items.push(self.take());
        }
        self.item.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(format: Format, text: &str, piece: usize) -> (Vec<String>, Result<(), &'static str>) {
        let (mut items, mut found) = (Items::new(format, 10), Vec::new());
        let mut fed =
            text.as_bytes().chunks(piece.max(1)).try_for_each(|piece| items.feed(piece, &mut found));
        if fed.is_ok() {
            fed = items.end(&mut found);
        }
        let shown = |item: Item| match item {
            Item::Text(text) => String::from_utf8(text).unwrap(),
            Item::TooLarge => "too large".to_owned(),
        };
        (found.into_iter().map(shown).collect(), fed)
    }

    fn array(text: &str) -> (Vec<String>, Result<(), &'static str>) {
        cut(Format::Array, text, 3)
    }

    #[test]
    fn an_array_is_cut_at_its_own_commas() {
        let (items, ended) = array(r#" [ {"a":[1,2]} , "],\"" ,7] "#);
        assert_eq!(items.iter().map(|item| item.trim()).collect::<Vec<_>>(), ["too large", r#""],\"""#, "7"]);
        assert_eq!(ended, Ok(()));
        assert_eq!(array("[]"), (vec![], Ok(())));
        assert_eq!(array("[ \n ]"), (vec![], Ok(())));
    }

    #[test]
    fn what_came_before_a_mistake_was_an_item() {
        for text in ["[1,2", "[1,2,", "[1,2,]", "[1,2,,3]", "[1,2]3", "[1,2,\""] {
            let (items, ended) = array(text);
            assert!(
                items.first().is_some_and(|item| item == "1") && ended.is_err(),
                "{text}: {items:?} {ended:?}"
            );
        }
        for text in ["", "{}", "7", "[,1]"] {
            assert!(array(text).1.is_err(), "{text}");
        }
    }

    #[test]
    fn lines_are_items_and_a_long_one_is_skipped_whole() {
        let text = "1\r\n\n  \n{\"a\":1}\n0123456789abcdef\n2";
        let (items, ended) = cut(Format::Lines, text, 2);
        assert_eq!(
            items.iter().map(|item| item.trim()).collect::<Vec<_>>(),
            ["1", "{\"a\":1}", "too large", "2"]
        );
        assert_eq!(ended, Ok(()));
    }

    proptest! {
        #[test]
        fn any_values_come_out_as_they_went_in(values in prop::collection::vec("[a-z\\\\\"\\]\\[{},]{0,6}", 0..6), piece in 1usize..7) {
            let text = serde_json::to_string(&values).unwrap();
            let mut found = Vec::new();
            let mut items = Items::new(Format::Array, 100);
            for piece in text.as_bytes().chunks(piece) {
                items.feed(piece, &mut found).unwrap();
            }
            items.end(&mut found).unwrap();
            let read = |item: Item| match item {
                Item::Text(text) => serde_json::from_slice::<String>(&text).unwrap(),
                Item::TooLarge => unreachable!("none is"),
            };
            prop_assert_eq!(found.into_iter().map(read).collect::<Vec<_>>(), values);
        }

        #[test]
        fn no_text_panics(text in ".*", piece in 1usize..9) {
            let _ = cut(Format::Array, &text, piece);
            let _ = cut(Format::Lines, &text, piece);
        }
    }
}
