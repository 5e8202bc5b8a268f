//! The parts of the fleet that are explored: small enough to see every state.

use super::row::Job;

/// A limited fleet.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// A name for people.
    pub name: &'static str,
    /// Its jobs: 0 and 1 are of one session, 2 is of another.
    pub jobs: &'static [Job],
    /// Jobs that are published without the producer.
    pub direct: &'static [Job],
    /// Jobs whose message is in the queue from the start. The others are accepted at any time.
    pub queued: &'static [Job],
    /// Whether an acceptance can take its number long before it is committed.
    pub slow: bool,
    /// The number of mishaps, of any kind and at any time.
    pub mishaps: u8,
    /// Jobs that the ledger has given to the first process, which does not know it yet. If there is one, all jobs are
    /// suspects.
    pub given: &'static [Job],
}

impl Scope {
    /// The scopes that are explored.
    pub const ALL: [Scope; 6] = [
        Scope { name: "a job", jobs: &[0], direct: &[0], queued: &[], slow: false, mishaps: 2, given: &[] },
        Scope {
            name: "two accepted jobs of a session",
            jobs: &[0, 1],
            direct: &[],
            queued: &[],
            slow: true,
            mishaps: 1,
            given: &[],
        },
        Scope {
            name: "an accepted and a direct job of a session",
            jobs: &[0, 1],
            direct: &[1],
            queued: &[],
            slow: false,
            mishaps: 1,
            given: &[],
        },
        Scope {
            name: "two jobs of two sessions",
            jobs: &[0, 2],
            direct: &[2],
            queued: &[],
            slow: false,
            mishaps: 1,
            given: &[],
        },
        Scope {
            name: "two queued jobs of a session",
            jobs: &[0, 1],
            direct: &[1],
            queued: &[0, 1],
            slow: false,
            mishaps: 2,
            given: &[],
        },
        Scope {
            name: "two suspects, one of them on its way back",
            jobs: &[0, 2],
            direct: &[],
            queued: &[0, 2],
            slow: false,
            mishaps: 1,
            given: &[2],
        },
    ];

    /// The whole fleet, for walks, since its states are too many to explore.
    pub const WHOLE: Scope = Scope {
        name: "the whole fleet",
        jobs: &[0, 1, 2],
        direct: &[2],
        queued: &[],
        slow: false,
        mishaps: 30,
        given: &[],
    };
}
