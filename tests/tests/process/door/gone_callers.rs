//! A request's question to Postgres ends with its client.

use postgres::SetBy;
use sqlx::raw_sql;
use tests::{Api, Database, Fleet, Pooler, until};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Long enough that the statement ends for another reason.
const STATEMENT_TIMEOUT: &str = "300s";

/// Asks for a session, and hangs up while Postgres holds the question up.
async fn ends_with_its_client(fleet: &Fleet, api: &Api) {
    let mut holder = fleet.database.connect().await;
    let lock = "BEGIN; LOCK TABLE harness_sessions IN ACCESS EXCLUSIVE MODE";
    raw_sql(lock).execute(&mut holder).await.expect("locked");
    let address = api.base().strip_prefix("http://").expect("no TLS");
    let ask = async || {
        let mut caller = TcpStream::connect(address).await.expect("a connection");
        let request = b"GET /v1/sessions/s HTTP/1.1\r\nhost: localhost\r\n\r\n";
        caller.write_all(request).await.expect("sent");
        caller
    };
    let mut caller = ask().await;
    let asking = "SELECT count(*) FROM pg_stat_activity
                   WHERE query LIKE '%c.checkpoints::text%' AND wait_event_type = 'Lock' AND datname = current_database()";
    let waits = async || {
        // It was answered already if the door had a connection that is gone.
        if caller.try_read(&mut [0]).is_ok() {
            caller = ask().await;
        }
        (fleet.database.count(asking).await == 1).then_some(())
    };
    until("the question waits", waits).await;
    drop(caller);
    until("the question is gone", async || (fleet.database.count(asking).await == 0).then_some(())).await;
}

#[tokio::test]
async fn a_question_to_postgres_ends_soon_after_its_client_has_gone() {
    let fleet = Fleet::new().await;
    let url = format!("{}?options=-c%20statement_timeout%3D{STATEMENT_TIMEOUT}", fleet.database.url);
    let door = fleet.door("door").set("DATABASE_URL", url).start().await;
    ends_with_its_client(&fleet, &Api::of(&door).await).await;
}

#[tokio::test]
async fn behind_a_pooler_the_account_has_the_setting_that_ends_it() {
    let pooler = Pooler::start("--release 1.24 --mode transaction --set default_pool_size=4").await;
    let fleet = Fleet::on(Database::behind(&pooler, SetBy::Role).await);
    assert_eq!(fleet.producer(&["migrate"]).await.code, 0);
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    // A start refuses other settings than ours, so the new limit comes later, for the sessions from now on.
    let database = fleet.database.texts("SELECT current_database()::text").await.remove(0);
    let set = format!(
        "ALTER ROLE CURRENT_USER IN DATABASE {database} SET statement_timeout = '{STATEMENT_TIMEOUT}'"
    );
    let mut own = fleet.database.connect().await;
    raw_sql(sqlx::AssertSqlSafe(set)).execute(&mut own).await.expect("set");
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()";
    raw_sql(end).execute(&mut own).await.expect("ended");
    until("the door has new sessions", async || {
        (api.get("/v1/sessions/s").await.status == 404).then_some(())
    })
    .await;
    ends_with_its_client(&fleet, &api).await;
}
