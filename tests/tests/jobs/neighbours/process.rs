//! The process itself: an unread log, a database with few connections, half-open requests and a machine that runs out
//! of files stop neither its heartbeat nor its neighbours, and are charged to no job.

use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;
use std::time::{Duration, Instant};

use job::{JobSpec, JobState};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};
use tests::{Fleet, Worker, job, steps, until, until_ok};

/// Writes two thousand lines to stderr, of 900 bytes each.
const CHATTY: &str = r#"#!/bin/sh
line=$(printf 'x%.0s' $(seq 900))
for n in $(seq 2000); do echo "$line" >&2; done
echo '{"type":"result"}'
"#;

const PROGRAM: &str = "#!/bin/sh\necho '{\"type\":\"result\",\"output\":\"done\"}'\n";

#[tokio::test]
async fn a_log_that_nobody_reads_holds_up_nothing() {
    let fleet = Fleet::new().await;
    let agents = fleet.agents(&[("chatty", &fleet.program("chatty", CHATTY)), ("echo", "")]);
    let mut worker = fleet.worker("worker").set("AGENTS_FILE", agents).start().await;
    worker.stall_log();
    let chatty: Vec<JobSpec> = (0..6).map(|n| job(&format!("s-{n}"), "chatty", Value::Null)).collect();
    fleet.enqueue(&chatty).await;
    let dropped = async || {
        let dropped = worker.metric("harness_log_lines_dropped_total").await;
        if dropped > 0.0 { Ok(()) } else { Err(dropped) }
    };
    until_ok("lines are dropped and counted", dropped).await;
    assert_eq!(worker.get("/health").await.0, 200);
    fleet.undisturbed(&chatty).await;
    let after = job("after", "echo", json!(1));
    fleet.enqueue(std::slice::from_ref(&after)).await;
    fleet.undisturbed(&[after]).await;
    assert_eq!(worker.metric("harness_leases_lost_total").await, 0.0);

    worker.terminate();
    until("it has ended", async || (!worker.lives()).then_some(())).await;
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_workers WHERE state = 'stopped'").await, 1);
}

#[tokio::test]
async fn a_log_that_is_read_again_says_what_it_lacks() {
    let fleet = Fleet::new().await;
    let agents = fleet.agents(&[("chatty", &fleet.program("chatty", CHATTY))]);
    let worker = fleet.worker("worker").set("AGENTS_FILE", agents).start().await;
    worker.stall_log();
    let chatty: Vec<JobSpec> = (0..6).map(|n| job(&format!("s-{n}"), "chatty", Value::Null)).collect();
    fleet.enqueue(&chatty).await;
    fleet.undisturbed(&chatty).await;
    worker.read_log();
    worker.said("lines were dropped").await;
}

#[tokio::test]
async fn a_process_opens_as_many_connections_to_postgres_as_it_was_given() {
    let fleet = Fleet::new().await;
    let url = format!("{}?application_name=counted", fleet.database.url);
    let worker = fleet.worker("worker").set("DATABASE_URL", url).set("DATABASE_POOL_SIZE", 3).start().await;
    let jobs: Vec<JobSpec> = (0..20).map(|n| steps(n, 20, 20)).collect();
    fleet.enqueue(&jobs).await;
    let mut most = 0;
    let ended = async || {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'counted' \
                    AND datname = current_database()";
        most = fleet.database.count(open).await.max(most);
        let ended = "SELECT count(*) FROM harness_results";
        match fleet.database.count(ended).await {
            20 => Ok(()),
            ended => Err(ended),
        }
    };
    until_ok("all jobs have ended", ended).await;
    assert_eq!(most, 3);
    assert_eq!(worker.metric("harness_leases_lost_total").await, 0.0);
}

/// Waits until this many connections of a role are open. Then terminates the one whose last query contains one of the
/// parts of `asked`, and lowers the role's limit by one. So the connections that work has are all there are.
async fn cut_off(fleet: &Fleet, role: &str, at_least: i64, asked: &[&str]) {
    let open = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'");
    let all = async || match fleet.database.count(&open).await {
        open if open < at_least => Err(open),
        open => Ok(open),
    };
    let open = until_ok("all its connections are open", all).await;
    fleet.database.execute(&format!("ALTER ROLE {role} CONNECTION LIMIT {}", open - 1)).await;
    let asked: Vec<_> = asked.iter().map(|part| format!("query LIKE '%{part}%'")).collect();
    let cut = format!(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = '{role}' AND ({})",
        asked.join(" OR ")
    );
    // It may not have asked this yet.
    let found = async || match fleet.database.count(&cut).await {
        1 => Ok(()),
        other => Err(other),
    };
    until_ok("the connection that comes first is cut", found).await;
}

