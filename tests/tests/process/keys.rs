//! Keys of the HTTP API: what a key stands for, until when, and a log of what operators did that only grows.

use std::time::Duration;

use futures::future::join_all;
use postgres::{Address, SetBy};
use producer::access::{ApiKey, Keys, Refused};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use store::{Scope, Store, StoreConfig, TenantChange};
use tests::{Database, Fleet, Ran, until_ok};

/// Runs a command of the producer and expects that it succeeds.
async fn done(fleet: &Fleet, arguments: &[&str]) -> Ran {
    let ran = fleet.producer(arguments).await;
    assert_eq!(ran.code, 0, "{arguments:?}: {ran:?}");
    ran
}

/// Creates a key; returns its text and its id.
async fn key(fleet: &Fleet, arguments: &[&str]) -> (String, String) {
    let created = done(fleet, &[&["keys", "create", "--json"], arguments].concat()).await.json().remove(0);
    let text = |field: &str| created[field].as_str().expect("a text").to_owned();
    (text("key"), text("id"))
}

/// Waits until a key is answered with this: a tenant, or the beginning of a refusal.
async fn answered(keys: &Keys, key: &str, expected: &str) {
    let look = async || {
        let answer = keys.authenticate(key).await;
        let text =
            answer.map_or_else(|refused| refused.to_string(), |principal| principal.tenant.to_string());
        if text.starts_with(expected) { Ok(()) } else { Err(text) }
    };
    until_ok(expected, look).await;
}

/// The answer of a process that has not looked the key up before.
async fn at_once(fleet: &Fleet, key: &str) -> Result<String, Refused> {
    let principal = Keys::new(fleet.store.clone()).authenticate(key).await?;
    Ok(format!("{} {} {}", principal.tenant, principal.key_id, principal.scopes))
}

