//! Sessions and deltas as they are kept: what is patched as one JSON text, and the context's entries as another, so that
//! keeping them needs no look into an entry.

use job::Json;
use serde::Deserialize;

use super::{Delta, Session};

/// A list of entries.
#[derive(Deserialize)]
#[serde(transparent)]
struct Entries(#[serde(deserialize_with = "job::verbatim_list")] Vec<Json>);

/// Writes entries as a JSON array.
fn list(entries: &[Json]) -> String {
    let bytes: usize = entries.iter().map(|entry| entry.as_str().len() + 1).sum();
    let mut text = String::with_capacity(bytes + 2);
    for entry in entries {
        text.push(if text.is_empty() { '[' } else { ',' });
        text.push_str(entry.as_str());
    }
    text.push_str(if entries.is_empty() { "[]" } else { "]" });
    text
}

impl Delta {
    /// Returns the delta without its entries, as JSON; and the entries as a JSON array, if it has any.
    pub fn to_kept(&self) -> serde_json::Result<(String, Option<String>)> {
        let patches = Delta {
            memory: self.memory.clone(),
            context_window: Vec::new(),
            replace_context: self.replace_context,
            feature_progress: self.feature_progress.clone(),
            iterations: self.iterations,
            usage: self.usage,
        };
        let entries = (!self.context_window.is_empty()).then(|| list(&self.context_window));
        Ok((serde_json::to_string(&patches)?, entries))
    }

    /// Reads a delta. Its entries are in `entries`, or in `delta` itself.
    pub fn of_kept(delta: &str, entries: Option<&str>) -> serde_json::Result<Delta> {
        let mut delta: Delta = serde_json::from_str(delta)?;
        if let Some(entries) = entries {
            let Entries(entries) = serde_json::from_str(entries)?;
            delta.context_window.extend(entries);
        }
        Ok(delta)
    }
}

impl Session {
    /// Returns memory, context and progress, each as JSON.
    pub fn to_kept(&self) -> serde_json::Result<[String; 3]> {
        let context = list(&self.context_window);
        Ok([serde_json::to_string(&self.memory)?, context, serde_json::to_string(&self.feature_progress)?])
    }

    /// Reads memory, context and progress. What was used is not among them.
    pub fn of_kept([memory, context, progress]: [&str; 3]) -> serde_json::Result<Session> {
        let Entries(context_window) = serde_json::from_str(context)?;
        Ok(Session {
            memory: serde_json::from_str(memory)?,
            context_window,
            feature_progress: serde_json::from_str(progress)?,
            ..Session::default()
        })
    }
}
