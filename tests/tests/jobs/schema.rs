//! The schema is the one that the binaries know, and job states change in it only as `JobState` allows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fastrand::Rng;
use job::{
    Failure, FailureCode, Input, InputKind, InputRequest, JobEvent, JobId, JobSpec, JobState, Json, Name,
};
use serde_json::json;
use sqlx::PgConnection;
use store::{Answer, Claimed, End, Leadership, LineTake, Store, Unwanted};
use tests::{Database, Fleet, Runner, declare_dead, job};

/// Records every change of a job's state. An end shows as two changes: out of one table, into the other.
const JOURNAL: &str = "
    CREATE TABLE journal (at bigint GENERATED ALWAYS AS IDENTITY, job_id uuid, was text, becomes text);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF TG_OP <> 'UPDATE' OR old.state <> new.state OR old.epoch <> new.epoch THEN
            INSERT INTO journal (job_id, was, becomes) VALUES (
                CASE WHEN TG_OP = 'DELETE' THEN old.job_id ELSE new.job_id END,
                CASE WHEN TG_OP <> 'INSERT' THEN old.state END,
                CASE WHEN TG_OP <> 'DELETE' THEN new.state END);
        END IF;
        RETURN NULL;
    END $$;
    CREATE TRIGGER note AFTER INSERT OR UPDATE OR DELETE ON harness_jobs FOR EACH ROW EXECUTE FUNCTION note();
    CREATE TRIGGER note AFTER INSERT ON harness_results FOR EACH ROW EXECUTE FUNCTION note()";

type Step = (Option<JobState>, Option<JobState>);

/// Returns the content of the journal and empties it.
async fn read_journal(connection: &mut PgConnection) -> Vec<Step> {
    let sql = "WITH read AS (DELETE FROM journal RETURNING *) SELECT job_id::text, was, becomes FROM read ORDER BY at";
    let rows: Vec<(String, Option<String>, Option<String>)> =
        sqlx::query_as(sql).fetch_all(connection).await.expect("the journal");
    let mut steps = BTreeMap::<String, Vec<Step>>::new();
    for (job_id, was, becomes) in rows {
        let state = |text: Option<String>| text.map(|text| text.parse::<JobState>().expect("a state"));
        let (was, becomes) = (state(was), state(becomes));
        let of_job = steps.entry(job_id).or_default();
        match (of_job.last_mut(), was, becomes) {
            (Some(last), None, Some(end)) if last.1.is_none() && end.is_end() => last.1 = Some(end),
            (Some(last), Some(_), None) if last.0.is_none() && last.1.is_some_and(JobState::is_end) => {
                last.0 = was;
            }
            _ => of_job.push((was, becomes)),
        }
    }
    steps.into_values().flatten().collect()
}

fn failure() -> Failure {
    Failure::retryable(FailureCode::HarnessError, "again")
}

/// A few jobs of a few sessions, driven at random by every call of the store.
struct Play {
    store: Store,
    runner: Runner,
    rng: Rng,
    connection: PgConnection,
    jobs: Vec<JobSpec>,
    /// Runs that were granted, including stale ones.
    runs: Vec<Claimed>,
    admitter: Leadership,
}

impl Play {
    async fn new(database: &Database, seed: u64) -> Play {
        let store = database.store();
        let jobs = (0..5).map(|n| job(&format!("s-{}", n % 2), "echo", json!(n))).collect();
        let admitter = store.lead("admission", "a test", Duration::from_secs(3_600)).await;
        let admitter = admitter.expect("an answer").expect("nobody else");
        Play {
            runner: Runner::register(&store).await,
            store,
            rng: Rng::with_seed(seed),
            connection: database.connect().await,
            jobs,
            runs: Vec::new(),
            admitter,
        }
    }

