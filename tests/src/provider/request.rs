//! A request, as it was sent: its conversation in parts, to the letter.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;

use super::letters::{items, member, offset, unmarked};
use super::seal::meaning;
use super::wire::Speaks;

/// For how long a marked prefix is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ttl {
    Short,
    Long,
}

/// A part of a conversation: a tool, a block of the system prompt, a block of a message.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    /// Where it is, as in `messages[3].content[0]`.
    pub place: String,
    /// Its text without cache marks.
    pub text: String,
    /// Its first byte in the body.
    pub at: usize,
    mark: Option<Ttl>,
}

impl Segment {
    /// Four bytes a token, as of ordinary text.
    pub fn tokens(&self) -> u64 {
        (self.text.len() as u64).div_ceil(4)
    }
}

/// What a request asks.
#[derive(Debug)]
pub(super) struct Asking {
    pub speaks: Speaks,
    pub model: String,
    pub value: Value,
    pub segments: Vec<Segment>,
    /// Whose turn it is: the hash of the first message.
    pub conversation: u64,
    /// The play that was begun last, and how many answers it has had.
    pub play: Option<(String, usize)>,
}

/// What begins a play.
const PLAY: &str = "play:";

impl Asking {
    pub fn read(speaks: Speaks, body: &str, value: Value) -> Asking {
        let model = value["model"].as_str().unwrap_or_default().to_owned();
        let mut segments = Vec::new();
        let mut add = |place: String, role: &str, raw: &str| {
            let mark = member(raw, "cache_control")
                .filter(|mark| *mark != "null")
                .map(|mark| if mark.contains("\"1h\"") { Ttl::Long } else { Ttl::Short });
            let text = format!("{role}{}", unmarked(raw));
            segments.push(Segment { place, text, at: offset(body, raw), mark });
        };
        let mut list = |name: &str, role: &str| {
            let Some(raw) = member(body, name).filter(|raw| *raw != "null") else { return };
            match items(raw) {
                Some(items) => {
                    items.iter().enumerate().for_each(|(at, item)| add(format!("{name}[{at}]"), role, item));
                }
                None => add(name.to_owned(), role, raw),
            }
        };
        list("tools", "");
        let conversation = match speaks {
            Speaks::Messages => {
                list("system", "");
                "messages"
            }
            Speaks::Chat => {
                list("messages", "");
                ""
            }
            Speaks::Responses => {
                list("instructions", "");
                list("input", "");
                ""
            }
        };
        let messages = member(body, conversation).and_then(items).unwrap_or_default();
        for (at, message) in messages.iter().enumerate() {
            let place = format!("messages[{at}].content");
            let role = member(message, "role").unwrap_or_default();
            let content = member(message, "content").unwrap_or_default();
            match items(content) {
                Some(blocks) => {
                    let blocks = blocks.iter().enumerate();
                    blocks.for_each(|(block, raw)| add(format!("{place}[{block}]"), role, raw));
                }
                None => add(place, role, content),
            }
        }
        if value["cache_control"].is_object()
            && let Some(last) = segments.last_mut()
        {
            let long = value["cache_control"]["ttl"] == "1h";
            last.mark = last.mark.or(Some(if long { Ttl::Long } else { Ttl::Short }));
        }
        let turns = turns(speaks, &value);
        let mut hasher = DefaultHasher::new();
        speaks.hash(&mut hasher);
        // Another model is another conversation: it takes back nothing that the first one thought.
        model.hash(&mut hasher);
        turns.iter().find(|turn| !turn.assistant).map(|turn| &turn.text).hash(&mut hasher);
        let play = play(&turns);
        Asking { speaks, model, value, segments, conversation: hasher.finish(), play }
    }

    /// Returns the parts that are marked.
    pub fn marks(&self) -> Vec<(usize, Ttl)> {
        let segments = self.segments.iter().enumerate();
        segments.filter_map(|(at, segment)| Some((at, segment.mark?))).collect()
    }

    pub fn tokens(&self) -> u64 {
        self.segments.iter().map(Segment::tokens).sum()
    }

    /// Returns the largest limit of output that it names.
    pub fn limit(&self) -> Option<u64> {
        let limits = ["max_tokens", "max_completion_tokens", "max_output_tokens"];
        limits.iter().filter_map(|name| self.value[*name].as_u64()).max()
    }
}

/// What one side said in a row.
struct Said {
    assistant: bool,
    text: String,
}

/// Returns who said what after the head.
fn turns(speaks: Speaks, value: &Value) -> Vec<Said> {
    let list = if speaks == Speaks::Responses { &value["input"] } else { &value["messages"] };
    let Some(items) = list.as_array() else {
        return vec![Said { assistant: false, text: list.to_string() }];
    };
    let mut turns: Vec<Said> = Vec::new();
    for item in items {
        let role = item["role"].as_str().unwrap_or_default();
        if ["system", "developer"].contains(&role) {
            continue;
        }
        let kind = item["type"].as_str().unwrap_or_default();
        let assistant = role == "assistant" || ["function_call", "reasoning"].contains(&kind);
        match turns.last_mut() {
            // The items of one answer.
            Some(last) if speaks == Speaks::Responses && assistant && last.assistant => {}
            _ => turns.push(Said { assistant, text: meaning(item) }),
        }
    }
    turns
}

fn play(turns: &[Said]) -> Option<(String, usize)> {
    let named = |said: &Said| {
        let (_, name) = said.text.rsplit_once(PLAY)?;
        let end = name.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-' && letter != '_');
        Some(name[..end.unwrap_or(name.len())].to_owned())
    };
    let began = turns.iter().rposition(|said| !said.assistant && named(said).is_some())?;
    let answered = turns[began..].iter().filter(|said| said.assistant).count();
    Some((named(&turns[began])?, answered))
}