#[tokio::test]
async fn a_key_is_shown_once_and_stands_for_its_tenant_until_it_is_revoked() {
    let fleet = Fleet::new().await;
    done(&fleet, &["tenants", "create", "acme"]).await;
    let create = ["keys", "create", "--tenant", "acme", "--scope", "read,content", "--label", "nightly run"];
    let created = done(&fleet, &create).await;
    let old = created.out.trim().to_owned();
    let id = ApiKey::parse(&old).expect("a key").id().to_owned();
    assert!(created.err.contains(&id) && !created.err.contains(&old), "{created:?}");
    assert_eq!(at_once(&fleet, &old).await.unwrap(), format!("acme {id} read,content"));

    // What the ledger and the other commands show is of no use to a caller.
    let secret = &old[15..58];
    let rows = "SELECT k::text FROM harness_api_keys k UNION ALL SELECT l::text FROM harness_audit_log l";
    let mut shown = fleet.database.texts(rows).await;
    for arguments in [&["keys", "list"][..], &["keys", "list", "--json"], &["log"], &["log", "--json"]] {
        let ran = done(&fleet, arguments).await;
        assert!(ran.out.contains(&id), "{ran:?}");
        shown.push(ran.out + &ran.err);
    }
    assert!(shown.iter().all(|text| !text.contains(secret)), "{shown:?}");

    // Rotation: both are valid, then the old one is revoked.
    let (new, new_id) = key(&fleet, &["--tenant", "acme"]).await;
    let keys = Keys::new(fleet.store.clone());
    for valid in [&old, &new] {
        assert_eq!(keys.authenticate(valid).await.unwrap().tenant.as_str(), "acme");
    }
    let principal = keys.authenticate(&new).await.unwrap();
    assert!(principal.scopes.has(Scope::Submit) && !principal.scopes.has(Scope::Content));
    done(&fleet, &["keys", "revoke", &id]).await;
    assert!(matches!(at_once(&fleet, &old).await, Err(Refused::Revoked)));
    answered(&keys, &old, "this key was revoked").await;
    answered(&keys, &new, "acme").await;
    let live = done(&fleet, &["keys", "list", "--tenant", "acme", "--json"]).await.json();
    assert_eq!(live.iter().map(|key| &key["id"]).collect::<Vec<_>>(), [&json!(new_id)]);
    assert_eq!(done(&fleet, &["keys", "list", "--all", "--json"]).await.json().len(), 2);

    // A key that was found somewhere is revoked as it was found.
    assert!(done(&fleet, &["keys", "revoke", &new, &id]).await.out.contains("was revoked before"));
    assert!(matches!(at_once(&fleet, &new).await, Err(Refused::Revoked)));
    assert_eq!(fleet.producer(&["keys", "revoke", "0123456789"]).await.code, 1);
    let cut = fleet.producer(&["keys", "revoke", &old[..60]]).await;
    assert!(cut.code == 2 && cut.err.contains("60 characters") && !cut.err.contains(&old[15..58]), "{cut:?}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_key_that_is_not_valid_is_refused_with_its_reason() {
    let fleet = Fleet::new().await;
    let (valid, _) = key(&fleet, &[]).await;
    let (unknown, _) = key(&Fleet::new().await, &[]).await;
    assert!(matches!(at_once(&fleet, &unknown).await, Err(Refused::Unknown)));
    let typo = format!("{}{}", &valid[..63], if valid.ends_with('x') { 'y' } else { 'x' });
    for wrong in ["", "secret", &valid[..40], &typo, &valid.to_lowercase()] {
        assert!(matches!(at_once(&fleet, wrong).await, Err(Refused::Malformed(_))), "{wrong}");
    }
    // Another secret under a known id is answered like an unknown id.
    let (other, id) = key(&fleet, &[]).await;
    let change = format!("UPDATE harness_api_keys SET secret_sha256 = sha256('x') WHERE id = '{id}'");
    fleet.database.execute(&change).await;
    done(&fleet, &["keys", "revoke", &id]).await;
    assert!(matches!(at_once(&fleet, &other).await, Err(Refused::Unknown)));

    // It expires while its answer counts.
    let (short, _) = key(&fleet, &["--expires-in", "5s"]).await;
    let keys = Keys::new(fleet.store.clone());
    answered(&keys, &short, "this key has expired").await;

    assert_eq!(fleet.producer(&["keys", "create", "--tenant", "acme"]).await.code, 1);
    done(&fleet, &["tenants", "create", "acme"]).await;
    let (acme, _) = key(&fleet, &["--tenant", "acme"]).await;
    answered(&keys, &acme, "acme").await;
    done(&fleet, &["tenants", "close", "acme"]).await;
    assert!(matches!(at_once(&fleet, &acme).await, Err(Refused::TenantClosed)));
    answered(&keys, &acme, "this key's tenant is closed").await;
    assert_eq!(fleet.producer(&["keys", "create", "--tenant", "acme"]).await.code, 1);
    done(&fleet, &["tenants", "set", "acme", "--reopen"]).await;
    answered(&keys, &acme, "acme").await;

    // Without a ledger nothing is known about a key, and a text that is no key is refused all the same.
    let nowhere = Address::new("postgres://me@127.0.0.1:1/d", SetBy::Connection).expect("an address");
    let away = Keys::new(Store::new(&StoreConfig::new(nowhere, 2).expect("a pool")));
    assert!(matches!(away.authenticate(&valid).await, Err(Refused::Unavailable(_))));
    assert!(matches!(away.authenticate(&typo).await, Err(Refused::Malformed(_))));
}

#[tokio::test]
async fn tenants_have_limits_that_operators_set_and_take_away() {
    let fleet = Fleet::new().await;
    let shown = async || done(&fleet, &["tenants", "list", "--json"]).await.json();
    let create = ["tenants", "create", "acme", "--weight", "3", "--max-running", "10", "--rate-per-s", "0.5"];
    done(&fleet, &create).await;
    assert_eq!(fleet.producer(&create).await.code, 1);
    let set = ["tenants", "set", "acme", "--max-running", "none", "--max-waiting", "7", "--burst", "20"];
    done(&fleet, &set).await;
    let all = shown().await;
    assert_eq!(all.iter().map(|row| &row["tenant"]).collect::<Vec<_>>(), ["acme", "default"]);
    let fields = ["weight", "max_running", "max_waiting", "rate_per_s", "burst", "live_keys", "closed_at"];
    let values: Vec<&Value> = fields.iter().map(|field| &all[0][field]).collect();
    assert_eq!(json!(values), json!([3, null, 7, 0.5, 20, 0, null]));
    done(&fleet, &["tenants", "close", "acme"]).await;
    assert!(done(&fleet, &["tenants", "close", "acme"]).await.out.contains("was closed before"));
    assert!(shown().await[0]["closed_at"].is_string());
    for (arguments, code, said) in [
        (&["tenants", "set", "nowhere", "--weight", "2"][..], 1, "no such tenant"),
        (&["tenants", "close", "nowhere"], 1, "no such tenant"),
        (&["tenants", "close", "default"], 2, "cannot be closed"),
        (&["tenants", "set", "acme"], 2, "nothing to change"),
        (&["tenants", "set", "acme", "--weight", "0"], 2, "1..=1000"),
        (&["tenants", "set", "acme", "--rate-per-s", "NaN"], 2, "expected a number"),
        (&["tenants", "set", "acme", "--burst", "-1"], 2, ""),
        (&["tenants", "set", "acme", "--burst", "0"], 2, "expected at least 1"),
        (&["tenants", "create", "a/b"], 2, "expected 1 to 64 characters"),
        (&["keys", "create", "--scope", "root"], 2, "expected one of submit"),
        (&["keys", "create", "--expires-in", "200000d"], 2, "at most 100 years"),
        (&["keys", "create", "--label", "a\nb"], 2, "control character"),
    ] {
        let ran = fleet.producer(arguments).await;
        assert!(ran.code == code && ran.err.contains(said), "{arguments:?}: {ran:?}");
    }
    fleet.database.audited().await;
}

#[tokio::test]
async fn what_operators_did_is_in_a_log_that_only_grows() {
    let fleet = Fleet::new().await;
    done(&fleet, &["tenants", "create", "acme", "--burst", "5"]).await;
    let (text, id) = key(&fleet, &["--tenant", "acme", "--label", "ci"]).await;
    let keys = Keys::new(fleet.store.clone());
    for _ in 0..3 {
        keys.authenticate(&text).await.unwrap();
    }
    assert_eq!(keys.note_uses("door").await.unwrap(), 1);
    assert_eq!(keys.note_uses("door").await.unwrap(), 0);
    done(&fleet, &["keys", "revoke", &id]).await;
    done(&fleet, &["tenants", "close", "acme"]).await;
    // What changes nothing is not in the log.
    done(&fleet, &["keys", "revoke", &id]).await;
    fleet.producer(&["tenants", "create", "acme"]).await;
    let revived = done(&fleet, &["revive"]).await;
    assert!(!revived.out.contains(&id), "{revived:?}");

    let mut log = done(&fleet, &["log", "--json"]).await.json();
    log.reverse();
    let acts: Vec<&Value> = log.iter().map(|row| &row["act"]).collect();
    let expected = ["tenant_created", "key_created", "key_used", "key_revoked", "tenant_closed", "revived"];
    assert_eq!(acts, expected);
    let numbers: Vec<i64> = log.iter().map(|row| row["id"].as_i64().unwrap()).collect();
    assert_eq!(numbers, (1..=6).collect::<Vec<_>>());
    assert_eq!((&log[0]["detail"], &log[0]["tenant"]), (&json!({"burst": 5}), &json!("acme")));
    assert_eq!((&log[2]["detail"], &log[2]["actor"]), (&json!({"key": id, "uses": 3}), &json!("door")));
    assert!(log[3]["actor"].as_str().unwrap().contains('@'), "{log:?}");
    let used = fleet.store.keys(None, true).await.unwrap().remove(0).last_used_at.expect("a minute");
    assert!(used.ends_with(":00.000Z"), "{used}");
    assert_eq!(done(&fleet, &["log", "--tenant", "default", "--json"]).await.out, "");

    for sql in [
        "UPDATE harness_audit_log SET actor = 'nobody' WHERE id = 1",
        "DELETE FROM harness_audit_log WHERE id = 4",
        "TRUNCATE harness_audit_log",
    ] {
        let mut connection = fleet.database.connect().await;
        let refused = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap_err();
        assert!(refused.to_string().contains("the operators' log only grows"), "{sql}: {refused}");
    }
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_audit_log").await, 6);

    // What comes at once is one chain.
    let limits = TenantChange::default();
    let makers = join_all((0..40).map(|n| {
        let (store, limits) = (&fleet.store, &limits);
        async move { store.create_tenant("test", &format!("t-{n}").parse().unwrap(), limits).await }
    }));
    assert!(makers.await.into_iter().all(|made| made.unwrap()));
    fleet.database.execute("INSERT INTO harness_audit_log (id, at, actor, act) VALUES (3, now(), 'a', 'b'), (3, now(), 'a', 'c')").await;
    let ends = "SELECT count(*) - max(id) FROM harness_audit_log WHERE id BETWEEN 1 AND 48";
    assert_eq!(fleet.database.count(ends).await, 0);
    fleet.database.audited().await;
}

/// A log of six rows in a database of its own, after this was done to it by someone who can take its guards off.
async fn damaged(damage: &str) -> Vec<String> {
    let database = Database::new().await;
    let (store, limits) = (database.store(), TenantChange::default());
    for name in ["a", "b", "c", "d", "e", "f"] {
        let name = name.parse().expect("a name");
        assert!(store.create_tenant("test", &name, &limits).await.expect("the ledger"));
    }
    let off = "ALTER TABLE harness_audit_log DISABLE TRIGGER USER";
    let on = "ALTER TABLE harness_audit_log ENABLE TRIGGER USER";
    database.execute(&format!("{off}; {damage}; {on}")).await;
    let audit = database.audit().await;
    let found = audit.checks.iter().filter(|checked| checked.found > 0);
    found
        .flat_map(|checked| checked.offenders.iter().map(|row| format!("{} {}", checked.check, row.id)))
        .collect()
}

#[tokio::test]
async fn a_log_that_was_changed_past_its_guards_is_found_with_its_first_wrong_row() {
    const REHASH: &str = "hash = sha256(prev_hash || convert_to(jsonb_build_array(id,
        (extract(epoch FROM at) * 1000000)::bigint, actor, act, tenant, detail)::text, 'UTF8'))";
    assert_eq!(damaged("SELECT 1").await, [""; 0]);
    let renamed = "UPDATE harness_audit_log SET actor = 'nobody' WHERE id = 3";
    let rehashed = format!("{renamed}; UPDATE harness_audit_log SET {REHASH} WHERE id = 3");
    let renumbered = format!(
        "DELETE FROM harness_audit_log WHERE id = 3; UPDATE harness_audit_log SET id = id - 1 WHERE id = 4;
         UPDATE harness_audit_log SET {REHASH} WHERE id = 3"
    );
    let swapped =
        "UPDATE harness_audit_log SET id = 10 WHERE id = 2; UPDATE harness_audit_log SET id = 2 WHERE id = 3;
                   UPDATE harness_audit_log SET id = 3 WHERE id = 10";
    for (damage, found) in [
        (renamed, "log row 3"),
        ("UPDATE harness_audit_log SET at = at + interval '1 second' WHERE id = 2", "log row 2"),
        ("UPDATE harness_audit_log SET detail = '{\"burst\": 1}' WHERE id = 6", "log row 6"),
        ("DELETE FROM harness_audit_log WHERE id = 1", "log row 2"),
        ("DELETE FROM harness_audit_log WHERE id = 4", "log row 5"),
        (&rehashed, "log row 4"),
        (&renumbered, "log row 3"),
        (swapped, "log row 2"),
        ("DROP TRIGGER harness_audit_log_keep ON harness_audit_log", "guards harness_audit_log_keep"),
        ("DELETE FROM harness_tenants WHERE name = 'b'", ""),
        (
            "INSERT INTO harness_api_keys (id, tenant, secret_sha256, scopes) VALUES ('k', 'gone', sha256(''), '{read}')",
            "keys k",
        ),
    ] {
        let expected: Vec<&str> = (!found.is_empty()).then_some(found).into_iter().collect();
        assert_eq!(damaged(damage).await, expected, "{damage}");
    }
    let fleet = Fleet::new().await;
    done(&fleet, &["tenants", "create", "acme"]).await;
    fleet.database.execute("ALTER TABLE harness_audit_log DISABLE TRIGGER ALL").await;
    fleet.database.execute("UPDATE harness_audit_log SET actor = 'nobody'").await;
    let audit = fleet.producer(&["audit"]).await;
    assert_eq!(audit.code, 3, "{audit:?}");
    for said in
        ["FAILED  log", "row 1  tenant_created by nobody", "its hash does not fit", "harness_audit_log_keep"]
    {
        assert!(audit.out.contains(said), "{said}: {audit:?}");
    }
    // An audit of what is new begins in the middle of the chain.
    let ran = fleet.producer(&["audit", "--since", "0s"]).await;
    assert!(!ran.out.contains("FAILED  log"), "{ran:?}");
}

