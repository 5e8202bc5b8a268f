//! The client in Rust does all that the API can, with a key of its own.

use std::time::Duration;

use futures::TryStreamExt;
use harness_fleet::{
    CatchUp, Client, Error, Event, Followed, InputAnswer, InputKind, Job, JobEntry, JobFilter, JobId,
    JobSpec, JobState, Json, Label, Labels, NewSchedule, Overlap, Schedule, SessionFilter, SpendBy, Usd,
    When,
};
use serde_json::{Value, json};
use tests::{Api, Authority, Fleet, job, until};

/// The status and the field of a refusal.
fn refusal<T: std::fmt::Debug>(answer: Result<T, Error>) -> (u16, Option<String>) {
    match answer {
        Err(Error::Refused(problem)) => (problem.status, problem.field),
        other => panic!("expected a refusal: {other:?}"),
    }
}

fn output(job: &Job) -> Option<Value> {
    job.output.as_ref().map(|output| serde_json::from_str(output.as_str()).expect("JSON"))
}

async fn ids(client: &Client, filter: &JobFilter) -> Vec<JobId> {
    let entries: Vec<JobEntry> = client.jobs(filter, 2).try_collect().await.expect("a list");
    entries.iter().map(|entry| entry.job_id).collect()
}

#[tokio::test]
async fn the_walk_of_the_rust_client_works() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let authority = Authority::new();
    let certificate = authority.certificate("127.0.0.1");
    let door = fleet.door("door").set("ENVIRONMENT", "production");
    let door = door.set("API_TLS_CERT", certificate.chain.display());
    let door = door.set("API_TLS_KEY", certificate.key.display()).start().await;
    let created =
        fleet.producer(&["keys", "create", "--tenant", "default", "--scope", "submit,read,content,operate"]);
    let key = created.await.out.trim().to_owned();
    let pem = std::fs::read_to_string(authority.file()).expect("an authority");
    let url = Api::of(&door).await.base().replace("http://", "https://");
    let client = Client::trusting(&url, Some(&key), Some(&pem)).expect("an address");

    // Submit, wait, read; and the same again.
    let spec = job("hello", "echo", json!({"any": "json"}));
    assert_eq!(client.submit(&spec).await.expect("accepted").state, JobState::Publishing);
    let ended = client.wait(spec.job_id, None).await.expect("its end");
    assert_eq!((ended.state, output(&ended)), (JobState::Succeeded, Some(json!({"any": "json"}))));
    assert_eq!(client.submit(&spec).await.expect("known").state, JobState::Succeeded);
    assert!(client.why(spec.job_id).await.expect("a sentence").starts_with("succeeded"));
    assert_eq!(client.session(&spec.session_id).await.expect("a session").jobs, 1);

    // What was said may be null.
    let null = job("hello", "echo", Value::Null);
    client.submit(&null).await.expect("accepted");
    let null = client.wait(null.job_id, Some(Duration::from_secs(30))).await.expect("its end");
    assert_eq!(output(&null), Some(Value::Null));

    // A job that takes long is not waited for for ever, and is cancelled.
    let long = job("long", "scripted", json!({"count": 1, "delay_ms": 600_000}));
    client.submit(&long).await.expect("accepted");
    let waited = client.wait(long.job_id, Some(Duration::from_millis(1_200))).await.expect("the job");
    assert!(!waited.state.is_end());
    client.cancel(long.job_id).await.expect("it is cancelled");
    assert_eq!(client.wait(long.job_id, None).await.expect("its end").state, JobState::Cancelled);
    assert_eq!(refusal(client.cancel(spec.job_id).await), (409, None));

    // A job that asks is answered once.
    let ask = json!({"iterations": [{"ask": {"call_id": "c1", "kind": "approval", "question": "May I?"}}]});
    let asking = job("asks", "scripted", ask);
    client.submit(&asking).await.expect("accepted");
    let asked = until("a question", async || client.get(asking.job_id).await.ok()?.questions.pop()).await;
    assert_eq!((asked.call_id.as_str(), asked.kind), ("c1", InputKind::Approval));
    let wrong = InputAnswer::Answer { answer: Json::null() };
    assert_eq!(
        refusal(client.answer(asking.job_id, "c1", &wrong, None).await),
        (422, Some("answer".to_owned()))
    );
    let yes = InputAnswer::Approve { approve: true };
    client.answer(asking.job_id, "c1", &yes, Some("Ada")).await.expect("it counts");
    assert_eq!(client.wait(asking.job_id, None).await.expect("its end").state, JobState::Succeeded);

    // Many at once, of which one is refused.
    let mut jobs: Vec<JobSpec> = (0..5).map(|n| job("batch", "echo", json!(n))).collect();
    jobs[2].pool = "nowhere".parse().expect("a name");
    let batch = client.submit_all(&jobs).await;
    assert!(batch.error.is_none(), "{batch:?}");
    let statuses: Vec<u16> = batch.answers.iter().map(|answer| answer.status).collect();
    assert_eq!(statuses, [202, 202, 422, 202, 202]);
    assert_eq!(batch.answers[2].problem.as_ref().and_then(|problem| problem.field.as_deref()), Some("pool"));
    client.wait(jobs[4].job_id, None).await.expect("its end");

    // Lists, page by page.
    let of_batch = JobFilter { session: Some(jobs[0].session_id.clone()), ..JobFilter::default() };
    let expected: Vec<JobId> = [4, 3, 1, 0].map(|n: usize| jobs[n].job_id).to_vec();
    assert_eq!(ids(&client, &of_batch).await, expected);
    let cancelled = JobFilter { states: vec![JobState::Cancelled], ..JobFilter::default() };
    assert_eq!(ids(&client, &cancelled).await, [long.job_id]);
    let label = |text: &str| text.parse::<Label>().expect("a label");
    let mut labelled = job("hello", "echo", json!(1));
    labelled.labels = Labels::of([label("team=search"), label("run=7")]).expect("labels");
    (labelled.max_iterations, labelled.max_tokens) = (Some(7), Some(9_000));
    labelled.max_cost_usd = Some(Usd::from_micros(250_000));
    assert_eq!(client.submit(&labelled).await.expect("accepted").labels, labelled.labels);
    assert_eq!(client.wait(labelled.job_id, None).await.expect("its end").labels, labelled.labels);
    for (texts, expected) in
        [(["team=search", "run=7"], vec![labelled.job_id]), (["team=search", "run=8"], vec![])]
    {
        let filter = JobFilter { labels: texts.map(label).to_vec(), ..JobFilter::default() };
        assert_eq!(ids(&client, &filter).await, expected);
    }
    assert_eq!(client.spend(&[], 1).await.expect("sums"), []);
    assert_eq!(client.spend(&[SpendBy::Agent, SpendBy::Job], 7).await.expect("sums"), []);
    let every = SessionFilter::default();
    let sessions: Vec<_> = client.sessions(&every, 3).try_collect().await.expect("a list");
    assert_eq!(sessions.len(), 4, "{sessions:?}");

    // Dead letters, and one of them again.
    let failing = job("dead", "nobody", json!(1));
    client.submit(&failing).await.expect("accepted");
    let failed = client.wait(failing.job_id, None).await.expect("its end");
    assert!(failed.failure.is_some_and(|failure| failure.code.as_str() == "unknown_agent"));
    let dead: Vec<JobEntry> = client.dead(&JobFilter::default(), 50).try_collect().await.expect("a list");
    assert_eq!(dead.iter().map(|entry| entry.job_id).collect::<Vec<_>>(), [failing.job_id]);
    let renewed = client.redrive(failing.job_id).await.expect("a new job").job_id;
    assert_ne!(renewed, failing.job_id);
    let events: Vec<Followed> = client.follow(renewed).try_collect().await.expect("events");
    assert!(
        matches!(&events[events.len() - 1].event, Event::End(job) if job.state == JobState::Failed),
        "{events:?}"
    );
    client.drop_dead(renewed).await.expect("it is dropped");
    assert_eq!(refusal(client.drop_dead(renewed).await), (409, None));
    client.empty_session(&spec.session_id).await.expect("it is emptied");
    assert_eq!(refusal(client.redrive(failing.job_id).await), (409, None));

    // What is refused says why; a certificate of another authority is none.
    let unknown = client.get(JobId::now()).await;
    assert!(unknown.is_err_and(|error| error.is_not_found()));
    let mut other = spec.clone();
    other.agent_id = "scripted".parse().expect("a name");
    assert_eq!(refusal(client.submit(&other).await), (409, Some("job_id".to_owned())));
    let keyless = Client::trusting(&url, None, Some(&pem)).expect("an address");
    assert_eq!(refusal(keyless.get(spec.job_id).await), (401, Some("authorization".to_owned())));
    let strange = Client::new(&url, Some(&key)).expect("an address").retrying_for(Duration::ZERO);
    assert!(matches!(strange.get(spec.job_id).await, Err(Error::Unreachable { .. })));
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_key_that_allows_less_is_enough_for_the_rust_client_to_do_it() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let url = Api::of(&door).await.base().to_owned();
    let client = async |scopes: &str| {
        let created = fleet.producer(&["keys", "create", "--scope", scopes]).await;
        Client::new(&url, Some(created.out.trim())).expect("an address")
    };
    let (submits, reads) = (client("submit").await, client("read").await);
    let spec = job("s", "nobody", json!(1));
    assert_eq!(submits.submit(&spec).await.expect("accepted").job_id, spec.job_id);
    let ended = reads.wait(spec.job_id, None).await.expect("its end");
    let failure = ended.failure.expect("why");
    assert_eq!((failure.code.as_str(), failure.message), ("unknown_agent", None));
    assert_eq!(submits.submit(&spec).await.expect("known").state, JobState::Failed);
}

