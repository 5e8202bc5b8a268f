//! The commands of the README, of `docs/`, CONTRIBUTING and `examples/` are run as they are, on a real fleet.
//!
//! They run in a copy of the repository's pages and programs. What no test can run has a stand-in, with its reason: [`NOT_RUN`].
//! A block in another language than `sh` is a file where the paragraph before it names one of its kind (`agents.toml`), and a worker
//! that a paragraph starts (`worker --pool mine --agents agents.toml`) is started. Python without a name is run.

use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use service::TomlFile;
use tempfile::TempDir;
use tests::{Api, Fleet, Ran, Worker, binary, job, python_with_pika};

use super::blocks::{self, Block, Part};
use super::commands::NOT_RUN;
use super::{Page, ROOT, pages_below};

/// Where the commands of a page run.
struct Place {
    // Before what they work with: fields are dropped in this order.
    workers: Vec<Worker>,
    fleet: Fleet,
    folder: TempDir,
    /// Where the HTTP API is, for pages that use a client of it.
    api: Option<Api>,
}

impl Place {
    async fn new() -> Place {
        let folder = TempDir::new().expect("a folder");
        let kept = ["README.md", "ARCHITECTURE.md", "clients", "docs", "examples", "ops", "Makefile"];
        for name in kept.into_iter().filter(|name| ROOT.join(name).exists()) {
            let copied = Command::new("cp").arg("-a").arg(ROOT.join(name)).arg(folder.path()).status();
            assert!(copied.is_ok_and(|status| status.success()), "{name} cannot be copied");
        }
        std::fs::create_dir(folder.path().join("target")).expect("a folder");
        let programs = binary("worker");
        symlink(programs.parent().expect("a folder"), folder.path().join("target/debug")).expect("a link");
        // What pages call jobs of one's own.
        std::fs::copy(ROOT.join("examples/jobs.jsonl"), folder.path().join("jobs.jsonl")).expect("copied");
        Place { workers: Vec::new(), fleet: Fleet::new().await, folder, api: None }
    }

    /// Something for `producer dead`: a job that has failed for want of an agent, which later workers have.
    async fn fail_a_job(&self) {
        let mut worker = self.fleet.worker("the worker without agents").start().await;
        let order = job("failed", "shell", json!({"texts": ["late"]}));
        self.fleet.enqueue(std::slice::from_ref(&order)).await;
        self.fleet.ended(order.job_id).await;
        worker.terminate();
        worker.exit().await;
    }

    /// Starts a worker with these arguments in this folder.
    async fn work(&mut self, arguments: &[&str]) {
        let folder = self.folder.path().to_string_lossy().into_owned();
        let mut launch = self.fleet.worker("the worker of the page").through(&["env", "-C", &folder]);
        for pair in arguments.chunks(2) {
            let [flag, value] = pair else { panic!("{arguments:?}: expected flags with values") };
            let name = match *flag {
                "--agents" => "AGENTS_FILE",
                "--pool" => "POOL",
                other => {
                    panic!("{other}: expected --agents or --pool, or another flag that this test learns")
                }
            };
            launch = launch.set(name, value);
        }
        self.workers.push(launch.start().await);
    }

    /// Starts a door.
    async fn serve(&mut self) {
        let door = self.fleet.door("the door of the page").start().await;
        self.api = Some(Api::of(&door).await);
        self.workers.push(door);
    }

    /// Runs a block of commands.
    async fn run(&self, program: &str, page: &Page, block: &Block<'_>) {
        let base = self.api.as_ref().map_or("http://localhost:8080", Api::base);
        let text = block.text.replace("http://localhost:8080", base);
        let mut command = Command::new("timeout");
        command.args(["120", program, "-c", &script(program, &text)]).current_dir(self.folder.path());
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", self.folder.path().join("target/debug").display());
        command
            .env_clear()
            .env("PATH", path)
            .env("HOME", self.folder.path())
            .env("AMQP_URL", &self.fleet.vhost.url)
            .env("DATABASE_URL", &self.fleet.database.url)
            .env("PYTHONPATH", self.folder.path().join("clients/python"))
            .envs(self.api.as_ref().map(|api| ("HARNESS_URL", api.base())))
            // Behind a pooler.
            .envs(std::env::var_os("DATABASE_SETTINGS").map(|set_by| ("DATABASE_SETTINGS", set_by)));
        let ran = Ran::of(command, "").await;
        assert_eq!(ran.code, 0, "{}:{}:\n{}{}\n{}", page.path, block.line, block.text, ran.out, ran.err);
    }
}

