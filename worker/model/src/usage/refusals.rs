//! Whether an answer, or an event of one, says that the model or a filter has refused to answer.
//!
//! Sources: `stop_reason` at platform.claude.com/docs/en/api/messages; `finish_reason` and `refusal` at
//! platform.openai.com/docs/api-reference/chat/object; `incomplete_details` and content of the type `refusal` at
//! platform.openai.com/docs/api-reference/responses/object.

use serde_json::{Map, Value};

use crate::wire::Wire;

pub(super) fn refuses(wire: Wire, said: &Map<String, Value>) -> bool {
    let text =
        |holder: Option<&Value>, name: &str| holder.and_then(|it| it.get(name)?.as_str()).map(str::to_owned);
    match wire {
        Wire::Messages => {
            let whole = said.get("stop_reason").and_then(Value::as_str).map(str::to_owned);
            whole.or_else(|| text(said.get("delta"), "stop_reason")).as_deref() == Some("refusal")
        }
        Wire::Chat => items(said.get("choices")).any(|choice| {
            text(Some(choice), "finish_reason").as_deref() == Some("content_filter")
                || [choice.get("message"), choice.get("delta")]
                    .into_iter()
                    .any(|part| is_text(part, "refusal"))
        }),
        Wire::Responses => {
            let response = said.get("response").and_then(Value::as_object).unwrap_or(said);
            let filtered =
                text(response.get("incomplete_details"), "reason").as_deref() == Some("content_filter");
            let content = items(response.get("output")).flat_map(|item| items(item.get("content")));
            let mut refusals = content.filter(|part| text(Some(part), "type").as_deref() == Some("refusal"));
            filtered || refusals.next().is_some()
        }
        Wire::Embeddings => false,
    }
}

fn items(list: Option<&Value>) -> impl Iterator<Item = &Value> {
    list.and_then(Value::as_array).into_iter().flatten()
}

fn is_text(holder: Option<&Value>, name: &str) -> bool {
    holder.and_then(|it| it.get(name)).is_some_and(|it| it.as_str().is_some_and(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_is_found_on_each_wire_whole_and_in_events() {
        for (wire, said, refused) in [
            (Wire::Messages, json!({"type": "message", "stop_reason": "refusal"}), true),
            (Wire::Messages, json!({"type": "message_delta", "delta": {"stop_reason": "refusal"}}), true),
            (Wire::Messages, json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}}), false),
            (Wire::Messages, json!({"type": "message_delta", "delta": {"stop_reason": null}}), false),
            (Wire::Chat, json!({"choices": [{"finish_reason": "content_filter"}]}), true),
            (
                Wire::Chat,
                json!({"choices": [{"finish_reason": "stop", "message": {"refusal": "I cannot."}}]}),
                true,
            ),
            (Wire::Chat, json!({"choices": [{"finish_reason": null, "delta": {"refusal": "I"}}]}), true),
            (
                Wire::Chat,
                json!({"choices": [{"finish_reason": "stop", "message": {"refusal": null}}]}),
                false,
            ),
            (
                Wire::Responses,
                json!({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}),
                true,
            ),
            (
                Wire::Responses,
                json!({"type": "response.completed", "response": {"output": [{"content": [{"type": "refusal"}]}]}}),
                true,
            ),
            (
                Wire::Responses,
                json!({"type": "response.completed", "response": {"incomplete_details": null,
                       "output": [{"content": [{"type": "output_text"}]}, {"type": "reasoning"}]}}),
                false,
            ),
            (Wire::Embeddings, json!({"data": []}), false),
        ] {
            assert_eq!(refuses(wire, said.as_object().expect("an object")), refused, "{said}");
        }
    }
}
