//! Agents on real workers, one for each wire, and a provider that plays what it is told.

use std::fs::{read, read_dir, read_to_string};
use std::path::PathBuf;

use job::{JobId, JobSpec, JobState};
use nix::errno::Errno;
use nix::sys::signal::killpg;
use nix::unistd::{Pid, getpgid};
use serde_json::json;
use store::JobView;
use tests::provider::{FindingKind, PROVIDER_KEY, Provider, Script};
use tests::{Fleet, Launch, job, until, until_ok};

/// An agent for each wire.
pub const AGENTS: [&str; 3] = ["messages", "chat", "responses"];

/// Notes the key of its call, and waits behind that until it may go on, if its input says so.
const TOOL: &str = r#"#!/bin/sh
input=$(cat)
echo "$HARNESS_CALL_KEY" >> "$FOLDER/notes.$HARNESS_SESSION_ID"
case $input in *halt*)
    : > "$FOLDER/halted.$HARNESS_JOB_ID"
    while [ ! -e "$FOLDER/go" ]; do sleep 0.1; done ;;
esac
echo noted
"#;

/// A fleet with a provider that plays these plays, and agents with a tool.
pub struct Desk {
    pub fleet: Fleet,
    pub provider: Provider,
}

impl Desk {
    pub async fn new(plays: &str) -> Desk {
        let script = Script::parse(&format!("{{\"plays\": {{{plays}}}}}")).expect("a script");
        Desk { fleet: Fleet::new().await, provider: Provider::playing(script).await }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.fleet.folder.path().join(name)
    }

    /// A worker to be started, whose agents have this in their tables as well, behind the table of their tool.
    pub fn worker(&self, name: &str, more: &str) -> Launch {
        self.worker_with(name, "", more)
    }

    /// As `worker`, with this in the agents' own tables.
    pub fn worker_with(&self, name: &str, own: &str, more: &str) -> Launch {
        let tool = self.fleet.program("note", TOOL);
        let agents = AGENTS.map(|agent| {
            let (model, api) = match agent {
                "messages" => ("claude-opus-5-5", ""),
                "chat" => ("gpt-6-sol", ""),
                _ => ("gpt-6-sol", "openai_api = \"responses\"\n"),
            };
            let folder = self.fleet.folder.path();
            let more = more.replace("AGENT", agent);
            format!(
                "[agents.{agent}]\nharness = \"agent\"\nmodels = [{model:?}]\n{api}max_output_tokens = 200\n\
                 sandbox = {{ level = \"off\" }}\n{own}\n\
                 [agents.{agent}.tools.note]\ncommand = [{tool:?}]\ndescription = \"Notes.\"\n\
                 env = {{ FOLDER = {folder:?} }}\n\
                 input_schema = {{ type = \"object\", properties = {{ say = {{ type = \"string\" }} }} }}\n{more}\n"
            )
        });
        std::fs::write(self.file("agents.toml"), agents.concat()).expect("written");
        let launch = self.fleet.worker(name).set("AGENTS_FILE", self.file("agents.toml").display());
        let launch =
            launch.set("OPENAI_API_KEY", PROVIDER_KEY).set("OPENAI_BASE_URL", self.provider.base_url());
        launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", self.provider.base_url())
    }

    /// Waits until the tool of each job is in its call.
    pub async fn halted(&self, jobs: &[JobSpec]) {
        for spec in jobs {
            let file = self.file(&format!("halted.{}", spec.job_id));
            until("a job is in its tool", async || file.exists().then_some(())).await;
        }
    }

    /// Waits until so many answers of a job are in its checkpoints, whose tools may be at work.
    pub async fn answered(&self, job_id: JobId, answers: usize) {
        let of_answers = "SELECT count(*) FROM harness_checkpoints WHERE output_tokens > 0";
        let count = format!("{of_answers} AND job_id = '{job_id}'");
        let are_there = async || (self.fleet.database.count(&count).await >= answers as i64).then_some(());
        until(&format!("{job_id} has {answers} answers"), are_there).await;
    }

    /// Lets all tools go on.
    pub fn go(&self) {
        std::fs::write(self.file("go"), "").expect("written");
    }

