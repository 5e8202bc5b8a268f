//! Labels over HTTP: submitted, shown, and found by, at a cost that does not depend on the jobs without them.

use job::JobId;
use serde_json::{Value, json};
use tests::{Api, Fleet, until};

use super::tenants::caller;

fn ids(page: &Value) -> Vec<&str> {
    page["items"].as_array().expect("items").iter().filter_map(|item| item["job_id"].as_str()).collect()
}

#[tokio::test]
async fn each_tenant_finds_its_own_jobs_by_label() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "submit,read,operate").await;
    let blind = caller(&fleet, &api, "acme", "submit").await;
    let spec =
        |run: &str| json!({"agent_id": "echo", "session_id": "s", "labels": {"team": "search", "run": run}});
    let mut own = Vec::new();
    for caller in [&api, &acme] {
        let accepted = caller.submit(&spec("1")).await.is(202).json();
        assert_eq!(accepted["labels"], json!({"team": "search", "run": "1"}), "{accepted}");
        let batch = json!([spec("2"), {"agent_id": "echo", "session_id": "s"}]);
        let answers = caller.post("/v1/jobs/batch", &batch).await.is(200).json();
        let in_batch = answers["items"][0]["job_id"].as_str().expect("an id").to_owned();
        let first = accepted["job_id"].as_str().expect("an id").to_owned();
        let shown = caller.get(&format!("/v1/jobs/{in_batch}")).await.is(200).json();
        assert_eq!(shown["labels"]["run"], json!("2"), "{shown}");
        let plain = answers["items"][1]["job_id"].as_str().expect("an id");
        assert_eq!(caller.get(&format!("/v1/jobs/{plain}")).await.is(200).json().get("labels"), None);
        own.push([in_batch, first]);
    }
    assert_eq!(blind.submit(&spec("3")).await.is(202).json().get("labels"), None);
    blind.get("/v1/jobs?label=team=search").await.problem(403, None);
    for (caller, [second, first]) in [&api, &acme].into_iter().zip(&own) {
        let one = caller.get("/v1/jobs?label=team=search&label=run%3D1").await.is(200).json();
        assert_eq!(ids(&one), [first.as_str()]);
        caller.post(&format!("/v1/jobs/{second}/cancel"), &json!(null)).await.is(200);
        let ended = caller.get("/v1/jobs?label=run=2&state=cancelled").await.is(200).json();
        assert_eq!(ids(&ended), [second.as_str()]);
        let ended = caller.get(&format!("/v1/jobs/{second}")).await.is(200).json();
        assert_eq!(ended["labels"], json!({"team": "search", "run": "2"}), "{ended}");
        let dead = caller.get("/v1/dead?label=team=search").await.is(200).json();
        assert_eq!(ids(&dead), <[&str; 0]>::default());
    }
    // The same id with other labels is another job.
    let mut again = spec("1");
    again["job_id"] = json!(JobId::now());
    api.submit(&again).await.is(202);
    api.submit(&again).await.is(200);
    again["labels"]["run"] = json!("4");
    api.submit(&again).await.problem(409, Some("job_id"));
    fleet.database.audited().await;
}

#[tokio::test]
async fn a_wrong_label_is_named() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let nine: serde_json::Map<_, _> = (0..9).map(|n| (format!("k{n}"), json!("v"))).collect();
    for (labels, field) in [
        (json!({"a b": "c"}), "labels"),
        (json!({"": "c"}), "labels"),
        (json!({"team": "a b"}), "labels.team"),
        (json!({"team": "\u{0}"}), "labels.team"),
        (json!({"team": null}), "labels.team"),
        (json!({"team": "x".repeat(64)}), "labels.team"),
        (json!("team=search"), "labels"),
        (json!(nine), "labels"),
    ] {
        api.submit(&json!({"agent_id": "echo", "labels": labels})).await.problem(422, Some(field));
    }
    let twice = br#"{"agent_id":"echo","labels":{"k":"1","k":"2"}}"#.to_vec();
    let json = [("content-type", "application/json")];
    api.send(http::Method::POST, "/v1/jobs", &json, twice).await.problem(422, Some("labels"));
    for path in ["/v1/jobs", "/v1/dead"] {
        for query in ["label=team", "label=a%20b=c", "label==c", &"label=a=b&".repeat(9)] {
            api.get(&format!("{path}?{query}")).await.problem(422, Some("label"));
        }
    }
    api.get("/v1/sessions?label=a=b").await.problem(422, Some("label"));
    assert_eq!(fleet.database.count("SELECT count(*) FROM harness_jobs").await, 0);
}

