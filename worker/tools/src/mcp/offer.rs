//! What a server offers, as tools: under names that providers take, with schemas that need no other document, and within
//! bounds.

use std::sync::Arc;

use rmcp::model::Tool as Theirs;
use serde_json::Value;

use super::settings::ServerSettings;
use crate::redaction::Redaction;
use crate::schema::Schema;
use crate::text;
use crate::tool::{Repeat, Tool, is_tool_name};

/// How much of a description is shown to the model.
const DESCRIPTION_BYTES: usize = 8 * 1024;

/// What a server offers, sorted by name.
pub type Offer = Arc<Vec<Theirs>>;

/// A tool of a server.
pub struct Offered {
    /// As the model sees it.
    pub tool: Tool,
    pub schema: Schema,
    /// Its name at the server.
    pub own_name: String,
}

/// Makes tools of what a server offers, as a provider may read it. What cannot be one is left out, and the second list says
/// why.
pub fn offered(
    settings: &ServerSettings,
    theirs: &[Theirs],
    redaction: &Redaction,
) -> (Vec<Offered>, Vec<String>) {
    let mut offered: Vec<Offered> = Vec::new();
    let mut left_out = Vec::new();
    for tool in theirs {
        if settings.allow.as_ref().is_some_and(|allow| !allow.have(&tool.name)) {
            continue;
        }
        let made = one(settings, tool, redaction).and_then(|made| {
            let twice = offered.iter().any(|other| other.tool.name == made.tool.name);
            if twice { Err(format!("another has the name {}", made.tool.name)) } else { Ok(made) }
        });
        match made {
            Ok(made) => offered.push(made),
            Err(problem) => {
                let name = shown(&tool.name, 100, redaction);
                left_out.push(format!("its tool {name:?} is left out: {}", redaction.clean(&problem)));
            }
        }
    }
    let named = settings.allow.iter().flat_map(|allow| &allow.0).filter(|name| !name.ends_with('*'));
    let missing = named.filter(|name| !theirs.iter().any(|tool| tool.name == name.as_str()));
    left_out.extend(missing.map(|name| format!("it has no tool {name:?}, which `allow` names")));
    (offered, left_out)
}

fn one(settings: &ServerSettings, tool: &Theirs, redaction: &Redaction) -> Result<Offered, String> {
    // Servers may use dots and slashes, which providers refuse.
    let fit = |c: char| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' };
    let name = format!("{}__{}", settings.name, tool.name.chars().map(fit).collect::<String>());
    if tool.name.is_empty() || !is_tool_name(&name) {
        return Err(format!(
            "{} characters are too many for {}__…, expected 64",
            tool.name.len(),
            settings.name
        ));
    }
    let mut schema = Value::Object((*tool.input_schema).clone());
    if let Some(fields) = schema.as_object_mut() {
        fields.entry("type").or_insert_with(|| "object".into());
    }
    let schema = Schema::new(&schema).map_err(|problem| format!("its input schema: {problem}"))?;
    let description = tool.description.as_deref().or(tool.title.as_deref()).unwrap_or_default();
    let own_name = tool.name.to_string();
    let tool = Tool {
        name,
        description: shown(description, DESCRIPTION_BYTES, redaction),
        input_schema: schema.redacted(redaction),
        repeat: if settings.safe.have(&own_name) { Repeat::Safe } else { Repeat::Unsafe },
        side_by_side: settings.side_by_side.have(&own_name),
        approve: settings.approve.have(&own_name),
    };
    Ok(Offered { tool, schema, own_name })
}

/// Returns the start of a server's text, as a provider may read it.
fn shown(text: &str, bytes: usize, redaction: &Redaction) -> String {
    redaction.clipped(&text::clean_text(text.into()), bytes)
}

/// Says how two offers differ in what a model may call, if they do.
pub fn difference(
    settings: &ServerSettings,
    (before, now): (&[Theirs], &[Theirs]),
    redaction: &Redaction,
) -> Option<String> {
    if before == now {
        return None;
    }
    let named = |tools: Vec<&Theirs>| {
        let allowed = tools
            .into_iter()
            .filter(|tool| settings.allow.as_ref().is_none_or(|allow| allow.have(&tool.name)));
        let names = allowed.map(|tool| tool.name.as_ref()).collect::<Vec<&str>>().join(", ");
        shown(&names, 500, redaction)
    };
    let find = |tools: &'_ [Theirs], name: &str| tools.iter().position(|tool| tool.name == name);
    let new = named(now.iter().filter(|tool| find(before, &tool.name).is_none()).collect());
    let gone = named(before.iter().filter(|tool| find(now, &tool.name).is_none()).collect());
    let changed = |tool: &&Theirs| find(before, &tool.name).is_some_and(|at| before[at] != **tool);
    let changed = named(now.iter().filter(changed).collect());
    let said: Vec<String> = [("new", new), ("gone", gone), ("changed", changed)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what}: {names}"))
        .collect();
    (!said.is_empty()).then(|| said.join("; "))
}
