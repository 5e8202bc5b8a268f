//! New jobs as the statements take them that insert them.

use job::{JobId, JobSpec, TraceId};
use tokio_postgres::types::ToSql;
use uuid::Uuid;

/// A column each.
pub(crate) struct Columns<'a> {
    pub(crate) jobs: Vec<Uuid>,
    sessions: Vec<&'a str>,
    agents: Vec<&'a str>,
    users: Vec<Option<&'a str>>,
    pools: Vec<&'a str>,
    messages: Vec<String>,
    deadlines: Vec<Option<f64>>,
    traces: Vec<Option<Uuid>>,
}

impl<'a> Columns<'a> {
    pub(crate) fn of(specs: impl Iterator<Item = &'a JobSpec> + Clone) -> Columns<'a> {
        Columns {
            jobs: specs.clone().map(|spec| spec.job_id.into()).collect(),
            sessions: specs.clone().map(|spec| spec.session_id.as_str()).collect(),
            agents: specs.clone().map(|spec| spec.agent_id.as_str()).collect(),
            users: specs.clone().map(|spec| spec.user_id.as_deref()).collect(),
            pools: specs.clone().map(|spec| spec.pool.as_str()).collect(),
            messages: specs.clone().map(job::encode).collect(),
            deadlines: specs.clone().map(|spec| spec.deadline_unix_ms().map(|ms| ms as f64)).collect(),
            traces: specs.map(foreign_trace).collect(),
        }
    }

    pub(crate) fn params(&self) -> [&(dyn ToSql + Sync); 8] {
        let Columns { jobs, sessions, agents, users, pools, messages, deadlines, traces } = self;
        [jobs, sessions, agents, users, pools, messages, deadlines, traces]
    }
}

/// What is kept of a job's trace: nothing, where it is the job's own.
fn foreign_trace(spec: &JobSpec) -> Option<Uuid> {
    foreign(spec.job_id, spec.trace_id())
}

/// The trace, unless it is the job's own.
pub(crate) fn foreign(job_id: JobId, trace_id: TraceId) -> Option<Uuid> {
    (trace_id != job_id.into()).then(|| trace_id.into())
}
