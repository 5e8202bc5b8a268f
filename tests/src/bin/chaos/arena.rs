//! The place of a scenario: a private vhost and database, some real workers, and jobs that are published during the
//! fault. It measures recoveries. At the end it waits for every job and compares everything with the workload.

use std::collections::HashSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use fastrand::Rng;
use job::JobId;
use producer::SessionNow;
use queue::DEAD_QUEUE;
use tests::{Fleet, Launch, Link, Proxy, Worker};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use crate::check;
use crate::ledger::{Held, LedgerProbe};
use crate::models::Models;
use crate::publish;
use crate::report::Figures;
use crate::scenario::Settings;
use crate::services::Services;
use crate::witness::Account;
use crate::workload::{Job, Workload, echo, long};

/// Slots of each worker, unless a scenario has more sessions. Two of the three workers together have a slot for every
/// session, so that none waits for one: a probe behind a backlog would measure how long that takes to be worked off.
pub const SLOTS: usize = 32;
/// The length of the workers' leases.
pub const LEASE: Duration = Duration::from_secs(5);
/// How long a drain lets jobs continue.
pub const GRACE: Duration = Duration::from_secs(2);
/// How long a stopped harness and the sign-off may take after the grace.
const SIGN_OFF: Duration = Duration::from_secs(5);
/// How soon after the end of its lease a dead worker's jobs must run again.
pub const RESCUE: Duration = Duration::from_secs(2);
/// Longer than any recovery takes, unless a scenario allows more.
const TIMEOUT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
/// Long jobs that are published at once.
const LONG: usize = 12;
/// After this time, more of them are published: the first may have waited behind others and no longer occupy slots.
const LONG_AGAIN: Duration = Duration::from_secs(20);
/// After this time, a probe that was not run is published again.
const AGAIN: Duration = Duration::from_secs(2);

/// The arena. Its processes end before its services do.
pub struct Arena {
    workers: Vec<Member>,
    publishing: Option<AbortOnDropHandle<anyhow::Result<()>>>,
    /// Proxies between the workers and the services, where a scenario uses them. They pass until the last job has
    /// ended, because the workers connect through them until then.
    pub proxies: Vec<Proxy>,
    pub ledger: LedgerProbe,
    /// The provider of models, where jobs call one.
    pub models: Option<Models>,
    pub workload: Workload,
    pub fleet: Arc<Fleet>,
    pub services: Services,
    pub random: Rng,
    scenario: &'static str,
    logs: PathBuf,
    account: PathBuf,
    agents: String,
    started: u32,
    /// Slots of workers that are started from now on.
    slots: usize,
    /// Long jobs so far.
    long: usize,
    begun: Instant,
    events: String,
    warm: Instant,
    recovery: Option<f64>,
    /// How many messages must have ended as dead letters.
    pub dead_letters: usize,
    /// Whether this scenario may cost a job an attempt.
    pub spends_attempts: bool,
    /// Whether a job may run twice at once in this scenario.
    pub runs_twice: bool,
    pub problems: Vec<String>,
    /// Longer than any wait of this scenario takes.
    pub timeout: Duration,
}

struct Member {
    name: String,
    process: Worker,
    slots: usize,
    /// Whether the scenario has ended this worker.
    gone: bool,
}

