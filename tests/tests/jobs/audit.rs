//! An audit finds what is wrong in the ledger and names it. It gives no false alarm, neither after a mixed history nor
//! while a fleet works. A ledger under its own rules is clean, so every finding here is produced by hand.

use std::time::Duration;

use futures::StreamExt;
use job::{Failure, FailureCode, JobId, JobSpec, Json, OnBusy};
use serde_json::json;
use sqlx::Connection;
use store::{Answer, Audit, AuditScope, Cancelled, Claimed, End, Fenced, Fold, Kind, Store, Unwanted};
use tests::{Database, Fleet, Runner, claimed, declare_dead, folded, job, until};
use uuid::Uuid;

/// The findings of an audit: each check with the ids that it names.
fn findings(audit: &Audit) -> Vec<(&str, Vec<&str>)> {
    let named = audit.checks.iter().filter(|checked| checked.found > 0);
    named
        .map(|checked| (checked.check, checked.offenders.iter().map(|row| row.id.as_str()).collect()))
        .collect()
}

async fn claim(runner: &Runner, spec: &JobSpec, checkpoints: i32) -> Claimed {
    let run = claimed(runner.claim(spec).await.expect("an answer"));
    for ordinal in 0..checkpoints {
        assert_eq!(runner.checkpoint(&run, ordinal).await.expect("an answer"), Fenced::Done(()));
    }
    run
}

async fn conclude(runner: &Runner, run: &Claimed, end: End, fold: Option<Fold>) {
    let conclusion = store::Conclusion { fold, ..runner.conclusion(run, end) };
    let concluded = runner.store.conclude(conclusion).await.expect("an answer");
    assert_eq!(concluded.recorded, Fenced::Done(()));
}

fn failure() -> Failure {
    Failure::retryable(FailureCode::HarnessError, "weather")
}

#[tokio::test]
async fn every_step_of_a_mixed_history_is_clean() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let clean = async |step: &str| assert_eq!(findings(&database.audit().await), [], "{step}");
    clean("an empty ledger").await;

    let jobs: Vec<JobSpec> = (0..5).map(|n| job("s", "echo", json!(n))).collect();
    store.accept(&jobs).await.unwrap();
    clean("accepted, without a session").await;
    let run = claim(&runner, &jobs[0], 2).await;
    assert!(matches!(runner.claim(&jobs[1]).await.unwrap(), Answer::Blocked));
    clean("one runs, one is blocked").await;
    conclude(&runner, &run, End::HandBack { delay: Duration::ZERO }, None).await;
    clean("handed back").await;
    let run = claim(&runner, &jobs[0], 1).await;
    conclude(&runner, &run, End::Retry { failure: failure(), delay: Duration::ZERO }, None).await;
    clean("to be tried again").await;
    let run = claim(&runner, &jobs[0], 3).await;
    conclude(&runner, &run, End::Failed(failure()), None).await;
    clean("ended without a fold: its checkpoints are left").await;
    // That conclusion also claimed the blocked job.
    let run = claim(&runner, &jobs[1], 2).await;
    clean("another runs on top of what was left").await;
    conclude(&runner, &run, End::Succeeded(Json::null()), Some(folded(8))).await;
    clean("and folds it with its own").await;
    assert_eq!(database.count("SELECT count(*) FROM harness_checkpoints").await, 0);

    // The job ends between two attempts.
    let run = claim(&runner, &jobs[2], 2).await;
    conclude(&runner, &run, End::Retry { failure: failure(), delay: Duration::from_secs(60) }, None).await;
    let (answers, _) = store.cancel("a test", &[jobs[2].job_id]).await.unwrap();
    assert_eq!(answers, [Cancelled::Now]);
    clean("cancelled between two attempts").await;
    let run = claim(&runner, &jobs[3], 1).await;
    store.cancel("a test", &[jobs[3].job_id, jobs[4].job_id]).await.unwrap();
    clean("one is asked to stop, one is cancelled while it waits").await;
    conclude(&runner, &run, End::Cancelled(failure()), Some(folded(11))).await;
    clean("cancelled while it ran").await;

    let unseen = job("nowhere", "echo", json!(1));
    store.cancel("a test", &[unseen.job_id]).await.unwrap();
    clean("cancelled before it was seen").await;
    assert!(matches!(runner.claim(&unseen).await.unwrap(), Answer::Finished(_)));
    clean("and its message came").await;
    let overdue = JobSpec { deadline_ms: Some(1), ..job("late", "echo", json!(1)) };
    store.accept(std::slice::from_ref(&overdue)).await.unwrap();
    let ended =
        async || store.end_waiting(&[overdue.job_id], Unwanted::Overdue).await.unwrap().pop().map(drop);
    until("its deadline passes", ended).await;
    clean("overdue, before its first claim").await;

    let dying = Runner::with_lease(&store, Duration::from_millis(1)).await;
    let spec = job("t", "echo", json!(1));
    claim(&dying, &spec, 2).await;
    let declared = async || (!declare_dead(&store).await.is_empty()).then_some(());
    until("its lease is over", declared).await;
    clean("the worker is dead").await;
    assert_eq!(store.rescue().await.unwrap(), [spec.job_id]);
    clean("the job is rescued").await;
    let run = claim(&runner, &spec, 1).await;
    conclude(&runner, &run, End::Succeeded(Json::null()), Some(folded(3))).await;
    clean("and ended elsewhere").await;
}

