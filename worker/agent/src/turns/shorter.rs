//! Makes the conversation shorter before it outgrows its model's window or its session, and where its head changes.

use std::time::{Instant, SystemTime};

use harness::{Delta, Part, RunError, Stop, Work};
use job::{Failure, FailureCode, Json};

use super::Turns;
use super::models::failed;
use crate::answer::{Answer, StopReason};
use crate::ask::{Asked, Unasked};
use crate::compact::{
    BYTES_PER_TOKEN, Plan, bytes, most_after, most_before, without_images, without_outputs,
};
use crate::fault::{Fault, Tries};
use crate::marks::{Head, JobMark};
use crate::record::with_record;
use crate::transcript::{Digest, anew};

/// Why a conversation is compacted.
pub(super) enum Due<'m> {
    /// It is longer than the agent's share of the window, or than its provider takes.
    Long,
    /// It has too many bytes for its session.
    Large,
    /// Its head changes, and it is too long to be sent anew as a whole.
    NewHead {
        /// The model of the head before.
        last: &'m str,
    },
}

impl Turns<'_> {
    /// Returns how many tokens the next request has: those that the provider counted last, and the bytes since.
    fn tokens(&self) -> u64 {
        let (counted, since) = self.transcript().weight();
        counted.saturating_add(since as u64 / BYTES_PER_TOKEN)
    }

    /// Returns how many tokens the conversation has without the head before it.
    pub(super) fn said_tokens(&self) -> u64 {
        let head = self.transcript().head().map_or(0, Head::bytes);
        self.tokens().saturating_sub(head as u64 / BYTES_PER_TOKEN)
    }

    /// Compacts a conversation that is longer than the agent's share of the window, or larger than its share of the session:
    /// images have many bytes and few tokens. Returns whether it did.
    pub(super) async fn compact_if_due(&mut self) -> Result<bool, RunError> {
        let is_long = self.is_long();
        let is_large = !self.asks_again() && self.transcript().bytes() > most_before(self.run.most_bytes());
        if is_long || is_large {
            self.compact(if is_long { Due::Long } else { Due::Large }).await?;
        }
        Ok(is_long || is_large)
    }

    /// Whether the next request is that of the attempt before, to the letter: a job that goes on asks it first, unless the provider
    /// has refused it as too long. There the share was perhaps another one, and a session could be larger.
    fn asks_again(&self) -> bool {
        self.is_resumed && !self.was_too_long
    }

    /// Returns the agent's share of the window, in tokens.
    pub(super) fn share(&self) -> u64 {
        let before = self.transcript().share(self.job_id());
        let before = before.filter(|_| self.asks_again());
        before.unwrap_or(self.settings.context_tokens)
    }

    /// Returns whether the conversation is longer than the agent's share of the window.
    pub(super) fn is_long(&self) -> bool {
        self.tokens() > self.share() || self.transcript().is_full()
    }

    /// Returns whether the session has no room for what is pending.
    pub(super) fn is_overfull(&self) -> bool {
        let pending: usize = self.pending.iter().map(|entry| entry.as_str().len() + 1).sum();
        self.run.session().bytes().saturating_add(pending) > self.run.most_bytes()
    }

    /// Makes the conversation smaller, without its oldest images; and shorter if it is too long, or if that is not enough. What
    /// is pending is a part of it. What stays is written for the head that the settings make now.
    pub(super) async fn compact(&mut self, due: Due<'_>) -> Result<(), RunError> {
        let (began, since) = (SystemTime::now(), Instant::now());
        let transcript = self.transcript();
        let Some(head) = transcript.head().cloned() else { return Ok(()) };
        let (iterations, tokens) = transcript.used(self.job_id());
        let said = transcript.said_so_far(self.job_id());
        let most_bytes = most_after(self.run.most_bytes());
        let messages = without_images(transcript.messages(), most_bytes);
        let new_head = self.head_for(&head.model);
        let messages = anew(new_head.wire, messages.iter().map(|message| (head.wire, message)));
        let (after, summary_tokens) = if !matches!(due, Due::Large) || bytes(&messages) > most_bytes {
            self.shortened(&new_head, messages, most_bytes as u64 / BYTES_PER_TOKEN, due).await?
        } else {
            (messages, 0)
        };
        let used = (iterations, tokens.saturating_add(summary_tokens));
        let mut context_window = vec![new_head.entry()];
        context_window.extend(with_record(new_head.wire, after));
        context_window.push(JobMark::go_on(self.job_id(), used, said, self.share()).entry());
        let delta = Delta { context_window, replace_context: true, ..Delta::default() };
        self.run.checkpoint(delta).await.map_err(|stop| self.refused(stop))?;
        // It was a part of the conversation.
        self.pending.clear();
        self.digest = Digest::of(&self.run.session().context_window);
        self.run.part(&Part { work: Work::Compaction, began, took: since.elapsed(), failed: None });
        Ok(())
    }

    /// Says why a compacted conversation has no place in its session.
    fn refused(&self, stop: Stop) -> RunError {
        match stop {
            Stop::OutputLimit(problem) => {
                self.overflow(&format!("the session is full, also after a compaction: {problem}"))
            }
            other => other.into(),
        }
    }

    fn overflow(&self, problem: &str) -> RunError {
        let most = self.run.most_bytes();
        let said = format!(
            "{problem}. Give the job a smaller input or another session, or raise MAX_SESSION_BYTES ({most}) or context_tokens \
             ({}). The session stays as it is",
            self.settings.context_tokens
        );
        Failure::permanent(FailureCode::ContextOverflow, said).into()
    }

    /// Makes messages shorter: by a summary of their oldest part, or else without their oldest outputs. They have at most
    /// `most` tokens then. Returns them, and the tokens that the summary has used.
    async fn shortened(
        &self,
        head: &Head,
        messages: Vec<Json>,
        most: u64,
        due: Due<'_>,
    ) -> Result<(Vec<Json>, u64), RunError> {
        let (share, before) = (self.share(), self.tokens());
        let quarter = share.min(before).min(most) / 4;
        let (summarised, used) = match Plan::new(head, &messages, quarter) {
            Some(plan) => {
                let (summary, used) = self.summary(&plan, &head.model, &due).await?;
                (summary.map(|(summary, is_cut)| plan.with_summary(&summary, is_cut)), used)
            }
            None => (None, 0),
        };
        let after = summarised.unwrap_or(messages);
        let shorter = without_outputs(head, &after, quarter * 3);
        // A conversation that is compacted only for its new head fits the window without that as well.
        let as_it_is = || match &due {
            Due::NewHead { .. } => without_outputs(head, &after, share.min(most)),
            Due::Long | Due::Large => None,
        };
        let Some(after) = shorter.or_else(as_it_is) else {
            return Err(self.overflow(&format!(
                "the conversation has some {before} tokens in {} bytes and cannot be made shorter",
                bytes(&after)
            )));
        };
        Ok((after, used))
    }

    /// Returns a summary, if there is one, with whether it was cut at its limit, and the tokens that were used for it. Where the head changes, the model before is
    /// asked first, as long as the agent has it: it has answered in this session. It has one try, because another follows.
    async fn summary(
        &self,
        plan: &Plan,
        model: &str,
        due: &Due<'_>,
    ) -> Result<(Option<(String, bool)>, u64), RunError> {
        let last = match due {
            Due::NewHead { last } if self.settings.models.iter().any(|model| model == last) => Some(*last),
            _ => None,
        };
        let last = last.filter(|last| *last != model).map(|last| (last, Tries::once()));
        let wire_of = |asked: &str| self.settings.wire(asked);
        let request =
            |asked: &str| plan.request((wire_of(asked), asked), self.share(), self.most_output(asked));
        let mut used = 0_u64;
        // The model before may answer now, and had none for an earlier attempt, which has paid the next one's.
        if last.is_some()
            && let Ok(Some(paid)) = self.gateway.stored(wire_of(model), request(model), self.run).await
        {
            used = paid.answer.tokens.all();
            if let Some(summary) = said(paid.answer) {
                return Ok((Some(summary), used));
            }
        }
        for (asked, tries) in last.into_iter().chain([(model, Tries::default())]) {
            match self.asked(wire_of(asked), asked, tries, (&|| request(asked), None)).await {
                Ok(Asked { answer, .. }) => {
                    used = used.saturating_add(answer.tokens.all());
                    if let Some(summary) = said(answer) {
                        return Ok((Some(summary), used));
                    }
                    tracing::warn!(model = asked, "a summary says nothing");
                }
                Err(Unasked::HandBack) => return Err(Stop::Drain.into()),
                Err(Unasked::Fault(fault @ Fault::Spent(_))) if asked == model && !self.settings.degrades => {
                    failed(asked, fault)?;
                }
                Err(Unasked::Fault(fault)) => {
                    tracing::warn!(model = asked, cause = ?fault, "a summary failed");
                }
            }
        }
        tracing::warn!("there is no summary: the oldest outputs go instead");
        Ok((None, used))
    }
}

/// Returns the summary that an answer is, if it is one, and whether it was cut at its limit.
fn said(answer: Answer) -> Option<(String, bool)> {
    let is_summary = !answer.text.trim().is_empty() && answer.stop != StopReason::Refusal;
    is_summary.then_some((answer.text, answer.stop == StopReason::OutputLimit))
}
