//! The ledger shows what a pool needs: what runs and waits, which workers could take it, and how long runs take.

use std::time::Duration;

use job::{JobSpec, Name, WorkerId};
use serde_json::json;
use store::{Durations, End, PoolDemand, Store, Throughput, WorkerRegistration};
use tests::{Database, Runner, claimed, job, leading, until};

const LONG: Duration = Duration::from_secs(3_600);

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn in_pool(pool: &str, session: &str) -> JobSpec {
    JobSpec { pool: name(pool), ..job(session, "echo", json!(1)) }
}

async fn worker(store: &Store, pool: &str, slots: u32, lease: Duration) -> Runner {
    let worker = WorkerId::random();
    let (host, pod_name) = ("host".to_owned(), Some(format!("{pool}-{slots}")));
    let schema = migrations::newest();
    let registration = WorkerRegistration { worker, host, pod_name, pool: name(pool), slots, lease, schema };
    store.register_worker(&registration).await.expect("registered");
    Runner { store: store.clone(), worker }
}

async fn demand(store: &Store, pool: &str) -> PoolDemand {
    store.demand(&[name(pool)], Duration::from_secs(60)).await.expect("the ledger").remove(0)
}

#[tokio::test]
async fn every_job_and_worker_is_counted_in_its_pool_by_what_it_does() {
    let database = Database::new().await;
    let store = database.store();
    let leader = leading(&store).await;
    let (busy, idle, marked, drains) = (
        worker(&store, "a", 1, LONG).await,
        worker(&store, "a", 2, LONG).await,
        worker(&store, "a", 4, LONG).await,
        worker(&store, "a", 8, LONG).await,
    );
    let other = worker(&store, "b", 16, LONG).await;
    store.mark_drains(&leader, &[marked.worker], LONG).await.unwrap();
    store.mark_draining(drains.worker).await.unwrap();

    let jobs: Vec<JobSpec> = ["runs", "runs", "later", "soon", "queued", "publishing", "drains"]
        .map(|session| in_pool("a", session))
        .into();
    store.accept(&jobs).await.unwrap();
    claimed(busy.claim(&jobs[0]).await.unwrap());
    busy.claim(&jobs[1]).await.unwrap();
    for (at, delay) in [(2, LONG), (3, Duration::from_secs(30))] {
        let run = claimed(busy.claim(&jobs[at]).await.unwrap());
        store.conclude(busy.conclusion(&run, End::HandBack { delay })).await.unwrap();
    }
    store.confirm(&[jobs[4].job_id]).await.unwrap();
    claimed(drains.claim(&jobs[6]).await.unwrap());
    let foreign = in_pool("b", "foreign");
    claimed(other.claim(&foreign).await.unwrap());
    database
        .execute("UPDATE harness_jobs SET due_at = now() - interval '1 hour' WHERE state = 'blocked'")
        .await;

    let pools = [name("b"), name("none"), name("a")];
    let seen = store.demand(&pools, Duration::from_secs(60)).await.unwrap();
    let now_ms = store.clock().await.unwrap().now_unix_ms();
    let a = &seen[2];
    assert!(a.at_ms.abs_diff(now_ms) < 30_000, "{a:?}");
    let waited = a.oldest_waiting_ms.expect("one waits");
    assert!(waited < 60_000, "a blocked job waits for its session: {a:?}");
    let expected = PoolDemand {
        at_ms: a.at_ms,
        running: 2,
        blocked: 1,
        due_soon: 2,
        oldest_waiting_ms: Some(waited),
        in_line: 0,
        line_is_old: false,
        oldest_in_line_ms: None,
        workers: 2,
        slots: 3,
        busy_workers: 2,
        draining_workers: 2,
        starts_per_s: 0.0,
    };
    assert_eq!(*a, expected);
    let (b, none) = (&seen[0], &seen[1]);
    assert_eq!((b.running, b.workers, b.slots, b.busy_workers, b.due_soon), (1, 1, 16, 1, 0));
    assert_eq!(*none, PoolDemand { at_ms: none.at_ms, ..PoolDemand::default() });

    let views = store.pool_workers(&[name("a")]).await.unwrap();
    let view = |runner: &Runner| views.iter().find(|view| view.worker == runner.worker).expect("a view");
    assert_eq!(views.len(), 4);
    assert_eq!((view(&busy).held, view(&idle).held, view(&drains).held), (1, 0, 1));
    assert_eq!(view(&idle).pod_name.as_deref(), Some("a-2"));
    assert!(view(&drains).draining && view(&drains).mark.is_none());
    let mark = view(&marked).mark.expect("a mark");
    assert!(mark.epoch == leader.epoch && !mark.drained && mark.left_ms > 3_000_000, "{mark:?}");
    assert!(store.confirm_drained(marked.worker, leader.epoch).await.unwrap());
    let views = store.pool_workers(&[name("a")]).await.unwrap();
    assert!(views.iter().any(|view| view.mark.is_some_and(|mark| mark.drained)));
}

