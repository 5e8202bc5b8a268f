//! MCP servers: how long they live, what of them a model sees, and what they are given.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tools::{Content, Ended, OpenError, Redaction, Repeat, Toolbox, ToolsConfig};

use crate::support::{Bench, build, processes_of, within};

impl Bench {
    /// Opens a toolbox with the server of faults; `more` are further lines of its table.
    pub async fn server(&self, start: &str, more: &str) -> Toolbox {
        self.open(&self.server_table(start, more)).await
    }

    pub fn server_table(&self, start: &str, more: &str) -> String {
        let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/toolbox/server.py");
        format!("[mcp.s]\ncommand = ['/usr/bin/python3', '{program}', '{start}']\n{more}")
    }

    /// Calls a tool of the server, which must succeed.
    pub async fn ask(&self, toolbox: &Toolbox, tool: &str) -> String {
        let output = self.call(toolbox, &format!("s__{tool}"), "{}").await;
        assert!(!output.is_error, "{tool}: {output:?}");
        output.text()
    }

    /// Why a server cannot be used.
    pub async fn refusal(&self, table: &str) -> String {
        let config: ToolsConfig = toml::from_str(table).unwrap();
        match Toolbox::open(&build(config).unwrap(), &self.place()).await {
            Err(OpenError::Server { server, problem }) => format!("{server}: {problem}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("opened"),
        }
    }
}

#[tokio::test]
async fn a_server_has_the_workspace_the_key_and_nothing_of_the_worker() {
    let bench = Bench::new();
    let toolbox = bench.server("well", "").await;
    let output = bench.call(&toolbox, "s__echo", r#"{"n": 7}"#).await;
    let said: Value = serde_json::from_str(&output.text()).unwrap();
    let key = bench.key("call_1");
    let expected = json!({"arguments": {"n": 7}, "key": key.as_str(), "cwd": bench.workspace().to_str(),
        "job": bench.job.to_string(), "leaked": false});
    assert_eq!(said, expected);
    let output = bench.call(&toolbox, "s__echo", r#"{"n": "seven"}"#).await;
    assert!(output.ended == Ended::BadInput && output.text().contains("n: \"seven\""), "{output:?}");
    toolbox.close().await;
    bench.nothing_is_left().await;
}

#[tokio::test]
async fn a_number_reaches_a_server_over_pipes_as_the_model_wrote_it() {
    let bench = Bench::new();
    let toolbox = bench.server("well", "").await;
    let input = "{\n  \"n\": 12345678901234567890123,\r\n  \"text\": \"two\\nlines\"\n}";
    let output = bench.call(&toolbox, "s__echo", input).await;
    let said = output.text();
    assert!(said.contains(r#""n": 12345678901234567890123, "text": "two\nlines""#), "{said}");
    let output = bench.call(&toolbox, "s__echo", "").await;
    assert!(output.text().contains(r#""arguments": {}"#), "{output:?}");
    toolbox.close().await;
    bench.nothing_is_left().await;
}

#[tokio::test]
async fn the_gateways_token_is_given_to_commands_and_to_servers_that_may_call_models() {
    let bench = Bench::new();
    let mut place = bench.place();
    place.env.extend([("HARNESS_GATEWAY_TOKEN".into(), "t".into()), ("OPENAI_API_KEY".into(), "t".into())]);
    let program = bench.python(
        "p",
        "message = json.loads(sys.stdin.readline())\nfound = sorted(name for name, value in os.environ.items() if value == 't')\n\
         print(json.dumps(dict(jsonrpc='2.0', id=message.get('id'), error=dict(code=-1, message=str(found)))), flush=True)\n\
         sys.stdin.read()",
    );
    for (gateway, said) in [(false, "[]"), (true, "['HARNESS_GATEWAY_TOKEN', 'OPENAI_API_KEY']")] {
        let table = format!("[mcp.s]\ncommand = ['{program}']\ngateway = {gateway}");
        let toolset = build(toml::from_str(&table).unwrap()).unwrap();
        let error = Toolbox::open(&toolset, &place).await.err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
    let table = format!("[tools.run]\ncommand = ['{program}']\ndescription = 'x'");
    let toolbox = Toolbox::open(&build(toml::from_str(&table).unwrap()).unwrap(), &place).await.unwrap();
    assert!(bench.call(&toolbox, "run", "{}").await.text().contains("HARNESS_GATEWAY_TOKEN"));
}

#[tokio::test]
async fn only_what_is_allowed_and_what_providers_take_is_offered() {
    let bench = Bench::new();
    let more = "allow = ['echo', 'c*', 'dot.ted', 'refers', 'x*', 'nothing']\nsafe = ['count']\napprove = ['e*']\n\
                side_by_side = ['count']";
    let table = bench.server_table("well", more);
    let toolbox = bench.open(&table).await;
    let names: Vec<&str> = toolbox.tools().iter().map(|tool| tool.name.as_str()).collect();
    assert_eq!(names, ["s__cancelled", "s__change", "s__child", "s__count", "s__dot_ted", "s__echo"]);
    let [.., count, _, echo] = toolbox.tools() else { panic!() };
    assert_eq!((count.repeat, count.side_by_side, count.approve), (Repeat::Safe, true, false));
    assert_eq!((echo.repeat, echo.side_by_side, echo.approve), (Repeat::Unsafe, false, true));
    assert_eq!(echo.description, "Does echo.");
    assert_eq!(bench.ask(&toolbox, "dot_ted").await, "dotted");
    assert_eq!(bench.call(&toolbox, "s__die", "{}").await.ended, Ended::Unknown);
    toolbox.close().await;
    let toolset = build(toml::from_str(&table).unwrap()).unwrap();
    let [checked] = &toolset.check(&bench.place()).await[..] else { panic!("one server") };
    let (tools, left_out) = checked.found.as_ref().unwrap();
    assert_eq!(tools.len(), 6);
    for (at, said) in
        ["\"refers\" is left out: its input schema: ", "\"xxx", "\"nothing\", which `allow` names"]
            .into_iter()
            .enumerate()
    {
        assert!(left_out[at].contains(said), "{left_out:?}");
    }
    assert!(left_out[0].contains("http://127.0.0.1:9/schema"));
}

#[tokio::test]
async fn a_clash_of_names_leaves_the_servers_tool_out_and_is_named() {
    let bench = Bench::new();
    let table = format!(
        "[tools.s__echo]\ncommand = ['echo', 'mine']\ndescription = 'Mine.'\n{}",
        bench.server_table("well", "allow = ['echo', 'count']")
    );
    let toolbox = bench.open(&table).await;
    assert_eq!(bench.ask(&toolbox, "echo").await, "mine\n");
    toolbox.close().await;
    let toolset = build(toml::from_str(&table).unwrap()).unwrap();
    let own: Vec<String> = toolset.own_tools().into_iter().map(|tool| tool.name).collect();
    assert_eq!(own, ["s__echo"]);
    let (tools, left_out) = toolset.check(&bench.place()).await.remove(0).found.unwrap();
    assert_eq!(tools.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), ["s__count"]);
    assert_eq!(left_out, ["its tool s__echo is left out: another has this name"]);
    let clash = "files = true\n[tools.read_file]\ncommand = ['true']\ndescription = 'x'\n[mcp.'a b']\ncommand = ['true']";
    let errors = build(toml::from_str(clash).unwrap()).err().unwrap();
    let settings: Vec<&str> = errors.iter().map(|error| error.setting.as_str()).collect();
    assert_eq!(settings, ["tools.read_file", "mcp.a b"]);
}

#[tokio::test]
async fn a_server_of_an_attempt_dies_with_it_and_the_next_attempt_is_told() {
    let bench = Bench::new();
    let toolbox = bench.server("well", "").await;
    assert_eq!(
        (bench.ask(&toolbox, "count").await, bench.ask(&toolbox, "count").await),
        ("1".into(), "2".into())
    );
    assert_eq!(toolbox.notices(), [""; 0]);
    bench.ask(&toolbox, "child").await;
    assert_eq!(processes_of(bench.job).len(), 2);
    toolbox.close().await;
    bench.nothing_is_left().await;
    let toolset = build(toml::from_str(&bench.server_table("well", "")).unwrap()).unwrap();
    let place = tools::Place { resumed: true, ..bench.place() };
    let toolbox = Toolbox::open(&toolset, &place).await.unwrap();
    let notices = toolbox.notices();
    assert!(
        notices.len() == 1 && notices[0].starts_with("The MCP server s has started anew."),
        "{notices:?}"
    );
    assert_eq!(toolbox.notices(), [""; 0]);
    assert_eq!(bench.ask(&toolbox, "count").await, "1");
    // An attempt that is dropped, as when its lease is lost, takes it with it as well.
    bench.ask(&toolbox, "child").await;
    drop(toolbox);
    bench.nothing_is_left().await;
}

#[tokio::test]
async fn a_server_that_stays_after_its_stdin_is_closed_is_killed() {
    let bench = Bench::new();
    let toolbox = bench.server("stays", "stop_grace_ms = 100").await;
    toolbox.close().await;
    bench.nothing_is_left().await;
}

#[tokio::test]
async fn a_server_of_the_worker_serves_all_attempts_and_knows_no_session() {
    let bench = Bench::new();
    let table = bench.server_table("well", "scope = 'worker'\nenv.MARK = 'worker-scope'");
    let toolset = build(toml::from_str(&table).unwrap()).unwrap();
    let (first, resumed) = (bench.place(), tools::Place { resumed: true, ..bench.place() });
    let (one, other) = tokio::join!(Toolbox::open(&toolset, &first), Toolbox::open(&toolset, &resumed));
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!((bench.ask(&one, "count").await, bench.ask(&other, "count").await), ("1".into(), "2".into()));
    let said: Value = serde_json::from_str(&bench.ask(&one, "echo").await).unwrap();
    assert!(said["job"].is_null() && said["cwd"] != bench.workspace().to_str().unwrap(), "{said}");
    one.close().await;
    assert_eq!(bench.ask(&other, "count").await, "3");
    assert_eq!(other.notices(), [""; 0]);
    let died = bench.call(&other, "s__die", "{}").await;
    assert!(died.ended == Ended::Broken && died.text().contains("may have taken effect"), "{died:?}");
    assert_eq!(bench.ask(&other, "count").await, "1");
    assert!(other.notices()[0].contains("has started anew"));
    toolset.close().await;
}

#[tokio::test]
async fn what_a_server_says_of_itself_is_redacted_as_its_outputs_are() {
    let mut bench = Bench::new();
    let pattern = regex::Regex::new("Does e[a-z]+|like this|fresh|no configuration|seven[a-z]*").unwrap();
    bench.redaction = Arc::new(Redaction::new(vec![pattern], vec![]));
    let toolbox = bench.server("well", "").await;
    let echo = toolbox.tools().iter().find(|tool| tool.name == "s__echo").unwrap();
    assert_eq!(echo.description, "[redacted].");
    let wrong = bench.call(&toolbox, "s__wrong", "{}").await;
    assert!(wrong.text().contains("not \u{fffd} [redacted]"), "{wrong:?}");
    for (name, input) in [("s__echo", r#"{"n": "seventeen"}"#), ("s__seventeen", "{}")] {
        let refused = bench.call(&toolbox, name, input).await;
        assert!(refused.text().contains("[redacted]") && !refused.text().contains("seven"), "{refused:?}");
    }
    bench.ask(&toolbox, "change").await;
    let mut notices = toolbox.notices();
    while notices.is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
        notices = toolbox.notices();
    }
    assert!(notices[0].contains("new: [redacted]"), "{notices:?}");
    toolbox.close().await;
    let refusal = bench.refusal(&bench.server_table("dies", "")).await;
    assert!(refusal.contains("I have [redacted]"), "{refusal}");
}

#[tokio::test]
async fn pictures_are_shown_and_what_cannot_be_is_kept_in_a_file() {
    let bench = Bench::new();
    let toolbox = bench.server("well", "").await;
    let output = bench.call(&toolbox, "s__picture", "{}").await;
    let [Content::Text(text), Content::Image { media_type, data }] = output.content.as_slice() else {
        panic!("{output:?}")
    };
    assert_eq!((media_type.as_str(), data.as_str()), ("image/png", "iVBORw0KGgo="));
    let key = bench.key("call_1");
    let said = format!("\"image/x-odd\", 5 bytes, is in the file .harness/output/{}-1", key.as_str());
    assert!(text.contains(&said), "{text}");
    assert!(text.contains("its data is no base64"), "{text}");
    assert_eq!(std::fs::read(bench.kept("call_1-1")).unwrap(), b"hello");
    assert_eq!(bench.ask(&toolbox, "structured").await, r#"{"n":1}"#);
    toolbox.close().await;
}

#[tokio::test]
async fn a_server_is_in_the_sandbox_of_its_agent() {
    let bench = Bench::new();
    let secret = bench.dir.path().join("secret");
    std::fs::write(&secret, "hunter2").unwrap();
    // It answers with what it finds.
    let program = bench.python(
        "p",
        "message = json.loads(sys.stdin.readline())\ntry: found = open(os.environ['SECRET']).read()\n\
         except OSError as error: found = str(error)\n\
         print(json.dumps(dict(jsonrpc='2.0', id=message['id'], error=dict(code=-1, message=found))), flush=True)\n\
         sys.stdin.read()",
    );
    for (files, said) in [("all", "hunter2"), ("workspace", "Permission denied")] {
        let table = format!(
            "sandbox.files = '{files}'\n[mcp.s]\ncommand = ['{program}']\nenv.SECRET = '{}'",
            secret.display()
        );
        let refusal = bench.refusal(&table).await;
        assert!(refusal.contains(said), "{files}: {refusal}");
    }
}

#[tokio::test]
async fn a_killed_worker_leaves_no_process_of_a_server() {
    // The next test is the worker; it is killed while its server has a child.
    let bench = Bench::new();
    let mut worker = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "servers::worker_to_be_killed", "--ignored", "--nocapture"])
        .env("TEST_JOB_ID", bench.job.to_string())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    within("a server and its child run", || processes_of(bench.job).len() == 3).await;
    worker.kill().unwrap();
    worker.wait().unwrap();
    bench.nothing_is_left().await;
}

#[tokio::test]
#[ignore = "the process that the test before kills"]
async fn worker_to_be_killed() {
    let Ok(job) = std::env::var("TEST_JOB_ID") else { return };
    let bench = Bench { job: job.parse().unwrap(), ..Bench::new() };
    let table = format!(
        "[tools.run]\ncommand = ['sleep', '600']\ndescription = 'x'\n{}",
        bench.server_table("stays", "")
    );
    let toolbox = bench.open(&table).await;
    bench.ask(&toolbox, "child").await;
    let ended = tokio::time::timeout(Duration::from_secs(60), bench.call(&toolbox, "run", "{}")).await;
    panic!("ended: {ended:?}");
}
