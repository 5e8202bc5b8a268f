//! One address, one reader: every command and every connection accepts the same `DATABASE_URL`, or refuses it and names
//! what is wrong. All of them verify TLS.

use std::process::Command;

use postgres::{Address, PostgresError};
use serde_json::json;
use tests::{Authority, Database, Fleet, GuardedPostgres, Ran, is_root, job};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Works with this address from an empty database to a job's end.
async fn works_by(fleet: &Fleet, url: &str) {
    for command in ["migrate", "doctor"] {
        let ran = producer(fleet, &[command], &[("DATABASE_URL", url)]).await;
        assert_eq!(ran.code, 0, "{url}: {ran:?}");
    }
    let worker = fleet.worker("worker").set("DATABASE_URL", url).start().await;
    let ran =
        producer(fleet, &["enqueue", "--session", "s", "--agent", "echo"], &[("DATABASE_URL", url)]).await;
    assert_eq!(ran.code, 0, "{url}: {ran:?}");
    let ran = producer(fleet, &["wait", ran.out.trim()], &[("DATABASE_URL", url)]).await;
    assert_eq!(ran.code, 0, "{url}: {ran:?}");
    drop(worker);
}

async fn producer(fleet: &Fleet, arguments: &[&str], environment: &[(&str, &str)]) -> Ran {
    let mut command = fleet.producer_command(arguments);
    command.envs(environment.iter().copied());
    Ran::of(command, "").await
}

/// Makes a backup into the fleet's folder, with these variables.
async fn backup(fleet: &Fleet, environment: &[(&str, &str)]) -> Ran {
    let target = fleet.folder.path().join("backups").to_string_lossy().into_owned();
    let ours = [("BACKUP_TARGET", target.as_str()), ("BACKUP_ENCRYPTION", "none")];
    fleet.ops("backup/backup", &[], &[environment, &ours].concat()).await
}

/// Returns the part between `postgres://` and the database's name, and that name.
fn parts(url: &str) -> (&str, &str) {
    url.split_once("://").and_then(|(_, rest)| rest.rsplit_once('/')).expect("an address")
}

#[tokio::test]
async fn every_form_of_an_address_works_in_every_command() {
    let fleet = Fleet::on(Database::empty().await);
    let url = &fleet.database.url;
    let (authority, database) = parts(url);
    let (account, place) = authority.rsplit_once('@').expect("an account");
    let (host, port) = place.split_once(':').expect("a port");
    let user = account.split(':').next().expect("a user");
    for form in [
        format!("{url}\n"),
        format!("  {url} "),
        format!("postgresql://{authority}/{database}"),
        format!("host={host} port={port} dbname={database} user={user} password='x'"),
        format!("postgres://{account}@{host}:1,{place}/{database}?target_session_attrs=read-write"),
        format!(
            "postgres://%{:02x}{}@{place}/{database}?application_name=a%20b",
            user.as_bytes()[0],
            &user[1..]
        ),
    ] {
        works_by(&fleet, &form).await;
    }
}

#[tokio::test]
async fn a_server_that_is_silent_does_not_keep_the_next_one_away() {
    // The kernel accepts the connections, but no answer comes.
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = silent.local_addr().expect("its address");
    let fleet = Fleet::on(Database::empty().await);
    let (authority, database) = parts(&fleet.database.url);
    let (account, place) = authority.rsplit_once('@').expect("an account");
    works_by(&fleet, &format!("postgres://{account}@{silent},{place}/{database}")).await;
}

