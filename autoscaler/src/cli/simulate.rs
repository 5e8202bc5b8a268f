//! `autoscaler simulate`: plays a trace through the decisions of one policy, or of two.

mod model;
mod policy;
mod trace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use job::one_line;
use service::{Problems, Setting, out};
use tokio_util::sync::CancellationToken;

use self::model::ModelArgs;
use self::policy::{Named, PolicyArgs};
use self::trace::TraceArgs;
use crate::decide::{Decision, Observation};
use crate::explain::{DecisionRow, Story};
use crate::simulate::{Comparison, Drawn, Setup, Simulation, TICK_MS, Trace, plot, table};

/// Ticks between two looks at the progress bar and the stop signal.
const STRIDE: u64 = 4_096;

/// Play a trace of jobs through the decisions of a policy: how long jobs wait, what the pool costs
///
/// It makes the same decisions as `autoscaler run`, one a second, for a modelled pool: workers take
/// a while to start and to drain, readings are a second old, jobs are taken in order, and a worker
/// is removed only when it holds nothing. It connects to nothing. The same input gives the same
/// output.
///
/// A trace is CSV with a header (ops/traces/burst.csv is one):
///
///   arrival_s,service_s,session
///   0.5,62.25,s-1
///
/// or JSON lines with the same names:
///
///   {"arrival_s": 0.5, "service_s": 62.25, "session": "s-1"}
///
/// arrival_s: when the job came, in seconds from the beginning. service_s: how long it ran.
/// session (optional): jobs of one session run one at a time.
///
/// To export the last day of a real pool as a trace:
///
///   psql "$DATABASE_URL" -c "COPY (
///     SELECT extract(epoch FROM accepted_at - min(accepted_at) OVER ()) AS arrival_s,
///            extract(epoch FROM finished_at - started_at) AS service_s, session_id AS session
///       FROM harness_results
///      WHERE pool = 'default' AND started_at IS NOT NULL
///        AND accepted_at > now() - interval '1 day') TO STDOUT CSV HEADER" > trace.csv
///
/// A policy is TOML; ops/policies/target_wait.toml is one.
///
/// Exit codes: 0 done, 1 something failed, 2 wrong settings, policy or trace.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct Simulate {
    #[command(flatten)]
    trace: TraceArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    model: ModelArgs,
    /// A change that reverses the previous one within this many seconds counts as a flap
    #[arg(long, value_name = "SECONDS", default_value = "600", help_heading = "Report")]
    flap_s: Setting<u64>,
    /// Continue for this many seconds after the last job, to see the pool shrink
    #[arg(long, value_name = "SECONDS", default_value = "900", help_heading = "Report")]
    tail_s: Setting<u64>,
    /// Draw messages ready, workers and waits over time into this SVG file
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    plot: Option<PathBuf>,
    /// Print the decisions first, as `autoscaler explain` does
    #[arg(long, conflicts_with = "json", help_heading = "Report")]
    explain: bool,
    /// Print one JSON object instead of a table
    #[arg(long, help_heading = "Report")]
    json: bool,
}

/// The settings, checked.
struct Plan {
    trace: Trace,
    title: String,
    policies: Vec<Named>,
    setup: Setup,
    flap_ms: u64,
    tail_ms: u64,
}

