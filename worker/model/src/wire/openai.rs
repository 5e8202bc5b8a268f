//! OpenAI's Chat Completions, Responses and Embeddings.

use serde_json::{Map, Value};

use super::hosted::{Hosted, unbounded};
use super::{
    Ask, Choice, HostedCaps, MAX_CHOICES, MAX_LIMIT, Refused, Steps, Wire, count, flag, is_given, model,
    refuse, request_hash, steps, text,
};
use crate::prices::CacheWrites;

/// The largest image: 10,000 patches of 32 pixels, times the largest factor of a model
/// (developers.openai.com/api/docs/guides/images-vision).
const LARGEST_IMAGE: u64 = 25_000;

const NO_BOUND: &str = "what it costs has no bound, so it is not passed on";
const LATER: &str = "its answer is asked for later, beside the meter, so it is not passed on";

/// The tools that the program runs itself.
const OWN_TOOLS: [&str; 7] =
    ["function", "custom", "local_shell", "apply_patch", "computer", "computer_use_preview", "namespace"];

pub(super) fn read(wire: Wire, mut fields: Map<String, Value>, caps: HostedCaps) -> Result<Ask, Refused> {
    let refused: &[(&str, &str)] = match wire {
        Wire::Chat => &[("web_search_options", NO_BOUND), ("audio", NO_BOUND), ("prediction", NO_BOUND)],
        Wire::Responses => {
            // A stored prompt may bring tools that the provider runs.
            &[
                ("background", LATER),
                ("context_management", NO_BOUND),
                ("multi_agent", NO_BOUND),
                ("prompt", NO_BOUND),
            ]
        }
        Wire::Messages | Wire::Embeddings => &[],
    };
    refuse(&fields, refused)?;
    if let Some(Value::Array(kinds)) = fields.get("modalities")
        && kinds.iter().any(|kind| kind != "text")
    {
        return Err(Refused::new("modalities", "only text has a price here"));
    }
    // The older name is not obeyed by models that think, so the larger of both counts.
    let mut output_limit = None;
    for name in wire.output_limits() {
        output_limit = output_limit.max(count(&fields, name, MAX_LIMIT)?);
    }
    let choices = if wire == Wire::Chat { count(&fields, "n", MAX_CHOICES)?.unwrap_or(1) } else { 1 };
    let hosted = tools(wire, &fields, caps)?;
    let tier = match text(&fields, "service_tier")? {
        Some(name) if name != "auto" => Choice::Named(name),
        _ => Choice::Any,
    };
    let includes_usage = fields.get("stream_options").and_then(|options| options.get("include_usage"));
    let includes_usage = includes_usage.and_then(Value::as_bool).unwrap_or(false);
    let (model, stream, hash) = (model(&fields)?, flag(&fields, "stream")?, request_hash(wire, &fields));
    let stored = ["previous_response_id", "conversation"];
    let stored_elsewhere = wire == Wire::Responses && stored.iter().any(|name| is_given(&fields, name));
    let items = match fields.remove(if wire == Wire::Chat { "messages" } else { "input" }) {
        Some(Value::Array(items)) => items,
        Some(one @ Value::String(_)) => vec![one],
        None | Some(Value::Null) if stored_elsewhere => Vec::new(),
        _ => {
            let field = if wire == Wire::Chat { "messages" } else { "input" };
            return Err(Refused::new(field, "it is missing, or neither a text nor a list"));
        }
    };
    let Steps { steps, whole_window, by_id } = steps(wire, &fields, &items, LARGEST_IMAGE)?;
    // Newer models write to their cache unasked. How long they keep it is in fields whose names begin alike.
    let keeps_longer = |name: &String| name.starts_with("prompt_cache") && name != "prompt_cache_key";
    let writes = if fields.keys().any(keeps_longer) { CacheWrites::Long } else { CacheWrites::Short };
    Ok(Ask {
        wire,
        model,
        stream,
        includes_usage,
        hash,
        output_limit,
        least_output: 0,
        choices,
        tier,
        region: Choice::Any,
        writes,
        steps,
        whole_window: stored_elsewhere || whole_window,
        by_id,
        hosted,
    })
}

/// Returns the tools of a request: those that it lists, those within a namespace, and those that an item of its input brings
/// along, as what a search for tools has found.
fn all_tools(wire: Wire, fields: &Map<String, Value>) -> Vec<&Value> {
    let items = fields.get("input").filter(|_| wire == Wire::Responses).and_then(Value::as_array);
    let holders = items.into_iter().flatten().filter_map(Value::as_object);
    let mut found: Vec<&Value> = Vec::new();
    let mut lists: Vec<&Value> = holders.chain([fields]).filter_map(|holder| holder.get("tools")).collect();
    while let Some(list) = lists.pop() {
        for tool in list.as_array().into_iter().flatten() {
            lists.extend(tool.get("tools"));
            found.push(tool);
        }
    }
    found
}

/// Returns what the request allows of the tools that the provider runs. One limit holds for all of them together.
fn tools(wire: Wire, fields: &Map<String, Value>, caps: HostedCaps) -> Result<Hosted, Refused> {
    let mut hosted = Hosted::default();
    for tool in all_tools(wire, fields) {
        let kind = tool.get("type").and_then(Value::as_str).unwrap_or("function");
        let search = match kind {
            _ if OWN_TOOLS.contains(&kind) => continue,
            "web_search" if wire == Wire::Responses => caps.web_search(),
            "file_search" if wire == Wire::Responses => caps.file_search(),
            _ => return Err(unbounded(kind)),
        };
        let most = count(fields, "max_tool_calls", MAX_LIMIT)?;
        hosted.calls = search.allowed(kind, "max_tool_calls", most)?;
        hosted.tools.push(search.name);
    }
    Ok(hosted)
}
