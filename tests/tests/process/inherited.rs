//! Settings of a role, a database or a server are not inherited where we rely on others.

use futures::future::join_all;
use postgres::{Address, SetBy};
use serde_json::json;
use tests::{Database, Fleet, GuardedPostgres, Ran, job, steps, until};

/// Runs a statement even if the database makes transactions read-only by default.
async fn writing(fleet: &Fleet, sql: &str) {
    fleet.database.execute(&format!("BEGIN READ WRITE; {sql}; COMMIT")).await;
}

#[tokio::test]
async fn a_fleet_works_whatever_its_role_and_its_database_set() {
    let fleet = Fleet::on(Database::empty().await);
    let (role, url) = fleet.database.role(30).await;
    let name = url.rsplit('/').next().expect("a name");
    for (of, setting) in [
        ("DATABASE", "default_transaction_isolation = 'serializable'"),
        ("DATABASE", "default_transaction_read_only = on"),
        ("ROLE", "default_transaction_isolation = 'repeatable read'"),
        ("ROLE", "default_transaction_read_only = on"),
        ("ROLE", "default_transaction_deferrable = on"),
        ("ROLE", "standard_conforming_strings = off"),
        ("ROLE", "lock_timeout = '1ms'"),
        ("ROLE", "enable_indexscan = off"),
        ("ROLE", "enable_nestloop = off"),
        ("ROLE", "idle_session_timeout = '5s'"),
        ("ROLE", "synchronous_commit = off"),
        ("ROLE", "idle_in_transaction_session_timeout = '1ms'"),
        ("ROLE", "plan_cache_mode = 'force_custom_plan'"),
        ("ROLE", "datestyle = 'SQL, DMY'"),
        ("ROLE", "timezone = 'Asia/Kathmandu'"),
        ("ROLE", "client_encoding = 'LATIN1'"),
    ] {
        let of = if of == "ROLE" { format!("ROLE {role}") } else { format!("DATABASE {name}") };
        writing(&fleet, &format!("ALTER {of} SET {setting}")).await;
    }
    for by in ["connection", "role"] {
        let producer = async |arguments: &[&str]| {
            let mut command = fleet.producer_command(arguments);
            command.env("DATABASE_URL", &url).env("DATABASE_SETTINGS", by);
            Ran::of(command, "").await
        };
        for command in ["migrate", "doctor"] {
            let ran = producer(&[command]).await;
            assert_eq!(ran.code, 0, "{by}: {ran:?}");
        }
        // A primary whose transactions are read-only by default is not a standby.
        let mut command = fleet.producer_command(&["doctor"]);
        command.env("DATABASE_URL", format!("{url}?target_session_attrs=read-write"));
        command.env("DATABASE_SETTINGS", by);
        let ran = Ran::of(command, "").await;
        assert_eq!(ran.code, 0, "{by}: {ran:?}");
        let launch = |name: &str| fleet.worker(name).set("DATABASE_URL", &url).set("DATABASE_SETTINGS", by);
        let mut first = launch("first").short_lease().start().await;
        let _second = launch("second").start().await;
        // Sessions with the same names run one job at a time, so their ends and claims collide.
        let mut specs: Vec<_> = (0..12).map(|number| steps(number % 3, 3, 30)).collect();
        specs.push(job("echo", "echo", json!("\u{1F600} \\ '")));
        let lines: Vec<String> = specs.iter().map(job::encode).collect();
        let mut command = fleet.producer_command(&["enqueue", "--file", "-"]);
        command.env("DATABASE_URL", &url).env("DATABASE_SETTINGS", by);
        let ran = Ran::of(command, &lines.join("\n")).await;
        assert_eq!(ran.code, 0, "{by}: {ran:?}");
        first.kill();
        for spec in &specs {
            let id = spec.job_id.to_string();
            let ran = producer(&["wait", &id]).await;
            assert_eq!(ran.code, 0, "{by}: {ran:?}");
        }
        let ran = producer(&["audit"]).await;
        assert_eq!(ran.code, 0, "{by}: {ran:?}");
    }
    writing(&fleet, &format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn what_is_confirmed_is_on_disk_whatever_the_role_has() {
    let fleet = Fleet::on(Database::empty().await);
    let (role, url) = fleet.database.role(30).await;
    for (given, expected) in
        [("remote_write", "remote_write"), ("remote_apply", "remote_apply"), ("local", "on"), ("off", "on")]
    {
        fleet.database.execute(&format!("ALTER ROLE {role} SET synchronous_commit = {given}")).await;
        for by in [SetBy::Connection, SetBy::Role] {
            let address = Address::new(&url, by).expect("an address");
            migrations::migrate(&address).await.expect("the schema");
            let (session, _) = postgres::ready(&address).await.expect("what its sessions rely on");
            let row = session.client.query_one("SHOW synchronous_commit", &[]).await.expect("a setting");
            assert_eq!(row.get::<_, String>(0), expected, "{given}, by {by:?}");
        }
    }
    fleet.database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_session_with_older_settings_ends_when_it_lies_idle_and_never_at_work() {
    let fleet = Fleet::on(Database::empty().await);
    let (role, url) = fleet.database.role(30).await;
    let by = |set_by| Address::new(&url, set_by).expect("an address");
    let connect = async || postgres::connect(&by(SetBy::Connection)).await.expect("a connection");
    let (idle, busy) = (connect().await, connect().await);
    busy.client.batch_execute("BEGIN; SELECT 1").await.expect("a transaction");
    let address = by(SetBy::Role);
    let meanwhile = async {
        until("the idle one is ended", async || idle.client.is_closed().then_some(())).await;
        busy.client.batch_execute("COMMIT").await.expect("what is at work goes on");
    };
    let (migrated, ()) = tokio::join!(migrations::migrate(&address), meanwhile);
    assert_eq!(migrated.expect("the schema").older_sessions, 0, "it was looked at again");
    until("it is ended as well", async || busy.client.is_closed().then_some(())).await;
    let newer = connect().await;
    migrations::migrate(&by(SetBy::Role)).await.expect("nothing to do");
    newer.client.batch_execute("SELECT 1").await.expect("it has what the account has");
    fleet.database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn sessions_that_keep_older_settings_are_counted_and_ended_by_the_next_migration() {
    let fleet = Fleet::on(Database::empty().await);
    let (role, url) = fleet.database.role(30).await;
    let address = Address::new(&url, SetBy::Connection).expect("an address");
    let busy = postgres::connect(&address).await.expect("a connection");
    busy.client
        .batch_execute("BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0")
        .await
        .expect("begun");
    let migrate = async || {
        let mut command = fleet.producer_command(&["migrate"]);
        command.env("DATABASE_URL", &url).env("DATABASE_SETTINGS", "role");
        let ran = Ran::of(command, "").await;
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out
    };
    let said = migrate().await;
    assert!(said.contains("until they end: 1;") && said.contains("RECONNECT"), "{said}");
    busy.client.batch_execute("COMMIT").await.expect("it goes on");
    assert!(!migrate().await.contains("older settings"));
    until("it is ended", async || busy.client.is_closed().then_some(())).await;
    fleet.database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn two_migrations_that_give_an_account_its_settings_at_once_are_one() {
    let database = Database::empty().await;
    let (role, url) = database.role(30).await;
    let address = Address::new(&url, SetBy::Role).expect("an address");
    let all = join_all((0..4).map(|_| migrations::migrate(&address))).await;
    for migrated in all {
        migrated.expect("the schema");
    }
    migrations::check(&address).await.expect("all of it");
    database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}

#[tokio::test]
async fn a_standby_that_is_away_keeps_no_older_session_alive() {
    let postgres = GuardedPostgres::start().await;
    let database = postgres.database().await;
    let by = |set_by| Address::new(&database.url, set_by).expect("an address");
    migrations::migrate(&by(SetBy::Connection)).await.expect("the schema");
    let older = postgres::connect(&by(SetBy::Connection)).await.expect("a connection");
    for sql in ["ALTER SYSTEM SET synchronous_standby_names = 'away'", "SELECT pg_reload_conf()"] {
        database.execute(sql).await;
    }
    let waits =
        "SELECT count(*) FROM pg_settings WHERE name = 'synchronous_standby_names' AND setting = 'away'";
    until("commits wait", async || (database.count(waits).await == 1).then_some(())).await;
    let migrated = migrations::migrate(&by(SetBy::Role)).await;
    // Otherwise its end would wait for the standby.
    for sql in ["ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"] {
        database.execute(sql).await;
    }
    migrated.expect("nothing of it waits for the standby");
    until("it is ended", async || older.client.is_closed().then_some(())).await;
}

#[tokio::test]
async fn a_database_that_is_not_utf8_is_refused_by_migrate_doctor_and_every_start() {
    let options = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    let server = std::env::var("DATABASE_URL").expect("DATABASE_URL");
    let fleet = Fleet::on(Database::made_on(&server, options).await);
    let said = "has the encoding LATIN1, expected UTF8";
    for command in
        [&["migrate"][..], &["sessions", "show", "s"], &["enqueue", "--session", "s", "--agent", "echo"]]
    {
        let ran = fleet.producer(command).await;
        assert!(ran.code == 1 && ran.err.contains(said), "{ran:?}");
    }
    let ran = fleet.producer(&["doctor"]).await;
    assert!(ran.code == 1 && ran.out.contains(said), "{ran:?}");
    let mut worker = fleet.worker("worker").launch();
    assert_eq!(worker.exit().await, 1);
    assert!(worker.log().contains(said), "{}", worker.log());
    assert_eq!(fleet.database.count("SELECT count(*) FROM pg_class WHERE relname LIKE 'harness%'").await, 0);
}

#[tokio::test]
async fn a_fleet_works_whatever_the_locale_of_its_database_and_of_its_processes() {
    let server = std::env::var("DATABASE_URL").expect("DATABASE_URL");
    for locale in [
        "LOCALE 'C.UTF-8'",
        "LOCALE 'C.UTF-8' LOCALE_PROVIDER icu ICU_LOCALE 'tr-TR'",
        "LOCALE 'C.UTF-8' LOCALE_PROVIDER icu ICU_LOCALE 'de-u-kf-upper-ka-shifted'",
    ] {
        let options = format!("TEMPLATE template0 ENCODING 'UTF8' {locale}");
        let fleet = Fleet::on(Database::made_on(&server, &options).await);
        let name = fleet.database.texts("SELECT current_database()::text").await.remove(0);
        for kind in ["messages", "numeric", "time", "monetary"] {
            let sql = format!("ALTER DATABASE {name} SET lc_{kind} = 'de_DE.UTF-8'");
            // Refused if the server has no such locale.
            let _ =
                sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut fleet.database.connect().await).await;
        }
        let abroad = [("LANG", "tr_TR.UTF-8"), ("LC_ALL", "tr_TR.UTF-8"), ("LC_NUMERIC", "de_DE.UTF-8")];
        let producer = async |arguments: &[&str]| {
            let mut command = fleet.producer_command(arguments);
            command.envs(abroad);
            let ran = Ran::of(command, "").await;
            assert_eq!(ran.code, 0, "{locale}: {ran:?}");
            ran.out
        };
        for command in ["migrate", "doctor"] {
            producer(&[command]).await;
        }
        let launch = |name: &str| {
            abroad.iter().fold(fleet.worker(name), |launch, (name, value)| launch.set(name, value))
        };
        let _workers = [launch("first").start().await, launch("second").start().await];
        // Names that other locales sort differently, or consider equal in capitals.
        let sessions = ["I", "i", "ISPARTA", "isparta", "a-b", "ab", "A.B", "a_c", "Z", "z", "10", "9"];
        let job = |number: usize| {
            job(sessions[number % sessions.len()], "scripted", json!({"count": 3, "delay_ms": 5}))
        };
        let specs: Vec<_> = (0..48).map(job).collect();
        fleet.enqueue(&specs).await;
        fleet.undisturbed(&specs).await;
        producer(&["status", &specs[0].job_id.to_string()]).await;
        producer(&["audit", "--strict"]).await;
        let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
        assert_eq!(fleet.database.count(deadlocks).await, 0);
    }
}

#[tokio::test]
async fn two_fleets_of_two_accounts_have_a_schema_each() {
    let fleet = Fleet::on(Database::empty().await);
    let (_, place) = fleet.database.url.rsplit_once('@').expect("an account");
    let database = place.rsplit('/').next().expect("a name");
    for number in [1, 2] {
        let account = format!("{database}_{number}");
        for sql in [
            &format!("CREATE ROLE {account} LOGIN PASSWORD 'x'"),
            &format!("CREATE SCHEMA {account} AUTHORIZATION {account}"),
        ] {
            fleet.database.execute(sql).await;
        }
        let address = Address::new(&format!("postgres://{account}:x@{place}"), SetBy::Connection);
        let address = address.expect("an address");
        migrations::migrate(&address).await.expect("a schema of its own");
        migrations::check(&address).await.expect("the same");
    }
    for number in [1, 2] {
        let account = format!("{database}_{number}");
        fleet.database.execute(&format!("DROP OWNED BY {account}; DROP ROLE {account}")).await;
    }
}

#[tokio::test]
async fn a_ledger_in_a_schema_that_the_account_does_not_look_into_is_named_and_no_second_one_is_made() {
    let fleet = Fleet::on(Database::empty().await);
    let (role, _) = fleet.database.role(30).await;
    fleet.database.execute(&format!("CREATE SCHEMA fleet; GRANT ALL ON SCHEMA fleet TO {role}")).await;
    let there = format!("{}?options=-c%20search_path=fleet", fleet.database.url);
    let run = async |url: &str, command: &str| {
        let mut command = fleet.producer_command(&[command]);
        command.env("DATABASE_URL", url);
        Ran::of(command, "").await
    };
    for command in ["migrate", "doctor"] {
        let ran = run(&there, command).await;
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    for command in ["migrate", "doctor"] {
        let ran = run(&fleet.database.url, command).await;
        let said = ran.out.clone() + &ran.err;
        assert!(
            ran.code == 1 && said.contains("is in the schema \"fleet\"") && said.contains("search_path"),
            "{ran:?}"
        );
    }
    assert_eq!(fleet.database.count("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await, 0);
    fleet.database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
}
