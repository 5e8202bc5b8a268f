//! A transcript costs what was said, and not its square: the same turns as one job, or as a job each.

use serde_json::{Value, json};
use tests::{Database, Fleet, OwnPostgres, job};

const TURNS: usize = 200;
/// Of each turn. It cannot be compressed, so the figures hold for any text.
const BYTES: usize = 8_000;
/// What a long run says is more than may be appended to a session before it is folded: 64 MiB.
const LONG_TURNS: usize = 1_800;
/// Less than a blob.
const LONG_BYTES: usize = 60_000;

/// Says as many turns as it is asked for.
const TALKER: &str = r#"#!/usr/bin/env python3
import base64, json, os, sys
task = json.loads(sys.stdin.readline())["job"]["input"]
for n in range(task["turns"]):
    said = base64.b64encode(os.urandom(task["bytes"] * 3 // 4)).decode()
    print(json.dumps({"type": "checkpoint", "iterations": 1, "cost_usd": 0.001,
                      "replace_context": n in task.get("replace", []),
                      "context_window": [{"role": "assistant", "content": said}]}), flush=True)
print(json.dumps({"type": "result"}), flush=True)
"#;

/// What a transcript came to.
struct Cost {
    transcript: i64,
    /// What lies in the tables of sessions.
    kept: i64,
    wal: i64,
}

impl Cost {
    fn is_within(&self, what: &str, kept: f64, wal: f64) {
        let Cost { transcript, kept: has_kept, wal: has_written } = self;
        let (times, written) =
            (*has_kept as f64 / *transcript as f64, *has_written as f64 / *transcript as f64);
        println!(
            "{what}: transcript {transcript}, kept {has_kept} ({times:.2}x), WAL {has_written} ({written:.2}x)"
        );
        assert!(times <= kept, "{what}: {times:.2} times the transcript is kept, expected {kept} at most");
        assert!(
            written <= wal,
            "{what}: {written:.2} times the transcript is written, expected {wal} at most"
        );
    }
}

/// Runs jobs of one session, one after the other, on a server of their own: its log is the whole server's.
async fn cost(inputs: Vec<Value>, turns: usize, bytes: usize) -> Cost {
    let postgres = OwnPostgres::with_clock(0).await;
    let fleet = Fleet::on(Database::new_on(&postgres.url).await);
    let (program, agents) = (fleet.program("talker.py", TALKER), fleet.folder.path().join("agents.toml"));
    // A program may say 64 MiB if its agent does not let it say more.
    let toml = format!(
        "[agents.talker]\nharness = \"command\"\ncommand = [{program:?}]\nmax_output_bytes = 268435456\n"
    );
    std::fs::write(&agents, toml).expect("written");
    let _worker = fleet.worker("worker").set("AGENTS_FILE", agents.display()).start().await;
    let jobs: Vec<_> = inputs.into_iter().map(|input| job("s", "talker", input)).collect();
    // One before it, so that caches and statements are there.
    let first = job("warm", "talker", json!({"turns": 1, "bytes": 10}));
    fleet.enqueue(std::slice::from_ref(&first)).await;
    fleet.ended(first.job_id).await;
    // Pages that were not written since a checkpoint go into the log whole, whatever changes in them.
    fleet.database.execute("CHECKPOINT").await;
    let at = "SELECT (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint";
    let before = fleet.database.count(at).await;
    fleet.enqueue(&jobs).await;
    for spec in &jobs {
        // A long run takes longer than one wait.
        for iterations in (25..=turns / jobs.len()).step_by(25) {
            fleet.iterated(spec.job_id, iterations as i64).await;
        }
        assert_eq!(fleet.ended(spec.job_id).await.state, job::JobState::Succeeded);
    }
    let wal = fleet.database.count(at).await - before;
    fleet.database.execute("VACUUM").await;
    let session = fleet.session("s").await;
    assert_eq!(session.iteration_count as usize, turns);
    let history = fleet.producer(&["sessions", "history", "s", "--json"]).await;
    assert_eq!((history.code, history.out.lines().count(), history.err.as_str()), (0, turns, ""));
    let kept = "SELECT coalesce(sum(pg_column_size(c.context_json) + pg_column_size(c.delta) + 100), 0)::bigint
                     + (SELECT coalesce(sum(pg_column_size(h.context_json) + 100), 0)::bigint FROM harness_history h)
                     + (SELECT coalesce(sum(pg_column_size(s.context_json)), 0)::bigint FROM harness_sessions s)
                     + (SELECT coalesce(sum(pg_column_size(b.content)), 0)::bigint FROM harness_blobs b)
                  FROM harness_checkpoints c";
    let kept = fleet.database.count(kept).await;
    fleet.database.audited().await;
    Cost { transcript: (turns * bytes) as i64, kept, wal }
}

#[tokio::test]
async fn two_hundred_turns_cost_about_the_same_as_one_job_and_as_two_hundred() {
    let one = cost(vec![json!({"turns": TURNS, "bytes": BYTES})], TURNS, BYTES).await;
    one.is_within("one job", 2.0, 2.5);
    let each = cost(vec![json!({"turns": 1, "bytes": BYTES}); TURNS], TURNS, BYTES).await;
    each.is_within("a job each", 2.0, 2.5);
}

#[tokio::test]
async fn a_compaction_keeps_the_transcript_once() {
    // Four jobs of fifty turns; each begins with a summary.
    let compacting = vec![json!({"turns": 50, "bytes": BYTES, "replace": [0]}); 4];
    cost(compacting, TURNS, BYTES).await.is_within("with compactions", 2.0, 2.5);
}

#[tokio::test]
async fn a_run_that_says_100_mib_in_small_steps_goes_on_and_keeps_its_transcript_once() {
    // A context of 4 MiB, and then a summary.
    let replace: Vec<usize> = (0..LONG_TURNS).step_by(64).collect();
    let long = json!({"turns": LONG_TURNS, "bytes": LONG_BYTES, "replace": replace});
    cost(vec![long], LONG_TURNS, LONG_BYTES).await.is_within("a long run", 2.0, 2.5);
}
