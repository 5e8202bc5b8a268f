//! What comes next is read from a session's context alone, and each request extends the one before to the letter.

use super::*;
use crate::marks::{JobMark, TurnMark};
use crate::raw::raw;
use tools::{Content, Ended, Output};

fn head(wire: Wire, model: &str) -> Json {
    let request = format!(r#"{{"model":"{model}","max_tokens":100,"stream":true}}"#);
    Head::new(wire, model, Vec::new(), raw(request)).entry()
}

fn json(text: &str) -> Json {
    Json::parse(text).unwrap()
}

fn result(wire: Wire, call: &str, text: &str) -> Json {
    wire.result(
        call,
        &Output { content: vec![Content::Text(text.to_owned())], is_error: false, ended: Ended::Done },
    )
}

/// What `CALLS` says, on Responses.
const ITEMS: [&str; 3] = [
    r#"{"id":"rs_1","type":"reasoning","summary":[],"encrypted_content":"s"}"#,
    r#"{"id":"fc_1","type":"function_call","call_id":"a","name":"add","arguments":"{\"n\":1e5}"}"#,
    r#"{"id":"fc_2","type":"function_call","call_id":"b","name":"add","arguments":"{}"}"#,
];
const CALLS: &str = r#"{"role":"assistant","content":[{"type":"thinking","thinking":"","signature":"s"},{"type":"tool_use","id":"a","name":"add","input":{"n":1e5}},{"type":"tool_use","id":"b","name":"add","input":{}}]}"#;

fn turn(stop: StopReason) -> Json {
    TurnMark::new(100, 20, stop).entry()
}

fn next(entries: &[Json], job_id: JobId) -> Next {
    Digest::of(entries).on([entries, &[]]).next(job_id)
}

#[test]
fn the_context_alone_says_what_comes_next() {
    let (job_id, wire) = (JobId::now(), Wire::Messages);
    let mut entries = Vec::new();
    assert_eq!(next(&entries, job_id), Next::Begin);
    entries.extend([head(wire, "claude-a"), JobMark::begin(job_id, 0).entry(), wire.said("Add.")]);
    assert_eq!(next(&entries, JobId::now()), Next::Begin, "another job's");
    assert_eq!(next(&entries, job_id), Next::Call);
    entries.extend([json(CALLS), turn(StopReason::Tools)]);
    let Next::Tools(open) = next(&entries, job_id) else { panic!("no open calls") };
    assert_eq!(open.iter().map(|call| &*call.id).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(open[0].input.as_ref().unwrap().as_str(), r#"{"n":1e5}"#);
    entries.push(result(wire, "b", "7"));
    let Next::Tools(open) = next(&entries, job_id) else { panic!("no open call") };
    assert_eq!(open.iter().map(|call| &*call.id).collect::<Vec<_>>(), ["a"]);
    entries.push(result(wire, "a", "8"));
    assert_eq!(next(&entries, job_id), Next::Call);
    let half = r#"{"role":"assistant","content":[{"type":"text","text":"It is "}]}"#;
    entries.extend([json(half), turn(StopReason::OutputLimit)]);
    assert_eq!(next(&entries, job_id), Next::Call);
    entries.push(wire.said("Go on."));
    assert_eq!(next(&entries, job_id), Next::Call);
    let rest = r#"{"role":"assistant","content":[{"type":"text","text":"15."}]}"#;
    entries.extend([json(rest), turn(StopReason::End)]);
    assert_eq!(next(&entries, job_id), Next::Ended("It is 15.".to_owned()));
    assert_eq!(Digest::of(&entries).on([&entries, &[]]).used(job_id), (3, 360));
}

#[test]
fn an_answer_is_whole_whatever_part_of_it_was_compacted() {
    let (job_id, wire) = (JobId::now(), Wire::Messages);
    let said = |text: &str| {
        json(&format!(r#"{{"role":"assistant","content":[{{"type":"text","text":"{text}"}}]}}"#))
    };
    let so_far = |entries: &[Json]| Digest::of(entries).on([entries, &[]]).said_so_far(job_id);
    let mut entries = vec![head(wire, "claude-a"), JobMark::begin(job_id, 0).entry(), wire.said("Add.")];
    assert_eq!(so_far(&entries), "");
    let mut whole = String::new();
    for stop in [StopReason::OutputLimit, StopReason::Pause, StopReason::WindowFull] {
        entries.extend([said("one "), turn(stop)]);
        if stop != StopReason::Pause {
            entries.push(wire.said("Go on."));
            entries.push(wire.said("Another model goes on."));
        }
        whole += "one ";
        assert_eq!(so_far(&entries), whole);
        // Whatever stays is before the mark.
        let rest = JobMark::go_on(job_id, (1, 10), so_far(&entries), 0).entry();
        entries = vec![head(wire, "claude-a"), wire.said("The summary."), said("one "), rest];
        assert_eq!((next(&entries, job_id), so_far(&entries)), (Next::Call, whole.clone()));
        entries.push(wire.said("Another model goes on."));
        assert_eq!((next(&entries, job_id), so_far(&entries)), (Next::Call, whole.clone()));
    }
    entries.extend([said("two."), turn(StopReason::End)]);
    assert_eq!(next(&entries, job_id), Next::Ended("one one one two.".to_owned()));
    entries.push(wire.said("That is no JSON."));
    assert_eq!(so_far(&entries), "", "what was asked again begins anew");
    entries.extend([said("{}"), turn(StopReason::End)]);
    assert_eq!(next(&entries, job_id), Next::Ended("{}".to_owned()));
}

#[test]
fn an_answer_that_says_nothing_ends_the_job_with_nothing() {
    let (job_id, wire) = (JobId::now(), Wire::Messages);
    let mut entries = vec![head(wire, "claude-a"), JobMark::begin(job_id, 0).entry(), wire.said("Add.")];
    let calls = r#"{"role":"assistant","content":[{"type":"text","text":"Wait."},{"type":"tool_use","id":"a","name":"add","input":{}}]}"#;
    entries.extend([json(calls), turn(StopReason::Tools), result(wire, "a", "1"), turn(StopReason::End)]);
    assert_eq!(next(&entries, job_id), Next::Ended(String::new()));
}

/// Returns a body without what closes its list of messages, and the last message in it.
fn open_ended(body: &str) -> &str {
    body.strip_suffix("]}").unwrap()
}

#[test]
fn each_request_extends_the_last_to_the_letter() {
    for wire in [Wire::Messages, Wire::Chat, Wire::Responses] {
        let job_id = JobId::now();
        let mut entries = vec![head(wire, "m"), JobMark::begin(job_id, 0).entry(), wire.said("Add.")];
        let answer = match wire {
            Wire::Messages => vec![json(CALLS)],
            Wire::Responses => ITEMS.map(json).to_vec(),
            Wire::Chat => vec![json(
                r#"{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"add","arguments":"{\"n\":1e5}"}},{"id":"b","type":"function","function":{"name":"add","arguments":"{}"}}]}"#,
            )],
        };
        let mut bodies = vec![Digest::of(&entries).on([&entries, &[]]).request().unwrap()];
        for round in 0..4 {
            entries.extend(answer.clone());
            entries.push(turn(StopReason::Tools));
            entries.extend([result(wire, "b", &format!("{round}")), result(wire, "a", "é\n")]);
            bodies.push(Digest::of(&entries).on([&entries, &[]]).request().unwrap());
        }
        for pair in bodies.windows(2) {
            assert!(pair[1].starts_with(open_ended(&pair[0])), "{wire:?}\n{}\n{}", pair[0], pair[1]);
        }
        let last: serde_json::Value = serde_json::from_str(&bodies[4]).unwrap();
        let messages = last[wire.conversation()].as_array().unwrap();
        // Results of one answer are one message of Messages, in the order in which they came.
        let expected = match wire {
            Wire::Messages => 9,
            Wire::Chat => 13,
            Wire::Responses => 21,
        };
        assert_eq!(messages.len(), expected);
        if wire == Wire::Messages {
            assert_eq!(messages[2]["content"][0]["tool_use_id"], "b");
            assert_eq!(messages[2]["content"][1]["tool_use_id"], "a");
            assert!(bodies[4].contains(&CALLS[1..]), "an assistant's turn goes back to the letter");
        }
    }
}

#[test]
fn another_model_gets_no_thinking_and_another_wire_the_same_conversation() {
    let job_id = JobId::now();
    let wire = Wire::Messages;
    let mut entries = vec![head(wire, "claude-a"), JobMark::begin(job_id, 0).entry(), wire.said("Add.")];
    entries.extend([json(CALLS), turn(StopReason::Tools), result(wire, "a", "1"), result(wire, "b", "2")]);
    entries.push(head(wire, "claude-b"));
    let body = Digest::of(&entries).on([&entries, &[]]).request().unwrap();
    assert!(body.starts_with(r#"{"model":"claude-b""#), "{body}");
    assert!(!body.contains("thinking") && body.contains(r#"Agent calls add: {\"n\":1e5}"#), "{body}");
    assert!(matches!(next(&entries, job_id), Next::Call));
    entries.push(head(Wire::Chat, "gpt"));
    let body = Digest::of(&entries).on([&entries, &[]]).request().unwrap();
    assert!(body.contains(r#""tool_call_id":"b""#) && body.contains(r#"\"n\":1e5"#), "{body}");
    assert!(matches!(next(&entries, job_id), Next::Call));
    entries.push(head(Wire::Responses, "gpt"));
    let body = Digest::of(&entries).on([&entries, &[]]).request().unwrap();
    assert!(
        body.contains(r#"{"type":"function_call","call_id":"a","name":"add","arguments":"{\"n\":1e5}"}"#),
        "{body}"
    );
    assert!(body.contains(r#""call_id":"b","output":"2"}"#), "{body}");
}

#[test]
fn the_items_of_an_answer_are_one_message_of_another_wire() {
    let (job_id, wire) = (JobId::now(), Wire::Responses);
    let mut entries = vec![head(wire, "gpt"), JobMark::begin(job_id, 0).entry(), wire.said("Add.")];
    entries.push(json(r#"{"id":"msg_1","type":"message","role":"assistant","phase":"commentary","content":[{"type":"output_text","text":"I add."}]}"#));
    entries.extend(ITEMS.map(json));
    entries.push(turn(StopReason::Tools));
    let Next::Tools(open) = next(&entries, job_id) else { panic!("no open calls") };
    assert_eq!(open.iter().map(|call| &*call.id).collect::<Vec<_>>(), ["a", "b"]);
    entries.extend([result(wire, "a", "1"), result(wire, "b", "2")]);
    let answer =
        r#"{"id":"msg_2","type":"message","role":"assistant","content":[{"type":"output_text","text":"3"}]}"#;
    entries.extend([json(answer), turn(StopReason::End)]);
    assert_eq!(next(&entries, job_id), Next::Ended("3".to_owned()));
    for (to, roles) in [
        (Wire::Chat, vec!["user", "assistant", "tool", "tool", "assistant"]),
        (Wire::Messages, vec!["user", "assistant", "user", "assistant"]),
    ] {
        entries.push(head(to, "m"));
        let body = Digest::of(&entries).on([&entries, &[]]).request().unwrap();
        let value: serde_json::Value = serde_json::from_str(&body).unwrap();
        let messages = value["messages"].as_array().unwrap();
        let said: Vec<_> = messages.iter().map(|message| message["role"].as_str().unwrap()).collect();
        assert_eq!(said, roles, "{body}");
        assert!(body.contains("I add.") && !body.contains("rs_1"), "{body}");
        entries.pop();
    }
    // Another model of the same wire gets no reasoning, and no ids, which would ask for it.
    entries.push(head(wire, "gpt-b"));
    let body = Digest::of(&entries).on([&entries, &[]]).request().unwrap();
    assert!(!body.contains("rs_1") && !body.contains("fc_1") && body.contains("I add."), "{body}");
}

#[test]
fn what_another_harness_left_is_a_conversation_too() {
    let entries = [
        json(r#"{"role":"user","content":"Hello"}"#),
        json(r#"{"role":"assistant","content":"Hi"}"#),
        json(r#"{"role":"tool","tool_call_id":"x","content":"3"}"#),
        json(r#"{"type":"function_call_output","call_id":"y","output":"4"}"#),
        json(r#"{"note":"no message"}"#),
        head(Wire::Messages, "claude-a"),
        Wire::Messages.said("Go on."),
    ];
    let body: serde_json::Value =
        serde_json::from_str(&Digest::of(&entries).on([&entries, &[]]).request().unwrap()).unwrap();
    let messages = body["messages"].as_array().unwrap();
    assert_eq!(messages.len(), 3, "{messages:?}");
    assert_eq!(messages[1]["content"][0]["text"], "Hi");
}

#[test]
fn tokens_are_those_that_were_counted_and_bytes_since() {
    let job_id = JobId::now();
    let wire = Wire::Messages;
    let mut entries = vec![head(wire, "claude-a"), JobMark::begin(job_id, 0).entry(), wire.said("Add.")];
    let (counted, since) = Digest::of(&entries).on([&entries, &[]]).weight();
    assert!(counted == 0 && since > 60, "{since}");
    entries.extend([json(CALLS), turn(StopReason::Tools)]);
    assert_eq!(Digest::of(&entries).on([&entries, &[]]).weight(), (120, 0));
    let answer = result(wire, "a", "1");
    entries.push(answer.clone());
    assert_eq!(Digest::of(&entries).on([&entries, &[]]).weight(), (120, answer.as_str().len()));
    entries.push(head(wire, "claude-b"));
    assert_eq!(Digest::of(&entries).on([&entries, &[]]).weight().0, 0, "another model counts anew");
}
