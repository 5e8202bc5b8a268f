//! The autoscaler.