    /// Makes one call. Returns its name and the events that it may cause for a job.
    async fn step(&mut self) -> (&'static str, Vec<JobEvent>) {
        let at = self.rng.usize(..self.jobs.len());
        let spec = self.jobs[at].clone();
        match self.rng.u32(..26) {
            0 => {
                self.store.accept(std::slice::from_ref(&spec)).await.expect("an answer");
                ("accept", vec![])
            }
            1..3 => {
                self.store.take_due(2).await.expect("an answer");
                ("take_due", vec![JobEvent::Due, JobEvent::Joined])
            }
            3..5 => {
                let all: Vec<_> = self.jobs.iter().map(|job| job.job_id).collect();
                self.store.confirm(&all).await.expect("an answer");
                ("confirm", vec![JobEvent::Confirmed])
            }
            5 if self.rng.bool() => {
                self.store.unconfirmed(&[spec.job_id], Duration::ZERO).await.expect("an answer");
                ("unconfirmed", vec![JobEvent::Unconfirmed])
            }
            5 => {
                self.store.return_stuck(Duration::ZERO).await.expect("an answer");
                ("return_stuck", vec![JobEvent::Unconfirmed])
            }
            6 => {
                self.store.return_vanished(&spec.pool, Duration::ZERO).await.expect("an answer");
                ("return_vanished", vec![JobEvent::Vanished])
            }
            7..11 => {
                match self.runner.claim(&spec).await.expect("an answer") {
                    Answer::Claimed(run) => self.runs.push(*run),
                    // A new job takes the place of one that has ended.
                    Answer::Finished(_) => self.jobs[at] = job(spec.session_id.as_str(), "echo", json!(1)),
                    _ => {}
                }
                ("claim", vec![JobEvent::Claimed, JobEvent::SessionBusy])
            }
            11..14 => self.conclude().await,
            20 => {
                let answer = (Some(Json::null()), None);
                let input =
                    Input::of(spec.job_id, "c".parse().expect("a call"), answer, None).expect("an input");
                self.store.answer(Some("a test"), &input, None).await.expect("an answer");
                ("answer", vec![JobEvent::Answered])
            }
            21 => {
                let late = "UPDATE harness_inputs SET expires_at = now() WHERE outcome IS NULL";
                sqlx::query(late).execute(&mut self.connection).await.expect("SQL");
                self.store.time_out_inputs().await.expect("an answer");
                ("time_out_inputs", vec![JobEvent::Answered])
            }
            22 => {
                let line = self.rng.bool();
                self.store.set_line("a test", &Name::default(), line).await.expect("an answer");
                // Nothing waits, as is seen.
                let seen = "UPDATE harness_pools SET seen_at = 'infinity'";
                sqlx::query(seen).execute(&mut self.connection).await.expect("SQL");
                ("set_line", vec![])
            }
            23..25 => {
                let found = self.store.find_lines(&Name::default(), None, 3, 10).await.expect("an answer");
                let takes: Vec<LineTake> =
                    found.into_iter().map(|place| LineTake { place, most: 3 }).collect();
                let admitted =
                    self.store.admit(&self.admitter, &Name::default(), &takes).await.expect("an answer");
                self.store.block(&admitted.busy).await.expect("an answer");
                ("admit", vec![JobEvent::Due, JobEvent::SessionBusy])
            }
            25 => {
                self.store.leave_lines(100).await.expect("an answer");
                ("leave_lines", vec![JobEvent::Released])
            }
            14 => {
                let late = "UPDATE harness_workers SET heartbeat_at = heartbeat_at - interval '2 hours'";
                sqlx::query(late).execute(&mut self.connection).await.expect("SQL");
                declare_dead(&self.store).await;
                self.store.rescue().await.expect("an answer");
                self.runner = Runner::register(&self.store).await;
                ("rescue", vec![JobEvent::Rescheduled])
            }
            15..18 => {
                let id = if self.rng.u32(..4) > 0 { spec.job_id } else { JobId::now() };
                self.store.cancel("a test", &[id]).await.expect("an answer");
                ("cancel", vec![JobEvent::Cancelled, JobEvent::Released])
            }
            18 => {
                let late = "UPDATE harness_jobs SET deadline_at = now()";
                sqlx::query(late).execute(&mut self.connection).await.expect("SQL");
                let body = job::encode(&spec).into_bytes();
                let dead = Unwanted::DeadLettered { pool: &spec.pool, body: &body, reason: "rejected" };
                let why = [Unwanted::Overdue, Unwanted::Rejected, dead][self.rng.usize(..3)];
                // All of them, because few wait for a person.
                let all: Vec<_> = self.jobs.iter().map(|job| job.job_id).collect();
                self.store.end_waiting(&all, why).await.expect("an answer");
                ("end_waiting", vec![JobEvent::Failed, JobEvent::Released])
            }
            _ => {
                // No call of ours leaves a job stranded; a deletion by hand does.
                let by_hand = "DELETE FROM harness_jobs WHERE state = 'running'";
                sqlx::query(by_hand).execute(&mut self.connection).await.expect("SQL");
                read_journal(&mut self.connection).await;
                self.store.release_stranded(None, Duration::ZERO).await.expect("an answer");
                ("release_stranded", vec![JobEvent::Released])
            }
        }
    }