#[tokio::test]
async fn the_rust_client_finds_jobs_by_time_and_sessions_by_agent_and_time() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let client = Client::new(Api::of(&door).await.base(), None).expect("an address");
    let (one, two) = (job("a", "echo", json!(1)), job("b", "scripted", json!({"count": 1, "delay_ms": 0})));
    for spec in [&one, &two] {
        client.submit(spec).await.expect("accepted");
        client.wait(spec.job_id, None).await.expect("its end");
    }
    let found = async |filter: SessionFilter| {
        let entries: Vec<_> = client.sessions(&filter, 1).try_collect().await.expect("a list");
        entries.into_iter().map(|entry| entry.session_id).collect::<Vec<_>>()
    };
    let none = SessionFilter::default;
    assert_eq!(found(none()).await, ["a", "b"]);
    assert_eq!(found(SessionFilter { agent: Some(two.agent_id.clone()), ..none() }).await, ["b"]);
    let entries: Vec<_> = client.sessions(&none(), 500).try_collect().await.expect("a list");
    // The session `b` was created when `a` was done.
    let (created, updated) = (&entries[1].created_at, &entries[1].last_updated);
    let at = |time: &String| Some(time.clone());
    assert_eq!(found(SessionFilter { created_since: at(created), ..none() }).await, ["b"]);
    assert_eq!(found(SessionFilter { created_before: at(created), ..none() }).await, ["a"]);
    assert_eq!(found(SessionFilter { updated_since: at(updated), ..none() }).await, ["b"]);
    assert_eq!(found(SessionFilter { updated_before: at(updated), ..none() }).await, ["a"]);
    let nobody = SessionFilter { agent: Some(one.agent_id.clone()), updated_since: at(updated), ..none() };
    assert_eq!(found(nobody).await, [""; 0]);
    let wrong = SessionFilter { updated_since: Some("yesterday".to_owned()), ..none() };
    let wrong: Result<Vec<_>, Error> = client.sessions(&wrong, 1).try_collect().await;
    assert_eq!(refusal(wrong), (422, Some("updated_since".to_owned())));
    // A job's own time is in its id.
    let of = |since: Option<&str>, before: Option<&str>| JobFilter {
        since: since.map(str::to_owned),
        before: before.map(str::to_owned),
        ..JobFilter::default()
    };
    let long_ago = Some("2001-01-01T00:00:00Z");
    assert_eq!(ids(&client, &of(long_ago, None)).await, [two.job_id, one.job_id]);
    assert_eq!(ids(&client, &of(None, long_ago)).await, []);
}

