//! What a tenant's model calls have cost, over HTTP: its own alone.

use job::JobId;
use serde_json::{Value, json};
use tests::{Api, Fleet};

use super::tenants::caller;

/// Writes a call of today.
async fn call(fleet: &Fleet, tenant: &str, job_id: JobId, [state, model, user]: [&str; 3], micros: u64) {
    let settled = if state == "held" { "NULL" } else { "now()" };
    let cost = if state == "held" { 0 } else { micros };
    let id = JobId::now();
    let user = if user.is_empty() { "NULL".to_owned() } else { format!("'{user}'") };
    let insert = format!(
        "INSERT INTO harness_calls (call_id, state, tenant, session_id, job_id, epoch, worker_id, agent_id, user_id, provider,
                                    model, reserved_microusd, cost_microusd, input_tokens, output_tokens, request_hash,
                                    request_nth, day, on_session, on_job, settled_at)
         VALUES ('{id}', '{state}', '{tenant}', 's', '{job_id}', 1, gen_random_uuid(), 'coder', {user}, 'anthropic', '{model}',
                 {micros}, {cost}, 3, 4, sha256(''), 0, (now() AT TIME ZONE 'UTC')::date, false, false, {settled})"
    );
    fleet.database.execute(&insert).await;
}

#[tokio::test]
async fn a_tenant_sees_the_sums_of_its_own_calls() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "read").await;
    let (one, two, other) = (JobId::now(), JobId::now(), JobId::now());
    call(&fleet, "acme", one, ["settled", "large", "ann"], 250_000).await;
    call(&fleet, "acme", one, ["unknown", "small", "ann"], 100_000).await;
    call(&fleet, "acme", two, ["held", "small", ""], 70_000).await;
    call(&fleet, "other", other, ["settled", "secret", "eve"], 9_000_000).await;
    // What retention has left of two days ago, and of long ago.
    for days in [2, 300] {
        let sum = format!(
            "INSERT INTO harness_spend SELECT (now() AT TIME ZONE 'UTC')::date - {days}, tenant, 'coder', '', 'large', 5, 1000000, 0, 1, 2, 3, 4
               FROM unnest(ARRAY['acme', 'other']) AS tenant"
        );
        fleet.database.execute(&sum).await;
    }
    let sums =
        async |query: &str| acme.get(&format!("/v1/spend{query}")).await.is(200).json()["items"].clone();
    let today = sums("").await;
    let day = today[0]["day"].clone();
    assert_eq!(
        today,
        json!([{"day": day, "calls": 3, "cost_usd": 0.35, "unknown_usd": 0.1, "held_usd": 0.07, "input_tokens": 9,
                "cache_read_tokens": 0, "cache_write_tokens": 0, "output_tokens": 12}])
    );
    let costs = |sums: &Value, by: &[&str]| -> Vec<String> {
        let of =
            |row: &Value| by.iter().map(|by| row[by].as_str().unwrap_or("?")).collect::<Vec<_>>().join(" ");
        let rows = sums.as_array().expect("rows").iter();
        rows.map(|row| format!("{}: {}", of(row), row["cost_usd"])).collect()
    };
    assert_eq!(costs(&sums("?by=model").await, &["model"]), ["large: 0.25", "small: 0.1"]);
    assert_eq!(
        costs(&sums("?by=user,agent").await, &["user_id", "agent_id"]),
        [" coder: 0.0", "ann coder: 0.35"]
    );
    let mut of_jobs = [format!("{one}: 0.35"), format!("{two}: 0.0")];
    of_jobs.sort();
    assert_eq!(costs(&sums("?by=job").await, &["job_id"]), of_jobs);
    assert_eq!(costs(&sums("?by=model&days=3").await, &["model"]), ["large: 1.25", "small: 0.1"]);
    assert_eq!(costs(&sums("?by=agent&days=366").await, &["agent_id"]), ["coder: 2.35"]);
    assert_eq!(
        api.get("/v1/spend?days=9").await.is(200).json(),
        json!({"items": []}),
        "the tenant default has none"
    );

    for (query, field) in [
        ("?by=tenant", "by"),
        ("?by=day,day", "by"),
        ("?by=", "by"),
        ("?days=0", "days"),
        ("?days=367", "days"),
        ("?days=x", "days"),
        ("?tenant=other", "tenant"),
    ] {
        acme.get(&format!("/v1/spend{query}")).await.problem(422, Some(field));
    }
    let submits = caller(&fleet, &api, "acme", "submit").await;
    submits.get("/v1/spend").await.problem(403, None);
    let document = api.get("/v1/openapi.json").await.is(200).json();
    assert!(document["paths"]["/v1/spend"]["get"].is_object());
    // More sums than an answer may have.
    let many = "INSERT INTO harness_spend SELECT (now() AT TIME ZONE 'UTC')::date, 'acme', 'coder', 'u' || n, 'large', 1, 1, 0, 0, 0, 0, 0
                  FROM generate_series(1, 10001) n";
    fleet.database.execute(many).await;
    acme.get("/v1/spend?by=user").await.problem(422, Some("by"));
    acme.get("/v1/spend?by=model").await.is(200);
}
