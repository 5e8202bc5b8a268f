//! ops/preflight and ops/smoke in healthy and in broken environments.

use std::path::PathBuf;

use postgres::SetBy;
use serde_json::json;
use tests::{Database, Fleet, Ran, job};

const IMAGE: &str = "registry.example.com/harness-fleet:v1.2.3";

/// Makes a folder that kubectl can render, or cannot.
fn manifests(fleet: &Fleet, name: &str, resource: &str) -> PathBuf {
    let folder = fleet.folder.path().join(name);
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("kustomization.yaml"), "resources: [account.yaml]\n").expect("written");
    std::fs::write(folder.join("account.yaml"), resource).expect("written");
    folder
}

const ACCOUNT: &str = "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: worker\n";

/// The lines of the output that report a missing check.
fn missing(ran: &Ran) -> Vec<&str> {
    ran.out.lines().filter_map(|line| line.strip_prefix("MISSING  ")).map(str::trim).collect()
}

#[tokio::test]
async fn a_good_environment_lacks_nothing() {
    let fleet = Fleet::new().await;
    let folder = manifests(&fleet, "good", ACCOUNT);
    let ran =
        fleet.ops("preflight", &["--manifests", &folder.to_string_lossy(), "development", IMAGE], &[]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    for check in [
        "settings",
        "secret DATABASE_URL",
        "secret AMQP_URL",
        "database_connected",
        "schema_current",
        "database_rights",
        "partitions",
        "clock",
        "broker_connected",
        "queue_declared",
        "broker_write",
        "broker_read",
        "broker_alarms",
        "manifests",
        "image",
    ] {
        assert!(ran.out.contains(&format!("ok       {check} ")), "{check}: {ran:?}");
    }
}

#[tokio::test]
async fn a_broken_environment_is_reported_with_all_that_it_lacks_at_once() {
    let fleet = Fleet::new().await;
    fleet
        .database
        .execute("DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)")
        .await;
    let folder = manifests(&fleet, "broken", "kind: [");
    let nobody = format!("{}/nowhere", fleet.vhost.url.rsplit_once('/').expect("a path").0);
    let ran = fleet
        .ops(
            "preflight",
            &["--manifests", &folder.to_string_lossy(), "production", "harness-fleet:latest"],
            &[("AMQP_URL", &nobody), ("DATABASE_POOL_SIZE", "5")],
        )
        .await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let missing = missing(&ran);
    // The services of a test accept every user, or have a password that is no secret.
    for check in
        ["secret DATABASE_URL", "secret AMQP_URL", "schema_current", "broker_connected", "manifests", "image"]
    {
        assert!(missing.iter().any(|line| line.starts_with(check)), "{check}: {ran:?}");
    }
    assert!(ran.out.contains("ok       database_connected"), "{ran:?}");
    assert!(ran.err.contains(&format!("{} missing", missing.len())), "{ran:?}");
}

#[tokio::test]
async fn a_schema_that_the_deploy_will_migrate_is_no_miss_before_it() {
    let fleet = Fleet::on(Database::empty().await);
    let arguments = ["--before-migration", "--manifests", "none", "development", IMAGE];
    let before = fleet.ops("preflight", &arguments, &[]).await;
    assert!(before.code == 0 && before.out.contains("later    schema_current"), "{before:?}");
    let after = fleet.ops("preflight", &arguments[1..], &[]).await;
    assert!(after.code == 1 && missing(&after).len() == 1, "{after:?}");
    assert_eq!(fleet.producer(&["migrate"]).await.code, 0);
    let migrated = fleet.ops("preflight", &arguments, &[]).await;
    assert!(migrated.code == 0 && migrated.out.contains("ok       schema_current"), "{migrated:?}");
}

#[tokio::test]
async fn secrets_that_are_not_there_and_settings_that_are_wrong_are_named() {
    let fleet = Fleet::new().await;
    let none = ["--manifests", "none", "development", IMAGE];
    let ran = fleet.ops("preflight", &none, &[("DATABASE_URL", "")]).await;
    assert!(ran.code == 1 && ran.out.contains("MISSING  secret DATABASE_URL"), "{ran:?}");
    let ran = fleet.ops("preflight", &none, &[("DATABASE_POOL_SIZE", "many")]).await;
    assert!(ran.code == 1 && ran.err.contains("DATABASE_POOL_SIZE: got \"many\""), "{ran:?}");
    let ran = fleet.ops("preflight", &["--manifests", "none", "moon", IMAGE], &[]).await;
    assert!(
        ran.code == 1 && ran.out.contains("got \"moon\", expected development, staging or production"),
        "{ran:?}"
    );
    assert_eq!(fleet.ops("preflight", &["production"], &[]).await.code, 2);
}

#[tokio::test]
async fn an_account_without_rights_learns_which_it_lacks() {
    let fleet = Fleet::new().await;
    let role =
        fleet.database.texts("SELECT 'reader_' || replace(gen_random_uuid()::text, '-', '')").await.remove(0);
    fleet
        .database
        .execute(&format!("CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}"))
        .await;
    let (_, host) = fleet.database.url.rsplit_once('@').expect("an address with a user");
    let ran = fleet
        .ops(
            "preflight",
            &["--manifests", "none", "development", IMAGE],
            &[("DATABASE_URL", &format!("postgres://{role}@{host}"))],
        )
        .await;
    fleet.database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let rights = missing(&ran)
        .into_iter()
        .find(|line| line.starts_with("database_rights"))
        .expect("a line")
        .to_owned();
    for part in
        ["INSERT on harness_jobs", "USAGE on the sequence harness_epoch", "ownership of harness_results"]
    {
        assert!(rights.contains(part), "{rights}");
    }
    assert!(!rights.contains("SELECT"), "{rights}");
}

#[tokio::test]
async fn smoke_distinguishes_processes_that_work_from_those_that_do_not() {
    let fleet = Fleet::new().await;
    let worker = fleet.worker("worker").start().await;
    let relay = fleet.relay("relay").launch();
    let urls = [format!("http://{}", worker.address().await), format!("http://{}/", relay.address().await)];
    // Once more where a process of a busy machine stood still for the second in which its /health must answer.
    let smoke: [&str; 4] = ["--job", "default", &urls[0], &urls[1]];
    let mut ran = fleet.ops("smoke", &smoke, &[]).await;
    if ran.code != 0 {
        ran = fleet.ops("smoke", &smoke, &[]).await;
    }
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out.lines().filter(|line| line.starts_with("ok  ")).count(), 3, "{ran:?}");

    // Alive but not ready: it drains, and a job keeps it.
    let long = job("s", "scripted", json!({"count": 600, "delay_ms": 100}));
    fleet.enqueue(std::slice::from_ref(&long)).await;
    fleet.iterated(long.job_id, 1).await;
    worker.terminate();
    worker.said("draining").await;
    let smoke: [&str; 4] = ["--within", "1", &urls[0], &urls[1]];
    let ok = format!("ok  {}", urls[1].trim_end_matches('/'));
    let mut ran = fleet.ops("smoke", &smoke, &[]).await;
    if !ran.out.contains(&ok) {
        ran = fleet.ops("smoke", &smoke, &[]).await;
    }
    assert!(ran.code == 1 && ran.err.contains("/ready: 503") && ran.err.contains("draining"), "{ran:?}");
    assert!(ran.out.contains(&ok), "{ran:?}");

    let nothing = fleet.ops("smoke", &["--within", "1", "http://127.0.0.1:1"], &[]).await;
    assert!(nothing.code == 1 && nothing.err.contains("/ready: 000"), "{nothing:?}");
    assert_eq!(fleet.ops("smoke", &[], &[]).await.code, 2);
    assert_eq!(fleet.ops("smoke", &["worker:8000"], &[]).await.code, 2);
}

#[tokio::test]
async fn settings_that_the_migration_gives_to_the_account_are_no_miss_before_it() {
    let mut fleet = Fleet::on(Database::empty().await);
    fleet.database.set_by = SetBy::Role;
    let arguments = ["--before-migration", "--manifests", "none", "development", IMAGE];
    let before = fleet.ops("preflight", &arguments, &[]).await;
    assert!(before.code == 0 && before.out.contains("later    database_settings"), "{before:?}");
    let after = fleet.ops("preflight", &arguments[1..], &[]).await;
    assert!(after.code == 1 && missing(&after).len() == 1, "{after:?}");
    assert_eq!(fleet.producer(&["migrate"]).await.code, 0);
    assert_eq!(fleet.ops("preflight", &arguments[1..], &[]).await.code, 0);
}
