//! Sessions of ECS's ExecuteCommand: a terminal in a container, over a websocket, spoken as Session Manager's plugin speaks.
//!
//! ExecuteCommand makes an offer ([`offers`]); who connects to its address and shows its token has a data channel
//! ([`converse`]), whose messages are in [`message`] and [`payload`], and their order in [`channel`]. What the command itself
//! says comes over the connection that `berth exec` uses too ([`berth_runtime::runtime::exec`]). Not here: what ExecuteCommand
//! checks and answers, which is with ECS's other operations.

mod channel;
#[cfg(test)]
mod channel_tests;
mod converse;
mod message;
mod offers;
mod payload;
#[cfg(test)]
mod tests;
mod times;
pub(crate) mod websocket;
pub(crate) mod words;

use std::collections::BTreeMap;
use std::sync::Arc;

use berth_runtime::protocol::exec::TerminalSize;
use berth_runtime::runtime::exec::Command;
use berth_runtime::{GuestStream, RuntimeError};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::sync::OwnedSemaphorePermit;

use self::converse::Ended;
pub(crate) use self::offers::{MAX_SESSIONS, Offers, SessionCommand};
use self::times::Times;
use crate::app::App;

/// What the agent tells programs of the terminal.
const TERM: &str = "xterm-256color";

/// Serves one websocket to its end. `waiting` is its place among those that have not shown the session's token.
pub(crate) async fn serve(
    app: Arc<App>,
    session: String,
    waiting: OwnedSemaphorePermit,
    connection: Upgraded,
) {
    let socket = websocket::server(TokioIo::new(connection)).await;
    let start = |command, size| start(&app, command, size);
    match converse::serve(socket, &app.sessions, &session, waiting, &Times::default(), start).await {
        Ended::Gone => tracing::debug!(session, "a session's client is gone"),
        Ended::Refused => tracing::info!(session, "a session was refused: no valid token came"),
        Ended::Told(text) => tracing::info!(session, text, "a session has ended"),
    }
}

/// Begins the command. An error is what the user is told.
async fn start(
    app: &App,
    command: SessionCommand,
    size: TerminalSize,
) -> Result<Box<dyn GuestStream>, String> {
    let task = command.task;
    let command = Command {
        container: Some(command.container),
        argv: command.argv,
        env: BTreeMap::from([("TERM".to_owned(), TERM.to_owned())]),
        terminal: Some(size),
    };
    app.runtime
        .execute(&task, command)
        .await
        .map_err(|error| match error {
            RuntimeError::Internal(cause) => {
                tracing::error!(%task, "a session's command cannot be begun: {cause}");
                "the command cannot be begun".to_owned()
            }
            error => error.to_string(),
        })
}
