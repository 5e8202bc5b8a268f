//! `make chaos`: real workers, thousands of jobs on few sessions, and one fault after the other. After each fault,
//! every job and every session is compared with what was declared, and the figures are printed.
//!
//! Each scenario has its own vhost and database. Some scenarios break a whole server, so they run one after the other.
//! Exit codes: 0 nothing was lost or doubled and every recovery was in time, 1 a promise was broken (the scenario's
//! logs are in target/chaos/SCENARIO), 2 wrong arguments, 130 and 143 interrupted. The services are those that `AMQP_URL`,
//! `RABBITMQ_MANAGEMENT_URL` and `DATABASE_URL` name; without them it runs itself under `ops/dev/services run`.

mod scenario;
mod workers;
mod broker;
mod network;
mod postgres;
mod input;
mod arena;
mod workload;
mod publish;
mod witness;
mod asker;
mod models;
mod services;
mod ledger;
mod check;
mod report;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use report::Played;
use scenario::{ALL, Scenario, Settings};
use services::Services;
use workload::Size;

/// Breaks a fleet in every known way and counts what was lost or done twice; both counts must be zero.
///
/// Plays the named scenarios, or all of them (about 12 minutes), one after the other. Without AMQP_URL and DATABASE_URL it
/// starts private services first, and stops them again. In each scenario, some workers are running
/// thousands of jobs on few sessions when the fault comes. Afterwards every job and session is checked. The final table
/// is also written to target/chaos.json.
///
/// lost: accepted jobs without an end. doubled: committed more often than declared. duplicate starts: runs that began
/// while an earlier run of their job continued; none of them can commit. iterations rerun: iterations that were in
/// flight when their worker was lost. recovery: the time that --list describes for each scenario.
#[derive(Parser)]
#[command(name = "chaos")]
struct Args {
    /// Names of scenarios; all are played if none is named
    scenarios: Vec<String>,
    /// List the scenarios
    #[arg(long)]
    list: bool,
    /// Use fewer jobs; without names, play only the scenarios of the short form
    #[arg(long)]
    quick: bool,
    /// Seed for random choices, to repeat a run
    #[arg(long)]
    seed: Option<u64>,
    /// The script that can break and repair the servers
    #[arg(long, env = "CHAOS_SERVICES", default_value = "ops/dev/services")]
    services: PathBuf,
    /// The file for the figures
    #[arg(long, default_value = "target/chaos.json")]
    output: PathBuf,
    /// The folder for the logs of broken scenarios, with a subfolder for each
    #[arg(long, default_value = "target/chaos")]
    logs: PathBuf,
    /// Also keep the logs of scenarios that went well
    #[arg(long)]
    keep_logs: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "witness") {
        let file = arguments.next().unwrap_or_default();
        return finish(witness::run(Path::new(&file)).map(|()| true));
    }
    if std::env::args_os().nth(1).is_some_and(|first| first == "asker") {
        return finish(asker::run().map(|()| true));
    }
    let args = Args::parse();
    if args.list {
        list();
        return ExitCode::SUCCESS;
    }
    let chosen = match choose(&args) {
        Ok(chosen) => chosen,
        Err(error) => {
            eprintln!("chaos: {error}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = services::provide(&args.services) {
        return finish(Err(error));
    }
    // One thread starts all processes and lives as long as they do, because a worker dies with the thread that started
    // it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return finish(Err(error.into())),
    };
    runtime.block_on(async {
        tokio::select! {
            biased;
            signal = interrupted() => ExitCode::from(128 + signal),
            result = play(args, chosen) => finish(result),
        }
    })
}

fn finish(result: anyhow::Result<bool>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    for scenario in ALL {
        let breaks = if scenario.breaks() { " (breaks a server)" } else { "" };
        println!("{:<22} {}{breaks}", scenario.name, scenario.about);
    }
}

fn choose(args: &Args) -> anyhow::Result<Vec<&'static Scenario>> {
    if args.scenarios.is_empty() {
        return Ok(ALL.iter().filter(|scenario| scenario.is_short() || !args.quick).collect());
    }
    let mut chosen = Vec::new();
    for name in &args.scenarios {
        match ALL.iter().find(|scenario| scenario.name == name) {
            Some(scenario) => chosen.push(scenario),
            None => bail!("no scenario is called \"{name}\"; --list shows all"),
        }
    }
    Ok(chosen)
}

/// Resolves with the number of a signal that asks this program to end.
async fn interrupted() -> u8 {
    let listen = |kind| signal(kind).expect("signals can be listened for");
    let (mut hangup, mut interrupt, mut terminate) =
        (listen(SignalKind::hangup()), listen(SignalKind::interrupt()), listen(SignalKind::terminate()));
    tokio::select! {
        _ = hangup.recv() => 1,
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
    }
}

/// Plays the scenarios. Returns whether all went well.
async fn play(args: Args, scenarios: Vec<&'static Scenario>) -> anyhow::Result<bool> {
    let settings = Settings {
        size: if args.quick { Size::QUICK } else { Size::FULL },
        seed: args.seed.unwrap_or_else(|| fastrand::u64(0..1_000_000)),
        services: Services::new(args.services),
        logs: args.logs,
        keep_logs: args.keep_logs,
    };
    let foreign = match scenarios.iter().any(|scenario| scenario.breaks()) {
        true => settings.services.foreign().await,
        false => None,
    };
    if let Some(reason) = &foreign
        && !args.scenarios.is_empty()
    {
        bail!("a scenario that was asked for breaks a server, which is not ours to break: {reason}");
    }
    eprintln!("{} scenarios, --seed {}", scenarios.len(), settings.seed);
    let mut all = Vec::new();
    for (number, scenario) in scenarios.iter().enumerate() {
        eprintln!("[{}/{}] {}: {}", number + 1, scenarios.len(), scenario.name, scenario.about);
        let started = Instant::now();
        let played = match &foreign {
            Some(reason) if scenario.breaks() => {
                Played::Skipped { scenario: scenario.name, reason: reason.clone() }
            }
            _ => scenario.play(&settings).await,
        };
        played.report(started.elapsed().as_secs_f64());
        if scenario.breaks() && !played.is_well() {
            settings.services.mend().await?;
        }
        all.push(played);
        // What the previous scenario left at the broker is gone by then.
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    report::print(&all);
    report::write(&args.output, &all)?;
    Ok(all.iter().all(Played::is_well))
}
