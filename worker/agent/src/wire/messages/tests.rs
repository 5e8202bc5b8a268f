//! Blocks come back to the letter, and only a stream with its own end is an answer.

use super::*;
use crate::raw::quoted;

fn assembled(events: &[&str]) -> Result<Answer, NoAnswer> {
    let mut assembly = Assembly::default();
    for event in events {
        assembly.event(event)?;
    }
    assembly.finish()
}

const START: &str = r#"{"type":"message_start","message":{"model":"claude-opus-5-5","content":[],
    "usage":{"input_tokens":10,"cache_read_input_tokens":90,"cache_creation_input_tokens":5,"output_tokens":1}}}"#;
const STOP: &str = r#"{"type":"message_stop"}"#;

#[test]
fn every_block_goes_back_as_it_came() {
    let answer = assembled(&[
        START,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
        r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"c2ln"}}"#,
        r#"{"type":"content_block_stop","index":0}"#,
        r#"{"type":"content_block_start","index":1,"content_block":{"type":"redacted_thinking","data":"eA=="}}"#,
        r#"{"type":"ping"}"#,
        r#"{"type":"content_block_start","index":2,"content_block":{"type":"novel","z":1e5,"a":[1, 2]}}"#,
        r#"{"type":"content_block_start","index":3,"content_block":{"type":"text","text":""}}"#,
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"Ca"}}"#,
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"text_delta","text":"f\u00e9"}}"#,
        r#"{"type":"content_block_delta","index":3,"delta":{"type":"citations_delta","citation":{"b":1,"a":2}}}"#,
        r#"{"type":"content_block_start","index":4,"content_block":{"type":"tool_use","id":"toolu_1","name":"add","input":{}}}"#,
        r#"{"type":"content_block_delta","index":4,"delta":{"type":"input_json_delta","partial_json":""}}"#,
        r#"{"type":"content_block_delta","index":4,"delta":{"type":"input_json_delta","partial_json":"{\"z\": 1e5,"}}"#,
        r#"{"type":"content_block_delta","index":4,"delta":{"type":"input_json_delta","partial_json":" \"a\":12345678901234567890123}"}}"#,
        r#"{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":42}}"#,
        STOP,
    ])
    .unwrap();
    let entry = concat!(
        r#"{"role":"assistant","content":[{"type":"thinking","thinking":"","signature":"c2ln"},"#,
        r#"{"type":"redacted_thinking","data":"eA=="},{"type":"novel","z":1e5,"a":[1, 2]},"#,
        r#"{"type":"text","text":"Café","citations":[{"b":1,"a":2}]},"#,
        r#"{"type":"tool_use","id":"toolu_1","name":"add","input":{"z": 1e5, "a":12345678901234567890123}}]}"#,
    );
    assert_eq!(answer.entries[0].as_str(), entry);
    assert_eq!((answer.text.as_str(), answer.stop), ("Café", StopReason::Tools));
    assert_eq!(answer.tokens, Tokens { input: 105, cache_read: 90, output: 42 });
    assert_eq!(
        answer.calls[0].input.as_ref().unwrap().as_str(),
        r#"{"z": 1e5, "a":12345678901234567890123}"#
    );
    assert_eq!(calls(entry), Calls::Made(answer.calls));
}

#[test]
fn what_no_text_of_ours_may_hold_goes_back_to_the_letter_and_is_not_passed_on() {
    let delta = |kind: &str, field: &str, text: &str| {
        format!(
            r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"{kind}_delta","{field}":"{text}"}}}}"#
        )
    };
    let thinking = r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#;
    let end = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#;
    let [first, second] = [r"a\u0000\ud83d", r"\ude00\udc00"].map(|text| delta("thinking", "thinking", text));
    let signed = delta("signature", "signature", "c2ln");
    let word = r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":"b"}}"#;
    let answer = assembled(&[START, thinking, &first, &second, &signed, word, end, STOP]).unwrap();
    let entry = concat!(
        r#"{"role":"assistant","content":[{"type":"thinking","thinking":"a\u0000😀�","signature":"c2ln"},"#,
        r#"{"type":"text","text":"b"}]}"#
    );
    assert_eq!(answer.entries[0].as_str(), entry);
    let text = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"x"}}"#;
    let answer = assembled(&[START, text, &delta("text", "text", r"\u0000y"), end, STOP]).unwrap();
    assert_eq!(
        answer.entries[0].as_str(),
        r#"{"role":"assistant","content":[{"type":"text","text":"x\u0000y"}]}"#
    );
    assert_eq!(answer.text, "x\u{fffd}y");
}

