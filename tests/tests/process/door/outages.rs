//! What was accepted has its end, whatever was away meanwhile; and what is not known to be accepted is answered so,
//! in time.

use std::collections::HashSet;
use std::time::Duration;

use futures::future::join_all;
use job::JobId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, raw_sql};
use tests::{Api, Database, Fleet, Link, OwnBroker, OwnPostgres, Proxy, until, until_ok_within};
use tokio::time::Instant;

use super::webhooks::receiver::Receiver;

/// The two seconds of the promise, and one for a busy machine.
const IN_TIME: Duration = Duration::from_secs(3);
/// As many as a batch may have.
const JOBS: usize = 10_000;
/// The default of API_ANSWER_WITHIN_MS, which keeps the promise.
const ANSWER_WITHIN_MS: u64 = 1_700;

/// Expects that one of three measurements is below a bound: a busy machine may stand still for seconds.
pub async fn in_time(bound: Duration, mut measure: impl AsyncFnMut() -> Duration) {
    let mut took = Vec::new();
    for _ in 0..3 {
        let time = measure().await;
        if time < bound {
            return;
        }
        took.push(time);
    }
    panic!("late each time: {took:?}");
}

/// Submits a job that has an id until it is accepted.
async fn accepted(api: &Api, spec: &Value) {
    let look = async || matches!(api.submit(spec).await.status, 200 | 202).then_some(());
    until("the job is accepted", look).await;
}

/// The processes of a Postgres, which stand still until this is dropped.
struct Stopped(Vec<Pid>);

impl Stopped {
    async fn of(database: &Database) -> Stopped {
        let all = "SELECT split_part(pg_read_file('postmaster.pid'), E'\n', 1)
                    UNION ALL SELECT pid::text FROM pg_stat_activity";
        let all = database.texts(all).await;
        let stopped = Stopped(all.iter().map(|pid| Pid::from_raw(pid.parse().expect("a pid"))).collect());
        stopped.signal(Signal::SIGSTOP);
        stopped
    }

