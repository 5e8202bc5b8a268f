//! Labels are on a job from its first record on, however it comes in, until retention takes its result. They never stand
//! in the way of the job itself, and a job without labels has none of their rows.

use std::time::Duration;

use job::{JobId, JobSpec, JobState, Label, Labels};
use lapin::BasicProperties;
use serde_json::{Value, json};
use store::{Acceptance, Accepted, Answer, JobFilter, JobKey, KeyKind, Store, Taken};
use tests::{Database, Fleet, Runner, claimed, job};
use uuid::Uuid;

const ROWS: &str = "SELECT count(*) FROM harness_labels";

fn label(text: &str) -> Label {
    text.parse().expect("a label")
}

fn labels(texts: &[&str]) -> Labels {
    Labels::of(texts.iter().copied().map(label)).expect("labels")
}

fn with(session: &str, texts: &[&str]) -> JobSpec {
    JobSpec { labels: labels(texts), ..job(session, "echo", json!(1)) }
}

async fn shown(store: &Store, job_id: JobId) -> Labels {
    store.jobs(&[job_id]).await.expect("an answer").remove(0).labels
}

async fn listed(store: &Store, texts: &[&str]) -> Vec<JobId> {
    let labels = texts.iter().copied().map(label).collect();
    let filter = JobFilter { labels, ..JobFilter::default() };
    let page = store.list_jobs(&filter, None, 100).await.expect("a page");
    assert!(page.next.is_none());
    page.found.iter().map(|line| line.job_id).collect()
}

#[tokio::test]
async fn labels_are_on_a_job_from_its_first_record_to_after_its_end() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let (accepted, raw) = (with("a", &["team=search", "run=1"]), with("b", &["team=search", "run=2"]));
    let plain = job("c", "echo", json!(1));
    let both = [accepted.clone(), plain.clone()];
    assert_eq!(
        store.accept(&both).await.unwrap(),
        [Accepted::New(JobState::Publishing), Accepted::New(JobState::Publishing)]
    );
    assert_eq!(database.count(ROWS).await, 2, "a job without labels has no row");
    let first = claimed(runner.claim(&raw).await.unwrap());
    assert_eq!(database.count(ROWS).await, 4);

    // What comes again under the same id changes nothing, neither while the job lives nor after its end.
    let later = |spec: &JobSpec| JobSpec { labels: labels(&["team=other", "more=1"]), ..spec.clone() };
    let again = async |ended: bool| {
        for spec in [&accepted, &raw] {
            assert_eq!(store.accept(&[later(spec)]).await.unwrap(), [Accepted::Duplicate]);
            assert_eq!(store.take(Acceptance::new(later(spec), 100)).await.unwrap(), Taken::Known);
            if ended {
                assert!(matches!(runner.claim(&later(spec)).await.unwrap(), Answer::Finished(_)));
            }
        }
        assert_eq!(database.count(ROWS).await, 4, "ended: {ended}");
    };
    again(false).await;
    // The reply to the first claim was lost.
    let raw_run = claimed(runner.claim(&later(&raw)).await.unwrap());
    assert!(raw_run.claim.epoch() > first.claim.epoch());
    let run = claimed(runner.claim(&later(&accepted)).await.unwrap());
    let plain_run = claimed(runner.claim(&plain).await.unwrap());
    for (spec, run) in [(&accepted, &run), (&raw, &raw_run), (&plain, &plain_run)] {
        assert_eq!(shown(&store, spec.job_id).await, spec.labels);
        runner.succeed(run).await.unwrap();
        assert_eq!(shown(&store, spec.job_id).await, spec.labels);
    }
    again(true).await;

    assert_eq!(listed(&store, &["team=search"]).await, [raw.job_id, accepted.job_id]);
    assert_eq!(listed(&store, &["team=search", "run=1"]).await, [accepted.job_id]);
    assert_eq!(listed(&store, &["run=1", "run=2"]).await, []);
    assert_eq!(listed(&store, &["team=other"]).await, []);
    database.audited().await;
}

