//! `worker agents check`: what is right and wrong in a file of agents is said line by line, before a worker
//! starts.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;
use tests::{Ran, binary};

/// A server of tools in Python, which offers two. Told so, it calls a model first.
const SERVER: &str = r#"
import json, os, sys, urllib.request, urllib.error
if "calls" in sys.argv:
    body = {"model": "claude-opus-5-5", "max_tokens": 9, "messages": [{"role": "user", "content": "Hello."}]}
    headers = {"content-type": "application/json", "x-api-key": os.environ["ANTHROPIC_API_KEY"]}
    url = os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages"
    try:
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers))
        sys.exit("it was answered")
    except urllib.error.HTTPError as error:
        if error.code not in (402, 403):
            raise
for line in sys.stdin:
    message = json.loads(line)
    method, id = message.get("method"), message.get("id")
    if method == "initialize":
        result = {"protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "s", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("find", "buy")]}
    elif id is None:
        continue
    else:
        result = {}
    print(json.dumps({"jsonrpc": "2.0", "id": id, "result": result}), flush=True)
"#;

fn table(folder: &Path) -> String {
    let server = folder.join("server.py");
    std::fs::write(&server, SERVER).expect("written");
    format!(
        r#"
        [agents.echo]
        harness = "echo"
        [agents.clerk]
        harness = "agent"
        models = ["claude-opus-5-5"]
        files = {{ write = false }}
        sandbox = {{ network = "gateway" }}
        [agents.clerk.tools.order]
        command = ["true"]
        description = "Looks an order up."
        repeat = "safe"
        [agents.clerk.mcp.shop]
        command = ["python3", {:?}]
        approve = ["buy"]
        [agents.clerk.mcp.summary]
        command = ["python3", {:?}, "calls"]
        gateway = true
        "#,
        server, server
    )
}

async fn check(folder: &Path, table: &str, arguments: &[&str]) -> Ran {
    let file = folder.join("agents.toml");
    std::fs::write(&file, table).expect("written");
    let mut command = Command::new(binary("worker"));
    command.args(["agents", "check"]).arg(file).args(arguments).env_clear().current_dir(folder);
    command.env("PATH", std::env::var("PATH").unwrap_or_default());
    Ran::of(command, "").await
}

fn has(ran: &Ran, word: &str, place: &str, what: &str) {
    let is = |line: &&str| line.starts_with(word) && line.contains(place) && line.contains(what);
    assert!(ran.out.lines().any(|line| is(&line)), "no line {word} {place} {what}: {ran:?}");
}

#[tokio::test]
async fn a_file_that_is_right_has_a_line_for_each_agent_model_tool_and_server() {
    let folder = TempDir::new().expect("a folder");
    let table = table(folder.path());
    let ran = check(folder.path(), &table, &[]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    for (word, place, what) in [
        ("note", "this machine: ", "kernel"),
        ("ok", "agents.echo: ", "harness echo"),
        ("ok", "agents.clerk: ", "harness agent"),
        ("note", "agents.clerk.sandbox: ", "no Unix sockets"),
        ("ok", "agents.clerk.models[0]: ", "claude-opus-5-5, billed by anthropic"),
        ("note", "agents.clerk.models[0]: ", "ANTHROPIC_API_KEY is not set here"),
        ("ok", "agents.clerk: tool order: ", "safe to repeat"),
        ("ok", "agents.clerk: tool read_file: ", "safe to repeat"),
        ("ok", "agents.clerk.mcp.shop: ", "2 tools"),
        ("ok", "agents.clerk.mcp.shop: tool shop__buy: ", "a person approves"),
        ("ok", "agents.clerk.mcp.summary: ", "2 tools"),
    ] {
        has(&ran, word, place, what);
    }
    let ran = check(folder.path(), &table, &["--offline"]).await;
    assert!(ran.code == 0 && !ran.out.contains("shop__buy"), "{ran:?}");
    has(&ran, "note", "agents.clerk.mcp.shop: ", "not started (--offline)");
}

#[tokio::test]
async fn each_mistake_has_a_line_that_says_what_would_be_right() {
    let folder = TempDir::new().expect("a folder");
    let table = table(folder.path())
        + r#"
        [agents.typo]
        harness = "ecko"
        [agents.dear]
        harness = "agent"
        models = ["claude-imaginary-9"]
        [agents.schema]
        harness = "agent"
        models = ["claude-opus-5-5"]
        output_schema = { type = 7 }
        [agents.gone]
        harness = "command"
        command = ["/no/such/program"]
        [agents.server]
        harness = "agent"
        models = ["claude-opus-5-5"]
        [agents.server.mcp.dead]
        command = ["false"]
        [agents.server.mcp.less]
        command = ["python3", "SERVER"]
        allow = ["find", "sell"]
        "#;
    let table = table.replace("SERVER", &folder.path().join("server.py").to_string_lossy());
    let ran = check(folder.path(), &table, &[]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    for (place, what) in [
        ("agents.typo.harness", "expected one of echo, scripted, command, http, agent"),
        ("agents.dear.models[0]", "`claude-imaginary-9` has no price: add it to PRICES_FILE"),
        ("agents.schema.output_schema", "expected a valid JSON schema"),
        ("agents.gone.command[0]", "/no/such/program"),
        ("agents.server.mcp.dead", "expected a server that starts"),
        ("agents.server.mcp.less", "it has no tool \"sell\", which `allow` names"),
    ] {
        has(&ran, "wrong", place, what);
    }
    has(&ran, "ok", "agents.server.mcp.less: tool less__find", "");
    has(&ran, "ok", "agents.clerk.mcp.shop: ", "2 tools");
    let ran = check(folder.path(), "[agents", &[]).await;
    assert!(ran.code == 1 && ran.out.contains("wrong file: line 1"), "{ran:?}");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_a_wrong_argument() {
    let mut command = Command::new(binary("worker"));
    command.args(["agents", "check", "/no/such/agents.toml"]).env_clear();
    let ran = Ran::of(command, "").await;
    assert!(ran.code == 2 && ran.err.contains("/no/such/agents.toml cannot be read"), "{ran:?}");
}
