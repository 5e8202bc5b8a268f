//! A worker: a process of the real binary, with its log, its admin port and its signals.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::prctl::set_pdeathsig;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::{TIMEOUT, http, until, usage};

/// Returns the path of one of our binaries. Cargo puts them in one folder, and tests and examples in folders below it.
/// `cargo test` does not build the binaries, so an outdated one is refused.
pub fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("our own path");
    let folder = own.parent().expect("a folder of cargo's");
    let inner = folder.ends_with("deps") || folder.ends_with("examples");
    let folder = if inner { folder.join("..") } else { folder.to_owned() };
    let path = folder.join(name);
    assert!(path.is_file(), "{} does not exist: run `cargo build` first (or `make test`)", path.display());
    if let Some(newer) = newer_source(&path) {
        panic!("{} is older than {newer}: run `cargo build` first (or `make test`)", path.display());
    }
    path
}

/// Returns a source file that was changed after the binary was built, from the list that cargo keeps beside it.
fn newer_source(binary: &Path) -> Option<String> {
    let built = binary.metadata().and_then(|meta| meta.modified()).ok()?;
    let list = std::fs::read_to_string(binary.with_extension("d")).ok()?;
    let changed = |file: &str| std::fs::metadata(file).and_then(|meta| meta.modified()).ok();
    let mut files = list.split_whitespace().skip(1);
    files.find(|file| changed(file).is_some_and(|changed| changed > built)).map(str::to_owned)
}

/// A worker that is about to be started, or an autoscaler, whose process is handled in the same way.
#[derive(Clone)]
pub struct Launch {
    name: String,
    program: &'static str,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    log: Option<PathBuf>,
    user: Option<u32>,
    files: Option<(u64, u64)>,
    through: Vec<String>,
}

impl Launch {
    pub(crate) fn new(name: &str, environment: BTreeMap<String, String>) -> Launch {
        let (arguments, name) = (Vec::new(), name.to_owned());
        let (log, user, files, through) = (None, None, None, Vec::new());
        Launch { name, program: "worker", arguments, environment, log, user, files, through }
    }

    /// A worker with exactly these settings, see [`Launch::environment`].
    pub fn of(name: &str, environment: BTreeMap<String, String>) -> Launch {
        Launch::new(name, environment)
    }

    /// Its settings so far, for others like it.
    pub fn environment(self) -> BTreeMap<String, String> {
        self.environment
    }

    /// Starts another program of ours instead, with arguments.
    pub(crate) fn program(self, program: &'static str, arguments: &[&str]) -> Launch {
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Launch { program, arguments, ..self }
    }

    /// Sets an environment variable.
    pub fn set(mut self, name: &str, value: impl ToString) -> Launch {
        self.environment.insert(name.to_owned(), value.to_string());
        self
    }

    /// Sets a lease of two seconds, so that a death is noticed soon. Use it only where a worker dies: a busy machine
    /// may delay a heartbeat that long.
    pub fn short_lease(self) -> Launch {
        self.set("LEASE_S", 2)
    }

    /// Sends traces to this address, and soon: a test should not wait for the usual five seconds.
    pub fn traced(self, url: &str) -> Launch {
        self.set("OTEL_EXPORTER_OTLP_ENDPOINT", url).set("OTEL_BSP_SCHEDULE_DELAY", 100)
    }

    /// Removes an environment variable.
    pub fn unset(mut self, name: &str) -> Launch {
        self.environment.remove(name);
        self
    }

    /// Also writes its log to a file, line by line.
    pub fn log_to(mut self, path: PathBuf) -> Launch {
        self.log = Some(path);
        self
    }

    /// Runs as this user, if we may choose one.
    pub fn user(self, user: u32) -> Launch {
        Launch { user: Some(user), ..self }
    }

    /// Sets how many files it may open: the soft limit and the hard limit.
    pub fn files(self, soft: u64, hard: u64) -> Launch {
        Launch { files: Some((soft, hard)), ..self }
    }

    /// Starts it through another command, such as `nohup`.
    pub fn through(self, command: &[&str]) -> Launch {
        Launch { through: command.iter().map(|word| (*word).to_owned()).collect(), ..self }
    }

    /// Starts the process and does not wait.
    pub fn launch(self) -> Worker {
        let program = binary(self.program);
        let mut words = self.through.iter().map(OsString::from).chain([program.into()]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command
            .args(words)
            .args(&self.arguments)
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stderr(Stdio::piped());
        if let Some(user) = self.user.filter(|_| crate::is_root()) {
            command.uid(user).gid(user);
        }
        let files = self.files;
        let prepare = move || {
            if let Some((soft, hard)) = files {
                setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
            }
            // A test that is killed leaves no worker behind.
            set_pdeathsig(Signal::SIGKILL).map_err(Into::into)
        };
        #[expect(unsafe_code, reason = "only a hook before exec can set a parent-death signal and a limit")]
        // SAFETY: the hook makes system calls; it neither allocates nor locks.
        unsafe {
            command.pre_exec(prepare)
        };
        let mut child = command.spawn().expect("a worker process");
        let stderr = child.stderr.take().expect("its stderr");
        let (sender, log) = watch::channel(Log::default());
        let mut copy = self.log.as_ref().map(|path| File::create(path).expect("a file for the log"));
        let stalled = Arc::new(AtomicBool::new(false));
        let stands_still = stalled.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                while stands_still.load(Ordering::Relaxed) {
                    std::thread::park();
                }
                let line = String::from_utf8_lossy(&line).into_owned();
                if let Some(copy) = &mut copy {
                    writeln!(copy, "{line}").expect("a log that can be written");
                }
                sender.send_modify(|log| log.lines.push(line));
            }
            // The process has closed its end of the pipe, so it has ended.
            sender.send_modify(|log| log.over = true);
        });
        Worker { name: self.name, child, log, copy: self.log, reader: Some(reader), stalled }
    }

    /// Starts the process and waits until it takes jobs.
    pub async fn start(self) -> Worker {
        let worker = self.launch();
        worker.ready().await;
        worker
    }
}

