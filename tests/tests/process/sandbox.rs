//! A program reaches what its agent's sandbox allows: no other attempt's token, no other session's files, no other port.

use std::net::TcpListener;

use job::{JobSpec, JobState};
use serde_json::{Value, json};
use tests::provider::{PROVIDER_KEY, Provider};
use tests::{Fleet, Worker, job, until};

/// Tries what its input says, each a piece of Python, and returns what became of each: `ok`, or the name of the error.
const TRIES: &str = r#"#!/usr/bin/env python3
import ctypes, errno, json, os, pathlib, signal, socket, subprocess, tempfile, time, urllib.request

order = json.loads(input())
tried = order["job"]["input"]
libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

results = {}
for name, code in tried.items():
    try:
        exec(code)
        results[name] = "ok"
    except OSError as error:
        cause = getattr(error, "reason", error)
        results[name] = errno.errorcode.get(cause.errno, str(error))
results["landlock"] = libc.syscall(444, None, 0, 1)
print(json.dumps({"type": "result", "output": results}), flush=True)
"#;

/// Shows its process id, and goes on until its file is taken away.
const HOLDS: &str = "#!/bin/sh\necho $$ > \"$0.pid\"\nwhile test -e \"$0.pid\"; do sleep 0.1; done\necho '{\"type\":\"result\"}'\n";

struct Bounds {
    fleet: Fleet,
    _worker: Worker,
}

impl Bounds {
    /// Starts a worker whose agent `tries` has this sandbox, and may call models of this provider.
    async fn start(sandbox: &str, provider: &Provider) -> Bounds {
        let fleet = Fleet::new().await;
        let (tries, holds) = (fleet.program("tries", TRIES), fleet.program("holds", HOLDS));
        let agents = fleet.folder.path().join("agents.toml");
        let toml = format!(
            "[agents.tries]\nharness = \"command\"\ncommand = [{tries:?}]\nmodels = [\"claude-haiku-4-5\"]\n{sandbox}\n
             [agents.holds]\nharness = \"command\"\ncommand = [{holds:?}]\nenv = {{ TOKEN = \"a secret\" }}\n"
        );
        std::fs::write(&agents, toml).expect("written");
        let launch = fleet.worker("worker").set("AGENTS_FILE", agents.display());
        let launch =
            launch.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url());
        let worker = launch.start().await;
        Bounds { fleet, _worker: worker }
    }

    async fn tried(&self, tries: Value) -> Value {
        let spec = job("tries", "tries", tries);
        self.fleet.enqueue(std::slice::from_ref(&spec)).await;
        let view = self.fleet.ended(spec.job_id).await;
        assert_eq!(view.state, JobState::Succeeded, "{view:?}");
        serde_json::from_str(view.output.expect("an output").as_str()).expect("JSON")
    }
}

#[tokio::test]
async fn no_program_reads_or_signals_another_and_the_token_of_an_attempt_stays_its_own() {
    let provider = Provider::start().await;
    let bounds = Bounds::start("", &provider).await;
    let other: JobSpec = job("other", "holds", json!(null));
    bounds.fleet.enqueue(std::slice::from_ref(&other)).await;
    let at = bounds.fleet.folder.path().join("holds.pid");
    let said = async || std::fs::read_to_string(&at).ok().filter(|pid| pid.ends_with('\n'));
    let pid = until("the other program runs", said).await;
    let pid = pid.trim();
    let got = bounds
        .tried(json!({
            "environment": format!("open('/proc/{pid}/environ').read()"),
            "memory": format!("open('/proc/{pid}/mem', 'rb')"),
            "signal": format!("os.kill({pid}, 0)"),
            "worker": "os.kill(os.getppid(), signal.SIGCONT)",
            "worker's environment": "open(f'/proc/{os.getppid()}/environ').read()",
            "trace": "call(101, 0, 0, 0, 0)",
            "raw": "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
            "packets": "socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 3)",
            "ring": "call(425, 1, None)",
            "other numbers": "call(0x40000000 + 39)",
            "own": "open('/proc/self/environ').read(); subprocess.run(['true'], check=True); os.kill(os.getpid(), 0)",
            "datagrams": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            "temporary": "tempfile.NamedTemporaryFile().write(b'x')",
        }))
        .await;
    std::fs::remove_file(&at).expect("its file");
    let signals = if got["landlock"].as_i64() >= Some(6) { "EPERM" } else { "ok" };
    let expected = json!({
        "environment": "EACCES", "memory": "EACCES", "signal": signals, "worker": signals, "worker's environment": "EACCES",
        "trace": "EPERM", "raw": "EPERM", "packets": "EPERM", "ring": "EPERM", "other numbers": "EPERM", "own": "ok", "datagrams": "ok",
        "temporary": "ok", "landlock": got["landlock"],
    });
    assert_eq!(got, expected);
    assert_eq!(bounds.fleet.ended(other.job_id).await.state, JobState::Succeeded);
}