/// Waits until this time is later than it was.
async fn moves_on(fleet: &Fleet, what: &str, time: &str) {
    let last = fleet.database.count(time).await;
    let moved = async || match fleet.database.count(time).await {
        now if now > last => Ok(()),
        now => Err(now),
    };
    until_ok(what, moved).await;
}

#[tokio::test]
async fn a_heartbeat_gets_a_connection_where_work_has_taken_the_last() {
    let fleet = Fleet::new().await;
    let (role, url) = fleet.database.role(20).await;
    let worker = fleet.worker("worker").set("DATABASE_URL", url).set("DATABASE_POOL_SIZE", 4).start().await;
    let jobs: Vec<JobSpec> = (0..40).map(|n| steps(n, 100, 20)).collect();
    fleet.enqueue(&jobs).await;
    cut_off(&fleet, &role, 4, &["SET heartbeat_at", "asked IS NOT NULL"]).await;
    let beat = "SELECT (extract(epoch FROM heartbeat_at) * 1000)::bigint FROM harness_workers";
    moves_on(&fleet, "the heartbeat is back", beat).await;
    assert_eq!(worker.metric("harness_leases_lost_total").await, 0.0);
    fleet.undisturbed(&jobs[..4]).await;
}

#[tokio::test]
async fn a_leaders_lease_gets_a_connection_where_observing_has_taken_the_last() {
    let fleet = Fleet::new().await;
    let (role, url) = fleet.database.role(20).await;
    let pools = "[pools.default]\ntarget = \"process\"\npolicy.min_replicas = 0\n";
    let autoscaler = fleet.autoscaler("autoscaler", pools).set("DATABASE_URL", url).launch();
    autoscaler.said("leads: decides from now on").await;
    cut_off(&fleet, &role, 2, &["WITH kept AS"]).await;
    let expires = "SELECT (extract(epoch FROM expires_at) * 1000)::bigint FROM harness_leases";
    moves_on(&fleet, "the lease is renewed", expires).await;
    assert!(!autoscaler.log().contains("leads no more"), "{}", autoscaler.log());
}

#[tokio::test]
async fn requests_that_never_end_do_not_silence_the_admin_port() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("a limit");
    setrlimit(Resource::RLIMIT_NOFILE, hard.min(4_096).max(soft), hard).expect("a higher limit");
    let fleet = Fleet::new().await;
    let agents = fleet.agents(&[("program", &fleet.program("program", PROGRAM))]);
    let worker = fleet.worker("worker").files(1_024, 1_024).set("AGENTS_FILE", agents).start().await;
    let address = worker.address().await;
    let half_open: Vec<TcpStream> = (0..1_100)
        .map(|_| {
            let mut stream = TcpStream::connect(address).expect("a connection");
            // Most are refused or closed by now, as intended.
            let _ = stream.write_all(b"GET /health HTTP/1.1\r\n");
            stream
        })
        .collect();
    assert_eq!(worker.get("/health").await.0, 200);
    let spec = job("s", "program", Value::Null);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    fleet.undisturbed(&[spec]).await;
    drop(half_open);
}

/// Lets a process open exactly this many more files.
fn leave_files(worker: &Worker, free: u64) {
    let entries = std::fs::read_dir(format!("/proc/{}/fd", worker.pid())).expect("its files");
    let open: BTreeSet<u64> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    let mut unused = (0..).filter(|number| !open.contains(number));
    let limit = unused.nth(free as usize).expect("a number");
    limit_files(worker, limit);
}

