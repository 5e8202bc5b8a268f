//! An error names what could not be reached and its address, gives the cause once, and names the setting to check.

use std::net::TcpListener;
use std::process::Command;

use tests::{Fleet, Ran};

/// Returns an address where nothing listens.
fn closed() -> String {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port");
    free.local_addr().expect("its address").to_string()
}

async fn run(mut command: Command, settings: &[(&str, &str)]) -> Ran {
    command.envs(settings.iter().copied());
    Ran::of(command, "").await
}

#[tokio::test]
async fn what_cannot_be_reached_is_named_with_its_address_and_its_cause_once() {
    let fleet = Fleet::new().await;
    let (api, management, postgres) = (closed(), closed(), closed());
    let kubeconfig = fleet.folder.path().join("kubeconfig");
    let text = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, clusters: [{{name: c, cluster: {{server: 'https://{api}'}}}}],
          users: [{{name: u, user: {{token: secret}}}}], contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}"
    );
    std::fs::write(&kubeconfig, text).expect("written");
    let kubeconfig = kubeconfig.to_string_lossy();
    let once = fleet.autoscaler_command(&["once", "--dry-run", "--target", "Deployment/worker"]);
    let once = run(once, &[("KUBECONFIG", &kubeconfig)]).await;
    let observe = fleet.autoscaler_command(&["observe"]);
    let observe = run(observe, &[("MANAGEMENT_URL", &format!("http://u:secret@{management}"))]).await;
    let status = fleet.producer_command(&["status", "0198c0de-7a00-7000-8000-000000000001"]);
    let status = run(status, &[("DATABASE_URL", &format!("postgres://u:secret@{postgres}/d"))]).await;
    let audit = fleet.producer_command(&["audit"]);
    let audit = run(audit, &[("DATABASE_URL", &format!("postgres://u:secret@{postgres}/d"))]).await;
    let api = format!("the API server https://{api} (KUBECONFIG, KUBE_CONTEXT) cannot be reached: ");
    for (ran, code, said) in [
        (once, 1, api.as_str()),
        (observe, 3, management.as_str()),
        (status, 1, "Connection refused"),
        (audit, 1, "Connection refused"),
    ] {
        assert_eq!(ran.code, code, "{ran:?}");
        assert!(ran.err.contains(said) && !ran.err.contains("secret"), "{ran:?}");
        for cause in ["Connection refused (os error 111)", "client error (Connect)", "error connecting"] {
            assert!(ran.err.matches(cause).count() <= 1, "{ran:?}");
        }
    }
}

#[tokio::test]
async fn without_a_way_to_a_cluster_it_is_said_once_where_one_was_looked_for() {
    let fleet = Fleet::new().await;
    let once = fleet.autoscaler_command(&["once", "--dry-run", "--target", "Deployment/worker"]);
    let ran = run(once, &[("KUBECONFIG", "/no/such/file")]).await;
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.err.contains("KUBE_CONTEXT: found no kubeconfig (KUBECONFIG, ~/.kube/config)"), "{ran:?}");
    for part in ["/no/such/file", "No such file or directory", "failed to infer config"] {
        assert_eq!(ran.err.matches(part).count(), 1, "{part}: {ran:?}");
    }
}
