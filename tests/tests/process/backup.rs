//! A backup is made while a fleet works. Then everything is destroyed, and the restored fleet continues.

use std::path::Path;
use std::process::Command;

use job::{JobId, JobSpec, JobState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tests::{Fleet, Ran, Vhost, job, until, until_ok};

/// Where a fleet's backups are kept, and the keys for them.
#[derive(Clone)]
struct Kept {
    environment: Vec<(&'static str, String)>,
}

impl Kept {
    fn at(folder: &Path) -> Kept {
        let path = |name: &str| folder.join(name).to_string_lossy().into_owned();
        keys(folder, "age");
        let environment = vec![
            ("BACKUP_TARGET", path("backups")),
            ("BACKUP_RECIPIENTS", path("age.public")),
            ("BACKUP_IDENTITY", path("age.secret")),
        ];
        Kept { environment }
    }

    fn with(mut self, name: &'static str, value: String) -> Kept {
        self.environment.retain(|(set, _)| *set != name);
        self.environment.push((name, value));
        self
    }

    fn command(&self, fleet: &Fleet, program: &str) -> Command {
        let mut command = fleet.ops_command(&format!("backup/{program}"));
        command.envs(self.environment.iter().map(|(name, value)| (*name, value.as_str())));
        command
    }

    async fn run(&self, fleet: &Fleet, program: &str, arguments: &[&str]) -> Ran {
        let environment: Vec<(&str, &str)> =
            self.environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        fleet.ops(&format!("backup/{program}"), arguments, &environment).await
    }
}

/// Makes a pair of keys: NAME.secret and NAME.public.
fn keys(folder: &Path, name: &str) {
    let secret = folder.join(format!("{name}.secret"));
    let made = Command::new("age-keygen").arg("-o").arg(&secret).output();
    assert!(made.expect("age (apt-get install age, or ops/dev/tools)").status.success());
    let public = Command::new("age-keygen").arg("-y").arg(&secret).output().expect("age-keygen");
    std::fs::write(folder.join(format!("{name}.public")), public.stdout).expect("written");
}

fn steps(session: &str, count: u32, delay_ms: u32) -> JobSpec {
    job(session, "scripted", json!({"count": count, "delay_ms": delay_ms}))
}

fn output(view: &store::JobView) -> Value {
    serde_json::from_str(view.output.as_ref().expect("an output").as_str()).expect("JSON")
}

/// Waits until the job is in this state.
async fn reaches(fleet: &Fleet, job_id: JobId, state: JobState) {
    let look = async || match fleet.view(job_id).await {
        Some(view) if view.state == state => Ok(()),
        other => Err(other),
    };
    until_ok(&format!("{job_id} is {state}"), look).await;
}

/// For each of these, libpq would check no certificate, or read something other than the programs do.
#[tokio::test]
async fn an_address_that_libpq_reads_otherwise_is_refused_and_not_shown() {
    let fleet = Fleet::new().await;
    let kept = Kept::at(fleet.folder.path());
    for wrong in [
        "host=h dbname='d b' user=me password='a dbname=zzz secret'",
        "postgres://me:secret@h/d%20b",
        "postgres://me:sec?secret@h/d",
        "postgres://me:secret@h/d?sslmode=requ%69re",
        "postgres://me:secret@h/d?sslmode=allow",
        "postgres://me:secret@h/d?service=x",
        "postgres://me:secret@h/d?password=my&secret=x",
    ] {
        let kept = kept.clone().with("DATABASE_URL", wrong.to_owned());
        let ran = kept.run(&fleet, "restore", &["--replace"]).await;
        assert_eq!(ran.code, 2, "{wrong}: {ran:?}");
        assert!(ran.err.contains("DATABASE_URL: ") && !ran.err.contains("secret"), "{wrong}: {ran:?}");
    }
}

#[tokio::test]
async fn what_a_backup_has_goes_on_after_all_is_destroyed() {
    let mut fleet = Fleet::new().await;
    let kept = Kept::at(fleet.folder.path());
    let mut worker = fleet.worker("worker").set("WORKER_SLOTS", 2).start().await;

    let done = steps("done", 3, 0);
    fleet.enqueue(std::slice::from_ref(&done)).await;
    fleet.ended(done.job_id).await;
    // Two run, two wait for a slot, one waits for its session.
    let running = [steps("r-1", 100, 250), steps("r-2", 100, 250)];
    fleet.enqueue(&running).await;
    for spec in &running {
        fleet.iterated(spec.job_id, 3).await;
    }
    let waiting = [steps("q-1", 2, 0), steps("q-2", 2, 0)];
    let next = steps("r-1", 2, 0);
    fleet.enqueue(&waiting).await;
    fleet.enqueue(std::slice::from_ref(&next)).await;
    reaches(&fleet, waiting[0].job_id, JobState::Queued).await;

    let took = kept.run(&fleet, "backup", &[]).await;
    assert_eq!(took.code, 0, "{took:?}");
    let name = took.out.trim().to_owned();
    let epoch = fleet.database.count("SELECT last_value FROM harness_epoch").await;
    // What comes after the backup is lost with the ledger, and runs again.
    let seen: Vec<i64> = [fleet.view(running[0].job_id).await, fleet.view(running[1].job_id).await]
        .map(|view| view.expect("a job").iterations)
        .into();
    for (spec, seen) in running.iter().zip(&seen) {
        fleet.iterated(spec.job_id, seen + 2).await;
    }

    worker.kill();
    fleet.store.close();
    // The broker's messages are deleted as well; the restore drops the database itself.
    fleet.vhost = Vhost::new();
    let restored = kept.run(&fleet, "restore", &["--replace", &name]).await;
    assert_eq!(restored.code, 0, "{restored:?}");
    fleet.store = fleet.database.store();
    let audit = fleet.producer(&["audit"]).await;
    assert_eq!(audit.code, 0, "{audit:?}");
    assert!(fleet.database.count("SELECT last_value FROM harness_epoch").await > epoch + 1_000_000);

    let _worker = fleet.worker("after").start().await;
    for spec in &running {
        fleet.iterated(spec.job_id, 60).await;
    }
    for spec in running.iter().chain(&waiting).chain([&done, &next]) {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!((view.state, view.attempts), (JobState::Succeeded, 1), "{view:?}");
    }
    for spec in &running {
        let view = fleet.ended(spec.job_id).await;
        assert_eq!(view.iterations, 100);
        let resumed_at = output(&view)["resumed_at"].as_i64().expect("a number");
        assert!(resumed_at >= 3, "{resumed_at}: it began anew");
    }
    let audit = fleet.producer(&["audit", "--strict"]).await;
    assert_eq!(audit.code, 0, "{audit:?}");
}

#[tokio::test]
async fn a_backup_that_is_damaged_or_for_another_key_is_refused_before_anything_is_dropped() {
    let fleet = Fleet::new().await;
    let folder = fleet.folder.path();
    let kept = Kept::at(folder);
    let took = kept.run(&fleet, "backup", &[]).await;
    assert_eq!(took.code, 0, "{took:?}");
    let file = folder.join("backups").join(format!("{}.dump.age", took.out.trim()));
    let verified = kept.run(&fleet, "verify", &["--restore"]).await;
    assert_eq!((verified.code, verified.out.trim()), (0, took.out.trim()), "{verified:?}");

    // Without --replace, an existing ledger stays.
    let refused = kept.run(&fleet, "restore", &[]).await;
    assert!(refused.code == 1 && refused.err.contains("--replace"), "{refused:?}");
    // A reader of the folder cannot read any session.
    let bytes = std::fs::read(&file).expect("a backup");
    assert!(!bytes.windows(12).any(|window| window == b"harness_jobs"), "the backup can be read");

    keys(folder, "other");
    let stranger =
        kept.clone().with("BACKUP_IDENTITY", folder.join("other.secret").to_string_lossy().into_owned());
    let refused = stranger.run(&fleet, "restore", &["--replace"]).await;
    assert!(refused.code == 1 && refused.err.contains("nothing was changed"), "{refused:?}");

    let mut damaged = bytes.clone();
    damaged[bytes.len() / 2] ^= 1;
    std::fs::write(&file, damaged).expect("written");
    for (program, arguments) in [("verify", &[][..]), ("restore", &["--replace"][..])] {
        let refused = kept.run(&fleet, program, arguments).await;
        assert!(refused.code == 1 && refused.err.contains("has changed since it was written"), "{refused:?}");
    }
    assert!(fleet.store.ping().await.is_ok(), "the database is still there");
}

#[tokio::test]
async fn a_restore_that_fails_on_the_way_leaves_the_database_as_it_was() {
    let fleet = Fleet::new().await;
    let kept = Kept::at(fleet.folder.path()).with("BACKUP_ENCRYPTION", "none".into());
    let _worker = fleet.worker("worker").start().await;
    let first = steps("first", 3, 0);
    fleet.enqueue(std::slice::from_ref(&first)).await;
    fleet.ended(first.job_id).await;
    let took = kept.run(&fleet, "backup", &[]).await;
    assert_eq!(took.code, 0, "{took:?}");
    let later = steps("later", 3, 0);
    fleet.enqueue(std::slice::from_ref(&later)).await;
    fleet.ended(later.job_id).await;

    let fails = fleet.program("no-revive", "#!/bin/sh\n[ \"$1\" != revive ] || exit 1\n");
    let cannot_revive = kept.clone().with("PRODUCER", fails);
    let refused = cannot_revive.run(&fleet, "restore", &["--replace"]).await;
    assert!(refused.code == 1 && refused.err.contains("is as it was"), "{refused:?}");

    // Its table of contents can be read, and its checksum matches the damaged file.
    let folder = fleet.folder.path().join("backups");
    let file = folder.join(format!("{}.dump", took.out.trim()));
    let mut bytes = std::fs::read(&file).expect("a backup");
    bytes.truncate(bytes.len() - 64);
    std::fs::write(&file, bytes).expect("written");
    let sum = Command::new("sha256sum").arg(&file).output().expect("a checksum");
    let sum = String::from_utf8(sum.stdout).expect("hexadecimal");
    let facts = folder.join(format!("{}.facts", took.out.trim()));
    let noted = std::fs::read_to_string(&facts).expect("facts");
    let noted = noted.lines().map(|line| match line.starts_with("sha256=") {
        true => format!("sha256={}\n", &sum[..64]),
        false => format!("{line}\n"),
    });
    std::fs::write(&facts, noted.collect::<String>()).expect("written");
    let refused = kept.run(&fleet, "restore", &["--replace"]).await;
    assert!(refused.code == 1 && refused.err.contains("is as it was"), "{refused:?}");

    for spec in [&first, &later] {
        let view = fleet.view(spec.job_id).await.expect("it is still there");
        assert_eq!(view.state, JobState::Succeeded);
    }
    fleet.database.audited().await;
    let name = fleet.database.url.rsplit('/').next().expect("a name");
    let beside = format!("SELECT count(*) FROM pg_database WHERE datname LIKE '{name}\\_%'");
    assert_eq!(fleet.database.count(&beside).await, 0, "nothing is left beside it");
}

#[tokio::test]
async fn a_backup_that_is_ended_leaves_nothing_and_one_that_is_killed_nothing_for_long() {
    let fleet = Fleet::new().await;
    let rooms = fleet.folder.path().join("rooms");
    std::fs::create_dir(&rooms).expect("a folder");
    let kept = Kept::at(fleet.folder.path()).with("TMPDIR", rooms.to_string_lossy().into_owned());
    let left = || std::fs::read_dir(&rooms).expect("a folder").count();
    let dumps = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump' AND datname = current_database()";
    for (signal, code) in [(Signal::SIGTERM, Some(143)), (Signal::SIGKILL, None)] {
        // The dump waits for this lock.
        let mut locked = fleet.database.connect().await;
        sqlx::raw_sql("BEGIN; LOCK TABLE harness_jobs").execute(&mut locked).await.unwrap();
        let mut backup = kept.command(&fleet, "backup").spawn().expect("a process");
        until("it dumps", async || (fleet.database.count(dumps).await == 1).then_some(())).await;
        assert_eq!(left(), 1, "its folder");
        kill(Pid::from_raw(backup.id() as i32), signal).expect("a process of ours");
        let ended = tokio::task::spawn_blocking(move || backup.wait()).await.unwrap().unwrap();
        assert_eq!(ended.code(), code, "while the lock is held: it waits for nothing");
        assert_eq!(left(), usize::from(code.is_none()));
        sqlx::raw_sql("COMMIT").execute(&mut locked).await.unwrap();
        until("no dump goes on", async || (fleet.database.count(dumps).await == 0).then_some(())).await;
    }
    let took = async || {
        let took = kept.run(&fleet, "backup", &[]).await;
        (took.code == 0 && left() == 0).then_some(())
    };
    until("the next one clears what is left, and its own", took).await;
}

#[tokio::test]
async fn a_ledger_whose_workers_live_is_not_revived() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let refused = fleet.producer(&["revive"]).await;
    assert!(refused.code == 1 && refused.err.contains("is alive: stop every worker first"), "{refused:?}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_workers WHERE state = 'alive'").await, 1);
}

