//! Signals.

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

/// Resolves on SIGTERM or SIGINT.
pub async fn until_signalled() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!(signal = name, "asked to stop");
    Ok(())
}
