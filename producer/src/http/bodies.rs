//! How many bytes of bodies are being read at a time. A body is kept in memory until it has arrived whole, for up to 30 s,
//! so there is a bound for all, and one for each caller: before its key is looked at, an address, and a tenant then.
//! Batches are read piece by piece and have bounds of their own.

use std::net::IpAddr;
use std::time::Duration;

use job::Tenant;

use super::problem::{Kind, Problem};
use super::shares::{Share, Shares};
use super::sign_ins::network;

/// One caller may have this part of all.
const PART: usize = 4;
/// When a caller is asked to come back.
const AGAIN: Duration = Duration::from_secs(2);

/// Who sends a body.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sender {
    Address(IpAddr),
    Tenant(Tenant),
}

impl Sender {
    /// The network of an address.
    pub fn at(address: IpAddr) -> Sender {
        Sender::Address(network(address))
    }
}

/// The bodies that are being read.
pub struct Bodies(Shares<Sender>);

impl Bodies {
    /// So many bytes in all.
    pub fn new(most: usize) -> Bodies {
        Bodies(Shares::new(most, most / PART))
    }

    /// Room for a body of so many bytes, until it is dropped.
    pub fn begin(&self, sender: Option<&Sender>, bytes: usize) -> Result<Share<Sender>, Problem> {
        self.0.take(sender, bytes).map_err(|full| {
            let one = |most| format!("bodies of {most} bytes of this caller are being read at a time");
            let all = |most| format!("bodies of {most} bytes are being read at a time");
            full.problem("bodies", Kind::TooManyBodies, (one, all)).at("body").retry_after(AGAIN)
        })
    }
}
