//! Anthropic's Messages.

use serde_json::{Map, Value, json};

use super::hosted::{Hosted, unbounded};
use super::{
    ADDED_PER_KNOWN_TOOL, Ask, Choice, HostedCaps, MAX_LIMIT, Refused, Steps, Wire, count, flag, is_given,
    model, refuse, request_hash, steps, text,
};
use crate::prices::CacheWrites;

/// The largest image: 2576 pixels on its long edge (platform.claude.com/docs/en/build-with-claude/vision).
const LARGEST_IMAGE: u64 = 4_784;

/// The search whose results come back as they are. The later ones write code that looks through them, as often as they like,
/// unless the request lets only the model call them.
const PLAIN_SEARCH: &str = "web_search_20250305";

const NO_BOUND: &str = "what it costs has no bound, so it is not passed on";

pub(super) fn read(mut fields: Map<String, Value>, caps: HostedCaps) -> Result<Ask, Refused> {
    refuse(&fields, &[("mcp_servers", NO_BOUND), ("container", NO_BOUND), ("fallbacks", NO_BOUND)])?;
    // A compaction is a second pass over the whole input, in the same call.
    if let Some(edits) = fields.get("context_management").and_then(|management| management.get("edits")) {
        let compacts = |edit: &Value| {
            edit.get("type").and_then(Value::as_str).is_some_and(|kind| kind.starts_with("compact"))
        };
        if edits.as_array().is_some_and(|edits| edits.iter().any(compacts)) {
            return Err(Refused::new("context_management", NO_BOUND));
        }
    }
    let limit = count(&fields, "max_tokens", MAX_LIMIT)?;
    let output_limit = Some(limit.ok_or_else(|| Refused::new("max_tokens", "it is missing"))?);
    // Thinking of a fixed length has to end below the limit.
    let thinking = fields.get("thinking").and_then(|thinking| thinking.get("budget_tokens"));
    let least_output = thinking.and_then(Value::as_u64).map_or(0, |budget| budget.saturating_add(1));
    let (known_tools, hosted) = tools(&fields, caps)?;
    let tier = text(&fields, "speed")?.unwrap_or_else(|| "standard".to_owned());
    let region = text(&fields, "inference_geo")?.map_or(Choice::Any, Choice::Named);
    let (model, stream, hash) =
        (model(&fields)?, flag(&fields, "stream")?, request_hash(Wire::Messages, &fields));
    let Some(Value::Array(messages)) = fields.remove("messages") else {
        return Err(Refused::new("messages", "it is missing or no list"));
    };
    let writes = cache_writes(&fields, &messages);
    let Steps { mut steps, whole_window, by_id } = steps(Wire::Messages, &fields, &messages, LARGEST_IMAGE)?;
    steps[0].most_tokens = steps[0].most_tokens.saturating_add(known_tools * ADDED_PER_KNOWN_TOOL);
    Ok(Ask {
        wire: Wire::Messages,
        model,
        stream,
        includes_usage: true,
        hash,
        output_limit,
        least_output,
        choices: 1,
        tier: Choice::Named(tier),
        region,
        writes,
        steps,
        whole_window,
        by_id,
        hosted,
    })
}

/// Returns how many tools have a schema of the provider's own, and what the request allows of those that it runs.
fn tools(fields: &Map<String, Value>, caps: HostedCaps) -> Result<(u64, Hosted), Refused> {
    let (mut known, mut hosted) = (0, Hosted::default());
    for tool in fields.get("tools").and_then(Value::as_array).into_iter().flatten() {
        let kind = tool.get("type").and_then(Value::as_str).unwrap_or("custom");
        let is = |prefix: &str| kind.starts_with(prefix);
        if kind == "custom" {
            continue;
        }
        if is("bash_") || is("text_editor_") || is("computer_") || is("memory_") {
            known += 1;
        } else if is("web_search_") {
            let search = caps.web_search();
            let uses = search.allowed(kind, "max_uses", tool.get("max_uses").and_then(Value::as_u64))?;
            if kind != PLAIN_SEARCH && tool.get("allowed_callers") != Some(&json!(["direct"])) {
                let problem = format!(
                    "`{kind}` runs code on what it finds, and nothing limits how often: name `\"allowed_callers\": [\"direct\"]`"
                );
                return Err(Refused::new("tools", problem));
            }
            hosted.calls = hosted.calls.saturating_add(uses);
            hosted.tools.push(search.name);
        } else {
            return Err(unbounded(kind));
        }
    }
    Ok((known, hosted))
}

/// Returns which cache writes a request asks for: by `cache_control` anywhere, or for the whole of it.
fn cache_writes(fields: &Map<String, Value>, messages: &[Value]) -> CacheWrites {
    let parts = messages.iter().chain(fields.values());
    let own =
        if is_given(fields, "cache_control") { ttl(&fields["cache_control"]) } else { CacheWrites::None };
    parts.map(marked).max().unwrap_or(CacheWrites::None).max(own)
}

fn marked(value: &Value) -> CacheWrites {
    match value {
        Value::Array(items) => items.iter().map(marked).max().unwrap_or(CacheWrites::None),
        Value::Object(members) => {
            let own = members.get("cache_control").filter(|mark| !mark.is_null()).map(ttl);
            let inner = members.values().map(marked).max();
            own.max(inner).unwrap_or(CacheWrites::None)
        }
        _ => CacheWrites::None,
    }
}

/// Five minutes unless it says otherwise; what it says otherwise counts as the longer one.
fn ttl(mark: &Value) -> CacheWrites {
    match mark.get("ttl").and_then(Value::as_str) {
        None | Some("5m") => CacheWrites::Short,
        Some(_) => CacheWrites::Long,
    }
}
