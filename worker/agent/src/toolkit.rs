//! What the loop needs of tools: those of crate `tools`, opened for an attempt in its session's workspace. What a tool is, and
//! how it runs, is not known here.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use harness::{Meter, RunError, Shortage, Stop, StopSignal, Stopper, Task};
use job::{Failure, FailureCode, SessionKey};
use tokio::sync::watch;
use tools::{
    Call, CallError, Content, Ended, OpenError, Output, Place, Redaction, Tool, Toolbox, Toolset,
    is_of_the_session, make_workspace,
};

/// The tools of one attempt. Dropping it ends what they run.
#[async_trait]
pub trait Toolkit: Send + Sync {
    /// Returns the tools, sorted by name.
    fn tools(&self) -> &[Tool];

    /// Makes a call; its output is redacted. When the attempt's stop is asked for, it ends as [`CallError::Stopped`], within the time that its tool
    /// has to end. Dropping the future ends it at once.
    async fn call(&self, call: &Call<'_>) -> Result<Output, CallError>;

    /// Returns what the model has to know besides, each once and redacted: such as that a server of tools has started anew.
    fn notices(&self) -> Vec<String>;

    /// Ends what the tools run.
    async fn close(self: Arc<Self>);
}

/// Opens the tools of an attempt.
#[async_trait]
pub trait OpenTools: Send + Sync {
    /// Starts what the tools need.
    async fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Toolkit>, RunError>;
}

/// What the tools of an attempt are opened with.
pub struct Opening<'a> {
    /// The job.
    pub task: &'a Task,
    /// How they may call models.
    pub meter: &'a dyn Meter,
    /// Whether an earlier run of the job may have used them.
    pub is_resumed: bool,
    /// Asks the calls under way to end.
    pub stop: StopSignal,
    /// What is taken out of all that they say, before it is cut.
    pub redaction: Arc<Redaction>,
}

/// The calls of an attempt: asks them to end, and knows whether any is under way.
#[derive(Clone, Default)]
pub(crate) struct Calls {
    stopper: Stopper,
    under_way: watch::Sender<usize>,
}

/// As long as it lives, calls are under way.
pub(crate) struct UnderWay(watch::Sender<usize>);

impl Calls {
    /// Returns the signal that asks them to end.
    pub fn signal(&self) -> StopSignal {
        self.stopper.signal()
    }

    /// Asks those that are under way to end, and lets no other begin. The first reason stands.
    pub fn stop(&self, why: Stop) {
        if self.check().is_ok() {
            self.stopper.ask(why);
        }
    }

    /// Fails once they have been asked to end.
    pub fn check(&self) -> Result<(), Stop> {
        self.stopper.asked().map_or(Ok(()), Err)
    }

    /// Notes that calls are under way, until their results are checkpointed.
    pub fn begin(&self) -> UnderWay {
        self.under_way.send_modify(|count| *count += 1);
        UnderWay(self.under_way.clone())
    }

    /// Resolves when none is under way.
    pub async fn ended(&self) {
        let mut under_way = self.under_way.subscribe();
        // The sender lives as long as this does.
        let _ = under_way.wait_for(|count| *count == 0).await;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// The tools of an agent's table.
pub struct AgentTools {
    toolset: Arc<Toolset>,
    /// Below it each session has its folder.
    workspace_dir: PathBuf,
}

impl AgentTools {
    /// Takes checked tools. Sessions have their folders below `workspace_dir`.
    pub fn new(toolset: Arc<Toolset>, workspace_dir: &Path) -> AgentTools {
        // What a program is told of its folder must hold in that folder.
        let workspace_dir = std::path::absolute(workspace_dir).unwrap_or_else(|_| workspace_dir.to_owned());
        AgentTools { toolset, workspace_dir }
    }
}

#[async_trait]
impl OpenTools for AgentTools {
    async fn open(&self, opening: &Opening<'_>) -> Result<Arc<dyn Toolkit>, RunError> {
        let Opening { task, meter, .. } = *opening;
        let session = SessionKey::new(&task.tenant, &task.session_id);
        let (dir, name) = (self.workspace_dir.clone(), PathBuf::from(session.as_str()));
        let made = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&dir)?;
            make_workspace(&dir, &name)
        });
        let made = made.await.unwrap_or_else(|error| Err(io::Error::other(error)));
        let workspace = made.map_err(|error| no_workspace(&session, &error))?;
        let mut env = vec![
            ("HARNESS_JOB_ID", task.job_id.to_string()),
            ("HARNESS_TENANT", task.tenant.as_str().to_owned()),
            ("HARNESS_SESSION_ID", task.session_id.as_str().to_owned()),
            ("HARNESS_WORKSPACE", workspace.display().to_string()),
            ("HARNESS_EPOCH", task.epoch.to_string()),
        ];
        env.extend(meter.environment());
        env.extend(task.traceparent.map(|place| ("TRACEPARENT", place.to_string())));
        let place = Place {
            workspace,
            env: env.into_iter().map(|(name, value)| (name.into(), value.into())).collect(),
            port: Some(meter.port()),
            resumed: opening.is_resumed,
            redaction: opening.redaction.clone(),
        };
        match Toolbox::open(&self.toolset, &place).await {
            Ok(toolbox) => Ok(Arc::new(Opened { toolbox, stop: opening.stop.clone() })),
            Err(OpenError::Workspace(error)) => Err(no_workspace(&session, &error)),
            Err(OpenError::Shortage(problem)) => Err(Shortage::Resources(problem).into()),
            Err(error @ OpenError::Server { .. }) => {
                Err(Failure::retryable(FailureCode::ToolError, error.to_string()).into())
            }
        }
    }
}

/// Decides whether a folder that cannot be used is the machine's fault or the session's.
fn no_workspace(session: &SessionKey, error: &io::Error) -> RunError {
    let problem = format!("the workspace of session {session}: {error}");
    if is_of_the_session(error) {
        return Failure::retryable(FailureCode::StartFailed, problem).into();
    }
    Shortage::Workspace(problem).into()
}

struct Opened {
    toolbox: Toolbox,
    stop: StopSignal,
}

#[async_trait]
impl Toolkit for Opened {
    fn tools(&self) -> &[Tool] {
        self.toolbox.tools()
    }

    async fn call(&self, call: &Call<'_>) -> Result<Output, CallError> {
        let stop = async {
            self.stop.stopped().await;
        };
        self.toolbox.call(call, stop).await
    }

    fn notices(&self) -> Vec<String> {
        self.toolbox.notices()
    }

    async fn close(self: Arc<Self>) {
        if let Some(opened) = Arc::into_inner(self) {
            opened.toolbox.close().await;
        }
    }
}

/// Makes the output of a call that was not made, or whose result is not known.
pub(crate) fn not_made(ended: Ended, text: impl Into<String>) -> Output {
    Output { content: vec![Content::Text(text.into())], is_error: true, ended }
}
