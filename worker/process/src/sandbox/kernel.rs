//! What the kernel of this machine can keep of a sandbox, for people.

use std::thread;

use landlock::{
    ABI, AccessFs, CompatLevel, Compatible, LandlockStatus, Ruleset, RulesetAttr, RulesetError, Scope,
};
use seccompiler::apply_filter;

use super::{Network, filter};

/// What it lacks where a program that is to reach one port reaches all.
const PORTS: &str = "bounds of TCP ports (since Linux 6.7)";
/// And what that means.
pub(super) const ALL_PORTS: &str = "this kernel has no bounds of TCP ports (since Linux 6.7), so a program that may reach the \
    gateway with network = \"gateway\" reaches every TCP port; network = \"none\" is kept on any kernel";

/// What the kernel of this machine can keep of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// What it cannot keep. A sandbox with `level = "required"` that needs any of it is refused.
    pub lacks: Vec<&'static str>,
}

impl Kernel {
    /// Tries it, in a thread of its own.
    pub fn of_this_machine() -> Kernel {
        let landlock = thread::spawn(landlock).join().ok().and_then(Result::ok).unwrap_or(ABI::Unsupported);
        let filters =
            thread::spawn(|| filter::of(Network::None).is_ok_and(|filter| apply_filter(&filter).is_ok()));
        let filters = filters.join().unwrap_or(false);
        let lacking = [
            (
                landlock < ABI::V1,
                "bounds of files, nor of reading other processes (Landlock, since Linux 5.13)",
            ),
            (landlock < ABI::V4, PORTS),
            (landlock < ABI::V6, "bounds of signals to other processes (since Linux 6.12)"),
            (!filters, "filter of system calls (seccomp)"),
        ];
        Kernel { lacks: lacking.into_iter().filter(|(lacks, _)| *lacks).map(|(_, what)| what).collect() }
    }

    /// Returns whether it bounds the TCP ports that a program reaches.
    pub(super) fn bounds_ports(&self) -> bool {
        !self.lacks.contains(&PORTS)
    }
}

/// Returns which rules of Landlock a thread has entered.
fn landlock() -> Result<ABI, RulesetError> {
    let rules = Ruleset::default().set_compatibility(CompatLevel::BestEffort).scope(Scope::Signal)?;
    let entered = rules.handle_access(AccessFs::MakeBlock)?.create()?.restrict_self()?;
    Ok(match entered.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi,
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => ABI::Unsupported,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Rules, Sandbox};
    use super::*;

    #[test]
    fn a_kernel_without_bounds_of_ports_is_noted_where_one_port_is_to_be_reached() {
        use super::super::{Level, Online, SandboxConfig};

        let (old, new) = (Kernel { lacks: vec![PORTS] }, Kernel { lacks: Vec::new() });
        for (network, level, kernel, is_noted) in [
            (Online::Gateway, Level::BestEffort, &old, true),
            (Online::Gateway, Level::BestEffort, &new, false),
            (Online::None, Level::BestEffort, &old, false),
            (Online::All, Level::BestEffort, &old, false),
            (Online::Gateway, Level::Off, &old, false),
        ] {
            let config = SandboxConfig { network, level, ..SandboxConfig::default() };
            let note = config.note_on(kernel).unwrap_or_default();
            assert_eq!(note.contains("reaches every TCP port"), is_noted, "{network:?}: {note}");
        }
    }

    #[test]
    fn a_kernel_that_lacks_nothing_takes_what_is_required() {
        let required = Rules { required: true, files: Some(Default::default()), network: Network::Port };
        assert_eq!(Kernel::of_this_machine().lacks.is_empty(), Sandbox::new(required).is_ok());
    }
}
