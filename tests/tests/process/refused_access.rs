//! What the broker refuses to a process is reported once, with the remedy, and works as soon as it is granted.

use job::JobState;
use serde_json::json;
use tests::{Fleet, Ran, job, until, until_ok};

const OURS: &str = "^(harness\\..*|amq\\.default)$";
const NONE: &str = "^$";
/// The exchanges, to which queues are bound. A worker's queues are not among these.
const EXCHANGES: &str = "^harness\\.(jobs|dead)$";

const NEEDED: &str = "the user needs the permissions configure, write and read on harness.* in this vhost, and write on amq.default";

/// The lines of a log that report a refusal.
fn refusals(log: &str) -> Vec<&str> {
    log.lines().filter(|line| line.contains("the broker refuses this")).collect()
}

#[tokio::test]
async fn a_worker_that_may_not_read_its_queue_says_so_once_and_takes_jobs_when_it_may() {
    let fleet = Fleet::new().await;
    fleet.vhost.broker().await.close().await;
    let guest = fleet.vhost.user(OURS);
    guest.may(OURS, OURS, EXCHANGES);
    let mut worker = fleet.worker("worker").set("AMQP_URL", &guest.url).set("LOG_LEVEL", "debug").launch();
    let said = worker.said("the broker refuses this").await;
    for text in ["ERROR", "ACCESS_REFUSED", "harness.", NEEDED] {
        assert!(said.contains(text), "{text}: {said}");
    }
    let unready = async || match worker.get_json("/ready").await {
        (503, ready)
            if ready["reasons"]["queue_consuming"].to_string().contains("'harness.jobs.default'") =>
        {
            Ok(())
        }
        other => Err(other),
    };
    until_ok("/ready says what is refused", unready).await;
    let again = async || (worker.log().matches("gave up a connection").count() > 6).then_some(());
    until("it was tried again and again", again).await;
    let log = worker.log();
    // By its slots for the queue of the pool, and by the relay for the queue of messages that the broker gave up.
    assert_eq!(refusals(&log).len(), 2, "{:?}", refusals(&log));
    assert!(!log.contains("lost the connection"), "{log}");

    guest.may(OURS, OURS, OURS);
    let spec = job("s", "echo", json!(1));
    fleet.enqueue(std::slice::from_ref(&spec)).await;
    assert_eq!(fleet.ended(spec.job_id).await.state, JobState::Succeeded);
    worker.said("the broker does not refuse this any more").await;
    until("it is ready", async || (worker.get("/ready").await.0 == 200).then_some(())).await;
    worker.terminate();
    assert_eq!(worker.exit().await, 0);
}

#[tokio::test]
async fn a_relay_that_may_not_publish_says_so_once_and_publishes_when_it_may() {
    let fleet = Fleet::new().await;
    fleet.vhost.broker().await.close().await;
    let guest = fleet.vhost.user(OURS);
    guest.may(OURS, "^harness\\..*$", OURS);
    let mut enqueue = fleet.producer_command(&["enqueue", "--session", "s", "--agent", "echo"]);
    enqueue.env("AMQP_URL", &guest.url);
    let ran = Ran::of(enqueue, "").await;
    assert!(ran.code == 0 && ran.err.contains("its message follows"), "{ran:?}");
    assert!(ran.err.contains("'amq.default'") && ran.err.contains(NEEDED), "{ran:?}");
    let job_id = ran.out.trim().to_owned();

    let relay = fleet.relay("relay").set("AMQP_URL", &guest.url).launch();
    let said = relay.said("the broker refuses this").await;
    assert!(said.contains("ERROR") && said.contains("'amq.default'") && said.contains(NEEDED), "{said}");
    let unready = async || match relay.get_json("/ready").await {
        (503, ready) if ready["reasons"]["queue_publishing"].to_string().contains("'amq.default'") => Ok(()),
        other => Err(other),
    };
    until_ok("/ready says what is refused", unready).await;
    let refused = "harness_relay_refused_total";
    until("it was tried again and again", async || (relay.metric(refused).await > 1.0).then_some(())).await;
    assert_eq!(refusals(&relay.log()).len(), 1, "{}", relay.log());
    assert!(!relay.log().contains("did not take all due jobs"), "{}", relay.log());

    // It finds out even when there is nothing left to publish.
    assert_eq!(fleet.producer(&["cancel", &job_id]).await.code, 0);
    guest.may(OURS, OURS, OURS);
    relay.said("the broker does not refuse this any more").await;
    until("it is ready", async || (relay.get("/ready").await.0 == 200).then_some(())).await;
    let _worker = fleet.worker("worker").start().await;
    let spec = job("s", "echo", json!(1));
    let mut enqueue = fleet.producer_command(&["enqueue", "--file", "-"]);
    enqueue.env("AMQP_URL", &guest.url);
    assert_eq!(Ran::of(enqueue, &job::encode(&spec)).await.code, 0);
    fleet.undisturbed(&[spec]).await;
}

#[tokio::test]
async fn an_account_that_may_not_declare_or_log_in_gets_the_remedy() {
    let fleet = Fleet::new().await;
    let guest = fleet.vhost.user(OURS);
    guest.may(NONE, OURS, OURS);
    let (user, host) = guest.url.split_once("://").expect("a scheme").1.split_once('@').expect("a user");
    let name = user.split_once(':').expect("a password").0;
    let vhostless = format!("{}/nowhere", guest.url.rsplit_once('/').expect("a vhost").0);
    let login = "check user, password and vhost in AMQP_URL";
    for (url, text) in [
        (guest.url.clone(), ["ACCESS_REFUSED", NEEDED]),
        (format!("amqp://{name}:hush-hush@{host}"), ["Login was refused", login]),
        (vhostless, ["nowhere", login]),
    ] {
        let worker = fleet.worker("worker").set("AMQP_URL", &url).launch();
        let said = worker.said("the broker refuses this").await;
        assert!(said.contains("ERROR") && text.iter().all(|text| said.contains(text)), "{said}");
        assert!(!said.contains("wr0ng"), "{said}");
        let unready = async || match worker.get_json("/ready").await {
            (503, ready) if ready["reasons"]["queue_consuming"].to_string().contains(text[1]) => Ok(()),
            other => Err(other),
        };
        until_ok("/ready says what is refused", unready).await;
    }
}
