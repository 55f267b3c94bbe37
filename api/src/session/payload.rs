//! What messages of a data channel carry as JSON, with its own names of members.

use berth_runtime::protocol::exec::TerminalSize;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;

use super::message::{Message, MessageId, MessageType};

/// The agent's version that this speaks like: clients look at it to know what they may ask for.
const AGENT_VERSION: &str = "3.1.0.0";
/// A terminal, on which one command runs.
const SESSION_TYPE: &str = "InteractiveCommands";
/// `ActionStatus` of a client that did what was asked.
const SUCCESS: i64 = 1;
/// `PayloadTypeFlag` of a client that ends the session.
const TERMINATE_SESSION: u32 = 2;

/// `OpenDataChannelInput`: the first that a client says, as text.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
pub(crate) struct OpenDataChannel {
    pub(crate) token_value: String,
}

/// What is acknowledged.
#[derive(Debug, Deserialize)]
pub(crate) struct Acknowledged {
    #[serde(rename = "AcknowledgedMessageSequenceNumber")]
    pub(crate) sequence: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HandshakeResponse {
    #[serde(default)]
    processed_client_actions: Option<Vec<ProcessedAction>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ProcessedAction {
    #[serde(default)]
    action_type: String,
    #[serde(default)]
    action_status: i64,
}

#[derive(Deserialize)]
struct Size {
    cols: u32,
    rows: u32,
}

pub(crate) fn acknowledge(message: &Message) -> Bytes {
    let content = json!({
        "AcknowledgedMessageType": message.message_type.map(MessageType::as_str),
        "AcknowledgedMessageId": message.id.to_string(),
        "AcknowledgedMessageSequenceNumber": message.sequence,
        "IsSequentialMessage": true,
    });
    content.to_string().into()
}

pub(crate) fn handshake_request() -> Bytes {
    let action = json!({
        "ActionType": "SessionType",
        "ActionParameters": { "SessionType": SESSION_TYPE, "Properties": null },
    });
    let request = json!({ "AgentVersion": AGENT_VERSION, "RequestedClientActions": [action] });
    request.to_string().into()
}

/// Whether the client can show a terminal; if not, why.
pub(crate) fn handshake_response(payload: &[u8]) -> Result<(), String> {
    let response: HandshakeResponse = serde_json::from_slice(payload)
        .map_err(|error| format!("the client's answer to the handshake cannot be read: {error}"))?;
    let actions = response.processed_client_actions.unwrap_or_default();
    match actions.iter().find(|action| action.action_status != SUCCESS) {
        None => Ok(()),
        Some(action) => {
            let name: String = action.action_type.chars().take(40).collect();
            let status = action.action_status;
            Err(format!("the client answers {name} with status {status}"))
        }
    }
}

pub(crate) fn handshake_complete(nanoseconds: u64) -> Bytes {
    let complete = json!({ "HandshakeTimeToComplete": nanoseconds, "CustomerMessage": "" });
    complete.to_string().into()
}

/// `output` is what the user is told; empty where all went as it should.
pub(crate) fn channel_closed(session: &str, output: &str) -> Bytes {
    let now = jiff::Timestamp::now().as_millisecond();
    let closed = json!({
        "MessageId": MessageId(rand::random()).to_string(),
        "CreatedDate": now.to_string(),
        "DestinationId": session,
        "SessionId": session,
        "MessageType": MessageType::ChannelClosed.as_str(),
        "SchemaVersion": 1,
        "Output": output,
    });
    closed.to_string().into()
}

/// None for what is no size; each side is 1 to 65535.
pub(crate) fn terminal_size(payload: &[u8]) -> Option<TerminalSize> {
    let size: Size = serde_json::from_slice(payload).ok()?;
    let side = |cells: u32| u16::try_from(cells).unwrap_or(u16::MAX).max(1);
    Some(TerminalSize {
        columns: side(size.cols),
        rows: side(size.rows),
    })
}

/// Whether a flag ends the session.
pub(crate) fn terminates(payload: &[u8]) -> bool {
    payload == TERMINATE_SESSION.to_be_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_some_size_whatever_is_said() {
        let size = |text: &str| terminal_size(text.as_bytes()).map(|size| (size.columns, size.rows));
        assert_eq!(size(r#"{"cols":132,"rows":43}"#), Some((132, 43)));
        assert_eq!(size(r#"{"cols":0,"rows":4294967295}"#), Some((1, 65535)));
        assert_eq!(size(r#"{"cols":-1,"rows":1}"#), None);
        assert_eq!(size("[]"), None);
    }

    #[test]
    fn a_client_that_cannot_do_what_was_asked_is_noticed() {
        let answer = |status: &str| {
            let action =
                format!(r#"{{"ActionType":"SessionType","ActionStatus":{status},"ActionResult":null}}"#);
            handshake_response(
                format!(r#"{{"ClientVersion":"1.2","ProcessedClientActions":[{action}]}}"#).as_bytes(),
            )
        };
        assert_eq!(answer("1"), Ok(()));
        assert_eq!(
            answer("3").unwrap_err(),
            "the client answers SessionType with status 3"
        );
        assert!(handshake_response(b"no").is_err());
        assert_eq!(handshake_response(br#"{"ProcessedClientActions":null}"#), Ok(()));
    }
}
