//! Dashboards, rules and alerts query what the programs export, and a real Prometheus finds it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use job::JobSpec;
use serde_json::{Value, json};
use tests::provider::{PROVIDER_KEY, Provider, Script};
use tests::{Api, Fleet, Worker, http, job, until_ok};

/// A pool of processes without any work, and so without any process.
const POOLS: &str = r#"
    [pools.idle]
    target = "process"
    policy.min_replicas = 0
"#;

fn ops(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops").join(path)
}

/// Asks a model once, through the worker's gateway.
const ASKS: &str = r#"#!/usr/bin/env python3
import json, os, sys, urllib.request

json.load(sys.stdin)
body = {"model": "claude-opus-5-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hello"}]}
headers = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01", "content-type": "application/json"}
request = urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", json.dumps(body).encode(), headers)
json.load(urllib.request.urlopen(request))
print(json.dumps({"type": "result"}), flush=True)
"#;

/// What an agent is told that reads until its conversation is too long.
const READS: &str =
    r#"{"plays": {"reads": [{"times": 40, "text": "On.", "tools": [{"name": "page", "input": {}}]}]}}"#;

/// One process of each kind, and a provider of models.
struct Processes {
    fleet: Fleet,
    api: Api,
    _provider: Provider,
    all: Vec<Worker>,
}

impl Processes {
    async fn start() -> Processes {
        let fleet = Fleet::new().await;
        let script = Script::parse(READS).expect("a script");
        let provider = Provider::playing(script).await;
        let agents = format!(
            "[agents.echo]\nharness = \"echo\"\n[agents.scripted]\nharness = \"scripted\"\n[agents.asks]\nharness = \"command\"\n\
             command = [{:?}]\nmodels = [\"claude-opus-5-5\"]\n\
             [agents.reads]\nharness = \"agent\"\nmodels = [\"claude-opus-5-5\"]\ncontext_tokens = 6000\nmax_output_tokens = 200\n\
             [agents.reads.tools.page]\ncommand = [{:?}]\ndescription = \"The next page.\"\n",
            fleet.program("asks", ASKS),
            fleet.program("page", "#!/bin/sh\ncat > /dev/null\nhead -c 4000 /dev/zero | tr '\\0' x\n")
        );
        let file = fleet.folder.path().join("agents.toml");
        std::fs::write(&file, agents).expect("written");
        let worker = fleet.worker("worker").set("AGENTS_FILE", file.display()).set("BUDGET_DAILY", "1000");
        let worker =
            worker.set("ANTHROPIC_API_KEY", PROVIDER_KEY).set("ANTHROPIC_BASE_URL", provider.base_url());
        let worker = worker.start().await;
        let door = fleet.door("door").start().await;
        let api = Api::of(&door).await;
        // A request is measured when it is answered.
        api.get("/v1/dead").await.is(200);
        fleet.producer(&["pools", "line", "default", "on"]).await;
        let relay = fleet.relay("relay").launch();
        let autoscaler = fleet.autoscaler("autoscaler", POOLS).launch();
        for (process, name) in [
            (&relay, "harness_relay_lag_seconds"),
            (&autoscaler, "harness_autoscaler_leader 1"),
            (&door, "harness_http_connections "),
        ] {
            let look = async || match process.get("/metrics").await {
                (200, text) if text.contains(name) => Ok(()),
                other => Err(other),
            };
            until_ok(&format!("{name} is exported"), look).await;
        }
        Processes { fleet, api, _provider: provider, all: vec![worker, door, relay, autoscaler] }
    }

