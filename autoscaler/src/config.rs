//! The pools that this process scales: from a TOML file, or one pool from flags.
//!
//! ```toml
//! [policy]                      # what all pools have in common
//! max_replicas = 50
//!
//! [pools.default]
//! target = "Deployment/worker"  # KIND/NAME, GROUP/VERSION/KIND/NAME for others, or "process"
//! namespace = "agents"          # default: the one this process runs in
//! policy.mode = { type = "target_wait", target_s = 30 }
//! ```

use std::path::Path;

use job::Name;
use serde::Deserialize;
use toml::{Table, Value};

use crate::apply::kubernetes::Reference;
use crate::decide::Policy;

/// One pool.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name: jobs come from the queue `harness.jobs.<name>`.
    pub name: Name,
    /// What is resized for it.
    pub target: TargetName,
    /// How.
    pub policy: Policy,
}

/// What is resized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetName {
    /// Worker processes on this machine.
    Process,
    /// A workload with a scale subresource.
    Kubernetes {
        /// Which.
        workload: Reference,
        /// Its namespace, where one is named.
        namespace: Option<String>,
    },
}

impl TargetName {
    /// Reads `process` or a workload.
    pub fn new(text: &str, namespace: Option<String>) -> Result<TargetName, String> {
        match text.parse() {
            _ if text == "process" => Ok(TargetName::Process),
            Ok(workload) => Ok(TargetName::Kubernetes { workload, namespace }),
            Err(error) => Err(format!("{error}, or process")),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    policy: Table,
    #[serde(default)]
    pools: toml::map::Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PoolTable {
    target: String,
    namespace: Option<String>,
    #[serde(default)]
    policy: Table,
}

/// Reads a pools file. The error tells everything that is wrong with it.
pub fn read(path: &Path) -> Result<Vec<Pool>, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&text).map_err(|problems| format!("{}:\n    {}", path.display(), problems.join("\n    ")))
}

fn parse(text: &str) -> Result<Vec<Pool>, Vec<String>> {
    let file: File = toml::from_str(text).map_err(|error| vec![error.to_string().trim_end().to_owned()])?;
    if file.pools.is_empty() {
        return Err(vec!["pools: got none, expected at least one table such as [pools.default]".to_owned()]);
    }
    let mut problems = Vec::new();
    let mut pools = Vec::new();
    for (name, table) in file.pools {
        match pool(&name, table, &file.policy) {
            Ok(pool) => pools.push(pool),
            Err(found) => {
                problems.extend(found.into_iter().map(|problem| format!("pools.{name}.{problem}")));
            }
        }
    }
    if problems.is_empty() { Ok(pools) } else { Err(problems) }
}

fn pool(name: &str, table: Value, common: &Table) -> Result<Pool, Vec<String>> {
    let one = |field: &str, problem: &dyn std::fmt::Display| vec![format!("{field}: {problem}")];
    let name = Name::try_from(name.to_owned()).map_err(|problem| one("name", &problem))?;
    let table: PoolTable =
        table.try_into().map_err(|error: toml::de::Error| one("table", &error.message()))?;
    let target =
        TargetName::new(&table.target, table.namespace).map_err(|problem| one("target", &problem))?;
    let policy = policy(overlay(common.clone(), table.policy)).map_err(|problem| one("policy", &problem))?;
    let problems = policy.check();
    if !problems.is_empty() {
        return Err(problems.into_iter().map(|problem| format!("policy.{problem}")).collect());
    }
    Ok(Pool { name, target, policy })
}

/// A policy from a table; what the table leaves out is as usual, also within `scale_up` and `scale_down`.
pub fn policy(table: Table) -> Result<Policy, String> {
    let usual = Table::try_from(Policy::default()).expect("a policy has only what TOML can hold");
    overlay(usual, table).try_into().map_err(|error: toml::de::Error| error.message().to_owned())
}

/// The second over the first, table by table. A `mode` of another type replaces the common one whole.
fn overlay(mut below: Table, above: Table) -> Table {
    for (key, value) in above {
        let value = match (below.remove(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) if same_type(&old, &new) => {
                Value::Table(overlay(old, new))
            }
            (_, new) => new,
        };
        below.insert(key, value);
    }
    below
}

fn same_type(old: &Table, new: &Table) -> bool {
    new.get("type").is_none_or(|kind| old.get("type") == Some(kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::Mode;

    #[test]
    fn a_pool_overlays_what_all_have_in_common() {
        let pools = parse(
            "[policy]\nmax_replicas = 50\nmode = { type = 'backlog', jobs_per_worker = 3.0 }\n\
             [pools.a]\ntarget = 'deployment/a'\nnamespace = 'ns'\npolicy.min_replicas = 1\n\
             [pools.b]\ntarget = 'process'\npolicy.mode = { jobs_per_worker = 5.0 }\n",
        )
        .unwrap();
        let [a, b] = pools.as_slice() else { panic!("{pools:?}") };
        assert_eq!((a.policy.min_replicas, a.policy.max_replicas), (1, 50));
        assert_eq!(a.policy.mode, Mode::Backlog { jobs_per_worker: 3.0 });
        assert_eq!(
            a.target,
            TargetName::Kubernetes {
                workload: "apps/v1/Deployment/a".parse().unwrap(),
                namespace: Some("ns".into())
            }
        );
        assert_eq!(b.policy.mode, Mode::Backlog { jobs_per_worker: 5.0 });
        assert_eq!(b.target, TargetName::Process);
    }

    #[test]
    fn all_that_is_wrong_is_told_with_its_place() {
        let problems = parse(
            "[pools.a]\ntarget = 'worker'\n[pools.b]\ntarget = 'process'\npolicy.min_replica = 1\n\
             [pools.c]\ntarget = 'process'\npolicy = { min_replicas = 5, max_replicas = 2 }\n",
        )
        .unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].starts_with("pools.a.target: got \"worker\""), "{problems:?}");
        assert!(problems[1].starts_with("pools.b.policy: unknown field `min_replica`"), "{problems:?}");
        assert!(problems[2].starts_with("pools.c.policy."), "{problems:?}");
        assert!(parse("").unwrap_err()[0].starts_with("pools: got none"));
    }
}
