//! Why a call has no answer, and whether asking again can mend it. Pure.
//!
//! This is the one layer of retries above a reservation: neither the gateway nor the HTTP client repeats anything. What
//! failed after it was sent may have been paid, so it is tried a few times only; what was refused before any work is
//! tried for a while.

use std::time::Duration;

use harness::Stop;
use serde::Deserialize;

use crate::answer::NoAnswer;

/// Why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A budget is spent.
    Spent(String),
    /// The conversation does not fit the model's context window.
    Overflow(String),
    /// The provider refuses it, and would again.
    Refused(String),
    /// It was refused before any work, and may be taken later.
    Busy {
        /// For people.
        message: String,
        /// When, if the provider says so.
        retry_after: Option<Duration>,
    },
    /// It failed in the middle, or nobody knows how far it came.
    Broken(String),
    /// What came cannot be kept.
    Unstorable(String),
    /// The run must stop.
    Stopped(Stop),
}

/// What to do about a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// Ask again after this time.
    After(Duration),
    /// Give this model up.
    No,
}

/// The tries of one request.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tries {
    broken: u32,
    busy: u32,
    waited: Duration,
}

/// How often a call is made again that may have been paid.
const MOST_BROKEN: u32 = 3;
/// How long a call waits in all, while it is refused before any work.
const MOST_WAITED: Duration = Duration::from_secs(900);
/// The first wait, and the longest; each is doubled.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

impl Tries {
    /// Those of a request that is made once, whatever becomes of it.
    pub fn once() -> Tries {
        Tries { broken: MOST_BROKEN, busy: 0, waited: MOST_WAITED }
    }

    /// Returns what to do about a fault. `jitter` is from 0 to 1.
    pub fn after(&mut self, fault: &Fault, jitter: f64) -> Again {
        let (tries, least) = match fault {
            Fault::Spent(_)
            | Fault::Overflow(_)
            | Fault::Refused(_)
            | Fault::Unstorable(_)
            | Fault::Stopped(_) => {
                return Again::No;
            }
            Fault::Broken(_) if self.broken >= MOST_BROKEN => return Again::No,
            Fault::Broken(_) => (&mut self.broken, Duration::ZERO),
            Fault::Busy { retry_after, .. } => (&mut self.busy, retry_after.unwrap_or_default()),
        };
        let wait = FIRST_WAIT.saturating_mul(1 << (*tries).min(10)).min(LONGEST_WAIT);
        *tries += 1;
        // Never sooner than the provider says; a little later, so that not all come back at once.
        let wait = wait.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0).max(least + least.mul_f64(jitter / 10.0));
        if matches!(fault, Fault::Busy { .. }) && self.waited + wait > MOST_WAITED {
            return Again::No;
        }
        self.waited += wait;
        Again::After(wait)
    }
}

impl Fault {
    /// Returns its kind in a word.
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::Spent(_) => "budget_exhausted",
            Fault::Overflow(_) => "context_overflow",
            Fault::Refused(_) => "provider_refused",
            Fault::Busy { .. } | Fault::Broken(_) => "provider_error",
            Fault::Unstorable(_) => "unstorable",
            Fault::Stopped(_) => "stopped",
        }
    }

    /// Reads a refusal.
    pub fn refusal(status: u16, body: &str, retry_after: Option<Duration>) -> Fault {
        #[derive(Deserialize)]
        struct Body {
            error: Option<Inner>,
        }
        #[derive(Deserialize)]
        struct Inner {
            #[serde(default)]
            message: String,
        }
        let said = serde_json::from_str::<Body>(body).ok().and_then(|body| body.error);
        let said = said.map(|error| error.message).filter(|text| !text.is_empty());
        let said: String = said.unwrap_or_else(|| body.to_owned()).chars().take(1_000).collect();
        let message = format!("{status}: {said}");
        match status {
            402 => Fault::Spent(said),
            413 => Fault::Overflow(message),
            400 if is_overflow(body) => Fault::Overflow(message),
            // A quota of money, which no time gives back.
            429 if body.contains("insufficient_quota") => Fault::Refused(message),
            408 | 409 | 425 | 429 | 503 | 529 => Fault::Busy { message, retry_after },
            500.. => Fault::Broken(message),
            _ => Fault::Refused(message),
        }
    }
}

