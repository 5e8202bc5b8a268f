//! What the API shows of the fleet.

use std::collections::BTreeSet;

use job::JobId;
use serde_json::{Value, json};
use tests::{Api, Fleet};

use super::labels::plans;
use super::tenants::caller;

/// All entries of a list, page by page.
async fn all(api: &Api, path: &str, limit: usize) -> Vec<Value> {
    let separator = if path.contains('?') { '&' } else { '?' };
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("{path}{separator}limit={limit}{cursor}")).await.is(200).json();
        let found = page["items"].as_array().expect("entries");
        assert!(found.len() <= limit, "{page}");
        items.extend(found.iter().cloned());
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => return items,
        }
    }
}

#[tokio::test]
async fn lists_have_each_job_once_newest_first_and_pass_filters() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let mut worker = fleet.worker("worker").start().await;
    let mut ids = Vec::new();
    for n in 0..7 {
        let agent = if n % 3 == 0 { "nobody" } else { "echo" };
        let spec = json!({"agent_id": agent, "session_id": format!("s-{n}")});
        ids.push(api.submit(&spec).await.is(202).text("job_id"));
    }
    for job_id in &ids {
        api.wait(job_id).await.is(200);
    }
    worker.terminate();
    worker.exit().await;
    for n in 0..3 {
        let spec = json!({"agent_id": "echo", "session_id": format!("t-{n}")});
        ids.push(api.submit(&spec).await.is(202).text("job_id"));
    }
    ids.reverse();
    for limit in [1, 4, 10, 100] {
        let listed = all(&api, "/v1/jobs", limit).await;
        let listed: Vec<&str> = listed.iter().filter_map(|line| line["job_id"].as_str()).collect();
        assert_eq!(listed, ids, "{limit}");
    }
    let states =
        |listed: Vec<Value>| listed.iter().map(|line| line["state"].to_string()).collect::<BTreeSet<_>>();
    let failed = all(&api, "/v1/jobs?state=failed", 2).await;
    assert_eq!((failed.len(), states(failed)), (3, ["\"failed\"".to_owned()].into()));
    assert_eq!(all(&api, "/v1/jobs?state=succeeded,failed", 100).await.len(), 7);
    assert_eq!(all(&api, "/v1/jobs?session=t-1", 100).await.len(), 1);
    assert_eq!(all(&api, "/v1/jobs?agent=nobody&pool=default", 2).await.len(), 3);
    assert_eq!(all(&api, "/v1/jobs?pool=gpu", 100).await.len(), 0);
    let at = |id: &str| {
        let unix_ms = id.parse::<JobId>().expect("an id").unix_ms();
        let at = std::time::UNIX_EPOCH + std::time::Duration::from_millis(unix_ms);
        humantime::format_rfc3339_millis(at).to_string()
    };
    // Ids of the same millisecond are on the same side.
    let (from, to) = (at(&ids[6]), at(&ids[1]));
    let between = all(&api, &format!("/v1/jobs?since={from}&before={to}"), 2).await;
    let expected: Vec<&String> = ids.iter().filter(|id| at(id) >= from && at(id) < to).collect();
    assert_eq!(between.iter().map(|line| line["job_id"].as_str().unwrap()).collect::<Vec<_>>(), expected);
    assert!(!expected.is_empty() && expected.len() < ids.len(), "{expected:?}");

    let dead = all(&api, "/v1/dead", 2).await;
    assert_eq!((dead.len(), &dead[0]["code"]), (3, &json!("unknown_agent")));
    let again = dead[0]["job_id"].as_str().expect("an id");
    api.post(&format!("/v1/jobs/{again}/redrive"), &json!(null)).await.is(202);
    assert_eq!(all(&api, "/v1/dead", 2).await.len(), 2);

    let sessions = all(&api, "/v1/sessions", 2).await;
    assert_eq!(sessions.len(), 7, "{sessions:?}");
    let session = api.get("/v1/sessions/s-1").await.is(200).json();
    assert_eq!((&session["jobs"], session["context_window"].is_array()), (&json!(1), true), "{session}");
    api.get("/v1/sessions/none").await.problem(404, None);
    api.get("/v1/sessions/a%2fb").await.problem(404, None);
    for (query, field) in [
        ("state=lost", "state"),
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=x", "limit"),
        ("limit=1&limit=2", "limit"),
        ("cursor=x", "cursor"),
        ("agent=a%20b", "agent"),
        ("memroy=echo", "memroy"),
        ("state=%00", "state"),
        ("since=yesterday", "since"),
        ("before=1969-12-31T23:59:59Z", "before"),
    ] {
        api.get(&format!("/v1/jobs?{query}")).await.problem(422, Some(field));
    }
}

