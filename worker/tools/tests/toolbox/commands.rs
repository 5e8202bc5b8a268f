//! A command is given its input, ends in time, and leaves nothing running.

use std::sync::Arc;
use std::time::{Duration, Instant};

use regex::Regex;
use tools::{CallError, Ended, Redaction, Repeat, Toolbox, ToolsConfig};

use crate::support::{Bench, build, processes_of, within};

const SCHEMA: &str =
    "input_schema = { type = 'object', required = ['n'], properties = { n = { type = 'integer' } } }";

#[tokio::test]
async fn the_input_is_its_stdin_to_the_letter_and_stdout_the_result() {
    let bench = Bench::new();
    let program =
        bench.sh("p", "cat; echo; echo $HARNESS_CALL_KEY; pwd; env | grep -c CARGO_MANIFEST_DIR; true");
    let toolbox = bench.command(&program, SCHEMA).await;
    let input = r#"{"z": 12345678901234567890123, "n": 1, "e": 1e5 }"#;
    let output = bench.call(&toolbox, "run", input).await;
    let workspace = bench.workspace();
    let key = bench.key("call_1");
    let expected = format!("{input}\n{}\n{}\n0\n", key.as_str(), workspace.display());
    assert_eq!((output.text(), output.ended, output.is_error), (expected, Ended::Done, false));
    bench.nothing_is_left().await;
}

