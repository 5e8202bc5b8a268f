//! Settings: flags with an environment name each. They are checked together, so that one start reports all that is
//! wrong.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use secrecy::{ExposeSecret, SecretString};

use crate::Telemetry;
use crate::authorities::{Authorities, TLS_CA_FILE};
use crate::start::variable;
use crate::trace::{TraceSettings, Variables};

/// A setting as it was given: its value, or why it has none. Reading one never fails, so the parser continues with the
/// next one, and [`Problems`] can name them all.
#[derive(Clone, Debug)]
pub struct Setting<T> {
    given: String,
    value: Result<T, String>,
}

impl<T: FromStr<Err: fmt::Display>> FromStr for Setting<T> {
    type Err = Infallible;
    fn from_str(given: &str) -> Result<Self, Infallible> {
        let value = given.parse::<T>().map_err(|error| error.to_string());
        Ok(Setting { given: given.to_owned(), value })
    }
}

/// The problems of the settings, collected.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    /// Takes a setting's value, or notes that it does not parse.
    pub fn take<T>(&mut self, name: &str, setting: Setting<T>) -> Option<T> {
        let Setting { given, value } = setting;
        let described = |problem: String| {
            if problem.starts_with("got ") { problem } else { format!("got \"{given}\": {problem}") }
        };
        value.map_err(|problem| self.add(name, described(problem))).ok()
    }

    /// Takes a setting's value if it lies in this range, or notes that it does not.
    pub fn within<T: PartialOrd + fmt::Display>(
        &mut self,
        name: &str,
        setting: Setting<T>,
        range: std::ops::RangeInclusive<T>,
    ) -> Option<T> {
        let value = self.take(name, setting)?;
        if range.contains(&value) {
            return Some(value);
        }
        self.add(name, format!("got {value}, expected {} to {}", range.start(), range.end()));
        None
    }

    /// Takes the result of another crate's check of a setting, or notes the error.
    pub fn check<T, E: fmt::Display>(&mut self, name: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|problem| self.add(name, problem)).ok()
    }

    /// Takes a setting that is required, or notes that it is missing.
    pub fn required<T>(&mut self, name: &str, setting: Option<T>, what: &str) -> Option<T> {
        if setting.is_none() {
            self.add(name, format!("not set, expected {what}"));
        }
        setting
    }

    /// Notes a problem. If it already begins with the setting's name, the name is not added again.
    pub fn add(&mut self, name: &str, problem: impl fmt::Display) {
        let problem = problem.to_string();
        let named = problem.starts_with(name);
        let line = if named { problem } else { format!("{name}: {problem}") };
        // A setting that several parts of a process need is read more than once.
        if !self.0.contains(&line) {
            self.0.push(line);
        }
    }

    /// Returns the number of problems so far.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns the error that reports them all.
    pub fn into_error(self) -> SettingsError {
        SettingsError(self.0)
    }
}

/// Settings with which a process cannot start. It ends with exit code 2.
#[derive(Debug)]
pub struct SettingsError(Vec<String>);

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.0.len();
        write!(f, "{count} {}:", if count == 1 { "setting is wrong" } else { "settings are wrong" })?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for SettingsError {}

/// The settings that every binary has.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Where this runs: development, staging or production
    #[arg(long, env = "ENVIRONMENT", default_value = "development", global = true, help_heading = "Common")]
    pub environment: String,
    /// Postgres, such as postgres://user:password@host:5432/database, or host=… dbname=…; several hosts and sslmode are
    /// described in docs/supported-environments.md
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true, help_heading = "Common")]
    database_url: Option<SecretString>,
    /// How sessions in Postgres get the settings they rely on: connection, or role, which works through a pooler in
    /// transaction mode (`producer migrate` sets them for the account)
    #[arg(
        long,
        env = "DATABASE_SETTINGS",
        default_value = "connection",
        global = true,
        help_heading = "Common"
    )]
    pub database_settings: String,
    /// The most connections to Postgres; one of them is for the heartbeat or the lease
    #[arg(long, env = "DATABASE_POOL_SIZE", default_value = "10", global = true, help_heading = "Common")]
    database_pool_size: Setting<usize>,
    /// RabbitMQ, such as amqp://user:password@host:5672/vhost (%2f is the vhost "/")
    #[arg(long, env = "AMQP_URL", hide_env_values = true, global = true, help_heading = "Common")]
    amqp_url: Option<SecretString>,
    /// Days that results are kept; a job id must not be older
    #[arg(long, env = "RETENTION_DAYS", default_value = "30", global = true, help_heading = "Common")]
    retention_days: Setting<u64>,
    /// The largest message that is accepted, in bytes
    #[arg(
        long,
        env = "MAX_MESSAGE_BYTES",
        default_value = "1048576",
        global = true,
        help_heading = "Common"
    )]
    max_message_bytes: Setting<usize>,
    /// The queues that callers may name for their results (reply_to), with * for any text, separated by commas. Queues
    /// that belong to the broker or to the fleet (amq.*, harness.*) are never allowed
    #[arg(long, env = "REPLY_TO_ALLOW", default_value = "*", global = true, help_heading = "Common")]
    pub reply_to_allow: String,
    /// error, warn, info, debug, trace, or directives such as info,worker=debug
    #[arg(long, env = "LOG_LEVEL", default_value = "info", global = true, help_heading = "Common")]
    pub log_level: String,
    /// Log one JSON object per line
    #[arg(long, env = "LOG_JSON", default_value = "false", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", global = true, help_heading = "Common")]
    pub log_json: Setting<bool>,
    /// Where traces go: a receiver of OTLP over HTTP, such as http://collector:4318. Without one, no traces are made
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_ENDPOINT",
        hide_env = true,
        global = true,
        help_heading = "Common"
    )]
    pub otlp_endpoint: Option<String>,
    /// A file of authorities (PEM) to trust in addition to the system's: for RabbitMQ, its management API and the
    /// receiver of traces. A server's certificate is always verified
    #[arg(long, env = "TLS_CA_FILE", global = true, help_heading = "Common")]
    pub tls_ca_file: Option<PathBuf>,
    /// Headers of every request to the receiver of traces, such as authorization=Bearer%20TOKEN: KEY=VALUE, separated
    /// by commas, values percent-encoded as in URLs
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_HEADERS",
        hide_env_values = true,
        global = true,
        help_heading = "Common"
    )]
    pub otlp_headers: Option<SecretString>,
    /// Why secrets whose file is named have no value; see [`crate::parse`].
    #[arg(skip)]
    pub(crate) unreadable: Vec<String>,
}

