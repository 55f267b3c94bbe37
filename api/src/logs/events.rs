//! GetLogEvents: one stream, forward or backward. Its tokens are positions, and at either end a token leads to itself.

use berth_runtime::model::log::LogQuery;
use serde_json::{Value, json};

use super::shapes;
use super::{
    MAX_EVENT_BYTES, MAX_EVENTS, MAX_SCANNED_BYTES, group, invalid_token, limit, refusal, stream_name, time,
};
use crate::app::App;
use crate::error::ApiError;

/// Digits of a position in a token.
const DIGITS: usize = 56;

/// Where a token leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    forward: bool,
    position: u64,
}

impl Token {
    fn text(self) -> String {
        let direction = if self.forward { 'f' } else { 'b' };
        format!("{direction}/{:0DIGITS$}/s", self.position)
    }

    fn parse(text: &str) -> Option<Token> {
        let forward = text.starts_with("f/");
        let rest = text.strip_prefix(if forward { "f/" } else { "b/" })?;
        let digits = rest.strip_suffix("/s")?;
        let well_formed = digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
        // More than 20 digits are fine as long as they are zeros.
        well_formed
            .then(|| digits.parse().ok())
            .flatten()
            .map(|position| Token { forward, position })
    }
}

pub(super) async fn get(app: &App, input: shapes::GetLogEvents) -> Result<Value, ApiError> {
    let group = group(
        app,
        input.log_group_name.as_deref(),
        input.log_group_identifier.as_deref(),
    )?;
    let stream = stream_name(input.log_stream_name.as_deref())?;
    let token = input
        .next_token
        .as_deref()
        .map(|text| Token::parse(text).ok_or_else(invalid_token))
        .transpose()?;
    let query = LogQuery {
        position: token.map(|token| token.position),
        forward: token.map_or(input.start_from_head == Some(true), |token| token.forward),
        start: time("startTime", input.start_time)?,
        end: time("endTime", input.end_time)?,
        from_order: None,
        limit: limit("limit", input.limit, MAX_EVENTS, MAX_EVENTS)?,
        max_bytes: MAX_EVENT_BYTES,
        max_scanned_bytes: MAX_SCANNED_BYTES,
    };
    let mut page = app
        .runtime
        .log_events(group, stream, query)
        .await
        .map_err(refusal)?;
    // Clients may put events in any order.
    page.events.sort_by_key(|event| event.timestamp);
    let events = page.events.iter().map(|event| {
        json!({
            "timestamp": event.timestamp.0,
            "message": String::from_utf8_lossy(&event.bytes),
            "ingestionTime": event.ingested_at.0,
        })
    });
    Ok(json!({
        "events": events.collect::<Vec<_>>(),
        "nextForwardToken": Token { forward: true, position: page.next_forward }.text(),
        "nextBackwardToken": Token { forward: false, position: page.next_backward }.text(),
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_reads_back_as_it_was_written(forward: bool, position: u64) {
            let token = Token { forward, position };
            prop_assert_eq!(Token::parse(&token.text()), Some(token));
        }

        #[test]
        fn no_text_is_too_strange_to_be_read(text in "[fb]?/?[0-9a-zé]{0,60}(/s)?") {
            let _ = Token::parse(&text);
        }
    }

    #[test]
    fn malformed_tokens_are_refused() {
        let digits = "0".repeat(55);
        let over = format!("f/{}/s", "9".repeat(56));
        for text in [
            "",
            "f/1/s",
            &format!("x/{digits}1/s"),
            &format!("f/{digits}1"),
            &format!("f/{digits}+/s"),
            &over,
        ] {
            assert_eq!(Token::parse(text), None, "{text:?}");
        }
        assert_eq!(
            Token::parse(&format!("b/{digits}7/s")),
            Some(Token {
                forward: false,
                position: 7
            })
        );
    }
}