#[tokio::test]
async fn a_call_that_cannot_be_is_answered_and_starts_nothing() {
    let bench = Bench::new();
    let toolbox = bench.command(&bench.sh("p", "touch ran"), SCHEMA).await;
    for (name, input, ended, said) in [
        ("walk", "{}", Ended::Unknown, "There is no tool \"walk\". The tools are: run."),
        ("\0", "{}", Ended::Unknown, "There is no tool \"\u{fffd}\""),
        ("run", "{", Ended::BadInput, "not JSON"),
        ("run", "7", Ended::BadInput, "must be a JSON object"),
        ("run", "{}", Ended::BadInput, "\"n\" is a required property"),
        ("run", r#"{"n": "x"}"#, Ended::BadInput, "n: \"x\" is not of type \"integer\""),
        ("run", r#"{"n": "\u0000"}"#, Ended::BadInput, "\\u0000"),
    ] {
        let output = bench.call(&toolbox, name, input).await;
        assert!(
            output.is_error && output.ended == ended && output.text().contains(said),
            "{name} {input}: {output:?}"
        );
    }
    assert!(!bench.workspace().join("ran").exists());
}

#[tokio::test]
async fn a_failure_has_the_exit_code_the_end_of_stderr_and_what_was_written() {
    let bench = Bench::new();
    let toolbox = bench.command(&bench.sh("p", "echo out; echo wrong >&2; exit 3"), "").await;
    let output = bench.call(&toolbox, "run", "").await;
    assert_eq!(
        output.text(),
        "The tool failed: exit status: 3.\nIts stderr ends with:\nwrong\nIts output:\nout\n"
    );
    assert_eq!((output.ended, output.is_error), (Ended::Failed, true));
    let toolbox = bench.command(&bench.sh("p", "kill -9 $$"), "").await;
    assert!(bench.call(&toolbox, "run", "{}").await.text().contains("signal: 9"));
    let loud = bench.python("p", "sys.stderr.write('e' * 900 + '\\n'); print('o' * 5000); sys.exit(1)");
    let toolbox = bench.command(&loud, "max_output_bytes = 2048").await;
    let text = bench.call(&toolbox, "run", "{}").await.text();
    assert!(text.len() <= 2048 && text.contains("eee"), "{text}");
    let kept = format!(".harness/output/{}", bench.key("call_1").as_str());
    assert!(text.contains(&kept), "{text}");
}

#[tokio::test]
async fn a_secret_leaves_no_piece_where_stderr_and_output_are_cut() {
    let mut bench = Bench::new();
    let pattern = Regex::new("(?s)BEGIN.*?END").unwrap();
    bench.redaction = Arc::new(Redaction::new(vec![pattern], vec!["sk-0123456789".into()]));
    let program = bench.python(
        "p",
        "print('.' * 20000 + 'sk-0123456789' + '.' * 350)\n\
         sys.stderr.write('BEGIN\\n' + '0123\\n' * 30 + 'END\\n' + '.' * 995 + 'sk-0123456789.\\n')\nsys.exit(1)",
    );
    let toolbox = bench.command(&program, "max_output_bytes = 4096").await;
    let said = bench.call(&toolbox, "run", "{}").await.text();
    assert!(said.contains("[redacted]") && said.contains(".harness/output"), "{said}");
    for piece in ["sk-", "0123", "6789", "END"] {
        assert!(!said.contains(piece), "{piece}: {said}");
    }
}

#[tokio::test]
async fn a_command_whose_sandbox_refuses_a_unix_socket_is_told_of_the_setting() {
    let bench = Bench::new();
    let program = bench.python("p", "import socket\nsocket.socket(socket.AF_UNIX)");
    for (network, is_named) in [("none", true), ("gateway", true), ("all", false)] {
        let table = format!(
            "[tools.run]\ncommand = ['{program}']\ndescription = 'Runs.'\n[sandbox]\nnetwork = '{network}'"
        );
        let toolbox = bench.open(&table).await;
        let output = bench.call(&toolbox, "run", "{}").await;
        assert_eq!(output.is_error, is_named, "{output:?}");
        let said = output.text();
        assert_eq!(said.contains(&format!("network = \"{network}\"")), is_named, "{said}");
    }
}

#[tokio::test]
async fn a_silent_command_says_so() {
    let bench = Bench::new();
    let toolbox = bench.command("true", "").await;
    assert_eq!(bench.call(&toolbox, "run", "{}").await.text(), "(no output)");
}

#[tokio::test]
async fn what_hangs_is_killed_with_what_it_started() {
    let bench = Bench::new();
    let hangs = bench.python(
        "p",
        "print('begun', flush=True)\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n\
         subprocess.Popen(['sleep', '600'])\ntime.sleep(600)",
    );
    let toolbox = bench.command(&hangs, "timeout_ms = 1000\nstop_grace_ms = 200").await;
    let output = bench.call(&toolbox, "run", "{}").await;
    assert_eq!(output.ended, Ended::TimedOut);
    assert!(
        output
            .text()
            .starts_with("The tool took longer than 1000 ms and was killed. It may have taken effect.")
    );
    assert!(output.text().contains("begun"), "{}", output.text());
    bench.nothing_is_left().await;
}

#[tokio::test]
async fn a_stop_lets_it_end_and_then_kills_it() {
    let bench = Bench::new();
    for (on_term, left) in [("os._exit(open('left', 'w').write('x'))", true), ("0", false)] {
        let program = bench.python(
            "p",
            &format!(
                "signal.signal(signal.SIGTERM, lambda *_: {on_term})\nsubprocess.Popen(['sleep', '600'])\n\
                 open('begun', 'w').write('x')\nwhile True: time.sleep(0.1)"
            ),
        );
        let toolbox = bench.command(&program, "stop_grace_ms = 300").await;
        let begun = bench.file("begun");
        let ended = bench.call_until(&toolbox, "run", "{}", async { drop(begun.await) }).await;
        assert_eq!(ended, Err(CallError::Stopped));
        assert_eq!(bench.workspace().join("left").exists(), left);
        bench.nothing_is_left().await;
        let _ = std::fs::remove_file(bench.workspace().join("left"));
        std::fs::remove_file(bench.workspace().join("begun")).unwrap();
    }
}

#[tokio::test]
async fn a_call_that_is_dropped_kills_at_once() {
    let bench = Bench::new();
    let toolbox = bench.command(&bench.sh("p", "sleep 600 & sleep 600"), "").await;
    {
        let call = bench.call(&toolbox, "run", "{}");
        let started = within("two processes", || processes_of(bench.job).len() >= 3);
        tokio::select! { output = call => panic!("{output:?}"), () = started => {} }
    }
    bench.nothing_is_left().await;
}

#[tokio::test]
async fn what_it_leaves_running_neither_holds_up_the_result_nor_lives_on() {
    let bench = Bench::new();
    let toolbox = bench.command(&bench.sh("p", "sleep 600 & echo done"), "").await;
    let begun = Instant::now();
    assert_eq!(bench.call(&toolbox, "run", "{}").await.text(), "done\n");
    assert!(begun.elapsed() < Duration::from_secs(60));
    bench.nothing_is_left().await;
}

#[tokio::test]
async fn a_command_that_never_reads_a_large_input_ends_all_the_same() {
    let bench = Bench::new();
    let toolbox = bench.command("true", "input_schema = { type = 'object' }").await;
    let input = format!(r#"{{"text": "{}"}}"#, "x".repeat(1_000_000));
    assert_eq!(bench.call(&toolbox, "run", &input).await.ended, Ended::Done);
}

#[tokio::test]
async fn a_flood_is_cut_and_all_of_it_is_in_the_file_until_it_is_too_much() {
    let bench = Bench::new();
    let toolbox = bench.command(&bench.sh("p", "yes 0123456789 | head -c 3000000"), "").await;
    let output = bench.call(&toolbox, "run", "{}").await;
    assert!(output.text().len() <= 32 * 1024 && output.text().contains("3000000 bytes"), "{output:?}");
    let kept = bench.kept("call_1");
    assert_eq!(std::fs::metadata(&kept).unwrap().len(), 3_000_000);
    let toolbox = bench.command(&bench.sh("p", "yes"), "").await;
    let output = bench.call(&toolbox, "run", "{}").await;
    assert!(
        output.ended == Ended::Failed && output.text().contains("wrote more than 67108864"),
        "{output:?}"
    );
    bench.nothing_is_left().await;
}

#[tokio::test]
async fn nul_and_half_characters_are_replaced() {
    let bench = Bench::new();
    let toolbox = bench.command(&bench.sh("p", r"printf 'a\000b\303'; printf 'c\377' >&2; exit 1"), "").await;
    let text = bench.call(&toolbox, "run", "{}").await.text();
    assert!(
        text.contains("a\u{fffd}b\u{fffd}") && text.contains("c\u{fffd}") && !text.contains('\0'),
        "{text:?}"
    );
}

#[tokio::test]
async fn tools_are_sorted_and_have_what_their_table_says() {
    let bench = Bench::new();
    std::fs::write(bench.dir.path().join("s.json"), r#"{"type": "object"}"#).unwrap();
    let schema = bench.dir.path().join("s.json");
    let toolbox = bench
        .open(&format!(
            "[tools.b]\ncommand = ['true']\ndescription = 'B.'\n\
             [tools.a]\ncommand = ['true']\ndescription = 'A.'\nrepeat = 'safe'\nside_by_side = true\napprove = true\n\
             input_schema = '{}'",
            schema.display()
        ))
        .await;
    let [a, b] = toolbox.tools() else { panic!("{:?}", toolbox.tools()) };
    assert_eq!((a.name.as_str(), a.repeat, a.side_by_side, a.approve), ("a", Repeat::Safe, true, true));
    assert_eq!((b.name.as_str(), b.repeat, b.side_by_side, b.approve), ("b", Repeat::Unsafe, false, false));
    assert_eq!(a.input_schema.as_str(), r#"{"type":"object"}"#);
    assert!(b.input_schema.as_str().contains("\"additionalProperties\":false"));
    toolbox.close().await;
}

#[tokio::test]
async fn all_that_is_wrong_with_a_table_is_named() {
    let table = "
        [tools.'a b']
        command = ['true']
        description = 'x'
        [tools.c]
        command = ['/no/such/program']
        timeout_ms = 0
        max_output_bytes = 1
        env_allow = ['DATABASE_URL']
        input_schema = { type = 'object', properties = { x = { '$ref' = 'http://127.0.0.1:9/x' } } }
        [tools.d]
        command = ['/no/such/program']
        description = 'x'
        input_schema = '/no/such/file'";
    let config: ToolsConfig = toml::from_str(table).unwrap();
    let errors = build(config).err().expect("refused");
    let named: Vec<&str> = errors.iter().map(|error| error.setting.as_str()).collect();
    assert_eq!(
        named,
        [
            "tools.a b",
            "tools.c.timeout_ms",
            "tools.c.max_output_bytes",
            "tools.c.description",
            "tools.c.input_schema",
            "tools.c.env_allow[0]",
            "tools.d.input_schema",
            "tools.d.command[0]"
        ]
    );
    assert!(errors[4].problem.contains("http://127.0.0.1:9/x"), "{}", errors[4]);
}

#[tokio::test]
async fn a_command_leaves_no_dump_and_its_files_have_a_limit() {
    let bench = Bench::new();
    let program =
        bench.sh("p", "ulimit -Hc; head -c 900000 /dev/zero >small; exec head -c 2000000 /dev/zero >large");
    let toolbox = bench.command(&program, "max_file_mb = 1").await;
    let output = bench.call(&toolbox, "run", "{}").await;
    assert!(output.is_error && output.text().ends_with("Its output:\n0\n"), "{output:?}");
    let length = |name: &str| std::fs::metadata(bench.workspace().join(name)).unwrap().len();
    assert_eq!((length("small"), length("large")), (900_000, 1 << 20));
    let toolbox = bench.command(&program, "").await;
    let output = bench.call(&toolbox, "run", "{}").await;
    assert!(!output.is_error && length("large") == 2_000_000, "{output:?}");
}

#[tokio::test]
async fn a_sandbox_holds_for_commands() {
    let bench = Bench::new();
    let secret = bench.dir.path().join("secret");
    std::fs::write(&secret, "hunter2").unwrap();
    let program = bench.sh("p", &format!("echo mine >own; cat own; cat {}", secret.display()));
    for (sandbox, is_error) in [("sandbox.files = 'workspace'", true), ("sandbox.files = 'all'", false)] {
        let table = format!("{sandbox}\n[tools.run]\ncommand = ['{program}']\ndescription = 'Runs.'");
        let toolbox: Toolbox = bench.open(&table).await;
        let output = bench.call(&toolbox, "run", "{}").await;
        assert_eq!((output.is_error, output.text().contains("hunter2")), (is_error, !is_error), "{output:?}");
        assert!(output.text().contains("mine"));
    }
}
