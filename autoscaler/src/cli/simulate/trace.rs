//! Where the trace comes from.

use std::fs::File;
use std::io::{BufReader, stdin};
use std::path::{Path, PathBuf};

use clap::Args;
use service::{Problems, Setting};

use crate::simulate::{Shape, Synthetic, Trace};

/// The most jobs of a synthetic trace, because all of them are held in memory.
const MAX_JOBS: f64 = 20e6;

/// A recorded trace, or a synthetic one.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// A recorded trace, CSV or JSON lines; - for stdin
    #[arg(
        long,
        value_name = "FILE",
        required_unless_present = "synthetic",
        conflicts_with = "synthetic",
        help_heading = "Trace"
    )]
    trace: Option<PathBuf>,
    /// A synthetic trace of this shape
    #[arg(long, value_name = "SHAPE", value_enum, help_heading = "Trace")]
    synthetic: Option<Shape>,
    /// The seed of the synthetic trace: another seed gives another trace
    #[arg(long, value_name = "NUMBER", default_value = "1", requires = "synthetic", help_heading = "Trace")]
    seed: Setting<u64>,
    /// Hours in which jobs arrive
    #[arg(long, value_name = "HOURS", default_value = "24", requires = "synthetic", help_heading = "Trace")]
    hours: Setting<f64>,
    /// Jobs per second, on average
    #[arg(long, value_name = "JOBS", default_value = "0.1", requires = "synthetic", help_heading = "Trace")]
    rate: Setting<f64>,
    /// How long a job runs on average, in seconds
    #[arg(
        long,
        value_name = "SECONDS",
        default_value = "60",
        requires = "synthetic",
        help_heading = "Trace"
    )]
    service_s: Setting<f64>,
    /// Spread the jobs over this many sessions; 0 gives each its own
    #[arg(long, value_name = "NUMBER", default_value = "0", requires = "synthetic", help_heading = "Trace")]
    sessions: Setting<u32>,
}

impl TraceArgs {
    /// Returns the trace and its title. Adds what is wrong to `problems`.
    pub fn read(self, problems: &mut Problems) -> Option<(String, Trace)> {
        match self.trace {
            Some(path) => {
                let title = match path.file_name() {
                    Some(name) if path != Path::new("-") => name.to_string_lossy().into_owned(),
                    _ => "stdin".to_owned(),
                };
                Some((title, problems.check("--trace", read(&path))?))
            }
            None => self.make(problems),
        }
    }

    fn make(self, problems: &mut Problems) -> Option<(String, Trace)> {
        let seed = problems.take("--seed", self.seed);
        let hours = problems.within("--hours", self.hours, 0.001..=8_784.0);
        let rate_per_s = problems.within("--rate", self.rate, 0.000_001..=10_000.0);
        let service_s = problems.within("--service-s", self.service_s, 0.001..=86_400.0);
        let sessions = problems.within("--sessions", self.sessions, 0..=1_000_000);
        let (shape, duration_s, rate_per_s) = (self.synthetic?, hours? * 3_600.0, rate_per_s?);
        if rate_per_s * duration_s > MAX_JOBS {
            let jobs = rate_per_s * duration_s;
            problems
                .add("--rate", format!("gives {jobs:.0} jobs in --hours, expected at most {MAX_JOBS:.0}"));
            return None;
        }
        let synthetic = Synthetic {
            shape,
            seed: seed?,
            duration_s,
            rate_per_s,
            service_s: service_s?,
            sessions: sessions?,
        };
        let trace = synthetic.make();
        if trace.jobs().is_empty() {
            problems.add("--rate", "no job arrives within --hours, expected a higher rate or more hours");
            return None;
        }
        Some((format!("{shape:?}, seed {}", synthetic.seed), trace))
    }
}

fn read(path: &Path) -> Result<Trace, String> {
    if path == Path::new("-") {
        return Trace::read(stdin().lock()).map_err(|error| format!("stdin: {error}"));
    }
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let file = File::open(path).map_err(|error| named(&error))?;
    Trace::read(BufReader::new(file)).map_err(|error| named(&error))
}
