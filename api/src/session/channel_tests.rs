//! Order, loss and repetition on a data channel.

use std::time::{Duration, Instant};

use bytes::Bytes;
use proptest::prelude::*;

use super::channel::*;
use super::message::*;

fn input(sequence: i64, payload: &[u8]) -> Message {
    let payload = Bytes::copy_from_slice(payload);
    Message::new(
        MessageType::InputStreamData,
        sequence,
        0,
        PayloadType::OUTPUT,
        payload,
    )
}

fn sequence(bytes: &Bytes) -> i64 {
    Message::decode(bytes).unwrap().sequence
}

fn text(received: &Received) -> String {
    let ready = received.ready.iter();
    ready
        .map(|message| String::from_utf8_lossy(&message.payload).into_owned())
        .collect()
}

#[test]
fn an_acknowledgement_says_what_it_is_of() {
    let message = input(0, b"a");
    let received = Channel::default().receive(message.clone(), true);
    let answer = Message::decode(&received.acknowledge.unwrap()).unwrap();
    assert_eq!(answer.message_type, Some(MessageType::Acknowledge));
    assert_eq!(
        (answer.sequence, answer.flags, answer.payload_type),
        (0, 3, PayloadType::NONE)
    );
    let content: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
    let expected = serde_json::json!({
        "AcknowledgedMessageType": "input_stream_data",
        "AcknowledgedMessageId": message.id.to_string(),
        "AcknowledgedMessageSequenceNumber": 0,
        "IsSequentialMessage": true,
    });
    assert_eq!(content, expected);
}

#[test]
fn what_comes_early_waits_and_what_comes_twice_counts_once() {
    let mut channel = Channel::default();
    assert_eq!(text(&channel.receive(input(2, b"c"), true)), "");
    assert_eq!(text(&channel.receive(input(0, b"a"), true)), "a");
    let again = channel.receive(input(0, b"a"), true);
    assert!(again.acknowledge.is_some() && again.ready.is_empty());
    assert_eq!(text(&channel.receive(input(1, b"b"), true)), "bc");
    assert_eq!(text(&channel.receive(input(3, b"d"), true)), "d");
}

#[test]
fn what_there_is_no_room_for_is_not_acknowledged_and_can_come_again() {
    let mut channel = Channel::default();
    assert_eq!(channel.receive(input(0, b"a"), false), Received::default());
    assert_eq!(channel.receive(input(1, b"b"), false), Received::default());
    assert_eq!(text(&channel.receive(input(0, b"a"), true)), "a");
    // One that was taken is acknowledged anyway.
    assert!(channel.receive(input(0, b"a"), false).acknowledge.is_some());
}

#[test]
fn early_messages_are_bounded_in_number_and_bytes() {
    let mut channel = Channel::default();
    let taken = (1..10_000).filter(|it| channel.receive(input(*it, b"x"), true).acknowledge.is_some());
    assert_eq!(taken.count(), 256);
    let mut channel = Channel::default();
    let large = vec![0; MAX_PAYLOAD_BYTES];
    let taken = (1..100).filter(|it| channel.receive(input(*it, &large), true).acknowledge.is_some());
    assert_eq!(taken.count(), 8);
    assert!(channel.receive(input(i64::MAX, b""), true).ready.is_empty());
    assert!(channel.receive(input(i64::MIN, b""), true).ready.is_empty());
}

#[test]
fn output_is_sent_again_until_it_is_acknowledged() {
    let now = Instant::now();
    let after = |milliseconds| now + Duration::from_millis(milliseconds);
    let mut channel = Channel::default();
    let first = channel.stream(PayloadType::OUTPUT, Bytes::from_static(b"a"), now);
    let second = channel.stream(PayloadType::OUTPUT, Bytes::from_static(b"b"), now);
    assert_eq!((sequence(&first), sequence(&second)), (0, 1));
    assert_eq!(Message::decode(&first).unwrap().flags, 1);
    assert_eq!(Message::decode(&second).unwrap().flags, 0);
    assert_eq!(channel.resend(after(199)), None);
    assert_eq!(channel.resend(after(200)), Some(first.clone()));
    assert_eq!(channel.resend(after(399)), None);
    assert_eq!(channel.resend(after(400)), Some(first));
    assert_eq!(channel.waits_since(), Some(now));
    // The second is acknowledged before the first, as the plugin does with what came while it was not ready.
    channel.acknowledged(1, after(410));
    assert!(!channel.is_settled());
    channel.acknowledged(0, after(420));
    channel.acknowledged(0, after(430));
    channel.acknowledged(7, after(430));
    assert!(channel.is_settled() && channel.resend_at().is_none());
}

#[test]
fn a_window_closes_until_something_is_acknowledged() {
    let (mut channel, now) = (Channel::default(), Instant::now());
    let mut made = 0;
    while channel.has_room() && made < 2 * WINDOW {
        channel.stream(PayloadType::OUTPUT, Bytes::new(), now);
        made += 1;
    }
    assert_eq!(made, WINDOW);
    channel.acknowledged(5, now);
    assert!(channel.has_room());
    channel.pause(true);
    assert!(!channel.has_room() && channel.resend_at().is_none());
    channel.acknowledged(6, now);
    assert!(channel.has_room());
}

#[test]
fn a_slow_client_is_given_more_time() {
    let (mut channel, mut now) = (Channel::default(), Instant::now());
    for sequence in 0..50 {
        channel.stream(PayloadType::OUTPUT, Bytes::new(), now);
        now += Duration::from_millis(600);
        channel.acknowledged(sequence, now);
    }
    channel.stream(PayloadType::OUTPUT, Bytes::new(), now);
    let wait = channel.resend_at().unwrap() - now;
    assert!((600..=1000).contains(&wait.as_millis()), "{wait:?}");
}

#[test]
fn a_character_is_not_torn() {
    let whole = |bytes: &[u8]| whole_characters(bytes);
    assert_eq!(whole(b""), 0);
    assert_eq!(whole(b"abc"), 3);
    assert_eq!(whole("aé".as_bytes()), 3);
    assert_eq!(whole(b"a\xc3"), 1);
    assert_eq!(whole(b"a\xe2\x82"), 1);
    assert_eq!(whole(b"\xf0\x9f\x98"), 0);
    assert_eq!(whole("😀".as_bytes()), 4);
    // What is no text is not held back.
    assert_eq!(whole(b"\x80\x80\x80\x80"), 4);
    assert_eq!(whole(b"a\xff"), 2);
    assert_eq!(whole(b"\xc3\x28"), 2);
}

proptest! {
    /// Whatever the network does with messages, and however often they come, each is delivered once, in order.
    #[test]
    fn the_stream_is_whole_and_in_order(
        order in proptest::collection::vec((0i64..40, any::<bool>()), 0..400),
    ) {
        let mut channel = Channel::default();
        let mut delivered = Vec::new();
        let mut acknowledged = std::collections::BTreeSet::new();
        for (number, room) in order {
            let received = channel.receive(input(number, b"x"), room);
            delivered.extend(received.ready.iter().map(|message| message.sequence));
            if received.acknowledge.is_some() {
                acknowledged.insert(number);
            }
        }
        // What was acknowledged does not come again.
        for number in (0..40).filter(|number| !acknowledged.contains(number)) {
            let received = channel.receive(input(number, b"x"), true);
            delivered.extend(received.ready.iter().map(|message| message.sequence));
        }
        prop_assert_eq!(delivered, (0..40).collect::<Vec<i64>>());
    }

    #[test]
    fn held_back_bytes_are_few(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        prop_assert!(bytes.len() - whole_characters(&bytes) <= 3);
    }
}
