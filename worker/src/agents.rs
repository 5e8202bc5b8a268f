//! `agents.toml`: which agents there are, and how each one's harness is set up.

mod kinds;
mod check;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use futures::future::join_all;
use harness::Harness;
use job::{Failure, FailureCode, Name};
use model::GATEWAY_VARIABLES;
use rustls::ClientConfig;
use serde::Deserialize;
use service::{Problems, TomlFile, TomlValue};
use toml::Spanned;
use toml::de::{DeTable, DeValue};
use tools::{ToolsConfig, Toolset};

use crate::calls::{AgentCalls, PROVIDER_KEYS};
pub use check::{AgentsCheck, CheckArgs};
pub use kinds::Machine;
use kinds::{Built, HarnessConfig};

/// Which agents there are, and where they work.
#[derive(Args, Clone, Debug)]
pub struct AgentArgs {
    /// Agents and their harnesses, a TOML file; without one there are `echo` and `scripted`
    #[arg(long, env = "AGENTS_FILE")]
    agents: Option<PathBuf>,
    /// Where sessions have their folders
    #[arg(long, env = "WORKSPACE_DIR", default_value = "./workspaces")]
    pub workspace_dir: PathBuf,
}

impl AgentArgs {
    /// Reads the file. What is wrong with it is noted.
    pub fn load(&self, tls: &ClientConfig, problems: &mut Problems) -> Option<Agents> {
        let machine = Machine { workspace_dir: &self.workspace_dir, tls };
        problems.check("AGENTS_FILE", Agents::load(self.agents.as_deref(), &machine))
    }

    /// Makes the folder of sessions, or notes why it cannot be.
    pub fn make_workspaces(&self, problems: &mut Problems) {
        if let Err(error) = std::fs::create_dir_all(&self.workspace_dir) {
            let folder = self.workspace_dir.display();
            problems.add(
                "WORKSPACE_DIR",
                format!("{folder} cannot be made: {error}, expected a folder to write to"),
            );
        }
    }
}

/// The agents of this worker, by name.
pub struct Agents(HashMap<Name, Agent>);

struct Agent {
    /// The name of its kind of harness.
    kind: String,
    harness: Arc<dyn Harness>,
    /// The tools of a model loop.
    tools: Option<Arc<Toolset>>,
    /// What is easily not expected of its sandbox.
    note: Option<String>,
    /// Which models its programs may call.
    calls: Option<AgentCalls>,
}

/// The agents of a worker that has no file.
const BUILT_IN: &str = "
    [agents.echo]
    harness = \"echo\"
    [agents.scripted]
    harness = \"scripted\"";

impl Agents {
    /// Reads the file and makes every agent's harness. The error lists everything that is wrong, line by line.
    pub fn load(file: Option<&Path>, machine: &Machine<'_>) -> Result<Agents, String> {
        let Some(path) = file else { return Agents::parse(BUILT_IN, machine) };
        let text = read(path)?;
        Agents::parse(&text, machine).map_err(|problem| format!("{}:{problem}", path.display()))
    }

    fn parse(text: &str, machine: &Machine<'_>) -> Result<Agents, String> {
        let mut file = TomlFile::parse(text)?;
        let agents = Agents::of(&mut file, machine);
        file.finish(agents)
    }

    /// Makes what can be made of a file, and returns what is wrong with the rest.
    fn examine(text: &str, machine: &Machine<'_>) -> (Agents, Vec<String>) {
        match TomlFile::parse(text) {
            Ok(mut file) => (Agents::of(&mut file, machine), file.problems()),
            Err(problems) => {
                let lines = problems.lines().map(str::trim).filter(|line| !line.is_empty());
                (Agents(HashMap::new()), lines.map(str::to_owned).collect())
            }
        }
    }

    /// Makes the agents of a file. What is wrong is noted in it.
    fn of(file: &mut TomlFile<'_>, machine: &Machine<'_>) -> Agents {
        // The values of these may be secrets.
        file.hide(&["env", "headers"]);
        file.only(&["agents"]);
        let mut agents = HashMap::new();
        for (name, table) in file.tables("agents") {
            let place = format!("agents.{name}");
            let name = name.parse::<Name>().map_err(|problem| file.note(&place, &table, "", problem));
            if let (Ok(name), Some(agent)) = (name, agent(file, &place, &table, machine)) {
                agents.insert(name, agent);
            }
        }
        Agents(agents)
    }

