//! How long a session waits, and for what.

use std::time::Duration;

/// How long things may take.
#[derive(Clone, Debug)]
pub(crate) struct Times {
    /// Until the token is there.
    pub(crate) token: Duration,
    /// Until the client has answered the handshake.
    pub(crate) handshake: Duration,
    /// Until it has said how large its terminal is; one that does not gets the usual size.
    pub(crate) size: Duration,
    /// Until the guest can be spoken to.
    pub(crate) start: Duration,
    /// With nothing said on the terminal, in either direction.
    pub(crate) idle: Duration,
    /// Until a message is acknowledged, however often it was sent.
    pub(crate) unacknowledged: Duration,
    /// Until the last output is acknowledged, after the command's end.
    pub(crate) settle: Duration,
    /// Until the client has closed its side.
    pub(crate) close: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times {
            token: Duration::from_secs(10),
            handshake: Duration::from_secs(15),
            size: Duration::from_secs(1),
            start: Duration::from_secs(10),
            idle: Duration::from_secs(20 * 60),
            unacknowledged: Duration::from_secs(5 * 60),
            settle: Duration::from_secs(10),
            close: Duration::from_secs(2),
        }
    }
}
