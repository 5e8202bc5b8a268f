//! The target `process`: workers as processes of this machine, for development and small installations.
//!
//! All it knows is kept in a folder per pool, so that an autoscaler that was killed finds its workers again.
//! `size` holds the wanted number and its version. Each worker has a `NAME.pid` (its pid and when that
//! process began, so that a reused pid is not mistaken for it), a `NAME.addr` with the address of its admin
//! port, and a `NAME.log`. `targets.json` lists those addresses as Prometheus reads them (`file_sd_configs`).
//! A worker that ends unasked is started again, after a longer wait each time.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use job::Name;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::process::Command;
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::{Event, Order, Pod, Target, TargetError, Unsettled, Workload};

/// A worker that ended sooner than this after its start counts as crashing in a loop.
const STEADY: Duration = Duration::from_secs(10);

/// The longest wait before such a worker is started again.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// How often to check whether workers that were asked to stop have ended.
const POLL: Duration = Duration::from_millis(50);

/// Variables for a process that is started. It is a function, so that printing its holder shows no secrets.
pub type Environment = fn() -> Vec<(&'static str, &'static str)>;

/// Worker processes of one pool.
#[derive(Debug)]
pub struct Processes {
    name: String,
    pool: Name,
    program: PathBuf,
    /// Variables that workers are started with beside our own environment.
    environment: Environment,
    folder: PathBuf,
    starts: Mutex<Starts>,
    /// Whether the last attempt to write the list for Prometheus failed.
    is_unlisted: AtomicBool,
}

/// How the latest starts went.
#[derive(Debug, Default)]
struct Starts {
    last: Option<Instant>,
    crashes: u32,
}

/// The wanted size; the version grows with each change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    version: u64,
    workers: u32,
}

/// A worker that is alive.
#[derive(Debug)]
struct Living {
    name: String,
    pid: Pid,
    /// Whether it was asked to stop.
    leaving: bool,
}

impl Processes {
    /// Makes the target of a pool whose workers run this program, with these variables beside our own
    /// environment. What is known of them is kept in `folder`/`pool`.
    pub fn new(
        pool: Name,
        program: PathBuf,
        environment: Environment,
        folder: &Path,
    ) -> io::Result<Processes> {
        let folder = folder.join(pool.as_str());
        fs::create_dir_all(&folder)?;
        let name = format!("worker processes of pool {pool}");
        Ok(Processes {
            name,
            pool,
            program,
            environment,
            folder,
            starts: Mutex::default(),
            is_unlisted: AtomicBool::default(),
        })
    }

    fn size(&self) -> io::Result<Size> {
        let text = match fs::read_to_string(self.folder.join("size")) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Size::default()),
            Err(error) => return Err(error),
        };
        let mut numbers = text.split_whitespace();
        let (Some(version), Some(workers)) = (numbers.next(), numbers.next()) else {
            return Err(io::Error::other(format!(
                "size: got \"{text}\", expected a version and a number of workers"
            )));
        };
        let parsed = (version.parse(), workers.parse());
        let (Ok(version), Ok(workers)) = parsed else {
            return Err(io::Error::other(format!("size: got \"{text}\", expected two numbers")));
        };
        Ok(Size { version, workers })
    }

    fn set_size(&self, size: Size) -> io::Result<()> {
        let fresh = self.folder.join("size.new");
        fs::write(&fresh, format!("{} {}\n", size.version, size.workers))?;
        fs::rename(fresh, self.folder.join("size"))
    }

    /// Returns the workers that are alive, and removes what is left of the others.
    fn living(&self) -> io::Result<Vec<Living>> {
        let mut living = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "pid") {
                continue;
            }
            let text = fs::read_to_string(&path)?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            match alive(&text) {
                Some(pid) => {
                    let leaving = path.with_extension("leaving").exists();
                    living.push(Living { name, pid, leaving });
                }
                None => {
                    fs::remove_file(&path)?;
                    let _ = fs::remove_file(path.with_extension("leaving"));
                    let _ = fs::remove_file(path.with_extension("addr"));
                }
            }
        }
        living.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(living)
    }

    /// Returns the workers that are alive and were not asked to stop.
    fn staying(&self) -> io::Result<Vec<Living>> {
        Ok(self.living()?.into_iter().filter(|worker| !worker.leaving).collect())
    }

    fn failed(&self, doing: &str) -> impl FnOnce(io::Error) -> TargetError {
        let reason = format!("{doing} failed");
        move |error| TargetError::Unreachable { target: self.name.clone(), reason, source: Arc::new(error) }
    }

    fn start(&self) -> io::Result<()> {
        let name = format!("{}-{:08x}", self.pool, fastrand::u32(..));
        let log = fs::File::create(self.folder.join(format!("{name}.log")))?;
        let child = Command::new(&self.program)
            .envs((self.environment)())
            .env("POOL", self.pool.as_str())
            .env("POD_NAME", &name)
            .env("ADMIN_ADDR", "127.0.0.1:0")
            .env("ADMIN_ADDR_TO", self.folder.join(format!("{name}.addr")))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // A Ctrl-C in our terminal is for us; we stop the workers ourselves.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                io::Error::new(error.kind(), format!("starting {}: {error}", self.program.display()))
            })?;
        let Some(pid) = child.id() else { return Err(io::Error::other("the worker has no pid")) };
        let Some(began) = began(pid) else {
            return Err(io::Error::other(format!("worker {name} ended at once, see {name}.log")));
        };
        fs::write(self.folder.join(format!("{name}.pid")), format!("{pid} {began}\n"))?;
        info!(pool = %self.pool, pod = name, pid, "started a worker");
        // The runtime reaps the child.
        Ok(())
    }

    /// Writes down where Prometheus finds the workers that are alive. If that fails, the pool is scaled all
    /// the same.
    fn list_targets(&self) {
        let written = self.write_targets();
        let was_unlisted = self.is_unlisted.swap(written.is_err(), Ordering::Relaxed);
        if let Err(cause) = written
            && !was_unlisted
        {
            warn!(pool = %self.pool, %cause, "the workers cannot be listed for Prometheus");
        }
    }

    fn write_targets(&self) -> io::Result<()> {
        let mut targets = Vec::new();
        for worker in self.living()? {
            // A worker that has just been started has no port yet.
            if let Ok(address) = fs::read_to_string(self.folder.join(format!("{}.addr", worker.name))) {
                targets.push(address.trim().to_owned());
            }
        }
        let labels = json!({"component": "worker", "pool": self.pool.as_str()});
        let list = format!("{}\n", json!([{"targets": targets, "labels": labels}]));
        let path = self.folder.join("targets.json");
        if fs::read_to_string(&path).is_ok_and(|written| written == list) {
            return Ok(());
        }
        let fresh = self.folder.join("targets.json.new");
        fs::write(&fresh, list)?;
        fs::rename(fresh, path)
    }

    fn request_stop(&self, worker: &Living) -> io::Result<()> {
        fs::write(self.folder.join(format!("{}.leaving", worker.name)), "")?;
        info!(pool = %self.pool, pod = worker.name, pid = worker.pid.as_raw(), "asked a worker to stop");
        // A worker that has just ended needs no signal.
        let _ = kill(worker.pid, Signal::SIGTERM);
        Ok(())
    }

    /// Starts the missing workers. If workers end as soon as they start, it waits longer each time. Returns
    /// why it waits.
    async fn fill(&self, wanted: u32) -> io::Result<Option<String>> {
        let present = self.staying()?.len();
        let missing = (wanted as usize).saturating_sub(present);
        let mut starts = self.starts.lock().await;
        let since = starts.last.map(|last| last.elapsed());
        if missing == 0 {
            if since.is_none_or(|since| since > STEADY) {
                starts.crashes = 0;
            }
            return Ok(None);
        }
        let backoff = Duration::from_secs(1).saturating_mul(1 << starts.crashes.min(6)).min(MAX_BACKOFF);
        if starts.crashes > 0 && since.is_some_and(|since| since < backoff) {
            return Ok(Some(format!(
                "{missing} workers ended soon after their start; the next try is within {backoff:?}"
            )));
        }
        if since.is_some_and(|since| since < STEADY) {
            starts.crashes += 1;
            warn!(pool = %self.pool, missing, "workers ended by themselves; they are started again");
        }
        starts.last = Some(Instant::now());
        (0..missing).try_for_each(|_| self.start())?;
        Ok(None)
    }

    /// Stops all workers and waits until they have ended.
    pub async fn stop_all(&self) -> io::Result<()> {
        for worker in self.living()? {
            self.request_stop(&worker)?;
        }
        while !self.living()?.is_empty() {
            tokio::time::sleep(POLL).await;
        }
        self.list_targets();
        Ok(())
    }
}

