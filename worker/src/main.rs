//! The binary `worker`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let (telemetry, settings) = worker::Args::parse().check();
    service::run(telemetry, |stop| async { worker::serve(settings?, stop).await })
}