#[tokio::test]
async fn a_log_whose_oldest_rows_are_kept_elsewhere_goes_on_and_is_checked_from_its_first_row_on() {
    let fleet = Fleet::new().await;
    for name in ["a", "b", "c", "d", "e"] {
        done(&fleet, &["tenants", "create", name]).await;
    }
    let database = &fleet.database;
    let last = database.texts("SELECT encode(hash, 'hex') FROM harness_audit_log WHERE id = 3").await;
    // As the guide says.
    database
        .execute(
            "BEGIN;
             LOCK TABLE harness_audit_log;
             ALTER TABLE harness_audit_log DISABLE TRIGGER harness_audit_log_keep;
             DELETE FROM harness_audit_log WHERE id <= 3;
             ALTER TABLE harness_audit_log ENABLE TRIGGER harness_audit_log_keep;
             COMMIT",
        )
        .await;
    let first =
        database.texts("SELECT encode(prev_hash, 'hex') FROM harness_audit_log ORDER BY id LIMIT 1").await;
    assert_eq!(first, last, "the file and the table are one chain");
    done(&fleet, &["tenants", "create", "f"]).await;
    assert_eq!(database.texts("SELECT id::text FROM harness_audit_log ORDER BY id").await, ["4", "5", "6"]);
    let audit = fleet.producer(&["audit"]).await;
    let said = ["FAILED  log", "row 4  ", "the rows before it are not there"];
    assert!(audit.code == 3 && said.iter().all(|said| audit.out.contains(said)), "{audit:?}");
    let audit = fleet.producer(&["audit", "--since", "1d"]).await;
    assert!(!audit.out.contains("FAILED"), "{audit:?}");
    // What is changed behind that row is still found.
    let off = "ALTER TABLE harness_audit_log DISABLE TRIGGER USER";
    let on = "ALTER TABLE harness_audit_log ENABLE TRIGGER USER";
    database
        .execute(&format!("{off}; UPDATE harness_audit_log SET actor = 'nobody' WHERE id = 5; {on}"))
        .await;
    let audit = fleet.producer(&["audit", "--since", "1d"]).await;
    assert!(audit.out.contains("FAILED  log") && audit.out.contains("row 5  "), "{audit:?}");
}

