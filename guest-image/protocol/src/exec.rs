//! What host and guest say to each other about one command that is run in a container beside its own program: over a
//! connection of its own, which the host makes to [`crate::EXEC_PORT`] of the guest, and which ends with the command.
//!
//! The host begins with `Start`. Bytes of the command's streams are data frames: from the host those of [`STDIN`], from the
//! guest those of [`STDOUT`] and [`STDERR`]. A command with a terminal has one output, `STDOUT`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;

/// From the host to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToCommand {
    /// First, and once.
    Start {
        container: String,
        /// Program and arguments; never empty. Looked up in the container's `PATH`.
        argv: Vec<String>,
        /// On top of the container's own.
        env: BTreeMap<String, String>,
        /// With a terminal of this size.
        terminal: Option<TerminalSize>,
    },
    /// Nothing more comes to its standard input.
    StdinEnd,
    Resize {
        size: TerminalSize,
    },
    /// Send a signal to the command.
    Signal {
        signal: i32,
    },
}

/// In characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    pub columns: u16,
    pub rows: u16,
}

/// From the guest to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromCommand {
    /// The last word: it could not be run; `reason` is one line.
    Failed { reason: String },
    /// The last word, after all of its output: 0 to 255, 128 + signal when a signal ended it.
    Exited { exit_code: i32 },
}
