//! What a request can cost at most, for each rule of each wire.

use std::sync::LazyLock;

use bytes::Bytes;
use proptest::prelude::*;
use serde_json::json;

use super::*;

mod hosted;
mod stored;

static LIST: LazyLock<Prices> = LazyLock::new(Prices::built_in);

fn today() -> NaiveDate {
    "2026-11-28".parse().expect("a day")
}

fn read(wire: Wire, request: &Value) -> Result<Ask, Refused> {
    wire.read(request.to_string().as_bytes(), HostedCaps::default())
}

fn bound(wire: Wire, request: &Value) -> Bound {
    let ask = read(wire, request).expect("readable");
    ask.bound(&LIST, today(), &Counted::default()).expect("priced")
}

fn message(model: &str) -> Value {
    json!({"model": model, "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]})
}

fn chat(model: &str) -> Value {
    json!({"model": model, "max_completion_tokens": 100, "messages": [{"role": "user", "content": "hello"}]})
}

fn with(request: &Value, name: &str, value: Value) -> Value {
    let mut request = request.clone();
    request[name] = value;
    request
}

fn refused(wire: Wire, request: &Value) -> String {
    read(wire, request).expect_err("refused").field
}

#[test]
fn output_is_its_limit_times_its_choices_or_what_the_model_can() {
    assert_eq!(bound(Wire::Messages, &message("claude-opus-5-5")).output, 100);
    assert_eq!(bound(Wire::Chat, &chat("gpt-6-sol")).output, 100);
    assert_eq!(bound(Wire::Chat, &with(&chat("gpt-6-sol"), "n", json!(3))).output, 300);
    assert_eq!(bound(Wire::Chat, &with(&chat("gpt-6-sol"), "max_tokens", json!(500))).output, 500);
    assert_eq!(bound(Wire::Responses, &json!({"model": "gpt-6-sol", "input": "hi"})).output, 128_000);
    assert_eq!(bound(Wire::Embeddings, &json!({"model": "text-embedding-3-small", "input": "hi"})).output, 0);
}

#[test]
fn on_the_day_before_a_price_changes_the_dearer_one_is_held() {
    let file = |rows: [(&str, &str, &str); 2]| {
        let row = |(from, rate, input): (&str, &str, &str)| {
            format!(
                "[[model]]\nname = \"m\"\nprovider = \"anthropic\"\nfrom = \"{from}\"\ncontext_window = 1000000\n\
                 max_output = 1000\ninput = \"{input}\"\noutput = \"{rate}\"\n"
            )
        };
        Prices::default().with(&rows.map(row).concat()).expect("valid")
    };
    let ask = read(Wire::Messages, &message("m")).expect("readable");
    let cost = |prices: &Prices, on: &str| {
        let day = on.parse().expect("a day");
        ask.bound(prices, day, &Counted::default()).expect("priced").cost
    };
    let dearer = file([("2026-01-01", "2", "1"), ("2026-11-29", "20", "10")]);
    assert!(cost(&dearer, "2026-11-27") < cost(&dearer, "2026-11-28"));
    assert_eq!(cost(&dearer, "2026-11-28"), cost(&dearer, "2026-11-29"));
    let cheaper = file([("2026-01-01", "20", "10"), ("2026-11-29", "2", "1")]);
    assert_eq!(cost(&cheaper, "2026-11-27"), cost(&cheaper, "2026-11-28"));
    assert!(cost(&cheaper, "2026-11-28") > cost(&cheaper, "2026-11-29"));
    // One that is on sale from tomorrow on has no price yet.
    let early = "2025-12-31".parse().expect("a day");
    assert!(ask.bound(&dearer, early, &Counted::default()).is_err());
}

#[test]
fn a_request_that_names_no_limit_or_an_absurd_one_is_refused_by_name() {
    let missing = json!({"model": "claude-opus-5", "messages": []});
    assert_eq!(read(Wire::Messages, &missing).expect_err("refused").to_string(), "max_tokens: it is missing");
    for limit in [json!(0), json!(-1), json!(1.5), json!("100"), json!(u64::MAX), json!([])] {
        assert_eq!(
            refused(Wire::Messages, &with(&message("m"), "max_tokens", limit.clone())),
            "max_tokens",
            "{limit}"
        );
    }
    for (field, value) in [("n", json!(1000)), ("n", json!(0)), ("model", json!(7)), ("stream", json!("yes"))]
    {
        assert_eq!(refused(Wire::Chat, &with(&chat("m"), field, value)), field);
    }
    assert_eq!(refused(Wire::Messages, &with(&message("m"), "messages", json!("hi"))), "messages");
    assert_eq!(refused(Wire::Chat, &json!({"messages": []})), "model");
    for body in
        ["", "[]", "{", "nonsense", r#"{"model":"m","max_tokens":1,"max_tokens":64000,"messages":[]}"#]
    {
        let error = Wire::Messages.read(body.as_bytes(), HostedCaps::default()).expect_err(body);
        assert_eq!(error.field, "body", "{body}");
    }
}

#[test]
fn input_is_reserved_by_its_bytes_and_never_beyond_the_context_window() {
    let short = bound(Wire::Messages, &message("claude-opus-5-5")).input;
    let long = with(
        &message("claude-opus-5-5"),
        "messages",
        json!([{"role": "user", "content": "x".repeat(10_000)}]),
    );
    assert_eq!(bound(Wire::Messages, &long).input, short + 10_000 - 5);
    let huge = json!([{"role": "user", "content": "x".repeat(300_000)}]);
    assert_eq!(bound(Wire::Messages, &with(&message("claude-haiku-4-5"), "messages", huge)).input, 200_000);
    let many: Vec<String> = (0..100).map(|_| "x".repeat(8_000)).collect();
    let embedded = bound(Wire::Embeddings, &json!({"model": "text-embedding-3-small", "input": many}));
    assert!(embedded.input >= 800_000, "the window is that of each text");
}

#[test]
fn a_long_number_is_reserved_by_its_digits_and_makes_another_request() {
    let body = |digits: &str| {
        format!(
            r#"{{"model":"claude-opus-5-5","max_tokens":100,"messages":[{{"role":"assistant","content":[
            {{"type":"tool_use","id":"t","name":"n","input":{{"n":[{digits}{}]}}}}]}}]}}"#,
            ",1".repeat(99)
        )
    };
    let read = |digits: &str| {
        let ask = Wire::Messages.read(body(digits).as_bytes(), HostedCaps::default()).expect("readable");
        (ask.bound(&LIST, today(), &Counted::default()).expect("priced").input, ask.hash)
    };
    let (short, long) = (read("9"), read(&"9".repeat(308)));
    assert_eq!(long.0, short.0 + 307);
    let other = format!("{}8", "9".repeat(307));
    assert_ne!(long.1, read(&other).1, "a double does not tell them apart");
    let limit = r#"{"model":"m","max_tokens":1.50,"messages":[]}"#;
    let refused = Wire::Messages.read(limit.as_bytes(), HostedCaps::default()).expect_err("refused");
    assert_eq!(refused.problem, "`1.50` is no whole number from 1 to 100000000");
}

