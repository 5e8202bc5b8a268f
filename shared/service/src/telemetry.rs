//! Logs: to stderr, for people or as one JSON object per line.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// How a process logs.
#[derive(Debug)]
pub struct Telemetry {
    level: Option<EnvFilter>,
    json: bool,
}

impl Telemetry {
    pub(crate) fn new(level: Option<EnvFilter>, json: bool) -> Self {
        Telemetry { level, json }
    }

    /// What the user says comes last, and wins.
    pub(crate) fn parse_level(text: &str, quiet: &[&str]) -> Result<EnvFilter, String> {
        let directives = quiet.iter().copied().chain([text]).collect::<Vec<_>>().join(",");
        EnvFilter::try_new(directives).map_err(|error| {
            format!("got \"{text}\": {error}, expected error, warn, info, debug, trace or directives such as info,worker=debug")
        })
    }

    /// Installs it for the whole process. A second call changes nothing.
    pub fn init(self) {
        let level = self.level.unwrap_or_else(|| EnvFilter::new("info"));
        let logs = tracing_subscriber::fmt().with_env_filter(level).with_writer(std::io::stderr);
        // It fails only when a subscriber is installed already, as under a test.
        let _ = match self.json {
            true => logs.json().flatten_event(true).try_init(),
            false => logs.with_ansi(std::io::stderr().is_terminal()).try_init(),
        };
    }
}
