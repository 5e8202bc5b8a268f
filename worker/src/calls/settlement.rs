//! What the ledger is told of a call's end. What a provider says is cleaned and bounded here.

use model::{MOST_OF_A_CALL, Outcome};
use store::{CallOutcome, CallTokens, SettledCall};

// A cost that the gateway takes is one that the ledger takes.
const _: () = assert!(MOST_OF_A_CALL.micros() <= store::MOST_OF_A_CALL.micros());

/// The most characters of what a provider says that a settlement keeps.
const MOST_SAID: usize = 200;
/// Why a call counts in full whose settlement Postgres has refused.
const NOT_TAKEN: &str = "the ledger refused what was to be recorded";

pub fn outcome_row(outcome: Outcome) -> CallOutcome {
    match outcome {
        Outcome::Settled(settled) => {
            let tokens = settled.tokens;
            CallOutcome::Settled {
                cost: settled.cost,
                tokens: CallTokens {
                    input: tokens.input,
                    cache_read: tokens.cache_read,
                    cache_write: tokens.cache_write.saturating_add(tokens.cache_write_long),
                    output: tokens.output,
                },
                answered_by: said(&settled.model),
            }
        }
        Outcome::Free => CallOutcome::Free,
        Outcome::Unknown(reason) => CallOutcome::Unknown { reason: said(&reason.to_string()) },
    }
}

/// Returns what a provider says as Postgres can hold it and people can read it.
pub fn said(text: &str) -> String {
    text.chars().take(MOST_SAID).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Returns a settlement with nothing in it that came from outside.
pub fn in_full(settled: &SettledCall) -> SettledCall {
    SettledCall {
        call: settled.call.clone(),
        outcome: CallOutcome::Unknown { reason: NOT_TAKEN.to_owned() },
        provider_request_id: None,
        answer: None,
        used: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use job::Usd;
    use model::{NoUsage, Settled, Tokens, Unpriced};

    use super::*;

    #[test]
    fn what_a_provider_says_is_recorded_clean_and_short() {
        let name = format!("m\0\u{1b}[2J\u{7f}é{}", "x".repeat(1_000_000));
        let settled = Settled { cost: Usd::ZERO, tokens: Tokens::default(), model: name.clone() };
        let texts = match (
            outcome_row(Outcome::Settled(settled)),
            outcome_row(Outcome::Unknown(NoUsage::Unpriced(Unpriced::Field(name.clone())))),
        ) {
            (CallOutcome::Settled { answered_by, .. }, CallOutcome::Unknown { reason }) => {
                [answered_by, reason, said(&name)]
            }
            other => panic!("{other:?}"),
        };
        for text in texts {
            assert!(!text.contains(char::is_control) && text.contains('é'), "{text}");
            assert_eq!(text.chars().count(), MOST_SAID);
        }
        assert_eq!(said("claude-opus-5-5"), "claude-opus-5-5");
    }
}