#[tokio::test]
async fn the_rust_client_makes_reads_pauses_and_removes_schedules() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let client = Client::new(Api::of(&door).await.base(), None).expect("an address");
    let name = |text: &str| text.parse::<harness_fleet::Name>().expect("a name");
    let nightly = NewSchedule {
        zone: Some("Europe/Berlin".to_owned()),
        jitter_ms: Some(1_000),
        catch_up: Some(CatchUp::All),
        within_ms: Some(60_000),
        overlap: Some(Overlap::Skip),
        ..NewSchedule::new(
            name("nightly"),
            When::Cron("30 2 * * *".to_owned()),
            Json::parse(r#"{"agent_id":"echo","input":{"n":1e5}}"#).expect("JSON"),
        )
    };
    let made = client.make_schedule(&nightly).await.expect("made");
    assert_eq!((made.name.as_str(), made.cron.as_deref(), made.at), ("nightly", Some("30 2 * * *"), None));
    assert_eq!((made.zone.as_str(), made.jitter_ms, made.within_ms), ("Europe/Berlin", 1_000, 60_000));
    assert_eq!((made.catch_up.as_str(), made.overlap.as_str(), made.fired), ("all", "skip", 0));
    assert!(made.job.is_some_and(|job| job.as_str().contains("1e5")), "to the letter");
    assert_eq!(refusal(client.make_schedule(&nightly).await), (409, Some("name".to_owned())));
    let echo = || Json::parse(r#"{"agent_id":"echo"}"#).expect("JSON");
    let once = NewSchedule::new(name("once"), When::At("2999-01-01T00:00:00Z".to_owned()), echo());
    assert!(client.make_schedule(&once).await.expect("made").at.is_some());
    let never = NewSchedule::new(name("never"), When::Cron("0 0 31 2 *".to_owned()), echo());
    assert_eq!(refusal(client.make_schedule(&never).await), (422, Some("cron".to_owned())));

    let all: Vec<Schedule> = client.schedules().try_collect().await.expect("a list");
    assert_eq!(all.iter().map(|schedule| schedule.name.as_str()).collect::<Vec<_>>(), ["nightly", "once"]);
    let firings = client.next_firings(&nightly.name, 3).await.expect("instants");
    assert_eq!(firings.len(), 3);
    assert!(firings.iter().all(|firing| firing.local.contains("T02:30:00+0")), "{firings:?}");
    // The one has fractions of seconds, the other none.
    let next = client.schedule(&nightly.name).await.expect("it").next_at.expect("an instant");
    assert_eq!(next.get(..19), firings[0].at.get(..19));
    assert_eq!(refusal(client.next_firings(&nightly.name, 101).await), (422, Some("limit".to_owned())));
    assert!(client.pause_schedule(&nightly.name).await.expect("paused").paused_at.is_some());
    assert!(client.resume_schedule(&nightly.name).await.expect("resumed").paused_at.is_none());
    client.remove_schedule(&nightly.name).await.expect("removed");
    assert!(client.schedule(&nightly.name).await.is_err_and(|error| error.is_not_found()));
    assert!(client.remove_schedule(&nightly.name).await.is_err_and(|error| error.is_not_found()));
}
