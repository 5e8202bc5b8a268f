//! A process reacts to a stop signal at any moment, waits for services that are away, and says why it ends.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};

use job::JobId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tests::{Fleet, Link, Proxy, TIMEOUT, is_root, job, until, until_ok};

#[tokio::test]
async fn why_a_process_ends_is_said_at_every_log_level() {
    let fleet = Fleet::new().await;
    for level in ["info", " info", "", "off", "worker=debug", "warning", "info,worker"] {
        let worker = fleet.worker("worker").unset("AMQP_URL").set("LOG_LEVEL", level);
        for json in ["false", "true"] {
            let mut worker = worker.clone().set("LOG_JSON", json).launch();
            assert_eq!(worker.exit().await, 2, "{level}");
            let log = worker.log();
            assert!(log.contains("AMQP_URL: not set"), "LOG_LEVEL=\"{level}\": {log}");
            let is_wrong = ["warning", "info,worker"].contains(&level);
            assert_eq!(log.contains("is no level, expected error, warn"), is_wrong, "{log}");
            if json == "true" {
                assert!(log.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{log}");
            }
        }
    }
}

/// Waits until the process listens for SIGTERM.
async fn listens(pid: u32) {
    let caught = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    let listens = async || caught().filter(|mask| mask >> (Signal::SIGTERM as u32 - 1) & 1 == 1);
    until("it listens for SIGTERM", listens).await;
}

fn terminate(pid: u32) {
    kill(Pid::from_raw(pid as i32), Signal::SIGTERM).expect("a process of ours");
}

async fn ended(mut child: Child) -> i32 {
    let status = until("it has ended", async || child.try_wait().expect("a status")).await;
    status.code().unwrap_or_else(|| panic!("it ended by a signal: {status}"))
}

#[tokio::test]
async fn a_first_connection_that_takes_its_time_holds_up_no_stop() {
    let fleet = Fleet::new().await;
    let (postgres, broker) = (Proxy::to(&fleet.database.url).await, Proxy::to(&fleet.vhost.url).await);
    let urls: BTreeMap<_, _> = [
        ("DATABASE_URL", postgres.through(&fleet.database.url)),
        ("AMQP_URL", broker.through(&fleet.vhost.url)),
    ]
    .into();
    let unknown = JobId::now().to_string();
    let with_both: [&[&str]; 5] = [
        &["enqueue", "--session", "s", "--agent", "echo"],
        &["enqueue", "--file", "-"],
        &["doctor"],
        &["cancel", &unknown],
        &["dead", "list"],
    ];
    let with_postgres: [&[&str]; 7] = [
        &["status", &unknown],
        &["wait", &unknown],
        &["sessions", "show", "s"],
        &["audit"],
        &["audit", "--watch"],
        &["migrate"],
        &["revive"],
    ];
    let processes = fleet.processes().to_string_lossy().into_owned();
    let once = ["once", "--dry-run", "--target", "process", "--process-dir", &processes];
    let target = "[pools.default]\ntarget = 'process'\n";
    for silent in [&postgres, &broker] {
        silent.set(Link::Frozen);
        let only_postgres = std::ptr::eq(silent, &postgres);
        let producer = with_both.iter().chain(with_postgres.iter().filter(|_| only_postgres));
        // `once` does not wait for a broker: what cannot be read is unknown.
        let autoscaler = [&["observe"][..], &once, &["explain", "default"]];
        let autoscaler = autoscaler.into_iter().take(if only_postgres { 3 } else { 1 });
        let commands = producer.map(|arguments| fleet.producer_command(arguments));
        for mut command in commands.chain(autoscaler.map(|arguments| fleet.autoscaler_command(arguments))) {
            command.envs(&urls).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
            let child = command.spawn().expect("a program of ours");
            listens(child.id()).await;
            terminate(child.id());
            assert_eq!(ended(child).await, 130, "{command:?}");
        }
        let lasting = [fleet.relay("relay"), fleet.worker("worker"), fleet.autoscaler("autoscaler", target)];
        for process in lasting {
            let process = urls.iter().fold(process, |process, (name, url)| process.set(name, url));
            let mut process = process.launch();
            listens(process.pid()).await;
            process.terminate();
            assert_eq!(process.exit().await, 0);
        }
        silent.set(Link::Pass);
    }
}

#[tokio::test]
async fn a_relay_waits_for_a_broker_and_a_database_that_are_away_at_its_start() {
    let fleet = Fleet::new().await;
    let (postgres, broker) = (Proxy::to(&fleet.database.url).await, Proxy::to(&fleet.vhost.url).await);
    postgres.set(Link::Cut);
    broker.set(Link::Cut);
    let relay = fleet.relay("relay").set("DATABASE_URL", postgres.through(&fleet.database.url));
    let relay = relay.set("AMQP_URL", broker.through(&fleet.vhost.url)).launch();
    relay.said("reading the schema from Postgres failed").await;
    assert_eq!((relay.get("/health").await.0, relay.get("/ready").await.0), (200, 503));
    postgres.set(Link::Pass);
    relay.said("relays due jobs").await;
    let ready = async || match relay.get_json("/ready").await {
        (503, ready) if ready["checks"]["database_connected"] == true => Ok(()),
        other => Err(other),
    };
    until_ok("it reads the ledger", ready).await;
    broker.set(Link::Pass);
    until("it is ready", async || (relay.get("/ready").await.0 == 200).then_some(())).await;
}

#[tokio::test]
async fn a_first_connection_that_never_answers_is_tried_again() {
    let fleet = Fleet::new().await;
    let postgres = Proxy::to(&fleet.database.url).await;
    postgres.set(Link::Frozen);
    let worker = fleet.worker("worker").set("DATABASE_URL", postgres.through(&fleet.database.url)).launch();
    worker.address().await;
    // The first connection stays silent; the next one works.
    tokio::time::timeout(TIMEOUT, postgres.connected()).await.expect("a connection");
    postgres.forget();
    postgres.set(Link::Pass);
    worker.ready().await;
    assert!(worker.log().contains("reading the schema from Postgres failed"), "{}", worker.log());
}

#[tokio::test]
async fn a_closed_terminal_drains_a_worker_unless_it_was_to_outlive_it() {
    let fleet = Fleet::new().await;
    // This also holds when the tests themselves run under `nohup`.
    let in_a_terminal = fleet.worker("in a terminal").through(&["env", "--default-signal=HUP"]);
    let mut worker = in_a_terminal.start().await;
    worker.hang_up();
    worker.said("draining").await;
    assert_eq!(worker.exit().await, 0);

    let mut worker = fleet.worker("to outlive it").through(&["nohup"]).start().await;
    worker.hang_up();
    let spec = job("s", "echo", Value::Null);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.undisturbed(&[spec]).await;
    worker.terminate();
    assert_eq!(worker.exit().await, 0);
    assert!(!worker.log().contains("SIGHUP"), "{}", worker.log());
}

#[tokio::test]
async fn a_signal_that_was_blocked_at_the_start_is_heard_by_worker_and_program() {
    let fleet = Fleet::new().await;
    let waits = "#!/bin/sh\ntrap 'echo \"{\\\"type\\\":\\\"result\\\"}\"; exit 0' TERM\n\
                 echo '{\"type\":\"checkpoint\"}'\nsleep 60 & wait\n";
    let agents = fleet.agents(&[("waits", &fleet.program("waits", waits))]);
    let blocked = fleet.worker("worker").through(&["env", "--block-signal=TERM"]);
    let mut worker = blocked.set("AGENTS_FILE", agents).set("DRAIN_GRACE_S", 0).start().await;
    let spec = job("s", "waits", Value::Null);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.iterated(spec.job_id, 1).await;
    worker.terminate();
    assert_eq!(worker.exit().await, 0);
    // Its last output counts, because it was written after SIGTERM and was not cut off by SIGKILL.
    fleet.undisturbed(&[spec]).await;
}

/// The processes whose parent is this one, with their states.
fn children(of: u32) -> Vec<(u32, String)> {
    let stat = |entry: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(entry.ok()?.path().join("stat")).ok()?;
        let (pid, rest) = stat.split_once(' ')?;
        let mut fields = rest.rsplit_once(") ")?.1.split(' ');
        let (state, parent) = (fields.next()?.to_owned(), fields.next()?.parse::<u32>().ok()?);
        (parent == of).then_some((pid.parse().ok()?, state))
    };
    std::fs::read_dir("/proc").expect("/proc").filter_map(stat).collect()
}

