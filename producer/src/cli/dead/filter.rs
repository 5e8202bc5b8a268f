//! Which dead letters: flags, and whether a message passes them. For jobs the ledger does the same.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use job::{Glimpse, Name};
use queue::{DeadLetter, pool_of_queue};
use store::DeadFilter;

use crate::cli::age::parse_age;

/// What is dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// A job that has failed
    Job,
    /// A message in harness.dead that is not that of a failed job
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

/// Each one given must be true; a message that does not tell what is asked for does not pass.
#[derive(Clone, Debug, Default, Args)]
pub struct Filter {
    /// Only jobs, or only messages
    #[arg(long)]
    pub kind: Option<Kind>,
    /// Only with this code, such as timeout, unknown_agent, undecodable or unroutable
    #[arg(long)]
    pub code: Option<String>,
    /// Only of this session
    #[arg(long)]
    pub session: Option<Name>,
    /// Only of this agent
    #[arg(long)]
    pub agent: Option<Name>,
    /// Only of this pool
    #[arg(long)]
    pub pool: Option<Name>,
    /// Only what died within so long, such as 90s, 15m, 2h or 3d
    #[arg(long, value_parser = parse_age)]
    pub since: Option<Duration>,
    /// Only what died longer ago than this
    #[arg(long, value_parser = parse_age)]
    pub before: Option<Duration>,
}

impl Filter {
    /// Whether everything passes.
    pub fn is_empty(&self) -> bool {
        let Filter { kind, code, session, agent, pool, since, before } = self;
        let names = [session, agent, pool].iter().all(|name| name.is_none());
        names && kind.is_none() && code.is_none() && since.is_none() && before.is_none()
    }

    /// Whether this kind can pass.
    pub fn takes(&self, kind: Kind) -> bool {
        self.kind.is_none_or(|wanted| wanted == kind)
    }

    /// The same for the ledger.
    pub fn of_jobs(&self) -> DeadFilter {
        DeadFilter {
            code: self.code.clone(),
            session: self.session.clone(),
            agent: self.agent.clone(),
            pool: self.pool.clone(),
            since: self.since,
            before: self.before,
        }
    }

    /// Whether a message passes.
    pub fn passes(&self, letter: &DeadLetter, glimpse: &Glimpse, now: SystemTime) -> bool {
        let is = |wanted: &Option<Name>, got: &Option<Name>| wanted.is_none() || wanted == got;
        let age = letter.dead_at_unix_ms.map(|at| {
            let died = UNIX_EPOCH + Duration::from_millis(at);
            now.duration_since(died).unwrap_or_default()
        });
        let pool = letter.source_queue.as_deref().and_then(pool_of_queue);
        self.takes(Kind::Message)
            && self.code.as_ref().is_none_or(|code| *code == letter.code)
            && is(&self.session, &glimpse.session_id)
            && is(&self.agent, &glimpse.agent_id)
            && is(&self.pool, &pool)
            && self.since.is_none_or(|since| age.is_some_and(|age| age <= since))
            && self.before.is_none_or(|before| age.is_some_and(|age| age > before))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        filter: Filter,
    }

    fn filter(flags: &[&str]) -> Filter {
        Line::try_parse_from([&["x"], flags].concat()).expect("flags").filter
    }

    #[test]
    fn a_message_passes_where_all_that_is_asked_is_told_and_true() {
        let now = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let letter = DeadLetter {
            mark: "m".to_owned(),
            body: br#"{"session_id":"s","agent_id":"a"}"#.to_vec(),
            message_id: None,
            kind: None,
            reason: "r".to_owned(),
            code: "undecodable".to_owned(),
            source_queue: Some("harness.jobs.p".to_owned()),
            dead_at_unix_ms: Some((1_000_000 - 3_600) * 1_000),
            headers: Default::default(),
        };
        let passes = |flags: &[&str], letter: &DeadLetter| {
            filter(flags).passes(letter, &job::glimpse(&letter.body, None), now)
        };
        let good = [
            &[][..],
            &["--kind", "message", "--code", "undecodable"],
            &["--session", "s", "--agent", "a", "--pool", "p"],
            &["--since", "2h", "--before", "30m"],
            &["--since", "60m"],
        ];
        for flags in good {
            assert!(passes(flags, &letter), "{flags:?}");
        }
        let bad = [
            &["--kind", "job"][..],
            &["--code", "unroutable"],
            &["--session", "t"],
            &["--agent", "s"],
            &["--pool", "default"],
            &["--since", "59m"],
            &["--before", "1h"],
            &["--session", "s", "--code", "unroutable"],
        ];
        for flags in bad {
            assert!(!passes(flags, &letter), "{flags:?}");
        }
        let silent = DeadLetter { body: b"{".to_vec(), source_queue: None, dead_at_unix_ms: None, ..letter };
        for flags in [["--session", "s"], ["--pool", "p"], ["--since", "9d"], ["--before", "1s"]] {
            assert!(!passes(&flags, &silent), "{flags:?}");
        }
        assert!(passes(&[], &silent));
    }

    #[test]
    fn durations_are_words_that_people_write() {
        let ages = filter(&["--since", "3d", "--before", "90s"]).of_jobs();
        assert_eq!(
            (ages.since, ages.before),
            (Some(Duration::from_secs(3 * 86_400)), Some(Duration::from_secs(90)))
        );
        assert!(Line::try_parse_from(["x", "--since", "soon"]).is_err());
        assert!(filter(&[]).is_empty() && !filter(&["--before", "1s"]).is_empty());
    }
}
