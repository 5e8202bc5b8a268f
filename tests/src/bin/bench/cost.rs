//! The CPU time of a phase, by process. On a shared machine, rates differ by a factor of two from run to run; CPU time
//! per job does not.

use anyhow::{Context, anyhow};
use serde_json::{Value, json};
use tests::usage;

/// The processes whose time is counted.
pub struct Meter {
    broker: u32,
    postgres: u32,
}

/// CPU seconds so far, or microseconds per job of a phase.
#[derive(Clone, Copy)]
pub struct Cpu {
    pub broker: f64,
    pub postgres: f64,
    /// The program that is measured: a worker, or the HTTP API.
    pub program: f64,
    /// This process: it publishes and, in the raw phases, also consumes.
    pub client: f64,
}

impl Meter {
    /// Finds the servers behind these addresses. They must run on this machine.
    pub fn new(amqp_url: &str, database_url: &str) -> anyhow::Result<Meter> {
        let server = |url: &str| {
            let authority = url.split("://").nth(1)?.split(['/', '?']).next()?;
            let port = authority.rsplit_once(':')?.1.parse().ok()?;
            usage::listener(port)
        };
        let find = |name, url| server(url).ok_or_else(|| anyhow!("{name} does not run on this machine"));
        Ok(Meter {
            broker: find("RabbitMQ", amqp_url).context("AMQP_URL")?,
            postgres: find("Postgres", database_url).context("DATABASE_URL")?,
        })
    }

    /// Reads the time used so far; `program` is a process id.
    pub fn read(&self, program: u32) -> Cpu {
        Cpu {
            broker: usage::cpu_s(self.broker),
            postgres: usage::family_cpu_s(self.postgres),
            program: usage::cpu_s(program),
            client: usage::cpu_s(std::process::id()),
        }
    }
}

impl Cpu {
    /// Returns what was used since `before`, in microseconds per job.
    pub fn per_job_since(self, before: Cpu, jobs: usize) -> Cpu {
        let each = |now: f64, before: f64| (now - before) * 1e6 / jobs as f64;
        Cpu {
            broker: each(self.broker, before.broker),
            postgres: each(self.postgres, before.postgres),
            program: each(self.program, before.program),
            client: each(self.client, before.client),
        }
    }

    /// The sum of all four.
    pub fn total(self) -> f64 {
        self.broker + self.postgres + self.program + self.client
    }

    /// The median of each process.
    pub fn median(rounds: &[Cpu]) -> Cpu {
        let middle = |of: fn(&Cpu) -> f64| median(rounds.iter().map(of));
        Cpu {
            broker: middle(|cpu| cpu.broker),
            postgres: middle(|cpu| cpu.postgres),
            program: middle(|cpu| cpu.program),
            client: middle(|cpu| cpu.client),
        }
    }

    /// The figures, with this name of the program.
    pub fn to_json(self, program: &str) -> Value {
        let whole = |figure: f64| json!(figure.round());
        let mut figures = json!({
            "broker_us": whole(self.broker), "postgres_us": whole(self.postgres),
            "client_us": whole(self.client), "total_us": whole(self.total()),
        });
        figures[format!("{program}_us")] = whole(self.program);
        figures
    }

    /// Prints the heading of a table of costs, with this name of the program.
    pub fn heading(program: &str) {
        println!(
            "{:<28}{:>9}{:>9}{program:>9}{:>9}{:>9}",
            "CPU µs each", "broker", "Postgres", "client", "all"
        );
    }

    /// Prints a row of it.
    pub fn show(self, name: &str) {
        let Cpu { broker, postgres, program, client } = self;
        println!("{name:<28}{broker:>9.0}{postgres:>9.0}{program:>9.0}{client:>9.0}{:>9.0}", self.total());
    }
}

/// The median of an odd number of figures.
pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
