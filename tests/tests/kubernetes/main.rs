//! What is promised about an autoscaler in Kubernetes, tested with a real API server.

mod rights;
mod rivals;
mod target;
mod programs;
mod scaling;