#[derive(Default)]
struct Log {
    lines: Vec<String>,
    over: bool,
}

/// A worker process. It is killed when this is dropped, and its log is printed if the test has failed.
pub struct Worker {
    name: String,
    child: Child,
    log: watch::Receiver<Log>,
    copy: Option<PathBuf>,
    reader: Option<JoinHandle<()>>,
    stalled: Arc<AtomicBool>,
}

impl Worker {
    /// Stops reading its log, so that the pipe fills.
    pub fn stall_log(&self) {
        self.stalled.store(true, Ordering::Relaxed);
    }

    /// Reads its log again.
    pub fn read_log(&self) {
        self.stalled.store(false, Ordering::Relaxed);
        if let Some(reader) = &self.reader {
            reader.thread().unpark();
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits for a line in its log that contains `text`, and returns the line.
    pub async fn said(&self, text: &str) -> String {
        let mut log = self.log.clone();
        let line = |log: &Log| log.lines.iter().find(|line| line.contains(text)).cloned();
        let heard = timeout(TIMEOUT, log.wait_for(|log| log.over || line(log).is_some())).await;
        match heard {
            Ok(Ok(log)) => match line(&log) {
                Some(line) => line,
                None => panic!("{} ended without logging \"{text}\"", self.name),
            },
            Ok(Err(_)) | Err(_) => {
                panic!("{} did not log \"{text}\" within {} s", self.name, TIMEOUT.as_secs())
            }
        }
    }

    /// Whether the process still lives.
    pub fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        self.log.borrow().lines.join("\n")
    }

    /// The first id under which it takes jobs.
    pub async fn id(&self) -> String {
        field(&self.said("takes jobs").await, "worker_id")
    }

    /// Waits until it takes jobs.
    pub async fn ready(&self) {
        self.said("takes jobs").await;
        until("the worker is ready", async || (self.get("/ready").await.0 == 200).then_some(())).await;
    }

    /// The address of its admin port.
    pub async fn address(&self) -> SocketAddr {
        let said = self.said("the admin port is open").await;
        field(&said, "address").parse().expect("an address")
    }

    /// Asks its admin port; a status of 0 means no answer.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let address = self.address().await;
        http::get(&format!("http://{address}{path}")).unwrap_or_default()
    }

    /// Asks its admin port for JSON.
    pub async fn get_json(&self, path: &str) -> (u16, Value) {
        let (status, body) = self.get(path).await;
        (status, serde_json::from_str(&body).unwrap_or_default())
    }

    /// The value of a metric, named with its labels as in `/metrics`; 0 if it is absent.
    pub async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().expect("a number"))
    }

    /// Waits until a counter or gauge has this value. It is changed after what it counts, so that a test that has seen
    /// a job's end may still read the number from before.
    pub async fn counted(&self, name: &str, wanted: f64) {
        let look = async || {
            let found = self.metric(name).await;
            if found == wanted { Ok(()) } else { Err(found) }
        };
        crate::until_ok(&format!("{name} is {wanted}"), look).await
    }

    /// User and system time of its process, in seconds.
    pub fn cpu_s(&self) -> f64 {
        usage::cpu_s(self.child.id())
    }

    /// Memory of its process, in megabytes.
    pub fn resident_mb(&self) -> f64 {
        usage::resident_mb(self.child.id())
    }

    /// The most memory that its process had, in megabytes.
    pub fn peak_mb(&self) -> f64 {
        usage::peak_mb(self.child.id())
    }

    /// Sends SIGKILL. The process is gone when this returns.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.reap();
    }

    /// Sends SIGTERM, which makes it drain.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    /// Sends SIGHUP, as when its terminal closes.
    pub fn hang_up(&self) {
        self.signal(Signal::SIGHUP);
    }

    /// Sends SIGSTOP: the process stands still like a suspended machine.
    pub fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Sends SIGCONT: the process continues as if no time had passed.
    pub fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Waits for its end and returns its exit code.
    pub async fn exit(&mut self) -> i32 {
        let status = self.ended().await;
        status.code().unwrap_or_else(|| panic!("{} ended by a signal: {status}", self.name))
    }

    /// Waits for its end, by exit or by signal.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut log = self.log.clone();
        let over = timeout(TIMEOUT, log.wait_for(|log| log.over)).await;
        assert!(over.is_ok(), "{} did not end within {} s", self.name, TIMEOUT.as_secs());
        self.child.wait().expect("an exit status")
    }

    /// As `exit`, with a bound.
    pub async fn exit_within(&mut self, bound: Duration) -> i32 {
        let late = format!("{} did not end within {bound:?}", self.name);
        timeout(bound, self.exit()).await.expect(&late)
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32);
        // Until we have waited for it, no other process can get its pid.
        let _ = kill(pid, signal);
    }

    fn reap(&mut self) {
        let _ = self.child.wait();
        self.read_log();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if self.lives() {
            self.signal(Signal::SIGKILL);
        }
        self.reap();
        if std::thread::panicking() {
            match &self.copy {
                Some(path) => eprintln!("the log of {} is {}", self.name, path.display()),
                None => eprintln!("---- the log of {} ----\n{}\n----", self.name, self.log()),
            }
        }
    }
}

/// Returns a field of a log line: `name=value`.
fn field(line: &str, name: &str) -> String {
    let value = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {name} in: {line}")).to_owned()
}
