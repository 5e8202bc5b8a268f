//! What the autoscaler observes: what cannot be read is unknown, never zero. A source that fails leaves the others as
//! they are, and observing needs no rights.

use std::time::Duration;

use autoscaler::decide::Observation;
use autoscaler::observe::{Management, Observer, Watched};
use job::{FailureCode, Name};
use postgres::{Address, SetBy};
use queue::{Broker, BrokerConfig, Message, jobs_queue};
use serde_json::json;
use service::Authorities;
use store::{End, Store, StoreConfig};
use tests::{Database, Fleet, Link, OwnBroker, Proxy, Runner, TIMEOUT, Vhost, claimed, job, until_ok};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

fn watched(pools: &[&str]) -> Vec<Watched> {
    let watched = |pool: &&str| Watched { pool: name(pool), due_horizon: Duration::from_secs(30) };
    pools.iter().map(watched).collect()
}

/// Opens a connection that only looks.
async fn looking(url: &str) -> Broker {
    let config = BrokerConfig::new(url, "test").only_looking();
    let broker = Broker::start(config, CancellationToken::new());
    broker.ready(TIMEOUT).await.expect("a broker that answers");
    broker
}

/// Declares a pool's queue and puts this many messages into it.
async fn fill(url: &str, pool: &str, count: usize) {
    let config = BrokerConfig::new(url, "test").with_pools([name(pool)]);
    let broker = Broker::start(config, CancellationToken::new());
    broker.ready(TIMEOUT).await.expect("a broker that answers");
    for _ in 0..count {
        let message = Message::new("test.v1", "{}");
        broker.publisher().publish(&jobs_queue(&name(pool)), message).await.expect("published");
    }
    broker.close().await;
}

fn ready(observer: &Observer, pool: &str) -> Option<u64> {
    observer.latest(&name(pool)).ready.map(|ready| ready.value)
}

/// Waits, round by round, until something is seen.
async fn rounds(observer: &Observer, what: &str, seen: impl Fn() -> bool) {
    let round = async || {
        observer.look().await;
        if seen() { Ok(()) } else { Err(observer.health()) }
    };
    until_ok(what, round).await;
}

/// Looks until every source has answered within a round.
async fn complete(observer: &Observer) {
    rounds(observer, "every source answers", || {
        let health = observer.health();
        [health.queue, health.ledger, health.management].iter().all(|source| source.error.is_none())
    })
    .await;
}

fn store_at(url: &str) -> Store {
    let address = Address::new(url, SetBy::Connection).expect("an address");
    Store::new(&StoreConfig::new(address, 2).expect("a pool"))
}

#[tokio::test]
async fn a_user_without_any_right_sees_the_queues_and_a_missing_one_hides_no_other() {
    let (vhost, database) = (Vhost::new(), Database::new().await);
    let nobody = vhost.user("^$");
    let broker = looking(&nobody.url).await;
    assert_eq!(vhost.queues(), Vec::<String>::new(), "looking declares nothing");
    fill(&vhost.url, "first", 2).await;
    fill(&vhost.url, "last", 0).await;

    let pools = watched(&["first", "missing", "gone", "last"]);
    let observer = Observer::new(broker.clone(), database.store(), pools, None);
    complete(&observer).await;
    let seen = ["first", "missing", "gone", "last"].map(|pool| ready(&observer, pool));
    assert_eq!(seen, [Some(2), None, None, Some(0)]);
    let account = observer.account(&name("missing")).expect("it is observed");
    assert_eq!(account.ready_unknown.as_deref(), Some("there is no queue harness.jobs.missing"));
    assert!(!account.is_complete() && observer.account(&name("last")).expect("observed").is_complete());
    assert_eq!(observer.health().queue.error, None, "a missing queue is not a failure");

    fill(&vhost.url, "missing", 1).await;
    rounds(&observer, "the queue is seen", || ready(&observer, "missing") == Some(1)).await;
    assert_eq!(ready(&observer, "gone"), None);
    let (connection, channel) = (vhost.lapin().await, jobs_queue(&name("first")));
    let deleting = connection.create_channel().await.expect("a channel");
    deleting.queue_delete(channel.as_str().into(), Default::default()).await.expect("deleted");
    complete(&observer).await;
    assert_eq!((ready(&observer, "first"), ready(&observer, "last")), (None, Some(0)), "not zero");
    assert_eq!(broker.ready(TIMEOUT).await, Ok(1), "still on the first connection");
    broker.close().await;
}

