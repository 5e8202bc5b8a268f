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
    /// Jobs that may ask a person.
    pub asks: &'static [Job],
    /// Jobs in whose runs their session may be folded.
    pub folds: &'static [Job],
    /// Jobs that are not due when they are accepted.
    pub later: &'static [Job],
    /// Whether the pool has a line.
    pub line: bool,
    /// Jobs with the limit key.
    pub keyed: &'static [Job],
}

impl Scope {
    /// Without anything.
    const NONE: Scope = Scope {
        name: "",
        jobs: &[],
        direct: &[],
        queued: &[],
        slow: false,
        mishaps: 0,
        given: &[],
        asks: &[],
        folds: &[],
        later: &[],
        line: false,
        keyed: &[],
    };

    /// The scopes that are explored.
    pub const ALL: [Scope; 16] = [
        Scope { name: "a job", jobs: &[0], direct: &[0], mishaps: 2, ..Scope::NONE },
        Scope {
            name: "a job that folds within its run",
            jobs: &[0],
            queued: &[0],
            mishaps: 2,
            folds: &[0],
            ..Scope::NONE
        },
        Scope {
            name: "two accepted jobs of a session",
            jobs: &[0, 1],
            slow: true,
            mishaps: 1,
            ..Scope::NONE
        },
        Scope {
            name: "an accepted and a direct job of a session",
            jobs: &[0, 1],
            direct: &[1],
            mishaps: 1,
            ..Scope::NONE
        },
        Scope { name: "two jobs of two sessions", jobs: &[0, 2], direct: &[2], mishaps: 1, ..Scope::NONE },
        Scope {
            name: "two queued jobs of a session",
            jobs: &[0, 1],
            direct: &[1],
            queued: &[0, 1],
            mishaps: 2,
            ..Scope::NONE
        },
        Scope {
            name: "two suspects, one of them on its way back",
            jobs: &[0, 2],
            queued: &[0, 2],
            mishaps: 1,
            given: &[2],
            ..Scope::NONE
        },
        Scope {
            name: "a job that asks a person",
            jobs: &[0],
            queued: &[0],
            mishaps: 2,
            asks: &[0],
            ..Scope::NONE
        },
        Scope {
            name: "a job that asks a person, and one behind it",
            jobs: &[0, 1],
            queued: &[0],
            mishaps: 1,
            asks: &[0],
            ..Scope::NONE
        },
        Scope {
            name: "a job that folds within its run, and one behind it",
            jobs: &[0, 1],
            queued: &[0, 1],
            mishaps: 1,
            folds: &[0, 1],
            ..Scope::NONE
        },
        Scope {
            name: "an accepted job that is not due yet, and a direct one behind it",
            jobs: &[0, 1],
            direct: &[1],
            mishaps: 1,
            later: &[0],
            ..Scope::NONE
        },
        Scope {
            name: "two jobs of a session that are not due yet, one of them direct",
            jobs: &[0, 1],
            direct: &[1],
            mishaps: 1,
            later: &[0, 1],
            ..Scope::NONE
        },
        Scope {
            name: "two accepted jobs of a session in a line",
            jobs: &[0, 1],
            mishaps: 1,
            line: true,
            ..Scope::NONE
        },
        Scope {
            name: "an accepted job in a line, and a direct one that passes by it",
            jobs: &[0, 1],
            direct: &[1],
            mishaps: 1,
            line: true,
            ..Scope::NONE
        },
        Scope {
            name: "two jobs with a limit key",
            jobs: &[0, 2],
            mishaps: 1,
            line: true,
            keyed: &[0, 2],
            ..Scope::NONE
        },
        Scope {
            name: "a job with a limit key behind one of its session, and another one with the key",
            jobs: &[0, 1, 2],
            direct: &[0],
            queued: &[0],
            line: true,
            keyed: &[1, 2],
            ..Scope::NONE
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
        asks: &[0, 2],
        folds: &[0, 1, 2],
        later: &[],
        line: false,
        keyed: &[],
    };

    /// The same, with a line.
    pub const LINE: Scope =
        Scope { name: "the whole fleet, in a line", line: true, later: &[1], ..Scope::WHOLE };

    /// The same, with a limit.
    pub const LIMIT: Scope = Scope {
        name: "the whole fleet, with a limit",
        direct: &[],
        line: true,
        keyed: &[1, 2],
        ..Scope::WHOLE
    };

    /// The same, with jobs that are not due when they are accepted.
    pub const LATER: Scope = Scope { name: "the whole fleet, later", later: &[1, 2], ..Scope::WHOLE };
}
