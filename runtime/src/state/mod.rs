//! What is kept in the store, and under which keys.

pub mod keys;