    /// Returns what each agent that may call models may call.
    pub fn all_calls(&self) -> impl Iterator<Item = (&Name, &AgentCalls)> {
        self.0.iter().filter_map(|(name, agent)| Some((name, agent.calls.as_ref()?)))
    }

    /// Returns the names of all agents, in no order.
    pub fn names(&self) -> impl Iterator<Item = &Name> {
        self.0.keys()
    }

    /// Ends the servers of tools that live as long as the worker.
    pub async fn close(&self) {
        join_all(self.0.values().filter_map(|agent| Some(agent.tools.as_ref()?.close()))).await;
    }

    /// Returns which models the agent may call, if it may call any.
    pub fn calls(&self, name: &Name) -> Option<&AgentCalls> {
        self.0.get(name)?.calls.as_ref()
    }

    /// Returns the agent's harness, or the failure of a job that asks for an unknown agent.
    pub fn get(&self, name: &Name) -> Result<&Arc<dyn Harness>, Failure> {
        self.0.get(name).map(|agent| &agent.harness).ok_or_else(|| {
            let problem = format!("agent_id: got \"{name}\", expected an agent of this pool's workers");
            Failure::permanent(FailureCode::UnknownAgent, problem)
        })
    }
}

/// Makes an agent of its table, or notes what is wrong with the table.
fn agent<'i>(
    file: &mut TomlFile<'i>,
    place: &str,
    table: &TomlValue<'i>,
    machine: &Machine<'_>,
) -> Option<Agent> {
    let mut settings = table.clone();
    let DeValue::Table(entries) = settings.get_mut() else { return None };
    let mut calls = DeTable::new();
    for key in AgentCalls::KEYS {
        calls.extend(entries.remove_entry(key));
    }
    let calls = if calls.is_empty() {
        None
    } else {
        let calls = Spanned::new(table.span(), DeValue::Table(calls));
        Some(file.read(place, calls, AgentCalls::deserialize)?)
    };
    let (kind, built) = harness(file, place, table, settings, (calls.as_ref(), machine))?;
    let Built { harness, tools, note } = built;
    let calls = calls.map(|calls| calls.made_by_loop(tools.is_some()));
    Some(Agent { kind, harness, tools, note, calls })
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path)
        .map_err(|error| format!("{} cannot be read: {error}, expected a TOML file", path.display()))
}

/// Makes the harness of an agent's table, with its name, or notes what is wrong with the table.
fn harness<'i>(
    file: &mut TomlFile<'i>,
    place: &str,
    table: &TomlValue<'i>,
    mut settings: TomlValue<'i>,
    (calls, machine): (Option<&AgentCalls>, &Machine<'_>),
) -> Option<(String, Built)> {
    let DeValue::Table(entries) = settings.get_mut() else { return None };
    let name = entries.remove("harness").map(Spanned::into_inner);
    let got = match &name {
        Some(DeValue::String(name)) => format!("got \"{name}\""),
        Some(_) => "got no text".to_owned(),
        None => "missing".to_owned(),
    };
    let name = match name {
        Some(DeValue::String(name)) if HarnessConfig::NAMES.contains(&name.as_ref()) => name,
        _ => {
            let expected = HarnessConfig::NAMES.join(", ");
            file.note(place, table, "harness", format!("{got}, expected one of {expected}"));
            return None;
        }
    };
    let config = if name == "agent" {
        // Tools are settings of another crate.
        let mut tools = DeTable::new();
        if let DeValue::Table(entries) = settings.get_mut() {
            ToolsConfig::KEYS.iter().for_each(|key| tools.extend(entries.remove_entry(*key)));
        }
        let tools = Spanned::new(table.span(), DeValue::Table(tools));
        let tools = file.read(place, tools, ToolsConfig::deserialize)?;
        let config = file.read(place, settings, |settings| HarnessConfig::read(&name, settings))?;
        config.with_tools(tools)
    } else {
        file.read(place, settings, |settings| HarnessConfig::read(&name, settings))?
    };
    if calls.is_some() {
        let variables: Vec<&str> = GATEWAY_VARIABLES.into_iter().chain(PROVIDER_KEYS).collect();
        for setting in config.naming(&variables) {
            let problem = "it is set for each run of an agent with `models`, expected another name";
            file.note(place, table, &setting, problem);
        }
    }
    let built = config.build(calls, machine);
    built
        .map_err(|errors| {
            errors.iter().for_each(|error| file.note(place, table, &error.setting, &error.problem));
        })
        .ok()
        .map(|built| (name.into_owned(), built))
}