    async fn conclude(&mut self) -> (&'static str, Vec<JobEvent>) {
        let last = self.runs.len().saturating_sub(3);
        let Some(run) = self.rng.choice(&self.runs[last..]).cloned() else { return ("conclude", vec![]) };
        let ask = InputRequest {
            call_id: "c".parse().expect("a call"),
            kind: InputKind::Question,
            content: Json::null(),
            timeout: None,
        };
        let (end, event) = match self.rng.u32(..7) {
            6 => (End::Asks(vec![ask]), JobEvent::Asked),
            0 => (End::HandBack { delay: Duration::ZERO }, JobEvent::Rescheduled),
            1 => (End::Retry { failure: failure(), delay: Duration::ZERO }, JobEvent::Rescheduled),
            2 => (End::Failed(failure()), JobEvent::Failed),
            3 => (
                End::Cancelled(Failure::permanent(FailureCode::Cancelled, "on request")),
                JobEvent::Cancelled,
            ),
            _ => (End::Succeeded(Json::null()), JobEvent::Succeeded),
        };
        let mut conclusion = self.runner.conclusion(&run, end);
        conclusion.take_next = self.rng.bool();
        let follows = if conclusion.take_next { JobEvent::Claimed } else { JobEvent::Released };
        let concluded = self.store.conclude(conclusion).await.expect("an answer");
        self.runs.extend(concluded.next.map(|next| *next));
        // One that asks what was answered is due.
        ("conclude", vec![event, follows, JobEvent::Rescheduled])
    }
}