/// A lookup in this `/etc/hosts`, a pipe without a writer, never returns; it ends only with the process.
#[tokio::test]
async fn a_name_is_looked_up_when_its_turn_has_come() {
    let fleet = Fleet::on(Database::empty().await);
    let (authority, database) = parts(&fleet.database.url);
    let hosts = fleet.folder.path().join("hosts");
    assert!(Command::new("mkfifo").arg(&hosts).status().expect("mkfifo").success());
    let (account, place) = authority.rsplit_once('@').expect("an account");
    let silent: String = (0..40).map(|number| format!(",silent-{number}.example:5432")).collect();
    for servers in [format!("{place}{silent}"), format!("silent.example:5432,{place}")] {
        let ours = fleet.producer_command(&["migrate"]);
        let mut command = Command::new("unshare");
        command.args(if is_root() { &["--mount"][..] } else { &["--user", "--map-root-user", "--mount"] });
        command.args(["sh", "-c", r#"mount --bind "$0" /etc/hosts && exec "$@""#]).arg(&hosts);
        command.arg(ours.get_program()).args(ours.get_args());
        command.envs(ours.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.env("DATABASE_URL", format!("postgres://{account}@{servers}/{database}"));
        let ran = Ran::of(command, "").await;
        assert_eq!(ran.code, 0, "{ran:?}");
    }
}

#[tokio::test]
async fn an_error_in_answer_to_a_request_for_tls_is_said_and_not_taken_for_no() {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let place = server.local_addr().expect("its address");
    let answering = tokio::spawn(async move {
        let said = "could not fork new process for connection: no\u{1b}memory";
        let fields = format!("SFATAL\0C53200\0M{said}\0\0");
        let length = (fields.len() as u32 + 4).to_be_bytes();
        let with_fields = [b"E", &length[..], fields.as_bytes()].concat();
        for answer in [with_fields, format!("E{said}\n\0").into_bytes()].iter().cycle() {
            let (mut client, _) = server.accept().await.expect("a connection");
            let mut request = [0; 8];
            // Its end follows.
            let _ = client.read_exact(&mut request).await;
            let _ = client.write_all(answer).await;
        }
    });
    let fleet = Fleet::on(Database::empty().await);
    let (_, database) = parts(&fleet.database.url);
    for mode in ["prefer", "prefer", "require", "require"] {
        let url = format!("postgres://harness@{place}/{database}?sslmode={mode}");
        let ran = producer(&fleet, &["migrate"], &[("DATABASE_URL", &url)]).await;
        let text =
            ["answers a request for TLS with an error", "could not fork new process", "no\\u{1b}memory"];
        assert!(ran.code == 1 && text.iter().all(|part| ran.err.contains(part)), "{mode}: {ran:?}");
    }
    answering.abort();
}

#[tokio::test]
async fn what_a_server_has_not_got_makes_no_standby_of_it() {
    let database = Database::empty().await;
    let url = format!("{}?target_session_attrs=read-write", database.url);
    let address = Address::new(&url, database.set_by).expect("an address");
    let session = postgres::connect(&address).await.expect("a primary");
    let error =
        session.client.batch_execute("SELECT 1 UNION SELECT 2 FOR UPDATE").await.expect_err("no such");
    assert_eq!(error.code().map(|code| code.code()), Some("0A000"));
    let text = PostgresError::new(&address, error).to_string();
    assert!(!text.contains("standby"), "{text}");
}

#[tokio::test]
async fn of_several_servers_the_primary_is_taken_though_a_standby_comes_first() {
    let postgres = GuardedPostgres::start().await;
    let fleet = Fleet::on(Database::empty().await);
    let (authority, database) = parts(&fleet.database.url);
    let (account, place) = authority.rsplit_once('@').expect("an account");
    let other = postgres.database().await;
    other.execute(&format!("CREATE DATABASE {database}")).await;
    postgres.become_standby().await;
    works_by(&fleet, &format!("postgres://{account}@127.0.0.1:{},{place}/{database}", postgres.port)).await;
    postgres.become_primary().await;
}

#[tokio::test]
async fn what_is_wrong_in_an_address_is_named_and_the_password_is_not_shown() {
    let fleet = Fleet::on(Database::empty().await);
    let url = fleet.database.url.replacen("://harness:harness@", "://harness:hush-hush@", 1);
    let (_, database) = parts(&url);
    for (wrong, named) in [
        (format!("{url}?schema=public"), ["unknown parameter \"schema\"", "sslmode"]),
        (
            format!("{url}?sslmode=trust-me"),
            ["sslmode: got \"trust-me\"", "disable, prefer, require, verify-ca or verify-full"],
        ),
        (format!("{url}?sslmode=require&sslrootcert=/no/such.pem"), ["sslrootcert", "/no/such.pem"]),
        (format!("{url}?target_session_attrs=tidy"), ["target_session_attrs", "read-write"]),
        (format!("{url}?connect_timeout=soon"), ["connect_timeout", "seconds"]),
        (format!("postgres://me:hush-hush@::1/{database}"), ["[::1]:5432", "brackets"]),
        (
            "postgres://me:hush/hush-hush@h/d".to_owned(),
            ["%2F", "postgres://user:password@host:5432/database"],
        ),
        ("mysql://me:hush-hush@h/d".to_owned(), ["another scheme", "postgres://"]),
        ("hush-hush".to_owned(), ["no address", "postgres://"]),
        ("host=h password=hush-hush".to_owned(), ["no host or no database", "postgres://"]),
    ] {
        for command in ["migrate", "doctor"] {
            let ran = producer(&fleet, &[command], &[("DATABASE_URL", &wrong)]).await;
            assert_eq!(ran.code, 2, "{wrong}: {ran:?}");
            assert!(ran.err.contains("DATABASE_URL: "), "{wrong}: {ran:?}");
            assert!(named.iter().all(|part| ran.err.contains(part)), "{wrong}: {ran:?}");
            assert!(!ran.err.contains("hush"), "{wrong}: {ran:?}");
        }
        let mut worker = fleet.worker("worker").set("DATABASE_URL", &wrong).launch();
        assert_eq!(worker.exit().await, 2, "{wrong}");
        assert!(worker.log().contains(named[0]) && !worker.log().contains("hush"), "{}", worker.log());
    }
    let ran = producer(&fleet, &["doctor"], &[("DATABASE_SETTINGS", "session")]).await;
    assert!(
        ran.code == 2 && ran.err.contains("DATABASE_SETTINGS: got \"session\", expected connection or role"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn the_environment_of_libpq_is_read_by_no_connection() {
    let fleet = Fleet::on(Database::empty().await);
    let environment = [
        ("PGHOST", "nowhere.invalid"),
        ("PGPORT", "1"),
        ("PGUSER", "nobody"),
        ("PGPASSWORD", "wrong"),
        ("PGDATABASE", "nowhere"),
        ("PGSSLMODE", "verify-full"),
        ("PGSSLROOTCERT", "/no/such.pem"),
        ("PGOPTIONS", "-c search_path=nowhere"),
        ("PGAPPNAME", "stranger"),
    ];
    for command in ["migrate", "doctor"] {
        let ran = producer(&fleet, &[command], &environment).await;
        assert_eq!(ran.code, 0, "{ran:?}");
    }
    let launch =
        environment.iter().fold(fleet.worker("worker"), |launch, (name, value)| launch.set(name, value));
    let ran = backup(&fleet, &environment).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let _worker = launch.start().await;
    let spec = job("s", "echo", json!(1));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.undisturbed(&[spec]).await;
}

#[tokio::test]
async fn other_ways_to_a_server_work_in_every_command() {
    let postgres = GuardedPostgres::start().await;
    let port = postgres.port;
    for way in [
        format!("harness:x@[::1]:{port}"),
        format!("harness@{}:{port}", postgres.folder.display().to_string().replace('/', "%2F")),
    ] {
        let fleet = Fleet::on(postgres.database().await);
        works_by(&fleet, &postgres.by(&way, &fleet.database)).await;
    }
    // Both parts decode the password.
    let fleet = Fleet::on(postgres.database().await);
    works_by(&fleet, &postgres.by(&format!("locked:%72ight@127.0.0.1:{port}"), &fleet.database)).await;
}

#[tokio::test]
async fn a_certificate_is_verified_by_every_connection() {
    let postgres = GuardedPostgres::start().await;
    let (port, authority) = (postgres.port, postgres.authority.file().display().to_string());
    let stranger = Authority::new();
    let another = stranger.file().display().to_string();
    let fleet = Fleet::on(postgres.database().await);
    let by = |host: &str, parameters: &str| {
        format!("{}?{parameters}", postgres.by(&format!("harness@{host}:{port}"), &fleet.database))
    };
    for (url, text) in [
        (by("localhost", "sslmode=require"), "sslrootcert"),
        (by("localhost", "sslmode=prefer"), "sslrootcert"),
        (by("localhost", "sslmode=verify-ca"), "sslrootcert"),
        (by("localhost", "sslmode=verify-full"), "sslrootcert"),
        (
            by("localhost", &format!("sslmode=require&sslrootcert={another}")),
            "not in the file of sslrootcert",
        ),
        (by("127.0.0.1", &format!("sslmode=require&sslrootcert={authority}")), "sslmode=verify-ca"),
        (by("127.0.0.1", &format!("sslmode=verify-full&sslrootcert={authority}")), "sslmode=verify-ca"),
    ] {
        let ran = producer(&fleet, &["migrate"], &[("DATABASE_URL", &url)]).await;
        assert!(ran.code == 1 && ran.err.contains(text) && ran.err.contains("certificate"), "{url}: {ran:?}");
        let mut worker = fleet.worker("worker").set("DATABASE_URL", &url).launch();
        assert_eq!(worker.exit().await, 1, "{url}");
        assert!(worker.log().contains(text), "{url}: {}", worker.log());
    }
    let tables = "SELECT count(*) FROM pg_class WHERE relname LIKE 'harness%'";
    assert_eq!(fleet.database.count(tables).await, 0, "no connection to an unverified server made anything");
    for url in [
        by("localhost", &format!("sslmode=prefer&sslrootcert={authority}")),
        by("localhost", &format!("sslmode=require&sslrootcert={authority}")),
        by("localhost", &format!("sslmode=verify-full&sslrootcert={authority}")),
        by("127.0.0.1", &format!("sslmode=verify-ca&sslrootcert={authority}")),
    ] {
        works_by(&fleet, &url).await;
    }
    let by_setting =
        [("DATABASE_URL", by("localhost", "sslmode=require")), ("TLS_CA_FILE", authority.clone())];
    let by_setting = by_setting.each_ref().map(|(name, value)| (*name, value.as_str()));
    let ran = producer(&fleet, &["doctor"], &by_setting).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    for (url, code) in [
        (by("localhost", "sslmode=require"), 1),
        (by("127.0.0.1", &format!("sslmode=require&sslrootcert={authority}")), 1),
        (by("localhost", &format!("sslmode=require&sslrootcert={authority}")), 0),
        (by("localhost", &format!("sslmode=prefer&sslrootcert={authority}")), 0),
    ] {
        let ran = backup(&fleet, &[("DATABASE_URL", &url)]).await;
        assert_eq!(ran.code, code, "{url}: {ran:?}");
    }
    let url = by("localhost", &format!("sslmode=require&sslrootcert={authority}"));
    let _worker = fleet.worker("worker").set("DATABASE_URL", &url).start().await;
    let ours = "FROM pg_stat_activity JOIN pg_stat_ssl USING (pid)
                 WHERE application_name = 'harness-fleet' AND datname = current_database()";
    assert!(fleet.database.count(&format!("SELECT count(*) {ours} AND ssl")).await >= 2);
    assert_eq!(fleet.database.count(&format!("SELECT count(*) {ours} AND NOT ssl")).await, 0);
}

#[tokio::test]
async fn an_address_that_leads_nowhere_ends_a_start() {
    let postgres = GuardedPostgres::start().await;
    let fleet = Fleet::on(postgres.database().await);
    let port = postgres.port;
    let locked = postgres.by(&format!("locked:wrong@127.0.0.1:{port}"), &fleet.database);
    let nowhere = format!("{}_gone", fleet.database.url);
    let unknown = postgres.by(&format!("locked2:x@127.0.0.1:{port}"), &fleet.database);
    let in_a_list = postgres.by(&format!("locked2:x@127.0.0.1:{port},127.0.0.1:1"), &fleet.database);
    let without = postgres.by(&format!("locked@127.0.0.1:{port}"), &fleet.database);
    for (url, text) in [
        (&locked, "refuses the account \"locked\": check user and password in DATABASE_URL"),
        (&unknown, "refuses the account \"locked2\""),
        (&in_a_list, "refuses the account \"locked2\""),
        (&without, "wants a password of the account \"locked\""),
        (&nowhere, "there is no database"),
    ] {
        let pools = "[pools.default]\ntarget = \"process\"\n";
        for launch in [fleet.worker("worker"), fleet.relay("relay"), fleet.autoscaler("autoscaler", pools)] {
            let mut process = launch.set("DATABASE_URL", url).launch();
            assert_eq!(process.exit().await, 1, "{text}");
            assert!(process.log().contains(text), "{text}: {}", process.log());
            assert!(!process.log().contains("wrong@"), "{}", process.log());
        }
    }
}
