//! The figures of a scenario: a line when it ends, a table at the end of the run, and a file for machines.

use std::path::Path;

use anyhow::Context;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use comfy_table::{CellAlignment, ContentArrangement, Table};
use serde_json::{Value, json};

/// How many problems are printed in full.
const TOLD: usize = 10;

/// The result of a scenario.
pub struct Figures {
    pub scenario: &'static str,
    pub jobs: usize,
    pub lost: u64,
    pub doubled: u64,
    pub duplicate_starts: u64,
    pub rerun_iterations: u64,
    pub recovery_s: Option<f64>,
    /// Broken promises, including those that the figures show.
    pub problems: Vec<String>,
}

/// A scenario that has ended.
pub enum Played {
    Out(Figures),
    /// It could not be played to its end.
    Broken {
        scenario: &'static str,
        error: String,
    },
    Skipped {
        scenario: &'static str,
        reason: String,
    },
}

impl Played {
    /// Whether nothing was lost or doubled and every recovery was in time.
    pub fn is_well(&self) -> bool {
        match self {
            Played::Out(figures) => figures.problems.is_empty(),
            Played::Skipped { .. } => true,
            Played::Broken { .. } => false,
        }
    }

    /// Prints the scenario's line, with its problems below it.
    pub fn report(&self, seconds: f64) {
        match self {
            Played::Out(figures) => {
                let recovery = figures.recovery_s.map_or("–".to_owned(), |s| format!("{s:.1} s"));
                eprintln!(
                    "    {} in {seconds:.0} s: {} jobs, {} lost, {} doubled, {} duplicate starts, {} iterations rerun, recovery {recovery}",
                    if figures.problems.is_empty() { "well" } else { "BROKEN" },
                    figures.jobs,
                    figures.lost,
                    figures.doubled,
                    figures.duplicate_starts,
                    figures.rerun_iterations,
                );
                figures.problems.iter().take(TOLD).for_each(|problem| eprintln!("      {problem}"));
                if figures.problems.len() > TOLD {
                    eprintln!("      … and {} more", figures.problems.len() - TOLD);
                }
            }
            Played::Broken { error, .. } => eprintln!("    BROKEN after {seconds:.0} s: {error}"),
            Played::Skipped { reason, .. } => eprintln!("    skipped: {reason}"),
        }
    }

    fn row(&self) -> [String; 7] {
        let (scenario, rest) = match self {
            Played::Out(figures) => {
                let recovery = figures.recovery_s.map_or("–".to_owned(), |s| format!("{s:.1}"));
                let numbers =
                    [figures.lost, figures.doubled, figures.duplicate_starts, figures.rerun_iterations];
                let [lost, doubled, starts, rerun] = numbers.map(|number| number.to_string());
                (figures.scenario, [figures.jobs.to_string(), lost, doubled, starts, rerun, recovery])
            }
            Played::Broken { scenario, .. } => {
                (*scenario, ["broken", "?", "?", "?", "?", "?"].map(str::to_owned))
            }
            Played::Skipped { scenario, .. } => {
                (*scenario, ["skipped", "", "", "", "", ""].map(str::to_owned))
            }
        };
        let [jobs, lost, doubled, starts, rerun, recovery] = rest;
        [scenario.to_owned(), jobs, lost, doubled, starts, rerun, recovery]
    }

    fn json(&self) -> Value {
        match self {
            Played::Out(figures) => json!({
                "scenario": figures.scenario, "jobs": figures.jobs, "lost": figures.lost, "doubled": figures.doubled,
                "duplicate_starts": figures.duplicate_starts, "rerun_iterations": figures.rerun_iterations,
                "recovery_s": figures.recovery_s.map(|seconds| (seconds * 100.0).round() / 100.0),
                "problems": figures.problems,
            }),
            Played::Broken { scenario, error } => json!({"scenario": scenario, "problems": [error]}),
            Played::Skipped { scenario, reason } => json!({"scenario": scenario, "skipped": reason}),
        }
    }
}

/// Prints the table to stdout.
pub fn print(played: &[Played]) {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header([
        "scenario",
        "jobs",
        "lost",
        "doubled",
        "duplicate starts",
        "iterations rerun",
        "recovery (s)",
    ]);
    for at in 1..7 {
        table.column_mut(at).expect("there are seven").set_cell_alignment(CellAlignment::Right);
    }
    for one in played {
        table.add_row(one.row());
    }
    println!("\n{table}");
    for one in played {
        if let Played::Skipped { scenario, reason } = one {
            println!("skipped {scenario}: {reason}");
        }
    }
}

/// Writes all figures as a JSON array of objects.
pub fn write(path: &Path, played: &[Played]) -> anyhow::Result<()> {
    let list: Vec<Value> = played.iter().map(Played::json).collect();
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let text = serde_json::to_string_pretty(&list)?;
    std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}
