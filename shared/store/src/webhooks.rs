//! Webhooks: addresses to which the ends of a tenant's jobs are sent.
//!
//! The statement that writes ends also writes their deliveries ([`written`]), so that neither is there without the
//! other. How a delivery is sent, signed and checked is for the producer: here it is a row that is due, is taken for
//! a while, and gets a result.

mod written;
mod endpoint;
mod delivery;
mod resend;
mod health;

pub use delivery::{DeliveryResult, DeliveryState, DeliveryView, DueDelivery, Sent, WebhookBacklog};
pub use endpoint::{ChangedWebhook, DisabledBy, NewWebhook, WebhookKeys, WebhookView};
pub use health::WebhookHealth;
pub use resend::ResentFailed;
pub(crate) use written::deliveries;