#[async_trait]
impl Target for Processes {
    fn name(&self) -> &str {
        &self.name
    }

    async fn look(&self) -> Result<Workload, TargetError> {
        let size = self.size().map_err(self.failed("reading its size"))?;
        let waits = self.fill(size.workers).await.map_err(self.failed("starting what is missing"))?;
        self.list_targets();
        let unsettled = waits.map(Unsettled::Missing);
        let ready = self.staying().map_err(self.failed("looking for its processes"))?.len() as u32;
        let version = size.version.to_string();
        let (order, selector) = (Order::AsNamed, String::new());
        Ok(Workload { replicas: size.workers, ready, version, unsettled, order, selector })
    }

    async fn pods(&self, _seen: &Workload) -> Result<Vec<Pod>, TargetError> {
        let staying = self.staying().map_err(self.failed("looking for its processes"))?;
        let pod = |worker: Living| Pod { name: worker.name, ready: true, ordinal: None, trouble: None };
        Ok(staying.into_iter().map(pod).collect())
    }

    async fn resize(&self, seen: &Workload, to: u32, leaving: &[String]) -> Result<(), TargetError> {
        let size = self.size().map_err(self.failed("reading its size"))?;
        if size.version.to_string() != seen.version {
            return Err(TargetError::Conflict { target: self.name.clone() });
        }
        let resize = || {
            self.set_size(Size { version: size.version + 1, workers: to })?;
            for worker in self.staying()?.iter().filter(|worker| leaving.contains(&worker.name)) {
                self.request_stop(worker)?;
            }
            let missing = (to as usize).saturating_sub(self.staying()?.len());
            (0..missing).try_for_each(|_| self.start())
        };
        resize().map_err(self.failed("resizing it"))
    }

    async fn touch(&self, _why: &str) -> Result<(), TargetError> {
        let touch = || {
            let size = self.size()?;
            self.set_size(Size { version: size.version + 1, ..size })
        };
        touch().map_err(self.failed("changing its version"))
    }

    /// Does nothing: the only people who watch read our log, which has the event already.
    async fn report(&self, _event: &Event) {}
}

/// Returns the pid in a pid file, if that very process still runs.
fn alive(text: &str) -> Option<Pid> {
    let (pid, since) = text.trim().split_once(' ')?;
    let pid: u32 = pid.parse().ok()?;
    (began(pid)? == since.parse::<u64>().ok()?).then(|| Pid::from_raw(pid as i32))
}

/// Returns when a process began, in clock ticks after boot, by proc(5); `None` if there is none or it is a
/// zombie.
fn began(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    // Field 22; the state was field 3.
    fields.nth(18)?.parse().ok()
}
