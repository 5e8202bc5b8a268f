//! What a person decides: calls of tools that need an approval, and the questions that a model asks.
//!
//! A run that asks ends, and holds no slot while it waits. The next one finds the answer by the key of the call.

use std::time::Duration;

use harness::{Ask, ClosedInput, InputAnswer, InputKind, Run};
use job::{Json, MAX_QUESTION_BYTES};
use tools::{Content, Ended, Output, Repeat, Tool};

use crate::raw::quoted;
use crate::schema::Schema;
use crate::toolkit::not_made;

/// The tool with which a model asks a person.
pub(crate) const ASK: &str = "ask_human";

/// What a person has to do with a call.
pub(crate) enum Person {
    /// It has its result: the answer, or why there is none.
    Answered(Output),
    /// It may be made.
    Approved,
    /// Somebody is to be asked.
    Ask(Ask),
}

/// Returns the tool with which a model asks a person.
pub(crate) fn ask_tool() -> Tool {
    let schema = r#"{"type":"object","properties":{"question":{"type":"string"}},"required":["question"]}"#;
    Tool {
        name: ASK.to_owned(),
        description:
            "Asks the person who is responsible for this work, and waits for the answer. Ask only what you \
                      cannot find out yourself, and say what you need to know it for."
                .to_owned(),
        input_schema: Json::parse(schema).expect("a schema that is valid"),
        repeat: Repeat::Safe,
        side_by_side: true,
        approve: false,
    }
}

/// Returns whether a person decides on calls of a tool.
pub(crate) fn decides(tool: &Tool) -> bool {
    tool.approve || tool.name == ASK
}

/// Returns what a person has to do with a call of such a tool, which has this key in its job.
pub(crate) fn person(run: &Run, key: &str, tool: &Tool, input: &Json, timeout: Option<Duration>) -> Person {
    let is_question = tool.name == ASK;
    if let Some(closed) = run.answers().get(key) {
        return decided(is_question, closed);
    }
    // Nobody is asked for what would not be made.
    if let Some(problem) = misfit(tool, input) {
        let problem = format!("Nobody was asked, because the input does not fit its schema: {problem}");
        return Person::Answered(not_made(Ended::BadInput, problem));
    }
    let (kind, content) = if is_question {
        (InputKind::Question, input.as_str().to_owned())
    } else {
        let content = format!(r#"{{"tool":{},"input":{}}}"#, quoted(&tool.name), input.as_str());
        (InputKind::Approval, content)
    };
    let cannot = |why: &str| Person::Answered(not_made(Ended::BadInput, format!("Nobody was asked: {why}.")));
    if content.len() > MAX_QUESTION_BYTES {
        return cannot(&format!("the question has more than {MAX_QUESTION_BYTES} bytes"));
    }
    match (key.parse(), Json::parse(&content)) {
        (Ok(call_id), Ok(content)) => Person::Ask(Ask { call_id, kind, content, timeout }),
        (Err(problem), _) => cannot(&problem),
        (_, Err(problem)) => cannot(&problem.to_string()),
    }
}

/// Returns what does not fit in the input of a call.
fn misfit(tool: &Tool, input: &Json) -> Option<String> {
    let schema = Schema::new(&tool.input_schema.to_value().ok()?).ok()?;
    schema.check(input).err()
}

fn decided(is_question: bool, closed: &ClosedInput) -> Person {
    match &closed.answer {
        Some(InputAnswer::Answer { answer }) if is_question => {
            let text = serde_json::from_str::<String>(answer.as_str());
            let text = text.unwrap_or_else(|_| answer.as_str().to_owned());
            let content = vec![Content::Text(text)];
            Person::Answered(Output { content, is_error: false, ended: Ended::Done })
        }
        Some(InputAnswer::Approve { approve: true }) if !is_question => Person::Approved,
        Some(_) => {
            let text = "A person has not approved this call, so it was not made.";
            Person::Answered(not_made(Ended::Failed, text))
        }
        None => {
            let text = if is_question {
                "Nobody has answered in time."
            } else {
                "Nobody has approved this call in time, so it was not made."
            };
            Person::Answered(not_made(Ended::TimedOut, text))
        }
    }
}
