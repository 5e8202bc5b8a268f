//! An attempt's meter, as its harness sees it.

use std::sync::Arc;
use std::time::Duration;

use harness::{IsDurable, Meter, Usage};
use job::Usd;
use model::Opened;

use super::ledger::AttemptLedger;

pub struct AttemptMeter {
    opened: Opened,
    ledger: Arc<AttemptLedger>,
}

impl AttemptMeter {
    pub fn new(opened: Opened, ledger: Arc<AttemptLedger>) -> AttemptMeter {
        AttemptMeter { opened, ledger }
    }
}

impl Meter for AttemptMeter {
    fn environment(&self) -> Vec<(&'static str, String)> {
        self.opened.environment().into()
    }

    fn used(&self) -> Usage {
        let metered = self.opened.metered();
        Usage {
            cost: Usd::from_micros(metered.cost.micros()),
            input_tokens: metered.input_tokens,
            output_tokens: metered.output_tokens,
        }
    }

    fn idle(&self) -> Duration {
        self.opened.idle()
    }

    fn follow(&self, is_durable: IsDurable) {
        self.ledger.follow(is_durable);
    }
}
