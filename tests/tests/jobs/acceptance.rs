//! Jobs of one caller are accepted in their order, in transactions of bounded size.

use std::time::Duration;

use job::{JobSpec, Json};
use serde_json::json;
use store::{Acceptance, Taken};
use tests::{Database, job};

#[tokio::test]
async fn large_jobs_of_one_caller_are_accepted_in_order_in_transactions_of_about_a_mebibyte() {
    let database = Database::new().await;
    let store = database.store();
    let input = json!("x".repeat(400 << 10)).to_string();
    let specs: Vec<JobSpec> = (0..6)
        .map(|n| JobSpec {
            input: Json::parse(if n == 2 { "1" } else { &input }).expect("JSON"),
            ..job("s", "echo", json!(n))
        })
        .collect();
    let jobs: Vec<Acceptance> =
        specs.iter().map(|spec| Acceptance::new(spec.clone(), job::encode(spec).len())).collect();
    let taken = store.take_in_order(&jobs, Duration::MAX).await;
    assert!(taken.iter().all(|taken| matches!(taken, Ok(Taken::New { .. }))), "{taken:?}");
    let ids: Vec<String> = specs.iter().map(|spec| spec.job_id.to_string()).collect();
    assert_eq!(database.texts("SELECT job_id::text FROM harness_jobs ORDER BY seq").await, ids);
    let transactions = "SELECT count(DISTINCT xmin::text) FROM harness_jobs";
    assert_eq!(database.count(transactions).await, 3, "two large ones fit into each");
    let again = store.take_in_order(&jobs, Duration::MAX).await;
    assert!(again.iter().all(|taken| matches!(taken, Ok(Taken::Known))), "{again:?}");
}
