//! (tests come below)
