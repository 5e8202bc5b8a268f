//! The binary `producer`.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    producer::cli::Args::parse().run()
}
