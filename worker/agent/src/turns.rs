//! The turns of one attempt: asks the context what comes next, does it, and checkpoints.

use std::collections::HashSet;
use std::sync::Arc;

use harness::{Delta, Prepared, Run, RunError, Stop, Usage};
use job::{Failure, FailureCode, JobId, Json};
use serde_json::{Map, Value, json};
use tools::{Ended, Tool};

mod calls;
mod models;
mod shorter;

use models::no_model;
use shorter::Due;

use crate::answer::StopReason;
use crate::ask::{Asked, Gateway};
use crate::compact::{SUMMARY_TOKENS, is_long_for_a_new_head};
use crate::config::Settings;
use crate::marks::{Head, JobMark, TurnMark};
use crate::person;
use crate::schema::{Schema, json_of};
use crate::toolkit::{Calls, Toolkit, not_made};
use crate::transcript::{Digest, Next, Transcript};
use crate::wire::Wire;

/// What the model is told where the limit of output has cut its answer.
const GO_ON: &str = "Your answer was cut by the limit of output. Go on exactly where it ended.";
/// And where nothing is left of that answer: there is no place to go on from.
const THINK_LESS: &str = "The limit of output came before you had said anything more. Think less, and go on.";
/// How often the model is told what is wrong with its output.
const MOST_REPAIRS: u32 = 3;

/// What an answer adds to the context.
#[derive(Clone, Debug)]
pub(crate) struct Added {
    entries: Vec<Json>,
    /// Whether none of its calls waits for a result. Then it counts as an iteration.
    is_whole: bool,
    /// Whether the job has come further with it.
    is_news: bool,
    /// The results of calls that are not made ([`calls::sum`]).
    results: Vec<[u8; 32]>,
}

/// One attempt's work.
pub(crate) struct Turns<'r> {
    settings: &'r Settings,
    run: &'r mut Run,
    tools: Arc<dyn Toolkit>,
    /// What the model may call, sorted by name: these tools, and perhaps a person.
    offered: Vec<Tool>,
    gateway: Gateway,
    /// The calls of its tools.
    calls: Calls,
    /// What the session's entries are, and the pending ones.
    digest: Digest,
    /// Entries that the next checkpoint appends.
    pending: Vec<Json>,
    /// Answers whose calls have their results by then.
    answers: u64,
    /// Whether the calls of the last answer may have been made by an earlier attempt.
    may_have_begun: bool,
    /// Whether an earlier attempt may have got the answer that this one asks for first. So long nothing changes the request:
    /// the answer is stored for these letters alone.
    is_resumed: bool,
    /// Whether the tools of this attempt were compared with those of the head.
    are_tools_compared: bool,
    /// What the model has to know of its tools and is not told yet.
    news: Vec<String>,
    /// Results that the job has seen, as far as its context has them or this attempt had. Only a job that asks for progress
    /// needs those of the attempts before.
    seen: HashSet<[u8; 32]>,
    /// Whether one of the pending ones is new.
    is_news: bool,
    /// How often the model was told in this attempt what is wrong with its output.
    repairs: u32,
    /// Whether the provider has refused the conversation as too long, and it was compacted for that.
    was_too_long: bool,
}

