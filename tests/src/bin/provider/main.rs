//! `provider`: the double of the model providers as a process, for demos and for programs of one's own.
//!
//! It prints its address and serves until it is ended. `GET /double` says what it billed and what it found; the crate's
//! module `provider` says what it refuses.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use tests::provider::{PROVIDER_KEY, Provider, Script};

/// A strict double of Anthropic's and OpenAI's APIs, which needs no key and costs nothing.
#[derive(Parser)]
#[command(name = "provider")]
struct Args {
    /// The address at which it listens
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// A JSON file that says what it answers and what goes wrong; twenty words without
    #[arg(long)]
    script: Option<PathBuf>,
    /// The key that it accepts
    #[arg(long, default_value = PROVIDER_KEY)]
    key: String,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let script = match &args.script {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
            Script::parse(&text).with_context(|| format!("reading {}", path.display()))?
        }
        None => Script::default(),
    };
    let listening = Provider::at(args.listen, &args.key, script).await;
    let provider = listening.with_context(|| format!("listening on {}", args.listen))?;
    println!("{}", provider.base_url());
    tokio::signal::ctrl_c().await.context("waiting for an interrupt")
}
