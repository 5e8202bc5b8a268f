//! The schema: SQL files that are embedded into every binary, and the check that a database has them all.
//!
//! sqlx embeds the files, and we use its journal (`_sqlx_migrations`) and its lock. The connection is the
//! fleet's own (`postgres`), so that one rule says what can migrate a database and what can work in it. At
//! run time `store` speaks to Postgres, and knows nothing of versions.
//!
//! A file `0042_what_it_does_works_with_0041.sql` says that binaries of schema 41 work with its changes as
//! well, so that a release can be taken back without its migration. The database keeps the name, and an older
//! binary reads it there. A migration that a binary does not know is refused unless its name says so. What a later
//! migration works with is never older than what an earlier one works with: a database has all of them.

mod apply;
mod error;
mod indexes;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use postgres::{Address, Pooling, PostgresError, Session, SetBy, look, ready, set_for_role};
use sqlx::migrate::Migrator;
use tokio::time::{sleep, timeout};

use crate::apply::{Applied, applied, apply};
pub use crate::error::{IndexError, SchemaError};
pub use crate::indexes::{build_indexes, lacking_indexes};

/// A directive for the log filter (`EnvFilter` syntax). Without it, the driver logs each notice of Postgres
/// as a line of its own.
pub const LOG_DIRECTIVE: &str = "tokio_postgres=warn";

/// The time limit for reading the journal, once there is a connection.
const CHECK_BOUND: Duration = Duration::from_secs(10);
/// How many times, and after how long, another connection is tried if one was ended.
const RENEWALS: u32 = 10;
const RENEW_AFTER: Duration = Duration::from_millis(200);

static MIGRATOR: Migrator = sqlx::migrate!("./sql");

/// What [`migrate`] has done.
#[derive(Debug, Default)]
pub struct Migrated {
    /// The versions that were applied now.
    pub versions: Vec<i64>,
    /// How many sessions of the account were at work all the time, and go on with the settings that the
    /// account had before.
    pub older_sessions: usize,
}

/// Brings a database to this binary's schema, or leaves a newer one that works with this binary.
///
/// If connections do not set what they rely on, the account gets these settings first.
pub async fn migrate(address: &Address) -> Result<Migrated, SchemaError> {
    let mut older_sessions = 0;
    if address.set_by() == SetBy::Role {
        let setting = async || {
            let (session, _) = look(address).await?;
            Ok(set_for_role(address, session).await?)
        };
        older_sessions = unless_ended(setting).await?;
    }
    let mut before = None;
    let after = unless_ended(async || bring(address, &mut before).await).await?;
    let before = before.unwrap_or_default();
    let versions = after.into_keys().filter(|version| !before.contains_key(version)).collect();
    Ok(Migrated { versions, older_sessions })
}

/// Does something once more if its connection was ended, for instance by another process that gives the
/// account its settings.
async fn unless_ended<T>(mut doing: impl AsyncFnMut() -> Result<T, SchemaError>) -> Result<T, SchemaError> {
    for _ in 1..RENEWALS {
        match doing().await {
            Err(error) if error.is_ended() => sleep(RENEW_AFTER).await,
            done => return done,
        }
    }
    doing().await
}

/// Applies the missing migrations. Returns those that the database has afterwards. `first` notes those that
/// it had at the first try.
async fn bring(
    address: &Address,
    first: &mut Option<BTreeMap<i64, Applied>>,
) -> Result<BTreeMap<i64, Applied>, SchemaError> {
    let (mut session, _) = look(address).await?;
    let client = &mut session.client;
    let wrong = |error| SchemaError::Database(PostgresError::new(address, error));
    let looking = async {
        let before = applied(client).await.map_err(wrong)?;
        refuse_unknown(&before)?;
        if before.is_empty() {
            refuse_elsewhere(client, address).await?;
        }
        Ok(before)
    };
    let before = first.get_or_insert(within(address, looking).await?);
    for migration in MIGRATOR.iter() {
        match before.get(&migration.version) {
            Some(found) if found.checksum != *migration.checksum => {
                return Err(SchemaError::Changed { version: migration.version });
            }
            Some(_) => {}
            None => apply(client, migration)
                .await
                .map_err(|source| SchemaError::Migrate { version: migration.version, source })?,
        }
    }
    let after = within(address, async { applied(client).await.map_err(wrong) }).await?;
    session.close().await;
    Ok(after)
}

/// Refuses a database that no process of the fleet can work in. Its schema must be the one that this binary
/// was built for, or a newer one that works with this binary, and [`ready`] must accept it. Returns what is
/// between us and Postgres.
pub async fn check(address: &Address) -> Result<Pooling, SchemaError> {
    let (session, pooling) = ready(address).await?;
    check_schema(address, &session).await?;
    session.close().await;
    Ok(pooling)
}

/// Checks the schema alone, on a connection that is open.
pub async fn check_schema(address: &Address, session: &Session) -> Result<(), SchemaError> {
    let looking = async {
        let applied = applied(&session.client).await.map_err(|error| PostgresError::new(address, error))?;
        match known().into_iter().find(|version| !applied.contains_key(version)) {
            Some(version) => {
                if applied.is_empty() {
                    refuse_elsewhere(&session.client, address).await?;
                }
                Err(SchemaError::Behind { version })
            }
            None => Ok(applied),
        }
    };
    refuse_unknown(&within(address, looking).await?)
}

