//! Lasting trouble: it is reported when it begins, not at every try.

/// Counts the failures in a row of something that is tried again and again.
#[derive(Debug, Default)]
pub struct Trouble {
    failures: u32,
}

impl Trouble {
    /// Records a failure. Returns whether it is the first since the last success.
    pub fn begins(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.failures == 1
    }

    /// Records a success. Returns whether there was a failure before it.
    pub fn ends(&mut self) -> bool {
        std::mem::take(&mut self.failures) > 0
    }

    /// Returns the number of failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_once_until_it_ends() {
        let mut trouble = Trouble::default();
        assert!(!trouble.ends());
        assert!(trouble.begins() && !trouble.begins());
        assert_eq!(trouble.failures(), 2);
        assert!(trouble.ends() && !trouble.ends());
        assert!(trouble.begins());
        assert_eq!(trouble.failures(), 1);
    }
}
