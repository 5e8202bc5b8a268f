//! `producer webhooks`: addresses to which the ends of a tenant's jobs are sent. A secret is printed when it is made, to
//! stdout, and never again.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand};
use job::{JobId, JobState, Tenant, one_line, shown};
use serde_json::json;
use service::{Authorities, Problems, Setting, note, out};
use store::{ChangedWebhook, DeliveryState, OlderWorker, Store, WebhookView};

use super::age::parse_age;
use super::context::Context;
use super::operator::operator;
use super::status;
use crate::older::said;
use crate::webhooks::{Allowed, MOST, Made, Outbound, Wanted, create, enable, new_secret, probe};

/// The longest time for which two secrets sign.
const MOST_OVERLAP: Duration = Duration::from_secs(30 * 86_400);

#[derive(Debug, Args)]
pub struct WebhooksArgs {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    allow: WebhookAllow,
}

/// Which addresses webhooks may have.
#[derive(Debug, Args)]
pub struct WebhookAllow {
    /// Networks and addresses, separated by commas, that webhooks may reach although they are not of the public internet
    /// or have no TLS, such as 10.1.0.0/16
    #[arg(long, env = "WEBHOOK_ALLOW", value_name = "NETWORKS", global = true)]
    webhook_allow: Option<Setting<Allowed>>,
}

