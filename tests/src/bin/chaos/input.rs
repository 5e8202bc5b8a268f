//! Faults of publishers, and bad input.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use job::{FailureCode, JobId, JobSpec};
use lapin::BasicProperties;
use serde_json::json;
use tests::{Link, Proxy};
use tokio::time::{Instant, sleep};

use crate::arena::Arena;
use crate::publish;
use crate::workload::{End, Job, echo, growing, unstorable};

/// `producer` is killed while it publishes, part after part, and a raw client is cut off before its confirms.
/// Everything that `producer` reported as accepted must be in the ledger. Then the caller sends all of it again, under
/// the same ids.
pub async fn publisher_kill(arena: &mut Arena) -> anyhow::Result<()> {
    arena.start(3).await;
    for part in arena.workload.parts(true) {
        match part.raw {
            true => cut_off(arena, part.jobs).await?,
            false => killed(arena, &part.jobs).await?,
        }
    }
    Ok(())
}

async fn killed(arena: &mut Arena, jobs: &[JobSpec]) -> anyhow::Result<()> {
    let mut command = arena.fleet.producer_command(&["enqueue", "--file", "-", "--print-ids"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context("starting producer")?;
    let lines: Vec<String> = jobs.iter().map(job::encode).collect();
    let mut stdin = child.stdin.take().context("its stdin")?;
    let writer = std::thread::spawn(move || {
        // The process may be killed before it has read all.
        let _ = stdin.write_all(lines.join("\n").as_bytes());
    });
    sleep(Duration::from_millis(arena.random.u64(30..400))).await;
    child.kill().context("killing producer")?;
    let output = child.wait_with_output().context("reading the output of producer")?;
    let _ = writer.join();
    let said = String::from_utf8_lossy(&output.stdout);
    // The last line may be cut off.
    let accepted: Vec<JobId> = said.lines().filter_map(|line| line.parse().ok()).collect();
    let known = arena.fleet.store.jobs(&accepted).await.context("looking for what was accepted")?;
    if known.len() != accepted.len() {
        let missing = accepted.len() - known.len();
        arena.problems.push(format!("{missing} jobs were reported as accepted but are not in the ledger"));
    }
    publish::enqueue(&arena.fleet, jobs).await
}

async fn cut_off(arena: &mut Arena, jobs: Vec<JobSpec>) -> anyhow::Result<()> {
    let proxy = Proxy::to(&arena.fleet.vhost.url).await;
    let through = proxy.through(&arena.fleet.vhost.url);
    let publishing = tokio::spawn(async move { publish::raw(&through, jobs).await });
    for _ in 0..3 {
        sleep(Duration::from_millis(arena.random.u64(30..200))).await;
        proxy.set(Link::Cut);
        sleep(Duration::from_millis(300)).await;
        proxy.set(Link::Pass);
    }
    publishing.await.context("publishing")?
}

/// Thousands of messages that are not jobs, among the good ones. Each becomes a dead letter.
pub async fn malformed(arena: &mut Arena) -> anyhow::Result<()> {
    const EACH: usize = 1_000;
    let id = JobId::now();
    let kinds: [Vec<u8>; 10] = [
        b"".to_vec(),
        b"{".to_vec(),
        b"not json".to_vec(),
        b"\xff\xfe\x00".to_vec(),
        b"[1, 2, 3]".to_vec(),
        b"{}".to_vec(),
        json!({"schema": "harness.job.v9", "job_id": id, "session_id": "s", "agent_id": "echo"}).to_string().into(),
        json!({"schema": "harness.job.v1", "job_id": "7", "session_id": "s", "agent_id": "echo"}).to_string().into(),
        json!({"schema": "harness.job.v1", "job_id": id, "session_id": "../s", "agent_id": "echo"})
            .to_string()
            .into(),
        json!({"schema": "harness.job.v1", "job_id": id, "session_id": "s", "agent_id": "echo", "input": "\0"})
            .to_string()
            .into(),
    ];
    arena.start(3).await;
    arena.publish();
    let each = EACH.min(arena.workload.jobs.len() / 8);
    for _ in 0..5 {
        let bodies = kinds.iter().cycle().take(kinds.len() * each / 5).cloned();
        let messages: Vec<_> = bodies.map(|body| (body, BasicProperties::default())).collect();
        arena.dead_letters += messages.len();
        publish::foreign(&arena.fleet.vhost.url, messages).await?;
    }
    Ok(())
}

/// Messages whose headers fill a frame, so that the headers that the broker adds make them too large for any frame.
/// Some of them expire, so the broker gives them up itself. Each becomes a dead letter, and no worker loses a connection
/// because of it.
pub async fn bad_frames(arena: &mut Arena) -> anyhow::Result<()> {
    arena.start(3).await;
    arena.publish();
    for part in 0..5 {
        let bad: Vec<JobSpec> = (0..20).map(|at| echo("frames", json!([part, at])).spec).collect();
        arena.dead_letters += bad.len();
        let sizes = [131_002, 130_990, 130_900].into_iter().cycle();
        let messages = bad.iter().zip(sizes).enumerate().map(|(at, (spec, bytes))| {
            let dies = if at % 4 == 0 { Some("1") } else { None };
            publish::heavy(spec, bytes, dies)
        });
        publish::foreign(&arena.fleet.vhost.url, messages.collect()).await?;
    }
    arena.resumed(Instant::now(), None).await?;
    for at in arena.living() {
        let log = arena.worker(at).log();
        ensure!(!log.contains("lost the connection"), "number {at} lost a connection");
    }
    Ok(())
}

/// Replies to names for which RabbitMQ up to 4.1 closes a connection. Some cannot be decoded and are refused. Others
/// name clients at nodes that do not exist, which only an attempt shows. One ordinary caller beside them must get all
/// its replies.
pub async fn bad_replies(arena: &mut Arena) -> anyhow::Result<()> {
    arena.at_work(3).await?;
    let fault = Instant::now();
    for part in 0..5 {
        let name = |at: u32| match at % 2 {
            0 => "amq.rabbitmq.reply-to.cGlk.a2V5",
            _ => "amq.rabbitmq.reply-to.g1h2AAlyZXBseUAxMjMAAAABAAAAAGsJj2Q=.a2V5",
        };
        let jobs: Vec<Job> = (0..40).map(|at| echo(&format!("replies-{at}"), json!([part, at]))).collect();
        let messages = jobs.iter().zip(0..).map(|(job, at)| publish::replying(&job.spec, name(at)));
        publish::foreign(&arena.fleet.vhost.url, messages.collect()).await?;
        let (refused, run): (Vec<_>, Vec<_>) = jobs.into_iter().zip(0..).partition(|(_, at)| at % 2 == 0);
        arena.dead_letters += refused.len();
        arena.workload.jobs.extend(run.into_iter().map(|(job, _)| job));
        arena.probe().await?;
    }
    arena.resumed(fault, None).await
}

/// Every batch holds a job whose output Postgres refuses, and some whose output no worker accepts.
pub async fn refused(arena: &mut Arena) -> anyhow::Result<()> {
    const MARK: &str = "refused by the ledger";
    // Anything that Postgres cannot store looks like this: an error of class 22 or 23 that fails the whole batch.
    let check = format!(
        "ALTER TABLE harness_results ADD CONSTRAINT chaos CHECK (output IS NULL OR output::text NOT LIKE '%{MARK}%')"
    );
    arena.fleet.database.execute(&check).await;
    let refused = |at: usize| {
        let job = echo(&format!("refused-{}", at % 8), json!({MARK: at}));
        Job { end: End::Failed(FailureCode::Unstorable), ..job }
    };
    let many = arena.workload.jobs.len() / 10;
    arena.sprinkle((0..many).map(refused).collect());
    arena.sprinkle((0..many / 4).map(|at| unstorable(&format!("unstorable-{}", at % 4))).collect());
    arena.start(3).await;
    arena.publish();
    Ok(())
}

/// One session with hundreds of jobs in a row, others that grow without end, and one whose ends Postgres cannot
/// process, among the good ones. New jobs do not wait for them.
pub async fn hot_session(arena: &mut Arena) -> anyhow::Result<()> {
    const LEAST: usize = 65_536;
    const TOO_MUCH: &str = "
        CREATE FUNCTION too_much() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.session_id = 'too-much' AND NEW.state = 'succeeded' THEN
                RAISE 'canceling statement due to statement timeout' USING ERRCODE = 'query_canceled';
            END IF;
            RETURN NEW;
        END $$;
        CREATE TRIGGER too_much BEFORE INSERT ON harness_results FOR EACH ROW EXECUTE FUNCTION too_much()";
    arena.fleet.database.execute(TOO_MUCH).await;
    let hot = arena.workload.jobs.len() / 4;
    arena.first((0..hot).map(|at| echo("hot", json!({"hot": at}))).collect());
    arena.sprinkle((0..8).map(|at| growing(&format!("growing-{at}"))).collect());
    let too_much = |at| Job { end: End::Failed(FailureCode::Unstorable), ..echo("too-much", json!(at)) };
    arena.sprinkle((0..2).map(too_much).collect());
    for _ in 0..3 {
        arena.start_with(|launch| launch.set("MAX_SESSION_BYTES", LEAST)).await;
    }
    arena.publish();
    let blocked = "SELECT count(*) FROM harness_jobs WHERE state = 'blocked' AND session_id = 'hot'";
    arena
        .until("the session is hot", async |arena| Ok(arena.fleet.database.count(blocked).await >= 50))
        .await?;
    for _ in 0..3 {
        let published = Instant::now();
        arena.probe().await?;
        arena.recovered(published.elapsed(), Some(Duration::from_secs(10)));
    }
    Ok(())
}

/// Messages for a pool that no worker serves, among the good ones. Each becomes a dead letter.
pub async fn unroutable(arena: &mut Arena) -> anyhow::Result<()> {
    arena.start(3).await;
    arena.publish();
    for part in 0..5 {
        let strays: Vec<JobSpec> = (0..100).map(|at| echo("stray", json!([part, at])).spec).collect();
        arena.dead_letters += strays.len();
        publish::unroutable(&arena.fleet.vhost.url, &strays).await?;
    }
    Ok(())
}
