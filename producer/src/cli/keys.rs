//! `producer keys`: keys of the HTTP API. A key's text is printed by `create`, to stdout, and never again.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use job::{Tenant, one_line, shown};
use secrecy::ExposeSecret;
use serde_json::json;
use service::{note, out};
use store::{KeyView, RevokedKey, Scope, Store};

use super::age::parse_age;
use super::context::Context;
use super::operator::operator;
use super::status;
use crate::access::{ApiKey, BadKey, Wanted, create_key};

/// The longest label.
const LABEL: usize = 200;
/// The longest validity.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 86_400);

#[derive(Debug, Args)]
pub struct KeysArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a key and print it to stdout, once: the ledger keeps only a hash of it
    ///
    /// To replace a key, create another one, change the callers, then revoke the old one: a tenant may have any number of
    /// valid keys.
    ///
    /// Exit codes: 0 created, 1 there is no such tenant, or it is closed, 2 wrong arguments.
    Create(Create),
    /// List the keys that are valid now
    List {
        /// Only this tenant's
        #[arg(long, value_name = "TENANT")]
        tenant: Option<Tenant>,
        /// Revoked and expired ones as well, and those of closed tenants
        #[arg(long)]
        all: bool,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Revoke keys: they are refused within 5 s
    ///
    /// Exit codes: 0 all are revoked, 1 there is no key of one of the ids, 2 wrong arguments.
    Revoke {
        /// The ids of keys as the list shows them, or whole keys
        #[arg(required = true, value_name = "ID")]
        keys: Vec<String>,
    },
}

#[derive(Debug, Args)]
struct Create {
    /// Whose key it is
    #[arg(long, value_name = "TENANT", default_value = "default")]
    tenant: Tenant,
    /// What it allows: submit; read (states, times, costs); content (what was said, which `read` shows as sizes and hashes);
    /// operate (cancel, redrive, drop, delete); admin (what reaches beyond the tenant's jobs, such as reply_to). None
    /// includes another
    #[arg(long = "scope", value_name = "SCOPE", value_delimiter = ',', default_value = "submit,read")]
    scopes: Vec<Scope>,
    /// What it is for, up to 200 characters
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = parse_label)]
    label: String,
    /// How long it is valid, such as 12h or 90d; without it, until it is revoked
    #[arg(long, value_name = "AGE", value_parser = parse_validity)]
    expires_in: Option<Duration>,
    /// One JSON object: id, key, tenant, scopes, label
    #[arg(long)]
    json: bool,
}

fn parse_label(text: &str) -> Result<String, String> {
    if text.chars().count() > LABEL || text.chars().any(char::is_control) {
        return Err(format!("expected up to {LABEL} characters, none of them a control character"));
    }
    Ok(text.to_owned())
}

fn parse_validity(text: &str) -> Result<Duration, String> {
    let age = parse_age(text)?;
    if age.is_zero() || age > CENTURY {
        return Err("expected more than nothing, and at most 100 years".to_owned());
    }
    Ok(age)
}

impl KeysArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Create(create) => create.run(&context.checked_ledger().await?.store).await,
            Command::List { tenant, all, json } => {
                let store = context.checked_ledger().await?.store;
                let keys = store.keys(tenant.as_ref(), all).await.context("reading keys")?;
                list(&keys, json)
            }
            Command::Revoke { keys } => {
                match keys.iter().map(|text| id_of(text)).collect::<Result<Vec<_>, _>>() {
                    Ok(ids) => revoke(&context.checked_ledger().await?.store, &ids).await,
                    // The text may be a secret, so it is not shown.
                    Err(bad) => {
                        note!(
                            "nothing was revoked: got what is neither a key's id nor a key ({bad}); `producer keys list` has the ids"
                        );
                        Ok(ExitCode::from(2))
                    }
                }
            }
        }
    }
}

/// Returns the id of a key that was named by its id or by its whole text, which is what is known of a key that was found
/// somewhere.
fn id_of(text: &str) -> Result<String, BadKey> {
    if ApiKey::is_id(text) {
        return Ok(text.to_owned());
    }
    Ok(ApiKey::parse(text)?.id().to_owned())
}

impl Create {
    async fn run(self, store: &Store) -> anyhow::Result<ExitCode> {
        let Create { tenant, scopes, label, expires_in: valid_for, json } = self;
        let scopes = scopes.into_iter().collect();
        let wanted = Wanted { tenant: tenant.clone(), scopes, label: label.clone(), valid_for };
        let Some((text, id)) = create_key(store, &operator(), wanted).await? else {
            note!("{tenant}: no such tenant, or it is closed; `producer tenants list` shows them");
            return Ok(ExitCode::FAILURE);
        };
        let key = text.expose_secret();
        if json {
            let created = json!({"id": id, "key": key, "tenant": tenant, "scopes": scopes, "label": label});
            out!("{}", one_line(created.to_string()));
        } else {
            out!("{key}");
            note!("key {id} of tenant {tenant} ({scopes}); it is shown this once: keep it now");
        }
        Ok(ExitCode::SUCCESS)
    }
}

async fn revoke(store: &Store, ids: &[String]) -> anyhow::Result<ExitCode> {
    let actor = operator();
    let mut code = ExitCode::SUCCESS;
    for id in ids {
        match store.revoke_key(&actor, id).await.with_context(|| format!("revoking the key {id}"))? {
            RevokedKey::Now => out!("{id} is revoked: it is refused within 5 s"),
            RevokedKey::Before => out!("{id} was revoked before"),
            RevokedKey::Unknown => {
                note!("{id}: no such key; `producer keys list --all` has them all");
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

fn list(keys: &[KeyView], json: bool) -> anyhow::Result<ExitCode> {
    if json {
        for key in keys {
            out!("{}", one_line(serde_json::to_string(key)?));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = status::table();
    table.set_header(["id", "tenant", "scopes", "label", "valid", "created", "expires", "last used"]);
    for key in keys {
        let valid = match (&key.revoked_at, key.live) {
            (Some(at), _) => format!("revoked {at}"),
            (None, true) => "yes".to_owned(),
            (None, false) => "no".to_owned(),
        };
        table.add_row([
            key.id.clone(),
            key.tenant.clone(),
            key.scopes.to_string(),
            shown(&key.label).into_owned(),
            valid,
            key.created_at.clone(),
            key.expires_at.clone().unwrap_or_else(|| "-".to_owned()),
            key.last_used_at.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    out!("{table}");
    Ok(ExitCode::SUCCESS)
}