    /// How often the tool was run in a session. No call may have run twice.
    pub fn notes(&self, session: &str) -> usize {
        let text = read_to_string(self.file(&format!("notes.{session}"))).unwrap_or_default();
        let mut keys: Vec<&str> = text.lines().collect();
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all, "a call of the tool ran twice in {session}");
        all
    }

    pub async fn calls_of(&self, job_id: JobId, state: &str) -> i64 {
        let of_job = format!("FROM harness_calls WHERE job_id = '{job_id}' AND state = '{state}'");
        self.fleet.database.count(&format!("SELECT count(*) {of_job}")).await
    }

    /// What the ledger counts for a job, in micro-dollars.
    pub async fn counted(&self, job_id: JobId) -> i64 {
        let sum = "SELECT coalesce(sum(cost_microusd), 0)::bigint FROM harness_calls";
        self.fleet.database.count(&format!("{sum} WHERE job_id = '{job_id}'")).await
    }

    /// Waits for a job's end, which is its play's last answer, after so many attempts.
    pub async fn done(&self, spec: &JobSpec, attempts: i32) -> JobView {
        let view = self.fleet.ended(spec.job_id).await;
        let ended = (view.state, view.attempts, output(&view));
        assert_eq!(ended, (JobState::Succeeded, attempts, "\"Done.\""), "{view:?}");
        view
    }

    /// All that the model of a job's session has read and said.
    pub async fn said(&self, spec: &JobSpec) -> String {
        let session = self.fleet.session(spec.session_id.as_str()).await;
        session.context_window.iter().map(job::Json::as_str).collect()
    }

    /// Checks that everything was extended to the letter, and nothing paid twice.
    pub async fn nothing_is_wrong(&self) {
        assert!(!self.provider.charged().iter().any(|call| call.again), "an answer is paid again");
        self.all_is_counted().await;
    }

    /// Checks that the double has found nothing, and that nothing it has worked is missing in the ledger.
    pub async fn all_is_counted(&self) {
        assert!(self.provider.findings().is_empty(), "{:#?}", self.provider.findings());
        self.bill_is_counted().await;
    }

    /// As [`Desk::nothing_is_wrong`], where answers were given up: the session goes on without them, and they are paid.
    pub async fn nothing_is_wrong_but_given_up(&self) {
        assert!(!self.provider.charged().iter().any(|call| call.again), "an answer is paid again");
        let findings = self.provider.findings();
        assert!(findings.iter().all(|finding| finding.kind == FindingKind::LeftOut), "{findings:#?}");
        self.bill_is_counted().await;
    }

    async fn bill_is_counted(&self) {
        let counted = "SELECT coalesce(sum(cost_microusd), 0)::bigint FROM harness_calls";
        assert!(self.provider.bill_micros() as i64 <= self.fleet.database.count(counted).await);
        self.fleet.database.audited().await;
    }
}

pub fn jobs(play: &str) -> Vec<JobSpec> {
    let said = |agent: &&str| json!(format!("Do it for {agent}. play:{play}"));
    AGENTS.iter().map(|agent| job(&format!("s-{agent}"), agent, said(agent))).collect()
}

pub fn output(view: &JobView) -> &str {
    view.output.as_ref().map_or("", job::Json::as_str)
}

/// Waits until no process of a job lives.
pub async fn nothing_runs_for(job_id: JobId) {
    nothing_runs_with("HARNESS_JOB_ID", &job_id.to_string()).await;
}

/// Waits until no process lives that was given this variable.
pub async fn nothing_runs_with(name: &str, value: &str) {
    let look = async || match processes_with(name, value) {
        living if living.is_empty() => Ok(()),
        living => Err(living),
    };
    until_ok(&format!("no process lives that has {name}={value}"), look).await;
}

/// Every living process that was given this variable, or inherited it.
pub fn processes_with(name: &str, value: &str) -> Vec<Pid> {
    let mark = format!("{name}={value}");
    let entries = read_dir("/proc").expect("processes").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has_mark = |pid: &i32| {
        // A process that has ended has no environment any more.
        let environ = read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    pids.filter(has_mark).map(Pid::from_raw).collect()
}

/// The process groups of these, none of which is ours.
pub fn groups_of(processes: &[Pid]) -> Vec<Pid> {
    let groups: Vec<Pid> = processes.iter().filter_map(|pid| getpgid(Some(*pid)).ok()).collect();
    let own = getpgid(None).expect("our own group");
    assert!(groups.len() == processes.len() && !groups.contains(&own), "{groups:?} and {own}");
    groups
}

/// Waits until these process groups have no member.
pub async fn groups_are_gone(groups: &[Pid]) {
    let lives = |group: &&Pid| killpg(**group, None) != Err(Errno::ESRCH);
    let look = async || match groups.iter().find(lives) {
        Some(group) => Err(*group),
        None => Ok(()),
    };
    until_ok("a process group is gone", look).await;
}
