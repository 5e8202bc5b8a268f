//! What the tests share: a workspace, programs, and a search for what still runs.

use std::fs;
use std::future::pending;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use job::JobId;
use rustls::crypto::ring;
use rustls::{ClientConfig, RootCertStore};
use tempfile::TempDir;
use tools::{
    Call, CallError, CallKey, Machine, Output, Place, Redaction, SettingError, Toolbox, ToolsConfig, Toolset,
};

/// A workspace, a folder for programs beside it, and the job whose tools run there.
pub struct Bench {
    pub dir: TempDir,
    pub job: JobId,
    pub redaction: Arc<Redaction>,
}

impl Bench {
    pub fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("workspace")).unwrap();
        Bench { dir, job: JobId::now(), redaction: Arc::default() }
    }

    pub fn workspace(&self) -> PathBuf {
        self.dir.path().join("workspace")
    }

    /// Writes a file into the workspace.
    pub fn put(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.workspace().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Writes a program outside of the workspace, and returns its path.
    pub fn program(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub fn sh(&self, name: &str, text: &str) -> String {
        self.program(name, &format!("#!/bin/sh\n{text}\n"))
    }

    pub fn python(&self, name: &str, text: &str) -> String {
        self.program(
            name,
            &format!("#!/usr/bin/python3\nimport json, os, signal, subprocess, sys, time\n{text}\n"),
        )
    }

    pub fn place(&self) -> Place {
        let mark = ("HARNESS_JOB_ID".into(), self.job.to_string().into());
        Place {
            workspace: self.workspace(),
            env: vec![mark],
            port: None,
            resumed: false,
            redaction: self.redaction.clone(),
        }
    }

    /// Opens the tools of an agent whose table is this.
    pub async fn open(&self, table: &str) -> Toolbox {
        let config: ToolsConfig = toml::from_str(table).unwrap();
        let toolset = build(config).unwrap_or_else(|errors| panic!("{errors:?}"));
        Toolbox::open(&toolset, &self.place()).await.unwrap()
    }

    /// Opens a toolbox with one command, `run`, which is this program; `more` are further lines of its table.
    pub async fn command(&self, program: &str, more: &str) -> Toolbox {
        self.open(&format!("[tools.run]\ncommand = ['{program}']\ndescription = 'Runs.'\n{more}")).await
    }

    pub fn key(&self, id: &str) -> CallKey {
        CallKey::new(self.job, id)
    }

    /// Returns where the output of a call is kept.
    pub fn kept(&self, id: &str) -> PathBuf {
        self.workspace().join(".harness/output").join(self.key(id).as_str())
    }

    pub async fn call(&self, toolbox: &Toolbox, name: &str, input: &str) -> Output {
        self.call_until(toolbox, name, input, pending()).await.unwrap()
    }

    pub async fn call_until(
        &self,
        toolbox: &Toolbox,
        name: &str,
        input: &str,
        stop: impl Future<Output = ()>,
    ) -> Result<Output, CallError> {
        toolbox.call(&Call { name, input, key: &self.key("call_1") }, stop).await
    }

    /// Waits until none of the job's processes is left.
    pub async fn nothing_is_left(&self) {
        within("every process has ended", || processes_of(self.job).is_empty()).await;
    }

    /// Waits until a file is in the workspace, and returns its text.
    pub async fn file(&self, name: &str) -> String {
        let path = self.workspace().join(name);
        let read = || fs::read_to_string(&path).unwrap_or_default();
        within(&format!("{name} is written"), || !read().is_empty()).await;
        read()
    }
}

/// Checks the settings of an agent, on a machine without authorities.
pub fn build(config: ToolsConfig) -> Result<Toolset, Vec<SettingError>> {
    let builder = ClientConfig::builder_with_provider(ring::default_provider().into());
    let builder = builder.with_safe_default_protocol_versions().unwrap();
    let tls = builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.build(&Machine { tls: &tls, variable: &|name| std::env::var(name).ok() })
}

/// Waits until something is so. No event crosses from another process to this one.
pub async fn within(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "not so in time: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Every living process that was started for a job, found by its environment, which children inherit.
pub fn processes_of(job: JobId) -> Vec<i32> {
    let mark = format!("HARNESS_JOB_ID={job}");
    let entries = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| {
            // A process that has ended has no environment any more, so zombies do not count.
            let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
        })
        .collect()
}
