//! A Kubernetes cluster without nodes: a real etcd, kube-apiserver and kube-controller-manager, with RBAC on.
//!
//! Controllers create and remove the pods of Deployments and StatefulSets, but nothing runs the pods. So a test decides
//! which are Ready ([`Namespace::set_pod`]). The programs come from the folder `KUBEBUILDER_ASSETS`.
//!
//! The tests of one process share a cluster; each has its own namespace. A test that breaks the API server uses its own
//! cluster.

mod servers;
mod folder;
mod namespace;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::{until, until_ok};
use folder::Folder;
use servers::{Programs, Server};

pub use namespace::{Namespace, PodState};

/// The API server makes its own certificate and stores it here.
const CERTIFICATE: &str = "certificates/apiserver.crt";
/// The kubeconfig with all rights.
const ADMIN: &str = "admin.kubeconfig";

/// A cluster. Its processes and data are removed when it is dropped, at the latest with the test process.
pub struct Cluster {
    programs: Programs,
    etcd: Server,
    api: Option<Server>,
    controllers: Server,
    ports: Ports,
    // The last field, so that nothing writes into the folder when it is removed.
    folder: Folder,
}

struct Ports {
    etcd: u16,
    api: u16,
}

/// Waits until the API server answers that it is ready, while these live.
async fn ready(kubeconfig: &Path, servers: &mut [&mut Server]) {
    until_ok("the API server is ready", async || {
        servers.iter_mut().for_each(|server| server.lives());
        let client = client(kubeconfig).await?;
        let request = http::Request::get("/readyz").body(Vec::new())?;
        anyhow::Ok(client.request_text(request).await?)
    })
    .await;
}

impl Cluster {
    /// The cluster that the tests of this process share.
    pub async fn shared() -> &'static Cluster {
        static SHARED: OnceCell<Cluster> = OnceCell::const_new();
        SHARED.get_or_init(Cluster::start).await
    }

    /// Starts a cluster for one test.
    pub async fn start() -> Cluster {
        let programs = Programs::find();
        let folder = Folder::new();
        let ports = Ports { etcd: servers::free_port(), api: servers::free_port() };
        let token = uuid::Uuid::new_v4().simple().to_string();
        let tokens = format!("{token},admin,admin,system:masters\n");
        std::fs::write(folder.join("tokens.csv"), tokens).expect("a file of tokens");
        write_kubeconfig(&folder.join(ADMIN), &folder, ports.api, &token, "default");
        let mut etcd = programs.etcd(&folder, ports.etcd);
        let mut api = programs.api_server(&folder, ports.etcd, ports.api);
        until("the API server has its certificate", async || {
            etcd.lives();
            api.lives();
            folder.join(CERTIFICATE).exists().then_some(())
        })
        .await;
        ready(&folder.join(ADMIN), &mut [&mut etcd, &mut api]).await;
        // It gives up where the API server is not ready ten seconds later.
        let controllers = programs.controller_manager(&folder);
        Cluster { programs, etcd, api: Some(api), controllers, ports, folder }
    }

    /// A kubeconfig with all rights.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join(ADMIN)
    }

    /// A client with all rights. It belongs to the test's own runtime.
    pub async fn client(&self) -> Client {
        client(&self.kubeconfig()).await.expect("a client")
    }

    /// Whether objects of custom kinds can be created, not only the kinds. An API server as old as 1.20, when built by
    /// a current Go, crashes on the first object (its json-iterator iterates maps as Go did before 1.18).
    pub fn takes_custom_objects(&self) -> bool {
        self.programs.minor > 22
    }

    /// Creates a namespace for one test.
    pub async fn namespace(&self) -> Namespace {
        Namespace::new(self).await
    }

    /// Kills the API server (SIGKILL).
    pub fn kill_api_server(&mut self) {
        self.api = None;
    }

    /// Starts the API server again on the same port, with its data.
    pub async fn start_api_server(&mut self) {
        self.api = Some(self.programs.api_server(&self.folder, self.ports.etcd, self.ports.api));
        let kubeconfig = self.kubeconfig();
        let api = self.api.as_mut().expect("an API server that was started");
        ready(&kubeconfig, &mut [&mut self.etcd, api, &mut self.controllers]).await;
    }

    /// A kubeconfig of the same cluster for the holder of this token.
    pub(crate) fn kubeconfig_for(&self, token: &str, namespace: &str) -> PathBuf {
        let path = self.folder.join(&format!("{namespace}.{}.kubeconfig", uuid::Uuid::new_v4().simple()));
        write_kubeconfig(&path, &self.folder, self.ports.api, token, namespace);
        path
    }

    pub(crate) fn kubectl(&self) -> &Path {
        &self.programs.kubectl
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Returns a client that uses a kubeconfig.
pub(crate) async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let mut config = config(kubeconfig).await?;
    config.read_timeout = Some(Duration::from_secs(20));
    Ok(Client::try_from(config)?)
}

pub(crate) async fn config(kubeconfig: &Path) -> anyhow::Result<Config> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    Ok(Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?)
}

fn write_kubeconfig(path: &Path, folder: &Folder, port: u16, token: &str, namespace: &str) {
    let context = json!({ "cluster": "test", "user": "test", "namespace": namespace });
    let named = |key: &str, value: Value| json!([{ "name": "test", key: value }]);
    let kubeconfig = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": named("context", context),
        "users": named("user", json!({ "token": token })),
        "clusters": named("cluster", json!({
            "server": format!("https://127.0.0.1:{port}"),
            "certificate-authority": folder.join(CERTIFICATE),
        })),
    });
    std::fs::write(path, kubeconfig.to_string()).expect("a kubeconfig");
}