impl Common {
    /// Returns the trusted authorities.
    pub fn authorities(&self, problems: &mut Problems) -> Option<Authorities> {
        problems.check(TLS_CA_FILE, Authorities::read(self.tls_ca_file.as_ref()))
    }

    /// Returns the address of Postgres. The setting is required.
    pub fn database_url(&self, problems: &mut Problems) -> Option<&SecretString> {
        let expected = "postgres://user:password@host:5432/database";
        problems.required("DATABASE_URL", self.database_url.as_ref(), expected)
    }

    /// Returns the most connections to Postgres.
    pub fn database_pool_size(&self, problems: &mut Problems) -> Option<usize> {
        problems.within("DATABASE_POOL_SIZE", self.database_pool_size.clone(), 2..=1_000)
    }

    /// Returns the address of RabbitMQ. The setting is required.
    pub fn amqp_url(&self, problems: &mut Problems) -> Option<&SecretString> {
        let expected = "amqp://user:password@host:5672/vhost";
        problems.required("AMQP_URL", self.amqp_url.as_ref(), expected)
    }

    /// Returns how long results are kept.
    pub fn retention(&self, problems: &mut Problems) -> Option<Duration> {
        let days = problems.within("RETENTION_DAYS", self.retention_days.clone(), 1..=3_650);
        days.map(|days| Duration::from_secs(days * 86_400))
    }

    /// Returns the size of the largest message that is accepted, in bytes.
    pub fn max_message_bytes(&self, problems: &mut Problems) -> Option<usize> {
        problems.within("MAX_MESSAGE_BYTES", self.max_message_bytes.clone(), 1_024..=64 << 20)
    }

    /// Returns how to log and to trace, for the process that is usually called `service`. `quiet` are directives for
    /// libraries, such as `lapin=off`. Wrong values fall back to the defaults, so that the problems can be logged.
    pub fn telemetry(&self, service: &str, quiet: &[&str], problems: &mut Problems) -> Telemetry {
        self.unreadable.iter().for_each(|problem| problems.add("", problem));
        if !["development", "staging", "production"].contains(&self.environment.as_str()) {
            let got = format!("got \"{}\", expected development, staging or production", self.environment);
            problems.add("ENVIRONMENT", got);
        }
        let json = problems.take("LOG_JSON", self.log_json.clone()).unwrap_or(false);
        let level = problems.check("LOG_LEVEL", Telemetry::parse_level(&self.log_level, quiet));
        let variables = Variables(variable);
        let service = variables.service(service);
        let (endpoint, headers) = (self.otlp_endpoint.as_deref(), self.otlp_headers.as_ref());
        let headers = headers.map(ExposeSecret::expose_secret);
        let authorities = self.authorities(problems).unwrap_or_default();
        let traces =
            TraceSettings::read(endpoint, headers, &authorities, service.clone(), &variables, problems);
        let telemetry = Telemetry::new(service, level, json, traces);
        telemetry.in_environment(&self.environment)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_problems_are_reported_at_once() {
        let mut problems = Problems::default();
        assert_eq!(problems.take("A", "7".parse::<Setting<u8>>().unwrap()), Some(7));
        assert_eq!(problems.take("B", "700".parse::<Setting<u8>>().unwrap()), None);
        assert_eq!(problems.within("C", "7".parse::<Setting<u8>>().unwrap(), 1..=5), None);
        assert_eq!(problems.required::<u8>("D", None, "a number"), None);
        let text = problems.into_error().to_string();
        for part in [
            "3 settings are wrong",
            "B: got \"700\"",
            "C: got 7, expected 1 to 5",
            "D: not set, expected a number",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
