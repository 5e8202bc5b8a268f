//! `worker agents check`: tries what a file of agents says, without RabbitMQ, Postgres or a call of a model.

use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use clap::Args;
use job::{Name, Usd, shown};
use model::{Attempt as Opening, Gateway, GatewaySettings, Opened, Prices};
use rustls::ClientConfig;
use service::{Problems, out};
use tokio_util::sync::CancellationToken;
use tools::{Kernel, Place, ServerCheck, Tool, Toolset};

use super::{Agent, Agents, Machine};
use crate::calls::{Accounts, AgentCalls, Limit, missing_key, prices};

/// Check a file of agents
///
/// Checks settings, programs, schemas and sandboxes as a worker does at its start, and that every
/// model has a price. MCP servers are started, asked for their tools and ended. No model is called:
/// the gateway that a server is given leads to none.
/// One line for each agent, model, tool and server says `ok`, or `wrong` and what would be right:
///
///   worker agents check agents.toml
///   worker agents check agents.toml --offline
///
/// Exit codes: 0 all is well, 1 something is wrong, 2 wrong arguments (such as a file that cannot
/// be read).
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct CheckArgs {
    /// Agents and their harnesses, a TOML file
    #[arg(env = "AGENTS_FILE")]
    file: PathBuf,
    /// Start no MCP server
    #[arg(long)]
    offline: bool,
    /// Prices of models, a TOML file; its rows add to those that are built in, and replace those of the same model and day
    #[arg(long, env = "PRICES_FILE")]
    prices: Option<PathBuf>,
}

/// A check that can begin.
#[derive(Debug)]
pub struct AgentsCheck {
    agents: Agents,
    /// What is wrong with the file's settings.
    wrong: Vec<String>,
    offline: bool,
    prices: Prices,
    tls: ClientConfig,
}

impl CheckArgs {
    /// Reads the files. What cannot be read is noted.
    pub fn check(self, tls: ClientConfig, problems: &mut Problems) -> Option<AgentsCheck> {
        let text = problems.check("FILE", super::read(&self.file));
        let prices = problems.check("PRICES_FILE", prices(self.prices.as_deref()));
        // No job runs, so no session has a folder.
        let machine = Machine { workspace_dir: Path::new("."), tls: &tls };
        if problems.count() > 0 {
            return None;
        }
        let (agents, wrong) = Agents::examine(&text?, &machine);
        Some(AgentsCheck { agents, wrong, offline: self.offline, prices: prices?, tls })
    }
}