/// Waits for an answer with a time limit, because the network, or a pooler, may lose it.
async fn within<T>(
    address: &Address,
    asking: impl Future<Output = Result<T, SchemaError>>,
) -> Result<T, SchemaError> {
    let silent = PostgresError::Silent { servers: address.servers(), seconds: CHECK_BOUND.as_secs() };
    timeout(CHECK_BOUND, asking).await.map_err(|_| silent)?
}

/// Refuses a database that has a ledger of this account to which its `search_path` does not lead: a second
/// one beside it would be empty. A ledger of another account, in a schema of its own, is another fleet's.
async fn refuse_elsewhere(client: &tokio_postgres::Client, address: &Address) -> Result<(), SchemaError> {
    let sql = "SELECT quote_ident(s.nspname), current_setting('search_path')
                 FROM pg_catalog.pg_class journal JOIN pg_catalog.pg_namespace s ON s.oid = journal.relnamespace
                WHERE journal.relname = '_sqlx_migrations' AND pg_has_role(journal.relowner, 'USAGE')
                  AND EXISTS (SELECT FROM pg_catalog.pg_class jobs
                               WHERE jobs.relnamespace = s.oid AND jobs.relname = 'harness_jobs')";
    let found = client.query_typed(sql, &[]).await.map_err(|error| PostgresError::new(address, error))?;
    match found.first() {
        Some(row) => Err(SchemaError::Elsewhere { schema: row.get(0), search_path: row.get(1) }),
        None => Ok(()),
    }
}

/// Returns the newest migration that this binary knows.
pub fn newest() -> i64 {
    known().last().copied().unwrap_or_default()
}

fn known() -> BTreeSet<i64> {
    MIGRATOR.iter().map(|migration| migration.version).collect()
}

/// Refuses each migration that this binary does not know, unless its name says that it works with this
/// binary's schema.
fn refuse_unknown(applied: &BTreeMap<i64, Applied>) -> Result<(), SchemaError> {
    let (known, ours) = (known(), newest());
    let refused = applied.iter().find(|(version, found)| {
        !known.contains(version) && works_with(&found.description).is_none_or(|oldest| oldest > ours)
    });
    refused.map_or(Ok(()), |(version, _)| Err(SchemaError::Ahead { version: *version }))
}

/// Returns the oldest schema whose binaries work with a migration, from the end of its name, or `None` if it
/// names none.
fn works_with(description: &str) -> Option<i64> {
    description.rsplit_once(" works with ")?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first migration of which a later one says that a still older schema works with it, with that later one.
    fn broken_chain<'a>(files: impl Iterator<Item = (i64, &'a str)>) -> Option<(i64, i64)> {
        let mut newest = (0, 0);
        for (version, description) in files {
            let oldest = works_with(description).unwrap_or(version);
            if oldest < newest.1 {
                return Some((newest.0, version));
            }
            newest = (version, oldest);
        }
        None
    }

    #[test]
    fn what_runs_beside_a_migration_runs_beside_all_that_it_does_not_know() {
        let names = |names: &'static [&'static str]| (1..).zip(names.iter().copied());
        assert_eq!(broken_chain(names(&["a", "b works with 0001", "c works with 0001", "d"])), None);
        assert_eq!(broken_chain(names(&["a", "b", "c works with 0001"])), Some((2, 3)));
        assert_eq!(
            broken_chain(names(&["a", "b works with 0001", "c works with 0002", "d works with 0001"])),
            Some((3, 4))
        );

        let files = || MIGRATOR.iter().map(|file| (file.version, file.description.as_ref()));
        assert_eq!(broken_chain(files()), None, "(the earlier file, the later file)");
        for (version, name) in files() {
            assert!(works_with(name).is_none_or(|oldest| oldest < version), "{version}: {name}");
        }
    }

    #[test]
    fn no_migration_builds_an_index_on_the_results_while_their_writers_wait() {
        // The first ten were applied to small ledgers.
        for file in MIGRATOR.iter().filter(|file| file.version > 10) {
            let sql = file.sql.as_str().split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(!sql.contains(" ON harness_results ("), "{}: {}", file.version, file.description);
            let heartbeats_wait =
                sql.contains("ALTER TABLE harness_workers") || sql.contains("LOCK TABLE harness_workers");
            let builds = sql.contains("INDEX") && sql.contains(" ON harness_jobs (");
            assert!(!(heartbeats_wait && builds), "{}: heartbeats wait for a build", file.version);
        }
    }

    #[test]
    fn no_migration_reads_a_large_table_for_a_constraint_while_the_fleet_waits() {
        let large = ["jobs", "results", "sessions", "checkpoints", "history", "calls", "labels"];
        for file in MIGRATOR.iter().filter(|file| file.version > 10) {
            for statement in file.sql.as_str().split(';') {
                let sql = statement.split_whitespace().collect::<Vec<_>>().join(" ");
                let constrains = large
                    .iter()
                    .any(|table| sql.contains(&format!("ALTER TABLE harness_{table} ADD CONSTRAINT")));
                let reads = constrains && sql.contains(" CHECK ") && !sql.ends_with("NOT VALID");
                assert!(!reads, "{}: {sql}", file.version);
            }
        }
    }
}
