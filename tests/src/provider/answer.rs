//! What it says: blocks, each in the pieces in which a stream brings it. A piece is a token of output.

mod messages;
mod chat;
mod responses;

use serde_json::Value;

use super::price::Used;
use super::script::Turn;
use super::seal::Prefix;
use super::wire::Speaks;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Block {
    Thinking {
        text: String,
        signature: String,
    },
    /// A block of Messages, to the letter.
    Raw(String),
    Text(String),
    Tool {
        id: String,
        name: String,
        input: String,
    },
}

/// An answer.
#[derive(Debug)]
pub(super) struct Said {
    /// Behind the prefix of each wire's ids. Each answer of a conversation has its own.
    pub id: String,
    /// Whether the request asked for its reasoning, encrypted.
    pub encrypts: bool,
    pub model: String,
    pub blocks: Vec<(Block, Vec<String>)>,
    /// As Messages names it.
    pub stop: String,
    pub used: Used,
    pub usage: Usage,
    pub tier: String,
    pub region: String,
    /// The fast mode of Messages, if it was asked for.
    pub speed: Option<String>,
}

/// How the answer reports what it used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    Once,
    Twice,
    Zero,
    Missing,
}

/// Returns the blocks of a turn and why it stops. `id` becomes part of the ids of its calls.
pub(super) fn blocks(
    turn: &Turn,
    number: usize,
    id: u64,
    model: &str,
    prefix: &Prefix,
) -> (Vec<Block>, String) {
    let filled = |text: &str| text.replace("{turn}", &number.to_string());
    let mut blocks = Vec::new();
    if let Some(text) = &turn.thinking {
        let text = filled(text);
        let signature = prefix.sign(model, &text);
        blocks.push(Block::Thinking { text, signature });
    }
    blocks.extend(turn.block.iter().map(|raw| Block::Raw(raw.get().to_owned())));
    blocks.extend(turn.text.iter().map(|text| Block::Text(filled(text))));
    blocks.extend(turn.tools.iter().enumerate().map(|(at, call)| Block::Tool {
        id: format!("toolu_{id}_{at}"),
        name: call.name.clone(),
        input: filled(call.input.get()),
    }));
    let usual = if turn.tools.is_empty() { "end_turn" } else { "tool_use" };
    (blocks, turn.stop.clone().unwrap_or_else(|| usual.to_owned()))
}

/// Returns the usual answer.
pub(super) fn words(count: u64) -> Vec<Block> {
    vec![Block::Text((0..count).map(|number| format!("w{number} ")).collect())]
}

/// Cuts an answer into pieces, at most so many. Returns them, how many they are, and whether something was left out.
pub(super) fn within(blocks: Vec<Block>, limit: u64) -> (Vec<(Block, Vec<String>)>, u64, bool) {
    let (mut kept, mut used) = (Vec::new(), 0_u64);
    for block in blocks {
        let left = usize::try_from(limit.saturating_sub(used)).unwrap_or(usize::MAX);
        if left == 0 {
            return (kept, used, true);
        }
        let mut pieces = pieces(&block);
        let cut = pieces.len() > left;
        pieces.truncate(left);
        used += pieces.len().max(usize::from(matches!(block, Block::Raw(_)))) as u64;
        let said = pieces.concat();
        let block = match block {
            Block::Text(_) => Block::Text(said),
            // A thought that was not finished has no signature.
            Block::Thinking { .. } if cut => Block::Thinking { text: said, signature: String::new() },
            Block::Tool { id, name, .. } => Block::Tool { id, name, input: said },
            other => other,
        };
        kept.push((block, pieces));
        if cut {
            return (kept, used, true);
        }
    }
    (kept, used.max(1), false)
}

fn pieces(block: &Block) -> Vec<String> {
    match block {
        Block::Thinking { text, .. } | Block::Text(text) => {
            text.split_inclusive(' ').map(str::to_owned).collect()
        }
        Block::Raw(_) => Vec::new(),
        Block::Tool { input, .. } => {
            let letters: Vec<char> = input.chars().collect();
            letters.chunks(4).map(|piece| piece.iter().collect()).collect()
        }
    }
}

/// Returns an answer that is no stream.
pub(super) fn whole(speaks: Speaks, said: &Said) -> String {
    match speaks {
        Speaks::Messages => messages::whole(said),
        Speaks::Chat => chat::whole(said).to_string(),
        Speaks::Responses => responses::whole(said).to_string(),
    }
}

/// An event of a stream.
#[derive(Clone, Debug)]
pub(super) struct Event {
    /// `chat.completion.chunk` and `[DONE]` where the wire has no names.
    pub name: String,
    /// With its blank line.
    pub text: String,
}

impl Event {
    /// An event that says its name twice, as Messages and Responses do.
    fn named(data: &Value) -> Event {
        let name = data["type"].as_str().unwrap_or_default().to_owned();
        Event { text: format!("event: {name}\ndata: {data}\n\n"), name }
    }
}

/// Returns the events of a stream.
pub(super) fn events(speaks: Speaks, said: &Said, request: &Value) -> Vec<Event> {
    match speaks {
        Speaks::Messages => messages::events(said),
        Speaks::Chat => chat::events(said, request["stream_options"]["include_usage"] == Value::Bool(true)),
        Speaks::Responses => responses::events(said),
    }
}

impl Said {
    /// Returns the text of its blocks.
    fn text(&self) -> String {
        let texts = self.blocks.iter().filter_map(|(block, _)| match block {
            Block::Text(text) => Some(text.as_str()),
            _ => None,
        });
        texts.collect()
    }

    fn calls(&self) -> impl Iterator<Item = (&str, &str, &str, &[String])> {
        self.blocks.iter().filter_map(|(block, pieces)| match block {
            Block::Tool { id, name, input } => {
                Some((id.as_str(), name.as_str(), input.as_str(), pieces.as_slice()))
            }
            _ => None,
        })
    }

    /// Returns what it reports.
    fn reported(&self) -> Option<Used> {
        match self.usage {
            Usage::Once | Usage::Twice => Some(self.used),
            Usage::Zero => Some(Used::default()),
            Usage::Missing => None,
        }
    }
}
