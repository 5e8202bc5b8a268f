//! The programs of a control plane that are on a machine already are found, and nothing is downloaded or built.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A folder of programs that start.
fn programs(folder: &Path) {
    std::fs::create_dir_all(folder).expect("a folder");
    for name in ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"] {
        let path = folder.join(name);
        std::fs::write(&path, "#!/bin/sh\n").expect("written");
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("a file of ours");
    }
}

/// Runs `ops/dev/kubernetes` where nothing can be downloaded or installed: a PATH of few programs.
fn find(home: &TempDir, variables: &[(&str, &str)]) -> Output {
    let tools = home.path().join("tools");
    std::fs::create_dir_all(&tools).expect("a folder");
    for tool in ["bash", "dirname", "flock", "mkdir", "rm", "uname"] {
        let found = ["/usr/bin", "/bin"].map(|folder| PathBuf::from(folder).join(tool));
        let found = found.iter().find(|path| path.is_file()).unwrap_or_else(|| panic!("{tool}: not there"));
        // It may be there from an earlier call.
        let _ = std::os::unix::fs::symlink(found, tools.join(tool));
    }
    let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/dev/kubernetes");
    let mut command = Command::new(program);
    command.env_clear().env("PATH", &tools).env("HOME", home.path()).envs(variables.iter().copied());
    command.output().expect("ops/dev/kubernetes starts")
}

fn printed(output: &Output) -> PathBuf {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).trim_end().into()
}

#[test]
fn programs_in_the_cache_are_taken_whatever_the_folder_is_named() {
    let home = TempDir::new().expect("a folder");
    let cache = home.path().join(".cache/harness-fleet");
    programs(&cache.join("kubernetes-aaa.part"));
    std::fs::create_dir_all(cache.join("kubernetes-broken")).expect("a folder");
    programs(&cache.join("kubernetes-mine"));
    assert_eq!(printed(&find(&home, &[])), cache.join("kubernetes-mine"));

    let elsewhere = home.path().join("elsewhere");
    programs(&elsewhere.join("harness-fleet/kubernetes-other"));
    let found = find(&home, &[("XDG_CACHE_HOME", &elsewhere.to_string_lossy())]);
    assert_eq!(printed(&found), elsewhere.join("harness-fleet/kubernetes-other"));
}

#[test]
fn kubebuilder_assets_comes_first_and_is_refused_where_it_lacks_a_program() {
    let home = TempDir::new().expect("a folder");
    programs(&home.path().join(".cache/harness-fleet/kubernetes-mine"));
    let own = home.path().join("own");
    programs(&own);
    let variable = [("KUBEBUILDER_ASSETS", &*own.to_string_lossy())];
    assert_eq!(printed(&find(&home, &variable)), own);

    std::fs::remove_file(own.join("etcd")).expect("it was there");
    let refused = find(&home, &variable);
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("KUBEBUILDER_ASSETS") && said.contains("etcd"),
        "{refused:?}"
    );
}
