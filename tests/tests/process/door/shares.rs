//! A tenant that has as many streams, waits and bodies under way as it may leaves room for others.

use std::io::{Read, Write};
use std::net::TcpStream;

use http::Method;
use serde_json::json;
use tests::{Api, Fleet, Reply, until};

use super::tenants::caller;

/// A refusal of this kind, which says when to come back.
fn refused(reply: Reply, status: u16, kind: &str) {
    assert_eq!((reply.status, reply.text("type")), (status, format!("urn:harness:{kind}")), "{reply:?}");
    let after: u64 = reply.header("retry-after").parse().unwrap_or_else(|_| panic!("{reply:?}"));
    assert!((1..=60).contains(&after), "{reply:?}");
}

#[tokio::test]
async fn a_tenant_and_a_key_follow_so_much_at_a_time_and_no_more() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("ENVIRONMENT", "production").set("API_MAX_FOLLOWERS", 6);
    let door =
        door.set("API_MAX_FOLLOWERS_PER_TENANT", 4).set("API_MAX_FOLLOWERS_PER_CALLER", 3).start().await;
    let api = Api::of(&door).await;
    let scopes = "submit,read";
    let (acme, second) =
        (caller(&fleet, &api, "acme", scopes).await, caller(&fleet, &api, "acme", scopes).await);
    let other = caller(&fleet, &api, "other", scopes).await;
    let spec = json!({"agent_id": "echo"});
    let job_id = acme.submit(&spec).await.is(202).text("job_id");
    let others = other.submit(&spec).await.is(202).text("job_id");
    let path = format!("/v1/jobs/{job_id}/events");
    let mut streams = Vec::new();
    for _ in 0..3 {
        streams.push(acme.events(&path, &[]).await);
    }
    refused(*acme.try_events(&path, &[]).await.err().expect("refused"), 429, "too_many_followers");
    // A caller that waits follows. Nothing is accepted then.
    let waits = [("prefer", "wait=1"), ("content-type", "application/json")];
    let jobs = fleet.database.count("SELECT count(*) FROM harness_jobs").await;
    let submitted = acme.send(Method::POST, "/v1/jobs", &waits, spec.to_string().into_bytes()).await;
    refused(submitted, 429, "too_many_followers");
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, jobs);
    refused(
        acme.send(Method::GET, &format!("/v1/jobs/{job_id}"), &waits[..1], Vec::new()).await,
        429,
        "too_many_followers",
    );
    acme.get(&format!("/v1/jobs/{job_id}")).await.is(200);
    acme.submit(&spec).await.is(202);
    // Another key of the tenant has what is left of the tenant's part, and another tenant has its own.
    streams.push(second.events(&path, &[]).await);
    refused(*second.try_events(&path, &[]).await.err().expect("refused"), 429, "too_many_followers");
    let path_of_other = format!("/v1/jobs/{others}/events");
    streams.push(other.events(&path_of_other, &[]).await);
    streams.push(other.events(&path_of_other, &[]).await);
    refused(*other.try_events(&path_of_other, &[]).await.err().expect("refused"), 503, "busy");
    let (_, metrics) = door.get("/metrics").await;
    let met = "harness_http_bounds_met_total{bound=\"followers\"} ";
    assert!(metrics.lines().any(|line| line.starts_with(met) && !line.ends_with(" 0")), "{metrics}");
    // What ends makes room, once the door has noticed it.
    drop(streams);
    for job in [&job_id, &others] {
        let owner = if job == &job_id { &acme } else { &other };
        let again = async || owner.try_events(&format!("/v1/jobs/{job}/events"), &[]).await.ok();
        until("there is room again", again).await;
    }
}

/// Begins a body of so many bytes, and sends none of it. Returns once the door has made room for it and waits for it.
fn begin(api: &Api, key: &str, address: &str, bytes: usize) -> TcpStream {
    let to = api.base().strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(to).expect("a connection");
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nAuthorization: Bearer {key}\r\n\
         X-Forwarded-For: {address}\r\nContent-Length: {bytes}\r\nExpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    let mut answer = [0; "HTTP/1.1 100".len()];
    stream.read_exact(&mut answer).expect("an answer");
    assert_eq!(str::from_utf8(&answer), Ok("HTTP/1.1 100"), "the body is waited for");
    stream
}

#[tokio::test]
async fn bodies_that_arrive_have_a_bound_in_bytes_and_one_caller_leaves_room_for_others() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("ENVIRONMENT", "production").set("API_MAX_BODY_BYTES", 1 << 20);
    let door = door.set("API_TRUSTED_PROXIES", "127.0.0.1").start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "submit").await;
    let other = caller(&fleet, &api, "other", "submit").await;
    let key = acme.shown_key().expect("a key");
    let from = async |api: &Api, address: &str| {
        let headers = [("content-type", "application/json"), ("x-forwarded-for", address)];
        api.send(Method::POST, "/v1/jobs", &headers, br#"{"agent_id":"echo"}"#.to_vec()).await
    };
    // Large bodies count for the tenant: a quarter of all is taken. Who is still sending gets the answer all the same.
    let large = [begin(&api, key, "192.0.2.1", 128 << 10), begin(&api, key, "192.0.2.2", 128 << 10)];
    for _ in 0..20 {
        let body = format!("{{\"agent_id\":\"echo\",\"input\":\"{}\"}}", "x".repeat(700 << 10));
        let headers = [("content-type", "application/json")];
        let reply = acme.send(Method::POST, "/v1/jobs", &headers, body.into_bytes()).await;
        refused(reply, 429, "too_many_bodies");
    }
    from(&other, "192.0.2.1").await.is(202);
    drop(large);
    let room = async || (from(&acme, "192.0.2.1").await.status == 202).then_some(());
    until("there is room again", room).await;
}

/// Begins a small body without a key, and sends none of it. Returns once the door waits for it, or has refused its sender.
fn begin_unknown(api: &Api, address: &str) -> TcpStream {
    let to = api.base().strip_prefix("http://").expect("an address");
    let mut stream = TcpStream::connect(to).expect("a connection");
    let head = format!(
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Forwarded-For: {address}\r\n\
         Content-Length: 65536\r\nExpect: 100-continue\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("sent");
    let mut answer = [0; "HTTP/1.1 100".len()];
    stream.read_exact(&mut answer).expect("an answer");
    assert!(answer == *b"HTTP/1.1 100" || answer == *b"HTTP/1.1 401", "{:?}", str::from_utf8(&answer));
    stream
}

#[tokio::test]
async fn small_bodies_without_a_key_leave_their_room_to_the_tenants() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("ENVIRONMENT", "production").set("API_MAX_BODY_BYTES", 1 << 20);
    let door = door.set("API_TRUSTED_PROXIES", "127.0.0.1").start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "submit").await;
    // A small body is read before its key is looked at. Together these are as many bytes as all bodies may have.
    let unknown: Vec<TcpStream> =
        (0..16).map(|n| begin_unknown(&api, &format!("192.0.2.{}", n / 4))).collect();
    for address in ["192.0.2.0", "192.0.2.200"] {
        let headers = [("content-type", "application/json"), ("x-forwarded-for", address)];
        let body = br#"{"agent_id":"echo"}"#.to_vec();
        acme.send(Method::POST, "/v1/jobs", &headers, body).await.is(202);
    }
    drop(unknown);
}
