//! A node: it does what a kubelet does for the workers' pods of a namespace. Each pod is a real worker process that
//! knows the pod's name. A pod is Ready when its process's `/ready` says so, and a process whose pod was deleted gets
//! SIGTERM.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::{Launch, Namespace, PodState, Worker};

/// The interval between looks at the pods.
const LOOK: Duration = Duration::from_millis(100);

/// Runs the pods of a namespace until it is dropped.
pub struct Node {
    running: JoinHandle<()>,
    room: Arc<AtomicUsize>,
    exits: Arc<Mutex<Vec<(String, i32)>>>,
}

impl Node {
    /// Runs the workers' pods of this namespace with this launch, as many as there is room for; the others stay
    /// pending.
    pub fn run(
        namespace: Arc<Namespace>,
        room: usize,
        launch: impl Fn(&str) -> Launch + Send + 'static,
    ) -> Node {
        let exits = Arc::default();
        let room = Arc::new(AtomicUsize::new(room));
        let has_room = room.clone();
        let text: Arc<Mutex<Vec<(String, i32)>>> = Arc::clone(&exits);
        let running = tokio::spawn(async move {
            let mut workers = BTreeMap::<String, (Worker, Option<PodState>)>::new();
            loop {
                let pods = namespace.pod_names().await;
                let (stay, gone): (BTreeMap<_, _>, BTreeMap<_, _>) =
                    workers.into_iter().partition(|(pod, _)| pods.contains(pod));
                workers = stay;
                for (pod, (mut worker, _)) in gone {
                    let text = text.clone();
                    worker.terminate();
                    tokio::spawn(async move {
                        let code = worker.exit().await;
                        text.lock().unwrap_or_else(PoisonError::into_inner).push((pod, code));
                    });
                }
                for pod in &pods {
                    if !workers.contains_key(pod) && workers.len() < has_room.load(Ordering::Relaxed) {
                        let worker = launch(pod).set("POD_NAME", pod).launch();
                        workers.insert(pod.clone(), (worker, None));
                    }
                }
                for (pod, (worker, was)) in &mut workers {
                    let ready = worker.get("/ready").await.0 == 200;
                    let is = if ready { PodState::Ready } else { PodState::NotReady };
                    if was.replace(is) != Some(is) {
                        namespace.set_pod(pod, is).await;
                    }
                }
                tokio::time::sleep(LOOK).await;
            }
        });
        Node { running, room, exits }
    }

    /// Changes how many pods there is room for. Running pods stay.
    pub fn set_room(&self, room: usize) {
        self.room.store(room, Ordering::Relaxed);
    }

    /// Pods that were deleted and whose process has ended since, with its exit code.
    pub fn exits(&self) -> Vec<(String, i32)> {
        self.exits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.running.abort();
    }
}
