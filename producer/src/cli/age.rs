//! An age as people write it.

use std::time::Duration;

/// Parses an age such as `90s`, `15m`, `36h` or `3d`.
pub fn parse_age(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|error| format!("{error}, expected a number with a unit, such as 90s, 15m, 36h or 3d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_a_number_with_a_unit() {
        assert_eq!(parse_age("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_age("7d"), Ok(Duration::from_secs(7 * 86_400)));
        for bad in ["", "7", "d", "yesterday", "-1h", "99999999999999999999d"] {
            assert!(parse_age(bad).unwrap_err().contains("expected a number with a unit"), "{bad}");
        }
    }
}