#[test]
fn what_was_counted_for_the_same_beginning_is_not_reserved_by_its_bytes_again() {
    let first = message("claude-opus-5-5");
    let first = with(
        &first,
        "system",
        json!([{"type": "text", "text": "s".repeat(50_000), "cache_control": {"type": "ephemeral"}}]),
    );
    let mut counted = Counted::default();
    let ask = read(Wire::Messages, &first).expect("readable");
    counted.remember(ask.conversation().expect("whole"), 12_000);

    let mut next = with(&first, "max_tokens", json!(7));
    next["messages"] = json!([
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": [{"type": "text", "text": "hi"}]},
        {"role": "user", "content": [{"type": "text", "text": "more", "cache_control": {"type": "ephemeral"}}]},
    ]);
    next["metadata"] = json!({"user_id": "other"});
    let input = |request: &Value| {
        let ask = read(Wire::Messages, request).expect("readable");
        ask.bound(&LIST, today(), &counted).expect("priced").input
    };
    assert_eq!(input(&first), 12_000);
    assert!((12_001..12_400).contains(&input(&next)), "{}", input(&next));
    let mut edited = next.clone();
    edited["messages"][0]["content"] = json!("hallo");
    assert!(input(&edited) > 50_000, "an edited beginning is another one");
    assert!(input(&with(&next, "model", json!("claude-opus-5"))) > 50_000, "another model counts otherwise");
}