impl From<NoAnswer> for Fault {
    fn from(error: NoAnswer) -> Fault {
        let message = error.to_string();
        match error {
            NoAnswer::Unstorable(_) => Fault::Unstorable(message),
            NoAnswer::Failed { kind, .. } if kind == "context_length_exceeded" => Fault::Overflow(message),
            // It would be said again.
            NoAnswer::Failed { kind, .. } if NO_TRY_MENDS.contains(&&*kind) => Fault::Refused(message),
            NoAnswer::Garbage(_) | NoAnswer::Failed { .. } | NoAnswer::NoEnd => Fault::Broken(message),
        }
    }
}

/// What providers say in the middle of a stream that no other try can mend.
const NO_TRY_MENDS: [&str; 2] = ["insufficient_quota", "invalid_prompt"];

/// Returns whether a refusal says that the input is too long. Providers have no code for it, but these words.
fn is_overflow(body: &str) -> bool {
    const WORDS: [&str; 5] = [
        "prompt is too long",
        "exceed context limit",
        "context_length_exceeded",
        "maximum context length",
        "exceeds the context window",
    ];
    WORDS.iter().any(|words| body.contains(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(seconds: Option<u64>) -> Fault {
        Fault::Busy { message: String::new(), retry_after: seconds.map(Duration::from_secs) }
    }

    #[test]
    fn what_may_have_been_paid_is_tried_three_more_times() {
        let mut tries = Tries::default();
        let broken = Fault::Broken(String::new());
        let waits: Vec<Again> = (0..4).map(|_| tries.after(&broken, 1.0)).collect();
        let after = |ms| Again::After(Duration::from_millis(ms));
        assert_eq!(waits, [after(500), after(1_000), after(2_000), Again::No]);
    }

    #[test]
    fn a_busy_provider_is_asked_again_no_sooner_than_it_says_and_not_for_ever() {
        let mut tries = Tries::default();
        assert_eq!(tries.after(&busy(Some(7)), 0.0), Again::After(Duration::from_secs(7)));
        let mut total = Duration::from_secs(7);
        while let Again::After(wait) = tries.after(&busy(None), 0.5) {
            assert!(wait <= LONGEST_WAIT);
            total += wait;
        }
        assert!(total <= MOST_WAITED && total > MOST_WAITED - LONGEST_WAIT, "{total:?}");
        assert_eq!(Tries::default().after(&busy(Some(3_600)), 0.0), Again::No);
    }

    #[test]
    fn a_status_says_what_kind_of_fault_it_is() {
        let long = r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > 200000 maximum"}}"#;
        assert!(matches!(Fault::refusal(400, long, None), Fault::Overflow(_)));
        let long = r#"{"error":{"message":"…","code":"context_length_exceeded"}}"#;
        assert!(matches!(Fault::refusal(400, long, None), Fault::Overflow(_)));
        let wrong = r#"{"error":{"message":"temperature: must be below 1"}}"#;
        assert_eq!(
            Fault::refusal(400, wrong, None),
            Fault::Refused("400: temperature: must be below 1".to_owned())
        );
        for (status, retryable) in
            [(401, false), (403, false), (404, false), (429, true), (500, true), (529, true)]
        {
            let again = Tries::default().after(&Fault::refusal(status, "", None), 0.5);
            assert_eq!(again != Again::No, retryable, "{status}");
        }
        assert!(matches!(Fault::refusal(402, "{}", None), Fault::Spent(_)));
    }

    #[test]
    fn a_failure_in_the_middle_of_a_stream_is_what_it_says() {
        let fault =
            |kind: &str| Fault::from(NoAnswer::Failed { kind: kind.to_owned(), message: String::new() });
        assert!(matches!(fault("context_length_exceeded"), Fault::Overflow(_)));
        assert!(matches!(fault("insufficient_quota"), Fault::Refused(_)));
        for kind in ["server_error", "rate_limit_exceeded", "overloaded_error", ""] {
            assert!(matches!(fault(kind), Fault::Broken(_)), "{kind}");
        }
    }
}
