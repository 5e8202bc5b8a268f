//! `producer doctor` in broken environments: each line names what is wrong and what to do.

use postgres::SetBy;
use tests::{Database, Fleet, GuardedPostgres, Pooler, Ran};

async fn doctor(fleet: &Fleet, environment: &[(&str, &str)]) -> Ran {
    let mut command = fleet.producer_command(&["doctor"]);
    command.envs(environment.iter().copied());
    Ran::of(command, "").await
}

/// Checks that one line is missing and has all of these parts, and that all other lines are ok.
fn reports(ran: &Ran, parts: &[&str]) {
    let missing: Vec<&str> = ran.out.lines().filter(|line| line.starts_with("MISSING")).collect();
    assert!(ran.code == 1 && missing.len() == 1, "{parts:?}: {ran:?}");
    assert!(parts.iter().all(|part| missing[0].contains(part)), "{parts:?}: {}", missing[0]);
}

#[tokio::test]
async fn each_broken_database_is_reported_with_the_remedy() {
    let fleet = Fleet::new().await;
    let url = &fleet.database.url;
    reports(
        &doctor(&fleet, &[("DATABASE_URL", &format!("{url}_gone"))]).await,
        &["database_connected", "there is no database", "CREATE DATABASE", "DATABASE_URL"],
    );
    reports(
        &doctor(&fleet, &[("DATABASE_URL", &format!("{url}?sslmode=require"))]).await,
        &["database_connected", "has no TLS", "sslmode=disable"],
    );
    reports(
        &doctor(&fleet, &[("DATABASE_URL", "postgres://me@127.0.0.1:1/d")]).await,
        &["database_connected", "127.0.0.1:1 cannot be reached", "DATABASE_URL"],
    );
    let (role, limited) = fleet.database.role(3).await;
    reports(
        &doctor(&fleet, &[("DATABASE_URL", &limited)]).await,
        &["database_room", "may have 3 connections", "DATABASE_POOL_SIZE", "CONNECTION LIMIT"],
    );
    fleet.database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    reports(
        &doctor(&fleet, &[("DATABASE_SETTINGS", "role")]).await,
        &["database_settings", "DATABASE_SETTINGS is role", "statement_timeout", "producer migrate"],
    );
    let last = "DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)";
    fleet.database.execute(last).await;
    reports(&doctor(&fleet, &[]).await, &["schema_current", "lacks migration", "run `producer migrate`"]);
    fleet.database.execute("INSERT INTO _sqlx_migrations VALUES (90000, 'x', now(), true, '', 1)").await;
    assert_eq!(fleet.producer(&["migrate"]).await.code, 1);

    let empty = Fleet::on(Database::empty().await);
    reports(&doctor(&empty, &[]).await, &["schema_current", "lacks migration 1", "run `producer migrate`"]);
    let server = std::env::var("DATABASE_URL").expect("DATABASE_URL");
    let options = "ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    let latin = Fleet::on(Database::made_on(&server, options).await);
    reports(&doctor(&latin, &[]).await, &["database_connected", "LATIN1", "ENCODING 'UTF8'", "DATABASE_URL"]);
    let pooler = Pooler::start("--release 1.18 --mode transaction").await;
    let behind = Fleet::on(Database::behind(&pooler, SetBy::Connection).await);
    reports(
        &doctor(&behind, &[]).await,
        &["database_connected", "transaction mode", "PgBouncer 1.21", "pool_mode = session"],
    );
}

#[tokio::test]
async fn each_broken_server_is_reported_with_the_remedy() {
    let postgres = GuardedPostgres::start().await;
    let fleet = Fleet::on(postgres.database().await);
    assert_eq!(fleet.producer(&["migrate"]).await.code, 0);
    let port = postgres.port;
    let by = |way: &str| postgres.by(&format!("{way}:{port}"), &fleet.database);
    reports(
        &doctor(&fleet, &[("DATABASE_URL", &by("locked:wrong@127.0.0.1"))]).await,
        &["database_connected", "refuses the account \"locked\"", "password in DATABASE_URL", "pg_hba.conf"],
    );
    reports(
        &doctor(&fleet, &[("DATABASE_URL", &format!("{}?sslmode=require", by("harness@localhost")))]).await,
        &["database_connected", "certificate", "authority that is not known", "sslrootcert"],
    );
    let authority = postgres.authority.file().display().to_string();
    let other_name = format!("{}?sslmode=require&sslrootcert={authority}", by("harness@127.0.0.1"));
    reports(
        &doctor(&fleet, &[("DATABASE_URL", &other_name)]).await,
        &["database_connected", "certificate", "another name", "sslmode=verify-ca"],
    );
    postgres.become_standby().await;
    reports(
        &doctor(&fleet, &[]).await,
        &[
            "database_writable",
            "standby",
            "name the primary in DATABASE_URL",
            "target_session_attrs=read-write",
        ],
    );
    let writable = format!("{}?target_session_attrs=read-write", fleet.database.url);
    reports(
        &doctor(&fleet, &[("DATABASE_URL", &writable)]).await,
        &["database_connected", "target_session_attrs", "name the primary"],
    );
    postgres.become_primary().await;
    assert_eq!(doctor(&fleet, &[]).await.code, 0);
}

