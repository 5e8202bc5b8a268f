//! The harness that returns its input: for trying out a job's path, and for measuring it.

use async_trait::async_trait;
use job::Json;
use serde::{Deserialize, Serialize};

use crate::{Harness, Run, RunError};

/// The settings of `harness = "echo"`: none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EchoConfig {}

/// Returns the input at once, without a checkpoint.
pub struct Echo;

#[async_trait]
impl Harness for Echo {
    async fn run(&self, run: &mut Run) -> Result<Json, RunError> {
        Ok(run.task().input.clone())
    }
}
