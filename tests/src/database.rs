//! A database for one test, on the server that `DATABASE_URL` names.

use std::str::FromStr;
use std::time::Duration;

use postgres::{Address, SetBy};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use store::{Audit, AuditScope, Kind, Store, StoreConfig};

use crate::Pooler;
use crate::services::{address, unique_name, with_path};

mod template;

/// How long results are kept in a test. It is short, because a longer time needs more partitions.
pub(crate) const RETENTION: Duration = Duration::from_secs(2 * 86_400);

/// A database; it is dropped with this value.
pub struct Database {
    /// Its address.
    pub url: String,
    /// How sessions get their settings: the value of `DATABASE_SETTINGS` for the tests if they run through a pooler, or
    /// the value for this database's pooler.
    pub set_by: SetBy,
    server: String,
    name: String,
}

impl Database {
    /// Creates an empty database.
    pub async fn empty() -> Database {
        Database::made_on(&address("DATABASE_URL"), "").await
    }

    /// As `empty`, but on another server and with these options.
    pub async fn made_on(server: &str, options: &str) -> Database {
        let name = unique_name();
        let mut admin = PgConnection::connect(server).await.expect("a Postgres at DATABASE_URL");
        run(&mut admin, format!("CREATE DATABASE {name} {options}")).await;
        let set_by = std::env::var("DATABASE_SETTINGS").map_or(Ok(SetBy::Connection), |text| text.parse());
        let set_by = set_by.expect("DATABASE_SETTINGS");
        Database { url: with_path(server, &name), set_by, server: server.to_owned(), name }
    }

    /// Creates an empty database that is reached through a pooler.
    pub async fn behind(pooler: &Pooler, set_by: SetBy) -> Database {
        let mut database = Database::empty().await;
        database.url = pooler.through(&database.url);
        database.set_by = set_by;
        database
    }

    /// Creates a database with the current schema and partitions: a copy of a template.
    pub async fn new() -> Database {
        let server = address("DATABASE_URL");
        let template = template::on(&server).await;
        let database = Database::made_on(&server, &format!("TEMPLATE {template}")).await;
        // A copy lacks what the account has set for the template.
        if database.set_by == SetBy::Role {
            database.migrate().await;
        }
        database
    }

    /// Creates a database with the current schema and partitions on another server.
    pub async fn new_on(server: &str) -> Database {
        let database = Database::made_on(server, "").await;
        database.bring_up_to_date().await;
        database
    }

    async fn bring_up_to_date(&self) {
        self.migrate().await;
        self.store().maintain_partitions(RETENTION).await.expect("partitions");
    }

    /// Its address as the programs parse it.
    pub fn address(&self) -> Address {
        Address::new(&self.url, self.set_by).expect("an address")
    }

    /// Brings it to the current schema.
    pub async fn migrate(&self) {
        migrations::migrate(&self.address()).await.expect("the schema");
    }

    /// Returns a handle on the ledger with its own connections.
    pub fn store(&self) -> Store {
        Store::new(&StoreConfig::new(self.address(), 6).expect("a pool"))
    }

    /// Audits the ledger.
    pub async fn audit(&self) -> Audit {
        let stuck_after = Duration::from_secs(15 * 60);
        let scope = AuditScope { since: None, limit: 10, stuck_after, retention: RETENTION };
        self.store().audit(&scope).await.expect("an audit")
    }

    /// Audits the ledger and expects that nothing was lost, doubled or paid twice.
    pub async fn audited(&self) {
        let audit = self.audit().await;
        let broken: Vec<_> = audit.checks.iter().filter(|checked| checked.found > 0).collect();
        assert_eq!(audit.findings(Kind::Conservation), 0, "{broken:#?}");
    }

    /// Audits all the time until `doing` is done, and once more then. Returns the result of `doing`.
    pub async fn audited_while<T>(&self, doing: impl Future<Output = T>) -> T {
        let auditing = async {
            loop {
                self.audited().await;
            }
        };
        let done = tokio::select! {
            done = doing => done,
            never = auditing => never,
        };
        self.audited().await;
        done
    }

    /// Creates a role with the owner's rights that may have this many connections (a superuser may have any number).
    /// Returns its name and the database's address with it.
    pub async fn role(&self, connections: u32) -> (String, String) {
        let (name, password) = (unique_name(), "guest");
        let owner = self.texts("SELECT current_user::text").await.remove(0);
        let limited = format!("CONNECTION LIMIT {connections}");
        self.execute(&format!("CREATE ROLE {name} LOGIN PASSWORD '{password}' {limited} IN ROLE {owner}"))
            .await;
        let (scheme, rest) = self.url.split_once("://").expect("an address");
        let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
        let url = format!("{scheme}://{name}:{password}@{host}");
        if self.set_by == SetBy::Role {
            // If there is a ledger, this gives the role its settings.
            let address = Address::new(&url, self.set_by).expect("an address");
            migrations::migrate(&address).await.expect("the schema");
        }
        (name, url)
    }

    /// Opens a connection for the test's own SQL that bypasses the database's pooler.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&with_path(&self.server, &self.name)).await.expect("a connection")
    }

    /// Makes each new connection explain what it runs, with the pages that it touched.
    pub async fn explain(&self) {
        let name = self.url.rsplit('/').next().expect("a name");
        for setting in [
            "session_preload_libraries = auto_explain",
            "auto_explain.log_min_duration = 0",
            "auto_explain.log_analyze = on",
            "auto_explain.log_buffers = on",
            "auto_explain.log_timing = off",
            "auto_explain.log_format = json",
            "auto_explain.log_level = notice",
        ] {
            self.execute(&format!("ALTER DATABASE {name} SET {setting}")).await;
        }
    }

    /// Runs one statement of the test.
    pub async fn execute(&self, sql: &str) {
        run(&mut self.connect().await, sql.to_owned()).await;
    }

    /// Reads one number.
    pub async fn count(&self, sql: &str) -> i64 {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::query_scalar(sql).fetch_one(&mut self.connect().await).await.expect("a number")
    }

    /// Reads a column of texts.
    pub async fn texts(&self, sql: &str) -> Vec<String> {
        let sql = AssertSqlSafe(sql.to_owned());
        sqlx::query_scalar(sql).fetch_all(&mut self.connect().await).await.expect("texts")
    }
}

pub(crate) async fn run(connection: &mut PgConnection, sql: String) {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.expect("a statement that Postgres accepts");
}

impl Drop for Database {
    /// Runs on its own thread, because the test's runtime cannot wait here. A failure is printed and does not panic,
    /// because the test may already be panicking.
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                // Quietly, because tests that break connections on purpose print enough.
                let options = PgConnectOptions::from_str(&server)?.disable_statement_logging();
                let mut admin = options.connect().await?;
                let sql = AssertSqlSafe(format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
                sqlx::raw_sql(sql).execute(&mut admin).await?;
                anyhow::Ok(())
            })
        });
        match dropping.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => eprintln!("the database {} was not dropped: {error:#}", self.name),
            Err(_) => eprintln!("the database {} was not dropped: dropping it panicked", self.name),
        }
    }
}
