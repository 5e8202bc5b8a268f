//! What a program may reach, without root: Landlock bounds files, TCP ports and other processes, seccomp the rest.
//!
//! | what | by | since Linux |
//! |---|---|---|
//! | other processes are neither signalled nor read or traced | Landlock | 6.12; read and traced: 5.13 |
//! | files | Landlock | 5.13 |
//! | TCP ports | Landlock | 6.7 |
//! | packets, raw sockets, UDP, Unix sockets, other families of sockets; `ptrace`, mounts, keyrings, BPF, kernel modules | seccomp | any |
//!
//! Sources: docs.kernel.org/userspace-api/landlock.html, seccomp(2). Landlock knows TCP by port and not by address, and it
//! does not see a connection that `MSG_FASTOPEN` opens, nor another protocol than TCP on a stream socket. seccomp refuses
//! these. Neither looks into `io_uring`, which is refused as a whole.

mod filter;
mod files;
mod kernel;
mod settings;

use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, NetPort, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use nix::errno::Errno;
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use seccompiler::{BpfProgram, apply_filter};

pub use kernel::Kernel;
pub use settings::{Level, Online, Reach, SandboxConfig};

/// The newest rules that are asked for. What an older kernel does not know of them is left out, or refused if all of it is
/// required.
const NEWEST: ABI = ABI::V6;

/// With these a root program reads other processes in spite of Landlock.
const PAST_LANDLOCK: [CapabilitySet; 3] =
    [CapabilitySet::SYS_ADMIN, CapabilitySet::SYS_PTRACE, CapabilitySet::PERFMON];

/// What a program may reach.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Whether a kernel that cannot keep all of it is refused.
    pub required: bool,
    /// The files, unless it is all of them.
    pub files: Option<Files>,
    /// The network.
    pub network: Network,
}

/// The files that a program may reach, besides its workspace and the system's libraries and programs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Files and folders to read and to run.
    pub read: Vec<PathBuf>,
    /// Files and folders to read, to run and to change.
    pub write: Vec<PathBuf>,
}

/// What a program may reach over the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Network {
    /// Everything, but for raw sockets.
    #[default]
    All,
    /// TCP to one port, or nothing in a run that is given none. No Unix sockets.
    Port,
    /// Nothing, and no Unix sockets.
    None,
}

/// A sandbox for programs. Each run gets one of its own.
#[derive(Clone)]
pub struct Sandbox {
    rules: Rules,
    /// There is none if this kernel takes none, and none is required.
    filter: Option<BpfProgram>,
    /// The filter of a run that is given no port.
    without_port: Option<BpfProgram>,
}