#[tokio::test]
async fn a_source_that_fails_keeps_its_last_reading_which_grows_old() {
    let (vhost, database) = (Vhost::new(), Database::new().await);
    fill(&vhost.url, "default", 3).await;
    let (to_broker, to_postgres) = (Proxy::to(&vhost.url).await, Proxy::to(&database.url).await);
    let broker = looking(&to_broker.through(&vhost.url)).await;
    let store = store_at(&to_postgres.through(&database.url));
    let observer = Observer::new(broker.clone(), store, watched(&["default"]), None);
    complete(&observer).await;
    let ages = || {
        // The time is read last. It advances in between, so no reading is in the future.
        let (seen, now_ms) = (observer.latest(&Name::default()), observer.now_ms());
        let (ready, demand) = (seen.ready.expect("a depth"), seen.demand.expect("a demand"));
        assert_eq!((ready.value, demand.value.running), (3, 0));
        (now_ms - ready.at_ms, now_ms - demand.at_ms)
    };
    ages();

    for link in [Link::Frozen, Link::Cut] {
        to_broker.set(link);
        rounds(&observer, "the queue's reading is old, and the ledger is read on", || {
            let ((queue, ledger), health) = (ages(), observer.health());
            queue > 2_500 && ledger < queue && health.queue.error.is_some() && health.ledger.error.is_none()
        })
        .await;
        to_broker.set(Link::Pass);
        rounds(&observer, "the queue is read again", || {
            ages().0 < 2_000 && observer.health().queue.error.is_none()
        })
        .await;
    }

    // Postgres holds each query for 12 s, and nothing waits for it.
    to_postgres.set(Link::Frozen);
    let frozen = rounds(&observer, "the ledger's reading is old, and the queue is read on", || {
        let ((queue, ledger), health) = (ages(), observer.health());
        ledger > 4_000 && queue < ledger && health.ledger.error.is_some() && health.queue.error.is_none()
    });
    timeout(Duration::from_secs(10), frozen).await.expect("in time");
    to_postgres.set(Link::Pass);
    rounds(&observer, "the ledger is read again", || {
        ages().1 < 2_000 && observer.health().ledger.error.is_none()
    })
    .await;
    broker.close().await;
}

#[tokio::test]
async fn until_postgres_has_given_the_time_nothing_is_known_and_no_round_is_reported() {
    let (vhost, database) = (Vhost::new(), Database::new().await);
    fill(&vhost.url, "default", 3).await;
    let to_postgres = Proxy::to(&database.url).await;
    to_postgres.set(Link::Cut);
    let broker = looking(&vhost.url).await;
    let store = store_at(&to_postgres.through(&database.url));
    let observer = Observer::new(broker.clone(), store, watched(&["default"]), None);
    let counted = observer.rounds();
    let known = || observer.account(&Name::default()).expect("observed").ready;
    rounds(&observer, "the queue is seen", || known() == Some(3)).await;
    assert_eq!(observer.latest(&Name::default()), Observation::default());
    assert!(!counted.has_changed().expect("an observer"));
    let account = observer.account(&Name::default()).expect("observed");
    assert_eq!((account.ready, account.ready_unknown, account.ledger), (Some(3), None, None), "for people");
    assert!(account.ledger_unknown.is_some());

    to_postgres.set(Link::Pass);
    rounds(&observer, "all is known", || ready(&observer, "default") == Some(3)).await;
    assert!(counted.has_changed().expect("an observer"));
    broker.close().await;
}

#[tokio::test]
async fn after_a_restart_of_the_broker_its_queues_are_read_again_and_were_never_empty() {
    let (own, database) = (OwnBroker::start().await, Database::new().await);
    fill(&own.url, "default", 5).await;
    let broker = looking(&own.url).await;
    let observer = Observer::new(broker.clone(), database.store(), watched(&["default", "missing"]), None);
    complete(&observer).await;
    assert_eq!((ready(&observer, "default"), ready(&observer, "missing")), (Some(5), None));

    own.stop().await;
    rounds(&observer, "the broker is away", || observer.health().queue.error.is_some()).await;
    assert_eq!(ready(&observer, "default"), Some(5), "the last reading");
    let restarting = own.start_again();
    tokio::pin!(restarting);
    let mut is_back = false;
    let again = async || {
        if !is_back {
            is_back = timeout(Duration::from_millis(50), &mut restarting).await.is_ok();
        }
        observer.look().await;
        let seen = ready(&observer, "default");
        assert_eq!(seen, Some(5), "it was never empty");
        let health = observer.health();
        if health.queue.error.is_none() && is_back { Ok(()) } else { Err((seen, health)) }
    };
    until_ok("the queue is read again", again).await;
    assert_eq!(ready(&observer, "missing"), None);
    broker.close().await;
}

#[tokio::test]
async fn a_queue_that_claims_to_be_empty_while_a_job_waits_in_it_is_not_believed() {
    let (vhost, database) = (Vhost::new(), Database::new().await);
    fill(&vhost.url, "default", 0).await;
    let (store, broker) = (database.store(), looking(&vhost.url).await);
    let observer = Observer::new(broker.clone(), store.clone(), watched(&["default"]), None);
    let spec = job("s", "echo", json!(1));
    store.accept(std::slice::from_ref(&spec)).await.expect("accepted");
    store.confirm(&[spec.job_id]).await.expect("confirmed");
    complete(&observer).await;
    assert_eq!(ready(&observer, "default"), Some(0), "its message may be on its way to a worker");
    database.execute("UPDATE harness_jobs SET due_at = now() - interval '1 minute'").await;
    complete(&observer).await;
    assert_eq!(ready(&observer, "default"), None);
    let why = observer.account(&Name::default()).expect("observed").ready_unknown.expect("a reason");
    assert!(why.contains("claims to be empty, but a job has waited for 6"), "{why}");
    fill(&vhost.url, "default", 1).await;
    complete(&observer).await;
    assert_eq!(ready(&observer, "default"), Some(1));
    broker.close().await;
}