    /// Runs jobs that succeed, then one that costs, one that fails and is retried, one that asks a model and one of a model in a
    /// loop, and a message that is not a job.
    /// At every moment, too few attempts have failed for any alert to fire.
    async fn work(&self) {
        let costly = json!({"iterations": [{"cost_usd": 0.01, "input_tokens": 10, "output_tokens": 5}, {}]});
        let failing = json!({"iterations": [{"fail": {"message": "no", "retryable": true, "attempts": 1}}]});
        let good: Vec<JobSpec> = (0..60).map(|n| job(&format!("good-{n}"), "echo", json!(n))).collect();
        let asking = job("s-3", "asks", json!(null));
        let reading = job("s-4", "reads", json!("Read it. play:reads"));
        let others = [job("s-1", "scripted", costly), job("s-2", "scripted", failing), asking, reading];
        for jobs in [good.as_slice(), &others] {
            self.fleet.enqueue(jobs).await;
            for spec in jobs {
                self.fleet.ended(spec.job_id).await;
            }
        }
        let shows = async || match self.all[2].get("/metrics").await {
            (200, text)
                if ["harness_budget_remaining_usd{", "harness_waiting_jobs{"]
                    .iter()
                    .all(|name| text.contains(name)) =>
            {
                Ok(())
            }
            other => Err(other),
        };
        until_ok("the relay shows a budget and a line", shows).await;
        self.api.get("/v1/dead").await.is(200);
        self.fleet.vhost.publish(vec![(b"no job".to_vec(), Default::default())]).await;
    }

    /// The names of all families that the processes export.
    async fn exported(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        for process in &self.all {
            let (status, text) = process.get("/metrics").await;
            assert_eq!(status, 200);
            let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
            names.extend(families.map(str::to_owned));
        }
        names
    }
}

/// A Prometheus with our rules that scrapes these processes every second.
struct Prometheus {
    process: Child,
    url: String,
}

impl Prometheus {
    async fn watching(processes: &Processes) -> Prometheus {
        let folder = processes.fleet.folder.path().join("prometheus");
        std::fs::create_dir_all(folder.join("targets")).expect("a folder");
        let config = std::fs::read_to_string(ops("prometheus/prometheus.yml")).expect("prometheus.yml");
        let config = config.replace("_interval: 15s", "_interval: 1s");
        std::fs::write(folder.join("prometheus.yml"), config).expect("written");
        std::os::unix::fs::symlink(
            ops("prometheus/rules").canonicalize().expect("rules"),
            folder.join("rules"),
        )
        .expect("a link");
        let mut targets = Vec::new();
        for process in &processes.all {
            targets.push(process.address().await.to_string());
        }
        let targets = serde_json::to_string(&json!([{ "targets": targets }])).expect("JSON");
        std::fs::write(folder.join("targets/fleet.yml"), targets).expect("written");

        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|free| free.local_addr())
            .expect("a port")
            .port();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .arg("--log.level=error")
            .stdin(Stdio::null())
            .spawn()
            .expect("Prometheus (apt-get install prometheus, or ops/dev/tools)");
        let prometheus = Prometheus { process, url: format!("http://127.0.0.1:{port}") };
        let up = async || match prometheus.query(r#"sum(up{job="harness-fleet"})"#) {
            Ok(found) if found == vec![processes.all.len().to_string()] => Ok(()),
            other => Err(other),
        };
        until_ok("Prometheus has asked every process", up).await;
        prometheus
    }

    /// The values that a query returns.
    fn query(&self, expression: &str) -> Result<Vec<String>, String> {
        let encoded: String = expression.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={encoded}"))?;
        let found = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        Ok(found.iter().filter_map(|series| series["value"][1].as_str().map(str::to_owned)).collect())
    }

    /// Its rules as it has read them.
    fn rules(&self) -> Vec<Value> {
        let answer = self.get("/api/v1/rules").expect("rules");
        let groups = answer["data"]["groups"].as_array().cloned().unwrap_or_default();
        groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect()
    }

    fn get(&self, path: &str) -> Result<Value, String> {
        let (status, body) = http::get(&format!("{}{path}", self.url)).map_err(|error| error.to_string())?;
        if status != 200 {
            return Err(body);
        }
        serde_json::from_str(&body).map_err(|error| format!("{error} in {body}"))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The queries of all dashboards, each with its place.
fn panel_queries() -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for file in std::fs::read_dir(ops("grafana/dashboards")).expect("dashboards") {
        let path = file.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("a dashboard");
        let board: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for panel in board["panels"].as_array().expect("panels") {
            for target in panel["targets"].as_array().expect("targets") {
                let place = format!("{}: {}", board["title"], panel["title"]);
                let query = target["expr"].as_str().expect("an expression").replace("$pool", ".*");
                queries.push((place, query));
            }
        }
    }
    assert!(queries.len() > 40, "the dashboards have lost their panels");
    queries
}

