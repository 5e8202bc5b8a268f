//! JSON to the letter: its parts as they were sent, in their order.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Members<'de>, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Members<'de>;

            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                to.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        from.deserialize_map(All)
    }
}

/// Returns the members of an object.
pub(super) fn members(text: &str) -> Option<Vec<(String, &str)>> {
    let Members(members) = serde_json::from_str(text).ok()?;
    Some(members.into_iter().map(|(name, value)| (name, value.get())).collect())
}

/// Returns the items of a list.
pub(super) fn items(text: &str) -> Option<Vec<&str>> {
    let items: Vec<&RawValue> = serde_json::from_str(text).ok()?;
    Some(items.into_iter().map(RawValue::get).collect())
}

/// Returns a member of an object. Of two with this name the last one counts.
pub(super) fn member<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    members(text)?.into_iter().rev().find(|(member, _)| member == name).map(|(_, value)| value)
}

/// Returns a block of a conversation without its cache marks, which move from request to request.
pub(super) fn unmarked(block: &str) -> String {
    let Some(members) = members(block) else { return block.to_owned() };
    let kept = members.iter().filter(|(name, _)| name != "cache_control").map(|(name, value)| {
        let value = match items(value) {
            Some(inner) if name == "content" => {
                format!("[{}]", inner.into_iter().map(unmarked).collect::<Vec<_>>().join(","))
            }
            _ => (*value).to_owned(),
        };
        format!("{}:{value}", serde_json::Value::from(name.as_str()))
    });
    format!("{{{}}}", kept.collect::<Vec<_>>().join(","))
}

/// Returns where a part is within the whole that it was taken from.
pub(super) fn offset(whole: &str, part: &str) -> usize {
    (part.as_ptr() as usize).saturating_sub(whole.as_ptr() as usize)
}

/// Returns the first byte in which two texts differ.
pub(super) fn first_difference(one: &str, other: &str) -> Option<usize> {
    let same = one.bytes().zip(other.bytes()).take_while(|(one, other)| one == other).count();
    (same < one.len() || same < other.len()).then_some(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_keep_their_letters_and_lose_only_marks() {
        let block = r#"{"z":1e5, "content":[ {"type":"text","cache_control":{"type":"ephemeral"},"text":"\u00e9"}],"a":{"cache_control":1}}"#;
        assert_eq!(
            unmarked(block),
            r#"{"z":1e5,"content":[{"type":"text","text":"\u00e9"}],"a":{"cache_control":1}}"#
        );
        let list = member(block, "content").unwrap();
        assert_eq!((offset(block, list), items(list).unwrap().len()), (20, 1));
        assert_eq!((first_difference("abc", "abx"), first_difference("a", "ab")), (Some(2), Some(1)));
        assert_eq!(first_difference("a", "a"), None);
    }
}