/// Results of the tenant `default` that are newer than all jobs so far.
const CROWD: &str = "
    INSERT INTO harness_results (job_id, session_id, agent_id, pool, state, attempts, iterations, cost_microusd,
                                 input_tokens, output_tokens, epoch, accepted_at)
    SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0') || '70008000' || lpad(to_hex(n), 12, '0'))::uuid,
           's', 'echo', 'default', 'succeeded', 1, 0, 0, 0, 0, 1, now()
      FROM generate_series(1, 10001) n";

#[tokio::test]
async fn a_tenants_pages_are_of_its_own_jobs_however_many_the_others_have() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    assert_eq!(fleet.producer(&["tenants", "create", "acme"]).await.code, 0);
    let key = fleet.producer(&["keys", "create", "--tenant", "acme", "--scope", "submit,read,operate"]).await;
    let acme = api.with_key(key.out.trim());
    let live = acme.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    let ended = acme.submit(&json!({"agent_id": "echo"})).await.is(202).text("job_id");
    acme.post(&format!("/v1/jobs/{ended}/cancel"), &json!(null)).await.is(200);
    fleet.database.execute(CROWD).await;
    let page = acme.get("/v1/jobs").await.is(200).json();
    let ids: Vec<&str> = page["items"]
        .as_array()
        .expect("entries")
        .iter()
        .filter_map(|line| line["job_id"].as_str())
        .collect();
    assert_eq!((ids, page.get("next")), (vec![ended.as_str(), live.as_str()], None), "{page}");
    // What is looked at is bounded, and there is a next page.
    let mut own = api.get("/v1/jobs?state=failed").await.is(200).json();
    assert_eq!(own["items"].as_array().map(Vec::len), Some(0), "{own}");
    let next = own["next"].take();
    let last = api.get(&format!("/v1/jobs?state=failed&cursor={}", next.as_str().expect("a cursor"))).await;
    assert_eq!(last.is(200).json().get("next"), None);
}

#[tokio::test]
async fn a_list_of_states_looks_only_where_such_jobs_are() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let live = api.submit(&json!({"agent_id": "echo", "session_id": "s"})).await.is(202).text("job_id");
    fleet.database.execute(CROWD).await;
    // A job is scheduled again where the door has no broker yet.
    let page = api.get("/v1/jobs?state=scheduled,waiting,publishing,queued&session=s").await.is(200).json();
    assert_eq!((&page["items"][0]["job_id"], page.get("next")), (&json!(live), None), "{page}");
    let ran = fleet.producer(&["cancel", "--session", "s", "--url", api.base()]).await;
    assert!(ran.code == 0 && ran.out == format!("{live} cancelled\n"), "{ran:?}");
}

/// Live jobs of another tenant, ten in each millisecond, and some of the tenant `default` among them: the first and the
/// last one of some milliseconds.
const MIXED: &str = "
    INSERT INTO harness_jobs (job_id, tenant, session_id, agent_id, pool, message, state, due_at)
    SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint + ms), 12, '0') || '7' || low || lpad(to_hex(n), 12, '0'))::uuid,
           tenant, session, 'echo', 'default', '{}', 'scheduled', now() + interval '1 hour'
      FROM (SELECT n, n / 10 AS ms, '000a000' AS low, 'acme' AS tenant, '~acme/s' AS session FROM generate_series(0, 11999) n
            UNION ALL
            SELECT n, n, low, 'default', 's' FROM generate_series(0, 1199, 100) n, (VALUES ('0008000'), ('000b000')) l(low)
            UNION ALL
            SELECT n, n, low, 'default', 's' FROM generate_series(190, 215) n, (VALUES ('0008000'), ('000b000')) l(low)
             WHERE n <> 200) j";

