//! What a process reports about itself while it runs: traces, and logs on stderr, for people or as one JSON object per
//! line.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::panic::{self, PanicHookInfo};
use std::time::Duration;

use tracing::error;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use uuid::Uuid;

use crate::logs::{Fields, Flat, Text};
use crate::stderr;
use crate::trace::{self, TraceSettings};

/// How a process logs, and which traces it makes.
#[derive(Debug)]
pub struct Telemetry {
    service: String,
    level: Option<EnvFilter>,
    json: bool,
    traces: Option<TraceSettings>,
}

impl Telemetry {
    pub(crate) fn new(
        service: String,
        level: Option<EnvFilter>,
        json: bool,
        traces: Option<TraceSettings>,
    ) -> Self {
        let telemetry = Telemetry { service, level, json, traces };
        let instance = std::env::var("POD_NAME").ok().filter(|name| !name.is_empty());
        telemetry
            .with("service.namespace", "harness-fleet")
            .with("service.version", env!("CARGO_PKG_VERSION"))
            .with("service.instance.id", instance.unwrap_or_else(|| Uuid::new_v4().to_string()))
    }

    /// Reads a level. The user's directives come after `quiet`, and win. Why a process ends is always logged, see
    /// [`crate::run`].
    pub(crate) fn parse_level(text: &str, quiet: &[&str]) -> Result<EnvFilter, String> {
        let expected =
            "expected error, warn, info, debug, trace, off or directives such as info,worker=debug";
        let given = text.split(',').map(str::trim).filter(|directive| !directive.is_empty());
        let given: Vec<&str> = given.collect();
        // The filter would take such a word for a target, and log everything of it and nothing else.
        let is_wrong = |word: &&&str| !word.contains(['=', '[']) && word.parse::<LevelFilter>().is_err();
        if let Some(word) = given.iter().find(is_wrong) {
            return Err(format!("got \"{text}\": \"{word}\" is no level, {expected}"));
        }
        let directives =
            quiet.iter().copied().chain(given).chain([EXIT_LOG_DIRECTIVE]).collect::<Vec<_>>().join(",");
        EnvFilter::try_new(directives).map_err(|error| format!("got \"{text}\": {error}, {expected}"))
    }

    pub(crate) fn in_environment(self, environment: &str) -> Telemetry {
        self.with("deployment.environment.name", environment)
    }

    /// Adds the pool that the process serves to every trace.
    pub fn in_pool(self, pool: &str) -> Telemetry {
        self.with("harness.pool", pool)
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Telemetry {
        if let Some(traces) = &mut self.traces {
            traces.resource.push((name, value.into()));
        }
        self
    }

    /// Starts logging and tracing for the whole process. A second call changes nothing.
    pub fn start(self) {
        let level = self.level.unwrap_or_else(|| EnvFilter::new("info"));
        let logs = tracing_subscriber::fmt::layer().with_writer(stderr::stderr());
        let subscriber = tracing_subscriber::registry().with(level);
        // This fails only if a subscriber is installed already, as in a test.
        let _ = if self.json {
            subscriber.with(logs.fmt_fields(Fields).event_format(Flat::new(self.service))).try_init()
        } else {
            subscriber.with(logs.fmt_fields(Text).with_ansi(may_colour())).try_init()
        };
        panic::set_hook(Box::new(log_panic));
        if let Some(traces) = self.traces {
            trace::start(traces);
        }
    }
}

/// Logs why a process ends, whatever the level.
const EXIT_LOG_DIRECTIVE: &str = "service::run=error";

/// How long a thread that panics waits until its line is written, because the panic may end the process.
const PANIC_FLUSH: Duration = Duration::from_millis(100);

/// Whether stderr is a terminal that shows colours, and the user has not disabled them (<https://no-color.org>).
fn may_colour() -> bool {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    std::io::stderr().is_terminal()
        && variable("NO_COLOR").is_none()
        && variable("TERM").is_none_or(|terminal| terminal != "dumb")
}

/// Logs a panic like any other line. It waits for no reader.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let (name, trace) = (thread.name().unwrap_or("without a name"), Backtrace::capture());
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let said = panic.payload_as_str().unwrap_or("no text");
    match trace.status() {
        BacktraceStatus::Captured => {
            error!(target: "service::run", "thread {name} panicked at {place}: {said}\n{trace}")
        }
        _ => error!(target: "service::run", "thread {name} panicked at {place}: {said}"),
    }
    stderr::flush(PANIC_FLUSH);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused_and_whitespace_is_not() {
        for good in ["info", " info", "off", "WARN ,worker=debug,", "worker=debug", "info,queue[job]=trace"] {
            assert!(Telemetry::parse_level(good, &["sqlx=warn"]).is_ok(), "{good}");
        }
        for (wrong, word) in [("warning", "warning"), ("info,worker", "worker"), ("worker=loud", "loud")] {
            let refused = Telemetry::parse_level(wrong, &[]).unwrap_err();
            assert!(refused.contains(word) && refused.contains("expected error, warn"), "{refused}");
        }
    }
}
