//! What the provider bills ≤ spent + held ≤ the limit, in every state of every order, with a few mishaps at any time.
//! And each rule is needed, because without it a promise breaks.
//!
//! The machine is in `src/money`; `conformance` ties it to the SQL. `MONEY_MISHAPS=3` goes further.

use tests::money::action::Action;
use tests::money::broken::Broken;
use tests::money::promise::Promise;
use tests::money::search::explore;

#[test]
fn in_every_order_of_its_steps_no_more_is_billed_than_is_counted_and_no_more_is_counted_than_the_limit() {
    let mishaps = std::env::var("MONEY_MISHAPS").map_or(2, |given| given.parse().expect("MONEY_MISHAPS"));
    let found = explore(Broken::None, mishaps, &Promise::ALL);
    if let Some((promise, way)) = found.broken {
        panic!("{promise:?} does not hold:{}", lines(&way));
    }
    eprintln!("mishaps: {mishaps}: {} states", found.states);
}

#[test]
fn without_any_one_of_its_rules_a_promise_breaks() {
    for broken in Broken::ALL {
        let promise = broken.breaks().expect("what is broken breaks something");
        let Some((_, way)) = explore(broken, 2, &[promise]).broken else {
            panic!("{broken:?}: {promise:?} holds, although it cannot");
        };
        eprintln!("{broken:?}: {promise:?} does not hold:{}", lines(&way));
    }
}

fn lines(way: &[Action]) -> String {
    way.iter().map(|action| format!("\n    {action:?}")).collect()
}
