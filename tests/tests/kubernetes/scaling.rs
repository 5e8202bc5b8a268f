//! The autoscaler in Kubernetes, with only its few rights, on a real fleet whose pods are real workers.

mod world;

mod follows;
mod broken;
