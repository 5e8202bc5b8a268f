//! Failed sign-ins by address. An address with too many of them within a minute is refused for the rest of it, before
//! its keys are looked up.
//!
//! Many callers may share an address (NAT, a proxy that is not listed), and one of them may have a wrong key in a loop.
//! So a key that was accepted here within the last hour is looked up all the same, and so is a ticket that was made here.
//! Of the other keys, those whose checksum is right are looked up at a bounded rate, unless they were refused a moment ago:
//! the same wrong key again keeps no neighbour out, and neither does what is no key.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use crate::access::{ApiKey, VALID_FOR};

/// The time in which failures are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Keys of a refused address that are looked up all the same in this time.
const LOOKED_UP: u32 = 60;
/// How long an accepted key passes from any address.
const REMEMBERED_FOR: Duration = Duration::from_secs(60 * 60);
/// How long a ticket does that was made here.
const MADE_FOR: Duration = VALID_FOR;
/// Addresses, and keys, that are kept at most. Callers cannot use more memory than that.
const CAPACITY: usize = 10_000;

/// What was tried, and from where.
pub struct SignIns {
    /// Failures within a minute after which an address is refused; `None` for no bound.
    most: Option<u32>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    failures: HashMap<IpAddr, Failures>,
    /// SHA-256 of keys, and when they were accepted last.
    accepted: HashMap<[u8; 32], Instant>,
    /// SHA-256 of keys, and when they were refused last.
    refused: HashMap<[u8; 32], Instant>,
    /// SHA-256 of tickets, and when they were made.
    made: HashMap<[u8; 32], Instant>,
}

#[derive(Clone, Copy)]
struct Failures {
    since: Instant,
    count: u32,
    /// Keys that were looked up although the address is refused.
    looked_up: u32,
}

impl SignIns {
    /// Nothing was tried yet.
    pub fn new(most: Option<u32>) -> SignIns {
        SignIns { most, seen: Mutex::default() }
    }

    /// For how long this key or ticket is refused from this address, if it is.
    pub fn refused(&self, address: IpAddr, shown: &str) -> Option<Duration> {
        let most = self.most?;
        let mut seen = self.lock();
        let failures =
            seen.failures.get(&network(address)).copied().filter(|failures| failures.count >= most)?;
        let left = WINDOW.checked_sub(failures.since.elapsed()).filter(|left| !left.is_zero())?;
        let digest = digest(shown);
        let is_known =
            |seen: &HashMap<_, Instant>, within| seen.get(&digest).is_some_and(|at| at.elapsed() < within);
        if is_known(&seen.accepted, REMEMBERED_FOR) || is_known(&seen.made, MADE_FOR) {
            return None;
        }
        let may_be_right = failures.looked_up < LOOKED_UP
            && !is_known(&seen.refused, WINDOW)
            && ApiKey::parse(shown).is_ok();
        // What is refused keeps no address refused for longer.
        seen.failures.entry(network(address)).and_modify(|failures| {
            failures.count = most;
            failures.looked_up += u32::from(may_be_right);
        });
        (!may_be_right).then_some(left)
    }

    /// Notes that a key or ticket was not accepted. Returns whether the address is refused from now on.
    pub fn failed(&self, address: IpAddr, shown: &str) -> bool {
        let Some(most) = self.most else { return false };
        let mut seen = self.lock();
        // What is no key is never looked up.
        if ApiKey::parse(shown).is_ok() {
            remember(&mut seen.refused, shown, WINDOW);
        }
        let address = network(address);
        if seen.failures.len() >= CAPACITY && !seen.failures.contains_key(&address) {
            make_room(&mut seen.failures, most);
        }
        let fresh = Failures { since: Instant::now(), count: 0, looked_up: 0 };
        let failures = seen.failures.entry(address).or_insert(fresh);
        if failures.since.elapsed() >= WINDOW {
            *failures = fresh;
        }
        failures.count = failures.count.saturating_add(1);
        failures.count == most
    }

    /// Notes that a key was accepted.
    pub fn succeeded(&self, key: &str) {
        if self.most.is_none() {
            return;
        }
        remember(&mut self.lock().accepted, key, REMEMBERED_FOR);
    }

