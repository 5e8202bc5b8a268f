//! stub
use job::Name;
use queue::{Broker, BrokerStatus};
use secrecy::SecretString;
use store::Store;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use crate::decide::Observation;
pub struct Observer { broker: Broker, rounds: watch::Sender<u64> }
pub struct Sources { pub ledger: Option<String>, pub queue: Option<String> }
impl Observer {
    pub fn new(broker: Broker, _store: Store, _pools: Vec<Name>, _management: Option<SecretString>) -> Observer { Observer { broker, rounds: watch::Sender::new(0) } }
    pub fn rounds(&self) -> watch::Receiver<u64> { self.rounds.subscribe() }
    pub fn latest(&self, _pool: &Name) -> Observation { Observation::default() }
    pub fn now_ms(&self) -> u64 { 0 }
    pub async fn look(&self) {}
    pub async fn run(&self, _stop: CancellationToken) {}
    pub fn sources(&self) -> Sources { Sources { ledger: None, queue: None } }
    pub fn broker_status(&self) -> watch::Receiver<BrokerStatus> { self.broker.status() }
}
