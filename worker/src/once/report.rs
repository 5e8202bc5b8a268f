//! The end of a run: its result on stdout, and on stderr what it has cost.

use std::process::ExitCode;
use std::time::Duration;

use harness::{Session, Usage};
use job::{Failure, Json, Usd, one_line, shown, shown_lines};
use serde::Serialize;
use service::{note, out};

use super::journal::Shown;
use super::{End, Once};
use crate::calls::Total;

pub struct Report<'a> {
    pub once: &'a Once,
    pub end: End,
    pub session: Session,
    /// What its calls have cost. Without any, the harness itself says what it has used.
    pub costs: Option<Total>,
    pub took: Duration,
}

/// The result as JSON, with the names of a job's result.
#[derive(Serialize)]
struct ResultObject<'a> {
    agent_id: &'a str,
    session_id: &'a str,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<&'a Json>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<&'a Failure>,
    iterations: u64,
    cost_usd: Usd,
    /// How much of that is not known, and counted in full.
    #[serde(skip_serializing_if = "is_zero")]
    unknown_cost_usd: Usd,
    input_tokens: u64,
    output_tokens: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(amount: &Usd) -> bool {
    *amount == Usd::ZERO
}

impl Report<'_> {
    /// Prints it. Returns the exit code.
    pub fn print(self, shown: &Shown) -> ExitCode {
        if self.once.json {
            self.print_json();
        } else {
            self.print_text(shown);
        }
        match self.end {
            End::Succeeded(_) => ExitCode::SUCCESS,
            End::Failed(_) => ExitCode::FAILURE,
            End::Interrupted => ExitCode::from(130),
        }
    }

    fn used(&self) -> Total {
        self.costs.unwrap_or(Total { used: self.session.usage, unknown: Usd::ZERO })
    }

    fn state(&self) -> &'static str {
        match self.end {
            End::Succeeded(_) => "succeeded",
            End::Failed(_) => "failed",
            End::Interrupted => "cancelled",
        }
    }

    fn print_json(&self) {
        let Total { used, unknown } = self.used();
        let (output, failure) = match &self.end {
            End::Succeeded(output) => (Some(output), None),
            End::Failed(failure) => (None, Some(failure)),
            End::Interrupted => (None, None),
        };
        let object = ResultObject {
            agent_id: self.once.agent.as_str(),
            session_id: self.once.session.as_str(),
            state: self.state(),
            output,
            failure,
            iterations: self.session.iteration_count,
            cost_usd: used.cost,
            unknown_cost_usd: unknown,
            input_tokens: used.input_tokens,
            output_tokens: used.output_tokens,
        };
        out!("{}", one_line(serde_json::to_string(&object).expect("it has only string keys")));
    }

    fn print_text(&self, streamed: &Shown) {
        streamed.end_line();
        match &self.end {
            End::Succeeded(output) => {
                let text = serde_json::from_str::<String>(output.as_str());
                let text = text.unwrap_or_else(|_| output.as_str().to_owned());
                if streamed.last_text().trim() != text.trim() {
                    out!("{}", if streamed.is_terminal() { shown_lines(&text) } else { text.into() });
                }
            }
            End::Failed(failure) => note!("{}: {}", failure.code, shown(&failure.message)),
            End::Interrupted => {}
        }
        let Total { used: Usage { cost, input_tokens, output_tokens }, unknown } = self.used();
        let iterations = self.session.iteration_count;
        let unknown = match unknown {
            Usd::ZERO => String::new(),
            unknown => format!(", of which {unknown} is not known and counted in full"),
        };
        note!(
            "{} in {:.1} s: {iterations} iterations, {input_tokens} tokens read, {output_tokens} written, \
             {cost}{unknown}",
            self.state(),
            self.took.as_secs_f64()
        );
    }
}
