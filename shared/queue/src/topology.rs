//! Exchanges and queues: their names, their arguments, and their declaration.
//!
//! ```text
//! any client ──▶ harness.jobs (direct) ──pool──▶ harness.jobs.<pool> (quorum) ──▶ a slot
//!                      │ no such pool                  │ delivered 1000 times, rejected, expired
//!                      ▼                               ▼
//!                harness.dead (fanout) ─────────▶ harness.dead (quorum)         kept for people
//!                             └──────────────────▶ harness.dead.sweep (quorum)   read once, for the ledger
//! ```
//!
//! What processes announce to each other goes through transient exchanges of its own ([`crate::announcing`]).
//!
//! Our own dead letters go straight to the queue `harness.dead`. A message in `harness.dead.sweep` is a copy of one
//! that the broker itself dead-lettered. It is removed as soon as it has been handled.
//!
//! Our own publisher addresses queues by name through the default exchange. Declaring what already exists changes
//! nothing. Declaring it with other arguments is refused by the broker, and we report that. A deleted queue is
//! declared again after a second (for the reason see [`crate::declarations::DELETION_TIME`]). No other client should
//! declare these queues.

use std::collections::BTreeMap;

use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{Channel, ExchangeKind};

use crate::QueueError;
use crate::error::{NOT_FOUND, explain, failed, reply_code};

/// The exchange for other clients. It is direct, with the pool's name as the routing key.
pub const JOBS_EXCHANGE: &str = "harness.jobs";
/// The exchange to which the broker sends what it cannot route or deliver.
pub const DEAD_EXCHANGE: &str = "harness.dead";
/// The queue where every dead letter ends.
pub const DEAD_QUEUE: &str = "harness.dead";
/// The queue where copies of what the broker dead-lettered wait until a process ends their jobs.
pub const DEAD_SWEEP_QUEUE: &str = "harness.dead.sweep";

/// How often a message may be delivered before the broker dead-letters it. Attempts are counted in Postgres. This only
/// ends a message that kills every worker. It must never be -1: RabbitMQ 3.10 accepts that and drops everything.
const DELIVERY_LIMIT: i32 = 1_000;
/// Reading dead letters counts as a delivery, too. RabbitMQ 4 drops a message at 20 unless a limit is set.
const DEAD_DELIVERY_LIMIT: i32 = 1_000_000_000;

/// Returns the name of a pool's queue.
pub fn jobs_queue(pool: &job::Name) -> String {
    format!("{JOBS_EXCHANGE}.{pool}")
}

/// Returns the pool whose queue this is.
pub fn pool_of_queue(queue: &str) -> Option<job::Name> {
    queue.strip_prefix(JOBS_EXCHANGE)?.strip_prefix('.')?.parse().ok()
}

/// Declares what all pools share.
pub(crate) async fn declare_shared(channel: &Channel) -> Result<(), QueueError> {
    declare_exchange(channel, DEAD_EXCHANGE, ExchangeKind::Fanout, FieldTable::default()).await?;
    for queue in [DEAD_QUEUE, DEAD_SWEEP_QUEUE] {
        let limit = ("x-delivery-limit", AMQPValue::LongInt(DEAD_DELIVERY_LIMIT));
        declare_queue(channel, queue, table([quorum(), limit])).await?;
        bind(channel, queue, DEAD_EXCHANGE, "").await?;
    }
    let alternate = table([("alternate-exchange", text(DEAD_EXCHANGE))]);
    declare_exchange(channel, JOBS_EXCHANGE, ExchangeKind::Direct, alternate).await
}

/// Whether a fleet has declared its topology here before.
pub(crate) async fn has_exchange(channel: &Channel) -> Result<bool, QueueError> {
    let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
    let found =
        channel.exchange_declare(JOBS_EXCHANGE.into(), ExchangeKind::Direct, options, FieldTable::default());
    match found.await {
        Ok(()) => Ok(true),
        Err(error) if reply_code(&error) == Some(NOT_FOUND) => Ok(false),
        Err(error) => Err(refused("exchange", JOBS_EXCHANGE, String::new(), &error)),
    }
}

/// Declares the queue of one pool.
pub(crate) async fn declare_pool(channel: &Channel, pool: &job::Name) -> Result<(), QueueError> {
    let queue = jobs_queue(pool);
    let arguments = table([
        quorum(),
        ("x-dead-letter-exchange", text(DEAD_EXCHANGE)),
        ("x-dead-letter-routing-key", text(DEAD_QUEUE)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
        ("x-delivery-limit", AMQPValue::LongInt(DELIVERY_LIMIT)),
    ]);
    declare_queue(channel, &queue, arguments).await?;
    bind(channel, &queue, JOBS_EXCHANGE, pool.as_str()).await
}

fn quorum() -> (&'static str, AMQPValue) {
    ("x-queue-type", text("quorum"))
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn table<const N: usize>(entries: [(&str, AMQPValue); N]) -> FieldTable {
    let entries = entries.into_iter().map(|(key, value)| (ShortString::from(key), value));
    FieldTable::from(entries.collect::<BTreeMap<_, _>>())
}

async fn declare_exchange(
    channel: &Channel,
    name: &str,
    kind: ExchangeKind,
    arguments: FieldTable,
) -> Result<(), QueueError> {
    let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
    let declared = channel.exchange_declare(name.into(), kind, options, arguments).await;
    declared.map_err(|error| {
        let remedy = format!(
            "delete it (`rabbitmqadmin delete exchange name={name}`), and it is declared anew at the next attempt"
        );
        refused("exchange", name, remedy, &error)
    })
}

async fn declare_queue(channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), QueueError> {
    let declared = channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await;
    declared.map(drop).map_err(|error| {
        let remedy = format!(
            "empty and delete it (`rabbitmqctl delete_queue {name}`), and it is declared anew at the next attempt"
        );
        refused("queue", name, remedy, &error)
    })
}

async fn bind(channel: &Channel, queue: &str, exchange: &str, key: &str) -> Result<(), QueueError> {
    let options = QueueBindOptions::default();
    let bound =
        channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default()).await;
    bound.map_err(|error| failed(&format!("bind queue {queue} to exchange {exchange}"), &error))
}

fn refused(kind: &str, name: &str, remedy: String, error: &lapin::Error) -> QueueError {
    const PRECONDITION_FAILED: u16 = 406;
    if reply_code(error) == Some(PRECONDITION_FAILED) {
        return QueueError::Mismatch { name: format!("{kind} {name}"), detail: explain(error), remedy };
    }
    failed(&format!("declare {kind} {name}"), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_has_its_queue() {
        assert_eq!(jobs_queue(&job::Name::default()), "harness.jobs.default");
        assert_eq!(pool_of_queue("harness.jobs.default"), Some(job::Name::default()));
        for other in ["harness.jobs", "harness.jobs.", "harness.jobs.a/b", "harness.dead", "replies"] {
            assert_eq!(pool_of_queue(other), None, "{other}");
        }
    }
}
