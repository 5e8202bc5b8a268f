//! Numbers in the settings, and within which bounds they must be.

use process::{Limits, SettingError};

use crate::config::FILE_MB;

/// The longest time that a call may be given.
pub const DAY_MS: u64 = 86_400_000;
/// The least and the most that a model can be shown of an output.
pub const LEAST_OUTPUT: u64 = 1_024;
/// See [`LEAST_OUTPUT`].
pub const MOST_OUTPUT: u64 = 1024 * 1024;
/// The largest address space.
pub const MOST_MEMORY_MB: u64 = 16 * 1024 * 1024;

/// The largest limit of a file.
pub const MOST_FILE_MB: u64 = 16 * 1024 * 1024;

/// Returns what each process may have, by these settings.
pub fn limits(memory_mb: Option<u64>, file_mb: Option<u64>) -> Limits {
    Limits { memory_mb, file_mb: Some(file_mb.unwrap_or(FILE_MB)) }
}

/// Returns the settings that are out of range, of (name, value, least, most).
pub fn wrong(settings: &[(&str, u64, u64, u64)]) -> Vec<SettingError> {
    let wrong = settings.iter().filter(|(_, got, least, most)| !(least..=most).contains(&got));
    let said = |(setting, got, least, most): &(&str, u64, u64, u64)| {
        SettingError::new(*setting, format!("got {got}, expected {least} to {most}"))
    };
    wrong.map(said).collect()
}
