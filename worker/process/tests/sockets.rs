//! A bounded network leaves no way to the daemons of the machine, and programs start and work all the same.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use process::{Limits, Network, Rules, Sandbox};
use tokio::io::AsyncReadExt;
use tokio::process::Command;

const ALL: [Network; 3] = [Network::All, Network::Port, Network::None];

/// Runs a program in such a sandbox, and returns its stdout once it has ended well.
async fn output(network: Network, program: &[&str]) -> String {
    let sandbox = Sandbox::new(Rules { network, ..Rules::default() }).expect("right rules");
    let mut command = Command::new(program[0]);
    command.args(&program[1..]).stdin(Stdio::null()).stdout(Stdio::piped());
    let entry = sandbox.enter(Path::new("/"), Some(9)).expect("an entry");
    let mut group = process::spawn(command, Limits::default(), Some(entry)).await.expect("a process");
    let (_, stdout, _) = group.take_pipes();
    let mut text = String::new();
    stdout.expect("a pipe").read_to_string(&mut text).await.expect("text");
    group.exited().await;
    let exit = group.end().await;
    assert!(exit.status.is_some_and(|status| status.success()), "{network:?}: {exit:?}: {text}");
    text
}

#[tokio::test]
async fn a_bounded_network_has_no_unix_sockets_but_pairs() {
    const TRIES: &str = "
import errno, socket, sys
def tried(act):
    try:
        act()
        print('ok')
    except OSError as error:
        print(errno.errorcode[error.errno])
for kind in [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]:
    tried(lambda: socket.socket(socket.AF_UNIX, kind))
tried(lambda: socket.socket(socket.AF_UNIX).connect(sys.argv[1]))
pair = socket.socketpair()
tried(lambda: pair[0].send(b'x'))
";
    let path = std::env::temp_dir().join(format!("daemon-{}", std::process::id()));
    let _daemon = UnixListener::bind(&path).unwrap();
    for network in ALL {
        let got = output(network, &["python3", "-c", TRIES, path.to_str().unwrap()]).await;
        let expected = match network {
            Network::All => "ok\nok\nok\nok\nok\n",
            Network::Port | Network::None => "EPERM\nEPERM\nEPERM\nEPERM\nok\n",
        };
        assert_eq!(got, expected, "{network:?}");
    }
    std::fs::remove_file(path).unwrap();
}

/// Where the kernel has no such numbers at all, it says `ENOSYS`.
#[cfg(target_arch = "x86_64")]
#[tokio::test]
async fn no_system_call_is_made_by_its_other_number() {
    const TRIES: &str = "
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
for call in [39, 41, 101]:
    print(libc.syscall(0x40000000 + call, 0, 0, 0, 0), errno.errorcode[ctypes.get_errno()])
";
    for network in ALL {
        assert_eq!(output(network, &["python3", "-c", TRIES]).await, "-1 EPERM\n".repeat(3), "{network:?}");
    }
}

#[tokio::test]
async fn python_starts_other_programs_and_looks_up_names_without_a_network() {
    const WORKS: &str = "
import asyncio, multiprocessing, os, pwd, socket, subprocess, syslog
pwd.getpwuid(os.getuid())
os.getgrouplist('root', 0)
socket.getaddrinfo('localhost', 80)
syslog.syslog('x')
subprocess.run(['sh', '-c', 'id'], check=True, stdout=subprocess.DEVNULL)
async def run():
    assert await (await asyncio.create_subprocess_exec('true')).wait() == 0
asyncio.run(run())
queue = multiprocessing.Queue()
child = multiprocessing.get_context('fork').Process(target=queue.put, args=(7,))
child.start()
assert queue.get() == 7
child.join()
print('works')
";
    for network in [Network::Port, Network::None] {
        assert_eq!(output(network, &["python3", "-c", WORKS]).await, "works\n", "{network:?}");
    }
}

#[tokio::test]
async fn node_starts_other_programs_and_looks_up_names_without_a_network() {
    const WORKS: &str = "
const { spawn, execFileSync } = require('child_process');
const { Worker } = require('worker_threads');
execFileSync('true');
const run = new Promise(done => spawn('true').on('exit', done));
const name = new Promise((done, fail) => require('dns').lookup('localhost', error => error ? fail(error) : done(0)));
const code = 'require(\"worker_threads\").parentPort.postMessage(0)';
const thread = new Promise(done => new Worker(code, { eval: true }).on('message', done));
const denied = new Promise(done => require('net').connect('/daemon').on('error', error => done(error.code)));
Promise.all([run, name, thread, denied]).then(got => console.log(got.join(' ')));
";
    if std::process::Command::new("node").arg("--version").output().is_err() {
        return;
    }
    for network in [Network::Port, Network::None] {
        assert_eq!(output(network, &["node", "-e", WORKS]).await, "0 0 0 EPERM\n", "{network:?}");
    }
}
