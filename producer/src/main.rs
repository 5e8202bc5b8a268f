//! The binary `producer`.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::parse::<producer::cli::Args>().run()
}