impl WebhookAllow {
    /// Reads the setting.
    pub fn check(self, problems: &mut Problems) -> Option<Allowed> {
        match self.webhook_allow {
            Some(given) => problems.take("WEBHOOK_ALLOW", given),
            None => Some(Allowed::default()),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a webhook and print its secret to stdout, once
    ///
    /// Exit codes: 0 made, 1 there is no such tenant, it is closed or has 20 webhooks, or a worker of an older release runs,
    /// which would end jobs without deliveries, 2 wrong arguments.
    Add(Add),
    /// List webhooks
    List {
        /// Only those of this tenant
        #[arg(long, value_name = "TENANT")]
        tenant: Option<Tenant>,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Show a webhook, as one JSON object
    Show {
        /// Its id
        id: String,
    },
    /// Send a message of the type webhook.test, once and now
    ///
    /// Exit codes: 0 it was taken, 1 it was not, 2 wrong arguments.
    Test {
        /// The webhook's id
        id: String,
    },
    /// Give a webhook a new secret and print it to stdout, once; the old one signs as well for a while
    Rotate {
        /// The webhook's id
        id: String,
        /// For how long the old secret signs as well, up to 30d
        #[arg(long, value_name = "AGE", value_parser = parse_overlap, default_value = "24h")]
        overlap: Duration,
    },
    /// Send nothing more to a webhook, and keep no ends for it
    Disable {
        /// Its id
        id: String,
    },
    /// Send to a webhook again: what waits, and the ends from now on
    ///
    /// Exit codes: 0 enabled, 1 there is no such webhook, or a worker of an older release runs, 2 wrong arguments.
    Enable {
        /// Its id
        id: String,
    },
    /// Remove a webhook
    Remove {
        /// Its id
        id: String,
    },
    /// List deliveries of a webhook, newest job first; they are kept for a week
    Deliveries {
        /// The webhook's id
        id: String,
        /// Only those in this state: pending, delivered or failed
        #[arg(long, value_name = "STATE")]
        state: Option<DeliveryState>,
        /// How many
        #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
        /// One JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Send ends again, under the same webhook-id as before
    ///
    /// Exit codes: 0 they are due, 1 there is no such webhook or end, or the webhook is disabled, 2 wrong arguments.
    Resend {
        /// The webhook's id
        id: String,
        /// The jobs whose ends are sent, whether or not they were sent before
        #[arg(required_unless_present = "failed", value_name = "JOB")]
        jobs: Vec<JobId>,
        /// The deliveries that were given up, 10,000 at a time
        #[arg(long, conflicts_with = "jobs")]
        failed: bool,
    },
}

#[derive(Debug, Args)]
struct Add {
    /// Where ends are sent: an address of the public internet, by HTTPS
    url: String,
    /// Whose ends it gets
    #[arg(long, value_name = "TENANT", default_value = "default")]
    tenant: Tenant,
    /// Which ends
    #[arg(
        long = "state",
        value_name = "STATE",
        value_delimiter = ',',
        default_value = "succeeded,failed,cancelled"
    )]
    states: Vec<JobState>,
    /// Send inputs and outputs as well; without it, sizes and hashes
    #[arg(long)]
    content: bool,
    /// What it is for, up to 200 characters
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,
    /// One JSON object: id, secret, tenant
    #[arg(long)]
    json: bool,
}

fn parse_overlap(text: &str) -> Result<Duration, String> {
    let age = parse_age(text)?;
    if age > MOST_OVERLAP {
        return Err("expected at most 30 days".to_owned());
    }
    Ok(age)
}

impl WebhooksArgs {
    pub async fn run(self, mut context: Context) -> anyhow::Result<ExitCode> {
        let allowed = self.allow.check(&mut context.problems);
        let authorities = context.common.authorities(&mut context.problems);
        let store = context.checked_ledger().await?.store;
        // What is wrong with them has ended the command above.
        let allowed = allowed.context("reading WEBHOOK_ALLOW")?;
        let authorities = authorities.context("reading TLS_CA_FILE")?;
        match self.command {
            Command::Add(add) => add.run(&store, &allowed).await,
            Command::List { tenant, json } => list(&store, tenant.as_ref(), json).await,
            Command::Show { id } => {
                let Some((webhook, _)) = find(&store, &id).await? else { return Ok(none(&id)) };
                out!("{}", one_line(serde_json::to_string(&webhook)?));
                Ok(ExitCode::SUCCESS)
            }
            Command::Test { id } => test(&store, &id, allowed, authorities).await,
            Command::Rotate { id, overlap } => {
                let Some((_, tenant)) = find(&store, &id).await? else { return Ok(none(&id)) };
                let secret = new_secret().context("reading random bytes")?;
                if !store.rotate_webhook(&operator(), &tenant, &id, &secret, overlap).await? {
                    return Ok(none(&id));
                }
                out!("{secret}");
                note!(
                    "{id} signs with this secret, which is shown this once, and with the old one for {}",
                    humantime::format_duration(overlap)
                );
                Ok(ExitCode::SUCCESS)
            }
            Command::Disable { id } => {
                let Some((_, tenant)) = find(&store, &id).await? else { return Ok(none(&id)) };
                let change = store.disable_webhook(&operator(), &tenant, &id).await?;
                Ok(changed(&id, change, "disabled: nothing is sent to it"))
            }
            Command::Enable { id } => {
                let Some((_, tenant)) = find(&store, &id).await? else { return Ok(none(&id)) };
                match enable(&store, &operator(), &tenant, &id).await? {
                    Ok(change) => Ok(changed(&id, change, "enabled")),
                    Err(older) => Ok(beside(&older)),
                }
            }
            Command::Remove { id } => {
                let Some((_, tenant)) = find(&store, &id).await? else { return Ok(none(&id)) };
                if !store.remove_webhook(&operator(), &tenant, &id).await? {
                    return Ok(none(&id));
                }
                out!("{id} is removed");
                Ok(ExitCode::SUCCESS)
            }
            Command::Deliveries { id, state, limit, json } => {
                deliveries(&store, &id, state, limit as usize, json).await
            }
            Command::Resend { id, jobs, failed } => resend(&store, &id, &jobs, failed).await,
        }
    }
}

impl Add {
    async fn run(self, store: &Store, allowed: &Allowed) -> anyhow::Result<ExitCode> {
        let Add { url, tenant, states, content, label, json } = self;
        let wanted = Wanted { tenant: tenant.clone(), url, states, content, label };
        match create(store, allowed, &operator(), wanted).await? {
            Made::Done { id, secret } if json => {
                out!("{}", one_line(json!({"id": id, "secret": secret, "tenant": tenant}).to_string()));
            }
            Made::Done { id, secret } => {
                out!("{secret}");
                note!("webhook {id} of tenant {tenant}; its secret is shown this once: keep it now");
            }
            Made::Refused { field, why } => {
                note!("{field}: {why}");
                return Ok(ExitCode::from(2));
            }
            Made::NoPlace => {
                note!("{tenant}: no such tenant, or it is closed, or it has {MOST} webhooks");
                return Ok(ExitCode::FAILURE);
            }
            Made::OlderWorker(older) => return Ok(beside(&older)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A webhook, whosever it is.
async fn find(store: &Store, id: &str) -> anyhow::Result<Option<(WebhookView, Tenant)>> {
    let all = store.webhooks(None).await.context("reading webhooks")?;
    let Some(webhook) = all.into_iter().find(|webhook| webhook.id == id) else { return Ok(None) };
    let tenant = webhook.tenant.clone().try_into().context("reading the webhook's tenant")?;
    Ok(Some((webhook, tenant)))
}

fn none(id: &str) -> ExitCode {
    note!("{}: no such webhook; `producer webhooks list` has them all", shown(id));
    ExitCode::FAILURE
}

fn beside(older: &OlderWorker) -> ExitCode {
    note!("{}", shown(&said(older, "would end jobs without deliveries")));
    ExitCode::FAILURE
}

fn changed(id: &str, change: ChangedWebhook, what: &str) -> ExitCode {
    match change {
        ChangedWebhook::Done => out!("{id} is {what}"),
        ChangedWebhook::Before => out!("{id} was so before"),
        ChangedWebhook::Unknown => return none(id),
    }
    ExitCode::SUCCESS
}

async fn test(
    store: &Store,
    id: &str,
    allowed: Allowed,
    authorities: Authorities,
) -> anyhow::Result<ExitCode> {
    let Some((webhook, _)) = find(store, id).await? else { return Ok(none(id)) };
    let outbound = Outbound::new(allowed, authorities);
    let Some(answer) = probe(store, &outbound, &webhook).await? else { return Ok(none(id)) };
    match (answer.status, answer.problem) {
        (Some(status), None) => out!("{id} has taken the message ({status})"),
        (_, problem) => {
            note!("{id} has not taken the message: {}", shown(&problem.unwrap_or_default()));
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(store: &Store, tenant: Option<&Tenant>, json: bool) -> anyhow::Result<ExitCode> {
    let webhooks = store.webhooks(tenant).await.context("reading webhooks")?;
    if json {
        for webhook in webhooks {
            out!("{}", one_line(serde_json::to_string(&webhook)?));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = status::table();
    table.set_header(["id", "tenant", "address", "states", "content", "label", "enabled", "failing since"]);
    for webhook in webhooks {
        let enabled = match (&webhook.disabled_by, &webhook.disabled_at) {
            (Some(by), Some(at)) => format!("no: {by:?}, {at}").to_lowercase(),
            _ => "yes".to_owned(),
        };
        table.add_row([
            webhook.id,
            webhook.tenant,
            shown(&webhook.url).into_owned(),
            webhook.states.join(","),
            if webhook.content { "yes" } else { "no" }.to_owned(),
            shown(&webhook.label).into_owned(),
            enabled,
            webhook.failing_since.unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    out!("{table}");
    Ok(ExitCode::SUCCESS)
}

async fn deliveries(
    store: &Store,
    id: &str,
    state: Option<DeliveryState>,
    limit: usize,
    json: bool,
) -> anyhow::Result<ExitCode> {
    if find(store, id).await?.is_none() {
        return Ok(none(id));
    }
    let (mut found, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.deliveries(id, state, cursor, limit - found.len()).await?;
        found.extend(page.found);
        cursor = page.next;
        if cursor.is_none() || found.len() >= limit {
            break;
        }
    }
    if json {
        for delivery in found {
            out!("{}", one_line(serde_json::to_string(&delivery)?));
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = status::table();
    table.set_header(["job", "state", "attempts", "next attempt", "status", "problem", "written", "ended"]);
    let dash = || "-".to_owned();
    for delivery in found {
        table.add_row([
            delivery.job_id.to_string(),
            delivery.state.as_str().to_owned(),
            delivery.attempts.to_string(),
            delivery.due_at.unwrap_or_else(dash),
            delivery.status.map_or_else(dash, |status| status.to_string()),
            delivery.problem.map_or_else(dash, |problem| shown(&problem).into_owned()),
            delivery.created_at,
            delivery.ended_at.unwrap_or_else(dash),
        ]);
    }
    out!("{table}");
    Ok(ExitCode::SUCCESS)
}

async fn resend(store: &Store, id: &str, jobs: &[JobId], failed: bool) -> anyhow::Result<ExitCode> {
    let Some((webhook, tenant)) = find(store, id).await? else { return Ok(none(id)) };
    if webhook.disabled_at.is_some() {
        note!("{id} is disabled; `producer webhooks enable {id}` first");
        return Ok(ExitCode::FAILURE);
    }
    let actor = operator();
    if failed {
        let resent = store.resend_failed(&actor, &tenant, id).await.context("making deliveries due")?;
        out!("{} deliveries are due again", resent.due);
        if resent.left > 0 {
            note!("{} or more are left: repeat this when those are sent", resent.left);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut code = ExitCode::SUCCESS;
    for job in jobs {
        if store.resend(&actor, &tenant, id, *job).await.with_context(|| format!("making {job} due"))? {
            out!("{job} is due");
        } else {
            note!("{job}: no such end of tenant {tenant}");
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}
