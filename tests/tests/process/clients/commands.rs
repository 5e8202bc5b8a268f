//! With an address and a key, the everyday commands of `producer` need neither Postgres nor RabbitMQ, and print the
//! same.

use std::process::Command;

use serde_json::{Value, json};
use tests::{Api, Fleet, Ran, Worker, binary, job, until};

use super::outages::{JOBS, survives_a_kill};

/// A door that wants keys, and a key of the tenant `default`.
async fn door(fleet: &Fleet) -> (Worker, String, String) {
    let door = fleet.door("door").set("ENVIRONMENT", "production").start().await;
    let created =
        fleet.producer(&["keys", "create", "--tenant", "default", "--scope", "submit,read,content,operate"]);
    let key = created.await.out.trim().to_owned();
    let url = Api::of(&door).await.base().to_owned();
    (door, url, key)
}

/// A command of the producer that has no other setting than these.
fn command(settings: &[(&str, &str)], arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("producer"));
    command.args(arguments).env_clear().envs(settings.iter().copied());
    command
}

async fn over(settings: &[(&str, &str)], input: &str, arguments: &[&str]) -> Ran {
    Ran::of(command(settings, arguments), input).await
}

/// The API has the time of an end as text, cut to milliseconds; the ledger rounds it as well. Between the two commands a
/// second may pass, which a list shows ("2 s ago").
fn comparable(out: &str) -> Vec<String> {
    let line = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(Value::Object(mut entry)) => {
            entry.remove("dead_at_unix_ms");
            Value::Object(entry).to_string()
        }
        Ok(_) | Err(_) => {
            let mut words: Vec<&str> = line.split_whitespace().collect();
            let ages: Vec<usize> =
                (2..words.len()).filter(|at| words[at - 1..=*at] == ["s", "ago"]).collect();
            ages.iter().for_each(|at| words[at - 2] = "some");
            words.join(" ")
        }
    };
    out.lines().map(line).collect()
}

