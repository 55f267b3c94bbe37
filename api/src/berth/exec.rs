//! ExecuteCommand: a command in a container, with both sides of its streams over the connection that asked for it.

use std::collections::BTreeMap;

use berth_runtime::GuestStream;
use berth_runtime::protocol::exec::TerminalSize;
use berth_runtime::runtime::exec::Command;
use hyper::HeaderMap;
use serde::Deserialize;

use super::{refusal, task_id};
use crate::app::App;
use crate::error::ApiError;

/// The operation's name; it is not answered as others are.
pub(crate) const EXECUTE_COMMAND: &str = "ExecuteCommand";
/// What the connection speaks after that.
pub(crate) const PROTOCOL: &str = "berth-command";
const MAX_WORDS: usize = 1024;
const MAX_BYTES: usize = 64 * 1024;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Input {
    task: Option<String>,
    container: Option<String>,
    command: Vec<String>,
    environment: BTreeMap<String, String>,
    terminal: Option<TerminalSize>,
}

pub(crate) async fn execute(
    app: &App,
    headers: &HeaderMap,
    body: &[u8],
) -> Result<Box<dyn GuestStream>, ApiError> {
    let upgrade = headers.get("upgrade").and_then(|value| value.to_str().ok());
    if upgrade != Some(PROTOCOL) {
        return Err(ApiError::InvalidParameter(format!(
            "{EXECUTE_COMMAND} takes the header 'Upgrade: {PROTOCOL}'."
        )));
    }
    let input: Input = crate::decode::shape(body)?;
    let id = task_id(app, input.task.as_deref())?;
    let words = input.command.iter().chain(input.environment.values());
    let bytes: usize = words.clone().map(String::len).sum();
    if input.command.is_empty() || input.command.len() > MAX_WORDS || bytes > MAX_BYTES {
        return Err(ApiError::InvalidParameter(format!(
            "command must have 1 to {MAX_WORDS} words, and with its environment at most {MAX_BYTES} bytes."
        )));
    }
    let names = input.environment.keys();
    let mut names = names.map(|name| name.is_empty() || name.contains(['=', '\0']));
    if words.clone().any(|word| word.contains('\0')) || names.any(|bad| bad) {
        return Err(ApiError::InvalidParameter(
            "command and environment must not contain NUL, nor names that are empty or have '='.".to_owned(),
        ));
    }
    let command = Command {
        container: input.container,
        argv: input.command,
        env: input.environment,
        terminal: input.terminal,
    };
    app.runtime.execute(&id, command).await.map_err(refusal)
}
