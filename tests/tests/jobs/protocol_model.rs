//! Promises 1 to 3 follow from the protocol: they hold in every order of its steps, with a few mishaps at any time. And
//! each rule of the protocol is needed, because without it one of the promises breaks.
//!
//! The model is in `src/model`; `protocol_conformance` ties it to the SQL. To see the search at work:
//!
//! ```text
//! PROTOCOL_BREAK=no_epoch_check cargo test -p tests --test jobs protocol_model # fails, and shows how the promise breaks
//! PROTOCOL_MISHAPS=2 cargo test -p tests --test jobs protocol_model # goes further: that many in every scope
//! ```

use tests::model::action::Action;
use tests::model::broken::Broken;
use tests::model::promise::Promise;
use tests::model::scope::Scope;
use tests::model::search::explore;

#[test]
fn in_every_order_of_its_steps_the_protocol_keeps_its_promises() {
    let broken = match std::env::var("PROTOCOL_BREAK") {
        Ok(name) => name.parse().expect("PROTOCOL_BREAK"),
        Err(_) => Broken::None,
    };
    let mishaps: Option<u8> =
        std::env::var("PROTOCOL_MISHAPS").ok().map(|given| given.parse().expect("PROTOCOL_MISHAPS"));
    for scope in Scope::ALL {
        let scope = Scope { mishaps: mishaps.unwrap_or(scope.mishaps), ..scope };
        let found = explore(broken, &scope, &Promise::ALL);
        if let Some((promise, way)) = found.broken {
            panic!("{broken}, {}: \"{}\" does not hold:{}", scope.name, promise.name(), lines(&way));
        }
        eprintln!("{}, mishaps: {}: {} states", scope.name, scope.mishaps, found.states);
    }
}

#[test]
fn without_any_one_of_its_rules_a_promise_breaks() {
    for broken in Broken::ALL {
        let promise = broken.breaks().expect("what is broken breaks something");
        let mut scopes = Scope::ALL.iter().filter(|scope| scope.line || !broken.is_of_the_line());
        let found = scopes.find_map(|scope| explore(broken, scope, &[promise]).broken);
        let Some((_, way)) = found else {
            panic!("{broken}: no promise breaks, although \"{}\" cannot hold", promise.name());
        };
        eprintln!("{broken}: \"{}\" does not hold:{}", promise.name(), lines(&way));
    }
}

fn lines(way: &[Action]) -> String {
    way.iter().map(|action| format!("\n    {action:?}")).collect()
}