#[tokio::test]
async fn sessions_outlive_their_results_and_their_spend_stays_right() {
    let database = Database::empty().await;
    database.migrate().await;
    let store = database.store();
    let maintain = async |days: u64| {
        store.maintain_partitions(Duration::from_secs(days * 86_400)).await.unwrap().unwrap()
    };
    maintain(100).await;
    let runner = Runner::register(&store).await;
    let now = Uuid::from(JobId::now()).as_u128();
    let long_ago = JobId::try_from(Uuid::from_u128(now - ((60 * 86_400_000) << 80))).unwrap();
    let old = JobSpec { job_id: long_ago, ..job("s", "echo", json!(1)) };
    let left = JobSpec {
        job_id: JobId::try_from(Uuid::from_u128(Uuid::from(long_ago).as_u128() + 1)).unwrap(),
        ..job("t", "echo", json!(1))
    };
    let run = claim(&runner, &old, 3).await;
    conclude(&runner, &run, End::Succeeded(Json::null()), Some(folded(3))).await;
    let run = claim(&runner, &left, 3).await;
    conclude(&runner, &run, End::Succeeded(Json::null()), None).await;
    let run = claim(&runner, &job("s", "echo", json!(2)), 1).await;
    conclude(&runner, &run, End::Succeeded(Json::null()), Some(folded(4))).await;
    // They are as old as their first jobs.
    database.execute("UPDATE harness_sessions SET created_at = now() - interval '60 days'").await;
    assert_eq!(findings(&database.audit().await), []);
    let (_, dropped) = maintain(2).await;
    assert!(dropped > 0);
    assert_eq!(database.count("SELECT count(*) FROM harness_results").await, 1);
    assert_eq!(findings(&database.audit().await), [], "a result is gone, and so it is with its checkpoints");
    // The results that are left still bound the spend.
    database.execute("UPDATE harness_sessions SET cost_microusd = 6 WHERE session_id = 's'").await;
    assert_eq!(findings(&database.audit().await), [("spend", vec!["s"])]);
}

/// A clean ledger with a job of every kind, to be damaged.
struct SampleLedger {
    database: Database,
    /// Succeeded and folded, in the session `done`.
    done: JobId,
    /// Succeeded in `left`, with its two checkpoints not folded.
    left: JobId,
    /// Failed in `bad`, at its first iteration.
    bad: JobId,
    /// Runs in `busy`, with two checkpoints so far.
    runs: JobId,
    /// Blocked behind it.
    waits: JobId,
    /// Accepted and never claimed, in the session `new`.
    new: JobId,
    /// Cancelled before the ledger knew it.
    unseen: JobId,
}

