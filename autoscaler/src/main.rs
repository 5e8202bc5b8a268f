//! The binary `autoscaler`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    autoscaler::Args::parse().run()
}