impl fmt::Debug for Agents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tls() -> ClientConfig {
        service::Authorities::default().rustls().unwrap()
    }

    fn machine(tls: &ClientConfig) -> Machine<'_> {
        Machine { workspace_dir: Path::new("/nonexistent"), tls }
    }

    fn parse(text: &str) -> Result<Agents, String> {
        Agents::parse(text, &machine(&tls()))
    }

    #[test]
    fn every_mistake_is_named_with_its_line() {
        let text = "
            [agents.good]
            harness = \"echo\"
            [agents.typo]
            harness = \"ecko\"
            [agents.none]
            command = [\"true\"]
            [agents.loud]
            harness = \"echo\"
            volume = 11
            [agents.\"a b\"]
            harness = \"echo\"
            [agents.wrong]
            harness = \"command\"
            command = [\"/no/such/program\"]
            timeout = 5
            timeout_ms = 0
            idle_timeout_ms = \"1\"
            env_allow = [\"DATABASE_URL\",
                \"A=B\"]
            [agent]";
        let error = parse(text).unwrap_err();
        let said: Vec<&str> = error.lines().skip(1).map(str::trim).collect();
        for (at, start) in [
            "line 5: agents.typo.harness: got \"ecko\", expected one of echo, scripted, command, http, agent",
            "line 6: agents.none.harness: missing, expected one of echo, scripted, command, http, agent",
            "line 10: agents.loud.volume: unknown `volume`, there are no fields",
            "line 11: agents.a b: got \"a b\", expected 1 to 128 characters",
            "line 16: agents.wrong.timeout: unknown `timeout`, expected one of `command`, `env_allow`",
            "line 17: agents.wrong.timeout_ms: got 0, expected 1 to 604800000",
            "line 18: agents.wrong.idle_timeout_ms: invalid type: string \"1\", expected a whole number",
            "line 19: agents.wrong.env_allow[0]: got DATABASE_URL, a secret of the worker's",
            "line 20: agents.wrong.env_allow[1]: got \"A=B\", expected a name",
            "line 21: agent: unknown, expected agents",
        ]
        .into_iter()
        .enumerate()
        {
            assert!(said[at].starts_with(start), "{start} is not {:?} in {error}", said.get(at));
        }
        assert_eq!(said.len(), 10, "{error}");
    }

    #[test]
    fn no_value_of_a_program_s_environment_is_shown() {
        for (env, said) in [
            ("env = 'TOKEN=hunter2 expected'", "agents.a.env: expected a table"),
            ("env = ['TOKEN=hunter2']", "agents.a.env: expected a table"),
            ("env.TOKEN = 4711_4711", "agents.a.env.TOKEN: expected a string"),
            ("env = { TOKEN = ['hunter2'] }", "agents.a.env.TOKEN: expected a string"),
            ("env.TOKEN.hunter = 'hunter2'", "agents.a.env.TOKEN: expected a string"),
            ("env.TOKEN = hunter2", ""),
            ("env.TOKEN = 'hunter2", ""),
            ("env.TOKEN = \"\\hunter2\"", ""),
            ("env.TOKEN = 'hunter2\\u0000'\nenv_allow = 1", "agents.a.env_allow: invalid type: integer `1`"),
            ("env.TOKEN = \"hunter2\\u0000\"", "agents.a.env: "),
        ] {
            let error =
                parse(&format!("[agents.a]\nharness = 'command'\ncommand = ['true']\n{env}")).unwrap_err();
            assert!(
                error.contains(&format!("line {}: {said}", 4 + env.matches('\n').count())),
                "{env}: {error}"
            );
            assert!(!error.contains("hunter2") && !error.contains("4711"), "{env}: {error}");
        }
    }

    #[test]
    fn without_a_file_there_are_echo_and_scripted() {
        let agents = Agents::load(None, &machine(&tls())).unwrap();
        assert!(agents.get(&"echo".parse().unwrap()).is_ok());
        assert!(agents.get(&"scripted".parse().unwrap()).is_ok());
        assert!(agents.get(&"other".parse().unwrap()).is_err());
    }

    #[test]
    fn an_empty_file_says_what_it_lacks() {
        assert!(parse("").unwrap_err().contains("agents"));
        assert!(parse("[agents]").unwrap_err().contains("[agents.NAME]"));
    }
}