impl SampleLedger {
    async fn new() -> SampleLedger {
        let database = Database::new().await;
        let store = database.store();
        let runner = Runner::register(&store).await;
        let spec = |session| job(session, "echo", json!(1));
        let (done, left, bad, runs, waits, new, unseen) = (
            spec("done"),
            spec("left"),
            spec("bad"),
            spec("busy"),
            spec("busy"),
            spec("new"),
            spec("unseen"),
        );
        let run = claim(&runner, &done, 2).await;
        conclude(&runner, &run, End::Succeeded(Json::null()), Some(folded(2))).await;
        let run = claim(&runner, &left, 2).await;
        conclude(&runner, &run, End::Succeeded(Json::null()), None).await;
        let run = claim(&runner, &bad, 0).await;
        conclude(&runner, &run, End::Failed(failure()), None).await;
        claim(&runner, &runs, 2).await;
        assert!(matches!(runner.claim(&waits).await.expect("an answer"), Answer::Blocked));
        store.accept(std::slice::from_ref(&new)).await.expect("accepted");
        store.cancel("a test", &[unseen.job_id]).await.expect("cancelled");
        assert_eq!(findings(&database.audit().await), []);
        let [done, left, bad, runs, waits, new, unseen] =
            [done, left, bad, runs, waits, new, unseen].map(|spec| spec.job_id);
        SampleLedger { database, done, left, bad, runs, waits, new, unseen }
    }

    /// Replaces names such as `{done}` in a text by ids.
    fn fill(&self, text: &str) -> String {
        let ids = [
            ("{done}", self.done),
            ("{left}", self.left),
            ("{bad}", self.bad),
            ("{runs}", self.runs),
            ("{waits}", self.waits),
            ("{new}", self.new),
            ("{unseen}", self.unseen),
        ];
        ids.iter().fold(text.to_owned(), |text, (name, id)| text.replace(name, &id.to_string()))
    }
}

