//! Makes the conversation shorter before it outgrows its model's window, or its session.

use std::time::{Instant, SystemTime};

use harness::{Delta, Part, RunError, Stop, Work};
use job::{Failure, FailureCode, Json};

use super::Turns;
use super::models::failed;
use crate::answer::StopReason;
use crate::ask::{Asked, Unasked};
use crate::compact::{
    BYTES_PER_TOKEN, Plan, bytes, most_after, most_before, without_images, without_outputs, without_thinking,
};
use crate::fault::Fault;
use crate::head::head;
use crate::marks::{Head, JobMark};
use crate::record::with_record;
use crate::transcript::Digest;

impl Turns<'_> {
    /// Returns how many tokens the next request has: those that the provider counted last, and the bytes since.
    fn tokens(&self) -> u64 {
        let (counted, since) = self.transcript().weight();
        counted.saturating_add(since as u64 / BYTES_PER_TOKEN)
    }

    /// Compacts a conversation that is longer than the agent's share of the window, or larger than its share of the session:
    /// images have many bytes and few tokens.
    /// Returns whether it did.
    pub(super) async fn compact_if_due(&mut self) -> Result<bool, RunError> {
        let is_long = self.is_long();
        let is_large = self.transcript().bytes() > most_before(self.run.most_bytes());
        if is_long || is_large {
            self.compact(is_long).await?;
        }
        Ok(is_long || is_large)
    }

    /// Returns the agent's share of the window, in tokens. A job that goes on asks first what the attempt before has asked, so
    /// it has the share of that until it has an answer, unless the provider has refused that as too long.
    fn share(&self) -> u64 {
        let before = self.transcript().share(self.job_id());
        let before = before.filter(|_| self.is_resumed && !self.was_too_long);
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

    /// Makes the conversation smaller, without its oldest images; and shorter if it `is_long`, or if that is not enough. What
    /// is pending is a part of it.
    pub(super) async fn compact(&mut self, is_long: bool) -> Result<(), RunError> {
        let (began, since) = (SystemTime::now(), Instant::now());
        let transcript = self.transcript();
        let Some(head) = transcript.head().cloned() else { return Ok(()) };
        let (iterations, tokens) = transcript.used(self.job_id());
        let said = transcript.said_so_far(self.job_id());
        let most_bytes = most_after(self.run.most_bytes());
        let messages = without_images(transcript.messages(), most_bytes);
        let new_head = self::head(self.settings, &head.model, &self.offered);
        let (after, summary_tokens) = if is_long || bytes(&messages) > most_bytes {
            self.shortened(&head, &new_head, messages, most_bytes as u64 / BYTES_PER_TOKEN).await?
        } else {
            (without_thinking(head.wire, &messages), 0)
        };
        let used = (iterations, tokens.saturating_add(summary_tokens));
        let mut context_window = vec![new_head.entry()];
        context_window.extend(with_record(head.wire, after));
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
        new_head: &Head,
        messages: Vec<Json>,
        most: u64,
    ) -> Result<(Vec<Json>, u64), RunError> {
        let (share, before) = (self.share(), self.tokens());
        let quarter = share.min(before).min(most) / 4;
        let (mut after, mut used) = (None, 0);
        if let Some(plan) = Plan::new(head, &messages, quarter) {
            let request = || plan.request(&head.model, share, self.settings.max_output_tokens);
            match self.asked(head.wire, &head.model, &request).await {
                Ok(Asked { answer, .. }) if !answer.text.is_empty() && answer.stop != StopReason::Refusal => {
                    used = answer.tokens.input.saturating_add(answer.tokens.output);
                    after = Some(plan.with_summary(&answer.text));
                }
                Ok(_) => tracing::warn!("a summary says nothing: the oldest outputs go instead"),
                Err(Unasked::HandBack) => return Err(Stop::Drain.into()),
                Err(Unasked::Fault(fault @ Fault::Spent(_))) if !self.settings.degrades => {
                    failed(&head.model, fault)?;
                }
                Err(Unasked::Fault(fault)) => {
                    tracing::warn!(cause = ?fault, "a summary failed: the oldest outputs go instead");
                }
            }
        }
        let after = after.unwrap_or(messages);
        let Some(after) = without_outputs(new_head, &after, quarter * 3) else {
            return Err(self.overflow(&format!(
                "the conversation has some {before} tokens in {} bytes and cannot be made shorter",
                bytes(&after)
            )));
        };
        Ok((after, used))
    }
}
