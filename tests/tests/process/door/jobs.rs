//! A job over HTTP, from its submission to its result.

use http::Method;
use job::{JobId, JobSpec};
use serde_json::json;
use tests::{Api, Fleet, Ran, until};
use uuid::Uuid;

/// A job of this session that was submitted so many hours ago.
fn job_from(hours_ago: u32, session: &str) -> JobSpec {
    let now = Uuid::from(JobId::now()).as_u128();
    let id = Uuid::from_u128(now - ((u128::from(hours_ago) * 3_600_000) << 80));
    JobSpec { job_id: id.try_into().expect("version 7"), ..tests::job(session, "echo", json!(1)) }
}

#[tokio::test]
async fn a_job_is_accepted_waited_for_and_read() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let input = json!({"text": "hello", "big": 12_345_678_901_234_567_u64});
    let accepted =
        api.submit(&json!({"session_id": "s-1", "agent_id": "echo", "input": input})).await.is(202);
    let job_id = accepted.text("job_id");
    assert_eq!(accepted.header("location"), format!("/v1/jobs/{job_id}"));
    let ended = api.wait(&job_id).await.is(200);
    assert_eq!(ended.text("state"), "succeeded");
    assert_eq!(ended.text("accepted_at"), accepted.text("accepted_at"));
    let read = api.get(&format!("/v1/jobs/{job_id}")).await.is(200).json();
    assert_eq!(read["output_sha256"].as_str().map(str::len), Some(64), "{read}");
    assert!(read["output"].to_string().contains("12345678901234567"), "{read}");

    // In one request, and in a session of its own.
    let headers = [("content-type", "application/json"), ("prefer", "wait=30")];
    let body = br#"{"agent_id":"echo","input":1}"#.to_vec();
    let ended = api.send(Method::POST, "/v1/jobs", &headers, body).await.is(200);
    assert_eq!(
        (ended.text("state"), ended.text("session_id")),
        ("succeeded".to_owned(), ended.text("job_id"))
    );
    fleet.database.audited().await;
}

#[tokio::test]
async fn the_same_id_is_the_same_job_and_another_job_under_it_is_refused() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let job_id = JobId::now().to_string();
    let spec = json!({"job_id": job_id, "agent_id": "echo", "input": {"n": 1}});
    let first = api.submit(&spec).await.is(202);
    let waiting = api.get(&format!("/v1/jobs/{job_id}")).await.is(200).json();
    assert_eq!((&waiting["input"], &waiting["input_bytes"]), (&json!({"n": 1}), &json!(7)), "{waiting}");
    let again = api.submit(&spec).await.is(200);
    assert_eq!(again.text("accepted_at"), first.text("accepted_at"));
    let other = json!({"job_id": job_id, "agent_id": "echo", "input": {"n": 2}});
    let refused = api.submit(&other).await.problem(409, Some("job_id"));
    assert_eq!(refused.text("job_id"), job_id);

    let _worker = fleet.worker("worker").start().await;
    assert_eq!(api.wait(&job_id).await.is(200).text("state"), "succeeded");
    let after = api.submit(&spec).await.is(200);
    assert_eq!(
        (after.text("state"), after.text("accepted_at")),
        ("succeeded".into(), first.text("accepted_at"))
    );
    api.submit(&json!({"job_id": job_id, "agent_id": "other"})).await.problem(409, Some("job_id"));
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_results").await, 1);
}