/// A damage, and all checks that it breaks.
type Case = (&'static str, &'static [(&'static str, &'static [&'static str])]);

async fn each_is_found(cases: &[Case]) {
    let cases = cases.iter().map(async |(damage, broken)| {
        let ledger = SampleLedger::new().await;
        ledger.database.execute(&ledger.fill(damage)).await;
        let audit = ledger.database.audit().await;
        let broken: Vec<(&str, Vec<String>)> = broken
            .iter()
            .map(|(check, ids)| {
                let mut ids: Vec<String> = ids.iter().map(|id| ledger.fill(id)).collect();
                ids.sort_unstable();
                (*check, ids)
            })
            .collect();
        let found: Vec<(&str, Vec<String>)> = findings(&audit)
            .into_iter()
            .map(|(check, ids)| {
                let mut ids: Vec<String> = ids.into_iter().map(str::to_owned).collect();
                ids.sort_unstable();
                (check, ids)
            })
            .collect();
        assert_eq!(found, broken, "{damage}\n{:#?}", audit.checks);
    });
    futures::stream::iter(cases).buffer_unordered(4).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn a_job_in_the_wrong_place_is_named() {
    each_is_found(&[
        (
            "INSERT INTO harness_jobs (job_id, session_id, agent_id, pool, state, message)
             SELECT job_id, session_id, agent_id, pool, 'scheduled', message FROM harness_results WHERE job_id = '{bad}'",
            &[("one_place", &["{bad}"])],
        ),
        (
            "UPDATE harness_jobs SET seq = 9223372036854775807 WHERE job_id = '{waits}'",
            &[("places", &["{waits}"])],
        ),
        ("DELETE FROM harness_workers", &[("leases", &["{runs}"])]),
        (
            "UPDATE harness_workers SET state = 'dead', ended_at = now() - interval '1 hour';
             UPDATE harness_jobs SET state_since = now() - interval '1 hour' WHERE job_id = '{runs}'",
            &[("leases", &["{runs}"])],
        ),
        (
            "UPDATE harness_workers SET drained_at = now(), drain_until = now() + interval '1 hour'",
            &[("drained", &["{runs}"])],
        ),
        // Its mark has expired, so it is no longer drained.
        ("UPDATE harness_workers SET drained_at = now() - interval '1 hour', drain_until = now()", &[]),
        // Rescue may take a minute.
        ("UPDATE harness_workers SET state = 'dead', ended_at = now() - interval '1 hour'", &[]),
        (
            "DROP INDEX harness_jobs_one_begun;
             UPDATE harness_jobs SET state = 'scheduled', epoch = nextval('harness_epoch') WHERE job_id = '{waits}'",
            &[("one_runner", &["{runs}", "{waits}"]), ("guards", &["harness_jobs_one_begun"])],
        ),
        (
            "UPDATE harness_jobs SET epoch = 0 WHERE job_id = '{runs}';
             DELETE FROM harness_checkpoints WHERE job_id = '{runs}'",
            &[("begun", &["{runs}"])],
        ),
        (
            "UPDATE harness_jobs SET state = 'awaiting_input', worker_id = NULL WHERE job_id = '{runs}'",
            &[("questions", &["{runs}"])],
        ),
        (
            "INSERT INTO harness_inputs (job_id, call_id, kind, question, asked_at)
             VALUES ('{new}', 'c', 'question', '1', now())",
            &[("questions", &["{new}"])],
        ),
        (
            "UPDATE harness_jobs SET state = 'awaiting_input' WHERE job_id = '{new}';
             INSERT INTO harness_inputs (job_id, call_id, kind, question, asked_at, expires_at)
             VALUES ('{new}', 'c', 'question', '1', now(), now() - interval '1 hour')",
            &[("begun", &["{new}"]), ("sessions", &["{new}"]), ("answers", &["{new}"])],
        ),
        (
            "INSERT INTO harness_inputs (job_id, call_id, kind, question, asked_at)
             VALUES ('{done}', 'c', 'question', '1', now());
             UPDATE harness_results SET finished_at = now() - interval '2 hours' WHERE job_id = '{done}'",
            &[("answers", &["{done}"])],
        ),
        (
            "DELETE FROM harness_jobs WHERE job_id = '{runs}'; DELETE FROM harness_checkpoints WHERE job_id = '{runs}'",
            &[("turns", &["{waits}"])],
        ),
        ("DELETE FROM harness_sessions WHERE session_id = 'done'", &[("sessions", &["{done}"])]),
        (
            "DELETE FROM harness_sessions WHERE session_id = 'busy'",
            &[("sessions", &["{runs}", "{waits}"]), ("checkpoints", &["{runs}"])],
        ),
        (
            "UPDATE harness_results SET state = 'failed' WHERE job_id = '{unseen}'",
            &[("sessions", &["{unseen}"])],
        ),
        (
            "UPDATE harness_jobs SET session_id = '' WHERE job_id = '{new}'",
            &[("sessions", &["{new}"])],
        ),
        ("UPDATE harness_results SET worker_id = NULL WHERE job_id = '{done}'", &[("runs", &["{done}"])]),
        ("UPDATE harness_results SET started_at = NULL WHERE job_id = '{bad}'", &[("runs", &["{bad}"])]),
        ("UPDATE harness_results SET cost_microusd = 1 WHERE job_id = '{unseen}'", &[("runs", &["{unseen}"])]),
        (
            "UPDATE harness_jobs SET message = jsonb_set(message::jsonb, '{job_id}', '\"{done}\"')::json WHERE job_id = '{new}'",
            &[("envelopes", &["{new}"])],
        ),
        (
            "UPDATE harness_results SET message = jsonb_set(message::jsonb, '{session_id}', '\"other\"')::json WHERE job_id = '{bad}'",
            &[("envelopes", &["{bad}"])],
        ),
        ("UPDATE harness_jobs SET tenant = 'acme' WHERE job_id = '{new}'", &[("tenants", &["{new}"])]),
        ("UPDATE harness_results SET tenant = 'acme' WHERE job_id = '{done}'", &[("tenants", &["{done}"])]),
        ("UPDATE harness_sessions SET tenant = 'acme' WHERE session_id = 'done'", &[("tenants", &["done"])]),
        (
            "UPDATE harness_results SET message = jsonb_set(message::jsonb, '{tenant}', '\"acme\"')::json WHERE job_id = '{bad}'",
            &[("tenants", &["{bad}"])],
        ),
    ])
    .await;
}

#[tokio::test]
async fn what_was_lost_or_paid_twice_is_named() {
    each_is_found(&[
        ("DELETE FROM harness_results WHERE job_id = '{done}'", &[("ends", &["done"])]),
        ("UPDATE harness_sessions SET version = 0 WHERE session_id = 'done'", &[("ends", &["done"])]),
        (
            "UPDATE harness_sessions SET cost_microusd = cost_microusd + 1 WHERE session_id = 'done'",
            &[("spend", &["done"])],
        ),
        (
            "UPDATE harness_sessions SET iteration_count = iteration_count - 1 WHERE session_id = 'done'",
            &[("spend", &["done"])],
        ),
        (
            "UPDATE harness_sessions SET output_tokens = 1 WHERE session_id = 'busy'",
            &[("spend", &["busy"])],
        ),
        (
            "UPDATE harness_results SET input_tokens = input_tokens - 1 WHERE job_id = '{done}'",
            &[("spend", &["done"]), ("history", &["{done}"])],
        ),
        (
            "UPDATE harness_results SET cost_microusd = cost_microusd + 1 WHERE job_id = '{left}'",
            &[("spend", &["left"]), ("unfolded", &["{left}"])],
        ),
        (
            "DELETE FROM harness_checkpoints WHERE job_id = '{left}' AND ordinal = 1",
            &[("spend", &["left"]), ("unfolded", &["{left}"])],
        ),
        // Both sums are wrong in the same way, so only the job shows it.
        (
            "UPDATE harness_sessions SET cost_microusd = 5 WHERE session_id = 'left';
             UPDATE harness_results SET cost_microusd = cost_microusd + 5 WHERE job_id = '{left}'",
            &[("unfolded", &["{left}"])],
        ),
        (
            "DELETE FROM harness_jobs WHERE job_id = '{runs}'",
            &[("turns", &["{waits}"]), ("spend", &["busy"]), ("checkpoints", &["{runs}"])],
        ),
        (
            "DELETE FROM harness_checkpoints WHERE job_id = '{runs}' AND ordinal = 0",
            &[("deltas", &["{runs}"])],
        ),
        (
            "DELETE FROM harness_history WHERE job_id = '{done}' AND ordinal = 0",
            &[("history", &["{done}", "{done}"])],
        ),
        (
            "UPDATE harness_history SET cost_microusd = 1 WHERE job_id = '{done}'",
            &[("history", &["{done}"])],
        ),
        (
            "UPDATE harness_history SET session_id = 'left', epoch = epoch + 1000 WHERE job_id = '{done}'",
            &[("history", &["{left}"])],
        ),
        (
            "UPDATE harness_checkpoints SET epoch = (SELECT nextval('harness_epoch')) WHERE job_id = '{runs}'",
            &[("fencing", &["{runs}"])],
        ),
        (
            "UPDATE harness_results SET epoch = d.epoch FROM harness_results d
              WHERE harness_results.job_id = '{bad}' AND d.job_id = '{done}'",
            &[("epochs", &["{bad}", "{done}"])],
        ),
        (
            "UPDATE harness_jobs SET epoch = d.epoch FROM harness_results d
              WHERE harness_jobs.job_id = '{runs}' AND d.job_id = '{done}';
             UPDATE harness_checkpoints SET epoch = d.epoch FROM harness_results d
              WHERE harness_checkpoints.job_id = '{runs}' AND d.job_id = '{done}'",
            &[("epochs", &["{done}", "{runs}"])],
        ),
        ("UPDATE harness_results SET epoch = 1000000 WHERE job_id = '{done}'", &[("sequence", &["{done}"])]),
    ])
    .await;
}

#[tokio::test]
async fn a_constraint_that_is_gone_is_named() {
    each_is_found(&[
        (
            "ALTER TABLE harness_jobs DROP CONSTRAINT harness_jobs_check",
            &[("guards", &["harness_jobs_check"])],
        ),
        (
            "ALTER TABLE harness_jobs DROP CONSTRAINT harness_jobs_state_check;
             ALTER TABLE harness_jobs ADD CONSTRAINT harness_jobs_state_check CHECK (state <> '') NOT VALID",
            &[("guards", &["harness_jobs_state_check"])],
        ),
        (
            "DROP INDEX harness_jobs_one_begun;
             CREATE INDEX harness_jobs_one_begun ON harness_jobs (session_id) WHERE epoch > 0",
            &[("guards", &["harness_jobs_one_begun"])],
        ),
        (
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'harness_jobs_one_begun'::regclass",
            &[("guards", &["harness_jobs_one_begun"])],
        ),
        (
            "ALTER TABLE harness_jobs DISABLE TRIGGER harness_jobs_not_due",
            &[("guards", &["harness_jobs_not_due"])],
        ),
        (
            "ALTER TABLE harness_results DROP CONSTRAINT harness_results_pkey",
            &[("guards", &["harness_results_pkey"])],
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_job_that_does_not_move_is_warned_about() {
    each_is_found(&[
        ("UPDATE harness_workers SET heartbeat_at = now() - interval '4 hours'", &[("rescue", &["{runs}"])]),
        (
            "UPDATE harness_jobs SET state = 'scheduled', due_at = now() - interval '1 hour' WHERE job_id = '{new}'",
            &[("due", &["{new}"])],
        ),
        (
            "INSERT INTO harness_leases VALUES ('line', 'somebody', 1, now() + interval '1 hour');
             INSERT INTO harness_schedules
                    (id, tenant, name, cron, zone, jitter_ms, catch_up, within_ms, overlap, job, may_reply, next_at, due_at)
             SELECT gen_random_uuid(), 'default', name, '0 0 * * *', 'UTC', jitter_ms, 'last', 0, 'skip', '{}', false,
                    now() - interval '1 hour', now() - interval '1 hour'
               FROM (VALUES ('late', 0), ('within its jitter', 7200000)) given(name, jitter_ms)",
            &[("schedules", &["late of tenant default"])],
        ),
        (
            "UPDATE harness_jobs SET state_since = now() - interval '1 hour' WHERE job_id = '{new}'",
            &[("publishing", &["{new}"])],
        ),
        (
            "UPDATE harness_jobs SET state = 'queued', state_since = now() - interval '1 hour' WHERE job_id = '{new}'",
            &[("queued", &["{new}"])],
        ),
        (
            "UPDATE harness_jobs SET asked = 'cancel', state_since = now() - interval '1 hour' WHERE job_id = '{waits}'",
            &[("unwanted", &["{waits}"])],
        ),
        (
            "UPDATE harness_jobs SET deadline_at = now() - interval '1 hour' WHERE job_id = '{new}'",
            &[("unwanted", &["{new}"])],
        ),
    ])
    .await;
    let database = Database::new().await;
    // This week's: a later one may have been made ahead of its need.
    let this_week = "SELECT 'harness_results_w' || floor(extract(epoch FROM now()) / 604800)";
    let table = database.texts(this_week).await.pop().unwrap();
    database.execute(&format!("DROP TABLE {table}")).await;
    let audit = database.audit().await;
    assert_eq!(findings(&audit), [("partitions", vec![table.as_str()])]);
    assert_eq!((audit.findings(Kind::Conservation), audit.findings(Kind::Liveness)), (0, 1));
}

#[tokio::test]
async fn the_command_names_the_job_and_its_exit_code_says_the_end() {
    let ledger = SampleLedger::new().await;
    let (done, waits) = (ledger.done.to_string(), ledger.waits.to_string());
    let fleet = Fleet::on(ledger.database);
    let clean = fleet.producer(&["audit", "--strict"]).await;
    assert_eq!(clean.code, 0, "{clean:?}");
    assert!(clean.out.contains("0 failed, 0 warned") && !clean.out.contains("FAILED"), "{clean:?}");

    let overdue =
        format!("UPDATE harness_jobs SET deadline_at = now() - interval '1 hour' WHERE job_id = '{waits}'");
    fleet.database.execute(&overdue).await;
    let warned = fleet.producer(&["audit"]).await;
    assert_eq!(warned.code, 0, "a warning is not a failure: {warned:?}");
    assert!(warned.out.contains("warns") && warned.out.contains(&waits), "{warned:?}");
    assert_eq!(fleet.producer(&["audit", "--strict"]).await.code, 3);
    assert_eq!(fleet.producer(&["audit", "--strict", "--stuck-after", "2h"]).await.code, 0);

    let damage = format!("UPDATE harness_results SET worker_id = NULL WHERE job_id = '{done}'");
    fleet.database.execute(&damage).await;
    let failed = fleet.producer(&["audit"]).await;
    assert_eq!(failed.code, 3, "{failed:?}");
    assert!(failed.out.contains("FAILED  runs") && failed.out.contains(&done), "{failed:?}");
    assert!(failed.out.contains("1 failed, 1 warned"), "{failed:?}");
    let failed = fleet.producer(&["audit", "--json"]).await;
    assert_eq!(failed.code, 3, "{failed:?}");
    let [audit] = failed.json().try_into().unwrap();
    let runs = audit["checks"].as_array().unwrap().iter().find(|check| check["check"] == "runs").unwrap();
    assert_eq!((&runs["kind"], &runs["found"]), (&json!("conservation"), &json!(1)));
    assert_eq!(runs["offenders"][0]["id"], json!(done));

    let wrong = fleet.producer(&["audit", "--since", "yesterday"]).await;
    assert_eq!(wrong.code, 2, "{wrong:?}");
    assert!(wrong.err.contains("expected a number with a unit"), "{wrong:?}");
    fleet.database.execute("DROP TABLE harness_checkpoints").await;
    let broken = fleet.producer(&["audit"]).await;
    assert_eq!(broken.code, 1, "an audit that could not look has found nothing: {broken:?}");
}

#[tokio::test]
async fn a_limit_bounds_what_is_named_and_since_what_is_looked_at() {
    let ledger = SampleLedger::new().await;
    let store = ledger.database.store();
    ledger.database.execute("UPDATE harness_results SET worker_id = NULL WHERE state = 'succeeded'").await;
    let scope = AuditScope {
        since: None,
        limit: 1,
        stuck_after: Duration::from_secs(900),
        retention: Duration::from_secs(2 * 86_400),
    };
    let runs = async |store: &Store, scope: &AuditScope| {
        let audit = store.audit(scope).await.unwrap();
        let runs = audit.checks.into_iter().find(|checked| checked.check == "runs").unwrap();
        (runs.found, runs.offenders.len())
    };
    assert_eq!(runs(&store, &scope).await, (2, 1));
    assert_eq!(
        runs(&store, &AuditScope { since: Some(Duration::from_secs(3_600)), ..scope.clone() }).await,
        (2, 1)
    );
    // Everything is older than this.
    assert_eq!(runs(&store, &AuditScope { since: Some(Duration::ZERO), ..scope }).await, (0, 0));
}

#[tokio::test]
async fn a_watch_goes_on_until_something_is_wrong() {
    let ledger = SampleLedger::new().await;
    let done = ledger.done.to_string();
    let fleet = Fleet::on(ledger.database);
    let damaging = async {
        let mut connection = fleet.database.connect().await;
        // An audit first waits for this lock. So the first audit finds nothing yet, and a later one finds the damage.
        for damage in ["SELECT", &format!("UPDATE harness_results SET epoch = 0 WHERE job_id = '{done}'")] {
            let mut tx = connection.begin().await.unwrap();
            let lock = "LOCK TABLE harness_results IN ACCESS EXCLUSIVE MODE";
            sqlx::raw_sql(lock).execute(&mut *tx).await.unwrap();
            let waiting =
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'harness_results'::regclass";
            until("an audit waits", async || (fleet.database.count(waiting).await == 1).then_some(())).await;
            sqlx::raw_sql(sqlx::AssertSqlSafe(damage.to_owned())).execute(&mut *tx).await.unwrap();
            tx.commit().await.unwrap();
        }
    };
    let (watched, ()) = tokio::join!(fleet.producer(&["audit", "--watch", "1", "--json"]), damaging);
    assert_eq!(watched.code, 3, "{watched:?}");
    let audits = watched.json();
    assert_eq!(audits.len(), 2);
    for (audit, found) in audits.iter().zip([0, 1]) {
        let broken = audit["checks"].as_array().unwrap().iter().filter(|check| check["found"] != 0);
        assert_eq!(broken.count(), found, "{audit}");
    }
}

#[tokio::test]
async fn a_fleet_at_work_gives_no_false_alarm_while_its_workers_are_killed() {
    let fleet = Fleet::new().await;
    let again = json!({"fail": {"message": "not yet", "retryable": true, "attempts": 1}});
    let never = json!({"fail": {"message": "never", "retryable": false}});
    let step =
        json!({"delay_ms": 30, "cost_usd": 0.001, "input_tokens": 3, "output_tokens": 5, "memory": {"a": 1}});
    let mut jobs = Vec::new();
    for n in 0..60 {
        let last = [&step, &again, &never][n % 3];
        let input = json!({"iterations": [step, step, last, step]});
        let mut spec = job(&format!("s-{}", n % 10), "scripted", input);
        spec.retry.max_attempts = 100;
        spec.on_busy = [OnBusy::Enqueue, OnBusy::Interrupt, OnBusy::Enqueue, OnBusy::Rollback][n % 4];
        if n % 9 == 0 {
            spec.agent_id = "nobody".parse().unwrap();
        }
        jobs.push(spec);
    }
    let working = async {
        let mut workers = Vec::new();
        for n in 0..2 {
            workers.push(fleet.worker(&format!("worker {n}")).short_lease().start().await);
        }
        fleet.enqueue(&jobs).await;
        for kill in 0..4usize {
            let ended = async || {
                let count = fleet.database.count("SELECT count(*) FROM harness_results").await;
                (count >= 10 * (kill as i64 + 1)).then_some(())
            };
            until("jobs end between the kills", ended).await;
            fleet.store.cancel("a test", &[jobs[55 - kill].job_id, JobId::now()]).await.unwrap();
            match kill % 2 {
                0 => workers[0].kill(),
                _ => workers[0].terminate(),
            }
            let name = format!("worker after {kill}");
            drop(std::mem::replace(&mut workers[0], fleet.worker(&name).short_lease().launch()));
        }
        for spec in &jobs {
            fleet.ended(spec.job_id).await;
        }
    };
    fleet.database.audited_while(working).await;
    let audited = fleet.producer(&["audit", "--strict"]).await;
    assert_eq!(audited.code, 0, "{audited:?}");
    let ends = "SELECT count(DISTINCT state) FROM harness_results";
    assert_eq!(fleet.database.count(ends).await, 3, "every kind of end was there");
    assert!(fleet.database.count("SELECT sum(cost_microusd)::bigint FROM harness_results").await > 0);
}
