//! What the user sees during the run: live bars on a terminal, otherwise a line per second. All of it goes to stderr.

use std::collections::VecDeque;
use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use job::JobState::{Blocked, Failed, Publishing, Queued, Running, Scheduled, Succeeded};
use job::Name;

use crate::crash::Crash;
use crate::ledger::Snapshot;
use crate::workers::Worker;
use crate::workload::{Session, Workload};

/// How many sessions of each worker are shown on a line of their own.
const EXAMPLES: usize = 3;
/// The period over which the rate is measured.
const RATE_OVER: Duration = Duration::from_secs(5);
const PLAIN_EVERY: Duration = Duration::from_secs(1);

/// The live view.
pub struct Display {
    started: Instant,
    jobs: i64,
    iterations: u64,
    slots: u32,
    ended: VecDeque<(Instant, i64)>,
    bars: Option<Bars>,
    printed: Option<Instant>,
}

struct Bars {
    all: MultiProgress,
    /// The headings above the bars and above the sessions.
    headings: [ProgressBar; 2],
    jobs: ProgressBar,
    states: ProgressBar,
    workers: Vec<(char, ProgressBar)>,
    sessions: Vec<(Name, ProgressBar)>,
}

/// Whether lines can be redrawn.
fn on_terminal(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Returns the text in bold and in an ANSI colour, if the stream is a terminal that accepts colours.
pub fn bold(stream: &impl IsTerminal, colour: u8, text: impl std::fmt::Display) -> String {
    let welcome = on_terminal(stream) && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    if welcome { format!("\x1b[1;3{colour}m{text}\x1b[0m") } else { text.to_string() }
}

pub const RED: u8 = 1;
pub const GREEN: u8 = 2;

impl Display {
    pub fn new(workload: &Workload, workers: &[Worker], slots: u32) -> Display {
        let jobs = workload.job_ids().len() as i64;
        Display {
            started: Instant::now(),
            jobs,
            iterations: workload.iterations(),
            slots,
            ended: VecDeque::new(),
            bars: on_terminal(&stderr()).then(|| Bars::new(jobs as u64, workers, slots)),
            printed: None,
        }
    }

    /// Prints a line that stays.
    pub fn say(&self, line: &str) {
        match &self.bars {
            // Writing fails only if the terminal is gone.
            Some(bars) => drop(bars.all.println(line)),
            None => eprintln!("{line}"),
        }
    }

    /// Shows the state of one moment.
    pub fn show(&mut self, now: &Snapshot, workload: &Workload, workers: &[Worker], crash: Option<&Crash>) {
        let rate = self.rate(now.ended());
        match &mut self.bars {
            Some(bars) => bars.show(now, rate, self.slots, workload, crash),
            None => {
                if self.printed.is_some_and(|at| at.elapsed() < PLAIN_EVERY) {
                    return;
                }
                self.printed = Some(Instant::now());
                let busy = workers.iter().map(|worker| {
                    match crash.is_some_and(|crash| crash.worker == worker.name) {
                        true => format!("{} killed", worker.name),
                        false => format!("{} {}", worker.name, now.running_on(worker.name)),
                    }
                });
                eprintln!(
                    "[{:5.1} s] {:>3}/{} jobs, {rate:4.1}/s | running: {} | {} queued, {} blocked, {} failed | {}/{} iterations",
                    self.started.elapsed().as_secs_f64(),
                    now.ended(),
                    self.jobs,
                    busy.collect::<Vec<_>>().join(", "),
                    now.live(&[Scheduled, Publishing, Queued]),
                    now.live(&[Blocked]),
                    now.ended_as(Failed),
                    now.all_iterations(),
                    self.iterations,
                );
            }
        }
    }

    /// Leaves the last state on the screen. Otherwise it disappears when the display is dropped.
    pub fn finish(&self) {
        if let Some(bars) = &self.bars {
            bars.jobs.set_message(format!("in {:.1} s", self.started.elapsed().as_secs_f64()));
            bars.each(ProgressBar::abandon);
            eprintln!();
        }
    }

    fn rate(&mut self, ended: i64) -> f64 {
        let now = Instant::now();
        self.ended.push_back((now, ended));
        while self.ended.len() > 2 && self.ended.front().is_some_and(|(at, _)| now - *at > RATE_OVER) {
            self.ended.pop_front();
        }
        let (since, before) = self.ended.front().copied().unwrap_or((now, ended));
        (ended - before) as f64 / (now - since).as_secs_f64().max(0.2)
    }
}

fn states(now: &Snapshot) -> String {
    format!(
        "{} running, {} queued, {} waiting their turn, {} succeeded, {} failed",
        now.live(&[Running]),
        now.live(&[Scheduled, Publishing, Queued]),
        now.live(&[Blocked]),
        now.ended_as(Succeeded),
        now.ended_as(Failed)
    )
}

impl Bars {
    fn new(jobs: u64, workers: &[Worker], slots: u32) -> Bars {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(12));
        let line = || all.add(ProgressBar::no_length().with_style(style("  {wide_msg}")));
        let above = line();
        let overall = all.add(ProgressBar::new(jobs));
        overall.set_style(style("  {bar:44.green/238} {pos}/{len} jobs  {wide_msg}"));
        let states = line();
        let workers = workers
            .iter()
            .map(|worker| {
                let bar = all.add(ProgressBar::new(slots.into()));
                bar.set_style(worker_style(worker.name));
                bar.set_prefix(format!("worker {}", worker.name));
                (worker.name, bar)
            })
            .collect();
        Bars { headings: [above, line()], jobs: overall, states, workers, sessions: Vec::new(), all }
    }

    fn each(&self, act: impl Fn(&ProgressBar)) {
        let workers = self.workers.iter().map(|(_, bar)| bar);
        let sessions = self.sessions.iter().map(|(_, bar)| bar);
        let first = [&self.jobs, &self.states].into_iter().chain(&self.headings);
        first.chain(workers).chain(sessions).for_each(act);
    }

    fn show(&mut self, now: &Snapshot, rate: f64, slots: u32, workload: &Workload, crash: Option<&Crash>) {
        self.headings[0].tick();
        self.jobs.set_position(now.ended().unsigned_abs());
        self.jobs.set_message(format!("{rate:.1} jobs/s"));
        self.states.set_message(states(now));
        for (name, bar) in &self.workers {
            let crashed = crash.filter(|crash| crash.worker == *name);
            let running = if crashed.is_some() { 0 } else { now.running_on(*name) };
            bar.set_position(running as u64);
            let ended = now.ended_by(*name);
            bar.set_message(match crashed {
                Some(crash) => {
                    bold(&stderr(), RED, format!("killed at {:.1} s", crash.after_s))
                        + &format!(", {ended} jobs ended")
                }
                None => format!("{running} of {slots} slots busy, {ended} jobs ended"),
            });
        }
        if self.sessions.is_empty() {
            self.choose_examples(now, workload);
        }
        for (id, bar) in &self.sessions {
            let done = now.iterations(id);
            bar.set_position(done.unsigned_abs());
            let runner = now.runner(id);
            let held = crash.and_then(|crash| Some((crash, crash.held_in(id.as_str())?)));
            let resumed = held.and_then(|(crash, held)| Some((crash, crash.resumption(held.job_id)?)));
            let place = match (held, resumed, runner) {
                (Some((crash, _)), None, _) => {
                    bar.set_style(session_style(None));
                    format!("worker {} was killed; its lease runs", crash.worker)
                }
                (_, Some((crash, resumed)), _) => {
                    bar.set_style(session_style(Some(resumed.worker)));
                    let after_s = crash.recovery_s(resumed);
                    format!("worker {}, resumed at {} ({after_s:.1} s)", resumed.worker, resumed.session_done)
                }
                (None, None, Some(worker)) => {
                    bar.set_style(session_style(Some(worker)));
                    format!("worker {worker}")
                }
                (None, None, None) => String::new(),
            };
            bar.set_message(format!("{done:>2} of {:>2}  {place}", bar.length().unwrap_or(0)));
        }
    }

    /// Chooses some sessions of each worker, once sessions run on all workers.
    fn choose_examples(&mut self, now: &Snapshot, workload: &Workload) {
        let mut chosen: Vec<&Session> = Vec::new();
        for (name, _) in &self.workers {
            let mine = workload.sessions.iter().filter(|session| now.runner(&session.id) == Some(*name));
            // A session that reads documents is among them if there is one.
            let (readers, others): (Vec<&Session>, Vec<&Session>) =
                mine.partition(|session| session.agent.as_str() == "reader");
            let readers = &readers[..readers.len().min(1)];
            chosen.extend(others.iter().take(EXAMPLES - readers.len()).chain(readers));
        }
        if chosen.len() < EXAMPLES * self.workers.len() {
            return;
        }
        chosen.sort_by(|a, b| a.id.cmp(&b.id));
        self.headings[1].set_message("iterations of some sessions:");
        for session in chosen {
            let bar = self.all.add(ProgressBar::new(session.iterations()));
            bar.set_prefix(format!("{} {}", session.id, session.agent));
            self.sessions.push((session.id.clone(), bar));
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are right").progress_chars("██░")
}

fn worker_style(worker: char) -> ProgressStyle {
    style(&format!("  {{prefix}}  {{bar:24.{}/238}}  {{wide_msg}}", colour(Some(worker))))
}

fn session_style(runner: Option<char>) -> ProgressStyle {
    style(&format!("  {{prefix:21}} {{bar:12.{}/238}}  {{wide_msg}}", colour(runner)))
}

/// The colour of a session is that of its worker.
fn colour(worker: Option<char>) -> &'static str {
    match worker {
        Some('A') => "cyan",
        Some(_) => "magenta",
        None => "yellow",
    }
}