    /// Some may be gone.
    fn signal(&self, signal: Signal) {
        for pid in &self.0 {
            let _ = kill(*pid, signal);
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
    }
}

#[tokio::test]
async fn jobs_are_accepted_while_rabbitmq_is_stopped_and_all_end_when_it_is_back_although_the_door_was_killed()
 {
    let (fleet, own) = (Fleet::new().await, OwnBroker::start().await);
    let mut door = fleet.door("door").set("AMQP_URL", &own.url).start().await;
    let api = Api::of(&door).await;
    own.stop().await;
    // Each batch in sessions of its own.
    let submitting = (0..8).map(|caller| {
        let api = api.clone();
        async move {
            let spec =
                |n| json!({"agent_id": "echo", "session_id": format!("s-{caller}-{}", n % 100), "input": n});
            let batch: Vec<Value> = (0..JOBS / 8).map(spec).collect();
            let batch = api.post("/v1/jobs/batch", &json!(batch)).await.is(200).json();
            let items = batch["items"].as_array().expect("answers");
            let ids = items.iter().map(|item| {
                assert_eq!(item["status"], 202, "{item}");
                item["job_id"].as_str().expect("an id").to_owned()
            });
            ids.collect::<Vec<_>>()
        }
    });
    let accepted: HashSet<String> = join_all(submitting).await.concat().into_iter().collect();
    assert_eq!(accepted.len(), JOBS);
    let (status, ready) = door.get_json("/ready").await;
    assert_eq!((status, &ready["checks"]["database_connected"]), (200, &json!(true)), "{ready}");
    assert_ne!(ready["checks"]["broker"], "connected", "{ready}");
    // Between acceptance and publish.
    door.kill();
    own.start_again().await;
    let worker = fleet.worker("worker").set("AMQP_URL", &own.url).set("WORKER_SLOTS", 64);
    let _worker = worker.start().await;
    let door = fleet.door("next").set("AMQP_URL", &own.url).start().await;
    let api = Api::of(&door).await;
    let live = "SELECT count(*) FROM harness_jobs";
    until_ok_within(Duration::from_secs(180), "all have ended", async || {
        match fleet.database.count(live).await {
            0 => Ok(()),
            live => Err(live),
        }
    })
    .await;
    let ended = "SELECT job_id::text FROM harness_results WHERE state = 'succeeded' AND attempts = 1";
    assert_eq!(HashSet::from_iter(fleet.database.texts(ended).await), accepted);
    for job_id in accepted.iter().take(10) {
        assert_eq!(api.wait(job_id).await.is(200).text("state"), "succeeded");
    }
    fleet.database.audited().await;
}

#[tokio::test]
async fn while_postgres_is_silent_a_submission_has_its_503_within_two_seconds_and_names_the_job() {
    let fleet = Fleet::new().await;
    let proxy = Proxy::to(&fleet.database.url).await;
    let url = proxy.through(&fleet.database.url);
    let door = fleet.door("door").set("DATABASE_URL", url);
    let door = door.set("API_ANSWER_WITHIN_MS", ANSWER_WITHIN_MS).start().await;
    let api = Api::of(&door).await;
    accepted(&api, &json!({"agent_id": "echo", "job_id": JobId::now().to_string()})).await;
    for link in [Link::Frozen, Link::Cut, Link::RepliesLost] {
        proxy.set(link);
        for _ in 0..3 {
            let job_id = JobId::now().to_string();
            let spec = json!({"agent_id": "echo", "job_id": job_id});
            in_time(IN_TIME, async || {
                let asked = Instant::now();
                let reply = api.submit(&spec).await.problem(503, None);
                assert_eq!((reply.text("job_id"), reply.header("retry-after")), (job_id.clone(), "1"));
                asked.elapsed()
            })
            .await;
            api.get(&format!("/v1/jobs/{job_id}")).await.problem(503, None);
            // The id makes it safe to try again.
            if link == Link::RepliesLost {
                proxy.set(Link::Pass);
                accepted(&api, &spec).await;
                let count = format!("SELECT count(*) FROM harness_jobs WHERE job_id = '{job_id}'");
                assert_eq!(fleet.database.count(&count).await, 1);
                proxy.set(link);
            }
        }
        let unready = async || (door.get("/ready").await.0 == 503).then_some(());
        until("the door is not ready", unready).await;
        proxy.set(Link::Pass);
        let ready = async || (door.get("/ready").await.0 == 200).then_some(());
        until("the door is ready again", ready).await;
    }
}

#[tokio::test]
async fn while_the_processes_of_postgres_stand_still_each_request_has_its_503_in_time() {
    let postgres = OwnPostgres::with_clock(0).await;
    let fleet = Fleet::on(Database::new_on(&postgres.url).await);
    let door = fleet.door("door").set("API_ANSWER_WITHIN_MS", ANSWER_WITHIN_MS).start().await;
    let api = Api::of(&door).await;
    let known = JobId::now().to_string();
    accepted(&api, &json!({"agent_id": "echo", "job_id": known})).await;
    let spec = json!({"agent_id": "echo", "job_id": JobId::now().to_string()});
    let stopped = Stopped::of(&fleet.database).await;
    for _ in 0..3 {
        in_time(IN_TIME, async || {
            let asked = Instant::now();
            api.submit(&spec).await.problem(503, None);
            asked.elapsed()
        })
        .await;
        in_time(IN_TIME, async || {
            let asked = Instant::now();
            api.get(&format!("/v1/jobs/{known}")).await.problem(503, None);
            asked.elapsed()
        })
        .await;
    }
    drop(stopped);
    accepted(&api, &spec).await;
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 2);
}