    /// Notes that a ticket was made.
    pub fn made(&self, ticket: &str) {
        if self.most.is_some() {
            remember(&mut self.lock().made, ticket, MADE_FOR);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn remember(seen: &mut HashMap<[u8; 32], Instant>, shown: &str, within: Duration) {
    if seen.len() >= CAPACITY {
        seen.retain(|_, at| at.elapsed() < within);
        if seen.len() >= CAPACITY {
            seen.clear();
        }
    }
    seen.insert(digest(shown), Instant::now());
}

/// Drops what no longer counts; if that is little, addresses that are not refused; if that is little too, all.
fn make_room(failures: &mut HashMap<IpAddr, Failures>, most: u32) {
    failures.retain(|_, failures| failures.since.elapsed() < WINDOW);
    if failures.len() > CAPACITY / 2 {
        failures.retain(|_, failures| failures.count >= most);
    }
    if failures.len() > CAPACITY / 2 {
        failures.clear();
    }
}

/// A caller with IPv6 has a network of 64 bits, and any address in it.
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = address.to_bits() & !u128::from(u64::MAX);
            Ipv6Addr::from_bits(network).into()
        }
        address => address,
    }
}

fn digest(shown: &str) -> [u8; 32] {
    Sha256::digest(shown.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_with_too_many_failures_is_refused_for_the_rest_of_the_minute() {
        let sign_ins = SignIns::new(Some(3));
        let (bad, neighbour) = (ip("2001:db8:0:7::1"), ip("2001:db8:0:8::1"));
        assert_eq!([sign_ins.failed(bad, "k"), sign_ins.failed(bad, "k")], [false, false]);
        assert_eq!(sign_ins.refused(bad, "k"), None);
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert!(sign_ins.failed(ip("2001:db8:0:7:ffff::2"), "k"), "the same network");
        assert_eq!(sign_ins.refused(bad, "k"), Some(Duration::from_secs(40)));
        assert_eq!(sign_ins.refused(neighbour, "k"), None);
        sign_ins.succeeded("known");
        sign_ins.made("ticket");
        assert_eq!((sign_ins.refused(bad, "known"), sign_ins.refused(bad, "ticket")), (None, None));
        tokio::time::sleep(Duration::from_secs(40)).await;
        assert_eq!(sign_ins.refused(bad, "k"), None);
        assert!(!sign_ins.failed(bad, "k"), "counted anew");
        // One in IPv4 is the same, however it is written.
        for _ in 0..3 {
            sign_ins.failed(ip("192.0.2.7"), "k");
        }
        assert!(sign_ins.refused(ip("::ffff:192.0.2.7"), "k").is_some());
        assert_eq!(sign_ins.refused(ip("192.0.2.8"), "k"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_whole_key_that_was_not_refused_yet_is_looked_up_from_a_refused_address_at_a_bounded_rate() {
        let key = || ApiKey::make().expect("random bytes").0.expose_secret().to_owned();
        let (sign_ins, shared, wrong) = (SignIns::new(Some(3)), ip("192.0.2.7"), key());
        for _ in 0..3 {
            sign_ins.failed(shared, &wrong);
        }
        // The wrong key in a loop takes nothing from the others.
        for _ in 0..1_000 {
            assert!(sign_ins.refused(shared, &wrong).is_some());
            assert!(sign_ins.refused(shared, "no key").is_some());
        }
        for _ in 0..LOOKED_UP {
            assert_eq!(sign_ins.refused(shared, &key()), None);
        }
        assert!(sign_ins.refused(shared, &key()).is_some());
        tokio::time::sleep(WINDOW).await;
        assert_eq!(sign_ins.refused(shared, &wrong), None);
    }

    #[tokio::test(start_paused = true)]
    async fn any_number_of_addresses_and_keys_takes_bounded_memory() {
        let sign_ins = SignIns::new(Some(2));
        let bad = ip("192.0.2.7");
        sign_ins.failed(bad, "k");
        sign_ins.failed(bad, "k");
        for n in 0..3 * CAPACITY as u32 {
            sign_ins.failed(std::net::Ipv4Addr::from_bits(n).into(), "k");
            sign_ins.succeeded(&n.to_string());
            let seen = sign_ins.lock();
            assert!(seen.failures.len() <= CAPACITY && seen.accepted.len() <= CAPACITY);
        }
        assert!(sign_ins.refused(bad, "k").is_some(), "no other address has pushed it out");
        assert_eq!(SignIns::new(None).refused(bad, "k"), None);
    }
}