#[tokio::test]
async fn as_the_first_process_of_a_container_a_worker_leaves_no_zombies() {
    let fleet = Fleet::new().await;
    let leaves = "#!/bin/sh\nsleep 60 &\nsleep 60 &\necho '{\"type\":\"result\"}'\n";
    let agents = fleet.agents(&[("leaves", &fleet.program("leaves", leaves))]);
    let new_pids: &[&str] = match is_root() {
        true => &["unshare", "--pid", "--fork", "--kill-child"],
        false => &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"],
    };
    let mut worker = fleet.worker("worker").through(new_pids).set("AGENTS_FILE", agents).start().await;
    let jobs: Vec<_> = (0..8).map(|n| job(&format!("s-{n}"), "leaves", Value::Null)).collect();
    fleet.enqueue(&jobs).await;
    fleet.undisturbed(&jobs).await;
    let (first, _) = children(worker.pid())[0];
    let zombies = async || {
        let mut below = children(first);
        below.extend(children(first).into_iter().flat_map(|(pid, _)| children(pid)));
        let zombies = below.iter().filter(|(_, state)| state == "Z").count();
        if zombies == 0 { Ok(()) } else { Err(below) }
    };
    until_ok("all are reaped", zombies).await;
    // The first process passes SIGTERM on to the worker.
    terminate(first);
    worker.said("stopped worker_id").await;
    assert_eq!(worker.exit().await, 0);
}