#[tokio::test]
async fn a_webhook_that_is_tried_has_its_503_in_time_wherever_postgres_falls_silent() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("WEBHOOK_ALLOW", "127.0.0.0/8");
    let door = door.set("API_ANSWER_WITHIN_MS", ANSWER_WITHIN_MS).start().await;
    let (api, receiver) = (Api::of(&door).await, Receiver::start().await);
    let made = async || {
        let reply = api.post("/v1/webhooks", &json!({"url": receiver.url()})).await;
        (reply.status == 201).then(|| reply.text("id"))
    };
    let id = until("it is made", made).await;
    let path = format!("/v1/webhooks/{id}/test");
    // Its statements are prepared from now on.
    for _ in 0..3 {
        let tried = async || (api.post(&path, &json!(null)).await.status == 200).then_some(());
        until("it is tried", tried).await;
    }
    let before = receiver.received().len();
    let lock = async || {
        let mut holder = fleet.database.connect().await;
        let lock = "BEGIN; LOCK TABLE harness_webhooks IN ACCESS EXCLUSIVE MODE";
        raw_sql(lock).execute(&mut holder).await.expect("locked");
        holder
    };
    let waiting = async |count: i64| {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        until("they wait", async || (fleet.database.count(waits).await >= count).then_some(())).await;
    };
    in_time(IN_TIME, async || {
        let first = lock().await;
        let (api, path, asked) = (api.clone(), path.clone(), Instant::now());
        let asking = tokio::spawn(async move { (api.post(&path, &json!(null)).await, asked.elapsed()) });
        waiting(1).await;
        // The first question is answered, and the next one waits for this.
        let mut holder = fleet.database.connect().await;
        let second = tokio::spawn(async move {
            let lock = "BEGIN; LOCK TABLE harness_webhooks IN ACCESS EXCLUSIVE MODE";
            raw_sql(lock).execute(&mut holder).await.expect("locked");
            holder
        });
        waiting(2).await;
        drop(first);
        let _second = second.await.unwrap();
        let (reply, took) = asking.await.unwrap();
        reply.problem(503, None);
        took
    })
    .await;
    assert_eq!(receiver.received().len(), before);
}

#[tokio::test]
async fn while_postgres_is_silent_a_batch_has_its_answer_in_the_time_of_one_question() {
    let fleet = Fleet::new().await;
    let proxy = Proxy::to(&fleet.database.url).await;
    let url = proxy.through(&fleet.database.url);
    let door = fleet.door("door").set("DATABASE_URL", url);
    let door = door.set("API_ANSWER_WITHIN_MS", ANSWER_WITHIN_MS).start().await;
    let api = Api::of(&door).await;
    accepted(&api, &json!({"agent_id": "echo", "job_id": JobId::now().to_string()})).await;
    proxy.set(Link::Frozen);
    // Neither what must be looked up of each pool, nor each of the jobs, costs a time limit of its own.
    let of_pools: Vec<_> = (0..10).map(|n| json!({"agent_id": "echo", "pool": format!("p-{n}")})).collect();
    let plain = vec![json!({"agent_id": "echo"}); 600];
    // The few were all looked at.
    for (jobs, complete) in [(of_pools, true), (plain, false)] {
        in_time(IN_TIME, async || {
            let asked = Instant::now();
            let batch = api.post("/v1/jobs/batch", &json!(jobs)).await.is(200).json();
            let took = asked.elapsed();
            assert_eq!((&batch["accepted"], &batch["complete"]), (&json!(0), &json!(complete)), "{batch}");
            let items = batch["items"].as_array().expect("answers");
            assert!(items.iter().all(|item| item["status"] == 503), "{batch}");
            took
        })
        .await;
    }
}

#[tokio::test]
async fn a_request_that_asks_postgres_several_times_has_one_time_limit_for_all_of_them() {
    // Long enough that a machine which stands still for some seconds is not taken for a limit of each question.
    const WITHIN: Duration = Duration::from_secs(5);
    const LATE: Duration = Duration::from_millis(3_500);
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("ENVIRONMENT", "production");
    let door = door.set("API_ANSWER_WITHIN_MS", WITHIN.as_millis()).start().await;
    let api = Api::of(&door).await;
    let key = fleet.producer(&["keys", "create", "--scope", "submit,read"]).await;
    let api = api.with_key(key.out.trim());
    let job_id = api.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    // Its statements are prepared from now on: to prepare one takes locks, too.
    for _ in 0..3 {
        api.get(&format!("/v1/jobs/{job_id}")).await.is(200);
    }
    // One question after the other is answered late: the key's, the job's, and its envelope's.
    let lock = async |table: &str| {
        let mut holder = fleet.database.connect().await;
        let lock = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE");
        raw_sql(AssertSqlSafe(lock)).execute(&mut holder).await.expect("locked");
        holder
    };
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    let one_waits = async || (fleet.database.count(waits).await > 0).then_some(());
    let (keys, checkpoints) = (lock("harness_api_keys").await, lock("harness_checkpoints").await);
    let mut holder = fleet.database.connect().await;
    // The answer about the key that the door keeps is too old after this.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let asked = Instant::now();
    let asking = tokio::spawn(async move { (api.get(&format!("/v1/jobs/{job_id}")).await, asked.elapsed()) });
    until("it asks for the key", one_waits).await;
    tokio::time::sleep(LATE).await;
    drop(keys);
    until("it asks for the job, or has its answer", async || {
        (asking.is_finished() || fleet.database.count(waits).await > 0).then_some(())
    })
    .await;
    let jobs = tokio::spawn(async move {
        let lock = "BEGIN; LOCK TABLE harness_jobs IN ACCESS EXCLUSIVE MODE";
        raw_sql(lock).execute(&mut holder).await.expect("locked");
        holder
    });
    tokio::time::sleep(LATE).await;
    drop(checkpoints);
    let _jobs = jobs.await.unwrap();
    let (reply, took) = asking.await.unwrap();
    reply.problem(503, None);
    assert!(took < WITHIN + Duration::from_secs(3), "{took:?}");
}

