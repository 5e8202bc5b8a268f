//! The calls of one answer: which are made, by whom they are answered, and when their results are checkpointed.

use std::collections::{HashSet, VecDeque};
use std::pin::pin;
use std::time::{Duration, Instant, SystemTime};

use futures::stream::{FuturesUnordered, StreamExt};
use harness::{Ask, Event, MAX_DELTA_BYTES, Part, RunError, Shortage, Stop, Work};
use job::{Json, MAX_QUESTIONS};
use serde_json::json;
use sha2::{Digest, Sha256};
use tools::{Call, CallError, CallKey, Content, Ended, Output, Repeat, Tool};

mod room;

use super::Turns;
use crate::answer::ToolCall;
use crate::ask::Asked;
use crate::head::tools_of;
use crate::marks::CallMark;
use crate::person::{self, Person};
use crate::raw::quoted;
use crate::toolkit::not_made;
use crate::wire::Wire;

/// What the model is told about a call that an earlier attempt may have made.
const MAY_HAVE_TAKEN_EFFECT: &str = "The work was interrupted while this call was under way, so its result is not known. \
    It may have taken effect, in part or as a whole. Look at what is there before you call again.";
/// How a notice begins that the tools are not those of the head.
const OTHER_TOOLS: &str = "Since this job began its tools have changed: ";
/// The most bytes of results that one checkpoint takes. The rest is for what stands beside them.
const MOST_AT_ONCE: usize = MAX_DELTA_BYTES / 8 * 7;
/// How long a tool may take before the answer that calls it is checkpointed without its result.
const LONG: Duration = Duration::from_secs(2);
/// How much of an input or a result an event shows, in characters.
const SHOWN: usize = 200;
/// The outcome of a call that a person has answered.
const ANSWERED: &str = "answered";

/// A call, and what is to be done about it.
enum Todo {
    /// It is made with this input.
    Make {
        input: Json,
        /// Whether no other call is made beside it.
        is_alone: bool,
        /// Whether it is noted just before, because a person has approved it.
        is_marked: bool,
    },
    /// A person is asked about it.
    Ask(Ask),
}