#[tokio::test]
async fn the_everyday_commands_print_the_same_over_the_api_as_from_the_ledger() {
    let fleet = Fleet::new().await;
    let mut worker = fleet.worker("worker").start().await;
    let (_door, url, key) = door(&fleet).await;
    let api = [("HARNESS_URL", url.as_str()), ("HARNESS_API_KEY", key.as_str())];
    let enqueue = ["enqueue", "--session", "s", "--agent", "echo", "--input", "{\"any\":\"json\"}"];
    let ran = over(&api, "", &enqueue).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let good = ran.out.trim().to_owned();
    let again = over(&api, "", &[&enqueue[..], &["--job-id", &good]].concat()).await;
    assert_eq!((again.code, again.out.trim()), (0, good.as_str()), "{again:?}");
    assert!(again.err.contains("was accepted before"), "{again:?}");
    let failing =
        over(&api, "", &["enqueue", "--session", "t", "--agent", "nobody"]).await.out.trim().to_owned();
    // It ends at its first attempt.
    let ran = over(&api, "", &["wait", &good, &failing, "--quiet"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""), "{ran:?}");
    worker.terminate();
    worker.exit().await;
    let queued =
        over(&api, "", &["enqueue", "--session", "u", "--agent", "echo"]).await.out.trim().to_owned();
    let is_queued = "SELECT count(*) FROM harness_jobs WHERE state = 'queued'";
    until("it is queued", async || (fleet.database.count(is_queued).await == 1).then_some(())).await;
    let unknown = "0198c0de-7a00-7000-8000-000000000001";
    for (arguments, code) in [
        (&["status", &good, &failing, &queued][..], 1),
        (&["status", "--json", &good, &failing, &queued], 1),
        (&["status", &good, unknown], 1),
        (&["status", &queued], 3),
        (&["wait", "--json", &good], 0),
        (&["wait", &failing], 1),
        (&["wait", "--timeout-s", "1", &queued], 3),
        (&["why", &good], 0),
        (&["why", &failing], 0),
        (&["why", unknown], 1),
        (&["jobs"], 0),
        (&["jobs", "--json", "--state", "succeeded,failed", "--limit", "1"], 0),
        (&["jobs", "--session", "u", "--agent", "echo", "--pool", "default"], 0),
        (&["dead", "list"], 0),
        (&["dead", "list", "--json", "--code", "unknown_agent", "--since", "1h"], 0),
        (&["dead", "list", "--json", "--before", "1h"], 0),
    ] {
        let (here, there) = (fleet.producer(arguments).await, over(&api, "", arguments).await);
        assert_eq!((here.code, there.code), (code, code), "{arguments:?}: {here:?} {there:?}");
        assert_eq!(comparable(&here.out), comparable(&there.out), "{arguments:?}");
    }
    let jobs = over(&api, "", &["jobs", "--json"]).await.json();
    let ids: Vec<&Value> = jobs.iter().map(|job| &job["job_id"]).collect();
    assert_eq!(ids, [&json!(queued), &json!(failing), &json!(good)]);

    // Ids from stdin, cancels, and a dead letter again.
    let ran = over(&api, &format!("{good}\n"), &["wait"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let ran = over(&api, "", &["cancel", "--session", "u"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (0, format!("{queued} cancelled\n").as_str()), "{ran:?}");
    let ran = over(&api, "", &["cancel", "--json", &good, unknown]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    let answers: Vec<Value> = ran.json().iter().map(|line| json!([line["answer"], line["state"]])).collect();
    assert_eq!(answers, [json!(["ended_before", "succeeded"]), json!(["not_known", null])]);
    let shown = over(&api, "", &["dead", "show", "--json", &failing]).await.json();
    assert_eq!(
        (&shown[0]["code"], &shown[0]["result"]["state"]),
        (&json!("unknown_agent"), &json!("failed"))
    );
    let ran = over(&api, "", &["dead", "redrive", "--all", "--agent", "nobody", "--json"]).await;
    assert_eq!((ran.code, &ran.json()[0]["fate"]), (0, &json!("redriven")), "{ran:?}");
    let again = ran.json()[0]["redriven_as"].as_str().expect("an id").to_owned();
    let ran = over(&api, "", &["dead", "drop", &failing, "--dry-run"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let worker = fleet.worker("another worker").start().await;
    over(&api, "", &["wait", &again]).await;
    worker.terminate();
    let ran = over(&api, "", &["dead", "drop", "--all", "--agent", "nobody", "--json"]).await;
    assert_eq!((ran.code, &ran.json()[0]["fate"]), (0, &json!("dropped")), "{ran:?}");
    assert_eq!(over(&api, "", &["dead", "list", "--json"]).await.out, "");
    let ran = over(&api, "", &["dead", "redrive", &failing]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert!(ran.err.contains("was redriven before"), "{ran:?}");
    fleet.database.audited().await;
}

#[tokio::test]
async fn lines_are_accepted_or_refused_by_the_api_each_for_itself() {
    let fleet = Fleet::new().await;
    let (_door, url, key) = door(&fleet).await;
    let api = [("HARNESS_URL", url.as_str()), ("HARNESS_API_KEY", key.as_str())];
    let id = job("s", "echo", json!(0)).job_id;
    let good = json!({"session_id": "s", "agent_id": "echo", "input": 0, "job_id": id.to_string()});
    let lines = [
        good.to_string(),
        "no JSON".to_owned(),
        json!({"session_id": "s", "agent_id": "echo", "pool": "nowhere"}).to_string(),
        json!({"session_id": "s", "agent_id": "echo", "tenant": "acme"}).to_string(),
        good.to_string(),
        json!({"session_id": "s", "agent_id": "echo", "input": 1}).to_string(),
    ];
    let ran = over(&api, &lines.join("\n"), &["enqueue", "--file", "-", "--print-ids"]).await;
    assert_eq!(ran.code, 3, "{ran:?}");
    assert_eq!(ran.out.lines().count(), 2, "{ran:?}");
    for part in [
        "2 jobs accepted, 1 accepted before, 3 lines refused",
        "line 2: ",
        "pool: got",
        "line 4: tenant: got",
    ] {
        assert!(ran.err.contains(part), "{part}: {ran:?}");
    }
    // As from the ledger: each is accepted or refused for the same reason.
    let ran = fleet.producer_with_input(&lines.join("\n"), &["enqueue", "--file", "-"]).await;
    assert!(ran.err.contains("line 2: "), "{ran:?}");
    let refused =
        over(&api, "", &["enqueue", "--session", "s", "--agent", "echo", "--pool", "nowhere"]).await;
    assert_eq!((refused.code, refused.out.as_str()), (2, ""), "{refused:?}");
    assert!(refused.err.contains("not accepted: pool: got \"nowhere\""), "{refused:?}");
}

#[tokio::test]
async fn a_door_that_is_killed_while_lines_are_sent_loses_and_doubles_nothing() {
    let fleet = Fleet::new().await;
    let door = fleet.door("door").start().await;
    let url = Api::of(&door).await.base().to_owned();
    let lines: Vec<String> =
        (0..JOBS).map(|n| json!({"session_id": "s", "agent_id": "echo", "input": n}).to_string()).collect();
    let enqueuing = async {
        let settings = [("HARNESS_URL", url.as_str())];
        over(&settings, &lines.join("\n"), &["enqueue", "--file", "-", "--print-ids"]).await
    };
    let ran = survives_a_kill(&fleet, door, enqueuing).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    let inputs = fleet.database.texts("SELECT message ->> 'input' FROM harness_jobs ORDER BY seq").await;
    assert!(inputs.iter().cloned().eq((0..JOBS).map(|n| n.to_string())), "another order, or other jobs");
    let summary = ran.err.lines().find(|line| line.contains("jobs accepted")).expect("a summary");
    assert!(summary.contains(" 0 lines refused"), "{summary}");
}

#[tokio::test]
async fn a_profile_has_the_address_and_the_key() {
    let fleet = Fleet::new().await;
    let (_door, url, key) = door(&fleet).await;
    let folder = fleet.folder.path().join("harness-fleet");
    std::fs::create_dir(&folder).expect("a folder");
    let profiles =
        format!("[profiles.here]\nurl = \"{url}\"\nkey_file = \"key\"\n[profiles.open]\nurl = \"{url}\"\n");
    std::fs::write(folder.join("profiles.toml"), profiles).expect("written");
    std::fs::write(folder.join("key"), format!("{key}\n")).expect("written");
    let config = fleet.folder.path().to_string_lossy().into_owned();
    let jobs = async |settings: &[(&str, &str)], arguments: &[&str]| {
        let settings = [&[("XDG_CONFIG_HOME", config.as_str())], settings].concat();
        over(&settings, "", &[&["jobs"], arguments].concat()).await
    };
    assert_eq!(jobs(&[], &["--profile", "here"]).await.code, 0);
    assert_eq!(jobs(&[("HARNESS_PROFILE", "here")], &[]).await.code, 0);
    let keyless = jobs(&[], &["--profile", "open"]).await;
    assert!(keyless.code == 1 && keyless.err.contains("expected a key of this fleet"), "{keyless:?}");
    assert_eq!(jobs(&[("HARNESS_API_KEY", &key)], &["--profile", "open"]).await.code, 0);
    let unknown = jobs(&[], &["--profile", "there"]).await;
    assert!(
        unknown.code == 2 && unknown.err.contains("no [profiles.there], there is here, open"),
        "{unknown:?}"
    );
    // A wrong setting is named, and shows no key.
    let wrong = jobs(&[("HARNESS_URL", &url), ("HARNESS_API_KEY", "hfk secret")], &[]).await;
    assert!(
        wrong.code == 2 && wrong.err.contains("HARNESS_API_KEY") && !wrong.err.contains("secret"),
        "{wrong:?}"
    );
    // What the API does not have says so.
    let moved = ["dead", "redrive", "--all", "--yes", "--to-pool", "other"];
    for arguments in [&moved[..], &["dead", "list", "--kind", "message"]] {
        let ran = over(&[("HARNESS_URL", url.as_str())], "", arguments).await;
        assert!(ran.code == 2 && ran.err.contains("DATABASE_URL"), "{ran:?}");
    }
}