#[tokio::test]
async fn no_cursor_names_a_job_of_another_tenant_and_the_pages_have_each_job_once() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    fleet.database.execute(MIXED).await;
    let own = "SELECT job_id::text FROM harness_jobs WHERE tenant = 'default' ORDER BY job_id DESC";
    let own = fleet.database.texts(own).await;
    let others = "SELECT job_id::text FROM harness_jobs WHERE tenant <> 'default'";
    let others: BTreeSet<String> = fleet.database.texts(others).await.into_iter().collect();
    assert_eq!((own.len(), others.len()), (74, 12_000));
    for limit in [7, 500] {
        let (mut listed, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = api.get(&format!("/v1/jobs?limit={limit}{cursor}")).await.is(200).json();
            let items = page["items"].as_array().expect("entries").iter();
            listed.extend(items.map(|item| item["job_id"].as_str().expect("an id").to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            assert!(!others.contains(next), "{next}");
            cursor = format!("&cursor={next}");
        }
        assert_eq!(listed, own, "{limit}");
    }
    let ended = api.get("/v1/jobs?state=succeeded").await.is(200).json();
    assert_eq!(ended.get("next"), None, "no live job is looked at: {ended}");
}

#[tokio::test]
async fn pools_workers_and_the_reason_of_a_wait_are_shown() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    // Without a broker the door leaves a job to a relay, and there is none here.
    door.said("connected to the broker").await;
    let api = Api::of(&door).await;
    let long = json!({"agent_id": "scripted", "session_id": "s", "input": {"count": 1000, "delay_ms": 20}});
    let first = api.submit(&long).await.is(202).text("job_id");
    let why = async |job_id: &str| api.get(&format!("/v1/jobs/{job_id}/why")).await.is(200).text("why");
    let look = async || Some(why(&first).await).filter(|why| why.starts_with("queued"));
    let waits = tests::until("it is queued", look).await;
    assert!(waits.ends_with("no worker serves pool default"), "{waits}");

    let _worker = fleet.worker("worker").start().await;
    fleet.iterated(first.parse().expect("an id"), 1).await;
    let next = api.submit(&json!({"agent_id": "echo", "session_id": "s"})).await.is(202).text("job_id");
    let look = async || Some(why(&next).await).filter(|why| why.starts_with("blocked"));
    let waits = tests::until("it is blocked", look).await;
    assert!(waits.contains(&format!("works on job {first}")) && waits.ends_with("1 job is ahead"), "{waits}");
    let ran = fleet.producer(&["why", &next]).await;
    assert!(ran.code == 0 && ran.out.starts_with("blocked: session s works on job"), "{ran:?}");
    api.get(&format!("/v1/jobs/{}/why", JobId::now())).await.problem(404, None);

    let pools = api.get("/v1/pools").await.is(200).json();
    assert_eq!((&pools["items"][0]["pool"], &pools["items"][0]["workers"]), (&json!("default"), &json!(1)));
    let workers = api.get("/v1/workers").await.is(200).json();
    assert_eq!(
        (&workers["items"][0]["slots"], &workers["items"][0]["busy"]),
        (&json!(4), &json!(1)),
        "{workers}"
    );

    // Every route is described, and measured.
    let document = api.get("/v1/openapi.json").await.is(200).json();
    let paths: BTreeSet<&str> =
        document["paths"].as_object().expect("paths").keys().map(String::as_str).collect();
    let expected = [
        "/v1/dead",
        "/v1/dead/{id}",
        "/v1/jobs",
        "/v1/jobs/batch",
        "/v1/jobs/{id}",
        "/v1/jobs/{id}/answers",
        "/v1/jobs/{id}/cancel",
        "/v1/jobs/{id}/events",
        "/v1/jobs/{id}/redrive",
        "/v1/jobs/{id}/why",
        "/v1/limits",
        "/v1/limits/{id}",
        "/v1/pools",
        "/v1/schedules",
        "/v1/schedules/{id}",
        "/v1/schedules/{id}/next",
        "/v1/schedules/{id}/pause",
        "/v1/schedules/{id}/resume",
        "/v1/sessions",
        "/v1/sessions/{id}",
        "/v1/sessions/{id}/events",
        "/v1/spend",
        "/v1/tickets",
        "/v1/webhooks",
        "/v1/webhooks/{id}",
        "/v1/webhooks/{id}/deliveries",
        "/v1/webhooks/{id}/disable",
        "/v1/webhooks/{id}/enable",
        "/v1/webhooks/{id}/resend",
        "/v1/webhooks/{id}/rotate",
        "/v1/webhooks/{id}/test",
        "/v1/workers",
    ];
    assert_eq!(paths, expected.into());
    let operations = document["paths"].as_object().expect("paths").iter().flat_map(|(path, operations)| {
        operations
            .as_object()
            .expect("methods")
            .iter()
            .map(move |(method, operation)| (path, method, operation))
    });
    for (path, method, operation) in operations {
        let responses = operation["responses"].as_object().expect("responses");
        assert!(["401", "403", "500", "503"].iter().all(|status| responses.contains_key(*status)), "{path}");
        // These two have no body.
        for (status, response) in
            responses.iter().filter(|(status, _)| !["204", "431"].contains(&status.as_str()))
        {
            let kind = match status.starts_with('2') {
                true if path.ends_with("/events") => "text/event-stream",
                true => "application/json",
                false => "application/problem+json",
            };
            assert!(response["content"][kind]["schema"].is_object(), "{method} {path} {status}: {response}");
        }
    }
    let (_, metrics) = door.get("/metrics").await;
    let measured = r#"harness_http_request_seconds_count{route="/v1/jobs/{id}/why",status="4xx"} 1"#;
    assert!(metrics.contains(measured), "{metrics}");
}

