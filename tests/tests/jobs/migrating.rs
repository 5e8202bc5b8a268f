//! A migration that waits for a lock does not hold up the fleet: it asks for a moment, gives way, and asks again.

use std::path::Path;

use sqlx::migrate::Migrator;
use sqlx::raw_sql;
use tests::{Database, TIMEOUT, until};
use tokio::time::timeout;

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
    let migrating = timeout(TIMEOUT, migrations::migrate(&address));
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