#[tokio::test]
async fn after_a_restore_the_keys_that_are_valid_are_named_and_missing_rights_too() {
    let fleet = Fleet::new().await;
    let (_, id) = key(&fleet, &[]).await;
    let (_, revoked) = key(&fleet, &[]).await;
    done(&fleet, &["keys", "revoke", &revoked]).await;
    let revived = done(&fleet, &["revive"]).await;
    assert!(revived.out.contains(&format!("{id} of tenant default")), "{revived:?}");
    assert!(revived.out.contains("1 keys are valid") && !revived.out.contains(&revoked), "{revived:?}");

    // An account may do without the rights to change the log.
    let (role, url) = fleet.database.role(5).await;
    let owner = fleet.database.texts("SELECT current_user::text").await.remove(0);
    fleet
        .database
        .execute(&format!(
            "REVOKE {owner} FROM {role}; GRANT USAGE, CREATE ON SCHEMA public TO {role};
             GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}; GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role};
             REVOKE UPDATE, DELETE ON harness_audit_log FROM {role}; REVOKE SELECT ON harness_api_keys FROM {role}"
        ))
        .await;
    let address = Address::new(&url, fleet.database.set_by).expect("an address");
    let store = Store::new(&StoreConfig::new(address, 2).expect("a pool"));
    let missing = store.missing_rights().await.unwrap().join(", ");
    store.close();
    assert!(missing.contains("SELECT on harness_api_keys"), "{missing}");
    assert!(!missing.contains("harness_audit_log"), "{missing}");
    tokio::time::timeout(
        Duration::from_secs(30),
        fleet.database.execute(&format!("DROP OWNED BY {role}; DROP ROLE {role}")),
    )
    .await
    .expect("dropped");
}
