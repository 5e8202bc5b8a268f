//! Keys of jobs in the ledger: one job holds a key at a time, however many callers bring it and in whatever order, and
//! a key that is held no longer is forgotten at a bounded cost.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use futures::future::join_all;
use job::{JobId, JobSpec};
use serde_json::json;
use store::{Acceptance, JobKey, KeyKind, Store, Taken};
use tests::{Database, Runner, claimed, job};

const DAY: Duration = Duration::from_secs(86_400);

fn unique(key: &str, held_for: Duration) -> JobKey {
    JobKey { kind: KeyKind::Unique, key: key.to_owned(), held_for }
}

fn idempotent(key: &str) -> JobKey {
    JobKey { kind: KeyKind::Idempotency, key: key.to_owned(), held_for: DAY }
}

fn with(spec: &JobSpec, keys: &[JobKey]) -> Acceptance {
    Acceptance::new(spec.clone(), 100).with_keys(keys.to_vec(), [7; 32])
}

async fn taken(store: &Store, spec: &JobSpec, keys: &[JobKey]) -> Taken {
    store.take(with(spec, keys)).await.expect("an answer")
}

fn new() -> JobSpec {
    job("s", "echo", json!(1))
}

fn holder(answer: &Taken, own: JobId) -> JobId {
    match answer {
        Taken::New { .. } => own,
        Taken::Found { job_id, .. } => *job_id,
        Taken::Known => panic!("the id is fresh"),
    }
}

/// Callers of several processes bring the same few keys in any order and together. A lock out of order would be a
/// deadlock, which fails a call.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_any_interleaving_one_job_takes_a_key_and_no_call_fails() {
    let seed = std::env::var("STORM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("STORM_SEED={seed} begins the same way");
    let mut rng = Rng::with_seed(seed);
    let database = Database::new().await;
    let calling = (0..6).map(|n| {
        // Each is like a process, with its own connections and batches.
        let (store, mut rng) = (database.store(), rng.fork());
        tokio::spawn(async move {
            let mut seen = Vec::new();
            for _ in 0..30 {
                let call = |rng: &mut Rng| {
                    let mut keys = vec![idempotent(&format!("i-{}", rng.u32(..40)))];
                    if rng.bool() {
                        keys.push(unique(&format!("u-{}", rng.u32(..40)), DAY));
                    }
                    rng.shuffle(&mut keys);
                    (new(), keys)
                };
                let calls: Vec<(JobSpec, Vec<JobKey>)> =
                    (0..rng.usize(1..12)).map(|_| call(&mut rng)).collect();
                let answers = if n % 2 == 0 {
                    let calls: Vec<Acceptance> =
                        calls.iter().map(|(spec, keys)| with(spec, keys).with_fresh_id()).collect();
                    store.take_in_order(&calls, Duration::MAX).await
                } else {
                    join_all(calls.iter().map(|(spec, keys)| store.take(with(spec, keys)))).await
                };
                for ((spec, keys), answer) in calls.into_iter().zip(answers) {
                    seen.push((spec.job_id, keys, answer.expect("an answer")));
                }
            }
            seen
        })
    });
    let seen: Vec<_> =
        join_all(calling.collect::<Vec<_>>()).await.into_iter().flat_map(Result::unwrap).collect();
    let mut holders = BTreeMap::<String, BTreeSet<JobId>>::new();
    let mut accepted = BTreeSet::new();
    for (own, keys, answer) in &seen {
        if matches!(answer, Taken::New { .. }) {
            accepted.insert(*own);
            for key in keys {
                holders.entry(key.key.clone()).or_default().insert(*own);
            }
        }
        for key in keys.iter().filter(|key| key.kind == KeyKind::Idempotency) {
            holders.entry(key.key.clone()).or_default().insert(holder(answer, *own));
        }
    }
    for (key, jobs) in &holders {
        assert_eq!(jobs.len(), 1, "{key}: {jobs:?}");
    }
    assert_eq!(database.count("SELECT count(*) FROM harness_jobs").await, accepted.len() as i64);
    let rows = "SELECT count(*) FROM harness_taken_keys";
    assert_eq!(
        database.count(rows).await,
        holders.len() as i64,
        "no row is left of a job that was not accepted"
    );
    database.audited().await;
}

