//! `worker run`: one job of an agent on the terminal, with nothing but the provider of its models.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use job::Usd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::provider::{Fault, PROVIDER_KEY, Provider, Script};
use tests::{Ran, binary, until};

const SCRIPT: &str = r#"{"plays": {
    "orders": [{"text": "I look it up.", "tools": [{"name": "order", "input": {"number": 7e0}}]},
               {"text": "It is shipped."}],
    "sleeps": [{"tools": [{"name": "sleep", "input": {}}]}, {"text": "Rested."}],
    "pays": [{"tools": [{"name": "pay", "input": {"amount": 12.50}}]}, {"text": "It is paid."}],
    "long": [{"text": "one two three four five six seven eight nine ten", "fault": {"stalls_after": 5}}]}}"#;

/// A folder with agents, and a provider of models.
struct Place {
    folder: TempDir,
    provider: Provider,
}

impl Place {
    async fn new() -> Place {
        let folder = TempDir::new().expect("a folder");
        let provider = Provider::playing(Script::parse(SCRIPT).expect("a script")).await;
        let agents = format!(
            r#"
            [agents.clerk]
            harness = "agent"
            models = ["claude-opus-5-5"]
            max_output_tokens = 200
            [agents.clerk.sandbox]
            level = "off"
            [agents.clerk.tools.order]
            command = ["/bin/sh", "-c", "cat > input; echo shipped"]
            description = "Looks an order up."
            input_schema = {{ type = "object" }}
            [agents.clerk.tools.sleep]
            command = ["/bin/sh", "-c", "echo $$ > {0}/pid.new; mv {0}/pid.new {0}/pid; sleep 600"]
            description = "Sleeps."
            [agents.clerk.tools.pay]
            command = ["/bin/sh", "-c", "cat >> {0}/payments"]
            description = "Pays."
            input_schema = {{ type = "object" }}
            approve = true
            "#,
            folder.path().display()
        );
        std::fs::write(folder.path().join("agents.toml"), agents).expect("written");
        Place { folder, provider }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Adds what a run needs to a command: no address of Postgres or RabbitMQ is among it.
    fn prepare(&self, command: &mut Command) {
        command.env_clear().current_dir(self.path());
        command.env("PATH", std::env::var("PATH").unwrap_or_default());
        command.env("AGENTS_FILE", "agents.toml").env("ANTHROPIC_API_KEY", PROVIDER_KEY);
        command.env("ANTHROPIC_BASE_URL", self.provider.base_url()).env("USAGE_DRAIN_S", "1");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("worker"));
        command.arg("run").args(arguments);
        self.prepare(&mut command);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments), "").await
    }

    fn bill(&self) -> Usd {
        Usd::from_micros(self.provider.bill_micros())
    }
}