#[tokio::test]
async fn a_bounded_program_changes_its_workspace_and_reads_what_is_named() {
    let provider = Provider::start().await;
    let named = tempfile::tempdir().expect("a folder");
    let [readable, writable] = ["readable", "writable"].map(|name| named.path().join(name));
    std::fs::write(&readable, "text").expect("written");
    std::fs::create_dir(&writable).expect("a folder");
    let sandbox = format!(
        "sandbox = {{ level = \"required\", files = \"workspace\", read = [{readable:?}], write = [{writable:?}] }}"
    );
    let bounds = Bounds::start(&sandbox, &provider).await;
    let spec = job("other", "holds", json!(null));
    bounds.fleet.enqueue(std::slice::from_ref(&spec)).await;
    let pid = bounds.fleet.folder.path().join("holds.pid");
    until("another session has a workspace", async || pid.exists().then_some(())).await;
    let (agents, named) = (bounds.fleet.folder.path().join("agents.toml"), named.path());
    let got = bounds
        .tried(json!({
            "own": "pathlib.Path('a').mkdir(); pathlib.Path('a/b').write_text('x'); os.rename('a/b', 'c')",
            "temporary": "tempfile.NamedTemporaryFile().write(b'x')",
            "run": "subprocess.run(['sh', '-c', 'true'], check=True)",
            "random": "open('/dev/urandom', 'rb').read(1); open('/dev/null', 'w').write('x')",
            "other session": "os.listdir('../other')",
            "sessions": "os.listdir('..')",
            "link": "os.symlink('../other', 'there'); os.listdir('there')",
            "settings": format!("open({agents:?}).read()"),
            "shared": "open('/tmp/from-a-sandbox', 'w')",
            "read": format!("open({readable:?}).read()"),
            "change": format!("open({readable:?}, 'a')"),
            "write": format!("open({writable:?} + '/x', 'w').write('x')"),
            "beside": format!("os.listdir({named:?})"),
        }))
        .await;
    std::fs::remove_file(&pid).expect("its file");
    let refused = ["other session", "sessions", "link", "settings", "shared", "change", "beside"];
    for (name, result) in got.as_object().expect("an object").iter().filter(|(name, _)| *name != "landlock") {
        let expected = if refused.contains(&name.as_str()) { "EACCES" } else { "ok" };
        assert_eq!(result, expected, "{name}: {got}");
    }
}

#[tokio::test]
async fn a_program_without_a_network_reaches_the_gateway_or_nothing() {
    let provider = Provider::start().await;
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a port");
    let elsewhere = elsewhere.local_addr().expect("an address").port();
    let tries = json!({
        "gateway": "urllib.request.urlopen(urllib.request.Request(os.environ['ANTHROPIC_BASE_URL'] + '/v1/models', headers={'x-api-key': os.environ['ANTHROPIC_API_KEY'], 'anthropic-version': '2023-06-01'})).read()",
        "elsewhere": format!("socket.create_connection(('127.0.0.1', {elsewhere}))"),
        "fast open": format!("socket.socket().sendto(b'x', socket.MSG_FASTOPEN, ('127.0.0.1', {elsewhere}))"),
        "multipath": format!("socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).connect(('127.0.0.1', {elsewhere}))"),
        "listen": "socket.create_server(('127.0.0.1', 0))",
        "datagrams": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "virtual machines": "socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)",
        "daemons": "socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)",
        "pair": "one, other = socket.socketpair(); one.send(b'x')",
    });
    let online = |network: &str| format!("sandbox = {{ level = \"required\", network = \"{network}\" }}");
    let got = Bounds::start(&online("gateway"), &provider).await.tried(tries.clone()).await;
    let expected = json!({
        "gateway": "ok", "elsewhere": "EACCES", "fast open": "EPERM", "multipath": "EPERM", "listen": "EACCES",
        "datagrams": "EPERM", "virtual machines": "EPERM", "daemons": "EPERM", "pair": "ok", "landlock": got["landlock"],
    });
    assert_eq!(got, expected);
    let got = Bounds::start(&online("none"), &provider).await.tried(tries).await;
    for (name, result) in got.as_object().expect("an object").iter().filter(|(name, _)| *name != "landlock") {
        assert_eq!(result, if name == "pair" { "ok" } else { "EPERM" }, "{name}: {got}");
    }
}