/// 25,000 newer results with the label `team=common`, and as many with none.
const CROWD: [&str; 2] = [
    "INSERT INTO harness_results (job_id, session_id, agent_id, pool, state, attempts, iterations, cost_microusd,
                                  input_tokens, output_tokens, epoch, accepted_at)
     SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid,
            's', 'echo', 'default', 'cancelled', 0, 0, 0, 0, 0, 0, now()
       FROM generate_series(1, 50000) n",
    "INSERT INTO harness_labels
     SELECT 'default', 'team=common', job_id FROM harness_results
      WHERE session_id = 's' AND ('x' || right(job_id::text, 1))::bit(4)::int % 2 = 0",
];

/// The plans of a statement, as the process's log has them by auto_explain.
pub(super) fn plans(log: &str, part: &str) -> Vec<Value> {
    let mut lines = log.lines();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        if line.ends_with("plan:") {
            let mut plan = String::new();
            for line in lines.by_ref() {
                plan.push_str(line);
                if line == "}" {
                    break;
                }
            }
            let plan: Option<Value> = serde_json::from_str(&plan).ok();
            found.extend(
                plan.filter(|plan| plan["Query Text"].as_str().is_some_and(|text| text.contains(part))),
            );
        }
    }
    found
}

#[tokio::test]
async fn a_rare_label_is_found_among_many_jobs_by_the_index() {
    let fleet = Fleet::new().await;
    fleet.database.explain().await;
    let door = fleet.door("door").set("LOG_LEVEL", "info,tokio_postgres=info").start().await;
    let api = Api::of(&door).await;
    let spec = json!({"agent_id": "echo", "labels": {"team": "common", "run": "rare"}});
    let rare = api.submit(&spec).await.is(202).text("job_id");
    api.post(&format!("/v1/jobs/{rare}/cancel"), &json!(null)).await.is(200);
    for statement in CROWD {
        fleet.database.execute(statement).await;
    }
    fleet.database.execute("VACUUM ANALYZE harness_labels").await;

    for query in ["label=run=rare", "label=team=common&label=run=rare", "label=run=rare&label=team=common"] {
        let page = api.get(&format!("/v1/jobs?{query}")).await.is(200).json();
        assert_eq!((ids(&page), page.get("next")), (vec![rare.as_str()], None), "{query}: {page}");
    }
    // The log arrives a moment later than the answer.
    let of_results = "harness_results j WHERE j.job_id = l.job_id";
    let rare_log = until("the plans of three lists", async || {
        let log = door.log();
        (plans(&log, of_results).len() >= 3).then_some(log)
    })
    .await;
    // What is looked at is bounded, and there is a next page.
    let (mut pages, mut cursor) = (0, String::new());
    loop {
        let path = format!("/v1/jobs?label=team=common&pool=default&agent=echo&session={rare}{cursor}");
        let page = api.get(&path).await.is(200).json();
        pages += 1;
        match page["next"].as_str() {
            Some(next) => {
                assert!(ids(&page).is_empty(), "{page}");
                cursor = format!("&cursor={next}");
            }
            None => break assert_eq!(ids(&page), [rare.as_str()]),
        }
    }
    assert_eq!(pages, 3, "25,001 jobs have the label");
    let full = api.get("/v1/jobs?label=team=common&limit=500").await.is(200).json();
    assert!(ids(&full).len() == 500 && full["next"].is_string());
    assert_eq!(ids(&api.get("/v1/dead?label=team=common").await.is(200).json()).len(), 0);

    let log = door.log();
    for part in ["AS last", "harness_jobs j WHERE j.job_id = l.job_id", of_results] {
        let of_rare = plans(&rare_log, part);
        assert!(of_rare.len() >= 3, "{} of {part:?}", of_rare.len());
        for (plan, most) in of_rare
            .iter()
            .map(|plan| (plan, 1_000))
            .chain(plans(&log, part).iter().map(|plan| (plan, 200_000)))
        {
            let text = plan["Plan"].to_string();
            assert!(text.contains("harness_labels_w") && !text.contains("Seq Scan"), "{plan:#}");
            let pages = plan["Plan"]["Shared Hit Blocks"].as_u64().unwrap_or_default();
            assert!(pages < most, "{pages} pages: {plan:#}");
        }
    }
}
