//! An audit finds what is wrong with money and names it; a ledger under its own rules is clean.

use futures::StreamExt;
use job::Usd;
use store::{Audit, Period, SpendScope};
use tests::{Database, Runner};

use crate::caller::{Caller, cost, daily, limit, unknown};

fn found(audit: &Audit) -> Vec<&str> {
    audit.checks.iter().filter(|checked| checked.found > 0).map(|checked| checked.check).collect()
}

/// A run with a checkpoint of 7, a settled call of 9, one of unknown cost and one that is held, under a limit.
async fn ledger() -> (Database, Caller) {
    let database = Database::new().await;
    let runner = Runner::register(&database.store()).await;
    let limits = [daily(1_000), vec![limit(SpendScope::Job, Period::Life, 500)]].concat();
    let caller = Caller::new(&runner, "s", &limits).await;
    caller.settle(&caller.granted(10).await, cost(9)).await;
    caller.settle(&caller.granted(20).await, unknown()).await;
    caller.granted(30).await;
    runner.checkpoint(&caller.run, 0).await.expect("an answer");
    (database, caller)
}

#[tokio::test]
async fn each_damage_to_money_is_found() {
    let cases: [(&str, &[&str]); 11] = [
        ("SELECT", &[]),
        ("UPDATE harness_calls SET cost_microusd = 8 WHERE state = 'settled'", &["accounts"]),
        ("DELETE FROM harness_calls WHERE state = 'unknown'", &["accounts"]),
        ("DELETE FROM harness_account_moves WHERE key LIKE 'job:%' AND spent_microusd > 0", &["accounts"]),
        ("DELETE FROM harness_account_moves; DELETE FROM harness_accounts", &["accounts"]),
        // Moves that no reader finds.
        ("UPDATE harness_accounts SET folded_tx = pg_current_xact_id()", &["accounts"]),
        ("UPDATE harness_calls SET worker_id = gen_random_uuid() WHERE state = 'held'", &["holds"]),
        ("UPDATE harness_calls SET epoch = epoch - 1 WHERE state = 'held'", &["holds"]),
        (
            "UPDATE harness_account_moves SET bound_microusd = 58 WHERE key LIKE 'fleet:day:%' AND bound_microusd > 0",
            &["limits"],
        ),
        ("UPDATE harness_calls SET reserved_at = reserved_at - interval '2 days'", &["windows"]),
        ("UPDATE harness_checkpoints SET cost_microusd = 60", &["paid"]),
    ];
    let cases = cases.iter().map(async |(damage, broken)| {
        let (database, _) = ledger().await;
        database.execute(damage).await;
        let audit = database.audit().await;
        assert_eq!(found(&audit), *broken, "{damage}: {:#?}", audit.checks);
    });
    futures::stream::iter(cases).buffer_unordered(4).collect::<Vec<()>>().await;
}

#[tokio::test]
async fn a_call_that_stays_held_after_its_run_is_found_while_its_worker_lives() {
    for (ends, table, since) in
        [(true, "harness_results", "finished_at"), (false, "harness_jobs", "state_since")]
    {
        let (database, caller) = ledger().await;
        if ends {
            caller.succeed().await
        } else {
            caller.hand_back().await
        }
        assert_eq!(found(&database.audit().await), <[&str; 0]>::default(), "its answer may still be read");
        database.execute(&format!("UPDATE {table} SET {since} = {since} - interval '3 hours'")).await;
        assert_eq!(found(&database.audit().await), ["holds"], "{table}");
    }
}

#[tokio::test]
async fn an_end_that_costs_more_than_its_calls_is_found_and_what_an_operator_settles_is_not() {
    let (database, caller) = ledger().await;
    // It counted in full in a checkpoint, as the gateway has metered it.
    database.execute("UPDATE harness_checkpoints SET cost_microusd = 29; UPDATE harness_calls SET cost_microusd = 0, state = 'free', settled_at = now() WHERE state = 'held'; DELETE FROM harness_account_moves WHERE held_microusd = 30; DELETE FROM harness_account_moves WHERE held_microusd = -30").await;
    let unknown = database.store().unknown_calls(1).await.expect("an answer").remove(0).call_id;
    assert!(database.store().settle_unknown(unknown, Usd::ZERO, "ann").await.expect("an answer"));
    caller.succeed().await;
    assert_eq!(found(&database.audit().await), <[&str; 0]>::default());
    database
        .execute("UPDATE harness_calls SET cost_microusd = 8, reserved_microusd = 8 WHERE state = 'settled'")
        .await;
    let found = found(&database.audit().await).join(" ");
    assert!(found.contains("paid") && found.contains("accounts"), "{found}");
}
