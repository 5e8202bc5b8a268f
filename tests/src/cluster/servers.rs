//! The processes of a cluster: where their programs are and how they are started. None outlives the tests.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::folder::Folder;

/// The programs of a control plane.
pub(super) struct Programs {
    folder: PathBuf,
    /// The client.
    pub kubectl: PathBuf,
    /// The minor version: 32 for v1.32.0.
    pub minor: u32,
}

impl Programs {
    /// Fails the test when a program is missing: a skipped test proves nothing.
    pub fn find() -> Programs {
        let how = "`make test` gets them; by hand: export KUBEBUILDER_ASSETS=\"$(ops/dev/kubernetes)\"";
        let folder = std::env::var_os("KUBEBUILDER_ASSETS").unwrap_or_else(|| {
            panic!("KUBEBUILDER_ASSETS is not set: this test needs a real Kubernetes API server. {how}")
        });
        let folder = PathBuf::from(folder);
        for program in ["etcd", "kube-apiserver", "kube-controller-manager", "kubectl"] {
            assert!(folder.join(program).is_file(), "{program} is missing in {}. {how}", folder.display());
        }
        let version = Command::new(folder.join("kube-apiserver")).arg("--version").output();
        let version =
            String::from_utf8_lossy(&version.expect("a kube-apiserver that runs").stdout).into_owned();
        let minor = version.split('.').nth(1).and_then(|minor| minor.parse().ok());
        let minor = minor.unwrap_or_else(|| panic!("a version such as Kubernetes v1.32.0, was {version:?}"));
        Programs { kubectl: folder.join("kubectl"), folder, minor }
    }

    pub fn etcd(&self, folder: &Folder, port: u16) -> Server {
        let client = format!("http://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{}", free_port());
        let mut etcd = Command::new(self.folder.join("etcd"));
        etcd.arg("--data-dir").arg(folder.join("etcd"));
        etcd.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
        etcd.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        etcd.args(["--initial-cluster", &format!("default={peer}")]);
        Server::start(etcd, "etcd", folder)
    }

    pub fn api_server(&self, folder: &Folder, etcd: u16, port: u16) -> Server {
        let certificates = folder.join("certificates");
        let key = certificates.join("apiserver.key");
        let mut api = Command::new(self.folder.join("kube-apiserver"));
        api.arg(format!("--etcd-servers=http://127.0.0.1:{etcd}"));
        api.arg(format!("--secure-port={port}")).arg("--bind-address=127.0.0.1");
        api.arg("--cert-dir").arg(&certificates);
        api.arg("--token-auth-file").arg(folder.join("tokens.csv"));
        api.arg("--authorization-mode=RBAC");
        // The tokens of ServiceAccounts are signed with the key that the API server makes for itself.
        api.arg("--service-account-signing-key-file").arg(&key);
        api.arg("--service-account-key-file").arg(&key);
        api.arg("--service-account-issuer=https://kubernetes.default.svc");
        api.arg("--service-cluster-ip-range=10.0.0.0/24");
        // No pod looks up the API server, and no kubelet brings a pod its token.
        api.arg("--endpoint-reconciler-type=none").arg("--disable-admission-plugins=ServiceAccount");
        Server::start(api, "kube-apiserver", folder)
    }

    pub fn controller_manager(&self, folder: &Folder) -> Server {
        let mut controllers = Command::new(self.folder.join("kube-controller-manager"));
        controllers.arg("--kubeconfig").arg(folder.join(super::ADMIN));
        controllers
            .arg("--controllers=deployment,replicaset,replicationcontroller,statefulset")
            .arg("--leader-elect=false");
        controllers.args(["--kube-api-qps=200", "--kube-api-burst=400"]);
        controllers.arg("--secure-port=0");
        if self.minor < 24 {
            // Old versions have a second port, which was on by default.
            controllers.arg("--port=0");
        }
        Server::start(controllers, "kube-controller-manager", folder)
    }
}

/// A process of a cluster; it is killed when this is dropped.
pub(super) struct Server {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Server {
    fn start(mut command: Command, name: &'static str, folder: &Folder) -> Server {
        let path = folder.join(&format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path).expect("a log");
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("the log again")).stderr(log);
        Server { name, child: spawn(command), log: path }
    }

    /// Fails the test, with the end of the process's log, if the process has ended.
    pub fn lives(&mut self) {
        let Some(status) = self.child.try_wait().expect("a process of ours") else { return };
        panic!("{} ended with {status}. The end of its log:\n{}", self.name, end_of(&self.log));
    }
}

/// Returns the last lines of a log.
pub(super) fn end_of(log: &Path) -> String {
    let log = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(25)..].join("\n")
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = ended {
            eprintln!("{} could not be killed: {error}", self.name);
        }
    }
}

/// Starts a process that dies with the test process. The kernel kills it when the *thread* that started it ends, and a
/// test's thread may end long before the users of the process. So one thread that stays starts all of them.
fn spawn(command: Command) -> Child {
    type Order = (Command, mpsc::SyncSender<Child>);
    static STARTER: OnceLock<mpsc::SyncSender<Order>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, orders) = mpsc::sync_channel::<Order>(8);
        std::thread::spawn(move || {
            for (mut command, started) in orders {
                #[expect(unsafe_code, reason = "only a hook before exec can set a parent-death signal")]
                // SAFETY: the hook makes one system call; it neither allocates nor locks.
                unsafe {
                    command.pre_exec(|| set_pdeathsig(Signal::SIGKILL).map_err(Into::into))
                };
                started.send(command.spawn().expect("a process")).expect("a caller that waits for it");
            }
        });
        sender
    });
    let (sender, started) = mpsc::sync_channel(1);
    starter.send((command, sender)).expect("the thread that starts processes");
    started.recv().expect("a process")
}

/// Returns a port below those that the kernel gives to outgoing connections, so that it is still free after a restart.
pub(super) fn free_port() -> u16 {
    let ports = std::iter::repeat_with(|| fastrand::u16(20_000..32_000)).take(200);
    ports.into_iter().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).expect("a free port")
}
