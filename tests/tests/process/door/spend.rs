//! What a tenant's model calls have cost, over HTTP: its own alone.

use base64::Engine as _;
use job::JobId;
use serde_json::{Value, json};
use tests::{Api, Fleet};

use super::labels::plans;
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
}

/// Reads a sum to its end; returns the pages, each as `of: calls`.
async fn pages(caller: &Api, query: &str, of: &str) -> Vec<Vec<(String, i64)>> {
    let (mut pages, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = caller.get(&format!("/v1/spend?{query}{cursor}")).await.is(200).json();
        let rows = page["items"].as_array().expect("rows").iter();
        let sum = |row: &Value| {
            (row[of].as_str().expect("a text").to_owned(), row["calls"].as_i64().expect("a number"))
        };
        pages.push(rows.map(sum).collect());
        let Some(next) = page["next"].as_str() else { return pages };
        cursor = format!("&cursor={next}");
    }
}

fn calls(pages: &[Vec<(String, i64)>]) -> Vec<i64> {
    pages.iter().map(|page| page.iter().map(|(_, calls)| calls).sum()).collect()
}

/// Calls of today: 25,000 of each of two tenants.
const MANY: &str = "INSERT INTO harness_calls (call_id, state, tenant, session_id, job_id, epoch, worker_id, agent_id, provider,
                                       model, reserved_microusd, cost_microusd, request_hash, request_nth, day,
                                       on_session, on_job, settled_at)
            SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint - n - 100000), 12, '0')
                    || '70008000' || lpad(to_hex(n), 12, '0'))::uuid,
                   'settled', CASE WHEN n % 2 = 0 THEN 'acme' ELSE 'other' END, 's', gen_random_uuid(), 1,
                   gen_random_uuid(), 'a' || n % 3, 'anthropic', 'large', 1, 1, sha256(''), 0,
                   (now() AT TIME ZONE 'UTC')::date, false, false, now()
              FROM generate_series(1, 50000) n";

#[tokio::test]
async fn a_request_sums_up_ten_thousand_rows_and_says_where_the_others_begin() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "read").await;
    fleet.database.execute(MANY).await;
    // What retention has left of the days before: of one, more than a request looks at.
    let sums = "INSERT INTO harness_spend
                SELECT (now() AT TIME ZONE 'UTC')::date - days, tenant, 'a9', 'u' || lpad(n::text, 5, '0'), 'large', 1, 1, 0, 0, 0, 0, 0
                  FROM unnest(ARRAY[1, 2, 40], ARRAY[11000, 4000, 100]) AS of(days, users), generate_series(1, users) n,
                       unnest(ARRAY['acme', 'other']) AS tenant";
    fleet.database.execute(sums).await;

    assert_eq!(calls(&pages(&acme, "by=agent", "agent_id").await), [10_000, 10_000, 5_000]);
    let month = pages(&acme, "by=agent&days=31", "agent_id").await;
    assert_eq!(calls(&month), [10_000, 10_000, 10_000, 10_000, 0], "{month:?}");
    assert_eq!(
        month[2].iter().map(|(agent, _)| agent.as_str()).collect::<Vec<_>>(),
        ["a0", "a1", "a2", "a9"]
    );
    let by_user = pages(&acme, "by=user&days=31", "user_id").await;
    assert_eq!(calls(&by_user).iter().sum::<i64>(), 40_000);
    let users = by_user.iter().flatten().map(|(user, _)| user).collect::<std::collections::HashSet<_>>();
    assert_eq!(users.len(), 11_001, "each, and the calls of nobody");
    assert!(by_user.iter().all(|page| page.len() <= 10_000));

    // A page of nothing is none that leads on, and a cursor is one that was given.
    assert_eq!(pages(&api, "by=agent", "agent_id").await, [vec![]]);
    let forged =
        |text: &str| format!("/v1/spend?cursor={}", base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(text));
    for cursor in ["x", "%00", "0198c0de-7a00-7000-8000-000000000001"] {
        acme.get(&format!("/v1/spend?cursor={cursor}")).await.problem(422, Some("cursor"));
    }
    for text in
        ["{}", "[1]", r#"{"sum":[-1,"a","b","c"]}"#, r#"{"sum":[1,"a\u0000","b","c"]}"#, r#"{"call":"x"}"#]
    {
        acme.get(&forged(text)).await.problem(422, Some("cursor"));
    }
}

#[tokio::test]
async fn a_request_reads_no_more_than_its_bound_and_nothing_of_the_others() {
    let fleet = Fleet::new().await;
    fleet.database.explain().await;
    let door = fleet.door("door").set("LOG_LEVEL", "info,tokio_postgres=info").start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "read").await;
    fleet.database.execute(MANY).await;
    fleet.database.execute("VACUUM ANALYZE harness_calls").await;
    let page = acme.get("/v1/spend?by=agent&days=366").await.is(200).json();
    assert!(page["next"].is_string(), "{page}");
    let of_calls = async || Some(plans(&door.log(), "FROM harness_calls")).filter(|plans| !plans.is_empty());
    for plan in tests::until("the plan is logged", of_calls).await {
        let pages = plan["Plan"]["Shared Hit Blocks"].as_u64().unwrap_or_default()
            + plan["Plan"]["Shared Read Blocks"].as_u64().unwrap_or_default();
        // Each page of the table has as many calls of the one tenant as of the other.
        assert!(pages < 1_100, "{pages} pages: {plan:#}");
    }
}
