//! The network on a real kernel: guests that speak by hand, on hosts that are network namespaces.
//!
//! Needs root, taps, bridges, nf_tables and connection tracking for bridges; what is missing is said loudly.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod guest;
mod host;

mod isolation;
mod lifecycle;
mod traffic;
