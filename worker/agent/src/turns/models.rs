//! Which model is asked, and by which it is followed where it has no answer.

use std::time::{Instant, SystemTime};

use harness::{Part, RunError, Stop, Work};
use job::{Failure, FailureCode};
use tools::Repeat;

use super::Turns;
use super::shorter::Due;
use crate::answer::StopReason;
use crate::ask::{Asked, Take, Unasked};
use crate::fault::{Fault, Tries};
use crate::head::head;
use crate::marks::Head;
use crate::wire::Wire;

/// What a model is told that takes over from one whose last answer may be lost.
const ANSWER_LOST: &str = "The work was interrupted here, and another model goes on with it. Calls that were made just before may \
    be missing above, and may have taken effect, in part or as a whole. Look at what is there before you call again.";

impl Turns<'_> {
    /// Returns the answer that an earlier attempt has paid, if the agent no longer has the model that gave it. Otherwise the job
    /// goes on with the agent's first model: the gateway refuses the one that is gone.
    pub(super) async fn leave_a_model_that_is_gone(&mut self) -> Result<Option<Asked>, RunError> {
        let models = &self.settings.models;
        let transcript = self.transcript();
        let Some(last) = transcript.head().filter(|last| !models.contains(&last.model)) else {
            return Ok(None);
        };
        let (gone, wire) = (last.model.clone(), last.wire);
        let mut may_be_lost = false;
        if self.is_resumed {
            match self.gateway.stored(wire, transcript.request().unwrap_or_default(), self.run).await {
                Ok(Some(asked)) => return Ok(Some(asked)),
                Ok(None) => {}
                Err(fault) => {
                    may_be_lost = true;
                    tracing::warn!(model = gone, cause = ?fault, "an answer that was paid before cannot be looked up");
                }
            }
        }
        let next = self.settings.models.first().ok_or_else(no_model)?.clone();
        tracing::warn!(
            model = gone,
            next,
            "the agent no longer has the job's model, and its first one goes on"
        );
        let wire = self.settings.wire(&next);
        self.add(self.head_for(&next).entry());
        if may_be_lost && self.offered.iter().any(|tool| tool.repeat == Repeat::Unsafe) {
            self.add(wire.said(ANSWER_LOST));
        }
        self.is_resumed = false;
        self.checkpoint().await?;
        Ok(None)
    }

    /// Makes the head for a model.
    pub(super) fn head_for(&self, model: &str) -> Head {
        head(self.settings, model, self.most_output(model), &self.offered)
    }

    /// Returns the agent's limit of output, or the model's own where that is lower: its provider would refuse a higher one.
    pub(super) fn most_output(&self, model: &str) -> u64 {
        let own = self.run.meter().and_then(|meter| meter.most_output(model)).filter(|most| *most > 0);
        own.map_or(self.settings.max_output_tokens, |own| own.min(self.settings.max_output_tokens))
    }

    /// Changes the model. It is in the ledger before it is asked, so that its answer is found again.
    async fn go_on_with(&mut self, model: &str) -> Result<(), RunError> {
        self.add(self.head_for(model).entry());
        self.checkpoint().await
    }

    /// Asks the model of the head, and the agent's next ones where it has no answer.
    pub(super) async fn ask(&mut self) -> Result<Asked, RunError> {
        loop {
            let transcript = self.transcript();
            let Some(head) = transcript.head() else {
                return Err(
                    Failure::permanent(FailureCode::HarnessError, "the session has lost its head").into()
                );
            };
            let (wire, model) = (head.wire, head.model.clone());
            let request = || self.transcript().request().unwrap_or_default();
            let take = |asked: &Asked, call| self.prepared(asked, call);
            let asked = self.asked(wire, &model, Tries::default(), (&request, Some(&take))).await;
            let failure = match asked {
                Ok(asked) if asked.answer.stop == StopReason::Refusal => {
                    let said = format!("{model} does not answer this: {}", asked.answer.text);
                    Failure::permanent(FailureCode::ProviderRefused, said)
                }
                Ok(asked) => return Ok(asked),
                Err(Unasked::HandBack) => return Err(Stop::Drain.into()),
                // It counts otherwise than we do; once.
                Err(Unasked::Fault(Fault::Overflow(_))) if !self.was_too_long => {
                    self.was_too_long = true;
                    self.compact(Due::Long).await?;
                    self.check_limits()?;
                    continue;
                }
                Err(Unasked::Fault(Fault::Spent(message))) if self.settings.degrades => {
                    Failure::permanent(FailureCode::BudgetExhausted, message)
                }
                Err(Unasked::Fault(fault)) => failed(&model, fault)?,
            };
            let models = &self.settings.models;
            let Some(next) = models.iter().skip_while(|name| **name != model).nth(1).cloned() else {
                return Err(failure.into());
            };
            tracing::warn!(model, next, cause = %failure, "a model has no answer, and the agent's next one is asked");
            self.go_on_with(&next).await?;
        }
    }

    /// Asks one model, and notes it for those who watch.
    pub(super) async fn asked(
        &self,
        wire: Wire,
        model: &str,
        tries: Tries,
        request: (&(dyn Fn() -> String + Send + Sync), Option<&Take<'_>>),
    ) -> Result<Asked, Unasked> {
        let (began, since) = (SystemTime::now(), Instant::now());
        let asked = self.gateway.ask(wire, tries, request, self.run).await;
        let seen = asked.as_ref().ok();
        let tokens = seen.map_or((0, 0), |seen| (seen.answer.tokens.input, seen.answer.tokens.output));
        let first_token = seen.and_then(|seen| seen.first_token);
        let is_replayed = seen.is_some_and(|seen| seen.is_replayed);
        let failed = match &asked {
            Ok(_) => None,
            Err(Unasked::HandBack) => Some("handed_back"),
            Err(Unasked::Fault(fault)) => Some(fault.kind()),
        };
        let work = Work::Chat {
            provider: wire.provider(),
            model: model.to_owned(),
            tokens,
            first_token,
            is_replayed,
        };
        self.run.part(&Part { work, began, took: since.elapsed(), failed });
        asked
    }

    /// Returns the model that has answered, if it is another one of the agent's than was asked.
    pub(super) fn answered_by(&self, named: &str, instead: Option<String>) -> Option<String> {
        let asked = self.transcript().head().map(|head| head.model.clone())?;
        let is = |model: &str| {
            named == model || named.strip_prefix(model).is_some_and(|rest| rest.starts_with('-'))
        };
        let models = &self.settings.models;
        let by_name = || {
            // Of two names that fit, the longer one is meant.
            let fitting = models.iter().filter(|model| is(model)).max_by_key(|model| model.len());
            fitting.cloned()
        };
        instead.or_else(|| if is(&asked) { None } else { by_name() }).filter(|model| *model != asked)
    }
}

/// Returns the failure with which a model is given up, or what ends the attempt at once.
pub(super) fn failed(model: &str, fault: Fault) -> Result<Failure, RunError> {
    let permanent = |code, message| Failure::permanent(code, format!("{model}: {message}"));
    match fault {
        // The worker says what becomes of the job.
        Fault::Spent(message) => Err(Failure::permanent(FailureCode::BudgetExhausted, message).into()),
        Fault::Overflow(message) => Err(permanent(FailureCode::ContextOverflow, message).into()),
        Fault::Stopped(stop) => Err(stop.into()),
        Fault::Unstorable(message) => Err(permanent(FailureCode::Unstorable, message).into()),
        Fault::Refused(message) => Ok(permanent(FailureCode::ProviderRefused, message)),
        Fault::Busy { message, .. } | Fault::Broken(message) => {
            Ok(Failure::retryable(FailureCode::ProviderError, format!("{model}: {message}")))
        }
    }
}

pub(super) fn no_model() -> Failure {
    Failure::permanent(FailureCode::HarnessError, "the agent has no model")
}
