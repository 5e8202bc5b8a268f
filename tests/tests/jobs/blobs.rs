//! A long string of a session's context is kept once: however often its checkpoints move and its state is written whole,
//! and as long as something refers to it.

use job::{JobSpec, Json, SessionKey};
use serde_json::json;
use sqlx::Connection as _;
use store::{CheckpointRow, Claimed, End, Fold, Store};
use tests::{Database, OwnPostgres, Runner, claimed, done, folded, job, older_worker, until};

/// An entry with a string of so many bytes that cannot be compressed; equal for equal seeds.
fn image(seed: u64, bytes: usize) -> String {
    let mut rng = fastrand::Rng::with_seed(seed);
    let letters: String = (0..bytes).map(|_| rng.alphanumeric()).collect();
    format!(r#"{{"type":"image","n":1E5,"data":"{letters}"}}"#)
}

/// A delta with a note that only looks like a reference: nothing is taken out of memory.
const NOTE: &str = r#"{"memory":{"note":"harness-blob:0"}}"#;

async fn says(runner: &Runner, run: &Claimed, ordinal: i32, entries: &[&str]) {
    let row = CheckpointRow {
        claim: run.claim.clone(),
        ordinal,
        delta: NOTE.to_owned(),
        entries: Some(format!("[{}]", entries.join(",")).into()),
        iterations: 1,
        cost: job::Usd::from_micros(7),
        input_tokens: 1,
        output_tokens: 1,
    };
    done(runner.store.checkpoint(row).await.expect("an answer"));
}

fn whole(entries: &[&str], iterations: u64) -> Fold {
    Fold {
        state: ["{}".to_owned(), format!("[{}]", entries.join(",")), "{}".to_owned()],
        ..folded(iterations)
    }
}

async fn end(runner: &Runner, run: &Claimed, end: End, fold: Option<Fold>) {
    let conclusion = store::Conclusion { fold, ..runner.conclusion(run, end) };
    done(runner.store.conclude(conclusion).await.expect("an answer").recorded);
}

async fn claim(runner: &Runner, spec: &JobSpec) -> Claimed {
    claimed(runner.claim(spec).await.expect("an answer"))
}

fn key() -> SessionKey {
    "s".parse::<job::Name>().expect("a name").into()
}

/// Fifty turns of a session with an image of 1 MB, as four jobs. Three of them begin with the image again, as compactions
/// do, and end with a fold. Returns how many bytes of it are kept, and the bytes of the server's log.
async fn fifty_turns(blobs: bool) -> (i64, i64) {
    let postgres = OwnPostgres::with_clock(0).await;
    let database = Database::new_on(&postgres.url).await;
    if !blobs {
        database.execute(&older_worker(25)).await;
    }
    let store = database.store();
    let runner = Runner::register(&store).await;
    assert_eq!(store.folds_within_runs(), blobs);
    database.execute("CHECKPOINT").await;
    let at = "SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint";
    let before = database.count(at).await;
    let (image, turn) = (image(1, 1_000_000), r#"{"role":"assistant","content":"seen"}"#);
    let mut turns = 0;
    for number in 0..4 {
        let run = claim(&runner, &job("s", "echo", json!(number))).await;
        let (mut state, many) = (vec![image.as_str()], if number == 0 { 14 } else { 12 });
        says(&runner, &run, 0, &state).await;
        for ordinal in 1..many {
            says(&runner, &run, ordinal, &[turn]).await;
            state.push(turn);
        }
        turns += many as u64;
        let fold = (number > 0).then(|| whole(&state, turns));
        end(&runner, &run, End::Succeeded(Json::null()), fold).await;
    }
    assert_eq!(turns, 50);
    let wal = database.count(at).await - before;
    let kept = "SELECT sum(pg_column_size(context_json))::bigint
                     + (SELECT sum(pg_column_size(context_json))::bigint FROM harness_sessions)
                     + (SELECT coalesce(sum(pg_column_size(content)), 0)::bigint FROM harness_blobs)
                  FROM harness_history";
    let view =
        producer::SessionNow::read(&store, &key()).await.expect("what the session holds").expect("a session");
    assert_eq!(view.context_window[0].as_str(), image);
    let kept = database.count(kept).await;
    database.audited().await;
    (kept, wal)
}

#[tokio::test]
async fn an_image_of_a_session_is_written_once_in_fifty_turns_with_three_folds() {
    let (kept, wal) = fifty_turns(true).await;
    let (kept_without, wal_without) = fifty_turns(false).await;
    println!("1 MB: kept {kept}, WAL {wal}; without blobs: kept {kept_without}, WAL {wal_without}");
    assert!(kept < 1_200_000 && wal < 1_800_000, "kept {kept}, WAL {wal}");
    assert!(kept_without > 4 * kept && wal_without > 5 * wal, "kept {kept_without}, WAL {wal_without}");
}

/// How many blobs there are, and how many of them are live.
async fn blobs(database: &Database) -> (i64, i64) {
    let live = database.count("SELECT count(*) FROM harness_blobs WHERE live").await;
    (database.count("SELECT count(*) FROM harness_blobs").await, live)
}

async fn world() -> (Database, Store, Runner) {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    (database, store, runner)
}

/// The texts of a claimed session: its last fold, and what was appended.
fn texts(run: &Claimed) -> String {
    let folded = run.session.folded.as_ref().map_or("", |texts| texts[1].as_str());
    format!("{folded} {}", run.session.deltas.as_deref().unwrap_or_default())
}

async fn found(database: &Database) -> Vec<String> {
    let audit = database.audit().await;
    let named = audit.checks.iter().filter(|checked| checked.found > 0);
    named.map(|checked| checked.check.to_owned()).collect()
}

#[tokio::test]
async fn a_blob_is_kept_while_the_session_or_its_history_refers_to_it() {
    let (database, store, runner) = world().await;
    let (first, second) = (image(1, 100_000), image(2, 100_000));
    let run = claim(&runner, &job("s", "echo", json!(1))).await;
    says(&runner, &run, 0, &[&first]).await;
    says(&runner, &run, 1, &[&second, &first]).await;
    assert_eq!(blobs(&database).await, (2, 2));
    // The second one stays in the state.
    end(&runner, &run, End::Succeeded(Json::null()), Some(whole(&[&second], 2))).await;
    assert_eq!(blobs(&database).await, (2, 1));
    database.audited().await;
    store.forget_blobs().await.unwrap();
    assert_eq!(blobs(&database).await, (2, 1), "the history has it");
    let (rows, _) = store.history(&key(), (0, -1)).await.unwrap();
    let entries: Vec<&str> = rows.iter().filter_map(|row| row.entries.as_deref()).collect();
    assert_eq!(entries, [format!("[{first}]"), format!("[{second},{first}]")]);

    // It is said again, and goes out of the state again.
    let run = claim(&runner, &job("s", "echo", json!(2))).await;
    assert!(texts(&run).contains(&second) && run.session.missing.is_none());
    says(&runner, &run, 0, &[&first]).await;
    assert_eq!(blobs(&database).await, (2, 2));
    end(&runner, &run, End::Succeeded(Json::null()), Some(whole(&[&second], 3))).await;
    assert_eq!(blobs(&database).await, (2, 1));

    // Retention drops the partition of the history.
    database.execute("DELETE FROM harness_history").await;
    let long_ago = "UPDATE harness_blobs SET kept_by = '00000000-0000-7000-8000-000000000000'";
    database.execute(long_ago).await;
    store.forget_blobs().await.unwrap();
    assert_eq!(blobs(&database).await, (1, 1));
    assert_eq!(store.empty_session("somebody", &key()).await.unwrap(), store::Emptied::Done);
    assert_eq!(blobs(&database).await, (0, 0));
    assert_eq!(found(&database).await, [""; 0]);
}

#[tokio::test]
async fn a_rollback_behind_a_fold_within_the_run_finds_the_blobs_of_the_state_before() {
    let (database, _, runner) = world().await;
    let (before, within) = (image(1, 100_000), image(2, 100_000));
    let run = claim(&runner, &job("s", "echo", json!(1))).await;
    says(&runner, &run, 0, &[&before]).await;
    end(&runner, &run, End::Succeeded(Json::null()), Some(whole(&[&before], 1))).await;
    let spec = job("s", "echo", json!(2));
    let run = claim(&runner, &spec).await;
    says(&runner, &run, 0, &[&within]).await;
    let call = store::RunFold {
        claim: run.claim.clone(),
        ordinal: 0,
        fold: whole(&[&within], 2),
        before: Some(whole(&[&before], 1).state),
    };
    done(runner.store.fold(call).await.unwrap());
    assert_eq!(blobs(&database).await, (2, 2));
    database.audited().await;
    let cancelled = job::Failure::permanent(job::FailureCode::Interrupted, "another job took its place");
    let undone = Fold { undone: true, ..whole(&[], 2) };
    end(&runner, &run, End::Cancelled(cancelled), Some(undone)).await;
    assert_eq!(blobs(&database).await, (2, 1), "one is in the history alone");
    database.audited().await;
    let run = claim(&runner, &job("s", "echo", json!(3))).await;
    assert!(texts(&run).contains(&before) && !texts(&run).contains(&within));
}

#[tokio::test]
async fn a_blob_that_is_gone_or_was_changed_is_found_and_no_worker_works_without_it() {
    let (database, _, runner) = world().await;
    let spec = job("s", "echo", json!(1));
    let run = claim(&runner, &spec).await;
    says(&runner, &run, 0, &[&image(1, 100_000), r#""harness-blob:0""#]).await;
    let again = || End::HandBack { delay: std::time::Duration::ZERO };
    end(&runner, &run, again(), None).await;
    let run = claim(&runner, &spec).await;
    let there = texts(&run);
    assert!(
        there.contains(&image(1, 100_000)) && there.matches("harness-blob:0").count() == 2,
        "{there:.200}"
    );
    assert_eq!(run.session.missing, None);
    end(&runner, &run, again(), None).await;
    let view = producer::SessionNow::read(&runner.store, &key()).await.unwrap().expect("a session");
    assert_eq!(view.context_window[0].as_str(), image(1, 100_000));
    assert_eq!(view.memory, json!({"note": "harness-blob:0"}));
    database.execute("UPDATE harness_blobs SET content = '\"x\"'").await;
    assert_eq!(found(&database).await, ["blobs"]);
    database.execute("UPDATE harness_blobs SET live = false").await;
    assert_eq!(found(&database).await, ["blobs"]);
    database.execute("DELETE FROM harness_blobs").await;
    assert_eq!(found(&database).await, ["blobs"]);
    let run = claim(&runner, &spec).await;
    assert_eq!(run.session.missing.as_ref().map(String::len), Some(64));
}

#[tokio::test]
async fn a_producer_of_an_older_release_empties_a_session_with_its_blobs() {
    let (database, _, runner) = world().await;
    let run = claim(&runner, &job("s", "echo", json!(1))).await;
    says(&runner, &run, 0, &[&image(1, 100_000)]).await;
    end(&runner, &run, End::Succeeded(Json::null()), Some(whole(&[&image(1, 100_000)], 1))).await;
    assert_eq!(blobs(&database).await, (1, 1));
    let empty =
        "UPDATE harness_sessions SET memory = DEFAULT, context_window = DEFAULT, feature_progress = DEFAULT";
    database.execute(empty).await;
    assert_eq!(blobs(&database).await, (0, 0));
    assert_eq!(found(&database).await, [""; 0]);
}

/// Empties a session whose blobs somebody has locked, and accepts a job of the session meanwhile, which needs no lock of it.
async fn emptied_while_a_job_comes(fold: bool) {
    let (database, store, runner) = world().await;
    let image = image(1, 100_000);
    let run = claim(&runner, &job("s", "echo", json!(1))).await;
    says(&runner, &run, 0, &[&image]).await;
    end(&runner, &run, End::Succeeded(Json::null()), fold.then(|| whole(&[&image], 1))).await;
    let mut other = database.connect().await;
    let mut holding = other.begin().await.expect("a transaction");
    sqlx::query("SELECT FROM harness_blobs FOR UPDATE").execute(&mut *holding).await.expect("locked");
    let next = job("s", "echo", json!(2));
    let key = key();
    let emptying = store.empty_session("somebody", &key);
    let accepting = async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        until("it waits", async || (database.count(waits).await > 0).then_some(())).await;
        store.accept(std::slice::from_ref(&next)).await.expect("accepted");
        holding.commit().await.expect("committed");
    };
    let (emptied, ()) = tokio::join!(emptying, accepting);
    let left = "SELECT (SELECT count(*) FROM harness_blobs) + (SELECT count(*) FROM harness_history)
                     + (SELECT count(*) FROM harness_checkpoints)";
    assert_eq!(
        (emptied.expect("an answer"), database.count(left).await),
        (store::Emptied::Done, 0),
        "fold: {fold}"
    );
    database.audited().await;
    let run = claim(&runner, &next).await;
    assert!(run.session.missing.is_none() && !texts(&run).contains("image"), "fold: {fold}");
}

#[tokio::test]
async fn a_job_that_comes_while_its_session_is_emptied_finds_an_empty_session() {
    emptied_while_a_job_comes(true).await;
    emptied_while_a_job_comes(false).await;
}
