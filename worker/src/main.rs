//! The binary `worker`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: worker::Args = service::parse();
    if let Some(health) = args.health() {
        return health.run();
    }
    service::free_large_memory_at_once();
    command::limit_open_files(service::open_files().given);
    let (telemetry, checked) = args.check();
    service::run(telemetry, service::Threads::Cores, |stop| async { checked?.run(stop).await })
}