#[tokio::test]
async fn jobs_with_keys_have_labels_where_they_are_accepted() {
    let database = Database::new().await;
    let store = database.store();
    let key = |key: &str| JobKey { kind: KeyKind::Unique, key: key.to_owned(), held_for: Duration::ZERO };
    let take = async |spec: &JobSpec, name: &str| {
        store.take(Acceptance::new(spec.clone(), 100).with_keys(vec![key(name)], [7; 32])).await.unwrap()
    };
    let (first, second, third) = (with("a", &["n=1"]), with("b", &["n=2"]), with("c", &["n=3"]));
    assert!(matches!(take(&first, "k").await, Taken::New { .. }));
    assert!(matches!(take(&second, "k").await, Taken::Found { .. }));
    assert!(matches!(store.take(Acceptance::new(third.clone(), 100)).await.unwrap(), Taken::New { .. }));
    assert_eq!(database.texts("SELECT label FROM harness_labels ORDER BY 1").await, ["n=1", "n=3"]);
    // One call with the same id twice: the first counts.
    let twice = with("d", &["n=4"]);
    let pair = [twice.clone(), JobSpec { labels: labels(&["n=5"]), ..twice }];
    assert_eq!(
        store.accept(&pair).await.unwrap(),
        [Accepted::New(JobState::Publishing), Accepted::Duplicate]
    );
    assert_eq!(listed(&store, &["n=4"]).await.len() + listed(&store, &["n=5"]).await.len(), 1);
    database.audited().await;
}

#[tokio::test]
async fn labels_go_with_the_results_and_never_make_a_job_fail() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let day = Duration::from_secs(86_400);
    store.maintain_partitions(day * 60).await.unwrap();
    let at = |days_ago: u128| {
        let now = Uuid::from(JobId::now()).as_u128();
        JobId::try_from(Uuid::from_u128(now - ((days_ago * 86_400_000) << 80))).expect("version 7")
    };
    let old = JobSpec { job_id: at(50), ..with("old", &["team=search"]) };
    let new = with("new", &["team=search"]);
    for spec in [&old, &new] {
        runner.succeed(&claimed(runner.claim(spec).await.unwrap())).await.unwrap();
    }
    assert_eq!(listed(&store, &["team=search"]).await, [new.job_id, old.job_id]);
    let (_, dropped) = store.maintain_partitions(day * 2).await.unwrap().expect("no other process at it");
    assert!(dropped > 0);
    assert_eq!(listed(&store, &["team=search"]).await, [new.job_id]);
    assert_eq!(database.count(ROWS).await, 1);
    let tables = "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relname ~ '^harness_{}_w'";
    let of = |table: &str| tables.replace("{}", table);
    assert_eq!(database.count(&of("labels")).await, database.count(&of("results")).await);

    // Upkeep was down for long.
    let partitions =
        "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'harness_labels'::regclass";
    for partition in database.texts(partitions).await {
        database.execute(&format!("DROP TABLE {partition}")).await;
    }
    let (accepted, raw) = (with("a", &["team=search"]), with("b", &["team=search"]));
    assert_eq!(
        store.accept(std::slice::from_ref(&accepted)).await.unwrap(),
        [Accepted::New(JobState::Publishing)]
    );
    for spec in [&accepted, &raw] {
        runner.succeed(&claimed(runner.claim(spec).await.unwrap())).await.unwrap();
        assert!(shown(&store, spec.job_id).await.is_empty());
    }
    assert!(store.partitions_ahead(day * 2).await.unwrap().missing > 0);
    assert!(store.maintain_partitions(day * 2).await.unwrap().expect("no other process at it").0 > 0);
    assert_eq!(store.partitions_ahead(day * 2).await.unwrap().missing, 0);
    let after = with("c", &["team=search"]);
    store.accept(std::slice::from_ref(&after)).await.unwrap();
    assert_eq!(listed(&store, &["team=search"]).await, [after.job_id]);
    let audit = database.audit().await;
    assert!(audit.checks.iter().all(|checked| checked.check != "labels" || checked.found == 0), "{audit:#?}");
}

#[tokio::test]
async fn a_label_of_no_job_or_of_another_tenants_is_a_finding() {
    let database = Database::new().await;
    let store = database.store();
    let spec = with("a", &["team=search"]);
    store.accept(std::slice::from_ref(&spec)).await.unwrap();
    let lost = JobId::now();
    for (tenant, job_id) in [("acme", spec.job_id), ("default", lost)] {
        let row = format!("INSERT INTO harness_labels VALUES ('{tenant}', 'team=ads', '{job_id}')");
        database.execute(&row).await;
    }
    let audit = database.audit().await;
    let found = audit.checks.iter().find(|checked| checked.check == "labels").expect("the check");
    let mut ids: Vec<&str> = found.offenders.iter().map(|row| row.id.as_str()).collect();
    ids.sort();
    assert_eq!(ids, [spec.job_id.to_string(), lost.to_string()]);
}

