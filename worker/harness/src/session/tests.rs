//! Deltas fold in order, from any point, and a field that cannot be kept is refused by its name.

use job::Usd;

use super::*;
use proptest::prelude::*;

fn map(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

fn entry(value: Value) -> Json {
    Json::from_value(&value).unwrap()
}

#[test]
fn a_delta_patches_appends_and_adds() {
    let mut session = Session {
        memory: map(json!({"keep": 1, "drop": 2, "deep": {"a": 1, "b": 2}})),
        context_window: vec![entry(json!("old"))],
        iteration_count: 4,
        ..Session::default()
    };
    session.apply(&Delta {
        memory: Some(map(json!({"drop": null, "deep": {"b": null, "c": 3}}))),
        context_window: vec![entry(json!("new"))],
        feature_progress: Some(map(json!({"job": {"done": 1}}))),
        iterations: 2,
        usage: Usage { cost: Usd::from_micros(7), input_tokens: 1, output_tokens: 2 },
        ..Delta::default()
    });
    assert_eq!(Value::Object(session.memory.clone()), json!({"keep": 1, "deep": {"a": 1, "c": 3}}));
    assert_eq!(session.context_window, [entry(json!("old")), entry(json!("new"))]);
    assert_eq!(session.iteration_count, 6);
    assert_eq!(session.usage.cost, Usd::from_micros(7));

    let compacted = vec![entry(json!("summary"))];
    session.apply(&Delta { context_window: compacted, replace_context: true, ..Delta::default() });
    assert_eq!(session.context_window, [entry(json!("summary"))]);
}

#[test]
fn every_open_call_is_answered_once_in_its_own_way() {
    let mut session = Session {
        context_window: [
            json!({"role": "user", "content": "go"}),
            json!({"role": "assistant", "content": [{"type": "text", "text": "I look"},
                   {"type": "tool_use", "id": "a", "name": "ls", "input": {}}, {"type": "tool_use", "id": "b"}]}),
            json!({"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "x"}]}),
            json!({"role": "assistant", "tool_calls": [{"id": "c"}, {"id": "d"}]}),
            json!({"role": "tool", "tool_call_id": "c", "content": "y"}),
            json!({"type": "function_call", "call_id": "e", "name": "ls", "arguments": "{}"}),
            json!({"type": "function_call", "call_id": "f", "name": "ls", "arguments": "{}"}),
            json!({"type": "function_call_output", "call_id": "e", "output": "z"}),
            json!(["tool_use"]),
            json!({"role": "tool", "content": {"type": "tool_use", "id": "no"}, "tool_calls": "no"}),
            json!({"role": 1, "content": ["tool_use", {"type": ["tool_use"], "id": "no"}], "tool_calls": [{}, 7]}),
        ]
        .map(entry)
        .to_vec(),
        ..Session::default()
    };
    let answered = session.answers_for_open_calls();
    let answers: Vec<Value> = answered.iter().map(|answer| answer.to_value().unwrap()).collect();
    assert_eq!(answers.len(), 3, "{answers:?}");
    assert_eq!(answers[0]["content"][0]["tool_use_id"], "b");
    assert_eq!((&answers[1]["role"], &answers[1]["tool_call_id"]), (&json!("tool"), &json!("d")));
    assert_eq!((&answers[2]["type"], &answers[2]["call_id"]), (&json!("function_call_output"), &json!("f")));
    for said in [&answers[0]["content"][0]["content"], &answers[1]["content"], &answers[2]["output"]] {
        assert!(said.as_str().unwrap().contains("may have taken effect, in part or as a whole"), "{said}");
    }
    session.context_window.extend(answered);
    assert_eq!(session.answers_for_open_calls(), []);
}

#[test]
fn a_call_is_found_beside_what_no_parser_of_values_takes() {
    let called = r#"{"x":1e999999,"content":[{"type":"t\u006fol_use","id":"a","input":"\u0000 \ud800"}]}"#;
    let session = Session { context_window: vec![Json::verbatim(called).unwrap()], ..Session::default() };
    let answers = session.answers_for_open_calls();
    assert!(answers.len() == 1 && answers[0].as_str().contains(r#""tool_use_id":"a""#), "{answers:?}");
}

#[test]
fn an_entry_is_written_and_read_to_the_letter() {
    let said = [
        r#"{"z":1,"a":[1e5,1.0,12345678901234567890123],"role":"assistant"}"#,
        r#"{ "content" : [ {"type":"thinking","thinking":"","signature":"=="}, {"type":"unheard_of", "x":null} ] }"#,
        r#"{"content":"nul \u0000, half a pair \ud800, \u00e9 and é"}"#,
    ];
    let context_window: Vec<Json> = said.iter().map(|text| Json::verbatim(text).unwrap()).collect();
    let delta = Delta { context_window: context_window.clone(), ..Delta::default() };
    let text = serde_json::to_string(&delta).unwrap();
    assert_eq!(delta.check(), Ok(text.len()));
    assert_eq!(serde_json::from_str::<Delta>(&text).unwrap(), delta);
    let mut session = Session::default();
    session.apply(&delta);
    let reread: Session = serde_json::from_str(&serde_json::to_string(&session).unwrap()).unwrap();
    assert_eq!(reread.context_window.iter().map(Json::as_str).collect::<Vec<_>>(), said);
    let size = serde_json::to_string(&context_window).unwrap().len() + "{}{}".len();
    assert_eq!((session.bytes(), Session::default().bytes()), (size, "[]{}{}".len()));
}

#[test]
fn a_delta_over_four_mebibytes_is_refused_by_its_size() {
    let delta = Delta { context_window: vec![entry(json!("x".repeat(MAX_DELTA_BYTES)))], ..Delta::default() };
    let error = delta.check().unwrap_err();
    assert!(matches!(error, DeltaError::TooLarge { bytes } if bytes > MAX_DELTA_BYTES), "{error}");
}

#[test]
fn what_postgres_cannot_hold_is_refused_by_the_name_of_its_field() {
    let delta = Delta { memory: Some(map(json!({"notes": ["fine", {"x": "a\0b"}]}))), ..Delta::default() };
    let error = delta.check().unwrap_err().to_string();
    assert!(error.starts_with("memory.notes[1].x: a string contains \\u0000"), "{error}");

    let tokens = Usage { input_tokens: u64::MAX, ..Usage::default() };
    let error = Delta { usage: tokens, ..Delta::default() }.check().unwrap_err().to_string();
    assert!(error.starts_with("input_tokens: got 18446744073709551615"), "{error}");
}

#[test]
fn a_session_is_written_flat_and_read_back_from_less() {
    let text = serde_json::to_value(Session::default()).unwrap();
    assert_eq!(
        text,
        json!({"memory": {}, "context_window": [], "feature_progress": {}, "iteration_count": 0,
               "cost_usd": 0.0, "input_tokens": 0, "output_tokens": 0})
    );
    assert_eq!(serde_json::from_str::<Session>("{}").unwrap(), Session::default());
    assert_eq!(serde_json::from_str::<Delta>("{}").unwrap(), Delta::default());
}

/// Small trees over few keys, so that patches touch the same ones; `null` removes a key.
fn tree() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<i64>().prop_map(Value::from),
        (-1e9f64..1e9).prop_map(Value::from),
        "[a-z\"\\\\é]{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            object(inner).prop_map(Value::Object),
        ]
    })
}

fn object(inner: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::btree_map("[abc]", inner, 0..3).prop_map(|map| map.into_iter().collect())
}

fn delta() -> impl Strategy<Value = Delta> {
    (
        prop::option::of(object(tree())),
        prop::collection::vec(tree().prop_map(entry), 0..3),
        prop::bool::weighted(0.2),
        prop::option::of(object(tree())),
        0u64..5,
        (0u64..1_000_000, 0u64..1000, 0u64..1000),
    )
        .prop_map(|(memory, context_window, replace_context, feature_progress, iterations, used)| {
            Delta {
                memory,
                context_window,
                replace_context,
                feature_progress,
                iterations,
                usage: Usage { cost: Usd::from_micros(used.0), input_tokens: used.1, output_tokens: used.2 },
            }
        })
}

fn fold(mut session: Session, deltas: &[Delta]) -> Session {
    deltas.iter().for_each(|delta| session.apply(delta));
    session
}

proptest! {
    #[test]
    fn a_fold_can_be_stored_and_continued_at_any_point(
        deltas in prop::collection::vec(delta(), 0..8),
        cut in any::<prop::sample::Index>(),
    ) {
        let whole = fold(Session::default(), &deltas);
        let (first, second) = deltas.split_at(cut.index(deltas.len() + 1));
        let stored = serde_json::to_string(&fold(Session::default(), first)).unwrap();
        let reread: Vec<Delta> = second
            .iter()
            .map(|delta| serde_json::from_str(&serde_json::to_string(delta).unwrap()).unwrap())
            .collect();
        prop_assert_eq!(fold(serde_json::from_str(&stored).unwrap(), &reread), whole.clone());

        let first = fold(Session::default(), first);
        let [memory, context, progress] = first.to_kept().unwrap();
        let kept = Session::of_kept([&memory, &context, &progress]).unwrap();
        let kept = Session { iteration_count: first.iteration_count, usage: first.usage, ..kept };
        let reread: Vec<Delta> = second
            .iter()
            .map(|delta| {
                let (delta, entries) = delta.to_kept().unwrap();
                Delta::of_kept(&delta, entries.as_deref()).unwrap()
            })
            .collect();
        prop_assert_eq!(fold(kept, &reread), whole);
    }

    #[test]
    fn an_empty_delta_changes_nothing(deltas in prop::collection::vec(delta(), 0..4), more in delta()) {
        let session = fold(Session::default(), &deltas);
        if more.is_empty() {
            prop_assert_eq!(fold(session.clone(), &[more]), session);
        }
    }

    #[test]
    fn memory_never_holds_a_null_at_its_top(deltas in prop::collection::vec(delta(), 0..6)) {
        prop_assert!(fold(Session::default(), &deltas).memory.values().all(|value| !value.is_null()));
    }
}
