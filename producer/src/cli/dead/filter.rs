//! The flags that select dead letters.

use std::time::Duration;

use clap::{Args, ValueEnum};
use job::{Label, Name, Tenant};
use service::note;
use store::FailureFilter;

use crate::cli::age::parse_age;
use crate::cli::api::is_of_key;
use crate::dead::{Filter, Kind};

#[derive(Clone, Copy, Debug, ValueEnum)]
#[value(rename_all = "lower")]
enum KindFlag {
    /// A job that has failed
    Job,
    /// A message in harness.dead that belongs to no failed job
    Message,
}

/// Every given condition must hold. A message that lacks a property does not pass a condition on it.
#[derive(Clone, Debug, Default, Args)]
pub struct Flags {
    /// Only jobs, or only messages
    #[arg(long)]
    kind: Option<KindFlag>,
    /// Only with this code, such as timeout, unknown_agent, undecodable or unroutable
    #[arg(long)]
    code: Option<String>,
    /// Only of this tenant; raw messages that name none are the tenant default's
    #[arg(long)]
    tenant: Option<Tenant>,
    /// Only of this session: of the tenant default, unless --tenant names another
    #[arg(long)]
    session: Option<Name>,
    /// Only of this agent
    #[arg(long)]
    agent: Option<Name>,
    /// Only of this pool
    #[arg(long)]
    pool: Option<Name>,
    /// Only with this label; if given several times, all must be there
    #[arg(long = "label", value_name = "KEY=VALUE")]
    labels: Vec<Label>,
    /// Only letters that died within this time, such as 90s, 15m, 2h or 3d
    #[arg(long, value_parser = parse_age)]
    since: Option<Duration>,
    /// Only letters that died longer ago than this
    #[arg(long, value_parser = parse_age)]
    before: Option<Duration>,
}

impl Flags {
    /// Whether the HTTP API can answer this; says so if it cannot.
    pub fn fit_the_api(&self) -> bool {
        let is_of_messages = matches!(self.kind, Some(KindFlag::Message));
        if is_of_messages {
            note!("--kind message: messages are in RabbitMQ alone: use DATABASE_URL and AMQP_URL");
        }
        !is_of_messages && self.tenant.as_ref().is_none_or(is_of_key)
    }

    pub fn filter(&self) -> Filter {
        let kind = self.kind.map(|kind| match kind {
            KindFlag::Job => Kind::Job,
            KindFlag::Message => Kind::Message,
        });
        let of = FailureFilter {
            code: self.code.clone(),
            tenant: self.tenant.clone(),
            session: self.session.clone(),
            agent: self.agent.clone(),
            pool: self.pool.clone(),
            labels: self.labels.clone(),
            since: self.since,
            before: self.before,
        };
        Filter { kind, of }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn filter(flags: &[&str]) -> Filter {
        Line::try_parse_from([&["x"], flags].concat()).expect("flags").flags.filter()
    }

    #[test]
    fn durations_are_words_that_people_write() {
        let ages = filter(&["--kind", "job", "--since", "3d", "--before", "90s"]);
        assert_eq!(
            (ages.kind, ages.of.since, ages.of.before),
            (Some(Kind::Job), Some(Duration::from_secs(3 * 86_400)), Some(Duration::from_secs(90)))
        );
        assert!(Line::try_parse_from(["x", "--since", "soon"]).is_err());
        assert!(filter(&[]).is_empty() && !filter(&["--before", "1s"]).is_empty());
    }
}
