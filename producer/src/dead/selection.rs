//! Selects dead letters by their ids or by their properties. For jobs, the ledger applies the same filter.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use job::{Name, Peek};
use queue::{DeadLetter, pool_of_queue};
use store::FailureFilter;

/// The kind of a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A job that has failed.
    Job,
    /// A message in `harness.dead` that belongs to no failed job.
    Message,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Job => "job",
            Kind::Message => "message",
        })
    }
}

/// A choice of dead letters.
#[derive(Clone, Debug)]
pub enum Selection {
    /// All that pass the filter.
    All(Filter),
    /// Those with these ids: of jobs, or of messages as lists show them.
    Ids(Vec<String>),
}

impl Selection {
    /// Whether messages are selected too, not only the letters of selected jobs.
    pub fn takes_messages(&self) -> bool {
        match self {
            Selection::All(filter) => filter.takes(Kind::Message),
            Selection::Ids(_) => true,
        }
    }
}

/// Every given condition must hold. A message that lacks a property does not pass a condition on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only jobs, or only messages.
    pub kind: Option<Kind>,
    /// The conditions, which the ledger applies to jobs.
    pub of: FailureFilter,
}

impl Filter {
    /// Whether everything passes.
    pub fn is_empty(&self) -> bool {
        *self == Filter::default()
    }

    /// Whether letters of this kind can pass.
    pub fn takes(&self, kind: Kind) -> bool {
        self.kind.is_none_or(|wanted| wanted == kind)
    }

    /// Whether a message passes.
    pub fn passes(&self, letter: &DeadLetter, peek: &Peek, now: SystemTime) -> bool {
        let FailureFilter { code, tenant, session: _, agent, pool: of_pool, labels, since, before } =
            &self.of;
        let session = self.of.session_key();
        let is = |wanted: &Option<Name>, got: &Option<Name>| wanted.is_none() || wanted == got;
        let age = letter.dead_at_unix_ms.map(|at| {
            let died = UNIX_EPOCH + Duration::from_millis(at);
            now.duration_since(died).unwrap_or_default()
        });
        let pool = letter.source_queue.as_deref().and_then(pool_of_queue);
        self.takes(Kind::Message)
            && code.as_ref().is_none_or(|code| *code == letter.code)
            && (tenant.is_none() || *tenant == peek.tenant)
            && (session.is_none() || session == peek.session_key())
            && is(agent, &peek.agent_id)
            && is(of_pool, &pool)
            && labels.iter().all(|label| peek.labels.has(label))
            && since.is_none_or(|since| age.is_some_and(|age| age <= since))
            && before.is_none_or(|before| age.is_some_and(|age| age > before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use job::Tenant;

    #[test]
    fn a_message_passes_where_all_that_is_asked_is_said_and_true() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let letter = DeadLetter {
            mark: "m".to_owned(),
            body: br#"{"session_id":"s","agent_id":"a","labels":{"team":"t"}}"#.to_vec(),
            message_id: None,
            kind: None,
            reason: "r".to_owned(),
            code: "undecodable".to_owned(),
            source_queue: Some("harness.jobs.p".to_owned()),
            dead_at_unix_ms: Some((1_000_000 - 3_600) * 1_000),
            headers: Default::default(),
        };
        let passes =
            |filter: &Filter, letter: &DeadLetter| filter.passes(letter, &job::peek(&letter.body, None), now);
        let name = |name: &str| Some(name.parse::<Name>().unwrap());
        let minutes = |minutes: u64| Some(Duration::from_secs(minutes * 60));
        let code = |code: &str| Some(code.to_owned());
        let any = FailureFilter::default;
        let of = |of| Filter { kind: None, of };
        let other = DeadLetter { body: br#"{"tenant":"acme","session_id":"s"}"#.to_vec(), ..letter.clone() };
        assert!(!passes(&of(FailureFilter { session: name("s"), ..any() }), &other));
        let good = [
            Filter::default(),
            Filter { kind: Some(Kind::Message), of: FailureFilter { code: code("undecodable"), ..any() } },
            of(FailureFilter { session: name("s"), agent: name("a"), pool: name("p"), ..any() }),
            of(FailureFilter { tenant: Some(Tenant::default()), session: name("s"), ..any() }),
            of(FailureFilter { labels: vec!["team=t".parse().unwrap()], ..any() }),
            of(FailureFilter { since: minutes(120), before: minutes(30), ..any() }),
            of(FailureFilter { since: minutes(60), ..any() }),
        ];
        for filter in good {
            assert!(passes(&filter, &letter), "{filter:?}");
        }
        let bad = [
            Filter { kind: Some(Kind::Job), of: any() },
            of(FailureFilter { code: code("unroutable"), ..any() }),
            of(FailureFilter { session: name("t"), ..any() }),
            of(FailureFilter { tenant: Some("acme".parse().unwrap()), session: name("s"), ..any() }),
            of(FailureFilter { tenant: Some("acme".parse().unwrap()), ..any() }),
            of(FailureFilter { agent: name("s"), ..any() }),
            of(FailureFilter { pool: name("default"), ..any() }),
            of(FailureFilter { labels: vec!["team=t".parse().unwrap(), "team=u".parse().unwrap()], ..any() }),
            of(FailureFilter { since: minutes(59), ..any() }),
            of(FailureFilter { before: minutes(60), ..any() }),
            of(FailureFilter { session: name("s"), code: code("unroutable"), ..any() }),
        ];
        for filter in bad {
            assert!(!passes(&filter, &letter), "{filter:?}");
        }
        let silent = DeadLetter { body: b"{".to_vec(), source_queue: None, dead_at_unix_ms: None, ..letter };
        for filter in [
            of(FailureFilter { session: name("s"), ..any() }),
            of(FailureFilter { pool: name("p"), ..any() }),
            of(FailureFilter { since: minutes(10_000), ..any() }),
            of(FailureFilter { before: minutes(1), ..any() }),
        ] {
            assert!(!passes(&filter, &silent), "{filter:?}");
        }
        assert!(passes(&Filter::default(), &silent));
    }
}
