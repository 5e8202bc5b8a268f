//! What the table of prices promises: nothing is rounded down, and what has no price has no cost.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;

static LIST: LazyLock<Prices> = LazyLock::new(Prices::built_in);

fn day(text: &str) -> NaiveDate {
    text.parse().expect("a day")
}

fn today() -> NaiveDate {
    day("2026-11-28")
}

fn price(model: &str) -> Price {
    LIST.find(model, today()).expect("priced").clone()
}

#[test]
fn a_model_without_a_price_is_an_error_that_names_it() {
    let prices = Prices::built_in();
    let error = prices.find("claude-opus-99", today()).expect_err("not priced");
    assert_eq!(error.to_string(), "the model `claude-opus-99` has no price: add it to PRICES_FILE");
    assert!(prices.find("", today()).is_err());
    assert!(prices.find("-20251001", today()).is_err());
}

#[test]
fn a_snapshot_costs_what_its_model_costs() {
    let prices = Prices::built_in();
    for name in ["claude-haiku-4-5-20251001", "claude-haiku-4-5-latest", "claude-haiku-4-5"] {
        assert_eq!(prices.find(name, today()).expect("priced").name, "claude-haiku-4-5", "{name}");
    }
    assert_eq!(prices.find("gpt-5.4-2026-03-05", today()).expect("priced").name, "gpt-5.4");
    assert_eq!(prices.find("gpt-5.4-mini", today()).expect("priced").name, "gpt-5.4-mini");
}

#[test]
fn of_the_rows_of_a_model_the_latest_that_applies_counts() {
    let prices = Prices::built_in();
    let read = |on: &str| prices.find("claude-sonnet-5-5", day(on)).map(|price| price.rates.cache_read);
    assert!(read("2026-01-01").is_err(), "it was not on sale");
    assert_eq!(read("2026-10-06"), Ok(Some(Usd::from_micros(200_000))));
    assert_eq!(read("2026-10-07"), Ok(Some(Usd::from_micros(100_000))));
}

#[test]
fn every_class_of_tokens_is_billed_at_its_own_rate() {
    let tokens = Tokens {
        input: 1_000_000,
        output: 100_000,
        cache_read: 200_000,
        cache_write: 400_000,
        cache_write_long: 50_000,
    };
    let cost = price("claude-opus-5-5").cost(&tokens, None, None);
    assert_eq!(cost, Ok(Usd::from_micros(4_000_000 + 2_000_000 + 40_000 + 2_000_000 + 400_000)));
}

#[test]
fn a_long_request_is_billed_at_the_long_rates_as_a_whole() {
    let cost = |input| {
        price("claude-haiku-5-5").cost(&Tokens { input, output: 1000, ..Tokens::default() }, None, None)
    };
    assert_eq!(cost(100_000), Ok(Usd::from_micros(10_000 + 500)));
    assert_eq!(cost(100_001), Ok(Usd::from_micros(50_000 + 1 + 2500)), "half a micro-dollar is rounded up");
}

#[test]
fn tiers_and_regions_multiply_and_unknown_ones_have_no_price() {
    let opus = price("claude-opus-5-5");
    let tokens = Tokens { input: 1000, ..Tokens::default() };
    assert_eq!(opus.cost(&tokens, Some("standard"), Some("global")), Ok(Usd::from_micros(4000)));
    assert_eq!(opus.cost(&tokens, Some("fast"), Some("us")), Ok(Usd::from_micros(8800)));
    let unknown = opus.cost(&tokens, Some("warp"), None).expect_err("no price");
    assert_eq!(unknown.to_string(), "`claude-opus-5-5` has no price for the service tier `warp`");
    assert!(opus.cost(&tokens, None, Some("mars")).is_err());
}

#[test]
fn a_class_that_is_not_listed_has_no_price() {
    let tokens = Tokens { input: 10, cache_write: 1, ..Tokens::default() };
    let error = price("gpt-5.4").cost(&tokens, None, None).expect_err("no price");
    assert_eq!(error.to_string(), "`gpt-5.4` has no price for tokens of the class `cache_write`");
    assert_eq!(price("claude-opus-5").fee("web_search", 3), Ok(Usd::from_micros(30_000)));
    assert!(price("claude-opus-5").fee("code_execution", 1).is_err());
    assert_eq!(price("claude-opus-5").fee("code_execution", 0), Ok(Usd::ZERO));
}

