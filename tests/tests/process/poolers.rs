//! A fleet works behind a pooler, or is refused before it takes a job, with an error that names what is missing.

use std::time::Duration;

use job::JobState;
use postgres::{Address, Pooling, SetBy, look};
use tests::{Database, Fleet, Pooler, Proxy, Ran, steps};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// Runs a small fleet from an empty database on, of which one worker is killed.
async fn a_fleet_works_behind(pooler: &Pooler, set_by: SetBy) {
    let fleet = Fleet::on(Database::behind(pooler, set_by).await);
    for command in ["migrate", "migrate", "doctor"] {
        let ran = fleet.producer(&[command]).await;
        assert_eq!(ran.code, 0, "{command}: {ran:?}");
    }
    let mut first = fleet.worker("first").short_lease().start().await;
    let specs: Vec<_> = (0..12).map(|number| steps(number % 4, 5, 60)).collect();
    fleet.enqueue(&specs).await;
    fleet.iterated(specs[0].job_id, 2).await;
    let second = fleet.worker("second").start().await;
    first.kill();
    for spec in &specs {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!((view.state, view.iterations), (JobState::Succeeded, 5), "{view:?}");
    }
    second.ready().await;
    for command in ["audit", "doctor"] {
        let ran = fleet.producer(&[command]).await;
        assert_eq!(ran.code, 0, "{command}: {ran:?}");
    }
    // On a busy machine one may be lost.
    let log = second.log();
    assert!(log.rfind("heartbeat does not reach") <= log.rfind("heartbeats reach Postgres again"), "{log}");
    // Nothing stays behind in the shared sessions: a lock there would block the next upkeep.
    let locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
                    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    assert_eq!(fleet.database.count(locks).await, 0);
}

/// Checks that nothing starts behind it, and that each program says what would help.
async fn is_refused_behind(pooler: &Pooler, set_by: SetBy, said: &[&str]) {
    let mut fleet = Fleet::on(Database::new().await);
    fleet.database.url = pooler.through(&fleet.database.url);
    is_refused(&mut fleet, set_by, said).await;
}

async fn is_refused(fleet: &mut Fleet, set_by: SetBy, said: &[&str]) {
    fleet.database.set_by = set_by;
    let says = |text: &str| said.iter().all(|part| text.contains(part));
    let ran = fleet.producer(&["migrate"]).await;
    assert!(ran.code == 1 && says(&ran.err), "{ran:?}");
    let ran = fleet.producer(&["doctor"]).await;
    assert!(ran.code == 1 && says(&ran.out), "{ran:?}");
    for launch in [fleet.worker("worker"), fleet.relay("relay")] {
        let mut process = launch.launch();
        assert_eq!(process.exit().await, 1);
        assert!(says(&process.log()), "{}", process.log());
    }
}

#[tokio::test]
async fn in_session_mode_all_works() {
    for (release, set_by) in [("1.18", SetBy::Connection), ("1.24", SetBy::Connection), ("1.24", SetBy::Role)]
    {
        let pooler = Pooler::start(&format!("--release {release} --mode session")).await;
        a_fleet_works_behind(&pooler, set_by).await;
    }
}

#[tokio::test]
async fn several_poolers_behind_one_address_are_found_as_well() {
    let options = "--release 1.24 --mode transaction --set max_prepared_statements=0";
    let poolers = [Pooler::start(options).await, Pooler::start(options).await];
    let mut fleet = Fleet::on(Database::new().await);
    let place = |url: &str| {
        let (_, behind) = url.rsplit_once('@').expect("an account");
        behind.split('/').next().expect("a host and a port").to_owned()
    };
    let places = poolers.each_ref().map(|pooler| place(&pooler.through(&fleet.database.url)));
    let balancer = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let here = balancer.local_addr().expect("its address").to_string();
    let balancing = tokio::spawn(async move {
        for place in places.iter().cycle() {
            let (mut from, _) = balancer.accept().await.expect("a connection");
            let mut to = TcpStream::connect(place).await.expect("a pooler");
            // It ends when either side ends.
            tokio::spawn(async move { copy_bidirectional(&mut from, &mut to).await });
        }
    });
    fleet.database.url = fleet.database.url.replacen(&place(&fleet.database.url), &here, 1);
    for set_by in [SetBy::Connection, SetBy::Role] {
        is_refused(&mut fleet, set_by, &["transaction mode", "PgBouncer 1.21"]).await;
    }
    balancing.abort();
}