#[tokio::test]
async fn ends_that_wait_for_webhooks_while_no_process_sends_are_named() {
    let fleet = Fleet::new().await;
    assert!(!doctor(&fleet, &[]).await.out.contains("webhooks"), "there are none");
    let added = fleet.producer(&["webhooks", "add", "https://example.com/hook"]).await;
    assert_eq!(added.code, 0, "{added:?}");
    let waits = "INSERT INTO harness_deliveries (webhook_id, job_id, due_at)
                 SELECT id, gen_random_uuid(), now() - interval '5 minutes' FROM harness_webhooks";
    fleet.database.execute(waits).await;
    reports(&doctor(&fleet, &[]).await, &["webhooks", "1 ends wait", "no process sends", "producer serve"]);
    let given_up = "UPDATE harness_webhooks SET disabled_at = now(), disabled_by = 'failing'";
    fleet.database.execute(given_up).await;
    let seen = doctor(&fleet, &[]).await;
    assert!(seen.code == 0 && seen.out.contains("1 disabled because all attempts failed"), "{seen:?}");
}

#[tokio::test]
async fn keys_that_end_and_a_log_that_was_changed_are_named() {
    let fleet = Fleet::new().await;
    let quiet = doctor(&fleet, &[]).await;
    assert!(!quiet.out.contains("api_keys") && !quiet.out.contains("operators_log"), "{quiet:?}");
    let create = async |arguments: &[&str]| {
        let ran = fleet.producer(&[&["keys", "create"], arguments].concat()).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        ran.out.trim()[4..14].to_owned()
    };
    let shown = async |said: &[&str]| {
        let seen = doctor(&fleet, &[]).await;
        assert!(seen.code == 0 && said.iter().all(|part| seen.out.contains(part)), "{said:?}: {seen:?}");
        seen
    };
    let ending = create(&["--scope", "read", "--expires-in", "3d"]).await;
    let lasting = create(&["--scope", "read", "--expires-in", "90d"]).await;
    let seen = shown(&["2 keys of 1 tenants are valid", "none with the scope admin", &ending]).await;
    assert!(!seen.out.contains(&lasting), "{seen:?}");
    let admin = create(&["--scope", "admin"]).await;
    let seen = shown(&["3 keys of 1 tenants are valid", "its newest 3 rows are one chain"]).await;
    assert!(!seen.out.contains("none with the scope"), "{seen:?}");
    for id in [&ending, &lasting, &admin] {
        assert_eq!(fleet.producer(&["keys", "revoke", id]).await.code, 0);
    }
    shown(&["no key is valid", "producer keys create"]).await;

    let off = "ALTER TABLE harness_audit_log DISABLE TRIGGER USER";
    fleet.database.execute(off).await;
    reports(
        &doctor(&fleet, &[]).await,
        &["operators_log", "harness_audit_log_append, harness_audit_log_keep"],
    );
    fleet.database.execute("UPDATE harness_audit_log SET actor = 'nobody' WHERE id = 4").await;
    fleet.database.execute("ALTER TABLE harness_audit_log ENABLE TRIGGER USER").await;
    reports(&doctor(&fleet, &[]).await, &["operators_log", "row 4 does not fit", "producer audit"]);
}

#[tokio::test]
async fn limits_that_are_shut_and_calls_of_unknown_cost_are_named() {
    let fleet = Fleet::new().await;
    let quiet = doctor(&fleet, &[]).await;
    assert!(!quiet.out.contains("budgets") && !quiet.out.contains("calls_settled"), "{quiet:?}");
    assert_eq!(fleet.producer(&["budget", "set", "10", "--per", "day"]).await.code, 0);
    let unknown = "
        INSERT INTO harness_calls (call_id, state, tenant, session_id, job_id, epoch, worker_id, agent_id, provider, model,
                                   reserved_microusd, cost_microusd, request_hash, request_nth, day, on_session, on_job,
                                   reserved_at, settled_at)
        SELECT ($1::jsonb->>'id')::uuid, 'unknown', 'default', 's', gen_random_uuid(), 1, gen_random_uuid(), 'a', 'anthropic', 'm',
               2500000, 2500000, sha256(''), 0, current_date, false, false, now() - interval '2 hours', now()";
    let id = format!("'{{\"id\": \"{}\"}}'", job::JobId::now());
    fleet.database.execute(&unknown.replace("$1", &id)).await;
    let seen = doctor(&fleet, &[]).await;
    for said in [
        "1 limits; the least is left of fleet:day:",
        "$10.000000 of $10.000000",
        "1 calls of unknown cost for more than an hour; all 1 count $2.500000",
    ] {
        assert!(seen.code == 0 && seen.out.contains(said), "{said}: {seen:?}");
    }
    fleet
        .database
        .execute("UPDATE harness_accounts SET overrun_microusd = 1 WHERE key LIKE 'fleet:day:%'")
        .await;
    reports(
        &doctor(&fleet, &[]).await,
        &["budgets", "no call is granted under fleet:day:", "producer budget reopen"],
    );
}