impl Simulate {
    pub fn run(self, mut problems: Problems, stop: &CancellationToken) -> anyhow::Result<ExitCode> {
        let (plot_into, explain, json) = (self.plot.clone(), self.explain, self.json);
        let Some(plan) = self.check(&mut problems).filter(|_| problems.count() == 0) else {
            return Err(problems.into_error().into());
        };
        let mut stories: Vec<Option<Story>> =
            plan.policies.iter().map(|_| explain.then(Story::default)).collect();
        let runs = plan.simulate(&mut stories, stop)?;
        let names: Vec<&str> = plan.policies.iter().map(|policy| policy.name.as_str()).collect();
        for (name, story) in names.iter().zip(stories) {
            if let Some(story) = story {
                out!("{name}\n\n{}", story.finish());
            }
        }
        let mut reports = runs.iter().map(|run| run.report(plan.flap_ms));
        let Some(first) = reports.next() else { return Ok(ExitCode::SUCCESS) };
        match (reports.next(), json) {
            (None, false) => out!("{}", table((names[0], &first), None)),
            (None, true) => out!("{}", one_line(serde_json::to_string(&first)?)),
            (Some(second), false) => out!("{}", table((names[0], &first), Some((names[1], &second)))),
            (Some(second), true) => {
                out!("{}", one_line(serde_json::to_string(&Comparison::of(first, second))?))
            }
        }
        if let Some(path) = plot_into {
            let drawn: Vec<Drawn<'_>> =
                runs.iter().zip(names).map(|(simulation, name)| Drawn { name, simulation }).collect();
            let svg = plot(&plan.heading(), &drawn)?;
            std::fs::write(&path, svg).with_context(|| format!("writing --plot {}", path.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn check(self, problems: &mut Problems) -> Option<Plan> {
        let setup = self.model.check(problems);
        let policies = self.policy.check(setup.as_ref(), problems);
        let flap_s = problems.within("--flap-s", self.flap_s, 0..=86_400);
        let tail_s = problems.within("--tail-s", self.tail_s, 0..=604_800);
        let trace = self.trace.read(problems);
        let (title, trace) = trace?;
        let (mut setup, policies) = (setup?, policies?);
        if let (None, Some(first)) = (self.model.workers, policies.first()) {
            setup.workers = first.policy.min_replicas;
        }
        Some(Plan { trace, title, policies, setup, flap_ms: flap_s? * 1_000, tail_ms: tail_s? * 1_000 })
    }
}

impl Plan {
    /// The title of the plot.
    fn heading(&self) -> String {
        let Setup { slots, delays, .. } = self.setup;
        let startup_s = delays.startup_ms as f64 / 1e3;
        format!(
            "{}: {} jobs, workers with {slots} {} that start in {startup_s} s",
            self.title,
            self.trace.jobs().len(),
            if slots == 1 { "slot" } else { "slots" }
        )
    }

    /// Runs each policy. All runs end at the same time, so that their costs can be compared.
    fn simulate(
        &self,
        stories: &mut [Option<Story>],
        stop: &CancellationToken,
    ) -> anyhow::Result<Vec<Simulation<'_>>> {
        let bar = ProgressBar::new(self.policies.len() as u64 * self.trace.last_arrival_ms());
        bar.set_style(ProgressStyle::with_template("{bar:40} {percent} %  {eta} left").expect("it is right"));
        let mut runs: Vec<Simulation<'_>> = self
            .policies
            .iter()
            .map(|named| Simulation::new(&self.trace, &named.policy, self.setup))
            .collect();
        for (run, story) in runs.iter_mut().zip(stories.iter_mut()) {
            let until = |run: &Simulation<'_>| run.is_over(self.tail_ms);
            go_on(run, story, until, &bar, stop)?;
        }
        let end_ms = runs.iter().map(Simulation::now_ms).max().unwrap_or(0);
        for (run, story) in runs.iter_mut().zip(stories.iter_mut()) {
            go_on(run, story, |run| run.now_ms() >= end_ms, &bar, stop)?;
        }
        bar.finish_and_clear();
        Ok(runs)
    }
}

fn go_on(
    run: &mut Simulation<'_>,
    story: &mut Option<Story>,
    until: impl Fn(&Simulation<'_>) -> bool,
    bar: &ProgressBar,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    while !until(run) {
        for _ in 0..STRIDE {
            if until(run) {
                break;
            }
            let (inputs, decision) = run.tick();
            if let Some(story) = story {
                story.add(&decision_row(run, inputs, decision));
            }
        }
        bar.inc(STRIDE * TICK_MS);
        ensure!(!stop.is_cancelled(), "the simulation was stopped before its end");
    }
    Ok(())
}

/// Returns the decision as a leader would have recorded it.
fn decision_row(run: &Simulation<'_>, inputs: Observation, decision: Decision) -> DecisionRow {
    let written = run.resizes().last().filter(|resize| resize.at_ms == decision.at_ms);
    let outcome = match written {
        Some(resize) => Some(format!("replicas are {}", resize.to)),
        None if decision.desired < decision.current => Some("idle workers drain".to_owned()),
        None => None,
    };
    DecisionRow { decided_at_ms: decision.at_ms, epoch: 1, inputs, decision, outcome, detail: None }
}
