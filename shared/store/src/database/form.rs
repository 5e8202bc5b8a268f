//! In which form rows are written that processes of an older release read in another one.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio_postgres::Row;

/// Whether contexts rest as text: no worker is left that cannot read it, and none comes (`harness_turn_switches`).
macro_rules! as_text {
    () => {
        "EXISTS (SELECT FROM harness_switches WHERE name = 'context_as_text')"
    };
}
pub(crate) use as_text;

/// Turns on what no older worker is in the way of any more, and selects what is on.
pub(crate) const TURN_SWITCHES: &str = "SELECT name FROM harness_turn_switches() AS name";

/// What this process knows to be on. What is on stays on; a ledger that was restored is met by workers that register anew.
#[derive(Default)]
pub(crate) struct Switches {
    schema_26: AtomicBool,
}

impl Switches {
    /// Takes what [`TURN_SWITCHES`] has selected.
    pub(crate) fn are(&self, rows: &[Row]) {
        let on = rows.iter().any(|row| row.get::<_, &str>(0) == "schema_26");
        self.schema_26.store(on, Ordering::Relaxed);
    }

    /// Whether all workers know migration 26.
    pub(crate) fn schema_26(&self) -> bool {
        self.schema_26.load(Ordering::Relaxed)
    }
}
