//! Trouble that lasts: it is reported when it begins, not at every try.

/// Whether something fails again and again.
#[derive(Debug, Default)]
pub struct Trouble {
    failures: u32,
}

impl Trouble {
    /// It has failed. Whether that is the first time since it worked.
    pub fn begins(&mut self) -> bool {
        self.failures = self.failures.saturating_add(1);
        self.failures == 1
    }

    /// It works. Whether it has failed before.
    pub fn ends(&mut self) -> bool {
        std::mem::take(&mut self.failures) > 0
    }

    /// How often it has failed since it worked.
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
