//! `agents.toml`: which agents there are, and how each one's harness is set up.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use harness::{Harness, HarnessConfig};
use job::Name;
use serde::Deserialize;

/// The agents of this worker, by name.
pub struct Agents(HashMap<Name, Arc<dyn Harness>>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    agents: BTreeMap<Name, toml::Table>,
}

/// What one has without a file.
const BUILT_IN: &str = "
    [agents.echo]
    harness = \"echo\"
    [agents.scripted]
    harness = \"scripted\"";

impl Agents {
    /// Reads the file and makes every agent's harness. The error tells all that is wrong, agent by agent.
    pub fn load(file: Option<&Path>, workspace_dir: &Path) -> Result<Agents, String> {
        let Some(path) = file else { return Agents::parse(BUILT_IN, workspace_dir) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{} cannot be read: {error}, expected a TOML file", path.display()))?;
        Agents::parse(&text, workspace_dir).map_err(|problem| format!("{}: {problem}", path.display()))
    }

    fn parse(text: &str, workspace_dir: &Path) -> Result<Agents, String> {
        let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
        let mut agents = HashMap::new();
        let mut problems = Vec::new();
        for (name, table) in file.agents {
            let built = HarnessConfig::deserialize(table)
                .map_err(|error| error.to_string().trim_end().to_owned())
                .and_then(|config| config.build(workspace_dir).map_err(|error| error.to_string()));
            match built {
                Ok(harness) => drop(agents.insert(name, harness)),
                Err(problem) => problems.push(format!("agents.{name}: {problem}")),
            }
        }
        if agents.is_empty() && problems.is_empty() {
            problems.push("no agent in it, expected at least one table [agents.NAME]".to_owned());
        }
        if problems.is_empty() { Ok(Agents(agents)) } else { Err(problems.join("; ")) }
    }

    /// The harness of an agent.
    pub fn get(&self, name: &Name) -> Option<Arc<dyn Harness>> {
        self.0.get(name).cloned()
    }
}

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Agents, String> {
        Agents::parse(text, Path::new("/nonexistent"))
    }

    #[test]
    fn every_wrong_agent_is_named() {
        let text = "
            [agents.good]
            harness = \"echo\"
            [agents.typo]
            harness = \"ecko\"
            [agents.missing]
            harness = \"command\"
            command = [\"/no/such/program\"]";
        let error = parse(text).unwrap_err();
        assert!(error.contains("agents.typo") && error.contains("agents.missing"), "{error}");
        assert!(!error.contains("agents.good"), "{error}");
    }

    #[test]
    fn without_a_file_there_are_echo_and_scripted() {
        let agents = Agents::load(None, Path::new("/nonexistent")).unwrap();
        assert!(agents.get(&"echo".parse().unwrap()).is_some());
        assert!(agents.get(&"scripted".parse().unwrap()).is_some());
        assert!(agents.get(&"other".parse().unwrap()).is_none());
    }

    #[test]
    fn an_empty_file_says_what_it_lacks() {
        assert!(parse("").unwrap_err().contains("agents"));
        assert!(parse("[agents]").unwrap_err().contains("[agents.NAME]"));
    }
}
