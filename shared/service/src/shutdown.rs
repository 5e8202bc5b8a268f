//! Signals.

use std::future::{Future, pending};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Resolves on SIGTERM, SIGINT or SIGHUP: a terminal that closes ends what runs in it. One that was started to outlive its
/// terminal (`nohup`) does.
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

/// Told to stop before the work was done. The process ends with exit code 130.
#[derive(Debug)]
pub struct Stopped;

impl std::fmt::Display for Stopped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stopped by a signal, before its end")
    }
}

impl std::error::Error for Stopped {}

/// Asks something of the outside, which may take its time; an error when told to stop meanwhile.
pub async fn unless_stopped<T, E: Into<anyhow::Error>>(
    stop: &CancellationToken,
    asking: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T> {
    match stop.run_until_cancelled(asking).await {
        Some(answer) => answer.map_err(Into::into),
        None => Err(Stopped.into()),
    }
}