impl<'r> Turns<'r> {
    /// `digest` is of the session's entries.
    pub fn new(
        settings: &'r Settings,
        run: &'r mut Run,
        digest: Digest,
        tools: Arc<dyn Toolkit>,
        gateway: Gateway,
        calls: Calls,
    ) -> Turns<'r> {
        let mut offered = tools.tools().to_vec();
        if settings.ask_human && offered.iter().all(|tool| tool.name != person::ASK) {
            offered.push(person::ask_tool());
            offered.sort_by(|one, other| one.name.cmp(&other.name));
        }
        let mut seen = HashSet::new();
        if run.task().max_stalled_iterations.is_some() {
            let transcript = digest.on([&run.session().context_window, &[]]);
            seen.extend(
                transcript.results(run.task().job_id).map(|(call, result)| calls::sum(&call, result)),
            );
        }
        Turns {
            settings,
            run,
            tools,
            offered,
            gateway,
            calls,
            digest,
            pending: Vec::new(),
            answers: 0,
            may_have_begun: true,
            is_resumed: true,
            are_tools_compared: false,
            news: Vec::new(),
            seen,
            is_news: false,
            repairs: 0,
            was_too_long: false,
        }
    }

    /// Works until the model has ended.
    pub async fn work(mut self) -> Result<Json, RunError> {
        loop {
            match self.transcript().next(self.job_id()) {
                Next::Begin => self.begin().await?,
                Next::Tools(calls) => self.make_calls(calls).await?,
                Next::Call => self.turn().await?,
                Next::Ended(text) => match self.output(&text) {
                    Ok(output) => {
                        self.checkpoint().await?;
                        return Ok(output);
                    }
                    Err(problem) => self.repair(problem).await?,
                },
            }
        }
    }

    fn job_id(&self) -> JobId {
        self.run.task().job_id
    }

    fn transcript(&self) -> Transcript<'_> {
        self.digest.on([&self.run.session().context_window, &self.pending])
    }

    /// Adds an entry, which the next checkpoint appends.
    fn add(&mut self, entry: Json) {
        self.digest.push(&entry);
        self.pending.push(entry);
    }

    /// Puts the head, if it is another one than the session has, and the input into the context. A long conversation whose
    /// head changes is compacted with them, and so is a session that has no room for them. It is one checkpoint: a kill
    /// before it leaves the session as it was, and the next attempt asks for the same summary to the letter.
    async fn begin(&mut self) -> Result<(), RunError> {
        let before = self.said_tokens();
        let last = self.add_input()?;
        (self.is_resumed, self.are_tools_compared) = (false, true);
        match last {
            Some(model) if is_long_for_a_new_head(before, self.share()) && self.may_use(before) => {
                self.compact(Due::NewHead { last: &model }).await
            }
            _ if self.is_overfull() && self.is_long() => self.compact(Due::Long).await,
            _ if self.is_overfull() => self.compact(Due::Large).await,
            _ => self.checkpoint().await,
        }
    }

    /// Whether the job may use so many tokens, and those of a summary.
    fn may_use(&self, tokens: u64) -> bool {
        self.limits().1.is_none_or(|most| tokens.saturating_add(SUMMARY_TOKENS) < most)
    }

    /// Adds the beginning of the job. If that changes the session's head, returns the model of the one before.
    fn add_input(&mut self) -> Result<Option<String>, RunError> {
        let said = self.input()?;
        let Some(model) = self.settings.models.first() else { return Err(no_model().into()) };
        let wanted = self.head_for(model).entry();
        let wire = self.settings.wire(model);
        let transcript = self.transcript();
        let (last, is_new) = match transcript.head() {
            Some(head) if head.entry() == wanted => (None, false),
            head => (head.map(|head| head.model.clone()), true),
        };
        if is_new {
            self.add(wanted);
        }
        self.add(JobMark::begin(self.job_id(), self.settings.context_tokens).entry());
        self.add(wire.said(&said));
        self.run.forget_input();
        Ok(last)
    }

    /// Returns the text of the job's input: a text as it is, anything else as JSON.
    fn input(&self) -> Result<String, RunError> {
        let input = &self.run.task().input;
        let bad = |problem: &str| Failure::permanent(FailureCode::BadInput, format!("input: {problem}"));
        if let Some(schema) = &self.settings.input_schema {
            schema.check(input).map_err(|problem| bad(&problem))?;
        }
        let text =
            serde_json::from_str::<String>(input.as_str()).unwrap_or_else(|_| input.as_str().to_owned());
        if text.trim().is_empty() || text == "null" {
            return Err(bad("missing, expected what the agent is to do, as text or as JSON").into());
        }
        Ok(self.settings.redaction.clean(&text))
    }

    /// Returns the job's output, or why the text with which the model has ended is none.
    fn output(&self, text: &str) -> Result<Json, String> {
        let Some(schema) = &self.settings.output_schema else {
            return Json::from_value(&text).map_err(|error| error.to_string());
        };
        let output = json_of(text)?;
        schema.check(&output)?;
        Ok(output)
    }

    /// Says to the model what is wrong with its output.
    async fn repair(&mut self, problem: String) -> Result<(), RunError> {
        if self.repairs >= MOST_REPAIRS {
            self.checkpoint().await?;
            let said =
                format!("after {MOST_REPAIRS} repairs the output does not fit output_schema: {problem}");
            return Err(Failure::permanent(FailureCode::OutputInvalid, said).into());
        }
        self.repairs += 1;
        let schema = self.settings.output_schema.as_ref().map_or("", Schema::as_str);
        let said = format!(
            "Your answer is not the JSON that is expected: {problem}. Answer with the JSON alone, without any other text. \
             Its schema: {schema}"
        );
        let wire = self.wire()?;
        self.add(wire.said(&self.settings.redaction.clean(&said)));
        self.checkpoint().await
    }

    /// Appends what is pending.
    async fn checkpoint(&mut self) -> Result<(), RunError> {
        let feature_progress = self.is_news.then(|| self.progress()).flatten();
        let delta = Delta {
            context_window: std::mem::take(&mut self.pending),
            feature_progress,
            iterations: std::mem::take(&mut self.answers),
            ..Delta::default()
        };
        self.is_news = false;
        Ok(self.run.checkpoint(delta).await?)
    }

    /// Appends what is pending while calls are open. Their answer counts as an iteration with the last of their results:
    /// until then nobody knows whether it was progress.
    async fn keep(&mut self) -> Result<(), RunError> {
        let delta = Delta { context_window: std::mem::take(&mut self.pending), ..Delta::default() };
        Ok(self.run.checkpoint(delta).await?)
    }

    /// Returns a note that changes with every result that was not there before. Only a job that asks for progress has
    /// one.
    fn progress(&self) -> Option<Map<String, Value>> {
        self.run.task().max_stalled_iterations?;
        let key = self.job_id().to_string();
        let before = self.run.session().feature_progress.get(&key);
        let before = before.and_then(|note| note.get("news")?.as_u64()).unwrap_or(0);
        Some(Map::from_iter([(key, json!({"news": before + 1}))]))
    }

    /// Asks the model, and takes its answer into the context.
    async fn turn(&mut self) -> Result<(), RunError> {
        self.check_limits()?;
        let asked = match self.leave_a_model_that_is_gone().await? {
            Some(stored) => stored,
            None => {
                if self.compact_if_due().await? {
                    // The summary was paid as well.
                    self.check_limits()?;
                }
                match self.tell_news().await? {
                    Some(stored) => stored,
                    None => self.ask().await?,
                }
            }
        };
        // An answer of the cache says nothing of this job: the attempt before may have been given it as well.
        self.may_have_begun = asked.is_replayed || asked.is_cached && self.is_resumed;
        self.is_resumed = false;
        for call in asked.answer.calls.iter().filter(|call| call.input.is_err()) {
            self.not_made(None, call, "bad_input");
        }
        let (prepared, added) = match asked.written {
            Some((prepared, added)) => (Some(prepared), added),
            None => (None, self.added(&asked)),
        };
        self.seen.extend(added.results);
        self.is_news = !added.is_whole && added.is_news;
        if let Some(prepared) = prepared {
            added.entries.iter().for_each(|entry| self.digest.push(entry));
            return Ok(self.run.written(prepared).await?);
        }
        added.entries.into_iter().for_each(|entry| self.add(entry));
        if !added.is_whole {
            // No call is made that the ledger does not know.
            return self.keep().await;
        }
        (self.answers, self.is_news) = (1, added.is_news);
        self.checkpoint().await
    }

    /// Returns what an answer adds to the context.
    fn added(&self, asked: &Asked) -> Added {
        let answer = &asked.answer;
        let head = self.answered_by(&answer.model, asked.instead.clone()).map(|model| self.head_for(&model));
        let wire = head.as_ref().or(self.transcript().head()).map(|head| head.wire);
        let mut entries: Vec<Json> = head.iter().map(Head::entry).collect();
        entries.extend(answer.entries.iter().cloned());
        entries.push(TurnMark::new(answer.tokens.input, answer.tokens.output, answer.stop).entry());
        let mut results = Vec::new();
        if let Some(wire) = wire {
            // What cannot be made is answered with the answer, so that no later attempt makes it of what is left of it.
            for (call, problem) in
                answer.calls.iter().filter_map(|call| Some((call, call.input.as_ref().err()?)))
            {
                let result = wire.result(&call.id, &not_made(Ended::BadInput, problem.to_string()));
                results.push(calls::sum(call, &result));
                entries.push(result);
            }
        }
        let is_whole = answer.calls.iter().all(|call| call.input.is_err());
        if is_whole && matches!(answer.stop, StopReason::OutputLimit | StopReason::WindowFull) {
            let said = if answer.entries.is_empty() { THINK_LESS } else { GO_ON };
            entries.extend(wire.map(|wire| wire.said(said)));
        }
        // Text is news, and so is the end.
        let is_news = match *answer.calls {
            [] => !answer.entries.is_empty() || !answer.stop.goes_on(),
            _ => results.iter().any(|result| !self.seen.contains(result)),
        };
        Added { entries, is_whole, is_news, results }
    }

    /// Prepares what an answer adds to the session, to be written with the settlement of its call, which has used this.
    fn prepared(&self, asked: &Asked, call: Usage) -> Option<(Prepared, Added)> {
        if asked.answer.stop == StopReason::Refusal {
            // The next model is asked.
            return None;
        }
        debug_assert!(self.pending.is_empty(), "what is asked is all that the context has");
        let added = self.added(asked);
        let delta = Delta {
            context_window: added.entries.clone(),
            feature_progress: (added.is_whole && added.is_news).then(|| self.progress()).flatten(),
            iterations: u64::from(added.is_whole),
            ..Delta::default()
        };
        Some((self.run.prepare(delta, call)?, added))
    }

    fn wire(&self) -> Result<Wire, RunError> {
        let wire = self.transcript().head().map(|head| head.wire);
        wire.ok_or_else(|| {
            Failure::permanent(FailureCode::HarnessError, "the session has lost its head").into()
        })
    }

    /// Returns the most answers and tokens: the agent's limits, or the job's where they are lower.
    fn limits(&self) -> (u32, Option<u64>) {
        let (agent, job) = (self.settings, self.run.task());
        let iterations =
            job.max_iterations.map_or(agent.max_iterations, |most| most.min(agent.max_iterations));
        (iterations, agent.max_tokens.into_iter().chain(job.max_tokens).min())
    }

    /// Stops before a call that may not be made.
    fn check_limits(&self) -> Result<(), RunError> {
        if self.run.stop_signal().is_wanted_back() {
            return Err(Stop::Drain.into());
        }
        let (iterations, tokens) = self.transcript().used(self.job_id());
        let (max_iterations, max_tokens) = self.limits();
        let over = match max_tokens {
            _ if iterations >= max_iterations => {
                format!(
                    "the job has had {iterations} answers, expected at most max_iterations = {max_iterations}"
                )
            }
            Some(most) if tokens >= most => {
                format!("the job has used {tokens} tokens, expected at most max_tokens = {most}")
            }
            _ => return Ok(()),
        };
        Err(Failure::permanent(FailureCode::BudgetExhausted, over).into())
    }
}
