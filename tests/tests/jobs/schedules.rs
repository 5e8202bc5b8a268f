//! Each instant of a schedule is one job, whatever is killed or repeated on the way.

use std::collections::BTreeSet;
use std::time::Duration;

use job::{JobId, JobState};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use store::{Instant, Leadership, MovedSchedule};
use tests::{Api, Fleet, until};

const HOUR: Duration = Duration::from_secs(3_600);

async fn add(fleet: &Fleet, name: &str, arguments: &[&str]) {
    let ran = fleet.producer(&[&["schedules", "add", name], arguments].concat()).await;
    assert_eq!(ran.code, 0, "{ran:?}");
}

async fn shown(fleet: &Fleet, name: &str) -> Value {
    let ran = fleet.producer(&["schedules", "show", name]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    ran.json().remove(0)
}

/// As if nobody had led for so many minutes.
async fn set_back(fleet: &Fleet, minutes: u32) {
    let sql = format!(
        "UPDATE harness_schedules SET version = version + 1, next_at = date_trunc('minute', now()) - {minutes} * interval '1 minute',
                due_at = date_trunc('minute', now()) - {minutes} * interval '1 minute'"
    );
    fleet.database.execute(&sql).await;
}

/// The minutes of the jobs that were made, each with how often.
const INSTANTS: &str = "
    SELECT to_timestamp(('x' || left(translate(job_id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)::text
      FROM (SELECT job_id FROM harness_jobs UNION ALL SELECT job_id FROM harness_results) made ORDER BY 1";

#[tokio::test]
async fn every_instant_is_one_job_though_those_who_lead_are_killed() {
    let fleet = Fleet::new().await;
    add(
        &fleet,
        "minutes",
        &["--cron", "* * * * *", "--catch-up", "all", "--within", "9h", "--job", r#"{"agent_id":"echo"}"#],
    )
    .await;
    const MISSED: u32 = 400;
    set_back(&fleet, MISSED).await;
    let made = "SELECT fired FROM harness_schedules";
    // Two relays, of which one leads; it is killed in the middle, and so is the next one.
    let mut relays = vec![fleet.relay("a").launch(), fleet.relay("b").launch()];
    for round in 0..3 {
        let before = fleet.database.count(made).await;
        until("some have fired", async || {
            let fired = fleet.database.count(made).await;
            (fired > before || fired > MISSED.into()).then_some(())
        })
        .await;
        let holder = "SELECT holder FROM harness_leases WHERE name = 'line'";
        let led = fleet.database.texts(holder).await;
        for relay in &mut relays {
            relay.kill();
        }
        relays = vec![fleet.relay(&format!("a{round}")).launch(), fleet.relay(&format!("b{round}")).launch()];
        until("another one leads", async || (fleet.database.texts(holder).await != led).then_some(())).await;
    }
    let _worker = fleet.worker("worker").start().await;
    until("all have fired", async || {
        let next = "SELECT count(*) FROM harness_schedules WHERE next_at > now()";
        (fleet.database.count(next).await == 1).then_some(())
    })
    .await;
    // As a restored backup does: it knows nothing of what has fired since.
    set_back(&fleet, 30).await;
    until("they have fired again", async || {
        let next = "SELECT count(*) FROM harness_schedules WHERE next_at > now()";
        (fleet.database.count(next).await == 1).then_some(())
    })
    .await;
    until("all are in the ledger", async || {
        let waits = "SELECT count(*) FROM harness_inbox";
        (fleet.database.count(waits).await == 0).then_some(())
    })
    .await;
    let instants = fleet.database.texts(INSTANTS).await;
    let once: BTreeSet<&String> = instants.iter().collect();
    assert_eq!(once.len(), instants.len(), "each is one job");
    let wanted = "SELECT (extract(epoch FROM next_at - to_timestamp(min(
                      ('x' || left(translate(job_id::text, '-', ''), 12))::bit(48)::bigint) / 1000.0)) / 60)::bigint
                    FROM harness_schedules,
                         (SELECT job_id FROM harness_jobs UNION ALL SELECT job_id FROM harness_results) made GROUP BY next_at";
    assert_eq!(instants.len() as i64, fleet.database.count(wanted).await, "none is left out");
    assert!(instants.len() > MISSED as usize);
    drop(relays);
    fleet.database.audited().await;
}

#[tokio::test]
async fn what_was_decided_on_an_older_row_or_by_an_older_leader_changes_nothing() {
    let fleet = Fleet::new().await;
    let store = fleet.database.store();
    add(&fleet, "s", &["--cron", "0 * * * *", "--job", r#"{"agent_id":"echo"}"#]).await;
    set_back(&fleet, 1).await;
    let lead = async |holder| store.lead("line", holder, HOUR).await.unwrap();
    let one = lead("one").await.unwrap();
    let due = store.due_schedules(10).await.unwrap().remove(0);
    let decided = |job: JobId| {
        let next = Some(Instant { at_ms: due.next.at_ms + 60_000, due_ms: due.now_ms + 3_600_000 });
        [MovedSchedule { id: due.id, version: due.version, jobs: vec![job], missed: 0, next }]
    };
    let fire = async |by: &Leadership| store.fire_schedules(by, &decided(JobId::now())).await.unwrap().fired;
    assert!(lead("two").await.is_none());
    store.resign(&one).await.unwrap();
    let two = lead("two").await.unwrap();
    assert_eq!(fire(&one).await, 0, "it leads no more");
    assert_eq!(fire(&two).await, 1);
    assert_eq!(fire(&two).await, 0, "that was decided on the row as it was");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_inbox").await, 1);
    assert_eq!(shown(&fleet, "s").await["fired"], 1);
}

#[tokio::test]
async fn while_its_job_has_not_ended_an_instant_is_skipped_if_that_is_wanted() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let long = r#"{"agent_id":"scripted","input":{"count":100000,"delay_ms":20}}"#;
    for (name, overlap) in [("skips", "skip"), ("overlaps", "on_busy")] {
        add(&fleet, name, &["--cron", "* * * * *", "--overlap", overlap, "--catch-up", "all", "--job", long])
            .await;
    }
    set_back(&fleet, 2).await;
    let of = async |name: &str, what: &str| shown(&fleet, name).await[what].as_i64();
    until("three instants of each are over", async || {
        let skips = of("skips", "fired").await? + of("skips", "skipped").await?;
        (skips >= 3 && of("overlaps", "fired").await? >= 3).then_some(())
    })
    .await;
    assert_eq!(of("skips", "fired").await, Some(1));
    assert_eq!(of("overlaps", "skipped").await, Some(0));
    let first: JobId =
        shown(&fleet, "skips").await["last_job"].as_str().expect("a job").parse().expect("an id");
    until("it is in the ledger", async || fleet.view(first).await.filter(|view| !view.agent_id.is_empty()))
        .await;
    assert_eq!(fleet.producer(&["cancel", &first.to_string()]).await.code, 0);
    assert_eq!(fleet.ended(first).await.state, JobState::Cancelled);
    set_back(&fleet, 0).await;
    until("it fires again", async || (of("skips", "fired").await? >= 2).then_some(())).await;
    until("both jobs have its label", async || {
        let jobs = fleet.producer(&["jobs", "--label", "schedule=skips", "--json"]).await;
        (jobs.json().len() >= 2).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_paused_schedule_and_a_closed_tenants_make_no_jobs() {
    let fleet = Fleet::new().await;
    assert_eq!(fleet.producer(&["tenants", "create", "acme"]).await.code, 0);
    let job = r#"{"agent_id":"echo"}"#;
    add(&fleet, "theirs", &["--tenant", "acme", "--cron", "* * * * *", "--catch-up", "all", "--job", job])
        .await;
    add(&fleet, "paused", &["--cron", "* * * * *", "--catch-up", "all", "--job", job]).await;
    add(&fleet, "open", &["--cron", "* * * * *", "--catch-up", "skip", "--job", job]).await;
    assert_eq!(fleet.producer(&["tenants", "close", "acme"]).await.code, 0);
    assert_eq!(fleet.producer(&["schedules", "pause", "paused"]).await.code, 0);
    set_back(&fleet, 5).await;
    let _relay = fleet.relay("relay").launch();
    until("the open one and the closed tenant's are at their next instant", async || {
        let next = "SELECT count(*) FROM harness_schedules WHERE next_at > now() AND paused_at IS NULL";
        (fleet.database.count(next).await == 2).then_some(())
    })
    .await;
    let outcomes = "SELECT name || ' ' || (fired <= 1) || ' ' || (missed > 3) FROM harness_schedules WHERE tenant = 'default' ORDER BY name";
    assert_eq!(fleet.database.texts(outcomes).await, ["open true true", "paused true false"]);
    let theirs = "SELECT fired || ' ' || (missed > 4) FROM harness_schedules WHERE tenant = 'acme'";
    assert_eq!(fleet.database.texts(theirs).await, ["0 true"]);
    let ran = fleet.producer(&["schedules", "resume", "paused"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    // It goes on with the instants to come.
    assert_eq!(shown(&fleet, "paused").await["missed"], 0);
    assert_eq!(fleet.producer(&["schedules", "remove", "paused"]).await.code, 0);
    let gone = fleet.producer(&["schedules", "show", "paused"]).await;
    assert!(gone.code == 1 && gone.err.contains("no such schedule"), "{gone:?}");
}

#[tokio::test]
async fn once_is_once_and_what_never_fires_is_refused() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let job = r#"{"agent_id":"echo","input":{"n":0.10}}"#;
    let soon =
        humantime::format_rfc3339_millis(std::time::SystemTime::now() + Duration::from_secs(5)).to_string();
    add(&fleet, "once", &["--at", &soon, "--job", job]).await;
    let done = until("it has fired", async || {
        let schedule = shown(&fleet, "once").await;
        schedule["last_job"].as_str().is_some().then_some(schedule)
    })
    .await;
    assert!(done["next_at"].is_null() && done["fired"] == 1, "{done}");
    let ended = fleet.ended(done["last_job"].as_str().expect("a job").parse().expect("an id")).await;
    assert_eq!(ended.state, JobState::Succeeded);
    let refused = async |arguments: &[&str], problem: &str| {
        let ran = fleet.producer(&[&["schedules", "add", "wrong"], arguments].concat()).await;
        assert!(ran.code == 2 && ran.err.contains(problem), "{arguments:?}: {ran:?}");
    };
    refused(&["--cron", "0 0 31 2 *", "--job", job], "cron: got \"0 0 31 2 *\", which never comes").await;
    refused(&["--cron", "* * * * * *", "--job", job], "cron: got \"* * * * * *\", which has 6 fields").await;
    refused(&["--cron", "* * * * *", "--zone", "Mars", "--job", job], "zone: got \"Mars\"").await;
    refused(&["--at", &soon, "--job", job], "which is over").await;
    refused(&["--cron", "* * * * *", "--within", "1000d", "--job", job], "within_ms: got").await;
    refused(&["--cron", "* * * * *", "--jitter", "2d", "--job", job], "jitter_ms: got").await;
    refused(&["--cron", "* * * * *", "--job", r#"{"agent":"echo"}"#], "job.agent").await;
    refused(&["--cron", "* * * * *", "--job", r#"{"agent_id":"echo","delay_ms":1}"#], "job.delay_ms").await;
    refused(&["--cron", "* * * * *", "--job", r#"{"agent_id":"echo","pool":"none"}"#], "job.pool").await;
    let twice = fleet.producer(&["schedules", "add", "once", "--cron", "* * * * *", "--job", job]).await;
    assert!(twice.code == 1 && twice.err.contains("of this name"), "{twice:?}");
    add(&fleet, "nights", &["--cron", "30 2 * * *", "--zone", "Europe/Berlin", "--job", job]).await;
    let next = fleet.producer(&["schedules", "next", "nights", "--limit", "366", "--json"]).await;
    assert_eq!((next.code, next.json().len()), (0, 366), "{next:?}");
    let changes: Vec<i64> =
        next.json().iter().filter_map(|firing| firing["clock_change_s"].as_i64()).collect();
    assert!(
        changes.len() >= 2 && changes.iter().sum::<i64>() == 0,
        "a year has both clock changes: {changes:?}"
    );
}

#[tokio::test]
async fn the_api_keeps_the_callers_schedules() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let given = json!({"name": "nights", "cron": "0 2 * * *", "zone": "Europe/Berlin", "job": {"agent_id": "echo", "input": 1}});
    let made = api.post("/v1/schedules", &given).await.is(201);
    assert_eq!(made.header("location"), "/v1/schedules/nights");
    assert_eq!(made.json()["job"]["labels"]["schedule"], "nights");
    api.post("/v1/schedules", &given).await.problem(409, Some("name"));
    for (field, value) in [
        ("cron", json!("0 0 31 2 *")),
        ("cron", json!("0 0 0 1 1 *")),
        ("zone", json!("Europe/Bonn")),
        ("catch_up", json!("some")),
        ("overlap", json!("none")),
        ("name", json!("a b")),
        ("at", json!("2030-01-01T00:00:00Z")),
        ("job.agent_id", json!({"input": 1})),
    ] {
        let mut wrong = given.clone();
        wrong["name"] = json!("wrong");
        let place = if field.starts_with("job") { "job" } else { field };
        wrong[place] = value;
        api.post("/v1/schedules", &wrong).await.problem(422, Some(field));
    }
    let next = api.get("/v1/schedules/nights/next").await.is(200);
    assert_eq!(next.json()["items"].as_array().map(Vec::len), Some(10));
    api.get("/v1/schedules/nights/next?limit=0").await.problem(422, Some("limit"));
    assert!(api.post("/v1/schedules/nights/pause", &json!({})).await.is(200).json()["paused_at"].is_string());
    assert!(api.post("/v1/schedules/nights/resume", &json!({})).await.is(200).json()["paused_at"].is_null());
    assert_eq!(api.get("/v1/schedules").await.is(200).json()["items"].as_array().map(Vec::len), Some(1));
    api.delete("/v1/schedules/nights").await.is(204);
    api.get("/v1/schedules/nights").await.problem(404, None);
    api.delete("/v1/schedules/nights").await.problem(404, None);
}

const WAITS: &str = "SELECT count(*) FROM harness_inbox";
const DUE: &str = "SELECT count(*) FROM harness_schedules WHERE due_at <= now()";

/// Writes down in which transaction how much was written to the inbox.
const NOTE: &str = "
    CREATE TABLE noted (tx xid8, bytes bigint);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        INSERT INTO noted VALUES (pg_current_xact_id(), NEW.bytes);
        RETURN NEW;
    END $$;
    CREATE TRIGGER note AFTER INSERT ON harness_inbox FOR EACH ROW EXECUTE FUNCTION note()";

#[tokio::test]
async fn what_fires_at_once_is_bounded_in_bytes() {
    let fleet = Fleet::new().await;
    fleet.database.execute(NOTE).await;
    let job = json!({"agent_id": "echo", "input": "x".repeat(100_000)}).to_string();
    for name in ["one", "two"] {
        add(&fleet, name, &["--cron", "* * * * *", "--catch-up", "all", "--within", "9h", "--job", &job])
            .await;
    }
    set_back(&fleet, 40).await;
    let _relay = fleet.relay("relay").launch();
    until("all have fired", async || (fleet.database.count(DUE).await == 0).then_some(())).await;
    assert!(fleet.database.count("SELECT count(*) FROM noted").await >= 82);
    let most = "SELECT max(bytes) FROM (SELECT sum(bytes)::bigint AS bytes FROM noted GROUP BY tx) each";
    assert!(fleet.database.count(most).await <= 5_000_000);
}

#[tokio::test]
async fn a_schedule_that_cannot_fire_holds_up_no_other_and_fires_when_it_can() {
    let fleet = Fleet::new().await;
    for name in ["held", "free"] {
        add(&fleet, name, &["--cron", "* * * * *", "--catch-up", "all", "--job", r#"{"agent_id":"echo"}"#])
            .await;
    }
    set_back(&fleet, 1).await;
    // A transaction that stays open has enqueued a job of the id that the next instant will have.
    let next = "SELECT id || ' ' || (extract(epoch FROM next_at) * 1000)::bigint FROM harness_schedules WHERE name = 'held'";
    let next = fleet.database.texts(next).await.remove(0);
    let (id, instant) = next.split_once(' ').expect("two");
    let job = schedule::firing_id(id.parse().expect("an id"), instant.parse().expect("a time"));
    let mut holder = fleet.database.connect().await;
    let enqueue = format!(
        "BEGIN; INSERT INTO harness_inbox (tenant, job_id, job, bytes, role, may_reply)
                VALUES ('default', '{job}', '{{}}', 2, 'x', false)"
    );
    sqlx::raw_sql(AssertSqlSafe(enqueue)).execute(&mut holder).await.expect("a row");
    let _relay = fleet.relay("relay").launch();
    let fired = async |name: &str| shown(&fleet, name).await["fired"].as_i64().filter(|fired| *fired >= 2);
    until("the other one fires", async || fired("free").await).await;
    assert_eq!(shown(&fleet, "held").await["fired"], 0);
    sqlx::raw_sql("ROLLBACK").execute(&mut holder).await.expect("it is over");
    until("it fires", async || fired("held").await).await;
}

#[tokio::test]
async fn schedules_fill_the_inbox_no_further_than_their_tenant_may_wait() {
    let fleet = Fleet::new().await;
    let ran = fleet.producer(&["tenants", "create", "acme", "--max-waiting", "5"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    for name in ["one", "two"] {
        let job = r#"{"agent_id":"echo"}"#;
        let rule = ["--cron", "* * * * *", "--catch-up", "all", "--within", "9h", "--job", job];
        add(&fleet, name, &[&["--tenant", "acme"], &rule[..]].concat()).await;
    }
    set_back(&fleet, 100).await;
    let _relay = fleet.relay("relay").launch();
    until("all are over", async || (fleet.database.count(DUE).await == 0).then_some(())).await;
    assert!(fleet.database.count(WAITS).await <= 5);
    let counted = "SELECT count(*) FROM harness_schedules WHERE fired + skipped >= 101 AND missed = 0";
    assert_eq!(fleet.database.count(counted).await, 2);
    let fired = fleet.database.count("SELECT sum(fired)::bigint FROM harness_schedules").await;
    assert!((5..=20).contains(&fired), "{fired}");
}

#[tokio::test]
async fn a_schedule_counts_against_its_callers_rate_like_a_job() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let ran = fleet.producer(&["tenants", "set", "default", "--rate-per-s", "0.001", "--burst", "2"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let make = async |number: u32| {
        let given = json!({"name": format!("s{number}"), "cron": "0 2 * * *", "job": {"agent_id": "echo"}});
        api.post("/v1/schedules", &given).await
    };
    let mut number = 0;
    let refused = async || {
        number += 1;
        let reply = make(number).await;
        // Where Postgres was slow to answer, it is a 503.
        assert!(matches!(reply.status, 201 | 429 | 503), "{reply:?}");
        (reply.status == 429).then_some(reply)
    };
    let refused = until("the rate is met", refused).await;
    assert_eq!(refused.text("type"), "urn:harness:rate_limited");
}
