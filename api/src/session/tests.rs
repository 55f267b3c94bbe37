//! Whole sessions over a websocket in memory, with a client that is good or bad, and a command that does as a test says.

mod client;

use std::time::{Duration, Instant};

use berth_runtime::protocol::exec::{FromCommand, STDOUT, TerminalSize, ToCommand};
use berth_runtime::protocol::frame::{Frame, encode_data};
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_tungstenite::tungstenite::Message as Ws;

use self::client::{start, start_with};
use super::converse::Ended;
use super::message::{Message, MessageType, PayloadType};
use super::times::Times;

const SIZE: &[u8] = br#"{"cols":132,"rows":43}"#;

#[tokio::test]
async fn a_session_is_a_terminal_in_the_command() {
    let (mut client, mut guest) = start(Times::default());
    client.shakes_hands().await;
    client.sends(PayloadType::SIZE, SIZE).await;
    client.sends(PayloadType::OUTPUT, b"ls\r").await;
    assert_eq!(guest.hears_input(3).await, b"ls\r");
    assert_eq!(
        *client.size.lock().unwrap(),
        Some(TerminalSize {
            columns: 132,
            rows: 43
        })
    );
    guest.says(b"a  b\r\n").await;
    assert_eq!(client.hears_output(6).await, b"a  b\r\n");
    // The same size again is no change.
    client.sends(PayloadType::SIZE, SIZE).await;
    client.sends(PayloadType::SIZE, br#"{"cols":80,"rows":24}"#).await;
    let size = TerminalSize {
        columns: 80,
        rows: 24,
    };
    assert_eq!(guest.hears().await, Frame::Message(ToCommand::Resize { size }));
    client
        .socket
        .send(Ws::Ping(Bytes::from_static(b"keepalive")))
        .await
        .unwrap();
    guest.says(b"end").await;
    guest.ends(FromCommand::Exited { exit_code: 7 }).await;
    assert_eq!(client.hears_output(3).await, b"end");
    assert_eq!(client.hears_the_end().await, "");
    assert_eq!(client.served.await.unwrap(), Ended::Told(String::new()));
}

#[tokio::test]
async fn much_output_comes_whole_and_no_more_than_a_window_ahead() {
    let (mut client, mut guest) = start(Times::default());
    client.shakes_hands().await;
    client.sends(PayloadType::SIZE, SIZE).await;
    let data: Vec<u8> = (0..3_000_000u32)
        .flat_map(|it| it.to_be_bytes())
        .take(3_000_000)
        .collect();
    let expected = data.clone();
    let saying = tokio::spawn(async move {
        guest.says(&data).await;
        guest.ends(FromCommand::Exited { exit_code: 0 }).await;
        guest
    });
    assert!(client.hears_output(expected.len()).await == expected);
    assert_eq!(client.hears_the_end().await, "");
    saying.await.unwrap();
}

#[tokio::test]
async fn short_pieces_of_output_that_come_at_once_are_passed_on_together() {
    let (mut client, mut guest) = start_with(Times::default(), 1 << 18);
    client.shakes_hands().await;
    client.sends(PayloadType::SIZE, SIZE).await;
    let mut frames = Vec::new();
    for _ in 0..30_000 {
        encode_data(STDOUT, b"x", &mut frames).unwrap();
    }
    let saying = tokio::spawn(async move {
        guest.stream.write_all(&frames).await.unwrap();
        guest.ends(FromCommand::Exited { exit_code: 0 }).await;
        guest
    });
    assert_eq!(client.hears_output(30_000).await, [b'x'; 30_000]);
    assert_eq!(client.hears_the_end().await, "");
    saying.await.unwrap();
}

#[tokio::test]
async fn a_client_that_acknowledges_nothing_holds_the_command_up() {
    let (mut client, mut guest) = start(Times {
        unacknowledged: Duration::from_millis(1500),
        ..Times::default()
    });
    client.shakes_hands().await;
    client.sends(PayloadType::SIZE, SIZE).await;
    client.acknowledges = false;
    let saying = tokio::spawn(async move {
        let frames = vec![b'x'; 4_000_000];
        let mut said = 0;
        for piece in frames.chunks(1024) {
            let mut frame = Vec::new();
            encode_data(STDOUT, piece, &mut frame).unwrap();
            if guest.stream.write_all(&frame).await.is_err() {
                break;
            }
            said += piece.len();
        }
        said
    });
    // The oldest is sent again, and in the end the session is given up.
    let mut seen = Vec::new();
    while let Some(message) = client.hears().await {
        seen.push(message.sequence);
    }
    assert!(
        seen.iter().filter(|sequence| **sequence == 2).count() > 1,
        "{seen:?}"
    );
    assert_eq!(client.served.await.unwrap(), Ended::Gone);
    let said = saying.await.unwrap();
    assert!(said < 1_000_000, "{said} bytes were taken of the command");
}

#[tokio::test]
async fn input_that_the_command_does_not_take_is_not_acknowledged() {
    let (mut client, mut guest) = start(Times::default());
    client.shakes_hands().await;
    client.sends(PayloadType::SIZE, SIZE).await;
    let pieces: Vec<Message> = (0u8..200)
        .map(|it| client.message(PayloadType::OUTPUT, &[it; 1024]))
        .collect();
    for piece in &pieces {
        client.socket.send(Ws::binary(piece.encode())).await.unwrap();
    }
    let mut acknowledged = 0;
    let quiet = Duration::from_millis(300);
    while let Ok(Some(frame)) = tokio::time::timeout(quiet, client.socket.next()).await {
        let Ws::Binary(bytes) = frame.unwrap() else {
            continue;
        };
        let message = Message::decode(&bytes).unwrap();
        acknowledged += usize::from(message.message_type == Some(MessageType::Acknowledge));
    }
    assert!(
        (50..100).contains(&acknowledged),
        "{acknowledged} of 200 KiB were taken"
    );
    let expected: Vec<u8> = pieces.iter().flat_map(|piece| piece.payload.to_vec()).collect();
    let (first, rest) = expected.split_at(40 * 1024);
    assert!(guest.hears_input(first.len()).await == first);
    // As a client does with what nobody acknowledged: it sends it again until then.
    let resending = tokio::spawn(async move {
        loop {
            for piece in &pieces {
                if client.socket.send(Ws::binary(piece.encode())).await.is_err() {
                    return;
                }
            }
            while futures_util::FutureExt::now_or_never(client.socket.next()).is_some() {}
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(guest.hears_input(rest.len()).await == rest);
    resending.abort();
}

#[tokio::test]
async fn a_wrong_token_opens_nothing_and_a_right_one_just_once() {
    for token in ["", "AAAA"] {
        let (mut client, _guest) = start(Times::default());
        client.open_with(token).await;
        assert_eq!(client.hears().await, None);
        assert_eq!(client.served.await.unwrap(), Ended::Refused);
        // The session still waits for its own.
        assert!(
            client
                .offers
                .take(&client.session, &client.token, Instant::now())
                .is_some()
        );
    }
    let (mut client, _guest) = start(Times::default());
    client.shakes_hands().await;
    assert!(
        client
            .offers
            .take(&client.session, &client.token, Instant::now())
            .is_none()
    );
    assert!(client.offers.wait(&client.session, Instant::now()).is_none());
}

#[tokio::test]
async fn who_says_nothing_is_not_waited_for() {
    let short = Duration::from_millis(50);
    let (client, _guest) = start(Times {
        token: short,
        ..Times::default()
    });
    assert_eq!(client.served.await.unwrap(), Ended::Refused);

    let (mut client, _guest) = start(Times {
        handshake: short,
        ..Times::default()
    });
    client.open().await;
    assert!(client.hears_the_end().await.starts_with("Handshake timed out."));

    let (mut client, _guest) = start(Times {
        idle: short,
        size: short,
        ..Times::default()
    });
    client.shakes_hands().await;
    assert_eq!(
        client.hears_the_end().await,
        "Your session timed out due to inactivity."
    );

    // A client that has no terminal gets one anyway.
    let (mut client, mut guest) = start(Times {
        size: short,
        ..Times::default()
    });
    client.shakes_hands().await;
    client.sends(PayloadType::OUTPUT, b"x").await;
    assert_eq!(guest.hears_input(1).await, b"x");
    assert_eq!(
        *client.size.lock().unwrap(),
        Some(TerminalSize {
            columns: 80,
            rows: 24
        })
    );
}

#[tokio::test]
async fn a_command_that_cannot_be_run_is_told() {
    let (mut client, mut guest) = start(Times::default());
    client.shakes_hands().await;
    client.sends(PayloadType::SIZE, SIZE).await;
    let reason = "no such file\x1b[31m or directory".to_owned();
    guest.ends(FromCommand::Failed { reason }).await;
    let told = client.hears_the_end().await;
    assert!(
        told.ends_with("Unable to start command: Failed to start pty: no such file[31m or directory"),
        "{told}"
    );
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_command() {
    for way in 0..4 {
        let (mut client, mut guest) = start(Times::default());
        client.shakes_hands().await;
        client.sends(PayloadType::SIZE, SIZE).await;
        guest.says(b"x").await;
        client.hears_output(1).await;
        match way {
            0 => client.socket.close(None).await.unwrap(),
            1 => client.sends(PayloadType::FLAG, &[0, 0, 0, 2]).await,
            2 => {
                let closed = Message::new(
                    MessageType::ChannelClosed,
                    0,
                    3,
                    PayloadType::NONE,
                    Bytes::from_static(b"{}"),
                );
                client.socket.send(Ws::binary(closed.encode())).await.unwrap();
            }
            _ => drop(client.socket),
        }
        let mut rest = Vec::new();
        guest.stream.read_to_end(&mut rest).await.unwrap();
        assert!(matches!(
            client.served.await.unwrap(),
            Ended::Gone | Ended::Told(_)
        ));
    }
}

#[tokio::test]
async fn what_is_no_message_ends_the_session() {
    for bytes in [vec![], vec![0; 119], vec![0xff; 200], vec![0; 40_000]] {
        let (mut client, _guest) = start(Times::default());
        client.shakes_hands().await;
        client.socket.send(Ws::binary(bytes)).await.unwrap();
        while client.hears().await.is_some() {}
        client.served.await.unwrap();
    }
    // And before the token everything does.
    let (mut client, _guest) = start(Times::default());
    client.socket.send(Ws::binary(vec![0; 200])).await.unwrap();
    assert_eq!(client.served.await.unwrap(), Ended::Refused);
}

#[tokio::test]
async fn a_client_that_wants_nothing_now_gets_nothing() {
    let (mut client, mut guest) = start(Times::default());
    client.shakes_hands().await;
    client.sends(PayloadType::SIZE, SIZE).await;
    guest.says(b"a").await;
    client.hears_output(1).await;
    let publication = |kind| Ws::binary(Message::new(kind, 0, 3, PayloadType::NONE, Bytes::new()).encode());
    client
        .socket
        .send(publication(MessageType::PausePublication))
        .await
        .unwrap();
    client
        .socket
        .send(Ws::Ping(Bytes::from_static(b"seen")))
        .await
        .unwrap();
    // Once the ping is answered, the message before it was read.
    while !matches!(client.socket.next().await.unwrap().unwrap(), Ws::Pong(_)) {}
    guest.says(b"b").await;
    let quiet = tokio::time::timeout(Duration::from_millis(200), client.socket.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    client
        .socket
        .send(publication(MessageType::StartPublication))
        .await
        .unwrap();
    assert_eq!(client.hears_output(1).await, b"b");
}
