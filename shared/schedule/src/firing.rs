//! What belongs to one firing. It follows from the schedule's id and the instant alone, so it is the same in every process
//! and every time.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Returns the id of the job that a schedule fires at an instant: a UUID of version 7 whose time is the instant.
pub fn firing_id(schedule: Uuid, instant: u64) -> Uuid {
    let hash = hash(schedule, instant);
    let mut bytes = [0; 16];
    bytes[..6].copy_from_slice(&instant.to_be_bytes()[2..]);
    bytes[6..].copy_from_slice(&hash[..10]);
    bytes[6] = 0x70 | (bytes[6] & 0x0f);
    bytes[8] = 0x80 | (bytes[8] & 0x3f);
    Uuid::from_bytes(bytes)
}

/// Returns how long after its instant a firing is due, in milliseconds: from 0 to `jitter_ms`.
pub fn delay_ms(schedule: Uuid, instant: u64, jitter_ms: u64) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = hash(schedule, instant);
    let number = u128::from(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
    // A share of the span, so that no remainder is more frequent than another one.
    ((number * (u128::from(jitter_ms) + 1)) >> 64) as u64
}

fn hash(schedule: Uuid, instant: u64) -> [u8; 32] {
    let mut hasher = Sha256::new();
    hasher.update(schedule.as_bytes());
    hasher.update(instant.to_be_bytes());
    hasher.finalize().into()
}
