//! The autoscaler in Kubernetes, with its own few rights, over a real fleet whose pods are real workers.

mod world;

mod follows;
mod broken;
