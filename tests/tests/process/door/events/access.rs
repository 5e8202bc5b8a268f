//! Who may follow what.

use http::Method;
use job::JobId;
use serde_json::json;
use tests::{Api, Fleet};

use crate::door::tenants::caller;

#[tokio::test]
async fn another_tenant_s_streams_are_not_there() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("ENVIRONMENT", "production").start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "submit,read,content").await;
    let other = caller(&fleet, &api, "other", "submit,read,content").await;
    let blind = caller(&fleet, &api, "acme", "submit").await;
    let job_id = acme.submit(&json!({"agent_id": "echo", "session_id": "s"})).await.is(202).text("job_id");
    let refused = async |caller: &Api, path: &str| {
        caller.try_events(path, &[]).await.err().unwrap_or_else(|| panic!("{path} is open"))
    };
    let none = JobId::now().to_string();
    let job = |id: &str| format!("/v1/jobs/{id}/events");
    let (there, not_there) = (refused(&other, &job(&job_id)).await, refused(&other, &job(&none)).await);
    assert_eq!((there.status, &there.body), (404, &not_there.body));
    let (there, not_there) =
        (refused(&other, "/v1/sessions/s/events").await, refused(&other, "/v1/sessions/x/events").await);
    assert_eq!((there.status, &there.body), (404, &not_there.body));
    for body in [json!({"job_id": job_id}), json!({"session_id": "s"})] {
        other.post("/v1/tickets", &body).await.problem(404, None);
        blind.post("/v1/tickets", &body).await.problem(403, None);
    }
    refused(&blind, &job(&job_id)).await.problem(403, None);
    refused(&api, &job(&job_id)).await.problem(401, Some("authorization"));
    // Equal names of sessions never meet.
    other.submit(&json!({"agent_id": "echo", "session_id": "s"})).await.is(202);
    let mut stream = acme.events("/v1/sessions/s/events", &[]).await;
    assert_eq!(stream.next().await.expect("a state").text("job_id"), job_id);
}

#[tokio::test]
async fn a_ticket_opens_its_stream_once_at_any_door() {
    let fleet = Fleet::new().await;
    let production = |name: &str| fleet.door(name).set("ENVIRONMENT", "production");
    let (first, second) = (production("first").start().await, production("second").start().await);
    let (first, second) = (Api::of(&first).await, Api::of(&second).await);
    let acme = caller(&fleet, &first, "acme", "submit,read").await;
    let job_id = acme.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let ticket = acme.post("/v1/tickets", &json!({"job_id": job_id})).await.is(201);
    assert_eq!(
        (ticket.header("cache-control"), ticket.json()["valid_for_s"].as_u64()),
        ("no-store", Some(60))
    );
    let (path, text) = (ticket.text("events"), ticket.text("ticket"));
    // Another stream does not take it, and it is no key.
    let session = format!("/v1/sessions/{job_id}/events?ticket={text}");
    second.try_events(&session, &[]).await.err().expect("refused").problem(401, Some("ticket"));
    second.with_key(&text).get("/v1/jobs").await.problem(401, Some("authorization"));
    let mut stream = second.events(&path, &[]).await;
    assert_eq!(stream.next().await.expect("its state").text("job_id"), job_id);
    for api in [&first, &second] {
        api.try_events(&path, &[]).await.err().expect("refused").problem(401, Some("ticket"));
    }
    for wrong in ["", "hft_", "hft_~_", "hft_x_y", "\u{e9}"] {
        let path = format!("/v1/jobs/{job_id}/events?ticket={wrong}");
        let path = path.replace('\u{e9}', "%C3%A9");
        first.try_events(&path, &[]).await.err().expect("refused").problem(401, Some("ticket"));
    }
    for wrong in [json!({}), json!({"job_id": job_id, "session_id": "s"}), json!({"job": 1}), json!([])] {
        assert_eq!(acme.post("/v1/tickets", &wrong).await.status, 422, "{wrong}");
    }
    // Tickets are no keys that people look at, and one that is over goes with the next.
    let over = acme.post("/v1/tickets", &json!({"job_id": job_id})).await.is(201).text("events");
    fleet
        .database
        .execute("UPDATE harness_api_keys SET expires_at = now() - interval '1 s' WHERE id >= '~'")
        .await;
    first.try_events(&over, &[]).await.err().expect("refused").problem(401, Some("ticket"));
    acme.post("/v1/tickets", &json!({"session_id": job_id})).await.is(201);
    let tickets = "SELECT count(*) FROM harness_api_keys WHERE id >= '~'";
    assert_eq!(fleet.database.count(tickets).await, 1);
    let listed = fleet.producer(&["keys", "list", "--json"]).await;
    assert!(!listed.out.contains('~'), "{listed:?}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_revoked_key_ends_its_streams_and_those_of_its_tickets() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("ENVIRONMENT", "production").start().await;
    let api = Api::of(&door).await;
    let (acme, stays) = (
        caller(&fleet, &api, "acme", "submit,read").await,
        caller(&fleet, &api, "other", "submit,read").await,
    );
    let job_id = acme.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let others = stays.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let ticket = acme.post("/v1/tickets", &json!({"job_id": job_id})).await.is(201).text("events");
    let unused = acme.post("/v1/tickets", &json!({"job_id": job_id})).await.is(201).text("events");
    let mut by_key = acme.events(&format!("/v1/jobs/{job_id}/events"), &[]).await;
    let mut by_ticket = api.events(&ticket, &[]).await;
    let mut other = stays.events(&format!("/v1/jobs/{others}/events"), &[]).await;
    let listed = fleet.producer(&["keys", "list", "--json"]).await.json();
    let key = listed.iter().find(|key| key["tenant"] == "acme").expect("its key");
    let id = key["id"].as_str().expect("an id");
    assert_eq!(fleet.producer(&["keys", "revoke", id]).await.code, 0);
    for stream in [&mut by_key, &mut by_ticket] {
        assert!(stream.rest().await.iter().all(|event| event.name == "state"));
    }
    api.try_events(&unused, &[]).await.err().expect("refused").problem(401, Some("ticket"));
    let cancel = format!("/v1/jobs/{others}/cancel");
    let operates = caller(&fleet, &api, "other", "operate").await;
    operates.send(Method::POST, &cancel, &[], Vec::new()).await.is(200);
    assert_eq!(other.named("end").await.text("job_id"), others);
}