#[test]
fn a_file_replaces_a_row_and_adds_models() {
    let file = r#"
        [[model]]
        name = "gpt-5.4"
        provider = "openai"
        from = "2026-03-05"
        context_window = 10
        max_output = 5
        input = "1"
        output = "2"
        [[model]]
        name = "ours"
        provider = "openai"
        from = "2026-01-01"
        context_window = 10
        max_output = 5
        input = "0.000001"
        output = "0"
    "#;
    let prices = Prices::built_in().with(file).expect("valid");
    assert_eq!(prices.find("gpt-5.4", today()).expect("priced").context_window, 10);
    assert_eq!(prices.find("ours", today()).expect("priced").rates.input, Usd::from_micros(1));
    assert!(prices.find("claude-opus-5", today()).is_ok(), "the rest stays");
    assert!(prices.names(today()).any(|name| name == "ours"));
}

#[test]
fn a_wrong_file_is_refused_by_model_and_field() {
    let file = |field: &str| {
        let row = "[[model]]\nname = \"m\"\nprovider = \"openai\"\nfrom = \"2026-01-01\"\ncontext_window = 10\nmax_output = 5\n";
        let rest = "input = \"1\"\noutput = \"2\"\n";
        Prices::default().with(&format!("{row}{rest}{field}")).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(file(""), Ok(()));
    let wrong = file("cache_read = \"-1\"").expect_err("negative");
    assert!(
        wrong.starts_with("the price of `m`, cache_read: got \"-1\", expected dollars from 0"),
        "{wrong}"
    );
    let wrong = Prices::default().with("[[model]]\nname = \"m\"\n").map(|_| ()).expect_err("half a row");
    assert!(wrong.to_string().contains("missing field `provider`"), "{wrong}");
    let wrong = file("tiers = { fast = \"2x\" }").expect_err("no factor");
    assert!(wrong.starts_with("the price of `m`, tiers.fast"), "{wrong}");
    assert!(file("cache_reads = \"1\"").expect_err("an unknown key").contains("cache_reads"));
    assert!(file("cache_read = 1.5").is_err(), "a binary fraction is not exact");
}

fn any_tokens() -> impl Strategy<Value = Tokens> {
    let count = || prop_oneof![0..10_u64, 0..2_000_000_u64, any::<u64>()];
    (count(), count(), count(), count(), count()).prop_map(
        |(input, output, cache_read, cache_write, cache_write_long)| Tokens {
            input,
            output,
            cache_read,
            cache_write,
            cache_write_long,
        },
    )
}

fn any_price() -> impl Strategy<Value = Price> {
    let names: Vec<String> = LIST.names(today()).map(str::to_owned).collect();
    proptest::sample::select(names).prop_map(|name| price(&name))
}

proptest! {
    #[test]
    fn a_cost_is_never_rounded_below(tokens in any_tokens()) {
        let opus = price("claude-opus-5-5");
        let cost = opus.cost(&tokens, Some("fast"), Some("us")).expect("every class has a rate");
        let exact = [(tokens.input, 4_u128), (tokens.output, 20), (tokens.cache_write, 5), (tokens.cache_write_long, 8)]
            .iter().map(|(count, dollars)| u128::from(*count) * dollars * 22).sum::<u128>()
            + u128::from(tokens.cache_read) * 22 / 5;
        prop_assert!(cost == Usd::MAX || u128::from(cost.micros()) * 10 >= exact);
        prop_assert!(cost == Usd::MAX || u128::from(cost.micros()) * 10 < exact + 20, "and at most one is added");
    }

    #[test]
    fn more_tokens_never_cost_less(price in any_price(), tokens in any_tokens(), class in 0..5_usize, more in any::<u64>()) {
        let mut larger = tokens;
        let count = [
            &mut larger.input, &mut larger.output, &mut larger.cache_read, &mut larger.cache_write,
            &mut larger.cache_write_long,
        ];
        let count = count.into_iter().nth(class).expect("five classes");
        *count = count.saturating_add(more);
        if let (Ok(before), Ok(after)) = (price.cost(&tokens, None, None), price.cost(&larger, None, None)) {
            prop_assert!(after >= before, "{before} then {after}");
        }
    }

    #[test]
    fn no_use_within_the_bounds_costs_more_than_the_most(price in any_price(), tokens in any_tokens(), spare in 0..1000_u64) {
        let bounds = (tokens.all_input().saturating_add(spare), tokens.output.saturating_add(spare));
        for tier in price.tiers.keys().map(String::as_str).map(Some).chain([None]) {
            let Ok(cost) = price.cost(&tokens, tier, None) else { continue };
            let most = price.most(bounds.0, bounds.1, CacheWrites::Long, price.dearest_tier(), price.dearest_region());
            prop_assert!(most >= cost, "{cost} within {most}");
        }
    }
}
