//! What a part of a conversation weighs in tokens, at most.

use serde_json::Value;

use super::Refused;
use crate::json;

/// The most tokens of one part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weight {
    /// Tokens, images included.
    pub tokens: u64,
    /// Whether it names something that is not in the request, or whose tokens its bytes do not bound.
    pub whole_window: bool,
}

/// Weighs a value: one token for every byte, of numbers as they are written, but an image as the provider's largest instead of its bytes.
pub(super) fn weigh(value: &Value, largest_image: u64) -> Result<Weight, Refused> {
    let mut weight = Weight { tokens: json::size(value), ..Weight::default() };
    blocks(value, &mut |block| {
        let kind = block.get("type").and_then(Value::as_str).unwrap_or_default();
        match kind {
            "image" | "image_url" | "input_image" | "computer_screenshot" => {
                let bytes = data(block);
                weight.tokens = weight.tokens.saturating_sub(bytes).saturating_add(largest_image);
            }
            "document" => {
                let source =
                    block.get("source").and_then(|source| source.get("type")).and_then(Value::as_str);
                weight.whole_window |= !matches!(source, Some("text" | "content"));
            }
            "file" | "input_file" | "container_upload" => weight.whole_window = true,
            "audio" | "input_audio" | "video" | "input_video" => {
                let why = "sound and video have no price here; send text, images or documents";
                return Err(Refused::new(kind, why));
            }
            _ => {}
        }
        Ok(())
    })?;
    Ok(weight)
}

/// Returns whether an item of Responses stands for one that the provider has: it has an id, and its content is not all with it.
/// (developers.openai.com/api/reference/resources/responses: a reference needs no `type`, and the results of tools that the
/// provider runs are left out.)
pub(super) fn is_stored(item: &Value) -> bool {
    let is_text =
        |name| item.get(name).is_some_and(|value| value.as_str().is_some_and(|text| !text.is_empty()));
    let is_list = |name| item.get(name).is_some_and(Value::is_array);
    let is_whole = match item.get("type").and_then(Value::as_str).unwrap_or_default() {
        "" | "message" => is_text("content") || is_list("content"),
        "reasoning" | "compaction" => is_text("encrypted_content"),
        "image_generation_call" => is_text("result"),
        "file_search_call" => is_list("results"),
        kind => WHOLE_ITEMS.contains(&kind),
    };
    !is_whole && item.get("id").is_some_and(|id| !id.is_null())
}

/// The items with all that was said: calls of tools that the program runs itself, and what these have answered.
const WHOLE_ITEMS: [&str; 17] = [
    "function_call",
    "function_call_output",
    "custom_tool_call",
    "custom_tool_call_output",
    "local_shell_call",
    "local_shell_call_output",
    "shell_call",
    "shell_call_output",
    "apply_patch_call",
    "apply_patch_call_output",
    "computer_call",
    "computer_call_output",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_list_tools",
    "tool_search_call",
    "tool_search_output",
];

/// Visits the blocks of a message: where a provider looks for images and files. What a tool was called with is text to
/// the provider, whatever it looks like.
fn blocks(
    value: &Value,
    visit: &mut impl FnMut(&serde_json::Map<String, Value>) -> Result<(), Refused>,
) -> Result<(), Refused> {
    match value {
        Value::Array(items) => items.iter().try_for_each(|item| blocks(item, visit)),
        Value::Object(block) => {
            visit(block)?;
            ["content", "output"]
                .iter()
                .filter_map(|name| block.get(*name))
                .try_for_each(|inner| blocks(inner, visit))?;
            // Text documents may hold blocks of their own.
            block
                .get("source")
                .and_then(|source| source.get("content"))
                .map_or(Ok(()), |inner| blocks(inner, visit))
        }
        _ => Ok(()),
    }
}

/// Returns the bytes of a block's image, if it is in the request.
fn data(block: &serde_json::Map<String, Value>) -> u64 {
    let anthropic = block.get("source").and_then(|source| source.get("data"));
    let openai = match block.get("image_url") {
        Some(Value::Object(inner)) => inner.get("url"),
        other => other,
    };
    let is_data = |text: &&str| text.starts_with("data:");
    let anthropic = anthropic.and_then(Value::as_str);
    anthropic.or(openai.and_then(Value::as_str).filter(is_data)).map_or(0, |text| text.len() as u64)
}
