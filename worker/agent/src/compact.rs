//! Compaction: what becomes of a conversation that outgrows the agent's share of the window. Pure; the summary is a call like
//! any other.
//!
//! The oldest part is summarised by the model and the newest stays, without thinking: what a model thought is taken back
//! only after the messages before it, to the letter. A cut is never between a call and its result. Without a summary
//! the oldest outputs of tools go. Images count by their bytes as well: a session holds far fewer of them than a window.
//!
//! A head that changes at the beginning of a job makes the conversation dear: no cache has it behind the new head, and its
//! thinking is lost in any case. So one of more than half of its share is compacted with the change. In tokens read at the full
//! price, C tokens cost 1.25 C to send anew, as a cache takes a quarter more to write. A summary of S tokens costs at
//! most 0.75 C to read what it replaces and 5 S to write, and 1.25 (C / 4 + S) to send what is left: 1.06 C + 6.25 S. Both cost
//! the same at C = 33 S, some 50,000 tokens for a summary of 1,500, and each later call costs less after the summary. Half of
//! the default share is 75,000. A shorter conversation is sent anew as a whole: a summary saves nothing at first and leaves
//! details out.
//!
//! The request for a summary does not extend the last one, although a cache may have that: the head's tools, output schema and
//! thinking would hold for the summary as well, what is too long would become longer, and a cache of minutes is often cold
//! between two jobs. It has nothing of the head, so any model can answer it, and none is asked for thinking of another.

use harness::MAX_DELTA_BYTES;
use job::Json;
use tools::{Content, Ended, Output};

use crate::head::Request;
use crate::marks::Head;
use crate::neutral::{self, Part};
use crate::raw::{Fields, items, quoted, raw};
use crate::transcript::{IMAGES, anew, merged, size};
use crate::wire::{Calls, Wire};

/// Bytes of a token, at the least: ordinary text has four, code and other languages less.
pub(crate) const BYTES_PER_TOKEN: u64 = 3;
/// The longest input or output of a tool that the summary is made of, in characters; and where the record is too long with it.
/// What was said is whole: the task, and the summary before this one.
const OUTPUT: usize = 4_000;
const SHORT_OUTPUT: usize = 400;
/// The most tokens of a summary.
pub(crate) const SUMMARY_TOKENS: u64 = 8_000;
/// An output of fewer bytes is not worth its removal.
const SMALL_OUTPUT: usize = 200;

const REMOVED: &str = "[This output was removed to make room. Call the tool again if you need it.]";
const IMAGE_REMOVED: &str = "[An image was removed to make room.]";
const SUMMARISE: &str = "You are given the record of an agent's work so far, whose oldest part no longer fits its window. \
    Write what the agent must know to go on as if it had the whole record: the task and every instruction of the user that \
    still holds, what was done and found, exact names, paths, ids and figures, decisions with their reasons, what failed, \
    and what is left to do. Write plain text, and nothing about this request.";

/// The largest conversation, in bytes: half of what providers take.
const LARGEST: usize = 16 << 20;

/// Returns how many bytes a conversation may have before it is compacted, in a session of at most so many. What the next
/// answer and its calls bring comes on top.
pub(crate) fn most_before(session: usize) -> usize {
    (session / 2).min(LARGEST)
}

/// And how many afterwards. It is one checkpoint then.
pub(crate) fn most_after(session: usize) -> usize {
    (session / 4).min(MAX_DELTA_BYTES / 4 * 3)
}

/// Returns whether a conversation of so many tokens is compacted where its head changes, rather than sent anew as a whole.
pub(crate) fn is_long_for_a_new_head(tokens: u64, share: u64) -> bool {
    tokens > share / 2
}

/// A conversation that is about to be compacted.
pub(crate) struct Plan {
    wire: Wire,
    old: Vec<Json>,
    kept: Vec<Json>,
}

