//! The table `sandbox` of an agent: what its program may reach.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::kernel::{ALL_PORTS, Kernel};
use super::{Files, Network, Rules, Sandbox};
use crate::program::SettingError;

/// What a program may reach. A session's workspace is always its own to change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxConfig {
    /// Whether there is one, and whether a kernel that cannot keep all of it is refused.
    pub level: Level,
    /// The files.
    pub files: Reach,
    /// Files and folders to read and to run, with `files = "workspace"`.
    pub read: Vec<PathBuf>,
    /// Files and folders to change, with `files = "workspace"`.
    pub write: Vec<PathBuf>,
    /// The network.
    pub network: Online,
}

/// Whether programs run in a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// There is none.
    Off,
    /// What this kernel can keep.
    #[default]
    BestEffort,
    /// All of it; the worker does not start on a kernel that cannot keep it.
    Required,
}

/// Which files a program reaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// Those that the worker's user may.
    #[default]
    All,
    /// The workspace, the system's libraries and programs, and those that are named.
    Workspace,
}

/// What a program reaches over the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Online {
    /// Everything but raw sockets.
    #[default]
    All,
    /// The worker's gateway for model calls. No Unix sockets.
    Gateway,
    /// Nothing, and no Unix sockets.
    None,
}

impl SandboxConfig {
    /// Returns what is easily not expected of these settings on this machine, for people.
    pub fn note(&self) -> Option<String> {
        self.note_on(&Kernel::of_this_machine())
    }

    pub(super) fn note_on(&self, kernel: &Kernel) -> Option<String> {
        let network = match self.network {
            _ if self.level == Level::Off => return None,
            Online::All => return None,
            Online::Gateway => "gateway",
            Online::None => "none",
        };
        let ports = match self.network {
            Online::Gateway if !kernel.bounds_ports() => format!("; {ALL_PORTS}"),
            _ => String::new(),
        };
        Some(format!(
            "network = \"{network}\" allows no Unix sockets either; a program that needs one (a local database's, an ssh \
             agent's, Docker's) needs network = \"all\"{ports}"
        ))
    }

    /// Makes the sandbox of these programs. Files that their command names can be read.
    pub fn check<'a>(
        self,
        command: impl Iterator<Item = &'a Path>,
    ) -> Result<Option<Sandbox>, Vec<SettingError>> {
        let mut problems = Vec::new();
        for (setting, paths) in [("read", &self.read), ("write", &self.write)] {
            for (at, path) in paths.iter().enumerate() {
                let setting = format!("sandbox.{setting}[{at}]");
                if self.files == Reach::All {
                    let problem =
                        "got a path, but all files can be reached; expected files = \"workspace\" beside it";
                    problems.push(SettingError::new(setting, problem));
                } else if !path.is_absolute() || !path.exists() {
                    let problem = format!(
                        "got \"{}\", expected the absolute path of something that exists",
                        path.display()
                    );
                    problems.push(SettingError::new(setting, problem));
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        if self.level == Level::Off {
            return Ok(None);
        }
        let named = command.filter(|path| path.is_absolute() && path.is_file()).map(Path::to_owned);
        let files = Files { read: self.read.into_iter().chain(named).collect(), write: self.write };
        let rules = Rules {
            required: self.level == Level::Required,
            files: (self.files == Reach::Workspace).then_some(files),
            network: match self.network {
                Online::All => Network::All,
                Online::Gateway => Network::Port,
                Online::None => Network::None,
            },
        };
        let made =
            Sandbox::new(rules).map_err(|error| vec![SettingError::new("sandbox.level", error.to_string())]);
        made.map(Some)
    }
}
