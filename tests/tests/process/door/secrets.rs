//! The log of a door holds no secret, whatever its level: not of a key, of a ticket (which stands in an address) or of a
//! webhook.

use http::Method;
use serde_json::json;
use tests::{Api, Fleet};

use super::answers::{send, slow};
use super::tenants::caller;
use super::webhooks::receiver::Receiver;

/// The part of a key or a ticket that nobody may learn.
fn secret(shown: &str) -> &str {
    let (_, secret) = shown.rsplit_once('_').expect("an id and a secret");
    &secret[..43]
}

#[tokio::test]
async fn no_log_has_a_secret_of_a_key_of_a_ticket_or_of_a_webhook() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").set("LOG_LEVEL", "trace").set("WEBHOOK_ALLOW", "127.0.0.0/8");
    let mut door = door.start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "submit,read,content,operate").await;
    let key = acme.shown_key().expect("a key").to_owned();
    let mut secrets = vec![secret(&key).to_owned()];

    // A key: valid; with a wrong character; of nobody; in an address, where it should not be; revoked; over HTTP/2.
    let of_nobody = caller(&Fleet::new().await, &api, "acme", "read").await;
    let unknown = of_nobody.shown_key().expect("a key").to_owned();
    let typo = format!("{}{}", &key[..63], if key.ends_with('x') { 'y' } else { 'x' });
    let job_id = acme.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    for wrong in [&typo, &unknown] {
        api.with_key(wrong).get("/v1/jobs").await.problem(401, Some("authorization"));
        acme.get(&format!("/v1/jobs?key={wrong}")).await.problem(422, Some("key"));
        acme.get(&format!("/v1/{wrong}?key={wrong}")).await.problem(404, None);
    }
    acme.get(&format!("/v1/jobs/{key}")).await.problem(404, None);
    let mut sender = slow(&acme).await;
    drop(send(&mut sender, &acme, Method::GET, "/v1/workers", "").await);
    secrets.push(secret(&unknown).to_owned());

    // Tickets: used, used again, and of nobody.
    let events = acme.post("/v1/tickets", &json!({"job_id": job_id})).await.is(201).text("events");
    let (_, ticket) = events.split_once("ticket=").expect("a ticket");
    secrets.push(secret(ticket).to_owned());
    let mut stream = api.events(&events, &[]).await;
    stream.next().await.expect("its state");
    let other = format!("/v1/jobs/{job_id}/events?ticket=hft_~019a0000000000wrong_{}", "x".repeat(49));
    for wrong in [&events, &other] {
        api.try_events(wrong, &[]).await.err().expect("refused").problem(401, Some("ticket"));
    }

    // A webhook: made, with its secret replaced, tested, and with an end that both secrets sign.
    let receiver = Receiver::start().await;
    let made = acme.post("/v1/webhooks", &json!({"url": receiver.url()})).await.is(201);
    let id = made.text("id");
    let rotated = acme.post(&format!("/v1/webhooks/{id}/rotate"), &json!({})).await.is(200);
    for shown in [made, rotated] {
        let secret = shown.text("secret");
        secrets.push(secret.strip_prefix("whsec_").expect("its form").to_owned());
    }
    acme.post(&format!("/v1/jobs/{job_id}/cancel"), &json!(null)).await.is(200);
    receiver.has(1).await;
    let revoked = fleet.producer(&["keys", "revoke", &key]).await;
    assert_eq!(revoked.code, 0, "{revoked:?}");

    door.terminate();
    assert_eq!(door.exit().await, 0);
    let log = door.log();
    assert!(log.contains("TRACE"), "{log}");
    for secret in &secrets {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
    for prefix in ["hfk_", "hft_", "whsec_"] {
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(prefix)).collect();
        assert!(lines.is_empty(), "{lines:#?}");
    }
}