fn limit_files(worker: &Worker, limit: u64) {
    let (pid, limit) = (worker.pid().to_string(), format!("--nofile={limit}:"));
    let status =
        Command::new("prlimit").args(["--pid", &pid, &limit]).status().expect("prlimit (util-linux)");
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn a_job_is_not_charged_for_files_that_the_machine_lacks() {
    let fleet = Fleet::new().await;
    let agents = fleet.agents(&[("program", &fleet.program("program", PROGRAM))]);
    let worker = fleet.worker("worker").set("AGENTS_FILE", agents).start().await;
    // Enough for a request to its admin port, but too few for a program.
    leave_files(&worker, 5);
    let spec = job("s", "program", Value::Null);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let said = worker.said("this machine has too few resources").await;
    assert!(said.contains("Too many open files"), "{said}");
    let short = async || match worker.get_json("/ready").await {
        (503, ready) if ready["checks"]["resources_available"] == json!(false) => Ok(()),
        other => Err(other),
    };
    until_ok("it says what it lacks", short).await;
    let view = fleet.view(spec.job_id).await.expect("a job");
    assert!(view.attempts == 0 && !view.state.is_end(), "{view:?}");

    limit_files(&worker, 1_024);
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{view:?}");
    worker.ready().await;
}

/// A user that no other test uses, so that no other process counts.
const USER: u32 = 54_321;

/// Limits the processes and threads of the worker's user.
fn limit_processes(worker: &Worker, limit: &str) {
    let limit = format!("--nproc={limit}:");
    // Runs as that user, because root may not change this everywhere.
    let user = USER.to_string();
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid",
        &user,
        "--regid",
        &user,
        "--clear-groups",
        "prlimit",
        "--pid",
        &worker.pid().to_string(),
        &limit,
    ]);
    assert!(command.status().expect("setpriv and prlimit (util-linux)").success());
}

#[tokio::test]
async fn a_worker_that_can_start_no_process_takes_no_job_until_it_can() {
    if !tests::is_root() {
        eprintln!("only root may start a worker as another user, whose processes can be limited");
        return;
    }
    let fleet = Fleet::new().await;
    let agents = fleet.agents(&[("program", &fleet.program("program", PROGRAM))]);
    std::fs::set_permissions(fleet.folder.path(), Permissions::from_mode(0o755)).expect("ours");
    let workspaces = fleet.folder.path().join("workspaces");
    std::fs::create_dir(&workspaces).expect("made");
    chown(&workspaces, Some(USER), Some(USER)).expect("given away");
    let worker = fleet.worker("worker").set("AGENTS_FILE", agents).user(USER).start().await;
    let first = job("first", "program", Value::Null);
    fleet.enqueue(std::slice::from_ref(&first)).await;
    fleet.undisturbed(&[first]).await;
    limit_processes(&worker, "1");
    let spec = job("s", "program", Value::Null);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let said = worker.said("this machine has too few resources").await;
    assert!(said.contains("Resource temporarily unavailable"), "{said}");
    // It checks the machine several times, and never finds it fit.
    let looks = Instant::now() + Duration::from_secs(8);
    let shortages = r#"harness_shortages_total{kind="resources"}"#;
    until("some looks have gone by", async || (Instant::now() > looks).then_some(())).await;
    assert_eq!(worker.metric(shortages).await, 1.0, "it has taken the job although it could not run it");
    assert_eq!(worker.get("/ready").await.0, 503);

    limit_processes(&worker, "2000");
    let view = fleet.ended(spec.job_id).await;
    assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{view:?}");
    worker.ready().await;
}

#[tokio::test]
async fn the_limit_of_open_files_is_raised_and_slots_that_do_not_fit_are_refused() {
    let fleet = Fleet::new().await;
    let limits = "#!/bin/sh\nprintf '{\"type\":\"result\",\"output\":%s}\\n' \"$(ulimit -Sn)\"\n";
    let agents = fleet.agents(&[("limits", &fleet.program("limits", limits))]);
    let worker = fleet.worker("fits").files(64, 4_096).set("AGENTS_FILE", agents).start().await;
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", worker.pid())).expect("limits");
    let files = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    assert_eq!(files.split_whitespace().nth(3), Some("4096"), "{files}");
    // Programs get the limit that the process was started with.
    let spec = job("s", "limits", Value::Null);
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    let view = fleet.ended(spec.job_id).await;
    assert_eq!(view.output.expect("an output").as_str(), "64");

    let mut worker = fleet.worker("does not").files(256, 256).set("WORKER_SLOTS", 1_000).launch();
    assert_eq!(worker.exit().await, 2);
    let log = worker.log();
    assert!(log.contains("WORKER_SLOTS: got 1000, expected at most") && log.contains("ulimit -n"), "{log}");
}
