//! The clients of the HTTP API: what they promise to programs that use them.

mod commands;
mod follow;
mod outages;
mod python;
mod rust;
mod spend;
mod tries;

use std::path::Path;
use std::process::Command;

use tests::Api;

/// A program of `tests/clients` that uses the client in Python, for this API and this key.
fn python(program: &str, api: &Api, key: &str) -> Command {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("python3");
    command
        .arg(own.join("clients").join(program))
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("PYTHONPATH", own.join("../clients/python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("HARNESS_URL", api.base())
        .env("HARNESS_API_KEY", key);
    command
}
