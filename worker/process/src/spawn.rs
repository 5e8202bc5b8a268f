//! Starts processes so that they cannot outlive the worker.
//!
//! `PR_SET_PDEATHSIG` sends a child SIGKILL when the *thread* that made it ends. Tokio's threads can end while the
//! process lives on: a worker thread that blocks joins the pool whose threads are retired when idle. Such a thread
//! would take running programs with it. So all programs are started by one thread, which lives as long as the process
//! does.
//!
//! Wrapping the program in util-linux's `setpriv` and `prlimit` would avoid the `unsafe` here. But then a program that
//! cannot be executed would show as the wrapper's exit code instead of an error of our own, and the image would need
//! both tools.

use std::cell::RefCell;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};
use tokio::process::Command;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};

use crate::group::Group;
use crate::guard;
use crate::sandbox::Entry;

const MIB: u64 = 1024 * 1024;

/// The soft limit of open files that programs get; see [`limit_open_files`].
static OPEN_FILES: OnceLock<u64> = OnceLock::new();

/// Sets the soft limit of open files that programs get instead of the process's own, which may have been raised. Some
/// programs walk over all numbers up to their limit, and `select` knows only the first 1024. Only the first call
/// counts.
pub fn limit_open_files(soft: u64) {
    let _ = OPEN_FILES.set(soft);
}

/// What each process of a program may have. None of them leaves a dump of its memory when it dies.
///
/// Their number has no limit here: `RLIMIT_NPROC` counts all processes of the user, and does not hold for root.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// Its address space.
    pub memory_mb: Option<u64>,
    /// The largest file that it may write.
    pub file_mb: Option<u64>,
}

/// Starts `command` as the leader of its own process group, in a sandbox if there is one.
pub async fn spawn(mut command: Command, limits: Limits, mut sandbox: Option<Entry>) -> io::Result<Group> {
    command.process_group(0).kill_on_drop(true);
    let worker = getpid();
    let open_files = OPEN_FILES.get().copied();
    let prepare = move || {
        prepare(worker, limits, open_files)?;
        guard::announce()?;
        sandbox.as_mut().map_or(Ok(()), Entry::apply).map_err(io::Error::from)
    };
    #[expect(unsafe_code, reason = "only a hook before exec can set a parent-death signal and a limit")]
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. `prepare`, `announce` and `apply` make
    // system calls and return numbers; they neither allocate nor lock.
    unsafe {
        command.pre_exec(prepare)
    };
    let (reply, answer) = oneshot::channel();
    let order = Order { command, runtime: Handle::current(), reply };
    let gone = || io::Error::other("the thread that starts programs has ended");
    starter()?.send(order).await.map_err(|_| gone())?;
    answer.await.map_err(|_| gone())?
}

/// Prepares the new process before it becomes the program.
fn prepare(worker: Pid, limits: Limits, open_files: Option<u64>) -> Result<(), Errno> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The worker may have died before the line above.
    if getppid() != worker {
        return Err(Errno::ESRCH);
    }
    // A setuid program would lose the signal.
    prctl::set_no_new_privs()?;
    // A dump holds what the program was given, and would fill the session's folder.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    if let Some(limit_mb) = limits.memory_mb {
        let bytes = limit_mb * MIB;
        setrlimit(Resource::RLIMIT_AS, bytes, bytes)?;
    }
    if let Some(limit_mb) = limits.file_mb {
        // The worker may have a lower one of its own.
        let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE)?;
        let bytes = (limit_mb * MIB).min(hard);
        setrlimit(Resource::RLIMIT_FSIZE, bytes, bytes)?;
    }
    if let Some(soft) = open_files {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, soft.min(hard), hard)?;
    }
    Ok(())
}

struct Order {
    command: Command,
    runtime: Handle,
    reply: oneshot::Sender<io::Result<Group>>,
}

/// Returns the channel to the thread that starts programs. The thread is made for the first program.
fn starter() -> io::Result<mpsc::Sender<Order>> {
    static THREAD: Mutex<Option<mpsc::Sender<Order>>> = Mutex::new(None);
    let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(orders) = thread.as_ref().filter(|orders| !orders.is_closed()) {
        return Ok(orders.clone());
    }
    let (sender, mut orders) = mpsc::channel(64);
    thread::Builder::new().name("harness-spawn".to_owned()).spawn(move || {
        // The sender is static, so this ends with the process.
        while let Some(order) = orders.blocking_recv() {
            start(order);
        }
    })?;
    *thread = Some(sender.clone());
    Ok(sender)
}

fn start(order: Order) {
    let Order { command, runtime, reply } = order;
    let _runtime = runtime.enter();
    let command = RefCell::new(command);
    let group = guard::watched(|| command.borrow_mut().spawn().and_then(Group::new));
    // The caller may have been dropped meanwhile. Then the group comes back here, and dropping it kills it.
    drop(reply.send(group));
}
