//! Who guesses keys is refused before the ledger is asked, and the neighbours are not.

use http::Method;
use serde_json::json;
use tests::{Api, Fleet, Reply};

use super::tenants::caller;

/// No key of any fleet.
fn guess(n: usize) -> String {
    format!("hfk_wrong{n}")
}

async fn from(api: &Api, address: &str) -> Reply {
    api.send(Method::GET, "/v1/jobs", &[("x-forwarded-for", address)], Vec::new()).await
}

#[tokio::test]
async fn an_address_that_guesses_keys_is_refused_and_known_keys_go_on() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("ENVIRONMENT", "production").set("API_SIGN_IN_FAILURES", 5);
    let door = door.set("API_TRUSTED_PROXIES", "127.0.0.1").start().await;
    let api = Api::of(&door).await;
    let known = caller(&fleet, &api, "acme", "read").await;
    from(&known, "192.0.2.7").await.is(200);
    // No key at all is no guess.
    for _ in 0..10 {
        from(&api, "192.0.2.7").await.problem(401, Some("authorization"));
    }
    for n in 0..5 {
        from(&api.with_key(&guess(n)), "192.0.2.7").await.problem(401, Some("authorization"));
    }
    let refused = from(&api.with_key(&guess(5)), "192.0.2.7").await.problem(429, Some("authorization"));
    assert_eq!(refused.text("type"), "urn:harness:too_many_sign_ins");
    let after: u64 = refused.header("retry-after").parse().expect("seconds");
    assert!((1..=60).contains(&after), "{refused:?}");
    from(&known, "192.0.2.7").await.is(200);
    // Who shares the address is not kept out, even with a key that was never seen here.
    let fresh = caller(&fleet, &api, "acme", "read").await;
    from(&fresh, "192.0.2.7").await.is(200);
    // A whole key that is not right is looked up once.
    let gone = caller(&fleet, &api, "acme", "read").await;
    assert_eq!(fleet.producer(&["keys", "revoke", gone.shown_key().expect("a key")]).await.code, 0);
    from(&gone, "192.0.2.7").await.problem(401, Some("authorization"));
    from(&gone, "192.0.2.7").await.problem(429, Some("authorization"));
    // What a caller says before the proxy's word does not help it.
    from(&api.with_key(&guess(6)), "192.0.2.99, 192.0.2.7").await.problem(429, Some("authorization"));
    // A network of IPv6 is one address.
    for n in 0..5 {
        from(&api.with_key(&guess(n)), &format!("2001:db8::{n}")).await.problem(401, Some("authorization"));
    }
    from(&api.with_key(&guess(7)), "2001:db8::ffff").await.problem(429, Some("authorization"));
    from(&api.with_key(&guess(7)), "2001:db8:0:1::1").await.problem(401, Some("authorization"));
    let (_, metrics) = door.get("/metrics").await;
    let failures = "harness_http_sign_ins_failed_total{outcome=\"refused\"} ";
    assert!(metrics.lines().any(|line| line.starts_with(failures) && !line.ends_with(" 0")), "{metrics}");
}

#[tokio::test]
async fn a_proxy_that_is_not_listed_is_not_believed() {
    let fleet = Fleet::new().await;
    let door =
        fleet.door("door").set("ENVIRONMENT", "production").set("API_SIGN_IN_FAILURES", 3).start().await;
    let api = Api::of(&door).await;
    for n in 0..3 {
        from(&api.with_key(&guess(n)), &format!("192.0.2.{n}")).await.problem(401, Some("authorization"));
    }
    from(&api.with_key(&guess(3)), "192.0.2.3").await.problem(429, Some("authorization"));
}

#[tokio::test]
async fn tickets_are_guessed_no_faster_than_keys() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("ENVIRONMENT", "production").set("API_SIGN_IN_FAILURES", 5);
    let door = door.set("API_TRUSTED_PROXIES", "127.0.0.1").start().await;
    let api = Api::of(&door).await;
    let known = caller(&fleet, &api, "acme", "submit,read").await;
    let job_id = known.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let path = format!("/v1/jobs/{job_id}/events");
    let guessed = async |n: usize, address: &str| {
        let secret = "x".repeat(43);
        let guess = format!("{path}?ticket=hft_~019a00000000wrong{n:05}_{secret}");
        api.try_events(&guess, &[("x-forwarded-for", address)]).await.err().expect("refused")
    };
    for n in 0..5 {
        guessed(n, "192.0.2.7").await.problem(401, Some("ticket"));
    }
    let refused = guessed(5, "192.0.2.7").await.problem(429, Some("ticket"));
    assert_eq!(refused.text("type"), "urn:harness:too_many_sign_ins");
    assert!(
        (1..=60).contains(&refused.header("retry-after").parse::<u64>().expect("seconds")),
        "{refused:?}"
    );
    // They count as guesses of keys do, and the other way round.
    from(&api.with_key(&guess(0)), "192.0.2.7").await.problem(429, Some("authorization"));
    guessed(6, "192.0.2.8").await.problem(401, Some("ticket"));
    // A ticket that was made here is right.
    let ticket = known.post("/v1/tickets", &json!({"job_id": job_id})).await.is(201).text("events");
    let mut stream = api.events(&ticket, &[("x-forwarded-for", "192.0.2.7")]).await;
    assert_eq!(stream.next().await.expect("its state").name, "state");
}

#[tokio::test]
async fn a_key_has_so_many_tickets_and_leaves_room_for_others() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("ENVIRONMENT", "production").start().await;
    let api = Api::of(&door).await;
    let (acme, other) =
        (caller(&fleet, &api, "acme", "submit,read").await, caller(&fleet, &api, "acme", "read").await);
    let job_id = acme.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let wanted = json!({"job_id": job_id});
    let mut made = 0;
    let refused = loop {
        let replies = futures::future::join_all((0..20).map(|_| acme.post("/v1/tickets", &wanted))).await;
        made += replies.iter().filter(|reply| reply.status == 201).count();
        if let Some(refused) = replies.into_iter().find(|reply| reply.status != 201) {
            break refused.problem(429, None);
        }
        assert!(made <= 500, "{made}");
    };
    assert_eq!((made, refused.text("type").as_str()), (500, "urn:harness:too_many_tickets"));
    assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
    other.post("/v1/tickets", &wanted).await.is(201);
    assert!(fleet.database.count("SELECT count(*) FROM harness_api_keys WHERE id >= '~'").await <= 501);
}
