//! Ends the programs of a worker that was killed, with all that they started.
//!
//! A parent-death signal reaches a program's first process alone. So a small shell beside the worker knows the ids of all
//! groups: each new process reports its own before it becomes the program, and the worker says when a group has ended. When
//! the worker's end of the socket is closed, by whatever ends the worker, the shell kills the groups that are left. It
//! has a group of its own and ignores the signals that end a worker.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;
use rustix::net::{SendFlags, send};

use crate::group::Group;

/// How often a program is started again when the shell has died, and how long a dead one may take to be gone.
const TRIES: u32 = 20;
const WAIT: Duration = Duration::from_millis(5);

/// The shell's program. `?` is said before a process is made, `+` by the process, `!` if it did not become a program, and `-`
/// when its group has ended. `kill` fails for a group that is gone.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
groups=' '
last=
forget() {
    case $groups in *" $1 "*) groups="${groups%% $1 *} ${groups#* $1 }" ;; esac
}
while read -r what id; do
    case $what in
    '?') last= ;;
    +) last=$id groups="$groups$id " ;;
    '!') forget "$last" ;;
    -) forget "$id" ;;
    esac
done
for id in $groups; do kill -s KILL -- "-$id"; done
"#;

/// The worker's end of the socket, for new processes; -1 if there is no shell.
static SOCKET: AtomicI32 = AtomicI32::new(-1);
static GUARD: Mutex<Guard> = Mutex::new(Guard { shell: None, groups: BTreeSet::new(), missing: false });

struct Guard {
    shell: Option<(Child, UnixStream)>,
    groups: BTreeSet<i32>,
    /// Whether this machine has no shell.
    missing: bool,
}

/// Starts a program, watched by the shell. One at a time: only one thread calls it.
pub fn watched(start: impl Fn() -> io::Result<Group>) -> io::Result<Group> {
    for _ in 0..TRIES {
        lock().before_a_program()?;
        let started = start();
        match &started {
            Ok(group) => {
                lock().groups.insert(group.id().as_raw());
            }
            Err(error) => {
                lock().say(b'!', 0);
                // The shell was killed, and the process found nobody to tell. No program has begun.
                if error.kind() == ErrorKind::BrokenPipe {
                    thread::sleep(WAIT);
                    continue;
                }
            }
        }
        return started;
    }
    Err(io::Error::other("the shell that ends programs after their worker is killed again and again"))
}

/// Forgets a group that was killed. Its leader is not reaped yet, so that no other group has its id.
pub fn remove(group: Pid) {
    let mut guard = lock();
    guard.groups.remove(&group.as_raw());
    guard.say(b'-', group.as_raw());
}

fn lock() -> MutexGuard<'static, Guard> {
    GUARD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reports the calling process to the shell. It makes one system call, so it may run between fork and exec.
pub fn announce() -> Result<(), Errno> {
    let socket = SOCKET.load(Ordering::Relaxed);
    if socket < 0 {
        return Ok(());
    }
    #[expect(unsafe_code, reason = "the number of the socket comes from the process before the fork")]
    // SAFETY: the socket is closed only before a program is started, by the one thread that starts programs.
    let socket = unsafe { BorrowedFd::borrow_raw(socket) };
    say(socket, b'+', nix::unistd::getpid().as_raw())
}

/// Writes a line such as `+ 4711`, without allocating.
fn say(socket: BorrowedFd<'_>, what: u8, id: i32) -> Result<(), Errno> {
    let mut line = [0; 16];
    let mut at = line.len() - 1;
    line[at] = b'\n';
    let mut rest = id.unsigned_abs();
    loop {
        at -= 1;
        line[at] = b'0' + u8::try_from(rest % 10).unwrap_or(0);
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    line[at - 1] = b' ';
    line[at - 2] = what;
    match send(socket, &line[at - 2..], SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
        Ok(_) => Ok(()),
        Err(error) => Err(Errno::from_raw(error.raw_os_error())),
    }
}

impl Guard {
    /// Says a line. A shell that does not take it is replaced before the next program.
    fn say(&self, what: u8, id: i32) {
        if let Some((_, socket)) = &self.shell {
            let _ = say(socket.as_fd(), what, id);
        }
    }

    fn before_a_program(&mut self) -> io::Result<()> {
        self.start()?;
        self.say(b'?', 0);
        Ok(())
    }

    /// Starts the shell unless it runs.
    fn start(&mut self) -> io::Result<()> {
        if let Some((shell, _)) = &mut self.shell
            && matches!(shell.try_wait(), Ok(None))
        {
            return Ok(());
        }
        if self.missing {
            return Ok(());
        }
        self.stop();
        let (ours, its) = UnixStream::pair()?;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", SCRIPT, "harness-guard"]).env_clear().current_dir("/").process_group(0);
        command.stdin(OwnedFd::from(its)).stdout(Stdio::null()).stderr(Stdio::null());
        let shell = match command.spawn() {
            Ok(shell) => shell,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                tracing::warn!(
                    "there is no /bin/sh: what programs start may outlive a worker that is killed"
                );
                self.missing = true;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        for group in &self.groups {
            say(ours.as_fd(), b'+', *group)?;
        }
        SOCKET.store(ours.as_raw_fd(), Ordering::Relaxed);
        self.shell = Some((shell, ours));
        Ok(())
    }

    fn stop(&mut self) {
        SOCKET.store(-1, Ordering::Relaxed);
        if let Some((mut shell, _)) = self.shell.take() {
            // It has ended: this reaps it, and waits for nothing.
            let _ = shell.try_wait();
        }
    }
}
