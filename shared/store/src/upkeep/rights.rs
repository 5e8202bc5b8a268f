//! What this account can do with the ledger.

use crate::database::query;
use crate::{Store, StoreError};

/// `CASE` is needed because Postgres may evaluate conditions in any order, and fails if it asks for a table's
/// rights as a sequence. Only the owner of a table can make and remove its partitions. The operators' log only grows, so
/// an account may do without the rights to change and delete its rows.
const MISSING: &str = r"
    WITH ours AS (
        SELECT c.oid, c.relname, c.relkind, c.relowner, c.relnamespace FROM pg_class c
         WHERE c.relnamespace = (SELECT relnamespace FROM pg_class WHERE oid = 'harness_jobs'::regclass)
           AND c.relname LIKE 'harness\_%' AND c.relkind IN ('r', 'p', 'S')
    )
    SELECT format('%s on %s', privilege, relname)
      FROM ours CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p(privilege)
     WHERE CASE WHEN relkind = 'S' THEN false ELSE NOT has_table_privilege(oid, privilege) END
       AND NOT (relname = 'harness_audit_log' AND privilege IN ('UPDATE', 'DELETE'))
    UNION ALL
    SELECT format('USAGE on the sequence %s', relname) FROM ours
     WHERE CASE WHEN relkind = 'S' THEN NOT has_sequence_privilege(oid, 'USAGE') ELSE false END
    UNION ALL
    SELECT format('ownership of %s (its partitions are made and removed)', relname) FROM ours
     WHERE relname IN ('harness_results', 'harness_labels', 'harness_calls', 'harness_history') AND NOT pg_has_role(relowner, 'USAGE')
    UNION ALL
    SELECT DISTINCT format('CREATE on the schema %s', relnamespace::regnamespace) FROM ours
     WHERE NOT has_schema_privilege(relnamespace, 'CREATE')";

impl Store {
    /// Returns the rights that a process of the fleet needs and this account lacks, worded for people.
    pub async fn missing_rights(&self) -> Result<Vec<String>, StoreError> {
        let rows = query(&self.pool, "missing_rights", MISSING, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}
