//! The binary `worker`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: worker::Args = service::parse();
    if let Some(health) = args.health() {
        return health.run();
    }
    command::limit_open_files(service::open_files().given);
    let (telemetry, settings) = args.check();
    service::run(telemetry, service::Threads::Cores, |stop| async { worker::serve(settings?, stop).await })
}