impl Plan {
    /// Cuts a conversation so that what stays has about this many tokens. There is no plan where no cut is possible.
    pub fn new(head: &Head, messages: &[Json], kept_tokens: u64) -> Option<Plan> {
        let all = without_thinking(head.wire, messages);
        let cuts = cuts(head.wire, &all);
        let mut bytes = 0_u64;
        let mut cut = None;
        for at in (1..all.len()).rev() {
            bytes += size(&all[at]) as u64;
            if !cuts[at] {
                continue;
            }
            // The last part stays, however long it is.
            if cut.is_some() && bytes / BYTES_PER_TOKEN > kept_tokens {
                break;
            }
            cut = Some(at);
        }
        let cut = cut?;
        let (old, kept) = (all[..cut].to_vec(), all[cut..].to_vec());
        Some(Plan { wire: head.wire, old, kept })
    }

    /// Writes the request for the summary to a model, bounded to about this many tokens.
    pub fn request(&self, (wire, model): (Wire, &str), most_tokens: u64, most_output: u64) -> String {
        let most = usize::try_from(most_tokens.saturating_mul(BYTES_PER_TOKEN) / 2).unwrap_or(usize::MAX);
        let full = self.record(OUTPUT);
        let record = if full.len() <= most { full } else { clipped(&self.record(SHORT_OUTPUT), most) };
        let mut request = Request::default();
        let limit = most_output.min(SUMMARY_TOKENS);
        let summarise = format!("{SUMMARISE} Use at most {} words.", limit / 2);
        request.set("model", quoted(model));
        request.set("stream", "true".to_owned());
        request.set(wire.output_limit(), limit.to_string());
        let said = wire.said(&record);
        let mut conversation = vec![said.as_str()];
        let system = format!(r#"{{"role":"system","content":{}}}"#, quoted(&summarise));
        match wire {
            Wire::Messages => request.set("system", quoted(&summarise)),
            Wire::Chat => {
                request.set("stream_options", r#"{"include_usage":true}"#.to_owned());
                conversation.insert(0, &system);
            }
            Wire::Responses => {
                request.set("store", "false".to_owned());
                request.set("instructions", quoted(&summarise));
            }
        }
        request.set(wire.conversation(), format!("[{}]", conversation.join(",")));
        request.write()
    }

    /// What was said and done, in words; of a tool's input and output at most so many characters.
    fn record(&self, most_of_an_output: usize) -> String {
        let said = self.old.iter().filter_map(|message| neutral::read(self.wire, message));
        let parts = said.flat_map(|said| {
            said.parts.into_iter().map(move |part| match part {
                Part::Text(_) => part.told(said.by_model),
                Part::Call { .. } | Part::Result { .. } => {
                    clipped(&part.told(said.by_model), most_of_an_output)
                }
            })
        });
        parts.collect::<Vec<String>>().join("\n\n")
    }

    /// Returns the messages that follow the new head. A summary that was cut at its limit says so.
    pub fn with_summary(self, summary: &str, is_cut: bool) -> Vec<Json> {
        let cut = if is_cut { "\n\n[The summary was cut off here.]" } else { "" };
        let text = format!(
            "The record of the work so far was too long and is replaced by this summary. Go on from it.\n\n{summary}{cut}"
        );
        [self.wire.said(&text)].into_iter().chain(self.kept).collect()
    }
}

/// Returns a conversation whose oldest outputs are removed, until it has at most this many tokens; `None` if it cannot be
/// made so small.
pub(crate) fn without_outputs(head: &Head, messages: &[Json], most_tokens: u64) -> Option<Vec<Json>> {
    let mut all = without_thinking(head.wire, messages);
    let mut bytes = head.bytes() as u64 + all.iter().map(|message| size(message) as u64).sum::<u64>();
    for message in &mut all {
        if bytes / BYTES_PER_TOKEN <= most_tokens {
            break;
        }
        if message.as_str().len() < SMALL_OUTPUT || !is_result(head.wire, message) {
            continue;
        }
        let Some(said) = neutral::read(head.wire, message) else { continue };
        let results: Vec<Json> = said
            .parts
            .iter()
            .filter_map(|part| match part {
                Part::Result { call, is_error, .. } => {
                    let content = vec![Content::Text(REMOVED.to_owned())];
                    let ended = if *is_error { Ended::Failed } else { Ended::Done };
                    Some(head.wire.result(call, &Output { content, is_error: *is_error, ended }))
                }
                _ => None,
            })
            .collect();
        let texts = results.iter().map(|result| size(result) as u64).sum::<u64>();
        let short = match head.wire {
            Wire::Messages => merged(&results).first().and_then(|text| Json::verbatim(text).ok()),
            Wire::Chat | Wire::Responses => results.into_iter().next(),
        };
        if let Some(short) = short {
            bytes = bytes.saturating_sub(size(message) as u64).saturating_add(texts);
            *message = short;
        }
    }
    (bytes / BYTES_PER_TOKEN <= most_tokens).then_some(all)
}

/// Returns the bytes of messages.
pub(crate) fn bytes(messages: &[Json]) -> usize {
    messages.iter().map(|message| message.as_str().len()).sum()
}

/// Returns a conversation whose oldest images are removed, until it has at most this many bytes, or no image more.
pub(crate) fn without_images(mut messages: Vec<Json>, most_bytes: usize) -> Vec<Json> {
    let mut left = bytes(&messages);
    for message in &mut messages {
        if left <= most_bytes {
            break;
        }
        if !IMAGES.iter().any(|mark| message.as_str().contains(mark)) {
            continue;
        }
        let Ok(mut fields) = Fields::parse(message.as_str()) else { continue };
        if remove_images(&mut fields) {
            left -= message.as_str().len();
            *message = Json::verbatim(&fields.write()).expect("an entry without its images is JSON");
            left += message.as_str().len();
        }
    }
    messages
}

/// Puts words in the place of the images of a message or block. Returns whether there were any.
fn remove_images(block: &mut Fields) -> bool {
    let mut had_images = false;
    for list in ["content", "output"] {
        let Some(old) = block.raw(list).and_then(|list| items(list).ok()) else { continue };
        let written = old.iter().map(|item| {
            let mut inner = Fields::parse(item.get()).unwrap_or_default();
            let words = match inner.text("type").as_deref() {
                Some("image") => Some("text"),
                Some("input_image") => Some("input_text"),
                _ if remove_images(&mut inner) => None,
                _ => return item.get().to_owned(),
            };
            had_images = true;
            words.map_or_else(
                || inner.write(),
                |kind| format!(r#"{{"type":"{kind}","text":"{IMAGE_REMOVED}"}}"#),
            )
        });
        let written = written.collect::<Vec<_>>().join(",");
        block.set(list, raw(format!("[{written}]")));
    }
    had_images
}

pub(crate) fn without_thinking(wire: Wire, messages: &[Json]) -> Vec<Json> {
    anew(wire, messages.iter().map(|message| (wire, message)))
}

/// Returns for each message whether a cut may be before it: no call is open there, and it is no result.
fn cuts(wire: Wire, messages: &[Json]) -> Vec<bool> {
    let mut open: Vec<String> = Vec::new();
    let before = messages.iter().map(|message| match wire.calls(message.as_str()) {
        Calls::Made(made) => {
            let may = open.is_empty();
            open.extend(made.into_iter().map(|call| call.id));
            may
        }
        Calls::Answered(answered) => {
            let may = open.is_empty() && answered.is_empty();
            open.retain(|id| !answered.contains(id));
            may
        }
    });
    before.collect()
}

fn is_result(wire: Wire, message: &Json) -> bool {
    matches!(wire.calls(message.as_str()), Calls::Answered(ids) if !ids.is_empty())
}

/// Returns the beginning and the end of a text that is too long.
fn clipped(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let half = most / 2;
    let begin: String = text.chars().take(half).collect();
    let end: String = text.chars().skip(count - half).collect();
    format!("{begin}\n[… {} characters left out …]\n{end}", count - 2 * half)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::raw;

    const WIRES: [Wire; 3] = [Wire::Messages, Wire::Chat, Wire::Responses];

    fn head(wire: Wire) -> Head {
        Head::new(wire, "m", Vec::new(), raw(r#"{"model":"m"}"#.to_owned()))
    }

    fn call(wire: Wire, id: &str) -> Json {
        let text = match wire {
            Wire::Messages => format!(
                r#"{{"role":"assistant","content":[{{"type":"thinking","thinking":"x","signature":"y"}},{{"type":"tool_use","id":"{id}","name":"look","input":{{}}}}]}}"#
            ),
            Wire::Responses => {
                format!(r#"{{"type":"function_call","call_id":"{id}","name":"look","arguments":"{{}}"}}"#)
            }
            Wire::Chat => format!(
                r#"{{"role":"assistant","content":null,"tool_calls":[{{"id":"{id}","type":"function","function":{{"name":"look","arguments":"{{}}"}}}}]}}"#
            ),
        };
        Json::parse(&text).unwrap()
    }

    fn conversation(wire: Wire) -> Vec<Json> {
        let mut all = vec![wire.said("Do it.")];
        for at in 0..10 {
            let id = format!("c{at}");
            let content = vec![Content::Text(format!("{at} {}", "x".repeat(3_000)))];
            let output = Output { content, is_error: false, ended: Ended::Done };
            all.extend([call(wire, &id), wire.result(&id, &output)]);
        }
        all
    }

    #[test]
    fn no_cut_is_between_a_call_and_its_result_and_thinking_goes() {
        for wire in WIRES {
            for kept_tokens in [0, 500, 1_500, 2_500, 5_000, 1_000_000] {
                let all = conversation(wire);
                let plan = Plan::new(&head(wire), &all, kept_tokens).unwrap();
                assert!(!plan.old.is_empty() && !plan.kept.is_empty());
                assert_eq!(plan.old.len() + plan.kept.len(), all.len());
                assert!(!is_result(wire, &plan.kept[0]), "{wire:?} {kept_tokens}");
                assert!(plan.kept.iter().all(|message| !message.as_str().contains("thinking")));
                let request = plan.request((wire, "m"), 1_000, 500);
                let value: serde_json::Value = serde_json::from_str(&request).unwrap();
                assert_eq!(value["model"], "m");
                assert!(request.len() < 4_000, "{}", request.len());
                let kept = plan.kept.len();
                let after = plan.with_summary("All is well.", false);
                assert_eq!(after.len(), kept + 1);
                assert!(after[0].as_str().contains("All is well."));
            }
        }
    }

    #[test]
    fn a_summary_is_made_of_all_that_was_said_and_of_the_ends_of_what_tools_did() {
        for wire in WIRES {
            let said = |what: &str| format!("{what} {} of {what}", "z".repeat(12_000));
            let output = |at: usize| {
                let content = vec![Content::Text(format!("{at} {} of {at}", "x".repeat(12_000)))];
                wire.result(&format!("c{at}"), &Output { content, is_error: false, ended: Ended::Done })
            };
            let mut all = vec![wire.said(&said("the task")), wire.said(&said("a summary"))];
            all.extend((0..4).flat_map(|at| [call(wire, &format!("c{at}")), output(at)]));
            let plan = Plan::new(&head(wire), &all, 0).unwrap();
            let request = plan.request((wire, "m"), 100_000, 500);
            for what in ["the task", "a summary"] {
                assert!(request.contains(&said(what)), "{wire:?} {what}");
            }
            assert!(request.contains("xx of 2") && !request.contains(&"x".repeat(4_000)), "{wire:?}");
            // Where the record is too long, what tools did is shorter, and then all of it.
            let request = plan.request((wire, "m"), 20_000, 500);
            assert!(request.contains(&said("the task")) && !request.contains(&"x".repeat(400)), "{wire:?}");
            assert!(plan.request((wire, "m"), 1_000, 500).len() < 4_000, "{wire:?}");
            let after = plan.with_summary("Half of", true);
            assert!(after[0].as_str().contains("The summary was cut off here."), "{wire:?}");
        }
    }

    #[test]
    fn no_cut_is_between_the_calls_of_one_answer() {
        let wire = Wire::Responses;
        let result = |id: &str| {
            let content = vec![Content::Text("x".repeat(300))];
            wire.result(id, &Output { content, is_error: false, ended: Ended::Done })
        };
        let all = [
            wire.said("Do it."),
            call(wire, "a"),
            call(wire, "b"),
            result("b"),
            result("a"),
            wire.said("So?"),
        ];
        assert_eq!(cuts(wire, &all), [true, true, false, false, false, true]);
        for kept_tokens in [0, 50, 150, 250] {
            let plan = Plan::new(&head(wire), &all, kept_tokens).unwrap();
            assert!(matches!(plan.kept.len(), 1 | 5), "{}", plan.kept.len());
        }
    }

    #[test]
    fn the_oldest_images_go_until_the_bytes_fit_and_nothing_else_changes() {
        for (wire, words) in [(Wire::Messages, "text"), (Wire::Responses, "input_text")] {
            let image = Content::Image { media_type: "image/png".to_owned(), data: "A".repeat(50_000) };
            let content = vec![Content::Text("seen".to_owned()), image];
            let output = Output { content, is_error: false, ended: Ended::Done };
            let mut all = vec![wire.said("Look.")];
            (0..6).for_each(|at| {
                all.extend([call(wire, &format!("c{at}")), wire.result(&format!("c{at}"), &output)])
            });
            let after = without_images(all.clone(), 120_000);
            assert!(bytes(&after) <= 120_000, "{wire:?}");
            let gone =
                format!(r#"{{"type":"text","text":"seen"}},{{"type":"text","text":"{IMAGE_REMOVED}"}}]"#);
            let gone = gone.replace(r#""type":"text""#, &format!(r#""type":"{words}""#));
            let changed: Vec<usize> = (0..all.len()).filter(|at| all[*at] != after[*at]).collect();
            assert_eq!(changed, [2, 4, 6, 8], "{wire:?}: two images stay");
            assert!(changed.iter().all(|at| after[*at].as_str().contains(&gone)), "{:?}", after[2]);
            assert_eq!(without_images(all.clone(), usize::MAX), all);
        }
    }

    #[test]
    fn a_compacted_conversation_is_one_checkpoint_whatever_a_session_may_hold() {
        for session in [65_536, 16 << 20, 64 << 20, usize::MAX] {
            assert!(most_after(session) < most_before(session) && most_before(session) <= session / 2);
            assert!(most_after(session) + 512 * 1024 < MAX_DELTA_BYTES);
        }
    }

    #[test]
    fn there_is_no_plan_without_a_place_to_cut() {
        let wire = Wire::Messages;
        assert!(Plan::new(&head(wire), &[wire.said("Do it.")], 10).is_none());
        assert!(Plan::new(&head(wire), &[], 10).is_none());
    }

    #[test]
    fn the_oldest_outputs_go_first_and_no_more_than_needed() {
        for wire in WIRES {
            let all = conversation(wire);
            let after = without_outputs(&head(wire), &all, 5_000).unwrap();
            assert_eq!(after.len(), all.len());
            let is_removed: Vec<bool> = after
                .iter()
                .filter(|message| is_result(wire, message))
                .map(|message| message.as_str().contains("was removed"))
                .collect();
            let removed = is_removed.iter().filter(|removed| **removed).count();
            assert!((5..=7).contains(&removed), "{removed}");
            assert!(is_removed[..removed].iter().all(|removed| *removed), "the oldest");
            assert!(without_outputs(&head(wire), &all, 100).is_none());
        }
    }
}