#[tokio::test]
async fn the_ledger_counts_for_each_pool_what_is_due_within_its_own_horizon() {
    let (vhost, database) = (Vhost::new(), Database::new().await);
    fill(&vhost.url, "default", 0).await;
    let (store, broker) = (database.store(), looking(&vhost.url).await);
    let runner = Runner::register(&store).await;
    let [running, later] = ["a", "b"].map(|session| job(session, "echo", json!(1)));
    claimed(runner.claim(&running).await.expect("an answer"));
    let run = claimed(runner.claim(&later).await.expect("an answer"));
    let failure = job::Failure::retryable(FailureCode::HarnessError, "x");
    let retry = End::Retry { failure, delay: Duration::from_secs(600) };
    store.conclude(runner.conclusion(&run, retry)).await.expect("concluded");

    for (horizon_s, due_soon) in [(60, 0), (3_600, 1)] {
        let other = Watched { pool: name("other"), due_horizon: Duration::from_secs(5) };
        let pool = Watched { pool: Name::default(), due_horizon: Duration::from_secs(horizon_s) };
        let observer = Observer::new(broker.clone(), store.clone(), vec![other, pool], None);
        complete(&observer).await;
        let demand = observer.latest(&Name::default()).demand.expect("a demand").value;
        assert_eq!((demand.running, demand.workers, demand.busy_workers), (1, 1, 1), "{demand:?}");
        assert_eq!((demand.slots, demand.due_soon), (1, due_soon), "{demand:?}");
        let other = observer.latest(&name("other")).demand.expect("a demand").value;
        assert_eq!((other.running, other.workers, other.due_soon), (0, 0, 0), "{other:?}");
    }
    broker.close().await;
}

#[tokio::test]
async fn the_management_api_is_a_second_opinion_and_no_more() {
    let (vhost, database) = (Vhost::new(), Database::new().await);
    fill(&vhost.url, "default", 4).await;
    let broker = looking(&vhost.url).await;
    let observer = |url: &str| {
        let management = Management::new(url, vhost.name(), &Authorities::default()).expect("an address");
        Observer::new(broker.clone(), database.store(), watched(&["default", "missing"]), Some(management))
    };
    let asked = observer(vhost.management_url());
    let managed = |pool: &str| asked.latest(&name(pool)).managed_ready.map(|ready| ready.value);
    rounds(&asked, "its numbers are collected", || managed("default") == Some(4)).await;
    assert_eq!(managed("missing"), None);
    assert_eq!(asked.health().management.error, None);

    let (scheme, rest) = vhost.management_url().split_once("://").expect("an address");
    let host = rest.rsplit_once('@').expect("a user").1;
    let refused = observer(&format!("{scheme}://stranger:s3cret@{host}"));
    let said = || refused.health().management.error;
    rounds(&refused, "it refuses, and the queue is seen", || {
        said().is_some_and(|error| error.contains("got 401")) && ready(&refused, "default").is_some()
    })
    .await;
    let error = said().expect("an error");
    assert!(error.contains("expected a user"), "{error}");
    assert!(!error.contains("s3cret"), "{error}");
    let seen = refused.latest(&Name::default());
    assert_eq!((seen.ready.expect("a depth").value, seen.managed_ready), (4, None));
    broker.close().await;
}

#[tokio::test]
async fn autoscaler_observe_prints_what_is_known_and_why_the_rest_is_not() {
    let fleet = Fleet::new().await;
    fill(&fleet.vhost.url, "default", 1).await;
    let all_is_known = async || match fleet.run_autoscaler(&["observe"]).await {
        ran if ran.code == 0 => Ok(ran),
        ran => Err(ran),
    };
    let ran = until_ok("all is known", all_is_known).await;
    let said = &ran.json()[0];
    assert_eq!((&said["pool"], &said["ready"]), (&json!("default"), &json!(1)), "{said}");
    assert_eq!(said["ledger"]["workers"], json!(0), "{said}");
    let missing = async || {
        let ran = fleet.run_autoscaler(&["observe", "default", "missing"]).await;
        assert_eq!(ran.code, 3, "{ran:?}");
        let said = ran.json().remove(1);
        if said["ready_unknown"] == "there is no queue harness.jobs.missing" { Ok(said) } else { Err(said) }
    };
    let said = until_ok("a queue is missing", missing).await;
    assert_eq!((&said["pool"], &said["ready"]), (&json!("missing"), &json!(null)), "{said}");
    let ran = fleet.run_autoscaler(&["observe", "--management-url", "http://host:15672"]).await;
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.err.contains("MANAGEMENT_URL: names no user with a password"), "{ran:?}");
}
