//! Trouble that lasts: it is reported when it begins, not at every try.

/// Whether something fails again and again.
#[derive(Debug, Default)]
pub struct Trouble {
    lasts: bool,
}

impl Trouble {
    /// It has failed. Whether that is the first time since it worked.
    pub fn begins(&mut self) -> bool {
        !std::mem::replace(&mut self.lasts, true)
    }

    /// It works. Whether it has failed before.
    pub fn ends(&mut self) -> bool {
        std::mem::take(&mut self.lasts)
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
        assert!(trouble.ends() && !trouble.ends());
        assert!(trouble.begins());
    }
}
