//! `producer dead`: its four commands.

mod filter;
mod view;
mod report;
mod act;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use service::unless_stopped;

use super::api::{self, ApiArgs};
use super::context::{Context, REPLIED_WITHIN};
use crate::dead::Act;

#[derive(Debug, Args)]
pub struct DeadArgs {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List failed jobs and dead messages, oldest first, with the reason of each
    ///
    /// Over the HTTP API these are failed jobs alone, the newest of them.
    List(view::List),
    /// Show one in full: a job with its envelope and its failure, a message with its headers and body
    ///
    /// Exit codes: 0 shown, 1 no dead letter has that id, 2 wrong arguments.
    Show(view::Show),
    /// Run failed jobs again, as new jobs, and send messages back to their queues
    ///
    /// A failed job is enqueued as a new job, in the same session and with the same input. Its deadline counts anew,
    /// and its reply carries the old id as correlation_id unless the caller had set one. Each failed job is redriven
    /// once, however many callers ask for it. A message goes back, unchanged, to the queue that it came from. What
    /// would fail at once (a body that is not a job, a message that came from no queue) stays, and its reason is
    /// printed.
    ///
    /// Exit codes: 0 all done, 1 one of the ids names no dead letter, 2 wrong arguments, 3 some were kept, with a
    /// reason.
    Redrive(act::Redrive),
    /// Take failed jobs out of the list (their results stay), and delete messages
    ///
    /// Exit codes: 0 all done, 1 one of the ids names no dead letter, 2 wrong arguments, 3 some were kept, with a
    /// reason.
    Drop(act::Which),
}

impl DeadArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        if let Some(client) = self.api.client(&mut context)? {
            let stop = &context.stop;
            return match self.command {
                Command::List(args) => unless_stopped(stop, args.over(&client)).await,
                Command::Show(args) => unless_stopped(stop, args.over(&client)).await,
                Command::Redrive(args) => unless_stopped(stop, args.over(&client, stop)).await,
                Command::Drop(args) => unless_stopped(stop, args.over(&client, api::Act::Drop, stop)).await,
            };
        }
        let (intake_limits, dispatch) = context.dispatch("producer dead").await?;
        let result = match self.command {
            Command::List(args) => unless_stopped(&context.stop, args.run(&dispatch)).await,
            Command::Show(args) => unless_stopped(&context.stop, args.run(&dispatch)).await,
            Command::Redrive(act::Redrive { which, to_pool }) => {
                which.run(Act::Redrive { to_pool }, &intake_limits, &dispatch, &context.stop).await
            }
            Command::Drop(which) => which.run(Act::Drop, &intake_limits, &dispatch, &context.stop).await,
        };
        dispatch.close(REPLIED_WITHIN).await;
        result
    }
}
