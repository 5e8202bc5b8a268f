//! Webhooks are made and tried.

use anyhow::Context as _;
use job::{JobState, Tenant};
use store::{ChangedWebhook, NewWebhook, OlderWorker, Store, WebhookKeys, WebhookView};
use uuid::Uuid;

use super::address::Allowed;
use super::client::{Answer, Outbound};
use super::event::test_body;
pub use super::signature::new_secret;
use crate::older::without_deliveries;

/// The most webhooks of a tenant. Each end costs a row for each that wants it.
pub const MOST: i64 = 20;
/// The longest label.
const LABEL: usize = 200;

/// What a new webhook is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Whose ends it gets.
    pub tenant: Tenant,
    /// Where they are sent.
    pub url: String,
    /// Which ends; all if none is named.
    pub states: Vec<JobState>,
    /// Whether inputs and outputs are sent as well.
    pub content: bool,
    /// What it is for.
    pub label: String,
}

/// The answer to a request for a webhook.
pub enum Made {
    /// It is made.
    Done {
        /// Its id.
        id: String,
        /// What its deliveries are signed with. It is shown this once.
        secret: String,
    },
    /// A field is wrong.
    Refused {
        /// Which one.
        field: &'static str,
        /// Why.
        why: String,
    },
    /// Its tenant is not there, is closed, or has too many of them.
    NoPlace,
    /// This worker would end jobs without deliveries.
    OlderWorker(OlderWorker),
}

/// Makes a webhook.
pub async fn create(store: &Store, allowed: &Allowed, actor: &str, wanted: Wanted) -> anyhow::Result<Made> {
    let Wanted { tenant, url, states, content, label } = wanted;
    let url = match allowed.check(&url) {
        Ok(url) => url.into(),
        Err(why) => return Ok(Made::Refused { field: "url", why }),
    };
    if let Some(state) = states.iter().find(|state| !state.is_end()) {
        let why = format!("got \"{state}\", expected succeeded, failed or cancelled");
        return Ok(Made::Refused { field: "states", why });
    }
    if label.chars().count() > LABEL || label.chars().any(char::is_control) {
        let why = format!("expected up to {LABEL} characters, none of them a control character");
        return Ok(Made::Refused { field: "label", why });
    }
    if let Some(older) = without_deliveries(store).await? {
        return Ok(Made::OlderWorker(older));
    }
    let ends = [JobState::Succeeded, JobState::Failed, JobState::Cancelled];
    let states = ends.into_iter().filter(|end| states.is_empty() || states.contains(end)).collect();
    let id = format!("wh_{}", Uuid::new_v4().simple());
    let secret = new_secret().context("reading random bytes")?;
    let new = NewWebhook { id: id.clone(), tenant, url, states, content, label, secret: secret.clone() };
    let made = store.create_webhook(actor, &new, MOST).await.context("writing the webhook")?;
    Ok(if made { Made::Done { id, secret } } else { Made::NoPlace })
}

/// Lets a webhook go on. Not while a worker would end jobs without deliveries, which is returned then.
pub async fn enable(
    store: &Store,
    actor: &str,
    tenant: &Tenant,
    id: &str,
) -> anyhow::Result<Result<ChangedWebhook, OlderWorker>> {
    if let Some(older) = without_deliveries(store).await? {
        return Ok(Err(older));
    }
    Ok(Ok(store.enable_webhook(actor, tenant, id).await.context("enabling the webhook")?))
}

/// A message that only tries a webhook.
pub struct Probe {
    url: String,
    id: String,
    keys: WebhookKeys,
    body: Vec<u8>,
}

impl Probe {
    /// Reads what it needs; `None` if the webhook has been removed.
    pub async fn of(store: &Store, webhook: &WebhookView) -> anyhow::Result<Option<Probe>> {
        let Ok(tenant) = webhook.tenant.clone().try_into() else { return Ok(None) };
        let clock = store.clock().await.context("reading Postgres's clock")?;
        let keys = store.webhook_keys(&tenant, &webhook.id).await.context("reading the webhook")?;
        let now = humantime::format_rfc3339_millis(clock.now()).to_string();
        Ok(keys.map(|keys| Probe {
            url: webhook.url.clone(),
            id: format!("{}_test_{}", webhook.id, Uuid::now_v7()),
            keys,
            body: test_body(&webhook.id, &now),
        }))
    }

    /// Sends it, now and once.
    pub async fn send(self, outbound: &Outbound) -> Answer {
        outbound.post(&self.url, &self.id, &self.keys, self.body).await
    }
}

/// Sends a message that only tries a webhook, now and once; `None` if it has been removed.
pub async fn probe(
    store: &Store,
    outbound: &Outbound,
    webhook: &WebhookView,
) -> anyhow::Result<Option<Answer>> {
    let Some(probe) = Probe::of(store, webhook).await? else { return Ok(None) };
    Ok(Some(probe.send(outbound).await))
}