#[tokio::test]
async fn an_agent_with_tools_runs_on_the_terminal_and_says_what_it_has_cost() {
    let place = Place::new().await;
    let question = "Where is order 7? play:orders";
    let ran = place.run(&["--agent", "clerk", "--input", question, "--session", "shop"]).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(ran.out, "I look it up.\nIt is shipped.\n");
    for line in [r#"> order {"number": 7e0}"#, "< order done: shipped", "succeeded in "] {
        assert!(ran.err.contains(line), "{line}: {ran:?}");
    }
    assert!(place.bill() > Usd::ZERO && ran.err.trim_end().ends_with(&place.bill().to_string()), "{ran:?}");
    assert!(ran.err.contains("2 iterations"), "{ran:?}");
    let input = std::fs::read_to_string(place.path().join("workspaces/shop/input")).expect("the tool's file");
    assert_eq!(input, r#"{"number": 7e0}"#);
    assert!(place.provider.findings().is_empty(), "{:?}", place.provider.findings());

    let before = place.provider.bill_micros();
    let ran = place.run(&["--agent", "clerk", "--input", question, "--json"]).await;
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{ran:?}");
    let [result] = &ran.json()[..] else { panic!("one object: {ran:?}") };
    let cost = Usd::from_micros(place.provider.bill_micros() - before);
    assert_eq!(result["cost_usd"], json!(cost));
    assert!(result["input_tokens"].as_u64() > Some(0) && result["output_tokens"].as_u64() > Some(0));
    let told = ["state", "output", "agent_id", "iterations"].map(|name| result[name].clone());
    assert_eq!(told, [json!("succeeded"), json!("It is shipped."), json!("clerk"), json!(2)]);
}

#[tokio::test]
async fn an_input_is_json_a_text_a_file_or_stdin() {
    let place = Place::new().await;
    std::fs::write(place.path().join("agents.toml"), "[agents.echo]\nharness = \"echo\"").expect("written");
    std::fs::write(place.path().join("input.txt"), "line one\nline two\n").expect("written");
    for (input, stdin, out) in [
        (r#"{"n": 1e5}"#, "", "{\"n\": 1e5}\n"),
        ("Where is it?", "", "Where is it?\n"),
        ("@input.txt", "", "line one\nline two\n"),
        ("-", "[1.50]\n", "[1.50]\n"),
    ] {
        let ran = Ran::of(place.command(&["--agent", "echo", "--input", input]), stdin).await;
        assert_eq!((ran.code, ran.out.as_str()), (0, out), "{input}: {ran:?}");
        assert!(ran.err.contains("succeeded in") && ran.err.contains("$0.000000"), "{ran:?}");
    }
}

#[tokio::test]
async fn wrong_arguments_are_named_with_what_would_be_right() {
    let place = Place::new().await;
    for (arguments, said) in [
        (
            &["--agent", "nobody", "--input", "x"][..],
            "--agent: got \"nobody\", expected one of the file's agents: clerk",
        ),
        (&["--agent", "clerk", "--input", "{broken"], "--input: not JSON"),
        (&["--agent", "clerk", "--input", "@none"], "--input: none cannot be read"),
        (&["--agent", "clerk", "--input", "x", "--max-cost-usd", "much"], "--max-cost-usd: got \"much\""),
        (&["--agent", "clerk", "--input", "x", "--max-iterations", "0"], "--max-iterations: got 0"),
        (&["--agent", "clerk", "--input", "x", "--max-tokens", "1.5"], "--max-tokens: got \"1.5\""),
        (&["--agent", "clerk", "--input", "x", "--agents", "none.toml"], "none.toml cannot be read"),
        (&["--agent", "clerk"], "--input"),
    ] {
        let ran = place.run(arguments).await;
        assert!(ran.code == 2 && ran.err.contains(said), "{arguments:?}: {ran:?}");
    }
    let mut without_key = place.command(&["--agent", "clerk", "--input", "x"]);
    without_key.env_remove("ANTHROPIC_API_KEY");
    let ran = Ran::of(without_key, "").await;
    assert!(ran.code == 2 && ran.err.contains("ANTHROPIC_API_KEY: not set"), "{ran:?}");
    assert!(place.provider.asked().is_empty());
    let help = place.run(&["--help"]).await;
    assert!(
        help.code == 0 && help.out.contains("worker run --agents agents.toml --agent helper"),
        "{help:?}"
    );
}

#[tokio::test]
async fn a_limit_of_cost_is_hard_and_a_job_s_limits_hold_as_in_a_fleet() {
    let place = Place::new().await;
    let job = ["--agent", "clerk", "--input", "play:orders"];
    let ran = place.run(&[&job[..], &["--max-cost-usd", "0.000001"]].concat()).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.err.contains("budget_exhausted: the limit of $0.000001 (--max-cost-usd) is spent"),
        "{ran:?}"
    );
    assert!(ran.err.trim_end().ends_with("$0.000000"), "{ran:?}");
    assert_eq!(place.bill(), Usd::ZERO, "nothing was sent that the limit has no room for");
    let ran = place.run(&[&job[..], &["--max-iterations", "1", "--json"]].concat()).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    let result = &ran.json()[0];
    assert_eq!(
        (&result["state"], &result["failure"]["code"]),
        (&json!("failed"), &json!("budget_exhausted"))
    );
    assert!(result["failure"]["message"].as_str().is_some_and(|said| said.contains("max_iterations = 1")));
    assert_eq!(result["cost_usd"], json!(place.bill()), "one answer was paid");
}

/// Is refused what costs more than the run may, buys something smaller, and fails all the same.
const BUYER: &str = r#"
import json, os, urllib.error, urllib.request

def reserve(most):
    body = json.dumps({"what": "search", "max_cost_usd": most}).encode()
    headers = {"x-api-key": os.environ["HARNESS_GATEWAY_TOKEN"], "content-type": "application/json"}
    return urllib.request.urlopen(urllib.request.Request(os.environ["HARNESS_GATEWAY_URL"] + "/reserve", body, headers))

try:
    reserve("0.90")
except urllib.error.HTTPError as refused:
    assert refused.code == 402, refused
    reserve("0.10")
    raise SystemExit("there was no money for the large one")
"#;

#[tokio::test]
async fn a_program_that_fails_by_a_refusal_has_spent_its_budget_whatever_it_has_bought_since() {
    let place = Place::new().await;
    let program = place.path().join("buyer.py");
    std::fs::write(&program, BUYER).expect("written");
    let buyer = format!(
        "[agents.buyer]\nharness = \"command\"\ncommand = [\"python3\", {program:?}]\n\
         models = [\"claude-opus-5-5\"]\n"
    );
    std::fs::write(place.path().join("agents.toml"), buyer).expect("written");
    let ran = place.run(&["--agent", "buyer", "--input", "1", "--max-cost-usd", "0.5"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(
        ran.err.contains("budget_exhausted: the limit of $0.500000 (--max-cost-usd) is spent"),
        "{ran:?}"
    );
    assert!(ran.err.contains("$0.100000, of which $0.100000 is not known"), "{ran:?}");
}

#[tokio::test]
async fn a_provider_that_refuses_fails_the_run_with_the_code_of_a_fleet() {
    let place = Place::new().await;
    place.provider.fault(Fault::Refuses(400));
    let ran = place.run(&["--agent", "clerk", "--input", "Hello."]).await;
    assert!(ran.code == 1 && ran.err.contains("provider_refused: claude-opus-5-5: 400"), "{ran:?}");
}

/// Waits for a line of a process, on one of its pipes.
async fn said(pipe: impl Read + Send + 'static, text: &'static str) -> String {
    let read = tokio::task::spawn_blocking(move || {
        let mut all = String::new();
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            all += &line;
            all.push('\n');
        }
        all
    });
    let all = tokio::time::timeout(Duration::from_secs(60), read).await.expect("it ends").expect("read");
    assert!(all.contains(text), "no {text} in {all}");
    all
}

#[tokio::test]
async fn an_interrupted_run_ends_its_tools_and_still_says_what_it_has_cost() {
    let place = Place::new().await;
    let mut command = place.command(&["--agent", "clerk", "--input", "play:sleeps"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("started");
    let pid_file = place.path().join("pid");
    let tool = until("the tool runs", async || std::fs::read_to_string(&pid_file).ok()).await;
    let tool = Path::new("/proc").join(tool.trim());
    assert!(tool.exists());
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("a process of ours");
    let stderr = said(child.stderr.take().expect("its stderr"), "cancelled in ").await;
    assert_eq!(child.wait().expect("a status").code(), Some(130), "{stderr}");
    assert!(stderr.trim_end().ends_with(&place.bill().to_string()), "{stderr}");
    until("the tool is gone", async || (!tool.exists()).then_some(())).await;
}

#[tokio::test]
async fn a_call_that_is_interrupted_counts_in_full() {
    let place = Place::new().await;
    let mut command = place.command(&["--agent", "clerk", "--input", "play:long"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    until("the answer stalls", async || (place.provider.hung() > 0).then_some(())).await;
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).expect("a process of ours");
    let stderr = said(child.stderr.take().expect("its stderr"), "is not known and counted in full").await;
    assert_eq!(child.wait().expect("a status").code(), Some(130), "{stderr}");
    let cost = stderr.rsplit_once("written, $").map(|(_, rest)| rest.split(',').next().unwrap_or_default());
    let cost: Usd = cost.expect("a cost").parse().expect("dollars");
    assert!(cost >= place.bill() && place.bill() > Usd::ZERO, "{stderr}");
}

#[tokio::test]
async fn what_needs_an_approval_fails_without_a_terminal_and_says_what_was_asked() {
    let place = Place::new().await;
    let ran = place.run(&["--agent", "clerk", "--input", "play:pays"]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    for part in ["asks a person (approval", r#""tool":"pay""#, "12.50", "expected a terminal"] {
        assert!(ran.err.contains(part), "{part}: {ran:?}");
    }
    assert!(ran.err.trim_end().ends_with(&place.bill().to_string()), "{ran:?}");
    assert!(!place.path().join("payments").exists(), "nobody has approved it");
}

/// Runs a program on a terminal of its own, and types the answer when it is asked.
const TERMINAL: &str = "
import os, pty, sys
answer, program = sys.argv[1], sys.argv[2:]
pid, fd = pty.fork()
if pid == 0:
    os.execv(program[0], program)
seen, typed = b'', False
while True:
    try:
        data = os.read(fd, 4096)
    except OSError:
        break
    if not data:
        break
    seen += data
    if b'[y/n]' in seen and not typed:
        typed = True
        os.write(fd, answer.encode() + b'\\n')
sys.stdout.write(seen.decode())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";

#[tokio::test]
async fn a_person_at_the_terminal_approves_or_denies_a_call() {
    for (answer, payments) in [("y", Some(r#"{"amount": 12.50}"#)), ("no", None)] {
        let place = Place::new().await;
        let mut command = Command::new("python3");
        command.args(["-c", TERMINAL, answer]).arg(binary("worker"));
        command.args(["run", "--agent", "clerk", "--input", "Pay it. play:pays"]);
        place.prepare(&mut command);
        let ran = Ran::of(command, "").await;
        assert_eq!(ran.code, 0, "{answer}: {ran:?}");
        assert!(ran.out.contains("It is paid.") && ran.out.contains("Is this approved?"), "{ran:?}");
        let paid = std::fs::read_to_string(place.path().join("payments")).ok();
        assert_eq!(paid.as_deref(), payments, "{answer}: {ran:?}");
        let asked = place.provider.asked();
        let told = asked.last().map(|asked| String::from_utf8_lossy(&asked.body).into_owned());
        let denied = told.unwrap_or_default().contains("has not approved this call");
        assert_eq!(denied, payments.is_none(), "{answer}");
        let last: Option<Value> = asked.last().and_then(|asked| serde_json::from_slice(&asked.body).ok());
        assert!(
            last.is_some_and(|request| request["messages"].as_array().is_some_and(|list| list.len() == 3))
        );
    }
}