#[tokio::test]
async fn many_callers_at_once_each_have_their_own_job() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let submitting = (0..64).map(|n| {
        let api = api.clone();
        async move {
            // Every fourth id comes twice.
            let spec = json!({"agent_id": "echo", "input": n, "session_id": format!("s-{}", n % 16)});
            let job_id = api.submit(&spec).await.is(202).text("job_id");
            let ended = api.wait(&job_id).await.is(200).json();
            assert_eq!(ended["output"], n, "{ended}");
        }
    });
    futures::future::join_all(submitting).await;
    assert_eq!(
        fleet.database.count("SELECT count(*) FROM harness_results WHERE state = 'succeeded'").await,
        64
    );
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_job_is_cancelled_and_a_failed_one_runs_again_under_a_new_id() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let waiting = api.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let cancelled = api.post(&format!("/v1/jobs/{waiting}/cancel"), &json!(null)).await.is(200);
    assert_eq!(cancelled.text("state"), "cancelled");
    api.post(&format!("/v1/jobs/{waiting}/cancel"), &json!(null)).await.is(200);
    api.post(&format!("/v1/jobs/{waiting}/redrive"), &json!(null)).await.problem(409, None);

    let _worker = fleet.worker("worker").start().await;
    let failed = api.submit(&json!({"agent_id": "nobody"})).await.is(202).text("job_id");
    let ended = api.wait(&failed).await.is(200).json();
    assert_eq!((&ended["state"], &ended["failure"]["code"]), (&json!("failed"), &json!("unknown_agent")));
    api.post(&format!("/v1/jobs/{failed}/cancel"), &json!(null)).await.problem(409, None);
    let again = api.post(&format!("/v1/jobs/{failed}/redrive"), &json!(null)).await.is(202);
    assert_ne!(again.text("job_id"), failed);
    assert_eq!(again.header("location"), format!("/v1/jobs/{}", again.text("job_id")));
    let kept = api.post(&format!("/v1/jobs/{failed}/redrive"), &json!(null)).await.problem(409, None);
    assert!(kept.text("detail").contains(&again.text("job_id")), "{kept:?}");

    let long = api.submit(&json!({"agent_id": "scripted", "input": {"count": 1000, "delay_ms": 20}})).await;
    let long = long.is(202).text("job_id");
    fleet.iterated(long.parse().unwrap(), 1).await;
    let stopping = api.post(&format!("/v1/jobs/{long}/cancel"), &json!(null)).await.is(202);
    assert!(matches!(&*stopping.text("state"), "running" | "cancelled"), "{stopping:?}");
    assert_eq!(api.wait(&long).await.is(200).text("state"), "cancelled");
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_door_that_is_asked_to_stop_answers_those_who_wait_and_ends() {
    let fleet = Fleet::new().await;
    let mut door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let job_id = api.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let waiting = tokio::spawn({
        let (api, job_id) = (api.clone(), job_id.clone());
        async move { api.wait(&job_id).await }
    });
    // The question is under way once it has been asked of Postgres. Its last part is about ends.
    let asked =
        "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'j.epoch > 0, j.failure|CASE WHEN r.fits'
                  AND datname = current_database() AND pid <> pg_backend_pid()";
    until("the door asks for the end", async || (fleet.database.count(asked).await > 0).then_some(())).await;
    door.terminate();
    assert_eq!(waiting.await.unwrap().is(202).text("job_id"), job_id);
    assert_eq!(door.exit().await, 0);
}

#[tokio::test]
async fn a_live_job_is_cancelled_however_old_it_is() {
    let fleet = Fleet::new().await;
    let old = ["one", "two", "three"].map(|session| job_from(36, session));
    let young = tests::job("three", "echo", json!(1));
    fleet.store.accept(&old).await.expect("accepted");
    fleet.store.accept(std::slice::from_ref(&young)).await.expect("accepted");
    let door = fleet.door("door").set("RETENTION_DAYS", 1).start().await;
    let api = Api::of(&door).await;
    let cancel = async |arguments: &[&str]| {
        let mut command = fleet.producer_command(&["cancel"]);
        command.args(arguments).env("RETENTION_DAYS", "1");
        Ran::of(command, "").await
    };
    let [one, two, three] = old.map(|spec| spec.job_id.to_string());
    api.get(&format!("/v1/jobs/{one}")).await.is(200);
    for _ in 0..2 {
        let cancelled = api.post(&format!("/v1/jobs/{one}/cancel"), &json!(null)).await.is(200);
        assert_eq!(cancelled.text("state"), "cancelled");
    }
    let ran = cancel(&[&two]).await;
    assert_eq!((ran.code, ran.out.trim()), (0, format!("{two} cancelled").as_str()), "{ran:?}");
    let ran = cancel(&[&two]).await;
    assert!(ran.code == 3 && ran.out.contains("had ended before: cancelled"), "{ran:?}");
    let ran = cancel(&["--session", "three"]).await;
    let both = format!("{} cancelled\n{three} cancelled", young.job_id);
    assert_eq!((ran.code, ran.out.trim()), (0, both.as_str()), "{ran:?}");

    // For the end of one that the ledger does not know there is no place.
    let unknown = job_from(36, "s").job_id.to_string();
    api.post(&format!("/v1/jobs/{unknown}/cancel"), &json!(null)).await.problem(404, None);
    let ran = cancel(&[&unknown]).await;
    assert!(ran.code == 2 && ran.err.contains(&format!("job_id: got {unknown}")), "{ran:?}");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 0);
    fleet.database.audited().await;
}
