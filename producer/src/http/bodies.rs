//! How many bytes of bodies are being read at a time. A body is kept in memory until it has arrived whole, for up to 30 s,
//! so there is a bound for all tenants and one for each. Before its caller's key is looked at, a body counts for the address
//! that sends it, and for a part that all addresses share: however many they are, tenants have their room. Batches are
//! read piece by piece and have bounds of their own.

use std::net::IpAddr;
use std::time::Duration;

use job::Tenant;

use super::problem::{Kind, Problem};
use super::shares::{Share, Shares};
use super::sign_ins::network;

/// Callers whose key was not looked at have this part of all, together.
const PART_OF_ADDRESSES: usize = 8;
/// One tenant may have this part of all, and one address this part of what addresses have.
const PART: usize = 4;
/// When a caller is asked to come back.
const AGAIN: Duration = Duration::from_secs(2);

/// Who sends a body, or takes an answer.
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

/// Bytes that callers share: a part for tenants, and a smaller one for callers whose key was not looked at. A caller that
/// has no key takes nothing from tenants.
pub struct SharedBytes {
    tenants: Shares<Sender>,
    addresses: Shares<Sender>,
}

impl SharedBytes {
    /// So many bytes in all.
    pub fn new(most: usize) -> SharedBytes {
        let of_addresses = most / PART_OF_ADDRESSES;
        SharedBytes {
            tenants: Shares::new(most - of_addresses, most / PART),
            addresses: Shares::new(of_addresses, of_addresses / PART),
        }
    }

    /// The part that this caller has a share of. One of whom nothing is known counts with the addresses.
    pub fn of(&self, sender: Option<&Sender>) -> &Shares<Sender> {
        match sender {
            Some(Sender::Tenant(_)) => &self.tenants,
            Some(Sender::Address(_)) | None => &self.addresses,
        }
    }
}

/// The bodies that are being read.
pub struct Bodies(SharedBytes);

impl Bodies {
    /// So many bytes in all.
    pub fn new(most: usize) -> Bodies {
        Bodies(SharedBytes::new(most))
    }

    /// Room for a tenant's body of so many bytes, until it is dropped.
    pub fn begin(&self, tenant: &Tenant, bytes: usize) -> Result<Share<Sender>, Problem> {
        let sender = Sender::Tenant(tenant.clone());
        self.0.of(Some(&sender)).take(Some(&sender), bytes).map_err(|full| {
            let one = |most| format!("bodies of {most} bytes of this caller are being read at a time");
            let all = |most| format!("bodies of {most} bytes are being read at a time");
            full.problem("bodies", Kind::TooManyBodies, (one, all)).at("body").retry_after(AGAIN)
        })
    }

    /// Room for a body that is read before its caller's key is looked at, if there is any.
    pub fn begin_early(&self, address: Option<IpAddr>, bytes: usize) -> Option<Share<Sender>> {
        let sender = address.map(Sender::at);
        self.0.of(sender.as_ref()).take(sender.as_ref(), bytes).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_take_nothing_from_tenants() {
        let bodies = Bodies::new(1 << 20);
        let address = |n: u8| Some(IpAddr::from([192, 0, 2, n]));
        let early: Vec<_> = (0..=255).filter_map(|n| bodies.begin_early(address(n), 16 << 10)).collect();
        assert_eq!(early.len(), 8, "an eighth of all");
        assert!(bodies.begin_early(None, 1).is_none());
        let tenant = |name: &str| name.parse::<Tenant>().expect("a tenant");
        let whole: Vec<_> = ["a", "b", "c"]
            .into_iter()
            .filter_map(|name| bodies.begin(&tenant(name), 1 << 20).ok())
            .collect();
        assert_eq!(whole.len(), 3, "a quarter of all for each");
        drop(early);
        // One address leaves room for another.
        let early: Vec<_> = (0..9).filter_map(|_| bodies.begin_early(address(1), 16 << 10)).collect();
        assert_eq!((early.len(), bodies.begin_early(address(2), 16 << 10).is_some()), (2, true));
    }
}
