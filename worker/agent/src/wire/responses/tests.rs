//! Items come back to the letter, and only a stream with its own end is an answer.

use tools::Ended;

use super::*;
use crate::answer::BadInput;

const REASON: &str = r#"{"id":"rs_1","type":"reasoning","summary":[],"encrypted_content":"gAAA=="}"#;
const CALL: &str = r#"{"id":"fc_1","type":"function_call","status":"completed","name":"add","call_id":"call_1","arguments":"{\"z\": 1e5, \"a\":12345678901234567890123}"}"#;
const NOVEL: &str = r#"{"z":1e5,"type":"novel","a":[1, 2],"t":"\u0000"}"#;
const TEXT: &str = r#"{"id":"msg_1","type":"message","role":"assistant","status":"completed","content":[{"type":"output_text","text":"Stop\u00e9","annotations":[]}]}"#;

fn done(index: usize, item: &str) -> String {
    format!(r#"{{"type":"response.output_item.done","output_index":{index},"item":{item}}}"#)
}

fn end(status: &str, more: &str, items: &[&str]) -> String {
    let output = items.join(",");
    format!(
        r#"{{"type":"response.{status}","response":{{"model":"gpt-6-sol","status":"{status}"{more},"output":[{output}],"usage":{{"input_tokens":9,"output_tokens":3,"input_tokens_details":{{"cached_tokens":4}}}}}}}}"#
    )
}

fn assembled(events: &[String]) -> Result<Answer, NoAnswer> {
    let mut assembly = Assembly::default();
    for event in events {
        assembly.event(event)?;
    }
    assembly.finish()
}

fn completed(items: &[&str]) -> Answer {
    assembled(&[end("completed", "", items)]).unwrap()
}

#[test]
fn every_item_goes_back_as_it_came() {
    let delta = |text: &str| format!(r#"{{"type":"response.output_text.delta","delta":{}}}"#, quoted(text));
    let items = [REASON, NOVEL, TEXT, CALL];
    let mut assembly = Assembly::default();
    let created = r#"{"type":"response.created","response":{"status":"in_progress","output":[]}}"#;
    assert_eq!(assembly.event(created), Ok(None));
    assert_eq!(assembly.event(&delta("Stop")), Ok(Some("Stop".to_owned())));
    for (at, item) in items.iter().enumerate() {
        assembly.event(&done(at, item)).unwrap();
    }
    assert!(!assembly.has_ended());
    assembly.event(&end("completed", "", &items)).unwrap();
    assert!(assembly.has_ended());
    let answer = assembly.finish().unwrap();
    assert_eq!(answer.entries.iter().map(Json::as_str).collect::<Vec<_>>(), items);
    assert_eq!((answer.text.as_str(), answer.stop), ("Stopé", StopReason::Tools));
    assert_eq!(answer.tokens, Tokens { input: 9, cache_read: 4, output: 3 });
    assert_eq!(
        answer.calls[0].input.as_ref().unwrap().as_str(),
        r#"{"z": 1e5, "a":12345678901234567890123}"#
    );
    assert_eq!(calls(CALL), Calls::Made(answer.calls));
    for item in [REASON, NOVEL, TEXT] {
        assert_eq!(calls(item), Calls::Made(Vec::new()), "{item}");
    }
    // A server whose end does not repeat the items.
    let apart = [done(1, CALL), done(0, REASON), end("completed", "", &[])];
    let answer = assembled(&apart).unwrap();
    assert_eq!(answer.entries.iter().map(Json::as_str).collect::<Vec<_>>(), [REASON, CALL]);
}

#[test]
fn a_stream_without_its_own_end_is_no_answer() {
    assert_eq!(assembled(&[done(0, TEXT)]), Err(NoAnswer::NoEnd));
    let error = r#","error":{"code":"server_error","message":"It broke."}"#;
    let failed = |kind: &str, message: &str| {
        Err(NoAnswer::Failed { kind: kind.to_owned(), message: message.to_owned() })
    };
    assert_eq!(assembled(&[done(0, TEXT), end("failed", error, &[])]), failed("server_error", "It broke."));
    let event = r#"{"type":"error","code":"rate_limit_exceeded","message":"later","param":null}"#;
    assert_eq!(assembled(&[event.to_owned()]), failed("rate_limit_exceeded", "later"));
    let event = r#"{"type":"error","error":{"type":"x","code":"insufficient_quota","message":"no"}}"#;
    assert_eq!(assembled(&[event.to_owned()]), failed("insufficient_quota", "no"));
    for garbage in
        ["", "[DONE]", r#"{"type":"response.completed"}"#, r#"{"type":"response.output_item.done"}"#]
    {
        assert!(matches!(assembled(&[garbage.to_owned()]), Err(NoAnswer::Garbage(_))), "{garbage}");
    }
    assert_eq!(completed(&[TEXT]).stop, StopReason::End);
}

#[test]
fn a_cut_a_filter_and_a_refusal_are_known() {
    let torn = r#"{"id":"fc_1","type":"function_call","status":"incomplete","name":"f","call_id":"c","arguments":"{\"a"}"#;
    let limit = r#","incomplete_details":{"reason":"max_output_tokens"}"#;
    let answer = assembled(&[end("incomplete", limit, &[REASON, torn])]).unwrap();
    assert_eq!((answer.stop, &answer.calls[0].input), (StopReason::OutputLimit, &Err(BadInput::Torn)));
    assert_eq!(
        answer.entries[1].as_str(),
        r#"{"id":"fc_1","type":"function_call","status":"incomplete","name":"f","call_id":"c","arguments":"{}"}"#
    );
    let filter = r#","incomplete_details":{"reason":"content_filter"}"#;
    assert_eq!(assembled(&[end("incomplete", filter, &[TEXT])]).unwrap().stop, StopReason::Refusal);
    let refusal = r#"{"type":"message","role":"assistant","content":[{"type":"refusal","refusal":"No."}]}"#;
    let answer = completed(&[refusal]);
    assert_eq!((answer.stop, answer.text.as_str()), (StopReason::Refusal, "No."));
}

#[test]
fn reasoning_that_would_be_refused_does_not_go_back() {
    let limit = r#","incomplete_details":{"reason":"max_output_tokens"}"#;
    let answer = assembled(&[end("incomplete", limit, &[REASON])]).unwrap();
    assert_eq!((answer.entries, answer.stop), (Vec::new(), StopReason::OutputLimit));
    let stored = r#"{"id":"rs_1","type":"reasoning","summary":[],"encrypted_content":null}"#;
    assert_eq!(completed(&[stored, TEXT]).entries.len(), 1);
}

#[test]
fn what_a_model_tells_in_between_is_not_its_answer() {
    let told = r#"{"type":"message","role":"assistant","phase":"commentary","content":[{"type":"output_text","text":"I look."}]}"#;
    let answer = completed(&[told, TEXT]);
    assert_eq!((answer.text.as_str(), answer.entries.len()), ("Stopé", 2));
}

#[test]
fn a_result_is_a_text_or_a_list_with_its_images() {
    let output = |content: Vec<Content>, is_error| Output { content, is_error, ended: Ended::Done };
    let text = |text: &str| Content::Text(text.to_owned());
    let image = Content::Image { media_type: "image/png".to_owned(), data: "QUJD".to_owned() };
    let plain = result("c", &output(vec![text("a"), text("b")], true));
    assert_eq!(plain, r#"{"type":"function_call_output","call_id":"c","output":"Error: a\nb"}"#);
    assert_eq!(calls(&plain), Calls::Answered(vec!["c".to_owned()]));
    assert_eq!(
        result("c", &output(vec![text("a"), image], false)),
        r#"{"type":"function_call_output","call_id":"c","output":[{"type":"input_text","text":"a"},{"type":"input_image","image_url":"data:image/png;base64,QUJD"}]}"#
    );
}
