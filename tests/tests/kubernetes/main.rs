//! What is promised of an autoscaler in Kubernetes, against a real API server.

mod rights;
mod rivals;
mod target;
mod scaling;