/// Our names in a query, and those that every process exports.
fn names(query: &str) -> BTreeSet<&str> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
    let words = query.split(|letter| !is_part(letter));
    words
        .filter(|word| ["harness_", "harness:", "process_"].iter().any(|kind| word.starts_with(kind)))
        .collect()
}

/// A histogram's series have the family's name and a suffix.
fn is_there(name: &str, families: &BTreeSet<String>) -> bool {
    let family = ["_bucket", "_sum", "_count"].iter().find_map(|ending| name.strip_suffix(ending));
    families.contains(name) || family.is_some_and(|family| families.contains(family))
}

#[tokio::test]
async fn every_query_names_what_the_programs_export() {
    let processes = Processes::start().await;
    processes.work().await;
    let prometheus = Prometheus::watching(&processes).await;
    let rules = prometheus.rules();
    let mut families = processes.exported().await;
    families.extend(
        rules
            .iter()
            .filter(|rule| rule["type"] == "recording")
            .filter_map(|rule| Some(rule["name"].as_str()?.to_owned())),
    );

    let mut queries = panel_queries();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    queries.extend(rules.iter().map(|rule| (text(&rule["name"]), text(&rule["query"]))));
    let unknown: Vec<String> = queries
        .iter()
        .flat_map(|(place, query)| names(query).into_iter().map(move |name| (place, name)))
        .filter(|(_, name)| !is_there(name, &families))
        .map(|(place, name)| format!("{place}: {name}"))
        .collect();
    assert!(unknown.is_empty(), "nothing exports these: {unknown:#?}, but these: {families:#?}");
    // A name alone could match by chance.
    let ours = families.iter().filter(|name| name.starts_with("harness")).count();
    assert!(ours > 40, "{families:#?}");
}

#[tokio::test]
async fn a_prometheus_finds_something_for_every_panel_and_nothing_to_wake_anybody() {
    let processes = Processes::start().await;
    let prometheus = Prometheus::watching(&processes).await;
    // Twice, so that counters of events have grown.
    processes.work().await;
    processes.work().await;
    for (place, query) in panel_queries() {
        let look = async || match prometheus.query(&query) {
            Ok(found) if found.is_empty() => Err("nothing found".to_owned()),
            other => other,
        };
        // A filter that finds nothing is not a mistake.
        match query.contains("> 0") {
            true => {
                drop(prometheus.query(&query).unwrap_or_else(|error| panic!("{place}: {query}: {error}")))
            }
            false => drop(until_ok(&format!("{place}: {query}"), look).await),
        }
    }
    for rule in prometheus.rules() {
        assert_eq!(rule["health"], "ok", "{rule:#}");
    }
    // A process that stood still may bring one near for a moment.
    let quiet = async || {
        let mut rules = prometheus.rules();
        rules.retain(|rule| rule["labels"]["severity"] == "page" && rule["state"] != "inactive");
        if rules.is_empty() { Ok(()) } else { Err(rules) }
    };
    until_ok("no page is active", quiet).await;
}

#[test]
fn every_alert_has_its_page_and_every_page_its_alert() {
    let text = std::fs::read_to_string(ops("prometheus/rules/alerts.yml")).expect("alerts.yml");
    let after = |prefix: &'static str| text.lines().filter_map(move |line| line.trim().strip_prefix(prefix));
    let alerts: BTreeSet<String> = after("- alert: ").map(str::to_owned).collect();
    let named: Vec<String> =
        after("runbook: ops/runbooks/").map(|page| page.trim_end_matches(".md").to_owned()).collect();
    let pages = std::fs::read_dir(ops("runbooks")).expect("runbooks");
    let pages = pages.map(|file| file.expect("a file").path());
    let pages: BTreeSet<String> = pages
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
        .filter(|page| page != "README")
        .collect();
    assert_eq!(alerts, pages);
    assert_eq!(named.len(), alerts.len());
    assert_eq!(named.into_iter().collect::<BTreeSet<_>>(), alerts);
}
