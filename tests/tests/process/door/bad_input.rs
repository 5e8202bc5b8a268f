//! What is no job, or no request, is answered with what is wrong.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use http::Method;
use job::JobId;
use serde_json::{Value, json};
use tests::{Api, Fleet};

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

#[tokio::test]
async fn what_is_wrong_with_a_job_is_answered_with_the_field() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("MAX_MESSAGE_BYTES", 4_096).start().await;
    let api = Api::of(&door).await;
    let old = "01890000-0000-7000-8000-000000000001";
    let deep = format!(r#"{{"agent_id":"echo","input":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
    let cases: [(&str, u16, &str); 30] = [
        ("", 400, "body"),
        ("{", 400, "body"),
        (r#"{"agent_id":"echo"} x"#, 400, "body"),
        (r#"{"agent_id":"echo",}"#, 400, "body"),
        ("nul", 400, "body"),
        ("[]", 422, "body"),
        ("7", 422, "body"),
        ("{}", 422, "agent_id"),
        (r#"{"agent_id":7}"#, 422, "agent_id"),
        (r#"{"agent_id":null}"#, 422, "agent_id"),
        (r#"{"agent_id":"a/b"}"#, 422, "agent_id"),
        (r#"{"agent_id":"echo","agent_id":"echo"}"#, 422, "agent_id"),
        (r#"{"agent_id":"echo","sesion_id":"s"}"#, 422, "sesion_id"),
        (r#"{"agent_id":"echo","schema":"harness.job.v1"}"#, 422, "schema"),
        (r#"{"agent_id":"echo","tenant":"other"}"#, 422, "tenant"),
        (r#"{"agent_id":"echo","session_id":""}"#, 422, "session_id"),
        (r#"{"agent_id":"echo","session_id":"~other/s"}"#, 422, "session_id"),
        (r#"{"agent_id":"echo","job_id":"x"}"#, 422, "job_id"),
        (r#"{"agent_id":"echo","job_id":"7b0f3c1e-6f5c-4b5e-9f5e-0123456789ab"}"#, 422, "job_id"),
        (&format!(r#"{{"agent_id":"echo","job_id":"{old}"}}"#), 422, "job_id"),
        (r#"{"agent_id":"echo","pool":"nowhere"}"#, 422, "pool"),
        (r#"{"agent_id":"echo","retry":{"max_attempts":0}}"#, 422, "retry.max_attempts"),
        (r#"{"agent_id":"echo","retry":{"max_attempts":1e3}}"#, 422, "retry.max_attempts"),
        (r#"{"agent_id":"echo","retry":{"attempts":1}}"#, 422, "retry.attempts"),
        (r#"{"agent_id":"echo","retry":[3]}"#, 422, "retry"),
        (r#"{"agent_id":"echo","timeout_ms":-1}"#, 422, "timeout_ms"),
        (r#"{"agent_id":"echo","on_busy":"shout"}"#, 422, "on_busy"),
        (r#"{"agent_id":"echo","input":"\u0000"}"#, 422, "input"),
        (r#"{"agent_id":"echo","input":1e400000}"#, 422, "input"),
        (&deep, 422, "input"),
    ];
    for (body, status, field) in cases {
        let reply = api.send(Method::POST, "/v1/jobs", &JSON, body.as_bytes().to_vec()).await;
        println!("{body}: {}", reply.body);
        reply.problem(status, Some(field));
    }
    let not_utf8 = b"{\"agent_id\":\"echo\",\"user_id\":\"\xff\"}".to_vec();
    api.send(Method::POST, "/v1/jobs", &JSON, not_utf8).await.problem(400, Some("body"));
    let large = json!({"agent_id": "echo", "input": "x".repeat(4_096)});
    api.submit(&large).await.problem(413, Some("body"));
    // It fits as it came, and not as the message that is made of it.
    let nearly = json!({"agent_id": "echo", "input": "x".repeat(4_000)});
    api.submit(&nearly).await.problem(413, Some("body"));
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 0);
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_answered_with_a_problem() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let body = || br#"{"agent_id":"echo"}"#.to_vec();
    for kind in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"] {
        let reply = api.send(Method::POST, "/v1/jobs", &[("content-type", kind)], body()).await;
        reply.problem(415, Some("content-type"));
    }
    let charset = [("content-type", "Application/JSON; charset=utf-8")];
    api.send(Method::POST, "/v1/jobs", &charset, body()).await.is(202);
    let unknown = JobId::now();
    for id in ["x", "7", "%00", "%ff", "..%2f..", &unknown.to_string()] {
        api.get(&format!("/v1/jobs/{id}")).await.problem(404, None);
        api.post(&format!("/v1/jobs/{id}/cancel"), &json!(null)).await.problem(404, None);
        api.post(&format!("/v1/jobs/{id}/redrive"), &json!(null)).await.problem(404, None);
    }
    // A cancel of an unknown id has recorded nothing.
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_results").await, 0);
    api.get("/v2/jobs").await.problem(404, None);
    api.get("/").await.problem(404, None);
    let put = api.send(Method::PUT, "/v1/jobs", &JSON, body()).await.problem(405, None);
    assert!(put.header("allow").contains("POST"), "{put:?}");
    let document = api.get("/v1/openapi.json").await.is(200).json();
    assert_eq!(document["openapi"].as_str().map(|version| &version[..3]), Some("3.1"), "{document}");
    // What the document lets through is accepted: the whole of an unsigned number, not its lower half.
    let fields = &document["components"]["schemas"]["NewJob"]["properties"];
    assert_eq!(fields["max_stalled_iterations"]["format"], "uint32", "{fields}");
    let most = json!({"agent_id": "echo", "max_stalled_iterations": u32::MAX});
    api.post("/v1/jobs", &most).await.is(202);
    assert!(api.get("/docs/").await.is(200).body.contains("swagger"));
}

#[tokio::test]
async fn a_pool_takes_jobs_from_the_time_that_an_operator_has_named_it() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let schedule = json!({"name": "s", "cron": "0 0 29 2 *", "job": {"agent_id": "echo", "pool": "gpu"}});
    let spec = json!({"agent_id": "echo", "pool": "gpu"});
    let refused = api.submit(&spec).await.problem(422, Some("pool"));
    assert!(refused.text("detail").contains("got \"gpu\""), "{refused:?}");
    api.post("/v1/schedules", &schedule).await.is(422);
    fleet.line("gpu").await;
    assert_eq!(api.submit(&spec).await.is(202).text("state"), "waiting");
    assert_eq!(api.post("/v1/jobs/batch", &json!([spec])).await.is(200).json()["accepted"], 1);
    api.post("/v1/schedules", &schedule).await.is(201);
    let off = fleet.producer(&["pools", "line", "gpu", "off"]).await;
    assert_eq!(off.code, 0, "{off:?}");
    api.submit(&spec).await.is(202);
    fleet.database.audited().await;
}

/// The routes of the document, with an id that nobody has, and what the document says of each.
async fn described(api: &Api) -> Vec<(Method, String, Value)> {
    let document = api.get("/v1/openapi.json").await.is(200).json();
    let mut routes = Vec::new();
    for (path, methods) in document["paths"].as_object().expect("paths") {
        let path = path.replace("{id}", &JobId::now().to_string());
        for (method, operation) in methods.as_object().expect("methods") {
            let method = method.to_uppercase().parse().expect("a method");
            routes.push((method, path.clone(), operation.clone()));
        }
    }
    assert!(routes.len() > 30, "{routes:?}");
    routes
}

#[tokio::test]
async fn every_route_refuses_a_parameter_that_it_does_not_read() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    for (method, path, operation) in described(&api).await {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let names: Vec<&Value> = parameters
            .filter(|parameter| parameter["in"] == "query")
            .map(|parameter| &parameter["name"])
            .collect();
        let asked = api.send(method.clone(), &format!("{path}?agnet=echo"), &JSON, Vec::new()).await;
        let said = asked.problem(422, Some("agnet")).text("detail");
        if names.is_empty() {
            assert_eq!(said, "an unknown parameter, expected none", "{method} {path}");
        }
        for name in names {
            assert!(said.contains(name.as_str().expect("a name")), "{method} {path}: {said}");
        }
        assert!(operation["responses"]["422"].is_object(), "{method} {path}");
    }
    api.get("/v1/openapi.json?agnet=echo").await.is(200);
}

#[tokio::test]
async fn the_document_says_when_to_come_back_and_that_a_head_may_be_too_large() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    for (method, path, operation) in described(&Api::of(&door).await).await {
        for (status, response) in operation["responses"].as_object().expect("responses") {
            let header = &response["headers"]["Retry-After"]["schema"]["type"];
            let comes_back = ["429", "503"].contains(&status.as_str());
            assert_eq!(header == "integer", comes_back, "{method} {path} {status}: {response}");
            // The server refuses it before there is a request.
            let is_problem = response["content"]["application/problem+json"].is_object();
            assert_eq!(is_problem, !status.starts_with('2') && status != "431", "{method} {path} {status}");
        }
        for status in ["401", "403", "429", "431", "500", "503"] {
            assert!(operation["responses"][status].is_object(), "{method} {path} {status}");
        }
    }
}

#[tokio::test]
async fn a_body_that_never_ends_and_a_head_that_never_comes_hold_up_no_others() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let address = api.base().strip_prefix("http://").expect("an address").to_owned();
    let open = |said: &str| {
        let mut stream = TcpStream::connect(&address).expect("a connection");
        stream.write_all(said.as_bytes()).expect("written");
        stream
    };
    let head = "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let _slow: Vec<_> = (0..50)
        .flat_map(|_| [open(&format!("{head}Content-Length: 100\r\n\r\n{{")), open("GET /v1/jo"), open("")])
        .collect();
    api.submit(&json!({"agent_id": "echo"})).await.is(202);
    // One that says how long it will be has its answer at once.
    let mut announced = open(&format!("{head}Content-Length: 99999999999\r\n\r\n"));
    announced.set_read_timeout(Some(Duration::from_secs(10))).expect("a bound");
    let mut answer = [0; 12];
    announced.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 413");
}