/// This kernel cannot keep what is required.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Landlock.
    #[error("this kernel cannot keep it: {0}")]
    Landlock(#[from] RulesetError),
    /// seccomp.
    #[error("this kernel cannot keep it: {0}")]
    Filter(#[from] seccompiler::BackendError),
    /// A thread could not enter it.
    #[error("it cannot be entered on this machine: {0}")]
    NotEntered(#[source] io::Error),
}

/// A sandbox that a new process enters.
pub struct Entry {
    ruleset: Option<RulesetCreated>,
    filter: Option<BpfProgram>,
}

impl Sandbox {
    /// Tries whether a process can enter it here: in a thread of its own, which it binds alone. Unless all of the rules are
    /// required, those that cannot be kept are left out.
    pub fn new(rules: Rules) -> Result<Sandbox, SandboxError> {
        // Without a port there is nothing to reach, and no kernel is too old to keep that.
        let without_port = if rules.network == Network::Port { Network::None } else { rules.network };
        let (filter, without_port) = (filter::of(rules.network)?, filter::of(without_port)?);
        let mut sandbox = Sandbox { filter: Some(filter), without_port: Some(without_port), rules };
        sandbox.ruleset()?;
        let mut entry = sandbox.enter(Path::new("/"), None).map_err(SandboxError::NotEntered)?;
        let entered = thread::spawn(move || entry.apply()).join().unwrap_or(Err(Errno::EFAULT));
        match entered {
            Ok(()) => {}
            Err(error) if sandbox.rules.required => return Err(SandboxError::NotEntered(error.into())),
            Err(error) => {
                tracing::warn!(cause = %error, "programs run without a filter of system calls, which this machine refuses");
                (sandbox.filter, sandbox.without_port) = (None, None);
            }
        }
        if sandbox.rules.network == Network::Port && !Kernel::of_this_machine().bounds_ports() {
            tracing::warn!("{}", kernel::ALL_PORTS);
        }
        Ok(sandbox)
    }

    /// Returns whether files are bounded.
    pub fn bounds_files(&self) -> bool {
        self.rules.files.is_some()
    }

    /// Returns what may have been refused to a program, if what it wrote last says that something was.
    pub fn may_have_refused(&self, said: &str) -> Option<&'static str> {
        let says_so = ["Operation not permitted", "EPERM"].iter().any(|words| said.contains(words));
        match self.rules.network {
            _ if !says_so || self.filter.is_none() => None,
            Network::All => None,
            Network::Port => Some(
                "its sandbox has network = \"gateway\", which allows no Unix sockets, and no others but to the gateway",
            ),
            Network::None => {
                Some("its sandbox has network = \"none\", which allows no sockets, Unix sockets included")
            }
        }
    }

    /// Makes the sandbox of one run.
    pub fn enter(&self, workspace: &Path, port: Option<u16>) -> io::Result<Entry> {
        let ruleset = self.ruleset().and_then(|ruleset| self.allow(ruleset, workspace, port));
        let filter = if port.is_some() { &self.filter } else { &self.without_port };
        Ok(Entry { ruleset: Some(ruleset.map_err(io::Error::other)?), filter: filter.clone() })
    }

    /// Makes a set that allows nothing of what it bounds.
    fn ruleset(&self) -> Result<RulesetCreated, RulesetError> {
        let level = if self.rules.required { CompatLevel::HardRequirement } else { CompatLevel::BestEffort };
        let mut ruleset = Ruleset::default().set_compatibility(level).scope(Scope::Signal)?;
        // A program needs no right to make block devices. But a kernel without scopes isolates processes only if a set
        // bounds any file at all.
        let bounded =
            if self.rules.files.is_some() { AccessFs::from_all(NEWEST) } else { AccessFs::MakeBlock.into() };
        ruleset = ruleset.handle_access(bounded)?;
        if self.rules.network != Network::All {
            ruleset = ruleset.scope(Scope::AbstractUnixSocket)?;
        }
        if self.rules.network == Network::Port {
            ruleset = ruleset.handle_access(AccessNet::from_all(NEWEST))?;
        }
        ruleset.create()
    }

    fn allow(
        &self,
        mut ruleset: RulesetCreated,
        workspace: &Path,
        port: Option<u16>,
    ) -> Result<RulesetCreated, RulesetError> {
        let (all, read) = (AccessFs::from_all(NEWEST), AccessFs::from_read(NEWEST));
        if let Some(Files { read: readable, write }) = &self.rules.files {
            let (readable, write) =
                (readable.iter().map(PathBuf::as_path), write.iter().map(PathBuf::as_path));
            let system = files::READ.iter().map(Path::new);
            ruleset = ruleset
                .add_rules(path_beneath_rules(system.chain(readable), read))?
                .add_rules(path_beneath_rules(files::DEVICES, AccessFs::ReadFile | AccessFs::WriteFile))?
                .add_rules(path_beneath_rules(write.chain([workspace]), all))?;
        }
        match port {
            Some(port) if self.rules.network == Network::Port => {
                ruleset.add_rule(NetPort::new(port, AccessNet::ConnectTcp))
            }
            _ => Ok(ruleset),
        }
    }
}

impl Entry {
    /// Restricts the process that calls it, for good. It makes system calls alone, so it may run between fork and exec.
    pub(crate) fn apply(&mut self) -> Result<(), Errno> {
        for capability in PAST_LANDLOCK {
            // A process that may not do this gains no capability by its exec, because of `no_new_privs`.
            let _ = remove_capability_from_bounding_set(capability);
        }
        if let Some(ruleset) = self.ruleset.take() {
            ruleset.restrict_self().map_err(|_| Errno::last())?;
        }
        match &self.filter {
            Some(filter) => apply_filter(filter).map_err(|_| Errno::last()),
            None => Ok(()),
        }
    }
}