#[tokio::test]
async fn raw_messages_and_commands_bring_labels_and_find_jobs_by_them() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let raw = with("raw", &["team=search", "by=amqp"]);
    fleet.vhost.publish(vec![(job::encode(&raw).into_bytes(), BasicProperties::default())]).await;
    assert_eq!(fleet.ended(raw.job_id).await.state, JobState::Succeeded);
    let flags = ["--label", "team=search", "--label", "by=flags"];
    // It leaves no letter, of which the second run would leave another one.
    let fails = r#"{"iterations": [{"fail": {"message": "no", "retryable": false}}]}"#;
    let fails = ["enqueue", "--session", "s", "--agent", "scripted", "--input", fails];
    let ran = fleet.producer(&[&fails[..], &flags].concat()).await;
    let failed: JobId = ran.out.trim().parse().expect("an id");
    let line = r#"{"session_id":"t","agent_id":"echo","labels":{"team":"search","by":"lines"}}"#;
    let ran = fleet.producer_with_input(line, &["enqueue", "--file", "-", "--print-ids"]).await;
    let by_lines: JobId = ran.out.trim().parse().expect("an id");
    for job_id in [failed, by_lines] {
        fleet.ended(job_id).await;
    }

    let ids = async |command: &[&str]| -> Vec<String> {
        let ran = fleet.producer(command).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        let id = |line: &Value| line["job_id"].as_str().or(line["id"].as_str()).expect("an id").to_owned();
        ran.json().iter().map(id).collect()
    };
    let all = ids(&["jobs", "--json", "--label", "team=search"]).await;
    assert_eq!(all, [by_lines, failed, raw.job_id].map(|id| id.to_string()));
    let one = ids(&["jobs", "--json", "--label", "by=amqp", "--label", "team=search"]).await;
    assert_eq!(one, [raw.job_id.to_string()]);
    assert_eq!(ids(&["jobs", "--json", "--label", "by=none"]).await.len(), 0);
    let ran = fleet.producer(&["status", "--json", &raw.job_id.to_string()]).await;
    assert_eq!(ran.json()[0]["labels"], json!({"team": "search", "by": "amqp"}));
    let ran = fleet.producer(&["status", &raw.job_id.to_string()]).await;
    assert!(ran.out.contains("labels") && ran.out.contains("by=amqp"), "{ran:?}");

    // Dead letters, and the job that does the work again.
    let dead = ids(&["dead", "list", "--json", "--label", "by=flags"]).await;
    assert_eq!(dead, [failed.to_string()]);
    assert_eq!(ids(&["dead", "list", "--json", "--label", "by=amqp"]).await.len(), 0);
    let ran = fleet.producer(&["dead", "redrive", "--all", "--label", "by=amqp", "--yes"]).await;
    assert!(!ran.out.contains(&failed.to_string()), "{ran:?}");
    let ran = fleet.producer(&["dead", "redrive", "--all", "--label", "by=flags", "--yes"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ids(&["jobs", "--json", "--label", "by=flags"]).await.len(), 2);
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_wrong_label_is_refused_by_the_name_of_its_field() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let nine: serde_json::Map<_, _> = (0..9).map(|n| (format!("k{n}"), json!("v"))).collect();
    let cases = [
        (json!({"a b": "c"}), "labels: got the key"),
        (json!({"team": "a b"}), "labels.team: got"),
        (json!({"team": 7}), "labels.team: invalid type: integer"),
        (json!(["team"]), "labels: invalid type: sequence"),
        (json!(nine), "labels: got 9, expected at most 8"),
    ];
    for (wrong, reason) in &cases {
        let id = JobId::now();
        let body = json!({"schema": "harness.job.v1", "job_id": id, "session_id": "s", "agent_id": "echo", "labels": wrong});
        let ran = fleet.producer_with_input(&body.to_string(), &["enqueue", "--file", "-"]).await;
        assert!(ran.code == 3 && ran.err.contains(&format!("line 1: {reason}")), "{ran:?}");
        fleet.vhost.publish(vec![(body.to_string().into_bytes(), BasicProperties::default())]).await;
        worker.said(reason).await;
    }
    fleet.vhost.so_many_dead_letters(cases.len()).await;
    let enqueue = ["enqueue", "--session", "s", "--agent", "echo"];
    for (flags, reason) in [
        (&["--label", "team"][..], "expected key=value"),
        (&["--label", "a b=c"], "the key"),
        (&["--label", "team=a", "--label", "team=b"], "labels: got the key \"team\" twice"),
    ] {
        let ran = fleet.producer(&[&enqueue[..], flags].concat()).await;
        assert!(ran.code == 2 && ran.err.contains(reason), "{ran:?}");
    }
    let many = ["--label", "a=b"].repeat(9);
    let ran = fleet.producer(&[&["jobs"][..], &many].concat()).await;
    assert!(ran.code == 2 && ran.err.contains("at most 8"), "{ran:?}");
    assert_eq!(fleet.database.count(ROWS).await, 0);
}
