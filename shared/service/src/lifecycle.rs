//! A process that serves: how it boots, serves and drains.
//!
//! ```text
//! Lifecycle::default()  makes the token `end`; connections that must outlast the drain take it
//! open                  opens the admin port, so that /health answers while the process boots
//! spawn, fail_by        start the tasks without which the process is useless
//! until(stop)           serves until the process is asked to stop, or until a task ends or fails
//!                       (here the caller drains)
//! finish                cancels `end` and waits for the tasks
//! ```

use std::future::Future;
use std::process::ExitCode;

use anyhow::anyhow;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::admin::{Admin, AdminAddress, Readiness};
use crate::with_causes;

/// The admin port and the essential tasks of a process. All of them run until it has drained.
#[derive(Default)]
pub struct Lifecycle {
    tasks: JoinSet<(&'static str, anyhow::Result<()>)>,
    end: CancellationToken,
}

impl Lifecycle {
    /// Is cancelled when the process has drained. Everything that must outlast the drain ends by it.
    pub fn end(&self) -> CancellationToken {
        self.end.clone()
    }

    /// Opens the admin port. An address in use is an error here, before anything else starts.
    pub async fn open(&mut self, address: &AdminAddress, readiness: Readiness) -> anyhow::Result<()> {
        let admin = Admin::bind(address, readiness).await?;
        self.spawn("admin port", |end| admin.serve(end));
        Ok(())
    }

    /// Starts a task without which the process is useless. It ends when its token is cancelled, and not before.
    pub fn spawn<Task>(&mut self, name: &'static str, task: impl FnOnce(CancellationToken) -> Task)
    where
        Task: Future<Output = ()> + Send + 'static,
    {
        let task = task(self.end());
        self.tasks.spawn(async move {
            task.await;
            (name, Ok(()))
        });
    }

    /// Ends the process with the reason that this future resolves to. It need never resolve.
    pub fn fail_by(
        &mut self,
        name: &'static str,
        reason: impl Future<Output = anyhow::Error> + Send + 'static,
    ) {
        let end = self.end();
        self.tasks.spawn(async move {
            let failed = end.run_until_cancelled(reason).await;
            (name, failed.map_or(Ok(()), Err))
        });
    }

    /// Serves until `stop` is cancelled, which is a success, or until a task ends or fails, which is an error. `stop` is
    /// cancelled in both cases, so that everything else drains by it.
    pub async fn until(&mut self, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => Ok(ExitCode::SUCCESS),
            Some(ended) = self.tasks.join_next() => Err(why(ended)),
        };
        stop.cancel();
        result
    }

    /// Ends the tasks and waits for them. What fails meanwhile is logged.
    pub async fn finish(mut self) {
        self.end.cancel();
        while let Some(ended) = self.tasks.join_next().await {
            if !matches!(ended, Ok((_, Ok(())))) {
                warn!("while stopping: {}", with_causes(why(ended).as_ref()));
            }
        }
    }
}

/// Why the end of a task ends the process.
fn why(ended: Result<(&'static str, anyhow::Result<()>), JoinError>) -> anyhow::Error {
    match ended {
        Ok((name, Ok(()))) => anyhow!("`{name}` has ended, and the process is useless without it"),
        Ok((name, Err(error))) => error.context(format!("`{name}` has failed")),
        Err(error) => anyhow!(error).context("an essential task has panicked"),
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    fn until_the_end(lifecycle: &mut Lifecycle) {
        lifecycle.spawn("patient", |end| async move { end.cancelled().await });
    }

    #[tokio::test]
    async fn a_process_that_is_asked_to_stop_succeeds_and_its_tasks_outlast_the_drain() {
        let (mut lifecycle, stop) = (Lifecycle::default(), CancellationToken::new());
        until_the_end(&mut lifecycle);
        lifecycle.fail_by("connection", pending());
        stop.cancel();
        lifecycle.until(&stop).await.expect("a success");
        assert!(!lifecycle.end().is_cancelled());
        assert_eq!(lifecycle.tasks.len(), 2);
        lifecycle.finish().await;
    }

    #[tokio::test]
    async fn a_task_that_ends_fails_the_process_by_name_and_begins_the_drain() {
        let (mut lifecycle, stop) = (Lifecycle::default(), CancellationToken::new());
        until_the_end(&mut lifecycle);
        lifecycle.spawn("heartbeat", |_| async {});
        let error = lifecycle.until(&stop).await.expect_err("an error");
        assert!(error.to_string().contains("`heartbeat` has ended"), "{error}");
        assert!(stop.is_cancelled());
        lifecycle.finish().await;
    }

    #[tokio::test]
    async fn a_reason_that_comes_fails_the_process_with_its_words() {
        let (mut lifecycle, stop) = (Lifecycle::default(), CancellationToken::new());
        lifecycle.fail_by("connection", async { anyhow!("closed for good") });
        let error = lifecycle.until(&stop).await.expect_err("an error");
        assert_eq!(with_causes(error.as_ref()), "`connection` has failed: closed for good");
        lifecycle.finish().await;
    }
}
