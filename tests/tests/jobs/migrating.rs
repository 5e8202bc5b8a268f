//! A migration that waits for a lock does not hold up the fleet: it asks for a moment, gives way, and asks again.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postgres::SetBy;
use serde_json::json;
use sqlx::migrate::Migrator;
use sqlx::raw_sql;
use store::{Beat, Fenced, Throughput};
use tests::{Database, Fleet, Pooler, Runner, TIMEOUT, claimed, job, until};
use tokio::time::timeout;
use uuid::Uuid;

#[tokio::test]
async fn a_migration_behind_a_long_reader_keeps_no_others_waiting_and_is_applied_when_it_can_be() {
    let database = Database::empty().await;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations/sql");
    let migrator = Migrator::new(folder).await.expect("the migrations");
    migrator.run_to(8, &mut database.connect().await).await.expect("an older schema");
    let mut reader = database.connect().await;
    let reading = "BEGIN; SELECT count(*) FROM harness_results";
    raw_sql(reading).execute(&mut reader).await.expect("a long reader");

    let address = database.address();
    let migrating = timeout(Duration::from_secs(120), migrations::migrate(&address));
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let others = async {
        until("the migration waits", async || (database.count(waits).await > 0).then_some(())).await;
        // What the fleet does all the time gets through, again and again.
        for n in 0..5 {
            let beat = format!("UPDATE harness_workers SET heartbeat_at = now() WHERE host = 'host-{n}'");
            timeout(TIMEOUT, database.execute(&beat)).await.expect("a heartbeat gets through");
            let look = database.count("SELECT count(*) FROM harness_jobs");
            timeout(TIMEOUT, look).await.expect("a look gets through");
        }
        let applied = "SELECT count(*) FROM _sqlx_migrations WHERE version > 8";
        assert_eq!(database.count(applied).await, 0, "it waits for the reader");
        raw_sql("COMMIT").execute(&mut reader).await.expect("the reader ends");
    };
    let (migrated, ()) = tokio::join!(migrating, others);
    let migrated = migrated.expect("an end").expect("the schema");
    assert!(migrated.versions.contains(&9), "{migrated:?}");
    migrations::check(&database.address()).await.expect("the schema of this release");
}

const DAY: Duration = Duration::from_secs(86_400);

const PARTS: &str = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'harness_results'::regclass";
/// Partitions whose index is valid and a part of the whole one.
const INDEXED: &str = "SELECT count(*) FROM pg_inherits i JOIN pg_index x ON x.indexrelid = i.inhrelid
                        WHERE i.inhparent = 'harness_results_tenant'::regclass AND x.indisvalid";

/// A fleet with partitions from before there was the index.
async fn older_fleet(database: Database) -> Fleet {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations/sql");
    let migrator = Migrator::new(folder).await.expect("the migrations");
    migrator.run_to(10, &mut database.connect().await).await.expect("an older schema");
    let fleet = Fleet::on(database);
    let week_ms = 7 * DAY.as_millis();
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    let first_id = |week: u128| Uuid::from_u128((week * week_ms) << 80);
    for week in now_ms / week_ms..=now_ms / week_ms + 1 {
        let (from, to) = (first_id(week), first_id(week + 1));
        let make = format!(
            "CREATE TABLE harness_results_w{week} (LIKE harness_results INCLUDING ALL);
             ALTER TABLE harness_results ATTACH PARTITION harness_results_w{week}
                   FOR VALUES FROM ('{from}') TO ('{to}')"
        );
        fleet.database.execute(&make).await;
    }
    fleet
}

#[tokio::test]
async fn an_index_on_the_results_is_built_through_a_pooler_in_transaction_mode() {
    let pooler = Pooler::start("--release 1.24 --mode transaction --set default_pool_size=4").await;
    let fleet = older_fleet(Database::behind(&pooler, SetBy::Role).await).await;
    let migrated = fleet.producer(&["migrate"]).await;
    assert!(migrated.code == 0 && migrated.out.contains("indexes built"), "{migrated:?}");
    let (parts, indexed) = (fleet.database.count(PARTS).await, fleet.database.count(INDEXED).await);
    assert!(parts > 0 && indexed == parts, "{indexed} of {parts}");
}

#[tokio::test]
async fn an_index_on_the_results_is_built_while_heartbeats_and_ends_go_on() {
    let fleet = older_fleet(Database::empty().await).await;
    let (database, store) = (&fleet.database, &fleet.store);
    let parts = database.count(PARTS).await;
    let mut reader = database.connect().await;
    let reading = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM harness_results";
    raw_sql(reading).execute(&mut reader).await.expect("a long reader");

    let migrating = fleet.producer(&["migrate"]);
    let others = async {
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                        AND query LIKE 'CREATE INDEX CONCURRENTLY%' AND wait_event = 'virtualxid'";
        until("a build waits for the reader", async || (database.count(waits).await > 0).then_some(())).await;
        let runner = Runner::register(store).await;
        for n in 0..5 {
            let spec = job("s", "echo", json!(n));
            let run = timeout(TIMEOUT, runner.claim(&spec)).await.expect("a claim gets through");
            let run = claimed(run.expect("an answer"));
            let throughput = Throughput::default();
            let beat = store.beat(runner.worker, &throughput);
            let beat = timeout(TIMEOUT, beat).await.expect("a heartbeat gets through").expect("an answer");
            assert!(matches!(beat, Beat::Alive { .. }), "{beat:?}");
            let end = timeout(TIMEOUT, runner.succeed(&run)).await.expect("an end gets through");
            assert_eq!(end.expect("an answer").recorded, Fenced::Done(()));
        }
        let second = fleet.producer(&["migrate"]).await;
        assert!(second.code == 0 && second.err.contains("another process builds the index"), "{second:?}");
        // The build is cut short.
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()
                      AND query LIKE 'CREATE INDEX CONCURRENTLY%'";
        database.execute(cut).await;
    };
    let (migrated, ()) = tokio::join!(migrating, others);
    assert!(
        migrated.code == 0 && migrated.err.contains("run `producer migrate` again later"),
        "{migrated:?}"
    );
    assert_eq!(database.count(INDEXED).await, 0);
    let doctor = fleet.producer(&["doctor"]).await;
    let missing = format!("MISSING  indexes             {parts} partitions");
    assert!(doctor.code == 1 && doctor.out.contains(&missing), "{missing} {doctor:?}");

    raw_sql("COMMIT").execute(&mut reader).await.expect("the reader ends");
    // A partition that is made meanwhile has its index by itself.
    store.maintain_partitions(DAY * 40).await.expect("more partitions");
    let all = database.count(PARTS).await;
    assert!(all > parts && database.count(INDEXED).await == all - parts, "{all}");
    let again = fleet.producer(&["migrate"]).await;
    assert!(again.code == 0 && again.out.contains(&format!("{parts} indexes built")), "{again:?}");
    assert_eq!(database.count(INDEXED).await, database.count(PARTS).await);
    let invalid = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";
    assert_eq!(
        database.count(invalid).await,
        0,
        "the whole index is valid, and nothing is left of the first build"
    );
    let doctor = fleet.producer(&["doctor"]).await;
    assert!(doctor.out.contains("ok       indexes"), "{doctor:?}");
}
