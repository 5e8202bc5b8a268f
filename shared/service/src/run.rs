//! How a program runs and how it ends: the runtime, signals, the last log lines and the exit code.

use std::future::Future;
use std::io;
use std::process::ExitCode;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::{SettingsError, Stopped, Telemetry, output, stderr, trace, until_signalled, with_causes};

/// How long the end of a process waits for the receiver of its last spans.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// How long the end of a process waits for the reader of its last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The number of threads on which a process runs its tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// One: enough for a process that waits nearly always. It needs the least memory.
    One,
    /// One for each core.
    Cores,
}

/// Runs a binary's main future on a runtime, with logs, and with a token that SIGTERM, SIGINT or SIGHUP cancels. A
/// second signal ends the process at once.
///
/// An error is logged once, with its whole chain, and becomes an exit code by [`exit_code`]. Results that could not be
/// printed fail the process, too, unless their reader has gone away.
pub fn run<F, Fut>(telemetry: Telemetry, threads: Threads, main: F) -> ExitCode
where
    F: FnOnce(CancellationToken) -> Fut,
    Fut: Future<Output = anyhow::Result<ExitCode>>,
{
    telemetry.start();
    let runtime = match runtime(threads) {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(cause = %error, "no runtime could be started");
            stderr::flush(LAST_LINES);
            return ExitCode::FAILURE;
        }
    };
    let (result, printed) = runtime.block_on(async {
        let stop = CancellationToken::new();
        let on_signal = stop.clone();
        let signals = tokio::spawn(async move {
            until_signalled().await?;
            on_signal.cancel();
            until_signalled().await?;
            stderr::flush(LAST_LINES);
            std::process::exit(130);
            #[expect(unreachable_code, reason = "names the task's type")]
            std::io::Result::Ok(())
        });
        let result = main(stop.clone()).await;
        // The reader of the output may stall, and signals are handled meanwhile.
        let printed = output::finish(&stop).await;
        signals.abort();
        (result, printed)
    });
    // Calls that still run on the blocking pool must not delay the end.
    runtime.shutdown_timeout(Duration::from_secs(1));
    let mut code = result.unwrap_or_else(|error| {
        error!("{}", with_causes(error.as_ref()));
        exit_code(&error)
    });
    if let Err(error) = printed {
        error!("not all results could be written to stdout: {error}");
        code = exit_code(&error);
    }
    trace::finish(LAST_SPANS);
    stderr::flush(LAST_LINES);
    code
}

/// The most threads for blocking calls.
const BLOCKING_THREADS: usize = 64;

/// Builds the runtime. A thread for blocking calls (files, host names) exists from the start, and none of them ends
/// while idle. On a host that has run out of processes no other thread can be started, and tokio panics if there is
/// none at all. Since the threads stay, there are few.
fn runtime(threads: Threads) -> io::Result<Runtime> {
    let mut builder = match threads {
        Threads::One => Builder::new_current_thread(),
        Threads::Cores => Builder::new_multi_thread(),
    };
    let runtime = builder
        .enable_all()
        .thread_keep_alive(Duration::MAX)
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    runtime.spawn_blocking(|| {});
    Ok(runtime)
}

/// Returns 2 for wrong settings or arguments, 130 for a process that was asked to stop before its end, and 1 for all
/// other errors.
pub fn exit_code(error: &anyhow::Error) -> ExitCode {
    if error.is::<SettingsError>() {
        ExitCode::from(2)
    } else if error.is::<Stopped>() {
        ExitCode::from(130)
    } else {
        ExitCode::FAILURE
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_thread_for_calls_that_block_does_not_end_while_it_idles() {
        let runtime = runtime(Threads::One).expect("a runtime");
        let at_work = || {
            thread::sleep(Duration::from_millis(10));
            runtime.block_on(runtime.spawn_blocking(|| thread::current().id())).expect("an id")
        };
        // Two threads, if the first call came before the thread was idle.
        let before: Vec<_> = (0..20).map(|_| at_work()).collect();
        // Longer than tokio keeps an idle thread by default.
        thread::sleep(Duration::from_secs(12));
        assert!(before.contains(&at_work()));
    }
}
