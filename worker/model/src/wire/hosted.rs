//! Tools that the provider runs: which of them a request may bring, and how often they can be called.
//!
//! One passes if its cost has a bound: there is a price for each of its calls, the request limits the calls, and the agent's
//! settings allow as many. That holds for searches in the web and in files that the provider keeps.
//!
//! It does not hold for code. Anthropic bills the hours of the container (with five minutes at least, after some that are
//! free), OpenAI its minutes by its memory. No field of a request limits that time, and no answer reports it. OpenAI also
//! makes a container where the model calls no tool.
//!
//! Sources: platform.claude.com/docs/en/about-claude/pricing (tools) and …/agents-and-tools/tool-use/code-execution-tool;
//! developers.openai.com/api/docs/pricing (tools) and `max_tool_calls` of responses/create, as of October 2026.

use job::Usd;

use super::Refused;
use crate::prices::{Price, Unpriced};

/// How many calls of a hosted tool an agent allows in one model call. Zero refuses the tool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostedCaps {
    /// The most searches in the web; the request must name a limit that is not above it.
    pub web_search: u64,
    /// The most searches in files that are kept at the provider, likewise.
    pub file_search: u64,
}

/// A tool that may have a cap.
#[derive(Clone, Copy, Debug)]
pub(super) struct Capped {
    /// As the price table names it.
    pub name: &'static str,
    /// The key of the agent's settings.
    setting: &'static str,
    /// The cap.
    most: u64,
}

/// The calls of hosted tools that a request allows.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosted {
    /// How many, of all tools together.
    pub calls: u64,
    /// The tools, as the price table names them.
    pub tools: Vec<&'static str>,
}

impl HostedCaps {
    pub(super) fn web_search(self) -> Capped {
        Capped { name: "web_search", setting: "web_searches_per_call", most: self.web_search }
    }

    pub(super) fn file_search(self) -> Capped {
        Capped { name: "file_search", setting: "file_searches_per_call", most: self.file_search }
    }
}

impl Capped {
    /// Returns how many calls a request allows whose `field` limits them to `given`, if the cap allows as many.
    pub fn allowed(self, kind: &str, field: &str, given: Option<u64>) -> Result<u64, Refused> {
        let Capped { setting, most, .. } = self;
        if most == 0 {
            let problem = format!(
                "`{kind}` runs at the provider: it needs a cap per call in the agent's settings, `{setting}`"
            );
            return Err(Refused::new("tools", problem));
        }
        let problem =
            || format!("`{kind}` needs `{field}` of at most {most}, which is the agent's `{setting}`");
        given.filter(|given| *given <= most).ok_or_else(|| Refused::new("tools", problem()))
    }
}

impl Hosted {
    /// Returns the most that the calls can cost beside their tokens: all may be of the dearest tool.
    pub fn fee(&self, price: &Price) -> Result<Usd, Unpriced> {
        let fees = self.tools.iter().map(|tool| price.fee(tool, self.calls));
        fees.into_iter().try_fold(Usd::ZERO, |most, fee| Ok(most.max(fee?)))
    }
}

/// Returns why a tool that can have no cap is refused.
pub(super) fn unbounded(kind: &str) -> Refused {
    let runs_code = ["code_execution", "code_interpreter", "shell"].iter().any(|name| kind.starts_with(name));
    let problem = if runs_code {
        format!(
            "`{kind}` is billed by the time for which its container runs, and no field of a request limits that: it is not \
             passed on. Let the program run code itself, by a tool of its own"
        )
    } else {
        format!("`{kind}` runs at the provider, and what it costs has no bound: it is not passed on")
    };
    Refused::new("tools", problem)
}
