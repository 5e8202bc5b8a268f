//! A session is folded within a run where most of what lies there is not of its state any more. Nobody sees that: not a
//! worker that goes on after a kill, not the job's result, and not a session that is rolled back.

use job::{JobId, JobSpec, JobState, Json, OnBusy};
use serde_json::{Value, json};
use store::{Ask, Claimed, End, Fold, Unwanted};
use tests::{Database, Fleet, Launch, Runner, claimed, done, folded, job};

/// Says turns of so many bytes; every fourth replaces the context. Waits at the turns in `hang`, in the attempt of their
/// place. Its output is whether each entry that it was given is the one that it has said, to the letter.
const TALKER: &str = r#"#!/usr/bin/env python3
import hashlib, json, sys, time
line = sys.stdin.readline()
order = json.loads(line)
task = order["job"]["input"]
def said(n):
    text = "".join(hashlib.sha256(f"{n} {i}".encode()).hexdigest() for i in range(task["bytes"] // 64))
    return '{"turn":%d, "big":1E5,"a":"%s"}' % (n, text)
done = order["session"]["feature_progress"].get("turns", 0)
entries = order["session"]["context_window"]
letters = all(said(entry["turn"]) in line for entry in entries if "turn" in entry)
for n in range(done, task["turns"]):
    if task.get("hang", [])[order["job"]["attempt"] - 1:][:1] == [n]:
        time.sleep(3600)
    replace = "true" if n % 4 == 0 else "false"
    print('{"type":"checkpoint","iterations":1,"cost_usd":0.01,"context_window":[' + said(n) + '],"replace_context":'
          + replace + ',"feature_progress":{"turns":' + str(n + 1) + '},"memory":{"last":' + str(n) + '}}', flush=True)
print(json.dumps({"type": "result", "output": {"letters": letters, "entries": len(entries)}}), flush=True)
"#;

/// A fleet whose sessions may hold 256 KiB, with at most 1 MiB appended.
struct Talks {
    fleet: Fleet,
    agents: String,
}

impl Talks {
    async fn new() -> Talks {
        let fleet = Fleet::new().await;
        let agents = fleet.agents(&[("talker", &fleet.program("talker.py", TALKER)), ("scripted", "")]);
        Talks { fleet, agents }
    }

    fn worker(&self, name: &str) -> Launch {
        let launch = self.fleet.worker(name).set("AGENTS_FILE", &self.agents);
        launch.set("MAX_SESSION_BYTES", 262_144)
    }

    /// Turns of 32 kB.
    fn turns(&self, turns: usize, hang: &[usize]) -> JobSpec {
        job("s", "talker", json!({"turns": turns, "bytes": 32_768, "hang": hang}))
    }

    async fn folded_within(&self, job: JobId) -> i64 {
        let sql =
            format!("SELECT coalesce(max(folded_iterations), 0) FROM harness_jobs WHERE job_id = '{job}'");
        self.fleet.database.count(&sql).await
    }

    /// Its memory, context and progress.
    async fn state(&self) -> (Value, Vec<String>, Value) {
        let session = self.fleet.session("s").await;
        let context = session.context_window.iter().map(|entry| entry.as_str().to_owned()).collect();
        (session.memory, context, session.feature_progress)
    }
}

fn output(view: &store::JobView) -> Value {
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    serde_json::from_str(view.output.as_ref().expect("an output").as_str()).expect("JSON")
}

#[tokio::test]
async fn a_run_that_was_folded_and_killed_goes_on_to_the_letter_on_another_worker() {
    let talks = Talks::new().await;
    let mut first = talks.worker("first").short_lease().start().await;
    // 3 MB, of which 1 MiB may be appended without a fold.
    let long = talks.turns(90, &[42]);
    talks.fleet.enqueue(std::slice::from_ref(&long)).await;
    let view = talks.fleet.iterated(long.job_id, 42).await;
    assert_eq!((view.iterations, view.cost_usd.micros()), (42, 420_000));
    let within = talks.folded_within(long.job_id).await;
    assert!((30..=42).contains(&within), "{within} turns were folded");
    talks.fleet.database.audited().await;
    first.kill();

    let _second = talks.worker("second").start().await;
    let view = talks.fleet.ended(long.job_id).await;
    assert_eq!(output(&view), json!({"letters": true, "entries": 2}), "after the turns 40 and 41");
    assert_eq!((view.iterations, view.cost_usd.micros()), (90, 900_000));
    let session = talks.fleet.session("s").await;
    assert_eq!((session.iteration_count, session.version, session.context_window.len()), (90, 1, 2));
    let history = talks.fleet.producer(&["sessions", "history", "s", "--json"]).await;
    assert_eq!((history.code, history.out.lines().count(), history.err.as_str()), (0, 90, ""));
    talks.fleet.database.audited().await;
}

#[tokio::test]
async fn a_rollback_after_folds_within_the_run_brings_back_the_session_as_the_job_has_found_it() {
    let talks = Talks::new().await;
    let mut first = talks.worker("first").short_lease().start().await;
    let before = talks.turns(3, &[]);
    talks.fleet.enqueue(std::slice::from_ref(&before)).await;
    talks.fleet.ended(before.job_id).await;
    let found = talks.state().await;
    assert_eq!(found.1.len(), 3);

    // The first attempt folds and is killed; the second goes on, folds and is rolled back.
    let undone = talks.turns(60, &[20, 40]);
    talks.fleet.enqueue(std::slice::from_ref(&undone)).await;
    talks.fleet.iterated(undone.job_id, 17).await;
    let once = talks.folded_within(undone.job_id).await;
    assert!(once > 0);
    first.kill();
    let _second = talks.worker("second").start().await;
    talks.fleet.iterated(undone.job_id, 37).await;
    assert!(talks.folded_within(undone.job_id).await > once);
    talks.fleet.database.audited().await;
    let next = JobSpec { on_busy: OnBusy::Rollback, ..job("s", "scripted", json!({"iterations": []})) };
    talks.fleet.enqueue(std::slice::from_ref(&next)).await;
    let view = talks.fleet.ended(undone.job_id).await;
    assert_eq!((view.state, view.iterations), (JobState::Cancelled, 37));
    talks.fleet.ended(next.job_id).await;
    assert_eq!(talks.state().await, found);
    let session = talks.fleet.session("s").await;
    assert_eq!((session.iteration_count, session.cost_usd.micros()), (40, 400_000), "what it cost stays");
    let undone_rows = "SELECT count(*) FROM harness_history WHERE undone";
    assert_eq!(talks.fleet.database.count(undone_rows).await, 37);
    talks.fleet.database.audited().await;
}

/// A session of the real ledger with one job that runs, whose session was folded within it at the second of three
/// checkpoints. The job before it has left one checkpoint.
struct Within {
    database: Database,
    runner: Runner,
    spec: JobSpec,
    run: Claimed,
}

/// The state of a session, in one word.
fn state_of(word: &str, iterations: u64) -> Fold {
    let [memory, progress] = ["memory", "progress"].map(|of| json!({of: word}).to_string());
    Fold { state: [memory, format!("[\"{word}\"]"), progress], ..folded(iterations) }
}

impl Within {
    async fn new() -> Within {
        let database = Database::new().await;
        let store = database.store();
        let runner = Runner::register(&store).await;
        let first = claimed(runner.claim(&job("s", "echo", json!(1))).await.expect("a claim"));
        done(runner.checkpoint(&first, 0).await.expect("a checkpoint"));
        runner.succeed(&first).await.expect("an end");
        let spec = job("s", "echo", json!(2));
        let run = claimed(runner.claim(&spec).await.expect("a claim"));
        for ordinal in 0..2 {
            done(runner.checkpoint(&run, ordinal).await.expect("a checkpoint"));
        }
        let before = Some(state_of("before", 1).state);
        let call =
            store::RunFold { claim: run.claim.clone(), ordinal: 1, fold: state_of("within", 3), before };
        done(store.fold(call).await.expect("a fold"));
        done(runner.checkpoint(&run, 2).await.expect("a checkpoint"));
        Within { database, runner, spec, run }
    }

    async fn conclude(&self, run: &Claimed, end: End, fold: Option<Fold>) {
        let conclusion = store::Conclusion { fold, ..self.runner.conclusion(run, end) };
        done(self.runner.store.conclude(conclusion).await.expect("an end").recorded);
    }

    /// The word in the session's state, its iterations, and how many checkpoints are left to fold.
    async fn session(&self) -> (String, i64, i64) {
        let state =
            "SELECT coalesce(context_json ->> 0, 'none') || ' ' || coalesce(memory ->> 'memory', 'none')
                         || ' ' || coalesce(feature_progress ->> 'progress', 'none') FROM harness_sessions";
        let iterations = self.database.count("SELECT iteration_count FROM harness_sessions").await;
        let left = self.database.count("SELECT count(*) FROM harness_checkpoints").await;
        (self.database.texts(state).await.remove(0), iterations, left)
    }

    async fn undone(&self) -> i64 {
        self.database.count("SELECT count(*) FROM harness_history WHERE undone").await
    }

    async fn result(&self) -> i64 {
        let sql = format!("SELECT iterations FROM harness_results WHERE job_id = '{}'", self.spec.job_id);
        self.database.count(&sql).await
    }
}

fn cancelled() -> End {
    End::Cancelled(job::Failure::permanent(job::FailureCode::Interrupted, "another job took its place"))
}

#[tokio::test]
async fn a_checkpoint_or_a_fold_that_comes_once_more_after_the_fold_changes_nothing() {
    let within = Within::new().await;
    let (runner, run) = (&within.runner, &within.run);
    let there = within.session().await;
    assert_eq!(there, ("within within within".to_owned(), 3, 1));
    for ordinal in 0..3 {
        done(runner.checkpoint(run, ordinal).await.unwrap());
    }
    for ordinal in 0..2 {
        done(runner.fold(run, ordinal, state_of("stale", 2)).await.unwrap());
    }
    assert_eq!(within.session().await, there);
    within.database.audited().await;

    // The next run numbers its checkpoints anew.
    within.conclude(run, End::HandBack { delay: std::time::Duration::ZERO }, None).await;
    let again = claimed(runner.claim(&within.spec).await.unwrap());
    assert!(again.session.folded_within);
    done(runner.checkpoint(&again, 0).await.unwrap());
    assert_eq!(within.session().await.2, 2);
    assert_eq!(runner.fold(run, 2, state_of("stale", 4)).await.unwrap(), store::Fenced::Lost);
    within.conclude(&again, End::Succeeded(Json::null()), None).await;
    assert_eq!(within.result().await, 4);
    within.database.audited().await;
    let next = claimed(runner.claim(&job("s", "echo", json!(3))).await.unwrap());
    assert!(!next.session.folded_within);
    within.conclude(&next, End::Succeeded(Json::null()), Some(state_of("folded", 5))).await;
    assert_eq!(within.session().await, ("folded folded folded".to_owned(), 5, 0));
    within.database.audited().await;
}

#[tokio::test]
async fn a_worker_that_rolls_back_a_job_that_was_folded_before_gets_the_ledgers_state() {
    let within = Within::new().await;
    within.conclude(&within.run, End::HandBack { delay: std::time::Duration::ZERO }, None).await;
    let again = claimed(within.runner.claim(&within.spec).await.unwrap());
    let undone = Fold { undone: true, ..state_of("guessed", 4) };
    within.conclude(&again, cancelled(), Some(undone)).await;
    assert_eq!(within.session().await, ("before before before".to_owned(), 4, 0));
    assert_eq!((within.result().await, within.undone().await), (3, 3), "the first job's is not among them");
    within.database.audited().await;
}

#[tokio::test]
async fn a_job_that_waits_for_a_person_is_rolled_back_behind_its_folds() {
    let within = Within::new().await;
    let asks = job::InputRequest {
        call_id: "c".parse().unwrap(),
        kind: job::InputKind::Question,
        content: Json::null(),
        timeout: None,
    };
    within.conclude(&within.run, End::Asks(vec![asks]), None).await;
    let next = job("s", "echo", json!(3));
    let store = &within.runner.store;
    store.accept(std::slice::from_ref(&next)).await.unwrap();
    store.make_room(&[(next.job_id, Ask::Rollback)]).await.unwrap();
    let ended = store.end_waiting(&[within.spec.job_id], Unwanted::RolledBack).await.unwrap();
    assert_eq!(ended.len(), 1);
    assert_eq!(within.session().await, ("before before before".to_owned(), 4, 0));
    assert_eq!((within.result().await, within.undone().await), (3, 3));
    within.database.audited().await;
}

#[tokio::test]
async fn an_audit_finds_a_job_that_does_not_fit_what_was_folded_within_its_run() {
    let within = Within::new().await;
    let found = async |change: &str| {
        within.database.execute(change).await;
        let audit = within.database.audit().await;
        let named = audit.checks.iter().filter(|checked| checked.found > 0);
        named.map(|checked| checked.check.to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(found("SELECT 1").await, [""; 0]);
    assert_eq!(found("UPDATE harness_jobs SET before_memory = NULL").await, ["folds"]);
    assert_eq!(found("UPDATE harness_jobs SET before_memory = '{}', folded_ordinal = 0").await, ["folds"]);
    let counted = "UPDATE harness_jobs SET folded_ordinal = 1, folded_iterations = 1";
    assert_eq!(found(counted).await, ["spend", "folds"]);
}

#[tokio::test]
async fn a_job_that_is_cancelled_between_two_attempts_keeps_what_was_folded_within_its_run() {
    let within = Within::new().await;
    let later = End::HandBack { delay: std::time::Duration::from_secs(60) };
    within.conclude(&within.run, later, None).await;
    within.runner.store.cancel("a test", &[within.spec.job_id]).await.unwrap();
    assert_eq!(within.session().await, ("within within within".to_owned(), 3, 1));
    assert_eq!((within.result().await, within.undone().await), (3, 0));
    within.database.audited().await;
}
