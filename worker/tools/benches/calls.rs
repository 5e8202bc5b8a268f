//! What a call costs besides the work of its tool: `cargo bench -p tools`.

use std::future::pending;
use std::sync::Arc;

use divan::Bencher;
use job::JobId;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tokio::runtime::Runtime;
use tools::{Call, CallKey, Machine, Place, Toolbox, ToolsConfig};

fn main() {
    divan::main();
}

/// Calls a tool of this table with this input.
fn calls(bencher: Bencher<'_, '_>, table: &str, name: &str, input: &str) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("file"), "0123456789\n".repeat(100)).expect("a file");
    let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
    let builder = builder.with_safe_default_protocol_versions().expect("versions of TLS");
    let tls = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    let config: ToolsConfig = toml::from_str(table).expect("a table");
    let machine = Machine { tls: &tls, variable: &|_| None };
    let toolset = config.build(&machine).unwrap_or_else(|errors| panic!("{errors:?}"));
    let runtime = Runtime::new().expect("a runtime");
    let workspace = folder.path().to_owned();
    let place = Place { workspace, env: Vec::new(), port: None, resumed: false, redaction: Arc::default() };
    let toolbox = runtime.block_on(Toolbox::open(&toolset, &place)).expect("tools");
    let key = CallKey::new(JobId::now(), "call_1");
    bencher.bench_local(|| {
        let output = runtime.block_on(toolbox.call(&Call { name, input, key: &key }, pending()));
        assert!(output.is_ok_and(|output| !output.is_error));
    });
    runtime.block_on(toolbox.close());
}

#[divan::bench]
fn command(bencher: Bencher<'_, '_>) {
    calls(bencher, "[tools.run]\ncommand = ['true']\ndescription = 'Runs.'", "run", "{}");
}

#[divan::bench]
fn command_without_a_sandbox(bencher: Bencher<'_, '_>) {
    let table = "sandbox.level = 'off'\n[tools.run]\ncommand = ['true']\ndescription = 'Runs.'";
    calls(bencher, table, "run", "{}");
}

#[divan::bench]
fn read_file(bencher: Bencher<'_, '_>) {
    calls(bencher, "files = true", "read_file", r#"{"path": "file"}"#);
}

#[divan::bench]
fn server(bencher: Bencher<'_, '_>) {
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/toolbox/server.py");
    let table = format!("[mcp.s]\ncommand = ['/usr/bin/python3', '{program}', 'well']");
    calls(bencher, &table, "s__count", "{}");
}
