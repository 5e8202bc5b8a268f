//! What the loop needs of tools: those of crate `tools`, opened for an attempt in its session's workspace. What a tool is, and
//! how it runs, is not known here.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use harness::{Meter, RunError, Shortage, Task};
use job::{Failure, FailureCode, SessionKey};
use tools::{
    Call, CallError, Content, Ended, OpenError, Output, Place, Tool, Toolbox, Toolset, is_of_the_session,
    make_workspace,
};

/// The tools of one attempt. Dropping it ends what they run.
#[async_trait]
pub trait Toolkit: Send + Sync {
    /// Returns the tools, sorted by name.
    fn tools(&self) -> &[Tool];

    /// Makes a call. Dropping the future ends it.
    async fn call(&self, call: &Call<'_>) -> Result<Output, CallError>;

    /// Returns what the model has to know besides, each once: such as that a server of tools has started anew.
    fn notices(&self) -> Vec<String>;

    /// Ends what the tools run.
    async fn close(self: Arc<Self>);
}

/// Opens the tools of an attempt.
#[async_trait]
pub trait OpenTools: Send + Sync {
    /// Starts what the tools need. `is_resumed` says that an earlier run of the job may have used them.
    async fn open(
        &self,
        task: &Task,
        meter: &dyn Meter,
        is_resumed: bool,
    ) -> Result<Arc<dyn Toolkit>, RunError>;
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
    async fn open(
        &self,
        task: &Task,
        meter: &dyn Meter,
        is_resumed: bool,
    ) -> Result<Arc<dyn Toolkit>, RunError> {
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
            resumed: is_resumed,
        };
        match Toolbox::open(&self.toolset, &place).await {
            Ok(toolbox) => Ok(Arc::new(Opened(toolbox))),
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

struct Opened(Toolbox);

#[async_trait]
impl Toolkit for Opened {
    fn tools(&self) -> &[Tool] {
        self.0.tools()
    }

    async fn call(&self, call: &Call<'_>) -> Result<Output, CallError> {
        // A run that is stopped drops its calls.
        self.0.call(call, std::future::pending()).await
    }

    fn notices(&self) -> Vec<String> {
        self.0.notices()
    }

    async fn close(self: Arc<Self>) {
        if let Some(Opened(toolbox)) = Arc::into_inner(self) {
            toolbox.close().await;
        }
    }
}

/// Makes the output of a call that was not made, or whose result is not known.
pub(crate) fn not_made(ended: Ended, text: impl Into<String>) -> Output {
    Output { content: vec![Content::Text(text.into())], is_error: true, ended }
}
