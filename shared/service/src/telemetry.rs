//! How a process tells of itself while it runs: logs, to stderr, for people or as one JSON object per line; and traces.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use uuid::Uuid;

use crate::logs::{Fields, Flat};
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

    /// What the user says comes last, and wins.
    pub(crate) fn parse_level(text: &str, quiet: &[&str]) -> Result<EnvFilter, String> {
        let directives = quiet.iter().copied().chain([text]).collect::<Vec<_>>().join(",");
        EnvFilter::try_new(directives).map_err(|error| {
            format!("got \"{text}\": {error}, expected error, warn, info, debug, trace or directives such as info,worker=debug")
        })
    }

    pub(crate) fn in_environment(self, environment: &str) -> Telemetry {
        self.with("deployment.environment.name", environment)
    }

    /// Says in every trace which pool the process serves.
    pub fn in_pool(self, pool: &str) -> Telemetry {
        self.with("harness.pool", pool)
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Telemetry {
        if let Some(traces) = &mut self.traces {
            traces.resource.push((name, value.into()));
        }
        self
    }

    /// Logs and makes traces from now on, for the whole process. A second call changes nothing.
    pub fn start(self) {
        let level = self.level.unwrap_or_else(|| EnvFilter::new("info"));
        let logs = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
        let subscriber = tracing_subscriber::registry().with(level);
        // It fails only when a subscriber is installed already, as under a test.
        let _ = match self.json {
            true => subscriber.with(logs.fmt_fields(Fields).event_format(Flat::new(self.service))).try_init(),
            false => subscriber.with(logs.with_ansi(std::io::stderr().is_terminal())).try_init(),
        };
        if let Some(traces) = self.traces {
            trace::start(traces);
        }
    }
}
