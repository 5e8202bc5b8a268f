//! A session without bounds, and an end that Postgres refuses, cost their own job and no other. No outcome is paid for
//! twice because it could not be recorded, and no neighbour waits for it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use job::{FailureCode, JobSpec, JobState, OnBusy};
use serde_json::{Value, json};
use tests::{Fleet, Runner, claimed, job, older_worker, until};

/// Writes checkpoints of the size in its input, at one cent each, and records that it has run.
const TALKER: &str = r#"#!/usr/bin/env python3
import json, os, sys
order = json.loads(sys.stdin.readline())
task = order["job"]["input"]
with open(task["runs"], "a") as runs:
    runs.write("run\n")
def say(**message):
    print(json.dumps(message), flush=True)
for n in range(task.get("count", 0)):
    say(type="checkpoint", iterations=1, context_window=[os.urandom(task["bytes"] // 2).hex()], cost_usd=0.01,
        replace_context=task.get("replace", False), feature_progress={"done": n})
    if sys.stdin.closed:
        break
say(type="result", output={"entries": len(order["session"]["context_window"])})
"#;

struct Talk {
    fleet: Fleet,
    agents: String,
    runs: PathBuf,
}

impl Talk {
    async fn new() -> Talk {
        let fleet = Fleet::new().await;
        let agents = fleet.agents(&[("talker", &fleet.program("talker.py", TALKER)), ("echo", "")]);
        let runs = fleet.folder.path().join("runs");
        Talk { fleet, agents, runs }
    }

    fn worker(&self) -> tests::Launch {
        self.fleet.worker("worker").set("AGENTS_FILE", &self.agents)
    }

    fn job(&self, session: &str, input: Value) -> JobSpec {
        let mut input = input;
        input["runs"] = json!(self.runs);
        job(session, "talker", input)
    }

    fn runs(&self) -> usize {
        lines(&self.runs)
    }

    /// Makes Postgres refuse ends with this SQLSTATE while the condition holds for the new result.
    async fn refuse(&self, when: &str, sqlstate: &str) {
        let sql = format!(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                 IF NEW.session_id = 'bad' AND {when} THEN RAISE 'not in here: é' USING ERRCODE = '{sqlstate}'; END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER refuse BEFORE INSERT ON harness_results FOR EACH ROW EXECUTE FUNCTION refuse()"
        );
        self.fleet.database.execute(&sql).await;
    }

    async fn refuse_no_more(&self) {
        self.fleet.database.execute("DROP TRIGGER refuse ON harness_results").await;
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

/// The number of context entries that a job found.
fn entries(view: store::JobView) -> usize {
    let output: Value = serde_json::from_str(view.output.expect("an output").as_str()).expect("JSON");
    output["entries"].as_u64().expect("a number") as usize
}

fn neighbours(count: usize) -> Vec<JobSpec> {
    (0..count).map(|n| job(&format!("good-{n}"), "echo", json!(n))).collect()
}

#[tokio::test]
async fn a_session_that_grows_without_end_fails_its_job_and_can_be_made_smaller_by_the_next() {
    let talk = Talk::new().await;
    let _worker = talk.worker().set("MAX_SESSION_BYTES", 1 << 20).start().await;
    let growing = talk.job("s", json!({"count": 40, "bytes": 100_000}));
    let compacting = talk.job("s", json!({"count": 15, "bytes": 100_000, "replace": true}));
    let after = talk.job("s", json!({}));
    let good = neighbours(20);
    talk.fleet.enqueue(&[growing.clone(), compacting.clone(), after.clone()]).await;
    talk.fleet.enqueue(&good).await;

    let view = talk.fleet.ended(growing.job_id).await;
    let failure = view.failure.clone().expect("a failure");
    assert_eq!((view.state, view.attempts, failure.code), (JobState::Failed, 1, FailureCode::OutputLimit));
    assert!(failure.message.contains("MAX_SESSION_BYTES"), "{failure}");
    // Ten are recorded, and the eleventh was paid for too.
    assert_eq!((view.iterations, view.cost_usd.micros()), (10, 110_000), "{view:?}");
    let view = talk.fleet.ended(compacting.job_id).await;
    assert_eq!((view.state, view.iterations), (JobState::Succeeded, 15), "{view:?}");
    let view = talk.fleet.ended(after.job_id).await;
    assert_eq!(entries(view), 1);
    talk.fleet.undisturbed(&good).await;
    assert_eq!(talk.runs(), 3);
    talk.fleet.database.audited().await;
}

/// The schema of the release before folds within a run.
const OLDER: i64 = 25;

#[tokio::test]
async fn what_is_appended_has_a_bound_where_an_older_worker_is_in_the_way_of_folds_within_a_run() {
    let talk = Talk::new().await;
    talk.fleet.database.execute(&older_worker(OLDER)).await;
    let _worker = talk.worker().set("MAX_SESSION_BYTES", 65_536).start().await;
    let endless = talk.job("s", json!({"count": 100, "bytes": 30_000, "replace": true}));
    talk.fleet.enqueue(std::slice::from_ref(&endless)).await;
    let view = talk.fleet.ended(endless.job_id).await;
    let failure = view.failure.clone().expect("a failure");
    assert_eq!((view.state, failure.code, view.iterations), (JobState::Failed, FailureCode::OutputLimit, 8));
    let next = talk.job("s", json!({"count": 3, "bytes": 30_000, "replace": true}));
    talk.fleet.enqueue(std::slice::from_ref(&next)).await;
    assert_eq!(talk.fleet.ended(next.job_id).await.state, JobState::Succeeded, "its end has made room");
}

#[tokio::test]
async fn an_end_costs_what_was_added_and_not_what_lies_there() {
    const JOBS: usize = 20;
    // Each entry is too short for a blob.
    const LARGE: usize = 40;
    let talk = Talk::new().await;
    let _worker = talk.worker().start().await;
    let large = talk.job("s", json!({"count": LARGE, "bytes": 50_000}));
    talk.fleet.enqueue(std::slice::from_ref(&large)).await;
    assert_eq!(talk.fleet.ended(large.job_id).await.state, JobState::Succeeded);
    // Vacuum would make the space of old versions reusable.
    let held = async || {
        let size = "SELECT sum(pg_relation_size(reltoastrelid))::bigint FROM pg_class
                     WHERE oid IN ('harness_sessions'::regclass, 'harness_checkpoints'::regclass)";
        talk.fleet.database.count(size).await
    };
    for table in ["harness_sessions", "harness_checkpoints"] {
        let sql = format!("ALTER TABLE {table} SET (toast.autovacuum_enabled = false)");
        talk.fleet.database.execute(&sql).await;
    }
    let before = held().await;
    let small: Vec<_> = (0..JOBS).map(|_| talk.job("s", json!({"count": 1, "bytes": 1_000}))).collect();
    talk.fleet.enqueue(&small).await;
    for (n, spec) in small.iter().enumerate() {
        let view = talk.fleet.ended(spec.job_id).await;
        assert_eq!((view.state, view.iterations), (JobState::Succeeded, 1), "{view:?}");
        assert_eq!(entries(view), LARGE + n, "nothing of it is lost");
    }
    assert!(before > 1_000_000, "{before} bytes of a session of two million");
    let written = held().await - before;
    assert!(written < before, "{written} bytes were written by the ends of {JOBS} small jobs");
    // The rollback undoes one of the jobs, and nothing else.
    let session = talk.fleet.session("s").await;
    assert_eq!((session.iteration_count, session.version), ((LARGE + JOBS) as i64, 1 + JOBS as i64));
    talk.fleet.database.audited().await;
}

#[tokio::test]
async fn a_rollback_undoes_its_job_alone_where_earlier_ones_are_not_folded() {
    let talk = Talk::new().await;
    let _worker = talk
        .worker()
        .set(
            "AGENTS_FILE",
            talk.fleet.agents(&[("talker", &talk.fleet.program("talker.py", TALKER)), ("scripted", "")]),
        )
        .start()
        .await;
    let large = talk.job("s", json!({"count": 1, "bytes": 300_000}));
    let small = talk.job("s", json!({"count": 2, "bytes": 1_000}));
    talk.fleet.enqueue(&[large, small.clone()]).await;
    assert_eq!(talk.fleet.ended(small.job_id).await.state, JobState::Succeeded);
    let undone = job("s", "scripted", json!({"iterations": [{"say": "undone"}, {"delay_ms": 60_000}]}));
    talk.fleet.enqueue(std::slice::from_ref(&undone)).await;
    talk.fleet.iterated(undone.job_id, 1).await;
    let next = JobSpec { on_busy: OnBusy::Rollback, ..talk.job("s", json!({})) };
    talk.fleet.enqueue(std::slice::from_ref(&next)).await;
    let view = talk.fleet.ended(next.job_id).await;
    assert_eq!(entries(view), 3);
    assert_eq!(talk.fleet.ended(undone.job_id).await.state, JobState::Cancelled);
    talk.fleet.database.audited().await;
}

#[tokio::test]
async fn an_outcome_is_kept_until_the_ledger_takes_it() {
    let talk = Talk::new().await;
    talk.refuse("true", "P0001").await;
    let worker = talk.worker().start().await;
    let bad = talk.job("bad", json!({"count": 1, "bytes": 100}));
    let good = neighbours(20);
    talk.fleet.enqueue(std::slice::from_ref(&bad)).await;
    talk.fleet.enqueue(&good).await;
    worker.said("recording a job's end failed").await;
    talk.fleet.undisturbed(&good).await;
    talk.refuse_no_more().await;
    let view = talk.fleet.ended(bad.job_id).await;
    assert_eq!((view.state, view.attempts, talk.runs()), (JobState::Succeeded, 1, 1), "{view:?}");
    talk.fleet.database.audited().await;
}

#[tokio::test]
async fn an_end_that_is_too_much_for_postgres_is_recorded_as_unstorable_and_holds_up_nobody() {
    let talk = Talk::new().await;
    // Like a statement that never ends in time.
    talk.refuse("NEW.state = 'succeeded'", "57014").await;
    let _worker = talk.worker().short_lease().set("WORKER_SLOTS", 2).start().await;
    let bad = talk.job("bad", json!({"count": 1, "bytes": 100}));
    let next = talk.job("bad", json!({}));
    let good = neighbours(40);
    talk.fleet.enqueue(&[bad.clone(), next.clone()]).await;
    talk.fleet.enqueue(&good).await;
    talk.fleet.undisturbed(&good).await;
    for spec in [&bad, &next] {
        let view = talk.fleet.ended(spec.job_id).await;
        let failure = view.failure.clone().expect("a failure");
        assert_eq!((view.state, view.attempts, failure.code), (JobState::Failed, 1, FailureCode::Unstorable));
        assert!(failure.message.is_ascii(), "{failure}");
    }
    assert_eq!(talk.runs(), 2, "each has run once");
    talk.fleet.database.audited().await;
}

#[tokio::test]
async fn a_job_whose_end_cannot_be_recorded_at_all_is_not_run_beyond_its_attempts() {
    let talk = Talk::new().await;
    talk.refuse("true", "54000").await;
    let _worker = talk.worker().short_lease().start().await;
    let mut bad = talk.job("bad", json!({"count": 1, "bytes": 100}));
    bad.retry.max_attempts = 2;
    talk.fleet.enqueue(std::slice::from_ref(&bad)).await;
    // It is handed back twice after it has run, and once more without running.
    let beyond = async || (talk.fleet.view(bad.job_id).await?.attempts >= 3).then_some(());
    until("no attempt is left", beyond).await;
    assert_eq!(talk.runs(), 2);
    talk.refuse_no_more().await;
    let view = talk.fleet.ended(bad.job_id).await;
    assert_eq!((view.state, talk.runs()), (JobState::Failed, 2), "{view:?}");
    talk.fleet.database.audited().await;
}

#[tokio::test]
async fn one_job_that_the_ledger_cannot_hold_keeps_no_other_of_its_file_out() {
    let fleet = Fleet::new().await;
    let check = "ALTER TABLE harness_jobs ADD CONSTRAINT bad CHECK (session_id <> 'bad')";
    fleet.database.execute(check).await;
    let jobs =
        [job("good-1", "echo", json!(1)), job("bad", "echo", json!(2)), job("good-2", "echo", json!(3))];
    let lines: Vec<String> = jobs.iter().map(job::encode).collect();
    let ran = fleet.producer_with_input(&lines.join("\n"), &["enqueue", "--file", "-"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("2 jobs accepted, 0 accepted before, 1 lines refused"), "{ran:?}");
    assert!(ran.err.contains(&jobs[1].job_id.to_string()), "{ran:?}");
    let there = fleet.database.texts("SELECT session_id FROM harness_jobs ORDER BY 1").await;
    assert_eq!(there, ["good-1", "good-2"]);
}

#[tokio::test]
async fn one_job_that_cannot_be_ended_keeps_no_other_from_its_end() {
    let talk = Talk::new().await;
    talk.refuse("true", "23514").await;
    let jobs = ["bad", "good-1", "good-2"]
        .map(|session| JobSpec { deadline_ms: Some(1), ..job(session, "echo", json!(null)) });
    talk.fleet.store.accept(&jobs).await.expect("accepted");
    let _relay = talk.fleet.relay("relay").launch();
    for spec in &jobs[1..] {
        let view = talk.fleet.ended(spec.job_id).await;
        assert_eq!(view.failure.expect("a failure").code, FailureCode::DeadlineExceeded);
    }
}

#[tokio::test]
async fn a_locked_session_keeps_no_other_from_being_rescued() {
    let fleet = Fleet::new().await;
    let dying = Runner::with_lease(&fleet.store, Duration::from_secs(1)).await;
    for session in ["held", "free-1", "free-2"] {
        claimed(dying.claim(&job(session, "echo", json!(null))).await.unwrap());
    }
    let mut holding = fleet.database.connect().await;
    let lock =
        "SELECT count(*) FROM (SELECT FROM harness_sessions WHERE session_id = 'held' FOR UPDATE) held";
    sqlx::raw_sql("BEGIN").execute(&mut holding).await.unwrap();
    sqlx::raw_sql(lock).execute(&mut holding).await.unwrap();
    let _relay = fleet.relay("relay").launch();
    let rescued = "SELECT count(*) FROM harness_jobs WHERE session_id LIKE 'free%' AND attempts = 1";
    until("the others are rescued", async || (fleet.database.count(rescued).await == 2).then_some(())).await;
    let held = "SELECT count(*) FROM harness_jobs WHERE session_id = 'held' AND state = 'running'";
    assert_eq!(fleet.database.count(held).await, 1);
    sqlx::raw_sql("ROLLBACK").execute(&mut holding).await.unwrap();
    let rescued = "SELECT count(*) FROM harness_jobs WHERE session_id = 'held' AND attempts = 1";
    until("it is rescued as well", async || (fleet.database.count(rescued).await == 1).then_some(())).await;
}