#[tokio::test]
async fn old_backups_go_and_the_last_of_each_week_and_month_stays() {
    let fleet = Fleet::new().await;
    let kept = Kept::at(fleet.folder.path()).with("BACKUP_KEEP_DAYS", "7".into());
    let kept = kept.with("BACKUP_KEEP_WEEKS", "2".into()).with("BACKUP_KEEP_MONTHS", "2".into());
    let folder = fleet.folder.path().join("backups");
    std::fs::create_dir(&folder).expect("a folder");
    // One per day, for a year.
    let days = fleet
        .database
        .texts("SELECT to_char(now() - day * interval '1 day', 'YYYYMMDD\"T\"120000Z') FROM generate_series(1, 365) AS day")
        .await;
    for day in &days {
        for ending in ["dump.age", "facts"] {
            std::fs::write(folder.join(format!("harness-{day}.{ending}")), "").expect("written");
        }
    }
    std::fs::write(folder.join("harness-20200101T000000Z.dump.age"), "").expect("cut short, long ago");
    std::fs::write(folder.join("notes.txt"), "").expect("another program's");
    let left = || std::fs::read_dir(&folder).expect("a folder").count();

    let text = kept.run(&fleet, "prune", &["--dry-run"]).await;
    assert_eq!((text.code, left()), (0, 2 * 365 + 2), "{text:?}");
    let removed = kept.run(&fleet, "prune", &[]).await;
    assert_eq!((removed.code, removed.out.lines().count()), (0, text.out.lines().count()), "{removed:?}");
    let stays: Vec<bool> =
        days.iter().map(|day| folder.join(format!("harness-{day}.facts")).is_file()).collect();
    assert!(stays[..6].iter().all(|stays| *stays), "all of the last days");
    let older = stays[7..].iter().filter(|stays| **stays).count();
    assert!((3..=6).contains(&older), "two or three weeks, and two or three months: {older}");
    assert!(folder.join("notes.txt").is_file() && !folder.join("harness-20200101T000000Z.dump.age").exists());
    let again = kept.run(&fleet, "prune", &[]).await;
    assert_eq!((again.code, again.out.as_str()), (0, ""), "{again:?}");

    let wrong = kept.with("BACKUP_KEEP_DAYS", "a week".into()).run(&fleet, "prune", &[]).await;
    assert!(wrong.code == 2 && wrong.err.contains("BACKUP_KEEP_DAYS: got \"a week\""), "{wrong:?}");
}

#[tokio::test]
async fn settings_that_are_wrong_are_named() {
    let fleet = Fleet::new().await;
    let kept = Kept::at(fleet.folder.path());
    for (name, value, text) in [
        ("BACKUP_TARGET", "somewhere", "BACKUP_TARGET: got \"somewhere\""),
        ("BACKUP_RECIPIENTS", "/nowhere", "BACKUP_RECIPIENTS: got \"/nowhere\""),
        ("BACKUP_ENCRYPTION", "rot13", "BACKUP_ENCRYPTION: got \"rot13\""),
        ("DATABASE_URL", "mysql://host", "DATABASE_URL: a backup takes one form of address"),
    ] {
        let ran = kept.clone().with(name, value.to_owned()).run(&fleet, "backup", &[]).await;
        assert!(ran.code == 2 && ran.err.contains(text), "{ran:?}");
    }
}
