//! The frame layout. Placeholder.
