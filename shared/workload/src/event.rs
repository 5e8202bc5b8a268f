//! What is reported to people who watch a workload.

/// Something that happened to a workload, or that should have happened and did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It was resized.
    Resized {
        /// Replicas before.
        from: u32,
        /// Replicas after.
        to: u32,
        /// Why, in a short sentence.
        why: String,
    },
    /// It was not resized although it should have been.
    NotResized {
        /// Why, in a short sentence.
        why: String,
    },
    /// It has more replicas than are wanted, and for a while now none can go.
    Waits {
        /// Replicas that there are.
        from: u32,
        /// Replicas that are wanted.
        to: u32,
        /// Why, in a short sentence.
        why: String,
        /// Whether the wait ends by itself, when workers finish what they hold.
        usual: bool,
    },
    /// Drained workers take jobs again: demand returned, or none of them may go now.
    TakenBack {
        /// How many.
        workers: u32,
        /// Why, in a short sentence.
        why: String,
    },
}