/// The commands, with a stand-in for each program that is not run.
fn script(program: &str, text: &str) -> String {
    if program != "bash" {
        return text.to_owned();
    }
    let mut script = "set -euo pipefail\n".to_owned();
    // Stand-ins are functions of bash, whose names may have slashes and dashes.
    for (name, _) in NOT_RUN {
        match name.split_once(' ') {
            // A subcommand; the rest of the program is run.
            Some((program, subcommand)) => {
                script +=
                    &format!("{program}() {{ [[ $1 == {subcommand} ]] || command {program} \"$@\"; }}\n");
            }
            None => script += &format!("{name}() {{ :; }}\n"),
        }
    }
    // It ends with the first fact that contradicts another: here it is stopped when it has looked once.
    script += "producer() {\n  if [[ \" $* \" != *' --watch '* ]]; then command producer \"$@\"; return; fi\n  \
        command producer \"$@\" >watched 2>&1 &\n  until [[ -s watched ]]; do kill -0 $!; sleep 0.05; done\n  \
        kill -TERM $!; wait $! || [[ $? == 130 || $? == 143 ]]\n}\n";
    script + text
}

/// The file that a paragraph names for the block below it.
fn named<'b>(block: &'b Block<'_>) -> Option<&'b str> {
    let ending = match block.language {
        "python" => ".py",
        "toml" => ".toml",
        "json" => ".jsonl",
        _ => return None,
    };
    blocks::code(&block.before).filter(|word| word.ends_with(ending) && !word.contains(['/', ' '])).last()
}

fn write(folder: &Path, name: &str, text: &str) {
    let path: PathBuf = folder.join(name);
    std::fs::write(&path, text).expect("written");
    if text.starts_with("#!") {
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a file of ours");
    }
}

/// The commands in a page's prose that start a worker.
fn workers(page: &Page) -> Vec<Vec<&str>> {
    let code = blocks::parts(page).into_iter().filter_map(|part| match part {
        Part::Prose { text, .. } => Some(blocks::code(text).collect::<Vec<_>>()),
        Part::Block(_) => None,
    });
    code.flatten()
        .filter(|code| code.starts_with("worker --") && code.contains(" --agents "))
        .map(|code| code.split_whitespace().skip(1).collect())
        .collect()
}

#[tokio::test]
async fn the_commands_of_the_first_pages_work_as_they_are() {
    let mut count = 0;
    for page in pages_below(&["README.md", "CONTRIBUTING.md", "docs/", "examples/"]) {
        let blocks = blocks::blocks(&page);
        let runs = |block: &&Block<'_>| matches!(block.language, "sh" | "python");
        if !blocks.iter().any(|block| runs(&block)) {
            continue;
        }
        let mut place = Place::new().await;
        place.fail_a_job().await;
        // With all agents that `make up` has.
        place.work(&["--agents", "examples/agents.toml"]).await;
        for block in &blocks {
            if let Some(name) = named(block) {
                write(place.folder.path(), name, &block.text);
            }
        }
        for arguments in workers(&page).iter().filter(|arguments| arguments.contains(&"--pool")) {
            place.work(arguments).await;
        }
        if blocks.iter().any(|block| block.text.contains("from harness_fleet import")) {
            place.serve().await;
        }
        for block in blocks.iter().filter(runs) {
            match (block.language, named(block)) {
                ("sh", _) => place.run("bash", &page, block).await,
                ("python", None) => {
                    let python = python_with_pika(Path::new(env!("CARGO_TARGET_TMPDIR")));
                    place.run(&python.to_string_lossy(), &page, block).await;
                }
                _ => continue,
            }
            count += 1;
        }
    }
    assert!(count > 10, "only {count} blocks were run");
}

/// What is shown as TOML or as lines of JSON is that.
#[test]
fn the_files_that_pages_show_can_be_read() {
    for page in super::pages() {
        for block in blocks::blocks(&page) {
            let place = format!("{}:{}", page.path, block.line);
            match block.language {
                // One value, or one after the other.
                "json" => {
                    let values = serde_json::Deserializer::from_str(&block.text).into_iter::<Value>();
                    let read: Result<Vec<Value>, _> = values.collect();
                    assert!(read.is_ok(), "{place}: {read:?}");
                }
                "toml" => {
                    let read = TomlFile::parse(&block.text).and_then(|file| file.finish(()));
                    assert!(read.is_ok(), "{place}: {read:?}");
                }
                _ => {}
            }
        }
    }
}
