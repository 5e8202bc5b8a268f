//! The binary `autoscaler`.

use std::process::ExitCode;

fn main() -> ExitCode {
    service::parse::<autoscaler::Args>().run()
}
