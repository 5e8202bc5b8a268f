//! Gauges show the limit that holds now, whatever held before it in the same window.

use job::Usd;
use store::{Period, SpendScope, Store};
use tests::{Database, Runner};

use crate::caller::{Caller, daily, usd};

async fn shown(store: &Store) -> Option<Usd> {
    let gauges = store.spend_gauges().await.expect("an answer").budgets;
    let of_day = gauges.iter().find(|it| it.scope == SpendScope::Fleet && it.period == Period::Day);
    of_day.expect("it is always shown").limit
}

#[tokio::test]
async fn the_limit_of_a_gauge_is_that_of_the_newest_call_also_after_one_without() {
    let database = Database::new().await;
    let store = database.store();
    let runner = Runner::register(&store).await;
    for (at, limits, expected) in [
        (0, daily(1_000_000), Some(usd(1_000_000))),
        (1, daily(500_000), Some(usd(500_000))),
        (2, Vec::new(), None),
        (3, daily(600_000), Some(usd(600_000))),
        (4, daily(700_000), Some(usd(700_000))),
        (5, daily(400_000), Some(usd(400_000))),
    ] {
        let caller = Caller::new(&runner, &format!("s-{at}"), &limits).await;
        caller.granted(10).await;
        assert_eq!(shown(&store).await, expected, "{at}");
        // Some of what follows is behind a fold, some is not.
        if at % 2 == 0 {
            while store.fold_accounts().await.expect("folded") > 0 {}
            assert_eq!(shown(&store).await, expected, "{at}, folded");
        }
    }
    // What is only settled leaves it alone.
    let caller = Caller::new(&runner, "s", &daily(300_000)).await;
    let call = caller.granted(10).await;
    while store.fold_accounts().await.expect("folded") > 0 {}
    caller.settle(&call, crate::caller::cost(5)).await;
    assert_eq!(shown(&store).await, Some(usd(300_000)));
    while store.fold_accounts().await.expect("folded") > 0 {}
    assert_eq!(shown(&store).await, Some(usd(300_000)));
    database.audited().await;
}