#[tokio::test]
async fn the_ledger_makes_every_step_that_job_state_knows_and_no_other() {
    let seed = std::env::var("PLAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("PLAY_SEED={seed} plays the same again");
    let database = Database::new().await;
    database.execute(JOURNAL).await;
    let mut play = Play::new(&database, seed).await;

    let all = |event: JobEvent| {
        JobState::ALL.into_iter().filter_map(move |was| Some((was.as_str(), was.next(event)?.as_str())))
    };
    let wanted: BTreeSet<_> = JobEvent::ALL.into_iter().flat_map(all).collect();
    let mut made = BTreeSet::new();
    // The last missing step is reached after some 3,000 calls; each further 1,500 calls halve the odds that one is
    // still missing.
    for _ in 0..60_000 {
        let (call, events) = play.step().await;
        for step in read_journal(&mut play.connection).await {
            match step {
                (None, Some(born)) => {
                    let may = match call {
                        "accept" => [JobState::Publishing, JobState::Waiting].as_slice(),
                        // A job that was never seen.
                        "cancel" => &[JobState::Scheduled],
                        "claim" => &[JobState::Running, JobState::Blocked],
                        _ => &[],
                    };
                    assert!(may.contains(&born), "{call}: a new job is {born}");
                }
                (Some(was), Some(becomes)) => {
                    let known = events.iter().any(|event| was.next(*event) == Some(becomes));
                    assert!(known, "{call}: {was} became {becomes}, which none of {events:?} does");
                    made.insert((was.as_str(), becomes.as_str()));
                }
                // A job that has ended; within the same transaction, it never existed.
                (Some(JobState::Publishing | JobState::Waiting), None) if call == "accept" => {}
                (Some(JobState::Scheduled), None) if call == "cancel" => {}
                (was, None) => panic!("{call}: a job vanished, it was {was:?}"),
            }
        }
        if made == wanted {
            return;
        }
    }
    let missing: Vec<_> = wanted.difference(&made).collect();
    panic!("never made: {missing:?}");
}

#[tokio::test]
async fn migrating_twice_changes_nothing() {
    let database = Database::empty().await;
    let fleet = Fleet::on(database);
    let everything = || async {
        let objects = "SELECT relkind::text || ' ' || relname FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                        WHERE nspname = 'public' ORDER BY 1";
        let versions = "SELECT version || ' ' || installed_on FROM _sqlx_migrations ORDER BY 1";
        (fleet.database.texts(objects).await, fleet.database.texts(versions).await)
    };
    let first = fleet.producer(&["migrate"]).await;
    assert_eq!(first.code, 0, "{first:?}");
    let before = everything().await;
    assert!(first.out.contains(&format!("applied {} migrations", before.1.len())), "{first:?}");
    let second = fleet.producer(&["migrate"]).await;
    assert_eq!(second.code, 0, "{second:?}");
    assert!(!second.out.contains("applied"), "{second:?}");
    assert!(second.out.contains("the schema is up to date"), "{second:?}");
    assert_eq!(everything().await, before);
    assert_eq!(migrations::migrate(&fleet.database.address()).await.unwrap().versions, Vec::<i64>::new());
    migrations::check(&fleet.database.address()).await.unwrap();
}

#[tokio::test]
async fn two_migrations_at_once_are_one() {
    let database = Database::empty().await;
    let address = database.address();
    let both = tokio::join!(migrations::migrate(&address), migrations::migrate(&address));
    let applied = [both.0.unwrap(), both.1.unwrap()];
    migrations::check(&address).await.unwrap();
    assert!(applied.iter().any(|applied| !applied.versions.is_empty()), "{applied:?}");
}

/// Records a migration of a future release, as sqlx does.
async fn from_the_future(fleet: &Fleet, version: i64, description: &str) {
    fleet
        .database
        .execute(&format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES ({version}, '{description}', true, '\\x00', 1)"
        ))
        .await;
}

#[tokio::test]
async fn a_database_that_knows_more_than_the_binary_is_refused() {
    let fleet = Fleet::new().await;
    let version = 99_999_999_999_999_i64;
    from_the_future(&fleet, version, "from the future").await;
    let said =
        format!("the database has migration {version}, which this binary does not know: run a newer release");
    let mut worker = fleet.worker("worker").launch();
    assert_eq!(worker.exit().await, 1);
    assert!(worker.log().contains(&said), "{}", worker.log());
    let ran = fleet.producer(&["enqueue", "--session", "s", "--agent", "echo"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains(&said), "{ran:?}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 0);
}

#[tokio::test]
async fn a_release_is_taken_back_where_the_newer_migrations_work_with_it() {
    let fleet = Fleet::new().await;
    let ours: i64 = fleet.database.count("SELECT max(version) FROM _sqlx_migrations").await;
    from_the_future(&fleet, ours + 1, &format!("a column works with {ours:04}")).await;
    from_the_future(&fleet, ours + 2, &format!("an index works with {:04}", ours - 1)).await;
    let migrated = fleet.producer(&["migrate"]).await;
    assert!(migrated.code == 0 && migrated.out.contains("the schema is up to date"), "{migrated:?}");
    let worker = fleet.worker("worker").start().await;
    let ran = fleet.producer(&["enqueue", "--session", "s", "--agent", "echo"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(fleet.producer(&["wait", ran.out.trim()]).await.code, 0);
    drop(worker);

    // The next migration needs what only its own release knows.
    from_the_future(&fleet, ours + 3, &format!("a rename works with {:04}", ours + 2)).await;
    for command in [["migrate"].as_slice(), &["enqueue", "--session", "s", "--agent", "echo"]] {
        let ran = fleet.producer(command).await;
        assert!(ran.code == 1 && ran.err.contains(&format!("has migration {}", ours + 3)), "{ran:?}");
    }
}
