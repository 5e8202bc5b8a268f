//! The port of the API has bounds: connections, heads, bodies, and the pages of other sites.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use http::Method;
use serde_json::json;
use tests::{Api, Fleet, until};
use tokio::net::TcpSocket;

fn open(api: &Api) -> TcpStream {
    let address = api.base().strip_prefix("http://").expect("an address");
    let stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a bound");
    stream
}

/// What is answered until the connection is closed.
async fn answered(mut stream: TcpStream) -> String {
    let reading = move || {
        let mut answer = Vec::new();
        // A reset is an end as well.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    tokio::task::spawn_blocking(reading).await.expect("a thread")
}

#[tokio::test]
async fn with_as_many_connections_as_may_be_a_further_one_is_closed_and_the_others_go_on() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("API_MAX_CONNECTIONS", 4).start().await;
    let api = Api::of(&door).await;
    let open_now = async |count: &str| {
        let look = async || {
            door.get("/metrics")
                .await
                .1
                .contains(&format!("harness_http_connections {count}\n"))
                .then_some(())
        };
        until("connections are counted", look).await;
    };
    // The caller keeps one.
    api.submit(&json!({"agent_id": "echo"})).await.is(202);
    let mut held: Vec<TcpStream> = (0..3).map(|_| open(&api)).collect();
    open_now("4").await;
    assert_eq!(answered(open(&api)).await, "");
    api.submit(&json!({"agent_id": "echo"})).await.is(202);
    let (_, metrics) = door.get("/metrics").await;
    assert!(metrics.contains("harness_http_connections_refused_total 1\n"), "{metrics}");
    held.pop();
    open_now("3").await;
    let mut next = open(&api);
    next.write_all(b"GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .expect("sent");
    assert!(answered(next).await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn one_address_leaves_connections_for_the_others() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("API_MAX_CONNECTIONS_PER_ADDRESS", 2).set("API_MAX_CONNECTIONS", 6);
    let door = door.set("API_TRUSTED_PROXIES", "127.0.0.3").start().await;
    let api = Api::of(&door).await;
    let from = async |address: [u8; 4]| {
        let to = api.base().strip_prefix("http://").expect("an address").parse().expect("an address");
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind((address, 0).into()).expect("an address of this machine");
        let stream = socket.connect(to).await.expect("connected").into_std().expect("a socket");
        stream.set_nonblocking(false).expect("a blocking one");
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a bound");
        stream
    };
    let works = async |mut stream: TcpStream| {
        let request = b"GET /v1/openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        // It may have been closed at once.
        let _ = stream.write_all(request);
        answered(stream).await.starts_with("HTTP/1.1 200")
    };
    let held = [from([127, 0, 0, 2]).await, from([127, 0, 0, 2]).await];
    let both = async || (door.metric("harness_http_connections").await == 2.0).then_some(());
    until("both are open", both).await;
    assert!(!works(from([127, 0, 0, 2]).await).await);
    assert!(works(from([127, 0, 0, 4]).await).await, "another address");
    // A listed proxy has the connections of all its clients.
    let proxied = [from([127, 0, 0, 3]).await, from([127, 0, 0, 3]).await, from([127, 0, 0, 3]).await];
    let all = async || (door.metric("harness_http_connections").await == 5.0).then_some(());
    until("all are open", all).await;
    assert!(works(from([127, 0, 0, 3]).await).await);
    drop((held, proxied));
    until("none is open", async || (door.metric("harness_http_connections").await == 0.0).then_some(()))
        .await;
    assert!(works(from([127, 0, 0, 2]).await).await);
}

#[tokio::test]
async fn a_head_that_is_too_large_and_a_body_that_is_too_slow_are_answered_and_cut() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let mut slow = open(&api);
    slow.write_all(format!("{head}Content-Length: 100\r\n\r\n{{").as_bytes()).expect("sent");
    let slow = tokio::spawn(answered(slow));
    let many: String = (0..200).map(|n| format!("X-{n}: 1\r\n")).collect();
    for large in [format!("X: {}\r\n", "x".repeat(200 << 10)), many] {
        let mut stream = open(&api);
        // It may be cut while it is still sent, and its answer with it.
        let _ = stream.write_all(format!("{head}{large}\r\n").as_bytes());
        let answer = answered(stream).await;
        assert!(answer.starts_with("HTTP/1.1 431") || answer.is_empty(), "{answer}");
    }
    let slow = slow.await.expect("a task");
    assert!(slow.starts_with("HTTP/1.1 408") && slow.contains("urn:harness:too_slow"), "{slow}");
}

#[tokio::test]
async fn scripts_of_listed_pages_alone_may_ask_from_a_browser() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("CORS_ORIGINS", "https://app.example.com").start().await;
    let api = Api::of(&door).await;
    let preflight = async |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type,idempotency-key"),
        ];
        api.send(Method::OPTIONS, "/v1/jobs", &headers, Vec::new()).await
    };
    let allowed = preflight("https://app.example.com").await.is(200);
    assert_eq!(allowed.header("access-control-allow-origin"), "https://app.example.com");
    assert!(allowed.header("access-control-allow-headers").contains("idempotency-key"), "{allowed:?}");
    assert_eq!(allowed.header("access-control-allow-credentials"), "");
    for other in ["https://evil.example", "https://app.example.com.evil.example", "null"] {
        assert_eq!(preflight(other).await.header("access-control-allow-origin"), "", "{other}");
    }
    let headers = [("origin", "https://app.example.com"), ("content-type", "application/json")];
    let body = br#"{"agent_id":"echo"}"#.to_vec();
    let accepted = api.send(Method::POST, "/v1/jobs", &headers, body).await.is(202);
    assert_eq!(accepted.header("access-control-allow-origin"), "https://app.example.com");
    assert!(accepted.header("access-control-expose-headers").contains("location"), "{accepted:?}");
    // Without the setting there are no such headers.
    let closed = fleet.door("closed").start().await;
    let closed = Api::of(&closed).await;
    let answer = closed.send(Method::GET, "/v1/pools", &[("origin", "https://app.example.com")], Vec::new());
    assert_eq!(answer.await.is(200).header("access-control-allow-origin"), "");
    // A page of another site needs no answer to change something.
    let job_id = accepted.text("job_id");
    let cancel = async |headers: &[(&str, &str)]| {
        closed.send(Method::POST, &format!("/v1/jobs/{job_id}/cancel"), headers, Vec::new()).await
    };
    let origin = ("origin", "https://app.example.com");
    for headers in
        [&[origin][..], &[("sec-fetch-site", "cross-site"), origin], &[("sec-fetch-site", "same-site")]]
    {
        cancel(headers).await.problem(403, Some("origin"));
    }
    let own = closed.base().to_owned();
    cancel(&[("sec-fetch-site", "same-origin"), ("origin", &own)]).await.is(200);
}