#[tokio::test]
async fn a_redrive_that_commits_behind_its_503_is_published_all_the_same() {
    const WITHIN: Duration = Duration::from_secs(5);
    let fleet = Fleet::new().await;
    let [_, failed] = fleet.after_one_success_and_one_failure().await;
    // Nobody else publishes.
    let door = fleet.door("door").set("API_ANSWER_WITHIN_MS", WITHIN.as_millis()).start().await;
    let api = Api::of(&door).await;
    api.get(&format!("/v1/jobs/{failed}")).await.is(200);
    let mut holder = fleet.database.connect().await;
    let lock = format!("BEGIN; SELECT FROM harness_results WHERE job_id = '{failed}' FOR UPDATE");
    raw_sql(AssertSqlSafe(lock)).execute(&mut holder).await.expect("locked");
    let (asking, path) = (api.clone(), format!("/v1/jobs/{failed}/redrive"));
    let asking = tokio::spawn(async move { asking.post(&path, &json!(null)).await });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    until("it waits", async || (fleet.database.count(waits).await > 0).then_some(())).await;
    let unknown = asking.await.unwrap().problem(503, None);
    assert_eq!(unknown.text("job_id"), failed);
    raw_sql("ROLLBACK").execute(&mut holder).await.expect("released");
    let queued = "SELECT count(*) FROM harness_jobs WHERE state = 'queued'";
    until("the new job is published", async || (fleet.database.count(queued).await == 1).then_some(())).await;
    let again = api.post(&format!("/v1/jobs/{failed}/redrive"), &json!(null)).await;
    again.problem(409, None);
}

#[tokio::test]
async fn an_id_that_another_transaction_holds_keeps_no_other_caller_waiting() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let held = JobId::now().to_string();
    let mut holder = fleet.database.connect().await;
    let insert = format!(
        "BEGIN; INSERT INTO harness_jobs (job_id, session_id, agent_id, pool, message, state)
         VALUES ('{held}', 's', 'echo', 'default', '{{}}', 'scheduled')"
    );
    raw_sql(AssertSqlSafe(insert)).execute(&mut holder).await.expect("held");
    let spec = json!({"agent_id": "echo", "job_id": held});
    let mut rounds = 0;
    in_time(IN_TIME, async || {
        rounds += 1;
        let waiting = async {
            let asked = Instant::now();
            let reply = api.submit(&spec).await.problem(503, None);
            assert_eq!(reply.text("job_id"), held);
            asked.elapsed()
        };
        let others = async {
            let mut longest = Duration::ZERO;
            for _ in 0..10 {
                let asked = Instant::now();
                let submitting = (0..8).map(|n| {
                    let api = api.clone();
                    async move { api.submit(&json!({"agent_id": "echo", "input": n})).await.is(202) }
                });
                join_all(submitting).await;
                longest = longest.max(asked.elapsed());
            }
            longest
        };
        let (one, other) = tokio::join!(waiting, others);
        one.max(other)
    })
    .await;
    raw_sql("ROLLBACK").execute(&mut holder).await.expect("released");
    accepted(&api, &spec).await;
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 80 * rounds + 1);
}