#[tokio::test]
async fn jobs_of_the_same_keys_are_taken_together_and_find_the_first_of_them() {
    let database = Database::new().await;
    let store = database.store();
    let (a, b) = (idempotent("a"), unique("b", DAY));
    let keys =
        [vec![a.clone()], vec![a.clone()], vec![b.clone()], vec![], vec![b.clone()], vec![a.clone(), b]];
    let jobs: Vec<Acceptance> = keys
        .into_iter()
        .map(|keys| Acceptance::new(new(), 100).with_keys(keys, [7; 32]).with_fresh_id())
        .collect();
    let answers = store.take_in_order(&jobs, Duration::MAX).await;
    let answers: Vec<Taken> = answers.into_iter().map(|answer| answer.expect("an answer")).collect();
    let own: Vec<JobId> = jobs.iter().map(|job| job.spec().job_id).collect();
    let holders: Vec<JobId> = answers.iter().zip(&own).map(|(answer, own)| holder(answer, *own)).collect();
    assert_eq!(holders, [own[0], own[0], own[2], own[3], own[2], own[0]], "{answers:?}");
    let same = |answer: &Taken| matches!(answer, Taken::Found { by: KeyKind::Idempotency, same: true, .. });
    assert!(same(&answers[1]) && same(&answers[5]), "{answers:?}");
    let transactions = "SELECT count(DISTINCT xmin::text) FROM harness_jobs";
    assert_eq!(database.count(transactions).await, 1);
    let order = database.texts("SELECT job_id::text FROM harness_jobs ORDER BY seq").await;
    assert_eq!(order, [own[0], own[2], own[3]].map(|id| id.to_string()));
}

#[tokio::test]
async fn a_key_is_forgotten_when_no_job_holds_it_and_living_jobs_hold_up_no_other() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let (lives, ends) = (job("a", "echo", json!(1)), job("b", "echo", json!(1)));
    taken(&store, &lives, &[unique("lives", Duration::ZERO), idempotent("lives")]).await;
    taken(&store, &ends, &[unique("ends", Duration::ZERO), idempotent("ends")]).await;
    assert_eq!(store.forget_keys(None).await.unwrap(), (0, None));
    let run = claimed(runner.claim(&ends).await.unwrap());
    runner.succeed(&run).await.unwrap();
    database.execute("UPDATE harness_taken_keys SET expires_at = now() - interval '1 minute'").await;
    assert_eq!(store.forget_keys(None).await.unwrap(), (3, None));
    let left = "SELECT kind || ' ' || key FROM harness_taken_keys";
    assert_eq!(database.texts(left).await, ["unique lives"]);
    assert!(matches!(taken(&store, &new(), &[unique("lives", DAY)]).await, Taken::Found { .. }));

    // Rows of jobs that live are in front of those that can go.
    database
        .execute(
            "INSERT INTO harness_jobs (job_id, session_id, agent_id, pool, message, state)
             SELECT ('00000000-0000-7000-8000-' || lpad(n::text, 12, '0'))::uuid, 's-' || n, 'echo', 'default', '{}', 'queued'
               FROM generate_series(1, 2500) n;
             INSERT INTO harness_taken_keys (tenant, kind, key, job_id, sent, expires_at)
             SELECT 'default', 'unique', job_id::text, job_id, sha256(''), now() - interval '1 hour' FROM harness_jobs
              WHERE session_id LIKE 's-%';
             INSERT INTO harness_taken_keys (tenant, kind, key, job_id, sent, expires_at)
             SELECT 'default', 'idempotency', n::text, gen_random_uuid(), sha256(''), now() - interval '1 minute'
               FROM generate_series(1, 100) n",
        )
        .await;
    let (mut behind, mut looks, mut forgotten) = (None, 0, 0);
    loop {
        let (gone, next) = store.forget_keys(behind).await.unwrap();
        (forgotten, looks, behind) = (forgotten + gone, looks + 1, next);
        if next.is_none() {
            break;
        }
    }
    assert_eq!((forgotten, looks), (100, 3));
}

#[tokio::test]
async fn a_job_that_ended_or_whose_id_is_known_takes_no_key() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    let ended = job("a", "echo", json!(1));
    let run = claimed(runner.claim(&ended).await.unwrap());
    runner.succeed(&run).await.unwrap();
    assert_eq!(taken(&store, &ended, &[idempotent("k")]).await, Taken::Known);
    assert_eq!(database.count("SELECT count(*) FROM harness_taken_keys").await, 0);
    let first = new();
    assert!(matches!(taken(&store, &first, &[idempotent("k")]).await, Taken::New { .. }));
    assert_eq!(taken(&store, &first, &[idempotent("k")]).await, Taken::Known);
    assert_eq!(taken(&store, &first, &[idempotent("other")]).await, Taken::Known);
    assert_eq!(database.texts("SELECT key FROM harness_taken_keys").await, ["k"]);
    // A result that retention has dropped holds nothing.
    database.execute("DELETE FROM harness_jobs").await;
    assert!(matches!(taken(&store, &new(), &[idempotent("k")]).await, Taken::New { .. }));
}

#[tokio::test]
async fn an_audit_names_a_key_that_finds_no_job_of_its_tenant() {
    let database = Database::new().await;
    let store = database.store();
    let spec = new();
    taken(&store, &spec, &[idempotent("k")]).await;
    database.audited().await;
    database.execute("UPDATE harness_taken_keys SET tenant = 'other'").await;
    let audit = database.audit().await;
    let found: Vec<_> = audit.checks.iter().filter(|checked| checked.found > 0).collect();
    assert_eq!((found.len(), found[0].check), (1, "taken_keys"), "{found:?}");
    assert_eq!(found[0].offenders[0].id, spec.job_id.to_string());
}
