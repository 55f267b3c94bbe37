//! The network on a real kernel: guests that speak by hand, on hosts that are network namespaces.
//!
//! Needs root, taps, bridges, nf_tables and connection tracking for bridges; what is missing is said loudly.

mod guest;
mod host;

mod isolation;
mod lifecycle;
mod traffic;
