//! Who runs a command, for the operators' log.

use std::os::unix::fs::MetadataExt;

/// How many characters of a name are kept.
const KEEP: usize = 64;

/// Returns the user and the host, such as `ada@ops-1`. Both are this machine's word, not a proof.
pub fn operator() -> String {
    let named = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let user =
        named.filter(|name| !name.is_empty()).unwrap_or_else(|| match std::fs::metadata("/proc/self") {
            Ok(own) => format!("uid {}", own.uid()),
            Err(_) => "unknown".to_owned(),
        });
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}@{}", clip(&user), clip(host.trim()))
}

fn clip(text: &str) -> String {
    text.chars().take(KEEP).collect()
}
