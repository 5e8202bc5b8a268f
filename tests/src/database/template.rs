//! The database that is copied for each test: a copy takes a fifth of the time that the migrations take.
//!
//! It stays on the server for the next run. Its name says what is in it: its day, because partitions are made around
//! today, and a digest of the files that make the schema.

use std::path::Path;
use std::time::SystemTime;

use sha2::{Digest, Sha256};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{Database, run};

const PREFIX: &str = "template_of_day_";

/// Returns the name of the server's template, which is made if it is not there.
pub(super) async fn on(server: &str) -> String {
    let name = format!("{PREFIX}{}_{}", today(), digest());
    let mut admin = PgConnection::connect(server).await.expect("a Postgres at DATABASE_URL");
    if exists(&mut admin, &name).await {
        return name;
    }
    let database = Database::made_on(server, "").await;
    database.bring_up_to_date().await;
    // From here on nobody can connect, because only a database without connections can be renamed and copied.
    run(&mut admin, format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", database.name)).await;
    let end = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
        WHERE datname = $1 AND usename = current_user";
    sqlx::query(end).bind(&database.name).execute(&mut admin).await.expect("an answer");
    let rename = AssertSqlSafe(format!("ALTER DATABASE {} RENAME TO {name}", database.name));
    if let Err(error) = sqlx::raw_sql(rename).execute(&mut admin).await {
        // Another test, perhaps of another process, has been faster. Then this one is dropped like any test's database.
        assert!(exists(&mut admin, &name).await, "{error}");
    }
    // Those of yesterday may be in use at midnight.
    let old: Vec<String> = sqlx::query_scalar(
        r#"SELECT datname::text FROM pg_database
            WHERE datname::text COLLATE "C" > $1 AND datname::text COLLATE "C" < $2"#,
    )
    .bind(PREFIX)
    .bind(format!("{PREFIX}{}", today() - 1))
    .fetch_all(&mut admin)
    .await
    .expect("names");
    for old in old {
        run(&mut admin, format!("DROP DATABASE IF EXISTS {old}")).await;
    }
    name
}

async fn exists(admin: &mut PgConnection, name: &str) -> bool {
    let sql = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    sqlx::query_scalar(sql).bind(name).fetch_one(admin).await.expect("an answer")
}

/// Days since 1970.
fn today() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock");
    now.as_secs() / 86_400
}

/// A digest of the files that make the schema.
fn digest() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let migrations = std::fs::read_dir(root.join("migrations/sql")).expect("the migrations");
    let mut files: Vec<_> = migrations.map(|file| file.expect("a file").path()).collect();
    files.push(root.join("shared/store/src/upkeep/partitions.rs"));
    files.sort();
    let mut digest = Sha256::new();
    for file in files {
        digest.update(std::fs::read(file).expect("a readable file"));
    }
    digest.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}