impl Arena {
    pub async fn new(scenario: &'static str, settings: &Settings) -> anyhow::Result<Arena> {
        let logs = settings.logs.join(scenario);
        match std::fs::remove_dir_all(&logs) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("emptying {}", logs.display()));
            }
            Ok(()) | Err(_) => {}
        }
        std::fs::create_dir_all(&logs).with_context(|| format!("making {}", logs.display()))?;
        let logs = std::path::absolute(logs)?;
        let fleet = Arc::new(Fleet::new().await);
        let account = logs.join("witnesses");
        let agents = agents(&logs, &account)?;
        let mut random = Rng::with_seed(settings.seed);
        Ok(Arena {
            workers: Vec::new(),
            publishing: None,
            proxies: Vec::new(),
            ledger: LedgerProbe::new(&fleet.database.url),
            models: None,
            workload: Workload::new(settings.size, &mut random),
            fleet,
            services: settings.services.clone(),
            random,
            scenario,
            logs,
            account,
            agents,
            started: 0,
            slots: SLOTS,
            long: 0,
            begun: Instant::now(),
            events: String::new(),
            warm: Instant::now(),
            recovery: None,
            dead_letters: 0,
            spends_attempts: false,
            runs_twice: false,
            problems: Vec::new(),
            timeout: TIMEOUT,
        })
    }

    /// Records an event for the file beside the workers' logs.
    pub fn note(&mut self, event: impl Display) {
        let line = format!("{:7.2} s  {event}\n", self.begun.elapsed().as_secs_f64());
        self.events.push_str(&line);
    }

    /// Changes what passes through a proxy.
    pub fn set_link(&mut self, proxy: usize, link: Link) {
        self.note(format!("link {proxy}: {link:?}"));
        self.proxies[proxy].set(link);
    }

    // ---- workers

    /// Adds an agent to those of workers that are started later.
    pub fn add_agent(&mut self, toml: &str) -> anyhow::Result<()> {
        let mut agents = std::fs::read_to_string(&self.agents).context("reading the agents")?;
        agents.push_str(toml);
        std::fs::write(&self.agents, agents).context("writing the agents")
    }

    /// Gives workers that are started later the slots that they need with so many sessions beside those of the workload.
    pub fn make_room_for(&mut self, more: usize) {
        self.slots = SLOTS.max((self.workload.sessions().len() + more).div_ceil(2));
    }

    /// Starts workers with the usual settings.
    pub async fn start(&mut self, workers: usize) {
        for _ in 0..workers {
            self.start_with(|launch| launch).await;
        }
    }

    /// Starts a worker with other settings. Returns its number.
    pub async fn start_with(&mut self, change: impl FnOnce(Launch) -> Launch) -> usize {
        self.start_slots(self.slots, change).await
    }

    /// Starts a worker with so many slots.
    pub async fn start_slots(&mut self, slots: usize, change: impl FnOnce(Launch) -> Launch) -> usize {
        self.started += 1;
        let name = format!("worker-{}", self.started);
        let launch = self.fleet.worker(&name);
        let launch = launch
            .log_to(self.logs.join(format!("{name}.log")))
            .set("WORKER_SLOTS", slots)
            .set("LEASE_S", LEASE.as_secs())
            .set("DRAIN_GRACE_S", GRACE.as_secs())
            .set("AGENTS_FILE", &self.agents)
            .set("POD_NAME", &name);
        let process = change(launch).start().await;
        // A worker declares another one dead only after it has itself reached Postgres for a whole lease.
        self.warm = Instant::now() + LEASE + Duration::from_millis(1_500);
        self.workers.push(Member { name, process, slots, gone: false });
        self.workers.len() - 1
    }

    /// Returns the numbers of the workers that the scenario has not ended.
    pub fn living(&self) -> Vec<usize> {
        (0..self.workers.len()).filter(|at| !self.workers[*at].gone).collect()
    }

    pub fn worker(&self, at: usize) -> &Worker {
        &self.workers[at].process
    }

    /// Sends SIGKILL. Returns the jobs that the worker ran.
    pub async fn kill(&mut self, at: usize) -> anyhow::Result<Vec<Held>> {
        self.note(format!("SIGKILL to {}", self.workers[at].name));
        let member = &mut self.workers[at];
        member.process.kill();
        member.gone = true;
        self.held(at).await
    }

    /// Stops a worker (SIGSTOP) at a moment when it runs no suspect, so that its death makes no job poison: for a
    /// suspect, that death would be the third.
    pub async fn stop_without_suspects(&mut self, at: usize) -> anyhow::Result<()> {
        self.until("the worker to be killed runs no suspect", async |arena| {
            arena.worker(at).pause();
            let without = arena.held(at).await?.iter().all(|held| held.deaths < 2);
            if !without {
                arena.worker(at).resume();
            }
            Ok(without)
        })
        .await
    }

    /// Sends SIGTERM and waits for the end. Returns how long that took.
    pub async fn drain(&mut self, at: usize) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let member = &mut self.workers[at];
        member.process.terminate();
        let code = member.process.exit_within(GRACE + 4 * SIGN_OFF).await;
        member.gone = true;
        ensure!(code == 0, "{} ended with {code} on SIGTERM", member.name);
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Whether a worker still lives. If not, it counts as ended by the scenario.
    pub fn lives(&mut self, at: usize) -> bool {
        let member = &mut self.workers[at];
        let lives = !member.gone && member.process.lives();
        member.gone = !lives;
        lives
    }

    /// Returns what this worker runs, according to the ledger.
    pub async fn held(&mut self, at: usize) -> anyhow::Result<Vec<Held>> {
        self.ledger.held(&self.workers[at].name).await
    }

    // ---- jobs

    /// Begins to publish the workload, a part of it as a raw AMQP client.
    pub fn publish(&mut self) {
        self.publish_parts(true);
    }

    /// Begins to publish the workload by `producer` alone, so that the ledger has what the broker loses.
    pub fn enqueue(&mut self) {
        self.publish_parts(false);
    }

    fn publish_parts(&mut self, with_raw: bool) {
        let publishing = tokio::spawn(publish::parts(self.fleet.clone(), self.workload.parts(with_raw)));
        self.publishing = Some(AbortOnDropHandle::new(publishing));
    }

    /// Starts workers, begins to publish, and waits until they are at work.
    pub async fn at_work(&mut self, workers: usize) -> anyhow::Result<()> {
        self.start(workers).await;
        self.publish();
        self.under_way().await
    }

    /// Waits until the workers are busy and have watched each other for a lease.
    pub async fn under_way(&mut self) -> anyhow::Result<()> {
        let some = self.workload.jobs.len() as i64 / 8;
        self.until("an eighth of the jobs has ended", async |arena| Ok(arena.ledger.ended().await? >= some))
            .await?;
        self.warmed_up().await;
        Ok(())
    }

    /// Waits until each worker has watched the others for a lease.
    pub async fn warmed_up(&self) {
        tokio::time::sleep_until(self.warm).await;
    }

    /// Waits until something is observed. Errors of the observation are tolerated meanwhile.
    pub async fn until(
        &mut self,
        what: &str,
        mut look: impl AsyncFnMut(&mut Arena) -> anyhow::Result<bool>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let meanwhile = match look(self).await {
                Ok(true) => {
                    self.note(what);
                    return Ok(());
                }
                Ok(false) => anyhow!("not yet"),
                Err(error) => error,
            };
            if Instant::now() >= deadline {
                return Err(meanwhile.context(format!("not within {} s: {what}", self.timeout.as_secs())));
            }
            sleep(LOOK).await;
        }
    }

    /// Publishes long jobs until a worker runs some, and returns that worker's number. A fault there hits running jobs,
    /// however long the scenario has taken to get here. The broker usually hands messages that arrive together to the
    /// slots of one worker, and it alone decides which.
    pub async fn busy(&mut self) -> anyhow::Result<usize> {
        let mut among = self.living();
        self.random.shuffle(&mut among);
        let (mut ids, mut busy) = (HashSet::new(), None);
        let mut published: Option<Instant> = None;
        let look = async |arena: &mut Arena| {
            if published.is_none_or(|at| at.elapsed() > LONG_AGAIN) {
                let jobs = long(arena.long..arena.long + LONG);
                arena.long += LONG;
                let specs: Vec<_> = jobs.iter().map(|job| job.spec.clone()).collect();
                ids.extend(specs.iter().map(|spec| spec.job_id.to_string()));
                arena.workload.jobs.extend(jobs);
                publish::raw(&arena.fleet.vhost.url, specs).await?;
                published = Some(Instant::now());
            }
            for at in &among {
                if arena.held(*at).await?.iter().any(|held| ids.contains(&held.job_id)) {
                    busy = Some(*at);
                }
            }
            Ok(busy.is_some())
        };
        self.until("a worker to be hit runs a long job", look).await?;
        busy.context("a worker that runs a job")
    }

    // ---- recovery

    /// Waits until all these runs have continued elsewhere or have ended. The recovery is the time since the fault.
    pub async fn gone_on(
        &mut self,
        held: &[Held],
        fault: Instant,
        bound: Option<Duration>,
    ) -> anyhow::Result<()> {
        if held.is_empty() {
            bail!("the worker that was hit ran no job");
        }
        self.until("the jobs go on", async |arena| Ok(arena.ledger.gone_on(held).await? == held.len()))
            .await?;
        self.recovered(fault.elapsed(), bound);
        Ok(())
    }

    /// Waits until every free slot consumes and a new job has run. The recovery is the time since `since`.
    pub async fn resumed(&mut self, since: Instant, bound: Option<Duration>) -> anyhow::Result<()> {
        self.probe().await?;
        self.free_slots_consume().await?;
        self.recovered(since.elapsed(), bound);
        Ok(())
    }

    /// Publishes a new job and waits for its end.
    pub async fn probe(&mut self) -> anyhow::Result<()> {
        let number = self.workload.jobs.len();
        let job = echo(&format!("probe-{number}"), serde_json::json!(number));
        let spec = job.spec.clone();
        self.workload.jobs.push(job);
        let mut published: Option<Instant> = None;
        let ended = async |arena: &mut Arena| {
            // A confirm means nothing if the queue is deleted at that moment. As the contract says, a client that does
            // not see its job publishes it again.
            if published.is_none_or(|at| at.elapsed() > AGAIN) {
                publish::raw(&arena.fleet.vhost.url, vec![spec.clone()]).await?;
                published = Some(Instant::now());
            }
            arena.has_ended(spec.job_id).await
        };
        self.until("a new job has run", ended).await
    }

    /// Whether a job has ended.
    pub async fn has_ended(&self, job_id: JobId) -> anyhow::Result<bool> {
        let views = self.fleet.store.jobs(&[job_id]).await?;
        Ok(views.first().is_some_and(|view| view.state.is_end()))
    }

    /// Waits until the broker has a consumer for every free slot. A busy slot that has lost its consumer gets another
    /// one when it needs it.
    async fn free_slots_consume(&mut self) -> anyhow::Result<()> {
        let look = async |arena: &mut Arena| {
            let (consumers, slots) = arena.consumers_and_slots().await?;
            let busy = arena.ledger.running().await?;
            ensure!(consumers + busy >= slots, "{consumers} of {slots} slots consume, {busy} are busy");
            Ok(true)
        };
        self.until("every free slot consumes", look).await
    }

    /// Waits, once no work is left, until the broker has a consumer for every slot of the living workers.
    async fn all_consume(&mut self) -> anyhow::Result<()> {
        let look = async |arena: &mut Arena| {
            let (consumers, slots) = arena.consumers_and_slots().await?;
            ensure!(consumers == slots, "{consumers} of {slots} slots consume");
            Ok(true)
        };
        self.until("every slot consumes", look).await
    }

    async fn consumers_and_slots(&self) -> anyhow::Result<(usize, usize)> {
        let queue = queue::jobs_queue(&job::Name::default());
        let (_, consumers) = timeout(TIMEOUT, self.fleet.vhost.look_at(&queue)).await??;
        let living = self.workers.iter().filter(|member| !member.gone);
        Ok((consumers as usize, living.map(|member| member.slots).sum()))
    }

    /// Waits until the broker accepts a connection again. Returns that moment.
    pub async fn broker_back(&mut self) -> anyhow::Result<Instant> {
        let look = async |arena: &mut Arena| {
            let connect = lapin::Connection::connect(&arena.fleet.vhost.url, Default::default());
            timeout(Duration::from_secs(5), connect).await??;
            Ok(true)
        };
        self.until("the broker answers", look).await?;
        Ok(Instant::now())
    }

    /// Records a recovery; the longest one counts.
    pub fn recovered(&mut self, took: Duration, bound: Option<Duration>) {
        let seconds = took.as_secs_f64();
        if let Some(bound) = bound
            && took > bound
        {
            let bound_s = bound.as_secs_f64();
            self.problems.push(format!("recovered after {seconds:.1} s, expected at most {bound_s:.1} s"));
        }
        self.recovery = Some(self.recovery.unwrap_or(0.0).max(seconds));
    }

    // ---- the end

    /// Waits until everything is published, since only accepted jobs can be lost.
    pub async fn published(&mut self) -> anyhow::Result<()> {
        if let Some(publishing) = self.publishing.take() {
            publishing.await.context("publishing")??;
            self.note("everything is published");
        }
        Ok(())
    }

    /// Waits until every job has ended, or until nothing moves any more.
    pub async fn settle(&mut self) -> anyhow::Result<()> {
        // A scenario that has failed may have left them as they were at that moment.
        self.proxies.iter().for_each(|proxy| proxy.set(Link::Pass));
        let of_models = self.models.as_ref().map_or(0, |models| models.clerks.len());
        let total = (self.workload.jobs.len() + of_models) as i64;
        let (mut best, mut moved) = (0, Instant::now());
        loop {
            let ended = self.ledger.ended().await.unwrap_or(best);
            if ended >= total {
                self.note("all jobs have ended");
                break;
            }
            if ended > best {
                (best, moved) = (ended, Instant::now());
            }
            // Longer than it takes until the slowest sweep finds a forgotten job.
            ensure!(
                moved.elapsed() < 2 * TIMEOUT,
                "{ended} of {total} jobs have ended, and nothing has moved"
            );
            sleep(4 * LOOK).await;
        }
        self.all_consume().await
    }

    /// Ends the workers and compares everything with the workload.
    pub async fn judge(&mut self) -> anyhow::Result<Figures> {
        self.end_workers().await;
        let store = &self.fleet.store;
        let jobs = store.jobs(&self.workload.ids()).await.context("reading the jobs")?;
        let mut sessions = Vec::new();
        for (name, _) in self.workload.sessions() {
            sessions.extend(
                SessionNow::read(store, &name.clone().into())
                    .await
                    .with_context(|| format!("reading session {name}"))?,
            );
        }
        let mut findings = check::check(&self.workload, &jobs, &sessions);
        findings.problems.extend(self.ledger.left_over().await?);
        let audit = self.fleet.producer(&["audit"]).await;
        if audit.code != 0 {
            findings
                .problems
                .push(format!("`producer audit` exited with {}:\n{}{}", audit.code, audit.out, audit.err));
        }
        if let Some(models) = &self.models {
            findings.problems.extend(models.judge(&self.fleet).await?);
        }
        let account = Account::read(&self.account)?;
        if !self.spends_attempts && findings.attempts_again > 0 {
            let again = findings.attempts_again;
            findings.problems.push(format!("{again} attempts were spent although no worker was lost"));
        }
        if !self.runs_twice && account.duplicate_starts > 0 {
            let twice = account.duplicate_starts;
            findings.problems.push(format!("{twice} runs began while an earlier run of their job continued"));
        }
        let (letters, _) =
            self.fleet.vhost.look_at(DEAD_QUEUE).await.context("looking at the dead letters")?;
        if letters as usize != self.dead_letters {
            findings.problems.push(format!("{letters} dead letters, expected {}", self.dead_letters));
        }
        findings.problems.append(&mut self.problems);
        Ok(Figures {
            scenario: self.scenario,
            jobs: self.workload.jobs.len(),
            lost: findings.lost,
            doubled: findings.doubled,
            duplicate_starts: account.duplicate_starts,
            rerun_iterations: account.rerun_iterations,
            recovery_s: self.recovery,
            problems: findings.problems,
        })
    }

    /// Ends the workers that the scenario has left alive; each must still live and must end with code 0.
    async fn end_workers(&mut self) {
        for member in self.workers.iter_mut().filter(|member| !member.gone) {
            if !member.process.lives() {
                self.problems.push(format!("{} ended by itself", member.name));
            }
            member.process.terminate();
        }
        for member in self.workers.iter_mut().filter(|member| !member.gone) {
            match timeout(GRACE + 4 * SIGN_OFF, member.process.ended()).await {
                Ok(status) if status.success() => {}
                Ok(status) => self.problems.push(format!("{} ended with {status}", member.name)),
                Err(_) => {
                    self.problems.push(format!("{} did not end on SIGTERM", member.name));
                    member.process.kill();
                }
            }
            member.gone = true;
        }
    }

    /// Keeps what is needed to find out what went wrong.
    pub async fn keep_logs(&mut self) -> anyhow::Result<()> {
        let slow = self.ledger.slow().await.unwrap_or_default();
        slow.iter().for_each(|job| self.note(format!("slow: {job}")));
        std::fs::write(self.logs.join("events"), &self.events).context("writing the events")
    }

    /// Removes the logs of a scenario that went well.
    pub fn forget_logs(&self) {
        // Whatever remains is overwritten by the next run.
        let _ = std::fs::remove_dir_all(&self.logs);
    }

    /// Adds jobs that are published before all others.
    pub fn first(&mut self, jobs: Vec<Job>) {
        self.workload.insert(jobs.into_iter().map(|job| (0, job)));
    }

    /// Adds jobs at even distances.
    pub fn sprinkle(&mut self, jobs: Vec<Job>) {
        let step = self.workload.jobs.len() / (jobs.len() + 1) + 1;
        self.workload.insert(jobs.into_iter().enumerate().map(|(at, job)| ((at + 1) * step, job)));
    }
}

/// Writes the workers' agents file. The witness is this program itself. It kills workers, which a sandbox would not allow.
fn agents(folder: &Path, account: &Path) -> anyhow::Result<String> {
    let program = std::env::current_exe().context("finding this program")?;
    let toml = format!(
        "[agents.echo]\nharness = \"echo\"\n[agents.scripted]\nharness = \"scripted\"\n\
         [agents.witness]\nharness = \"command\"\ncommand = [{program:?}, \"witness\", {account:?}]\n\
         sandbox = {{ level = \"off\" }}\n"
    );
    let path = folder.join("agents.toml");
    std::fs::write(&path, toml).with_context(|| format!("writing {}", path.display()))?;
    Ok(path.to_string_lossy().into_owned())
}
