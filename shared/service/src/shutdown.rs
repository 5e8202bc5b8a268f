//! Signals.

use std::future::{Future, pending};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Waits for SIGTERM, SIGINT or SIGHUP. A terminal that closes ends the processes in it, but a process that was
/// started to outlive its terminal (`nohup`) ignores SIGHUP.
pub async fn until_signalled() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangs_up = async {
        if crate::start::outlives_its_terminal() {
            pending::<()>().await;
        } else {
            signal(SignalKind::hangup())?.recv().await;
        };
        std::io::Result::Ok(())
    };
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        listened = hangs_up => listened.map(|()| "SIGHUP")?,
    };
    info!(signal = name, "asked to stop");
    Ok(())
}

/// The process was asked to stop before its work was done. It ends with exit code 130.
#[derive(Debug)]
pub struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped by a signal, before its end")
    }
}

impl std::error::Error for Stopped {}

/// Waits for an answer from outside, which may take long. Returns an error if the process is asked to stop meanwhile.
pub async fn unless_stopped<T, E: Into<anyhow::Error>>(
    stop: &CancellationToken,
    asking: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T> {
    match stop.run_until_cancelled(asking).await {
        Some(answer) => answer.map_err(Into::into),
        None => Err(Stopped.into()),
    }
}