impl AgentsCheck {
    /// Checks what needs more than the file, and prints what was found. The exit code is 1 if something is wrong.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<ExitCode> {
        let mut findings = Findings::default();
        let gateway = self.gateway().await?;
        findings.note("this machine", sandboxes(&Kernel::of_this_machine()));
        for problem in &self.wrong {
            findings.wrong("file", problem);
        }
        let mut names: Vec<&Name> = self.agents.names().collect();
        names.sort_unstable_by_key(|name| name.as_str());
        for name in names {
            let Some(agent) = self.agents.0.get(name) else { continue };
            let place = format!("agents.{name}");
            findings.ok(&place, format!("harness {}", agent.kind));
            if let Some(note) = &agent.note {
                findings.note(&format!("{place}.sandbox"), note);
            }
            self.models(agent, &place, &mut findings);
            if let Some(tools) = &agent.tools {
                let opened = agent.calls.as_ref().map(|calls| closed(&gateway, calls)).transpose()?;
                let checked = self.tools(tools, opened.as_ref(), &place, &mut findings);
                service::unless_stopped(&stop, checked).await?;
            }
        }
        gateway.stop().await;
        Ok(findings.exit_code())
    }

    /// Starts a gateway that leads to no provider: a server may need one to start.
    async fn gateway(&self) -> Result<Gateway, model::GatewayError> {
        let settings = GatewaySettings {
            addr: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            anthropic: None,
            openai: None,
            tls: self.tls.clone(),
            prices: self.prices.clone(),
            usage_drain: Duration::ZERO,
            wait: Duration::ZERO,
            most_calls: 1,
        };
        Gateway::start(settings).await
    }

    fn models(&self, agent: &Agent, place: &str, findings: &mut Findings) {
        let models = agent.calls.iter().flat_map(|calls| &calls.models);
        for (at, model) in models.enumerate() {
            let place = format!("{place}.models[{at}]");
            match self.prices.find(model, Utc::now().date_naive()) {
                Ok(price) => {
                    findings.ok(&place, format!("{model}, billed by {}", price.provider.name()));
                    // The file is right without the key, and a worker does not start without it.
                    if let Some(setting) = missing_key(price.provider) {
                        findings.note(&place, format!("{setting} is not set here; a worker needs it"));
                    }
                }
                Err(unpriced) => findings.wrong(&place, unpriced),
            }
        }
    }

    async fn tools(
        &self,
        tools: &Toolset,
        gateway: Option<&Opened>,
        place: &str,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        for tool in tools.own_tools() {
            findings.ok(&format!("{place}: tool {}", tool.name), described(&tool));
        }
        if self.offline {
            for server in tools.server_names() {
                findings.note(&format!("{place}.mcp.{server}"), "not started (--offline)");
            }
            return Ok(());
        }
        let folder = tempfile::tempdir()?;
        let variables = gateway.map(Opened::environment).into_iter().flatten();
        let here = Place {
            workspace: folder.path().to_owned(),
            env: variables.map(|(name, value)| (name.into(), value.into())).collect(),
            port: gateway.map(Opened::port),
            resumed: false,
            redaction: Arc::default(),
        };
        for ServerCheck { server, found } in tools.check(&here).await {
            let place = format!("{place}.mcp.{server}");
            match found {
                Ok((tools, left_out)) => {
                    findings.ok(&place, format!("{} tools", tools.len()));
                    for tool in &tools {
                        findings.ok(&format!("{place}: tool {}", tool.name), described(tool));
                    }
                    for problem in left_out {
                        findings
                            .wrong(&place, format!("{problem}; `allow` can name the tools that are used"));
                    }
                }
                Err(problem) => findings
                    .wrong(&place, format!("{problem}; expected a server that starts and lists its tools")),
            }
        }
        Ok(())
    }
}

/// Opens the gateway for an agent that may spend nothing.
fn closed(gateway: &Gateway, calls: &AgentCalls) -> anyhow::Result<Opened> {
    let nothing = Limit { name: "worker agents check", most: Usd::ZERO };
    Ok(gateway.open(Opening {
        ledger: Arc::new(Accounts::new(Some(nothing), false)),
        models: calls.models.clone(),
        degrades: false,
        fit: None,
        caps: calls.caps(),
    })?)
}

fn sandboxes(kernel: &Kernel) -> String {
    match &kernel.lacks[..] {
        [] => "its kernel keeps all that a sandbox can ask for".to_owned(),
        lacks => format!("its kernel has no {}; best_effort goes without", lacks.join(", no ")),
    }
}

fn described(tool: &Tool) -> String {
    let yes = |is: bool, what: &'static str| is.then_some(what);
    let repeat = if tool.repeat == tools::Repeat::Safe { "safe to repeat" } else { "not repeated" };
    let words =
        [Some(repeat), yes(tool.side_by_side, "side by side"), yes(tool.approve, "a person approves")];
    words.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// Prints what was found, and remembers whether anything is wrong.
#[derive(Default)]
struct Findings {
    is_wrong: bool,
}

impl Findings {
    fn ok(&self, place: &str, what: impl Display) {
        self.line("ok", place, what);
    }

    fn note(&self, place: &str, what: impl Display) {
        self.line("note", place, what);
    }

    fn wrong(&mut self, place: &str, problem: impl Display) {
        self.is_wrong = true;
        self.line("wrong", place, problem);
    }

    /// Names and problems may come from a server.
    fn line(&self, word: &str, place: &str, what: impl Display) {
        out!("{word:5} {}: {}", shown(place), shown(&what.to_string()));
    }

    fn exit_code(&self) -> ExitCode {
        if self.is_wrong { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}