/// Many sessions of a tenant, made an hour apart from the last one backwards, of which each tenth was updated now.
const SESSIONS: &str = "
    INSERT INTO harness_sessions (session_id, tenant, agent_id, created_at, last_updated)
    SELECT '~acme/s-' || lpad(n::text, 5, '0'), 'acme', CASE WHEN n = 24999 THEN 'rare' ELSE 'echo' END,
           '2026-01-01T00:00:00Z'::timestamptz + n * interval '1 hour',
           CASE WHEN n % 10 = 0 THEN '2040-01-01T00:00:00Z'::timestamptz ELSE '2030-01-01T00:00:00Z'::timestamptz END
      FROM generate_series(1, 25000) n";

#[tokio::test]
async fn sessions_are_listed_by_name_and_pass_filters_of_which_a_page_looks_at_a_bounded_number() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let (acme, other) =
        (caller(&fleet, &api, "acme", "read").await, caller(&fleet, &api, "other", "read").await);
    fleet.database.execute(SESSIONS).await;
    let names = |listed: Vec<Value>| -> Vec<String> {
        listed.iter().map(|line| line["session_id"].as_str().expect("a name").to_owned()).collect()
    };
    let listed = names(all(&acme, "/v1/sessions?created_before=2026-01-01T10:00:00Z", 4).await);
    assert_eq!(listed, (1..10).map(|n| format!("s-{n:05}")).collect::<Vec<_>>());
    let both = "/v1/sessions?created_since=2026-01-02T00:00:00Z&created_before=2026-01-04T00:00:00Z&updated_since=2035-01-01T00:00:00Z";
    assert_eq!(names(all(&acme, both, 500).await), ["s-00030", "s-00040", "s-00050", "s-00060", "s-00070"]);
    assert_eq!(all(&acme, "/v1/sessions?updated_before=2035-01-01T00:00:00Z&agent=rare", 500).await.len(), 1);

    // Each page looks at ten thousand, whatever it finds; nothing is listed twice or left out.
    let (mut pages, mut found, mut cursor) = (0, Vec::new(), String::new());
    loop {
        let page = acme.get(&format!("/v1/sessions?agent=rare{cursor}")).await.is(200).json();
        pages += 1;
        found.extend(names(page["items"].as_array().expect("entries").clone()));
        match page["next"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!((pages, found), (3, vec!["s-24999".to_owned()]));
    let every_tenth = names(all(&acme, "/v1/sessions?updated_since=2035-01-01T00:00:00Z", 500).await);
    assert_eq!(every_tenth, (1..=2_500).map(|n| format!("s-{:05}", n * 10)).collect::<Vec<_>>());
    assert_eq!(all(&other, "/v1/sessions?agent=rare", 500).await.len(), 0);
    for (query, field) in [
        ("agent=a%20b", "agent"),
        ("created_since=yesterday", "created_since"),
        ("updated_before=1", "updated_before"),
        ("since=2026-01-31T08:00:00Z", "since"),
    ] {
        acme.get(&format!("/v1/sessions?{query}")).await.problem(422, Some(field));
    }
}

/// A cursor is a place in the caller's own list, even one that somebody made up: it shows nothing of another tenant's.
#[tokio::test]
async fn a_forged_cursor_is_refused_or_leads_into_the_callers_own_list() {
    let fleet = Fleet::new().await;
    let _worker = fleet.worker("worker").start().await;
    let door = fleet.door("door").start().await;
    let api = Api::of(&door).await;
    let scopes = "submit,read";
    let (acme, other) =
        (caller(&fleet, &api, "acme", scopes).await, caller(&fleet, &api, "other", scopes).await);
    let failing = async |api: &Api, session: &str| {
        let spec = json!({"agent_id": "nobody", "session_id": session});
        let job_id = api.submit(&spec).await.is(202).text("job_id");
        api.wait(&job_id).await.is(200);
        job_id
    };
    let first = failing(&acme, "a").await;
    let theirs = failing(&other, "b").await;
    let last = failing(&acme, "c").await;
    let listed = async |path: &str, field: &str, cursor: &str| {
        let page = acme.get(&format!("{path}?cursor={cursor}")).await.is(200).json();
        let items = page["items"].as_array().expect("entries");
        items.iter().map(|item| item[field].as_str().expect("a text").to_owned()).collect::<Vec<_>>()
    };
    // Another tenant's id is a time like any other: older jobs of the caller's own follow it.
    let (all_ids, none) = (vec![last.clone(), first.clone()], Vec::<String>::new());
    for path in ["/v1/jobs", "/v1/dead"] {
        let before_theirs: Vec<String> = all_ids.iter().filter(|id| **id < theirs).cloned().collect();
        for (cursor, expected) in [
            (theirs.as_str(), &before_theirs),
            ("ffffffff-ffff-7fff-bfff-ffffffffffff", &all_ids),
            ("00000000-0000-7000-8000-000000000000", &none),
        ] {
            assert_eq!(listed(path, "job_id", cursor).await, *expected, "{path} {cursor}");
        }
    }
    let sessions = async |cursor: &str| listed("/v1/sessions", "session_id", cursor).await;
    assert_eq!((sessions("b").await, sessions("a").await), (vec!["c".to_owned()], vec!["c".to_owned()]));
    assert_eq!(sessions("z").await, none);
    // What is no cursor is refused by name; so is the key under which the ledger has another's session.
    for cursor in ["x", "-1", "%00", "a%20b", "%27;--", "~other/b", "~other%2Fb", "%7Eother%2F", "%ff"] {
        for path in ["/v1/jobs", "/v1/dead"] {
            acme.get(&format!("{path}?cursor={cursor}")).await.problem(422, Some("cursor"));
        }
        if !["x", "-1"].contains(&cursor) {
            acme.get(&format!("/v1/sessions?cursor={cursor}")).await.problem(422, Some("cursor"));
        }
    }
}

/// Many ended jobs of a tenant.
const OLD: &str = "
    INSERT INTO harness_results (job_id, tenant, session_id, agent_id, pool, state, attempts, iterations, cost_microusd,
                                 input_tokens, output_tokens, epoch, accepted_at)
    SELECT (lpad(to_hex((extract(epoch FROM now()) * 1000)::bigint), 12, '0')
            || '70008000' || lpad(to_hex(n), 12, '0'))::uuid,
           'acme', '~acme/s', 'echo', 'default', 'succeeded', 1, 0, 0, 0, 0, 1, now()
      FROM generate_series(1, 321000) n";

#[tokio::test]
async fn a_list_without_hits_reads_no_more_than_its_bound() {
    let fleet = Fleet::new().await;
    fleet.database.explain().await;
    let door = fleet.door("door").set("LOG_LEVEL", "info,tokio_postgres=info").start().await;
    let api = Api::of(&door).await;
    let acme = caller(&fleet, &api, "acme", "read").await;
    fleet.database.execute(OLD).await;
    fleet.database.execute("VACUUM ANALYZE harness_results").await;
    let page = acme.get("/v1/jobs?agent=nobody").await.is(200).json();
    assert!(page["items"] == json!([]) && page["next"].is_string(), "{page}");
    let of_lists = async || {
        let found = plans(&door.log(), "FROM harness_results").into_iter();
        let lists = found.filter(|plan| plan["Query Text"].to_string().contains("finished_at"));
        Some(lists.collect::<Vec<Value>>()).filter(|lists| !lists.is_empty())
    };
    for plan in tests::until("the plan is logged", of_lists).await {
        let pages = plan["Plan"]["Shared Hit Blocks"].as_u64().unwrap_or_default()
            + plan["Plan"]["Shared Read Blocks"].as_u64().unwrap_or_default();
        assert!(pages < 1_400, "{pages} pages: {plan:#}");
    }
}
