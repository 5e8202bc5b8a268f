//! Promise 1: an accepted job reaches exactly one recorded end, and any other input is answered with an error.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use job::{FailureCode, JobId, JobSpec, JobState, Name};
use serde_json::{Value, json};
use tests::{Database, Fleet, job, steps, until};

fn ids(out: &str) -> Vec<&str> {
    out.lines().collect()
}

#[tokio::test]
async fn every_good_line_of_a_file_is_concluded_and_every_bad_one_is_named() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let mut lines: Vec<String> = (0..30)
        .map(|n| format!(r#"{{"session_id":"s-{}","agent_id":"echo","input":{{"n":{n}}}}}"#, n % 7))
        .collect();
    lines.insert(3, "{not json".to_owned());
    lines.insert(10, r#"{"session_id":"s-1"}"#.to_owned());
    lines.insert(20, r#"{"session_id":"../etc","agent_id":"echo"}"#.to_owned());
    let file = fleet.folder.path().join("jobs.jsonl");
    std::fs::write(&file, lines.join("\n")).unwrap();

    let file = file.to_str().unwrap();
    let enqueued = fleet.producer(&["enqueue", "--file", file, "--print-ids"]).await;
    assert_eq!(enqueued.code, 3, "{enqueued:?}");
    for text in [
        "line 4: not JSON: key must be a string at byte 2",
        "line 11: agent_id: missing",
        "line 21: session_id: got \"../etc\"",
    ] {
        assert!(enqueued.err.contains(text), "{text} is not in: {}", enqueued.err);
    }
    assert!(enqueued.err.contains("30 jobs accepted, 0 accepted before, 3 lines refused"), "{enqueued:?}");

    let ids = ids(&enqueued.out);
    assert_eq!(ids.len(), 30);
    let waited = fleet.producer(&[&["wait", "--quiet"], ids.as_slice()].concat()).await;
    assert_eq!((waited.code, waited.out.as_str()), (0, ""), "{waited:?}");
    let status = fleet.producer(&[&["status", "--json"], ids.as_slice()].concat()).await;
    assert_eq!(status.code, 0, "{status:?}");
    let views = status.json();
    for (n, (view, id)) in views.iter().zip(&ids).enumerate() {
        assert_eq!((&view["job_id"], &view["state"]), (&json!(id), &json!("succeeded")));
        assert_eq!((&view["output"], &view["attempts"]), (&json!({"n": n}), &json!(1)));
    }
    assert_eq!(views.len(), 30);
}

#[tokio::test]
async fn strict_stops_at_the_first_bad_line_and_keeps_what_came_before() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let line = |n: u32| format!(r#"{{"session_id":"s","agent_id":"echo","input":{n}}}"#);
    let input = [line(1), line(2), "{}".to_owned(), line(4)].join("\n");
    let enqueued =
        fleet.producer_with_input(&input, &["enqueue", "--file", "-", "--strict", "--print-ids"]).await;
    assert_eq!(enqueued.code, 1, "{enqueued:?}");
    assert!(enqueued.err.contains("line 3: session_id: missing"), "{enqueued:?}");
    let ids = ids(&enqueued.out);
    assert_eq!(ids.len(), 2);
    let waited = fleet.producer_with_input(&enqueued.out, &["wait", "--json"]).await;
    assert_eq!(waited.code, 0, "{waited:?}");
    let outputs: Vec<Value> = waited.json().iter().map(|view| view["output"].clone()).collect();
    assert_eq!(outputs, [json!(1), json!(2)]);
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_results").await, 2);
}

#[tokio::test]
async fn the_same_id_is_the_same_job_before_and_after_its_end() {
    let fleet = Fleet::new().await;
    let id = JobId::now().to_string();
    let one = ["enqueue", "--session", "s", "--agent", "echo", "--input", "1", "--job-id", &id];
    let first = fleet.producer(&one).await;
    assert_eq!((first.code, first.out.trim()), (0, id.as_str()), "{first:?}");
    let second = fleet.producer(&one).await;
    assert_eq!((second.code, second.out.trim()), (0, id.as_str()), "{second:?}");
    assert!(second.err.contains("accepted before"), "{second:?}");

    let unfinished = fleet.producer(&["status", &id]).await;
    assert_eq!(unfinished.code, 3, "{unfinished:?}");
    let in_vain = fleet.producer(&["wait", "--timeout-s", "0", &id]).await;
    assert_eq!(in_vain.code, 3, "{in_vain:?}");

    let _worker = fleet.worker("worker").start().await;
    assert_eq!(fleet.ended(id.parse().unwrap()).await.state, JobState::Succeeded);
    let line = format!(r#"{{"job_id":"{id}","session_id":"s","agent_id":"echo","input":2}}"#);
    let twice = format!("{line}\n{line}\n");
    let third = fleet.producer_with_input(&twice, &["enqueue", "--file", "-"]).await;
    assert_eq!(third.code, 0, "{third:?}");
    assert!(third.err.contains("0 jobs accepted, 2 accepted before"), "{third:?}");
    let status = fleet.producer(&["status", "--json", &id]).await;
    assert_eq!((status.code, &status.json()[0]["output"]), (0, &json!(1)), "{status:?}");
}

#[tokio::test]
async fn a_job_for_an_unknown_agent_fails_and_leaves_a_dead_letter() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let enqueued = fleet.producer(&["enqueue", "--session", "s", "--agent", "nobody"]).await;
    assert_eq!(enqueued.code, 0, "{enqueued:?}");
    let id = enqueued.out.trim();
    let waited = fleet.producer(&["wait", "--json", id]).await;
    assert_eq!(waited.code, 1, "{waited:?}");
    let failure = &waited.json()[0]["failure"];
    assert_eq!((&failure["code"], &failure["retryable"]), (&json!("unknown_agent"), &json!(false)));
    assert!(failure["message"].as_str().unwrap().contains("agent_id: got \"nobody\""), "{failure}");
    let letters = fleet.vhost.dead_letters().await;
    assert_eq!(letters.len(), 1, "{letters:?}");
    assert_eq!((letters[0].message_id.as_deref(), letters[0].code.as_str()), (Some(id), "unknown_agent"));
}

#[tokio::test]
async fn what_is_not_accepted_is_refused_by_name_with_exit_code_2() {
    let fleet = Fleet::new().await;
    let enqueue = ["enqueue", "--session", "s", "--agent", "echo"];
    for (arguments, text) in [
        (["--input", "{"], "--input: not JSON"),
        (["--input", r#""\u0000""#], "--input: a string contains \\u0000"),
        (["--job-id", "0198c0de-7a00-4000-8000-000000000001"], "--job-id"),
        (["--max-attempts", "0"], "retry.max_attempts: got 0, expected 1 to 100"),
        (["--timeout-ms", "0"], "timeout_ms: got 0"),
        (["--pool", "a b"], "--pool"),
    ] {
        let ran = fleet.producer(&[&enqueue[..], &arguments].concat()).await;
        assert_eq!(ran.code, 2, "{arguments:?}: {ran:?}");
        assert!(ran.err.contains(text), "{arguments:?}: {ran:?}");
    }
    let unknown = JobId::now().to_string();
    let ran = fleet.producer(&["status", &unknown]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains(&unknown), "{ran:?}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 0);
}

#[tokio::test]
async fn jobs_end_exactly_once_while_their_workers_are_killed() {
    const WORKERS: usize = 3;
    const KILLS: u32 = 6;
    let fleet = Fleet::new().await;
    let jobs: Vec<JobSpec> = (0..90)
        .map(|n| {
            // Enough attempts, however often the job dies with its worker.
            let mut spec = job(&format!("s-{}", n % 12), "scripted", json!({"count": 4, "delay_ms": 40}));
            spec.retry.max_attempts = 100;
            spec
        })
        .collect();
    fleet.enqueue(&jobs).await;
    // Every tenth job is sent twice.
    let again = jobs.iter().step_by(10).map(|spec| {
        let id = spec.job_id.to_string();
        let properties = lapin::BasicProperties::default().with_message_id(id.into());
        (job::encode(spec).into_bytes(), properties)
    });
    fleet.vhost.publish(again.collect()).await;

    let mut workers = BTreeMap::new();
    for n in 0..WORKERS {
        workers.insert(n, fleet.worker(&format!("worker {n}")).short_lease().launch());
    }
    for kill in 1..=KILLS {
        let ended = i64::from(kill) * 8;
        let enough = async || {
            let count = fleet.database.count("SELECT count(*) FROM harness_results").await;
            (count >= ended).then_some(())
        };
        until("jobs end between the kills", enough).await;
        let at = fastrand::usize(..WORKERS);
        workers.get_mut(&at).unwrap().kill();
        workers.insert(at, fleet.worker(&format!("worker {at} after kill {kill}")).short_lease().launch());
    }
    let mut worked = BTreeMap::<String, i64>::new();
    for spec in &jobs {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!((view.state, view.iterations), (JobState::Succeeded, 4), "{view:?}");
        *worked.entry(view.session_id).or_default() += view.iterations;
    }
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_results").await, 90);
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 0);
    fleet.database.audited().await;
    // Anything done twice would count twice here.
    for (session, iterations) in worked {
        assert_eq!(fleet.session(&session).await.iteration_count, iterations, "{session}");
    }
    assert_eq!(fleet.vhost.dead_letters().await, []);
}

#[tokio::test]
async fn a_job_is_recorded_failed_with_what_the_harness_said() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let spec = job("s", "scripted", json!({"cuont": 1}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    let failure = view.failure.unwrap();
    assert_eq!((view.state, failure.code), (JobState::Failed, FailureCode::BadInput));
    assert!(failure.message.contains("cuont"), "{failure}");
    let status = fleet.producer(&["status", &spec.job_id.to_string()]).await;
    assert_eq!(status.code, 1, "{status:?}");
    assert!(status.out.contains("failed") && status.out.contains("bad_input"), "{status:?}");
}

#[tokio::test]
async fn jobs_of_a_deleted_queue_are_published_again_once_however_many_processes_notice() {
    let database = Database::new().await;
    let (store, pool) = (database.store(), Name::default());
    let jobs: Vec<JobSpec> = (0..4).map(|n| steps(n, 1, 0)).collect();
    store.accept(&jobs).await.unwrap();
    let ids: Vec<_> = jobs.iter().map(|spec| spec.job_id).collect();
    store.confirm(&ids[..2]).await.unwrap();
    let heard = Instant::now();
    // Longer than it takes to ask Postgres for its clock.
    let later = async || (heard.elapsed() > Duration::from_secs(1)).then_some(());
    until("a second has passed", later).await;
    assert_eq!(store.return_lost(&pool, heard).await.unwrap(), 4, "including what the broker has confirmed");
    let published = async || {
        let (due, _) = store.take_due(100).await.unwrap();
        store.confirm(&due.iter().map(|due| due.job_id).collect::<Vec<_>>()).await.unwrap();
        due.len()
    };
    assert_eq!(published().await, 4);
    // A second process noticed the deletion at the same time, but was slower.
    assert_eq!(store.return_lost(&pool, heard).await.unwrap(), 0, "they were returned already");
    assert_eq!(published().await, 0);
    assert_eq!(store.return_lost(&pool, Instant::now()).await.unwrap(), 4, "the next queue is deleted too");
}
