//! `PRICES_FILE`: its rows are what calls cost, from their day on, and a file that cannot be used stops the start.

use job::JobState;
use serde_json::json;

use crate::programs::{asks, fleet_and_provider, worker};

/// Ten times the list price, under the day of the list; and a thousand times that, later.
const TENFOLD: &str = r#"
[[model]]
name = "claude-opus-5-5"
provider = "anthropic"
from = "2026-09-22"
context_window = 1_000_000
max_output = 128_000
input = "40"
output = "200"

[[model]]
name = "claude-opus-5-5"
provider = "anthropic"
from = "2999-01-01"
context_window = 1_000_000
max_output = 128_000
input = "40000"
output = "200000"
"#;

#[tokio::test]
async fn a_price_of_the_file_is_what_a_call_costs_from_its_day_on() {
    let (fleet, provider) = fleet_and_provider().await;
    let file = fleet.folder.path().join("prices.toml");
    std::fs::write(&file, TENFOLD).expect("written");
    let _worker = worker(&fleet, &provider, "worker", "").set("PRICES_FILE", file.display()).start().await;
    let spec = asks("s", json!({"questions": 2}));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!(view.state, JobState::Succeeded, "{view:?}");
    // The double bills by the list.
    assert!(provider.bill_micros() > 0);
    assert_eq!(view.cost_usd.micros(), 10 * provider.bill_micros());
    let counted = "SELECT sum(cost_microusd)::bigint FROM harness_calls WHERE reserved_microusd >= 200 * 100";
    assert_eq!(
        fleet.database.count(counted).await,
        10 * provider.bill_micros() as i64,
        "and what is held for it"
    );
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_file_of_prices_that_cannot_be_used_stops_the_start_and_the_field_is_named() {
    let (fleet, provider) = fleet_and_provider().await;
    let file = fleet.folder.path().join("prices.toml");
    let of = |field: &str| format!("the price of `claude-opus-5-5`, {field}: ");
    for (from, to, named) in [
        ("input = \"40\"", "input = \"forty\"", of("input")),
        ("input = \"40\"", "input = \"-40\"", of("input")),
        ("output = \"200\"", "output = \"0.0000001\"", of("output")),
        ("from = \"2026-09-22\"", "from = \"22.9.2026\"", of("from")),
        ("provider = \"anthropic\"", "provider = \"acme\"", of("provider")),
        ("context_window = 1_000_000", "context_window = 0", of("context_window")),
        ("output = \"200\"", "output = \"200\"\ntiers = { fast = \"twice\" }", of("tiers.fast")),
        ("output = \"200\"", "", "missing field `output`".to_owned()),
        ("output = \"200\"", "output = \"200\"\noutptu = \"1\"", "unknown field `outptu`".to_owned()),
        ("max_output = 128_000", "max_output = \"many\"", "max_output".to_owned()),
        ("[[model]]", "[[model", "the prices cannot be read: ".to_owned()),
    ] {
        let broken = TENFOLD.replacen(from, to, 1);
        assert_ne!(broken, TENFOLD, "{from}");
        std::fs::write(&file, broken).expect("written");
        let mut refused = worker(&fleet, &provider, "worker", "").set("PRICES_FILE", file.display()).launch();
        assert_eq!(refused.exit().await, 2, "{to}");
        let log = refused.log();
        let said = format!("PRICES_FILE: {}: ", file.display());
        assert!(log.contains(&said) && log.contains(&named), "{said} and {named} are not in {log}");
    }
    std::fs::remove_file(&file).expect("removed");
    let mut refused = worker(&fleet, &provider, "worker", "").set("PRICES_FILE", file.display()).launch();
    assert_eq!(refused.exit().await, 2);
    let said = format!("PRICES_FILE: {} cannot be read: ", file.display());
    assert!(refused.log().contains(&said), "{said} is not in {}", refused.log());
}
