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
use std::sync::LazyLock;

use job::Name;
use serde::Deserialize;
use service::{TomlFile, TomlValue, unsaid};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::decide::Policy;
use workload::kubernetes::Reference;

/// One pool.
#[derive(Clone, Debug)]
pub struct Pool {
    /// Its name: jobs come from the queue `harness.jobs.<name>`.
    pub name: Name,
    /// What is resized for it.
    pub target: TargetName,
    /// How it is resized.
    pub policy: Policy,
}

/// What is resized.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetName {
    /// Worker processes on this machine.
    Process,
    /// A workload with a scale subresource.
    Kubernetes {
        /// Its kind and name.
        workload: Reference,
        /// Its namespace, if one is given.
        namespace: Option<String>,
    },
}

impl TargetName {
    /// Parses `process` or the name of a workload.
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
struct PoolTable {
    target: String,
    namespace: Option<String>,
}

static USUAL: LazyLock<String> =
    LazyLock::new(|| toml::to_string(&Policy::default()).expect("TOML can hold every field of a policy"));

/// Reads a pools file. The error lists everything that is wrong with it, line by line.
pub fn read(path: &Path) -> Result<Vec<Pool>, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| format!("{} cannot be read: {error}, expected a TOML file", path.display()))?;
    parse(&text).map_err(|problems| format!("{}:{problems}", path.display()))
}

/// Reads a file that holds one policy. [`Policy::check`] checks its numbers.
pub fn read_policy(path: &Path) -> Result<Policy, String> {
    let named = |problem: String| format!("{}:{problem}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| named(format!(" {error}")))?;
    let mut file = TomlFile::parse(&text).map_err(named)?;
    let table = overlay(unsaid(&USUAL), file.whole());
    let policy = file.read("policy", table, Policy::deserialize);
    file.finish(policy.unwrap_or_default()).map_err(named)
}

fn parse(text: &str) -> Result<Vec<Pool>, String> {
    let mut file = TomlFile::parse(text)?;
    file.only(&["policy", "pools"]);
    let common = file.table("policy");
    let mut pools = Vec::new();
    for (name, table) in file.tables("pools") {
        pools.extend(pool(&mut file, &name, table, common.as_ref()));
    }
    file.finish(pools)
}

/// Reads a pool from its table, and notes what is wrong with it.
fn pool<'i>(
    file: &mut TomlFile<'i>,
    name: &str,
    mut table: TomlValue<'i>,
    common: Option<&TomlValue<'i>>,
) -> Option<Pool> {
    let place = format!("pools.{name}");
    let span = table.span();
    let own = match table.get_mut() {
        DeValue::Table(entries) => entries.remove("policy"),
        _ => None,
    };
    let mut policy = unsaid(&USUAL);
    for said in common.cloned().into_iter().chain(own) {
        policy = overlay(policy, said);
    }
    // A field that the merged policy lacks is reported at the pool.
    let policy_table = Spanned::new(span, policy.into_inner());
    let policy = file.read(&format!("{place}.policy"), policy_table.clone(), Policy::deserialize);
    for problem in policy.iter().flat_map(Policy::check) {
        let (setting, problem) = problem.split_once(": ").unwrap_or(("", &problem));
        file.note(&format!("{place}.policy"), &policy_table, setting, problem);
    }
    let pool_name = Name::try_from(name.to_owned()).map_err(|problem| file.note(&place, &table, "", problem));
    let read = file.read(&place, table.clone(), PoolTable::deserialize)?;
    let target = TargetName::new(&read.target, read.namespace)
        .map_err(|problem| file.note(&place, &table, "target", problem));
    Some(Pool { name: pool_name.ok()?, target: target.ok()?, policy: policy? })
}

/// Merges the second over the first, table by table. A `mode` of another type replaces the common one as a whole.
fn overlay<'i>(below: TomlValue<'i>, above: TomlValue<'i>) -> TomlValue<'i> {
    let span = above.span();
    match (below.into_inner(), above.into_inner()) {
        (DeValue::Table(mut below), DeValue::Table(above)) if same_type(&below, &above) => {
            for (key, value) in above {
                let value = match below.remove(key.get_ref().as_ref()) {
                    Some(old) => overlay(old, value),
                    None => value,
                };
                below.insert(key, value);
            }
            Spanned::new(span, DeValue::Table(below))
        }
        (_, above) => Spanned::new(span, above),
    }
}

fn same_type(old: &DeTable<'_>, new: &DeTable<'_>) -> bool {
    let kind = |table: &DeTable<'_>| match table.get("type").map(Spanned::get_ref) {
        Some(DeValue::String(kind)) => Some(kind.to_string()),
        _ => None,
    };
    kind(new).is_none_or(|new| kind(old) == Some(new))
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
    fn all_that_is_wrong_is_reported_with_its_line() {
        let problems = parse(
            "[policy]\nmax_replica = 1\ncooldown_s = 99999999\n[pools.a]\ntarget = 'worker'\n\
             [pools.b]\ntarget = 'process'\npolicy.min_replica = 1\npolicy.scale_up.tolerance = 'x'\nname = 1\n\
             [pools.c]\ntarget = 'process'\npolicy = { min_replicas = 5, max_replicas = 2 }\n\
             [pools.'d e']\n[pools.d.policy]\nmode = { type = 'backlog', jobs_per_worker = 0 }\n\
             scale_up.policies = [{ type = 'Pods', value = 1, period_s = 15 },\n{ type = 'Pods', value = 0, period_s = 15 }]\n\
             [pool]\n",
        )
        .unwrap_err();
        let report: Vec<&str> = problems.lines().skip(1).map(str::trim).collect();
        let expected = [
            "line 2: policy.max_replica: unknown `max_replica`, expected one of `mode`, `min_replicas`",
            "line 3: policy.cooldown_s: 99999999 is not from 0 to",
            "line 5: pools.a.target: got \"worker\"",
            "line 8: pools.b.policy.min_replica: unknown `min_replica`, expected one of",
            "line 9: pools.b.policy.scale_up.tolerance: invalid type: string \"x\", expected a number",
            "line 10: pools.b.name: unknown `name`, expected `target` or `namespace`",
            "line 13: pools.c.policy.min_replicas: 5 is more than max_replicas (2)",
            "line 14: pools.d e: got \"d e\"",
            "line 14: pools.d e: missing `target`",
            "line 15: pools.d: missing `target`",
            "line 16: pools.d.policy.mode.jobs_per_worker: 0 is not from",
            "line 18: pools.d.policy.scale_up.policies[1].value: 0 is not a valid limit",
            "line 19: pool: unknown, expected policy or pools",
        ];
        for (at, start) in expected.into_iter().enumerate() {
            let report = report.get(at).copied().unwrap_or_default();
            assert!(report.starts_with(start), "{start} is not {report} in {problems}");
        }
        assert_eq!(report.len(), expected.len(), "{problems}");
        assert!(parse("").unwrap_err().contains("pools: got none"));
    }
}