#[test]
fn images_count_as_the_largest_instead_of_their_bytes() {
    let image = |data: &str| {
        json!([{"role": "user", "content": [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}]}])
    };
    let input =
        |data: &str| bound(Wire::Messages, &with(&message("claude-opus-5"), "messages", image(data))).input;
    assert_eq!(input("AAAA"), input(&"A".repeat(500_000)));
    assert!(input("AAAA") > 4_784);
    // What a tool was called with is text, whatever it looks like.
    let call = json!([{"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n", "input":
        {"type": "image", "source": {"data": "A".repeat(50_000)}}}]}]);
    assert!(bound(Wire::Messages, &with(&message("claude-opus-5"), "messages", call)).input > 50_000);
    let chat_image =
        |url: &str| json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]);
    let input = |url: &str| bound(Wire::Chat, &with(&chat("gpt-6-sol"), "messages", chat_image(url))).input;
    assert!(input("https://example.com/a.png") > 25_000);
    assert!(input(&format!("data:image/png;base64,{}", "A".repeat(100_000))) < 30_000);
}

#[test]
fn what_is_not_in_the_request_counts_as_the_whole_window() {
    let document =
        |source: Value| json!([{"role": "user", "content": [{"type": "document", "source": source}]}]);
    let input = |source: Value| {
        bound(Wire::Messages, &with(&message("claude-haiku-4-5"), "messages", document(source))).input
    };
    assert_eq!(input(json!({"type": "file", "file_id": "f"})), 200_000);
    assert_eq!(input(json!({"type": "base64", "data": "AA"})), 200_000);
    assert_eq!(input(json!({"type": "url", "url": "https://example.com"})), 200_000);
    assert!(input(json!({"type": "text", "data": "some text"})) < 3_000);
    for (field, value) in [("previous_response_id", json!("r")), ("conversation", json!("c"))] {
        let request = with(&json!({"model": "gpt-6-sol", "input": "hi"}), field, value);
        assert_eq!(bound(Wire::Responses, &request).input, 1_050_000, "{field}");
        assert_eq!(read(Wire::Responses, &request).expect("readable").conversation(), None);
    }
    let file = json!([{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]);
    assert_eq!(bound(Wire::Responses, &json!({"model": "gpt-6-sol", "input": file})).input, 1_050_000);
}

#[test]
fn the_dearest_rate_that_can_apply_is_reserved() {
    let cost = |request: &Value| bound(Wire::Messages, request).cost.micros();
    let plain = with(&message("claude-opus-5-5"), "inference_geo", json!("global"));
    let input = bound(Wire::Messages, &plain).input;
    assert_eq!(cost(&plain), input * 4 + 2_000);
    let marked = |ttl: Value| {
        let block = json!([{"type": "text", "text": "s", "cache_control": ttl}]);
        let request = with(&plain, "system", block);
        (cost(&request) - 2_000) / bound(Wire::Messages, &request).input
    };
    assert_eq!(marked(json!({"type": "ephemeral"})), 5);
    assert_eq!(marked(json!({"type": "ephemeral", "ttl": "1h"})), 8);
    assert_eq!(cost(&with(&plain, "speed", json!("fast"))), 2 * cost(&plain));
    assert_eq!(cost(&with(&plain, "inference_geo", json!("us"))), (11 * cost(&plain)).div_ceil(10));
    assert_eq!(
        cost(&message("claude-opus-5-5")),
        (11 * cost(&plain)).div_ceil(10),
        "the account may choose the place"
    );

    let cost = |request: &Value| bound(Wire::Chat, request).cost.micros();
    let usual = with(&chat("gpt-6-sol"), "service_tier", json!("default"));
    let chosen = cost(&chat("gpt-6-sol"));
    assert!((2 * cost(&usual) - 1..=2 * cost(&usual)).contains(&chosen), "the account may choose the tier");
    assert_eq!(cost(&with(&usual, "service_tier", json!("flex"))), cost(&usual).div_ceil(2));
    let long = with(&usual, "messages", json!([{"role": "user", "content": "x".repeat(300_000)}]));
    let bound = bound(Wire::Chat, &long);
    assert_eq!(
        bound.cost.micros(),
        bound.input * 5 + 100 * 15,
        "long rates, and the cache writes of a new model"
    );
}

#[test]
fn a_tier_without_a_price_is_an_error_that_names_it() {
    let ask = read(Wire::Chat, &with(&chat("gpt-6-sol"), "service_tier", json!("scale"))).expect("readable");
    let error = ask.bound(&LIST, today(), &Counted::default()).expect_err("no price");
    assert_eq!(error.to_string(), "`gpt-6-sol` has no price for the service tier `scale`");
    let ask = read(Wire::Messages, &message("claude-none")).expect("readable");
    assert!(ask.bound(&LIST, today(), &Counted::default()).is_err());
}

#[test]
fn requests_are_the_same_without_what_is_fresh_each_time() {
    let hash = |request: &Value| read(Wire::Messages, request).expect("readable").hash;
    let request = message("claude-opus-5");
    assert_eq!(hash(&request), hash(&with(&request, "metadata", json!({"user_id": "1"}))));
    assert_ne!(hash(&request), hash(&with(&request, "max_tokens", json!(101))));
    assert_ne!(hash(&request), hash(&with(&request, "stream", json!(true))));
}

#[test]
fn what_is_remembered_has_a_bound() {
    let mut counted = Counted::default();
    for number in 0..5000_u32 {
        let mut hash = [0; 32];
        hash[..4].copy_from_slice(&number.to_be_bytes());
        counted.remember(hash, u64::from(number));
    }
    assert_eq!(counted.tokens(&[0; 32]), None);
    let mut last = [0; 32];
    last[..4].copy_from_slice(&4999_u32.to_be_bytes());
    assert_eq!(counted.tokens(&last), Some(4999));
}

proptest! {
    /// A byte is never less than a token, so a text's bytes bound its tokens, whatever they are.
    #[test]
    fn a_reservation_has_a_token_for_every_byte(text in ".{0,400}") {
        let request = with(&message("claude-opus-5"), "messages", json!([{"role": "user", "content": text.clone()}]));
        prop_assert!(bound(Wire::Messages, &request).input >= text.len() as u64);
    }
}

#[test]
fn a_limit_of_output_that_fits_is_found_to_the_token_and_written_in_its_own_field() {
    let message = json!({"model": "claude-opus-5-5", "max_tokens": 64_000, "messages": [{"role": "user", "content": "hi"}]});
    for (wire, body, field) in [
        (Wire::Messages, message.clone(), "max_tokens"),
        (Wire::Chat, json!({"model": "gpt-6-sol", "max_tokens": 64_000, "messages": []}), "max_tokens"),
        (Wire::Chat, json!({"model": "gpt-6-sol", "messages": []}), "max_completion_tokens"),
        (Wire::Responses, json!({"model": "gpt-6-sol", "input": "hi"}), "max_output_tokens"),
    ] {
        let body = Bytes::from(body.to_string());
        let ask = wire.read(&body, HostedCaps::default()).expect("a request");
        let fitting = |room, least| {
            ask.fitting(&LIST, today(), &Counted::default(), Usd::from_micros(room), least).expect("a price")
        };
        let bound = |limit| {
            let body = ask.with_output_limit(&body, limit).expect("valid");
            let ask = wire.read(&body, HostedCaps::default()).expect("a request");
            (body, ask.bound(&LIST, today(), &Counted::default()).expect("a price").cost.micros())
        };
        let room = 300_000;
        let limit = fitting(room, 100).expect("it fits");
        let (written, cost) = bound(limit);
        assert!(cost <= room && bound(limit + 1).1 > room, "{limit} costs {cost}");
        let written: Value = serde_json::from_slice(&written).expect("JSON");
        assert_eq!(written[field], json!(limit), "{written}");
        assert_eq!((fitting(room, limit + 1), fitting(1_000, 1)), (None, None));
    }
    let mut thinks = message;
    thinks["thinking"] = json!({"type": "enabled", "budget_tokens": 20_000});
    let ask = Wire::Messages.read(thinks.to_string().as_bytes(), HostedCaps::default()).expect("a request");
    let fitting =
        |room| ask.fitting(&LIST, today(), &Counted::default(), Usd::from_micros(room), 1).expect("a price");
    assert_eq!(fitting(300_000), None, "its thinking alone costs more");
    assert!(fitting(1_000_000).is_some_and(|limit| limit > 20_000));
}