fn one_call(input: &str, stop: &str) -> ToolCall {
    let delta = format!(
        r#"{{"type":"content_block_delta","index":0,"delta":{{"type":"input_json_delta","partial_json":{}}}}}"#,
        quoted(input)
    );
    let stop = format!(r#"{{"type":"message_delta","delta":{{"stop_reason":"{stop}"}}}}"#);
    let answer = assembled(&[
        START,
        r#"{"type":"content_block_start","index":0,"content_block":{"type":"tool_use","id":"t","name":"add","input":{}}}"#,
        &delta,
        &stop,
        STOP,
    ]);
    let mut answer = answer.unwrap();
    assert!(answer.entries[0].as_str().contains(r#""input":{"#));
    // What the gateway would not pass on goes back as an empty input; a NUL goes back to the letter.
    let kept = match &answer.calls[0].input {
        Ok(made) => made.as_str(),
        Err(_) if input.contains("u0000") => input,
        Err(_) => "{}",
    };
    assert!(answer.entries[0].as_str().ends_with(&format!(r#""input":{kept}}}]}}"#)), "{kept}: {answer:?}");
    answer.calls.remove(0)
}

#[test]
fn a_call_whose_input_is_torn_or_no_object_is_none_to_make() {
    assert_eq!(one_call(r#"{"a":"#, "max_tokens").input, Err(BadInput::Torn));
    assert_eq!(one_call("", "max_tokens").input, Err(BadInput::Torn));
    assert_eq!(one_call("", "tool_use").input.unwrap().as_str(), "{}");
    let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(122), "]".repeat(122));
    let ambiguous = r#"{"a":{"b":1,"b":2}}"#;
    let broken =
        ["{", "[1]", "7", r#"{"a":"\u0000"}"#, r#"{"a":1e99999}"#, r#"{"a":1e400}"#, ambiguous, &deep];
    for broken in broken {
        assert!(matches!(one_call(broken, "tool_use").input, Err(BadInput::NoObject(_))), "{broken}");
    }
}

#[test]
fn a_stream_without_its_own_end_is_no_answer() {
    let text = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"All"}}"#;
    let end = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#;
    assert_eq!(assembled(&[START, text, end]), Err(NoAnswer::NoEnd));
    assert_eq!(assembled(&[START, text, STOP]), Err(NoAnswer::NoEnd));
    assert_eq!(assembled(&[START, text, end, STOP]).unwrap().text, "All");
    let error = r#"{"type":"error","error":{"type":"overloaded_error","message":"busy"}}"#;
    assert!(matches!(assembled(&[START, text, error]), Err(NoAnswer::Failed { .. })));
    for garbage in ["", "nonsense", r#"{"type":"content_block_delta","index":3,"delta":{}}"#] {
        assert!(matches!(assembled(&[START, garbage]), Err(NoAnswer::Garbage(_))), "{garbage}");
    }
}

#[test]
fn an_answer_that_says_nothing_has_no_entry() {
    let empty = r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}"#;
    let end = r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#;
    let answer = assembled(&[START, empty, end, STOP]).unwrap();
    assert_eq!((answer.entries, answer.text.as_str()), (Vec::new(), ""));
}

#[test]
fn what_the_provider_would_not_take_back_is_no_part_of_the_entry() {
    const SIGNED: &str = r#"{"type":"thinking","thinking":"So.","signature":"c2ln"}"#;
    const TORN: &str = r#"{"type":"thinking","thinking":"Hm","signature":""}"#;
    const UNSIGNED: &str = r#"{"type":"thinking","thinking":"Hm"}"#;
    const SEALED: &str = r#"{"type":"redacted_thinking","data":"eA=="}"#;
    const BLANK: &str = r#"{"type":"text","text":"\n\n "}"#;
    const TEXT: &str = r#"{"type":"text","text":" It"}"#;
    const CALL: &str = r#"{"type":"tool_use","id":"t","name":"add","input":{}}"#;
    let cases: [(&[&str], &[&str]); 10] = [
        (&[TORN], &[]),
        (&[UNSIGNED], &[]),
        (&[SIGNED], &[]),
        (&[BLANK], &[]),
        (&[SIGNED, SEALED, BLANK], &[]),
        (&[SIGNED, TEXT], &[SIGNED, TEXT]),
        (&[SIGNED, TEXT, SIGNED, TORN], &[SIGNED, TEXT]),
        (&[SIGNED, BLANK, CALL], &[SIGNED, CALL]),
        (&[SEALED, CALL, TORN], &[SEALED, CALL]),
        (&[TORN, BLANK, TEXT], &[TEXT]),
    ];
    let stop = r#"{"type":"message_delta","delta":{"stop_reason":"max_tokens"}}"#;
    for (blocks, kept) in cases {
        let begun = |(index, block): (usize, &&str)| {
            format!(r#"{{"type":"content_block_start","index":{index},"content_block":{block}}}"#)
        };
        let begun: Vec<String> = blocks.iter().enumerate().map(begun).collect();
        let begun: Vec<&str> = begun.iter().map(String::as_str).collect();
        let answer = assembled(&[&[START], &begun[..], &[stop, STOP]].concat()).unwrap();
        let written = |content: &[&str]| {
            let entry = format!(r#"{{"role":"assistant","content":[{}]}}"#, content.join(","));
            Json::verbatim(&entry).unwrap()
        };
        let kept = (!kept.is_empty()).then(|| written(kept));
        assert_eq!(answer.entries.first(), kept.as_ref(), "{blocks:?}");
        // An older release has kept it.
        let old = written(blocks);
        assert_eq!(taken_back(&old), kept, "{blocks:?}");
        assert_eq!(goes_back(old.as_str()), kept.as_ref() == Some(&old), "{blocks:?}");
    }
}
