//! Definitions of tools.
//!
//! Sources: Anthropic, "How to implement tool use" (names, schemas); OpenAI, "Function calling" (names, schemas).

use std::collections::BTreeSet;

use serde_json::Value;

use super::is_name;
use crate::provider::wire::Refusal;

/// Checks the tools of Messages.
pub(super) fn of_messages(request: &Value) -> Result<(), Refusal> {
    let tools = match &request["tools"] {
        Value::Null => return Ok(()),
        Value::Array(tools) => tools,
        _ => return Err(Refusal::invalid("tools: Input should be a valid list")),
    };
    let mut names = BTreeSet::new();
    for (at, tool) in tools.iter().enumerate() {
        let is_own = matches!(tool["type"].as_str(), None | Some("custom"));
        let Some(name) = tool["name"].as_str() else {
            if !is_own {
                continue;
            }
            return Err(Refusal::invalid(format!("tools.{at}.custom.name: Field required")));
        };
        if is_own {
            if !is_name(name, 128) {
                let pattern = "String should match pattern '^[a-zA-Z0-9_-]{1,128}$'";
                return Err(Refusal::invalid(format!("tools.{at}.custom.name: {pattern}")));
            }
            schema(&tool["input_schema"], &format!("tools.{at}.custom.input_schema"))?;
        }
        if !names.insert(name) {
            return Err(Refusal::invalid("tools: Tool names must be unique."));
        }
    }
    let choice = &request["tool_choice"];
    if choice["type"] == "tool" && !choice["name"].as_str().is_some_and(|name| names.contains(name)) {
        let name = choice["name"].as_str().unwrap_or_default();
        return Err(Refusal::invalid(format!("Tool '{name}' not found in provided tools")));
    }
    if !choice.is_null() && names.is_empty() && choice["type"] != "none" {
        return Err(Refusal::invalid("tool_choice may only be specified while providing tools"));
    }
    Ok(())
}

fn schema(schema: &Value, place: &str) -> Result<(), Refusal> {
    let Some(members) = schema.as_object() else {
        let problem = if schema.is_null() { "Field required" } else { "Input should be a valid dictionary" };
        return Err(Refusal::invalid(format!("{place}: {problem}")));
    };
    match members.get("type") {
        None => return Err(Refusal::invalid(format!("{place}.type: Field required"))),
        Some(kind) if kind != "object" => {
            return Err(Refusal::invalid(format!("{place}.type: Input should be 'object'")));
        }
        Some(_) => {}
    }
    if ["oneOf", "allOf", "anyOf"].iter().any(|name| members.contains_key(*name)) {
        let problem = "input_schema does not support oneOf, allOf, or anyOf at the top level";
        return Err(Refusal::invalid(format!("{place}: {problem}")));
    }
    well_formed(schema)
        .map_err(|problem| Refusal::invalid(format!("{place}: JSON schema is invalid: {problem}")))
}

/// Checks what a schema of any draft has to be: `properties` an object of schemas, `required` a list of texts.
fn well_formed(schema: &Value) -> Result<(), String> {
    const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];
    let members = match schema {
        Value::Bool(_) => return Ok(()),
        Value::Object(members) => members,
        other => return Err(format!("{other} is no schema")),
    };
    if let Some(kind) = members.get("type") {
        let kinds = kind.as_array().map_or(std::slice::from_ref(kind), Vec::as_slice);
        if !kinds.iter().all(|kind| kind.as_str().is_some_and(|kind| TYPES.contains(&kind))) {
            return Err(format!("{kind} is no type"));
        }
    }
    if let Some(properties) = members.get("properties") {
        let properties = properties.as_object().ok_or("`properties` is no object")?;
        properties.values().try_for_each(well_formed)?;
    }
    if let Some(required) = members.get("required") {
        let names = required.as_array().ok_or("`required` is no list")?;
        if !names.iter().all(Value::is_string) {
            return Err("`required` is no list of names".to_owned());
        }
    }
    members.get("items").map_or(Ok(()), well_formed)
}

/// Checks the functions of OpenAI. `inner` is where a tool has them: in `function`, or itself.
pub(super) fn of_openai(request: &Value, inner: Option<&str>) -> Result<(), Refusal> {
    for (at, tool) in request["tools"].as_array().into_iter().flatten().enumerate() {
        if tool["type"] != "function" {
            continue;
        }
        let (function, place) = match inner {
            Some(inner) => (&tool[inner], format!("tools[{at}].{inner}")),
            None => (tool, format!("tools[{at}]")),
        };
        let Some(name) = function["name"].as_str() else {
            let problem = format!("Missing required parameter: '{place}.name'.");
            return Err(Refusal::invalid(problem)
                .param(format!("{place}.name"))
                .code("missing_required_parameter"));
        };
        if !is_name(name, 64) {
            let problem = format!(
                "Invalid '{place}.name': string does not match pattern. Expected a string that matches the pattern '^[a-zA-Z0-9_-]+$'."
            );
            return Err(Refusal::invalid(problem).param(format!("{place}.name")).code("invalid_value"));
        }
        let parameters = &function["parameters"];
        if !parameters.is_null() && parameters["type"] != "object" {
            let problem = format!(
                "Invalid schema for function '{name}': schema must be a JSON Schema of 'type: \"object\"', got 'type: {}'.",
                parameters["type"]
            );
            let refused = Refusal::invalid(problem).param(format!("{place}.parameters"));
            return Err(refused.code("invalid_function_parameters"));
        }
        if let Err(problem) = well_formed(parameters)
            && !parameters.is_null()
        {
            let problem = format!("Invalid schema for function '{name}': {problem}");
            let refused = Refusal::invalid(problem).param(format!("{place}.parameters"));
            return Err(refused.code("invalid_function_parameters"));
        }
    }
    Ok(())
}
