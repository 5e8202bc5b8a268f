//! `Prefer: wait=N` (RFC 7240): how long a caller waits for a job's end.

use std::time::Duration;

use axum::http::HeaderMap;

/// The longest wait.
const LONGEST: Duration = Duration::from_secs(60);

/// How long the caller wants to wait; a preference that cannot be read is none.
pub fn wait(headers: &HeaderMap) -> Option<Duration> {
    let values = headers.get_all("prefer").into_iter().filter_map(|value| value.to_str().ok());
    let seconds = values.flat_map(|value| value.split([',', ';'])).find_map(|preference| {
        let (name, value) = preference.split_once('=')?;
        let is_wait = name.trim().eq_ignore_ascii_case("wait");
        is_wait.then(|| value.trim().trim_matches('"').parse::<u32>().ok())?
    })?;
    Some(Duration::from_secs(seconds.into()).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_found_among_other_preferences_and_has_a_bound() {
        let of = |given: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", given.parse().unwrap());
            wait(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(of("wait=7"), Some(7));
        assert_eq!(of("respond-async, Wait = \"5\"; x"), Some(5));
        assert_eq!(of("wait=3600"), Some(60));
        for none in ["wait", "wait=", "wait=-1", "wait=1.5", "await=7", "wait=99999999999"] {
            assert_eq!(of(none), None, "{none}");
        }
        assert_eq!(wait(&HeaderMap::new()), None);
    }
}
