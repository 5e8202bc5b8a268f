//! Process plumbing that every binary shares: settings, logs, traces, signals, retries and the admin port.
//!
//! It depends on no other crate of this workspace. What a job or a queue is, and whether a setting's value makes
//! sense, is decided by the binaries.

mod init;
mod start;
mod output;
mod address;
mod http_url;
mod authorities;
mod settings;
mod toml_file;
mod stderr;
mod logs;
mod trace;
mod telemetry;
mod shutdown;
mod causes;
mod retry;
mod admin;
mod health;
mod lifecycle;
mod run;

pub use address::ListenAddress;
pub use admin::{AdminAddress, AdminArgs, Check, Readiness};
pub use authorities::{Authorities, explain_http};
pub use causes::with_causes;
pub use health::Health;
pub use http_url::HttpUrl;
pub use lifecycle::Lifecycle;
pub use output::{Notes, print_note, print_out, print_piece, printed};
pub use retry::{Backoff, RetryError, retry, retry_about, retry_or_stop};
pub use run::{Threads, exit_code, run};
pub use settings::{Common, Problems, Setting, SettingsError};
pub use shutdown::{Stopped, unless_stopped, until_signalled};
pub use start::{
    OpenFiles, free_large_memory_at_once, open_files, parse, secret_values, taken_secrets, variable,
};
pub use telemetry::Telemetry;
pub use toml_file::{TomlFile, TomlValue, unsaid};
pub use trace::{Description, JobIds, Origin, Place, Role, Span};
