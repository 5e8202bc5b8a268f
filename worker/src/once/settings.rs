//! The arguments of `worker run`.

use std::fmt;
use std::io::Read;
use std::sync::Arc;

use clap::Args;
use harness::Harness;
use job::{JobId, Json, Name, Usd};
use model::GatewaySettings;
use rustls::ClientConfig;
use service::{Problems, Setting};

use crate::agents::{AgentArgs, Agents};
use crate::calls::{AgentCalls, CallArgs, Limit};

/// Run one job of an agent here, on the terminal
///
/// It needs neither RabbitMQ nor Postgres nor a worker, and leaves nothing behind but the
/// session's folder below --workspace-dir. The agent is that of agents.toml, and runs as a worker
/// runs it:
///
///   worker run --agents agents.toml --agent helper --max-cost-usd 0.25 --input 'Where is order 7?'
///   worker run --agent echo --input '{"any": "JSON"}'
///   git diff | worker run --agents agents.toml --agent reviewer --input - --json
///
/// What the model says goes to stdout as it comes. Calls of tools, their results, and at the end
/// what it has cost go to stderr, as warnings of the log do (all of it with --log-level debug).
/// What the agent asks a person is asked on this terminal. What a run spends counts in no budget
/// of the fleet.
///
/// Ctrl-C stops the run and its programs. A second one ends the process at once.
///
/// Exit codes: 0 it succeeded, 1 it failed (stderr has the code and the message), 2 wrong
/// arguments, 130 interrupted.
#[derive(Args, Clone, Debug)]
#[command(verbatim_doc_comment)]
pub struct RunArgs {
    /// The agent, as named in agents.toml
    #[arg(long)]
    agent: Setting<Name>,
    /// The job's input: JSON, or else a text as it is; @FILE reads it from a file, and - from stdin
    #[arg(long, allow_hyphen_values = true)]
    input: String,
    /// Print nothing but the result, as one JSON object
    #[arg(long)]
    json: bool,
    /// Dollars that its model calls may cost; lower limits of agents.toml stay
    #[arg(long, value_name = "DOLLARS")]
    max_cost_usd: Option<Setting<Usd>>,
    /// Answers that its model loop may have; lower limits of agents.toml stay
    #[arg(long)]
    max_iterations: Option<Setting<u32>>,
    /// Tokens that its model loop may read and write; lower limits of agents.toml stay
    #[arg(long)]
    max_tokens: Option<Setting<u64>>,
    /// The session's name, and so that of its folder; a fresh one unless given. Only the files are kept
    #[arg(long)]
    session: Option<Setting<Name>>,
    #[command(flatten)]
    agents: AgentArgs,
    #[command(flatten)]
    calls: CallArgs,
}

/// Arguments that have been checked.
pub struct Once {
    pub job_id: JobId,
    pub agent: Name,
    pub session: Name,
    pub input: Json,
    pub json: bool,
    pub harness: Arc<dyn Harness>,
    /// Which models it may call, if any.
    pub calls: Option<AgentCalls>,
    pub gateway: Option<GatewaySettings>,
    pub max_iterations: Option<u32>,
    pub max_tokens: Option<u64>,
    /// What its calls may cost.
    pub limit: Option<Limit>,
}

impl fmt::Debug for Once {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Once").field("agent", &self.agent).finish_non_exhaustive()
    }
}

impl RunArgs {
    /// Checks the arguments. What is wrong is noted.
    pub fn check(self, tls: ClientConfig, problems: &mut Problems) -> Option<Once> {
        let agents = self.agents.load(&tls, problems);
        let agent = problems.take("--agent", self.agent);
        let known = agents.as_ref().zip(agent.as_ref()).and_then(|(agents, agent)| {
            let harness = agents.get(agent).map_err(|_| unknown(agent, agents));
            problems.check("--agent", harness).cloned()
        });
        let calls = agents.as_ref().zip(agent.as_ref());
        let calls = calls.and_then(|(agents, agent)| agents.calls(agent)).cloned();
        let settings = self.calls.check(calls.iter(), tls, problems);
        let most = self.max_cost_usd.map(|limit| problems.take("--max-cost-usd", limit));
        let count = self.max_iterations.map(|most| problems.within("--max-iterations", most, 1..=u32::MAX));
        let tokens = self.max_tokens.map(|most| problems.within("--max-tokens", most, 1..=u64::MAX));
        let job_id = JobId::now();
        let own = || job_id.to_string().parse().ok();
        let session = self.session.map_or_else(own, |name| problems.take("--session", name));
        let input = problems.check("--input", read_input(&self.input));
        self.agents.make_workspaces(problems);
        if problems.count() > 0 {
            return None;
        }
        let settings = settings?;
        let limit = calls.as_ref().and_then(|calls| lowest(most.flatten(), calls, settings.fleet()));
        Some(Once {
            job_id,
            agent: agent?,
            session: session?,
            input: input?,
            json: self.json,
            harness: known?,
            calls,
            gateway: settings.gateway(),
            max_iterations: count.flatten(),
            max_tokens: tokens.flatten(),
            limit,
        })
    }
}

