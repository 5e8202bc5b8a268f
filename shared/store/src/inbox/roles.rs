//! Roles: the database accounts that may enqueue jobs by SQL, and the tenant whose jobs these are.

use job::Tenant;
use serde::Serialize;

use crate::access::logged;
use crate::database::{query, rfc3339};
use crate::{Store, StoreError};

/// A role that may enqueue jobs.
#[derive(Clone, Debug, Serialize)]
pub struct RoleView {
    /// Its name in Postgres.
    pub role: String,
    /// Whose jobs it enqueues.
    pub tenant: String,
    /// Whether its jobs may name a queue for replies.
    pub may_reply: bool,
    /// Whether Postgres has a role of that name, with the right to call the function.
    pub may_call: bool,
    /// RFC 3339, UTC.
    pub added_at: String,
}

/// The answer to a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangedRole {
    /// It is changed, and the log says so.
    Done,
    /// There is no such tenant.
    NoTenant,
    /// Postgres has no such role.
    NoRole,
}

const FIND: &str = "
    SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1), EXISTS (SELECT FROM harness_tenants WHERE name = $2)";

const ADD: &str = concat!(
    "WITH made AS (
         INSERT INTO harness_roles (role, tenant, may_reply) VALUES ($2, $3, $4)
         ON CONFLICT (role) DO UPDATE SET tenant = excluded.tenant, may_reply = excluded.may_reply
         RETURNING tenant, role, may_reply)",
    logged!("role_added", "tenant", "jsonb_build_object('role', role, 'may_reply', may_reply)", "made")
);

const REMOVE: &str = concat!(
    "WITH made AS (DELETE FROM harness_roles WHERE role = $2 RETURNING tenant, role)",
    logged!("role_removed", "tenant", "jsonb_build_object('role', role)", "made")
);

const LIST: &str = concat!(
    "SELECT role, tenant, may_reply,
            coalesce((SELECT has_function_privilege(r.oid, f.oid, 'EXECUTE') AND has_schema_privilege(r.oid, f.ns, 'USAGE')
                        FROM pg_roles r,
                             (SELECT p.oid, p.pronamespace AS ns FROM pg_proc p
                               WHERE p.proname = 'harness_enqueue'
                                 AND p.pronamespace = (SELECT relnamespace FROM pg_class
                                                        WHERE oid = 'harness_inbox'::regclass)) f
                       WHERE r.rolname = h.role), false), ",
    rfc3339!("added_at"),
    " FROM harness_roles h ORDER BY role"
);

impl Store {
    /// Lets a role enqueue jobs of this tenant, or changes that. The right to call the function is granted apart from it:
    /// [`Store::change_grant`].
    pub async fn add_role(
        &self,
        actor: &str,
        role: &str,
        tenant: &Tenant,
        may_reply: bool,
    ) -> Result<ChangedRole, StoreError> {
        let found = query(&self.pool, "find_role", FIND, &[&role, &tenant.as_str()]).await?;
        let (has_role, has_tenant) =
            found.first().map_or((false, false), |row| (row.get::<_, bool>(0), row.get::<_, bool>(1)));
        if !has_role {
            return Ok(ChangedRole::NoRole);
        }
        if !has_tenant {
            return Ok(ChangedRole::NoTenant);
        }
        self.act("add_role", ADD, &[&actor, &role, &tenant.as_str(), &may_reply]).await?;
        Ok(ChangedRole::Done)
    }

    /// Takes a role's right to enqueue; false if it had none.
    pub async fn remove_role(&self, actor: &str, role: &str) -> Result<bool, StoreError> {
        Ok(self.act("remove_role", REMOVE, &[&actor, &role]).await? > 0)
    }

    /// Returns the roles that may enqueue, by name.
    pub async fn roles(&self) -> Result<Vec<RoleView>, StoreError> {
        let rows = query(&self.pool, "roles", LIST, &[]).await?;
        let read = |row: &tokio_postgres::Row| RoleView {
            role: row.get(0),
            tenant: row.get(1),
            may_reply: row.get(2),
            may_call: row.get(3),
            added_at: row.get(4),
        };
        Ok(rows.iter().map(read).collect())
    }

    /// Grants a role the right to call the function, or takes it. Postgres refuses that to all but the owner of the schema.
    pub async fn change_grant(&self, role: &str, granted: bool) -> Result<(), StoreError> {
        let sql = match granted {
            true => {
                "SELECT format('GRANT USAGE ON SCHEMA %I TO %I; GRANT EXECUTE ON FUNCTION %I.harness_enqueue(json) TO %I', n, $1::text, n, $1::text)"
            }
            false => {
                "SELECT format('REVOKE EXECUTE ON FUNCTION %I.harness_enqueue(json) FROM %I', n, $1::text)"
            }
        };
        let sql = format!(
            "{sql} FROM (SELECT nspname AS n FROM pg_namespace
              WHERE oid = (SELECT relnamespace FROM pg_class WHERE oid = 'harness_inbox'::regclass)) s"
        );
        let rows = query(&self.pool, "grant_text", &sql, &[&role]).await?;
        let text: String = rows.first().map(|row| row.get(0)).unwrap_or_default();
        let client = self.pool.get().await?;
        client.batch_execute(&text).await.map_err(|error| StoreError::from_pg("grant", error))
    }
}