#[tokio::test]
async fn a_start_looks_for_a_pooler_also_over_a_long_link() {
    let fleet = Fleet::new().await;
    let spec = steps(1, 1, 0);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let far = Proxy::far_from(&fleet.database.url, Duration::from_millis(150)).await;
    let url = far.through(&fleet.database.url);
    let mut command = fleet.producer_command(&["status", &spec.job_id.to_string()]);
    command.env("DATABASE_URL", &url);
    let ran = Ran::of(command, "").await;
    // It has not ended.
    assert!(ran.code == 3 && ran.out.contains("queued"), "{ran:?}");
    let _worker = fleet.worker("worker").set("DATABASE_URL", &url).start().await;
    fleet.undisturbed(&[spec]).await;
}

#[tokio::test]
async fn a_look_takes_no_more_connections_than_there_is_place_for() {
    let database = Database::new().await;
    let (role, url) = database.role(2).await;
    let limited = Address::new(&url, database.set_by).expect("an address");
    let (session, pooling) = look(&limited).await.expect("two connections are enough");
    assert_eq!(pooling, Pooling::Own);
    session.close().await;
    database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    let pooler = Pooler::start("--release 1.24 --mode session --set default_pool_size=2").await;
    let (session, pooling) = look(&Database::behind(&pooler, SetBy::Connection).await.address())
        .await
        .expect("two sessions are enough");
    assert_eq!(pooling, Pooling::Own);
    session.close().await;
}

#[tokio::test]
async fn in_transaction_mode_all_works_where_the_pooler_keeps_statements_and_the_account_has_the_settings() {
    // Few sessions, so that they are shared.
    let pooler = Pooler::start("--release 1.24 --mode transaction --set default_pool_size=4").await;
    a_fleet_works_behind(&pooler, SetBy::Role).await;
}

#[tokio::test]
async fn in_transaction_mode_settings_of_connections_are_refused() {
    let pooler = Pooler::start("--release 1.24 --mode transaction").await;
    is_refused_behind(
        &pooler,
        SetBy::Connection,
        &["transaction mode", "DATABASE_SETTINGS=role", "pool_mode = session"],
    )
    .await;
}

#[tokio::test]
async fn in_transaction_mode_a_pooler_that_loses_statements_is_refused() {
    let said = ["transaction mode", "PgBouncer 1.21", "max_prepared_statements", "pool_mode = session"];
    for options in [
        "--release 1.18 --mode transaction",
        "--release 1.24 --mode transaction --set max_prepared_statements=0",
    ] {
        let pooler = Pooler::start(options).await;
        for set_by in [SetBy::Connection, SetBy::Role] {
            is_refused_behind(&pooler, set_by, &said).await;
        }
    }
}

#[tokio::test]
async fn in_statement_mode_it_is_refused() {
    let pooler = Pooler::start("--release 1.18 --mode statement").await;
    is_refused_behind(&pooler, SetBy::Connection, &["statement mode", "pool_mode = transaction or session"])
        .await;
}

#[tokio::test]
async fn a_pooler_that_does_not_take_a_parameter_of_the_address_is_named_with_its_setting() {
    let parameters = "?options=-c%20search_path%3Dpublic";
    for release in ["1.18", "1.24"] {
        let pooler = Pooler::start(&format!("--release {release} --mode session")).await;
        let fleet = Fleet::on(Database::behind(&pooler, SetBy::Connection).await);
        let mut command = fleet.producer_command(&["migrate"]);
        command.env("DATABASE_URL", format!("{}{parameters}", fleet.database.url));
        let ran = Ran::of(command, "").await;
        assert!(ran.code == 1 && ran.err.contains("ignore_startup_parameters"), "{ran:?}");
    }
}

#[tokio::test]
async fn settings_that_the_account_lacks_are_named_with_the_way_to_get_them() {
    let mut fleet = Fleet::on(Database::empty().await);
    fleet.database.set_by = SetBy::Connection;
    assert_eq!(fleet.producer(&["migrate"]).await.code, 0);
    fleet.database.set_by = SetBy::Role;
    let said = ["DATABASE_SETTINGS is role", "statement_timeout", "run `producer migrate`"];
    let says = |text: &str| said.iter().all(|part| text.contains(part));
    let ran = fleet.producer(&["doctor"]).await;
    assert!(ran.code == 1 && says(&ran.out), "{ran:?}");
    let mut worker = fleet.worker("worker").launch();
    assert_eq!(worker.exit().await, 1);
    assert!(says(&worker.log()), "{}", worker.log());
    assert_eq!(fleet.producer(&["migrate"]).await.code, 0);
    assert_eq!(fleet.producer(&["doctor"]).await.code, 0);
    let _worker = fleet.worker("worker").start().await;
}