fn unknown(agent: &Name, agents: &Agents) -> String {
    let mut names: Vec<&str> = agents.names().map(Name::as_str).collect();
    names.sort_unstable();
    format!("got \"{agent}\", expected one of the file's agents: {}", names.join(", "))
}

/// Returns the lowest limit. What the fleet has spent is not known here, but one run may not spend more than all
/// of it.
fn lowest(own: Option<Usd>, calls: &AgentCalls, [daily, monthly]: [Option<Usd>; 2]) -> Option<Limit> {
    let named = [
        ("--max-cost-usd", own),
        ("the agent's max_cost_usd", calls.max_cost_usd),
        ("the agent's budget_daily", calls.budget_daily),
        ("the agent's budget_monthly", calls.budget_monthly),
        ("BUDGET_DAILY", daily),
        ("BUDGET_MONTHLY", monthly),
    ];
    let limits = named.into_iter().filter_map(|(name, most)| Some(Limit { name, most: most? }));
    limits.min_by_key(|limit| limit.most)
}

/// Reads the input from where the argument says.
fn read_input(argument: &str) -> Result<Json, String> {
    let text = match (argument, argument.strip_prefix('@')) {
        ("-", _) => {
            let mut text = String::new();
            let read = std::io::stdin().lock().read_to_string(&mut text);
            read.map(|_| text).map_err(|error| format!("stdin cannot be read: {error}"))?
        }
        (_, Some(path)) => std::fs::read_to_string(path)
            .map_err(|error| format!("{path} cannot be read: {error}, expected a file behind @"))?,
        (text, None) => text.to_owned(),
    };
    json_or_text(text.trim_end_matches(['\r', '\n']))
}

/// Takes JSON as it is, and any other text as a string. A text that only looks like an object is more likely a
/// mistake.
pub fn json_or_text(text: &str) -> Result<Json, String> {
    match Json::parse(text) {
        Ok(json) => Ok(json),
        Err(error) if text.trim_start().starts_with('{') => {
            Err(format!("{error}, expected JSON, because it begins with {{"))
        }
        Err(_) => Json::from_value(&text).map_err(|error| format!("{error}, expected JSON or a text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_is_json_or_else_a_text() {
        for (text, json) in [
            (r#"{"n": 1e5}"#, r#"{"n": 1e5}"#),
            ("7", "7"),
            ("Where is order 7?", r#""Where is order 7?""#),
            ("[see below]", r#""[see below]""#),
            ("", r#""""#),
        ] {
            assert_eq!(json_or_text(text).expect(text).as_str(), json);
        }
        assert!(json_or_text("{broken").unwrap_err().contains("expected JSON"));
        assert!(json_or_text(r#"{"n": "\u0000"}"#).unwrap_err().contains("u0000"));
        assert!(read_input("@/no/such/file").unwrap_err().contains("/no/such/file cannot be read"));
    }

    #[test]
    fn the_lowest_limit_holds() {
        let calls: AgentCalls = toml::from_str("models = ['m']\nmax_cost_usd = '0.5'").expect("a table");
        let usd = |text: &str| text.parse::<Usd>().ok();
        let of = |own, fleet| lowest(own, &calls, fleet).map(|limit| (limit.name, limit.most));
        assert_eq!(of(None, [None; 2]), usd("0.5").map(|most| ("the agent's max_cost_usd", most)));
        assert_eq!(of(usd("0.7"), [None; 2]).map(|(name, _)| name), Some("the agent's max_cost_usd"));
        assert_eq!(of(usd("0.2"), [None; 2]).map(|(name, _)| name), Some("--max-cost-usd"));
        assert_eq!(of(usd("0.2"), [usd("0.1"), None]).map(|(name, _)| name), Some("BUDGET_DAILY"));
    }
}