#[tokio::test]
async fn bounds_that_make_no_sense_are_all_named() {
    let fleet = Fleet::new().await;
    let mut command = fleet.producer_command(&["serve"]);
    for (name, value) in [
        ("API_ANSWER_WITHIN_MS", "10"),
        ("API_MAX_CONNECTIONS", "0"),
        ("API_MAX_CONNECTIONS_PER_ADDRESS", "0"),
        ("API_MAX_FOLLOWERS", "0"),
        ("API_MAX_FOLLOWERS_PER_TENANT", "-1"),
        ("API_MAX_FOLLOWERS_PER_CALLER", "all"),
        ("API_MAX_BODY_BYTES", "1"),
        ("API_MAX_UNFINISHED_JOBS", "many"),
        ("API_SIGN_IN_FAILURES", "0"),
        ("API_TRUSTED_PROXIES", "proxy"),
        ("CORS_ORIGINS", "*"),
    ] {
        command.env(name, value);
    }
    let ran = tests::Ran::of(command, "").await;
    assert_eq!(ran.code, 2, "{ran:?}");
    for part in [
        "API_ANSWER_WITHIN_MS: got 10, expected 100 to",
        "API_MAX_CONNECTIONS: got 0, expected 1 to",
        "API_MAX_CONNECTIONS_PER_ADDRESS: got \"0\"",
        "API_MAX_FOLLOWERS: got \"0\"",
        "API_MAX_FOLLOWERS_PER_TENANT: got \"-1\"",
        "API_MAX_FOLLOWERS_PER_CALLER: got \"all\"",
        "API_MAX_BODY_BYTES: got 1, expected",
        "API_MAX_UNFINISHED_JOBS: got \"many\": expected a whole number",
        "API_SIGN_IN_FAILURES: got \"0\"",
        "API_TRUSTED_PROXIES: got \"proxy\", expected addresses",
        "CORS_ORIGINS: got \"*\", expected origins",
    ] {
        assert!(ran.err.contains(part), "{part}: {ran:?}");
    }
}
