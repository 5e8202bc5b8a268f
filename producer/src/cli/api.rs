//! The everyday commands through the HTTP API: with its address and a key they need neither Postgres nor RabbitMQ.

mod dead;
mod jobs;
mod profile;

use clap::Args;
use harness_fleet::Client;
use job::Tenant;
use secrecy::{ExposeSecret, SecretString};
use service::note;

use super::context::Context;
pub use dead::{Act, list, settle, show};
pub use jobs::{answer, cancel, every_line, status, wait, why};

/// The HTTP API, for commands that can do without a database.
#[derive(Args, Clone, Debug)]
pub struct ApiArgs {
    /// Ask the HTTP API at this address, such as https://fleet.example.com, instead of Postgres and RabbitMQ: enqueue,
    /// status, wait, why, cancel, jobs and dead then need neither DATABASE_URL nor AMQP_URL
    #[arg(long = "url", env = "HARNESS_URL", global = true, help_heading = "HTTP API")]
    harness_url: Option<String>,
    /// The key for it
    #[arg(
        long = "api-key",
        env = "HARNESS_API_KEY",
        hide_env_values = true,
        global = true,
        help_heading = "HTTP API"
    )]
    harness_api_key: Option<SecretString>,
    /// A profile with the address and the key: a table [profiles.NAME] with url, and key or key_file, in
    /// ~/.config/harness-fleet/profiles.toml. --url and --api-key go before it
    #[arg(long, env = "HARNESS_PROFILE", global = true, help_heading = "HTTP API")]
    profile: Option<String>,
}

impl ApiArgs {
    /// Returns a client if an address is given. Without one, the command works with Postgres and RabbitMQ.
    pub fn client(&self, context: &mut Context) -> anyhow::Result<Option<Client>> {
        let mut found = profile::Profile::default();
        if let Some(name) = &self.profile {
            found = context.problems.check("HARNESS_PROFILE", profile::read(name)).unwrap_or_default();
        }
        let url = self.harness_url.clone().or(found.url);
        let key = self.harness_api_key.clone().or(found.key);
        let Some(url) = url else {
            if self.profile.is_some() && context.problems.count() == 0 {
                context.problems.add("HARNESS_URL", "not set, and the profile has no url");
            }
            return if self.profile.is_some() { context.finish(None) } else { Ok(None) };
        };
        let authorities = context.common.authorities(&mut context.problems);
        let own = authorities.as_ref().and_then(|authorities| authorities.own_pem());
        let key = key.as_ref().map(ExposeSecret::expose_secret);
        let client = match Client::trusting(&url, key, own) {
            Ok(client) => Some(client),
            Err(error) => {
                context.problems.add(error.field, error.problem);
                None
            }
        };
        context.finish(client).map(Some)
    }
}

/// Refuses another tenant than the key's; returns whether the tenant can be left out.
pub fn is_of_key(tenant: &Tenant) -> bool {
    if !tenant.is_default() {
        note!("--tenant: got {tenant}, but over the HTTP API the tenant is that of the key");
    }
    tenant.is_default()
}
