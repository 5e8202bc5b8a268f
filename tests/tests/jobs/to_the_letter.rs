//! An entry of a session's context comes back to the letter: on another worker, after a kill, a fold, a backup.

use std::process::{Command, Stdio};
use std::sync::LazyLock;

use job::{JobState, Json};
use producer::SessionNow;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use store::{CheckpointRow, End, Fold};
use tests::{Database, Fleet, Runner, claimed, done, folded, job, older_worker};

/// Entries that come back otherwise from a parser of values, or from `jsonb`. The first has strings that are kept as blobs.
static ENTRIES: LazyLock<[String; 5]> = LazyLock::new(|| {
    let (image, marked) = ("iVBORw0KGgo\\/+\\u00e9é".repeat(4_000), "harness-blob:none");
    let long = format!(r#"{{"type":"image","n":1E5,"data":"{image}","again":["{image}", "{marked}"]}}"#);
    [long, SHORT[0].into(), SHORT[1].into(), SHORT[2].into(), SHORT[3].into()]
});

const SHORT: [&str; 4] = [
    r#"{"role":"assistant","content":[{"type":"thinking","thinking":"","signature":"c2ln=="},{"type":"unheard_of","z":1,"a":null}]}"#,
    r#"{"type":"tool_use","input":{"zeta":1e5,"alpha":12345678901234567890123,"beta":1.0,"Alpha":-0.0,"é":"\u00e9"}}"#,
    r#"{ "odd" : [ 1 ,2,   3 ] ,"white":{ } }"#,
    r#"["a\/b", 0.10, 1E+2, {"":""}]"#,
];

/// Appends the entries and waits to be killed; when they are there, says whether its order has them to the letter. With
/// `replace`, keeps only the first; with `churn`, overwrites so much memory that its end folds.
const TALKER: &str = r#"#!/usr/bin/env python3
import json, sys, time
line = sys.stdin.readline()
order = json.loads(line)
task = order["job"]["input"]
entries = task["entries"]
def checkpoint(rest):
    print('{"type":"checkpoint","iterations":1,' + rest + '}', flush=True)
if not order["session"]["context_window"]:
    checkpoint('"context_window":[ ' + " , ".join(entries) + ']')
    time.sleep(3600)
found = [entry in line for entry in entries]
for n in range(task.get("churn", 0)):
    checkpoint('"memory":' + json.dumps({"notes": str(n % 10) * 80000}))
if task.get("replace"):
    checkpoint('"context_window":[' + entries[0] + '],"replace_context":true')
print(json.dumps({"type": "result", "output": found}), flush=True)
"#;

fn found(view: &store::JobView) -> Value {
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    serde_json::from_str(view.output.as_ref().expect("an output").as_str()).expect("JSON")
}

#[tokio::test]
async fn an_entry_comes_back_to_the_letter_on_another_worker_after_a_kill_a_fold_and_a_restore() {
    let fleet = Fleet::new().await;
    let agents = fleet.agents(&[("talker", &fleet.program("talker.py", TALKER))]);
    let worker = |name| fleet.worker(name).set("AGENTS_FILE", &agents);
    let talks = |input: Value| {
        let mut input = input;
        input["entries"] = json!(*ENTRIES);
        job("s", "talker", input)
    };
    let whole = json!(vec![true; 5]);

    let mut first = worker("first").short_lease().start().await;
    let spec = talks(json!({}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.iterated(spec.job_id, 1).await;
    first.kill();
    let second = worker("second").start().await;
    assert_eq!(found(&fleet.ended(spec.job_id).await), whole, "after a kill");

    let churning = talks(json!({"churn": 12}));
    fleet.enqueue(std::slice::from_ref(&churning)).await;
    assert_eq!(found(&fleet.ended(churning.job_id).await), whole, "in the next job");
    let moved = "SELECT count(*) FROM harness_history WHERE context_json IS NOT NULL";
    assert!(fleet.database.count(moved).await > 0, "its entries were folded");
    drop(second);
    let _third = worker("third").start().await;
    let after = talks(json!({}));
    fleet.enqueue(std::slice::from_ref(&after)).await;
    assert_eq!(found(&fleet.ended(after.job_id).await), whole, "after a fold");

    // The context is replaced and folded; the history has it all.
    let compacting = talks(json!({"churn": 12, "replace": true}));
    fleet.enqueue(std::slice::from_ref(&compacting)).await;
    assert_eq!(found(&fleet.ended(compacting.job_id).await), whole);
    let said = |session: &SessionNow| -> Vec<String> {
        session.context_window.iter().map(|entry| entry.as_str().to_owned()).collect()
    };
    assert_eq!(said(&fleet.session("s").await), [ENTRIES[0].as_str()]);
    let shown = fleet.producer(&["sessions", "show", "s", "--json"]).await;
    assert!(
        shown.code == 0 && shown.out.contains(&format!("\"context_window\":[{}]", ENTRIES[0])),
        "{shown:?}"
    );
    let history = fleet.producer(&["sessions", "history", "s", "--json"]).await;
    assert_eq!(history.code, 0, "{history:?}");
    let lines: Vec<&str> = history.out.lines().collect();
    assert!(lines[0].contains(&format!("\"entries\":[{}]", ENTRIES.join(","))), "{history:?}");
    let last = lines.last().expect("a line");
    assert!(last.contains("\"replaces\":true") && last.contains(&ENTRIES[0]), "{history:?}");
    assert_eq!((lines.len(), history.err.as_str()), (1 + 12 + 12 + 1, ""));
    let blobs = "SELECT count(*) FROM harness_blobs WHERE session_id = 's' AND live";
    assert_eq!(fleet.database.count(blobs).await, 2, "each once, however often it was said");
    let long = "SELECT count(*) FROM harness_history WHERE octet_length(context_json::text) > 65536";
    assert_eq!(fleet.database.count(long).await, 0);
    fleet.database.audited().await;

    // As `ops/backup` does it.
    let (dump, copy) = (fleet.folder.path().join("dump"), Database::empty().await);
    let ran = |program: &str, arguments: &[&str]| {
        let ended = Command::new(program).args(arguments).stdin(Stdio::null()).output().expect(program);
        assert!(ended.status.success(), "{program}: {}", String::from_utf8_lossy(&ended.stderr));
    };
    let dump = dump.to_string_lossy();
    ran("pg_dump", &["-Fc", "-f", &dump, "-d", &fleet.database.url]);
    ran("pg_restore", &["--no-owner", "--single-transaction", "-d", &copy.url, &dump]);
    let key: job::Name = "s".parse().unwrap();
    let restored = SessionNow::read(&copy.store(), &key.into()).await.unwrap().expect("a session");
    assert_eq!(said(&restored), [ENTRIES[0].as_str()]);
    let texts = "SELECT context_json::text FROM harness_history WHERE context_json IS NOT NULL ORDER BY epoch, ordinal";
    assert_eq!(copy.texts(texts).await, fleet.database.texts(texts).await);
    copy.audited().await;
}

/// What a provider may say and `jsonb` refuses.
const UNSTORABLE: &str = r#"{"say":"\u0000 and \ud800","n":1e400000}"#;

async fn says(runner: &Runner, run: &store::Claimed, ordinal: i32, entry: &str) {
    let row = CheckpointRow {
        claim: run.claim.clone(),
        ordinal,
        delta: r#"{"iterations":1,"feature_progress":{"n":1}}"#.to_owned(),
        entries: Some(format!("[{entry}]").into()),
        iterations: 1,
        cost: job::Usd::from_micros(7),
        input_tokens: 1,
        output_tokens: 1,
    };
    done(runner.store.checkpoint(row).await.expect("an answer"));
}

#[tokio::test]
async fn what_jsonb_refuses_is_kept_and_nothing_that_reads_it_fails() {
    let fleet = Fleet::new().await;
    let runner = Runner::register(&fleet.store).await;
    let spec = job("s", "echo", json!(1));
    let run = claimed(runner.claim(&spec).await.unwrap());
    says(&runner, &run, 0, UNSTORABLE).await;
    let retry = End::HandBack { delay: std::time::Duration::ZERO };
    runner.store.conclude(runner.conclusion(&run, retry)).await.unwrap();
    let run = claimed(runner.claim(&spec).await.unwrap());
    assert!(run.session.deltas.as_ref().expect("deltas").contains(UNSTORABLE));
    let fold = Fold { state: ["{}".to_owned(), format!("[{UNSTORABLE}]"), "{}".to_owned()], ..folded(1) };
    let end = store::Conclusion { fold: Some(fold), ..runner.conclusion(&run, End::Succeeded(Json::null())) };
    done(runner.store.conclude(end).await.unwrap().recorded);
    let next = job("s", "echo", json!(2));
    let run = claimed(runner.claim(&next).await.unwrap());
    assert_eq!(run.session.folded.as_ref().expect("a fold")[1], format!("[{UNSTORABLE}]"));
    says(&runner, &run, 0, UNSTORABLE).await;
    runner.succeed(&run).await.unwrap();

    let said: Vec<String> =
        fleet.session("s").await.context_window.iter().map(|entry| entry.as_str().to_owned()).collect();
    assert_eq!(said, [UNSTORABLE, UNSTORABLE]);
    for arguments in [["sessions", "show", "s"], ["sessions", "history", "s"]] {
        let ran = fleet.producer(&arguments).await;
        assert!(ran.code == 0 && ran.out.matches(r"\u0000").count() >= 2, "{ran:?}");
    }
    fleet.database.audited().await;
    let emptied =
        fleet.store.empty_session("somebody", &"s".parse::<job::Name>().unwrap().into()).await.unwrap();
    assert_eq!(emptied, store::Emptied::Done);
    let left = "SELECT (SELECT count(*) FROM harness_history) + (SELECT count(*) FROM harness_checkpoints)
                     + (SELECT count(*) FROM harness_sessions WHERE context_json IS NOT NULL)";
    assert_eq!(fleet.database.count(left).await, 0);
    fleet.database.audited().await;
}

/// The schema of the release before contexts were kept as text.
const OLDER: i64 = 19;

#[tokio::test]
async fn contexts_rest_as_text_ten_minutes_after_the_end_of_the_last_worker_that_cannot_read_it() {
    let database = Database::new().await;
    database.execute(&older_worker(OLDER)).await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let run = claimed(runner.claim(&job("s", "echo", json!(1))).await.unwrap());
    says(&runner, &run, 0, r#"{"b":1,"a":1e5}"#).await;
    let as_text = "SELECT count(*) FROM harness_checkpoints WHERE context_json IS NOT NULL";
    assert_eq!(database.count(as_text).await, 0, "the older worker can read it");
    let read = "SELECT delta ->> 'context_window' FROM harness_checkpoints";
    assert_eq!(database.texts(read).await, [r#"[{"a": 100000, "b": 1}]"#]);

    // After its end its release may come back for ten minutes; its row stays for a day.
    let ended = async |state: &str, minutes: i64| {
        let sql = format!(
            "UPDATE harness_workers SET state = '{state}', ended_at = now() - interval '{minutes} minutes'
              WHERE host = 'old-host'"
        );
        database.execute(&sql).await;
        store.forget_workers(std::time::Duration::from_secs(86_400)).await.unwrap();
        database.texts("SELECT name FROM harness_switches ORDER BY name").await
    };
    assert!(ended("stopped", 9).await.is_empty() && !store.folds_within_runs());
    says(&runner, &run, 1, r#"{"b":2,"a":1e5}"#).await;
    assert_eq!(database.count(as_text).await, 0);
    assert_eq!(ended("dead", 11).await, ["context_as_text", "schema_26"]);
    assert!(store.folds_within_runs());
    says(&runner, &run, 2, r#"{"b":3,"a":1e5}"#).await;
    assert_eq!(database.count(as_text).await, 1);
    let refused = sqlx::raw_sql(AssertSqlSafe(older_worker(OLDER)))
        .execute(&mut database.connect().await)
        .await
        .unwrap_err();
    assert!(refused.to_string().contains("run a newer release"), "{refused}");

    // Both forms are read, and folded into the new one.
    let view = SessionNow::read(&store, &"s".parse::<job::Name>().unwrap().into()).await.unwrap().unwrap();
    let said: Vec<&str> = view.context_window.iter().map(Json::as_str).collect();
    assert_eq!(said, [r#"{"a": 100000, "b": 1}"#, r#"{"a": 100000, "b": 2}"#, r#"{"b":3,"a":1e5}"#]);
    let fold =
        Fold { state: ["{}".to_owned(), format!("[{}]", said.join(",")), "{}".to_owned()], ..folded(3) };
    let end = store::Conclusion { fold: Some(fold), ..runner.conclusion(&run, End::Succeeded(Json::null())) };
    done(runner.store.conclude(end).await.unwrap().recorded);
    let kept = "SELECT context_json::text FROM harness_history ORDER BY ordinal";
    assert_eq!(database.texts(kept).await, said.iter().map(|text| format!("[{text}]")).collect::<Vec<_>>());
    database.audited().await;

    // A producer of the release before empties the session as it always did.
    let empty =
        "UPDATE harness_sessions SET memory = DEFAULT, context_window = DEFAULT, feature_progress = DEFAULT";
    database.execute(empty).await;
    let left = "SELECT (SELECT count(*) FROM harness_history)
                     + (SELECT count(*) FROM harness_sessions WHERE context_json IS NOT NULL)";
    assert_eq!(database.count(left).await, 0);
}
