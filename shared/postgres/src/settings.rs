//! The settings of each of our sessions, whatever the role, the database or the server sets.

use std::str::FromStr;

use tokio_postgres::{Client, Error};

/// How our sessions get their settings (`DATABASE_SETTINGS`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetBy {
    /// Each connection sets them when it is opened. It must keep its session, which a pooler in transaction mode does
    /// not allow.
    #[default]
    Connection,
    /// The account has them in this database. `producer migrate` sets them.
    Role,
}

impl FromStr for SetBy {
    type Err = String;

    fn from_str(text: &str) -> Result<SetBy, String> {
        match text.trim() {
            "connection" => Ok(SetBy::Connection),
            "role" => Ok(SetBy::Role),
            other => Err(format!("got \"{}\", expected connection or role", other.escape_debug())),
        }
    }
}

/// The values as Postgres shows them.
///
/// Every statement of ours is driven by an index, and needs the same plan whatever its arrays hold. With these
/// settings, the planner cannot be misled into sequential scans and hash joins by statistics from when the tables were
/// empty, and does not plan the same statement again and again. (A bitmap scan would visit the same dead entries each
/// time, whereas an index scan marks them as dead.) A lock is waited for as long as a statement may take. The
/// isolation is set here, because a statement that is its own transaction has no BEGIN to state it.
///
/// A statement ends soon after its client has gone (`client_connection_check_interval`), also while it waits for a lock.
/// We close the connection of a question that nobody waits for any more, and a killed process closes all of its own;
/// without this setting each of their statements would go on until `statement_timeout`. A cancel request would need
/// another connection for each such question, at a time when Postgres is slow, and behind a pooler it could come late and
/// cancel another client's statement. The check costs a timer, and a look at the socket only in a statement that runs for
/// that long.
const SETTINGS: [(&str, &str); 18] = [
    ("enable_indexscan", "on"),
    ("enable_nestloop", "on"),
    ("enable_seqscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    ("jit", "off"),
    ("plan_cache_mode", "force_generic_plan"),
    ("statement_timeout", "10s"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "30s"),
    ("idle_session_timeout", "0"),
    ("client_connection_check_interval", "2s"),
    ("synchronous_commit", "on"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    ("standard_conforming_strings", "on"),
];

/// How far a commit must be replicated before it is confirmed is the operator's choice, as long as a crash (or a
/// failover to a synchronous standby) loses no commit.
pub(crate) const UNLESS_CHOSEN: &str =
    "(name <> 'synchronous_commit' OR current_setting(name, true) IN ('off', 'local'))";

/// `('name', 'value'), …`
pub(crate) fn list() -> String {
    SETTINGS.map(|(name, value)| format!("('{name}', '{value}')")).join(", ")
}

/// Sets this session, except for what the address sets (`options`).
pub(crate) async fn set_for_session(client: &Client) -> Result<(), Error> {
    let list = list();
    client
        .batch_execute(&format!(
            "SELECT set_config(name, value, false) FROM (VALUES {list}) AS ours (name, value)
               JOIN pg_catalog.pg_settings USING (name) WHERE source <> 'client' AND {UNLESS_CHOSEN}"
        ))
        .await
}

/// Returns a query for the settings of this session that differ from ours, except for those that the address sets.
pub(crate) fn differing() -> String {
    let list = list();
    format!(
        "SELECT name FROM (VALUES {list}) AS ours (name, value) JOIN pg_catalog.pg_settings USING (name)
          WHERE current_setting(name, true) <> value AND source <> 'client' AND {UNLESS_CHOSEN} ORDER BY name"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_set_is_read_or_refused_with_what_there_is() {
        assert_eq!("connection".parse(), Ok(SetBy::Connection));
        assert_eq!(" role\n".parse(), Ok(SetBy::Role));
        let problem = "session".parse::<SetBy>().expect_err("no such way");
        assert!(problem.contains("connection or role"), "{problem}");
    }
}