impl Turns<'_> {
    /// Makes the calls that have no result: in the model's order, side by side where the tools allow it.
    pub(super) async fn make_calls(&mut self, calls: Vec<ToolCall>) -> Result<(), RunError> {
        let wire = self.wire()?;
        // All of them are the last answer's. A provider may number the calls of each answer anew.
        let (answer, _) = self.transcript().used(self.job_id());
        let key_of = |call: &ToolCall| format!("{}-{answer}", call.id);
        self.answers = 1;
        let mut groups: Vec<Vec<(ToolCall, Json)>> = Vec::new();
        let (mut asks, mut marked, mut last_is_alone) = (Vec::new(), HashSet::new(), true);
        for call in calls {
            match self.todo(wire, &call, &key_of(&call)) {
                None => {}
                Some(Todo::Ask(ask)) => asks.push(ask),
                Some(Todo::Make { input, is_alone, is_marked }) => {
                    if is_marked {
                        marked.insert(call.id.clone());
                    }
                    match groups.last_mut() {
                        Some(group) if !is_alone && !last_is_alone => group.push((call, input)),
                        _ => groups.push(vec![(call, input)]),
                    }
                    last_is_alone = is_alone;
                }
            }
        }
        let mut left = groups.iter().map(Vec::len).sum::<usize>();
        let _under_way = self.calls.begin();
        for group in groups {
            if self.calls.check().is_err() {
                break;
            }
            let is_marked = |(call, _): &&(ToolCall, Json)| marked.contains(&call.id);
            let marks: Vec<Json> = group
                .iter()
                .filter(is_marked)
                .map(|(call, _)| CallMark::new(&key_of(call)).entry())
                .collect();
            if !marks.is_empty() {
                marks.into_iter().for_each(|mark| self.add(mark));
                self.keep().await?;
            }
            self.make_group(wire, group, key_of, &mut left).await?;
        }
        if let Err(stopped) = self.calls.check() {
            // The answer counts with the last of its results.
            if left == 0 && asks.is_empty() {
                self.checkpoint().await?
            } else {
                self.keep().await?
            }
            return Err(stopped.into());
        }
        if !asks.is_empty() {
            self.keep().await?;
            asks.truncate(MAX_QUESTIONS);
            return Err(RunError::Asks(asks));
        }
        // Providers take other text only behind all results.
        if self.has_news() {
            let news = std::mem::take(&mut self.news);
            self.add(wire.said(&news.join("\n")));
        }
        self.checkpoint().await
    }

    /// Returns whether there is something of its tools that the model has to know.
    fn has_news(&mut self) -> bool {
        self.news.extend(self.tools.notices());
        let other_tools = self.other_tools();
        self.news.extend(other_tools);
        !self.news.is_empty()
    }

    /// Says to the model what it has to know of its tools before the first call of a job that goes on: its next answer may be the
    /// last. An answer that an earlier attempt has paid is returned instead. It is stored for what was sent then.
    pub(super) async fn tell_news(&mut self) -> Result<Option<Asked>, RunError> {
        if !self.is_resumed || !self.has_news() {
            return Ok(None);
        }
        let wire = self.wire()?;
        let request = self.transcript().request().unwrap_or_default();
        match self.gateway.stored(wire, request, self.run).await {
            Ok(None) => {}
            Ok(stored) => return Ok(stored),
            Err(fault) => {
                tracing::warn!(cause = ?fault, "an answer that was paid before cannot be looked up");
                return Ok(None);
            }
        }
        let told = wire.said(&std::mem::take(&mut self.news).join("\n"));
        self.is_resumed = false;
        // An attempt that got no answer has said the same.
        if self.run.session().context_window.last() != Some(&told) {
            self.add(told);
            self.checkpoint().await?;
        }
        Ok(None)
    }

    /// Decides about a call, which has this key in its job. Nothing is left to do for one that has its result now.
    fn todo(&mut self, wire: Wire, call: &ToolCall, key: &str) -> Option<Todo> {
        let (input, tool) = match (self.tool(&call.name).cloned(), &call.input) {
            (Some(tool), Ok(input)) => (input.clone(), tool),
            (None, _) => {
                self.not_made(None, call, "unknown");
                let problem = format!("there is no tool {}", quoted(&call.name));
                self.take_own_result(wire, call, not_made(Ended::Unknown, problem));
                return None;
            }
            (Some(tool), Err(problem)) => {
                self.not_made(Some(tool.name), call, "bad_input");
                let problem = not_made(Ended::BadInput, problem.to_string());
                self.take_own_result(wire, call, problem);
                return None;
            }
        };
        let (mut may_have_begun, mut is_marked) = (self.may_have_begun, false);
        if person::decides(&tool) {
            match person::person(self.run, key, &tool, &input, self.settings.answer_timeout) {
                Person::Answered(output) => {
                    let is_bad = output.ended == Ended::BadInput;
                    let outcome = if is_bad { output.ended.as_str() } else { ANSWERED };
                    self.not_made(Some(tool.name), call, outcome);
                    self.take_own_result(wire, call, output);
                    return None;
                }
                Person::Ask(ask) => return Some(Todo::Ask(ask)),
                // The attempt that asked has not made it; a later one notes it first.
                Person::Approved => {
                    may_have_begun = self.transcript().has_begun(self.job_id(), key);
                    is_marked = !may_have_begun;
                }
            }
        }
        if may_have_begun && tool.repeat == Repeat::Unsafe {
            self.not_made(Some(tool.name), call, "interrupted");
            self.take_own_result(wire, call, not_made(Ended::Broken, MAY_HAVE_TAKEN_EFFECT));
            return None;
        }
        Some(Todo::Make { input, is_alone: !tool.side_by_side, is_marked })
    }

    /// Makes calls side by side, and takes each result as it comes. So many are `left` with those of later groups.
    async fn make_group(
        &mut self,
        wire: Wire,
        group: Vec<(ToolCall, Json)>,
        key_of: impl Fn(&ToolCall) -> String,
        left: &mut usize,
    ) -> Result<(), RunError> {
        for (call, _) in &group {
            let input = clipped(call.input.as_ref().map_or("", Json::as_str));
            let data = json!({"tool": call.name, "call_id": call.id, "input": input});
            self.run.event(Event::new("tool_call", data));
        }
        let (tools, job_id) = (self.tools.clone(), self.job_id());
        let mut running: FuturesUnordered<_> = group
            .into_iter()
            .map(|(call, input)| {
                let (tools, key) = (tools.clone(), CallKey::new(job_id, &key_of(&call)));
                async move {
                    let (began, since) = (SystemTime::now(), Instant::now());
                    let made = Call { name: &call.name, input: input.as_str(), key: &key };
                    let output = tools.call(&made).await;
                    (call, output, began, since.elapsed())
                }
            })
            .collect();
        let (mut ended, mut short) = (VecDeque::new(), None);
        loop {
            let next = match ended.pop_front() {
                None if running.is_empty() || short.is_some() => break,
                None => tokio::time::timeout(LONG, running.next()).await.ok().flatten(),
                next => next,
            };
            if let Some((call, output, began, took)) = next {
                match output {
                    Ok(output) => {
                        let outcome = output.ended.as_str();
                        let work =
                            Work::Tool { name: Some(call.name.clone()), call_id: call.id.clone(), outcome };
                        let failed = output.is_error.then_some("tool_error");
                        self.run.part(&Part { work, began, took, failed });
                        let output = self.fitted(output);
                        if !self.pending.is_empty()
                            && self.pending_bytes() + room::bytes(&output) > MOST_AT_ONCE
                        {
                            self.keep_beside(&mut running, &mut ended).await?;
                        }
                        self.take_result(wire, &call, output);
                        *left -= 1;
                    }
                    // It may have taken effect. The others have time to end as well.
                    Err(CallError::Stopped) => self.calls.stop(Stop::Drain),
                    // It did not begin. What others have done is not lost with it.
                    Err(CallError::Shortage(problem)) => short = Some(problem),
                }
            }
            // What others still take time for is not to be lost with them.
            if *left > 0 && ended.is_empty() && !self.pending.is_empty() {
                self.keep_beside(&mut running, &mut ended).await?;
            }
        }
        match short {
            None => Ok(()),
            Some(problem) => {
                self.keep().await?;
                Err(Shortage::Resources(problem).into())
            }
        }
    }

    /// Appends what is pending while calls are under way: they go on meanwhile, and those that end are put to the `ended`
    /// ones. A tool that nobody listens to is blocked by its output, and its time passes.
    async fn keep_beside<C: Future>(
        &mut self,
        running: &mut FuturesUnordered<C>,
        ended: &mut VecDeque<C::Output>,
    ) -> Result<(), RunError> {
        let calls = self.calls.clone();
        let mut keeping = pin!(self.keep());
        loop {
            tokio::select! {
                biased;
                kept = &mut keeping => return match kept {
                    // It is kept. The calls under way have their time to end.
                    Err(RunError::Stopped(why @ Stop::Interrupted)) => {
                        calls.stop(why);
                        Ok(())
                    }
                    kept => kept,
                },
                Some(call) = running.next(), if !running.is_empty() => ended.push_back(call),
            }
        }
    }

    /// Returns what the model has to know where this attempt has other tools than the head of the job, once an attempt and if
    /// an earlier one has not said the same. The head stays as it is: another one would cost the thinking so far.
    fn other_tools(&mut self) -> Option<String> {
        if std::mem::replace(&mut self.are_tools_compared, true) {
            return None;
        }
        let transcript = self.transcript();
        let told = transcript.last_with(self.job_id(), OTHER_TOOLS);
        let had = tools_of(transcript.head()?);
        let has = || self.offered.iter().map(|tool| &tool.name);
        let gone: Vec<&str> =
            had.iter().filter(|name| has().all(|tool| tool != *name)).map(String::as_str).collect();
        let new: Vec<&str> = has().filter(|name| !had.contains(name)).map(String::as_str).collect();
        let said = match (&*gone, &*new) {
            ([], []) if told.is_none() => return None,
            ([], []) => "all of them are there again.".to_owned(),
            (gone, []) => format!("gone are {}.", gone.join(", ")),
            ([], new) => format!("new, but not before the next job, are {}.", new.join(", ")),
            (gone, new) => {
                format!(
                    "gone are {}. New, but not before the next job, are {}.",
                    gone.join(", "),
                    new.join(", ")
                )
            }
        };
        let said = format!("{OTHER_TOOLS}{said}");
        told.is_none_or(|told| !told.contains(&said)).then_some(said)
    }

    /// Notes a call that is answered without being made.
    pub(super) fn not_made(&self, name: Option<String>, call: &ToolCall, outcome: &'static str) {
        let work = Work::Tool { name, call_id: call.id.clone(), outcome };
        let (began, took) = (SystemTime::now(), Duration::ZERO);
        let failed = (outcome != ANSWERED).then_some("tool_error");
        self.run.part(&Part { work, began, took, failed });
    }

    /// Leaves out what the session has no room for, nor a checkpoint of its own.
    fn fitted(&self, output: Output) -> Output {
        let room = (self.run.most_bytes() / 4 * 3).saturating_sub(self.transcript().bytes());
        room::fitted(output, room.min(MOST_AT_ONCE))
    }

    fn pending_bytes(&self) -> usize {
        self.pending.iter().map(|entry| entry.as_str().len() + 1).sum()
    }

    /// Takes the result of a call that no tool has answered: what is ours to say, or a person's answer.
    fn take_own_result(&mut self, wire: Wire, call: &ToolCall, mut output: Output) {
        for content in &mut output.content {
            if let Content::Text(text) = content {
                *text = self.settings.redaction.clean(text);
            }
        }
        self.take_result(wire, call, output);
    }

    fn tool(&self, name: &str) -> Option<&Tool> {
        self.offered.iter().find(|tool| tool.name == name)
    }

    /// Takes the result of a call, which is redacted and has room.
    fn take_result(&mut self, wire: Wire, call: &ToolCall, output: Output) {
        let (outcome, text) = (output.ended.as_str(), clipped(&output.text()));
        let data = json!({"tool": call.name, "call_id": call.id, "outcome": outcome, "text": text});
        self.run.event(Event::new("tool_result", data));
        let result = wire.result(&call.id, &output);
        self.is_news |= self.seen.insert(sum(call, &result));
        self.add(result);
    }
}

/// Returns what is the same for equal calls with equal results, given the entry of the result.
pub(super) fn sum(call: &ToolCall, result: &Json) -> [u8; 32] {
    // The id of the call is another each time.
    let result = result.as_str().replacen(&quoted(&call.id), "", 1);
    // A later attempt reads one that was torn as it went back.
    let input = call.input.as_ref().map_or("{}", Json::as_str);
    Sha256::digest([&*call.name, input, &result].join("\0")).into()
}

/// Returns the beginning of a text.
fn clipped(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}
