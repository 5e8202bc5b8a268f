//! The port of the API: its certificate, and who is let in.

use std::path::Path;

use http::Method;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tests::{Api, Authority, Fleet, until_ok};

#[tokio::test]
async fn a_certificate_is_served_and_a_renewed_one_is_taken_without_a_restart() {
    let fleet = Fleet::new().await;
    let (first, second) = (Authority::new(), Authority::new());
    let certificate = first.certificate("127.0.0.1");
    let door = fleet.door("door").set("API_TLS_CERT", certificate.chain.display());
    let door = door.set("API_TLS_KEY", certificate.key.display()).start().await;
    let base = Api::of(&door).await.base().replace("http://", "https://");
    let get = async |authority: &Path| {
        Api::trusting(&base, authority).try_send(Method::GET, "/v1/pools", &[], Vec::new()).await
    };
    assert_eq!(get(&certificate.authority).await.expect("an answer").status, 200);
    assert!(get(&second.file()).await.is_err());
    let renewed = second.certificate("127.0.0.1");
    std::fs::copy(&renewed.key, &certificate.key).expect("written");
    std::fs::copy(&renewed.chain, &certificate.chain).expect("written");
    until_ok("the renewed certificate is served", async || get(&second.file()).await).await;
    assert!(get(&certificate.authority).await.is_err());
}

#[tokio::test]
async fn http_1_and_http_2_are_both_spoken_over_tls_as_the_client_agrees() {
    let fleet = Fleet::new().await;
    let authority = Authority::new();
    let certificate = authority.certificate("127.0.0.1");
    let door = fleet.door("door").set("API_TLS_CERT", certificate.chain.display());
    let door = door.set("API_TLS_KEY", certificate.key.display()).start().await;
    let address = Api::of(&door).await.base().replace("http://", "");
    // Who agrees on nothing speaks HTTP/1.
    for agreed in [Some("h2"), Some("http/1.1"), None] {
        let stream = authority.connect(&address, agreed).await;
        let request = http::Request::get(format!("https://{address}/v1/pools")).header("host", &address);
        let request = request.body(Empty::<Bytes>::new()).expect("a request");
        let answer = if agreed == Some("h2") {
            let shaken = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
            let (mut client, connection) = shaken.expect("HTTP/2");
            tokio::spawn(connection);
            client.send_request(request).await
        } else {
            let (mut client, connection) = http1::handshake(TokioIo::new(stream)).await.expect("HTTP/1");
            tokio::spawn(connection);
            client.send_request(request).await
        };
        assert_eq!(answer.expect("an answer").status(), 200, "{agreed:?}");
    }
}

#[tokio::test]
async fn without_keys_no_one_is_let_in_outside_of_development() {
    let fleet = Fleet::new().await;
    for (environment, address) in [("production", "127.0.0.1:0"), ("development", "0.0.0.0:0")] {
        let door = fleet.door("door").set("ENVIRONMENT", environment).set("API_ADDR", address).start().await;
        let base = Api::of(&door).await.base().replace("0.0.0.0", "127.0.0.1");
        let api = Api::at(&base);
        let refused = api.submit(&json!({"agent_id": "echo"})).await.problem(401, Some("authorization"));
        assert_eq!(refused.header("www-authenticate"), "Bearer");
        api.get("/v1/jobs").await.problem(401, Some("authorization"));
        api.get("/v1/openapi.json").await.is(200);
    }
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 0);
}

#[tokio::test]
async fn settings_that_do_not_fit_are_all_named() {
    let fleet = Fleet::new().await;
    let mut command = fleet.producer_command(&["serve"]);
    command.env("API_ADDR", "8080").env("API_TLS_CERT", "/nowhere");
    let ran = tests::Ran::of(command, "").await;
    assert_eq!(ran.code, 2, "{ran:?}");
    for part in ["API_ADDR: got \"8080\"", "API_TLS_KEY: not set"] {
        assert!(ran.err.contains(part), "{ran:?}");
    }
}