#[tokio::test]
async fn the_oldest_job_that_could_run_shows_how_long_jobs_wait() {
    let database = Database::new().await;
    let store = database.store();
    assert_eq!(demand(&store, "a").await.oldest_waiting_ms, None);
    let jobs: Vec<JobSpec> = ["first", "second", "third"].map(|session| in_pool("a", session)).into();
    store.accept(&jobs).await.unwrap();
    let ago = async |at: usize, state: &str, minutes: u32| {
        let sql = format!(
            "UPDATE harness_jobs SET state = '{state}', due_at = now() - interval '{minutes} minutes',
                    state_since = now() - interval '{minutes} minutes' WHERE job_id = '{}'",
            jobs[at].job_id
        );
        database.execute(&sql).await;
    };
    let minutes = async || demand(&store, "a").await.oldest_waiting_ms.expect("one waits") / 60_000;
    ago(0, "queued", 3).await;
    assert_eq!(minutes().await, 3);
    ago(1, "publishing", 4).await;
    assert_eq!(minutes().await, 4);
    ago(2, "scheduled", 5).await;
    assert_eq!(minutes().await, 5);
    assert_eq!(demand(&store, "b").await.oldest_waiting_ms, None);
}

#[tokio::test]
async fn a_worker_whose_lease_has_run_out_is_no_capacity_but_its_job_still_counts() {
    let database = Database::new().await;
    let store = database.store();
    let runner = worker(&store, "a", 4, Duration::from_millis(200)).await;
    claimed(runner.claim(&in_pool("a", "s")).await.unwrap());
    let stale = async || Some(demand(&store, "a").await).filter(|demand| demand.workers == 0);
    let seen = until("its lease runs out", stale).await;
    assert_eq!((seen.slots, seen.running, seen.busy_workers, seen.draining_workers), (0, 1, 1, 0));
    assert!(!store.pool_workers(&[name("a")]).await.unwrap()[0].fresh);
}

#[tokio::test]
async fn the_throughput_that_workers_report_is_that_of_their_pools() {
    let database = Database::new().await;
    let store = database.store();
    let workers = [
        worker(&store, "a", 4, LONG).await,
        worker(&store, "a", 4, LONG).await,
        worker(&store, "b", 4, LONG).await,
    ];
    for (runner, ms) in workers.iter().zip([1_000, 3_000, 50]) {
        let mut durations = Durations::default();
        (0..10).for_each(|_| durations.add(Duration::from_millis(ms)));
        store.beat(runner.worker, &Throughput { starts_per_s: 1.5, durations }).await.unwrap();
    }
    assert_eq!(demand(&store, "a").await.starts_per_s, 3.0);
    let pools = [name("b"), name("none"), name("a")];
    let seen = store.service_times(&pools).await.unwrap();
    let runs: Vec<u64> = seen.iter().map(Durations::runs).collect();
    assert_eq!((runs.as_slice(), seen[2].mean_ms()), ([10, 0, 20].as_slice(), 2_000.0));
    let (median, late) = (seen[2].quantile_ms(0.5), seen[2].quantile_ms(0.95));
    assert!((850.0..=1_200.0).contains(&median) && (2_500.0..=3_500.0).contains(&late), "{median} {late}");

    // A worker that has ended takes no more jobs, but what it has measured stays valid for a while.
    store.mark_stopped(workers[0].worker).await.unwrap();
    assert_eq!(demand(&store, "a").await.starts_per_s, 1.5);
    assert_eq!(store.service_times(&pools).await.unwrap()[2].runs(), 20);
}
