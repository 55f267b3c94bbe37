//! A window neither loses, repeats nor invents a byte, whatever the host acknowledges and however often it leaves.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Write(usize),
    Send(usize),
    Acknowledge,
    Reconnect,
    Nonsense(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0usize..3000).prop_map(Step::Write),
        3 => (1usize..2000).prop_map(Step::Send),
        1 => Just(Step::Acknowledge),
        1 => Just(Step::Reconnect),
        1 => any::<u64>().prop_map(Step::Nonsense),
    ]
}

fn byte_at(position: u64) -> u8 {
    (position.wrapping_mul(2_654_435_761) >> 7) as u8
}

proptest! {
    #[test]
    fn the_host_gets_every_byte_once_and_in_order(steps in vec(step(), 0..200)) {
        let mut window = Window::default();
        let mut stored: Vec<u8> = Vec::new();
        for step in steps {
            match step {
                Step::Write(count) => {
                    let from = window.end();
                    let count = count.min(window.room()) as u64;
                    window.push(&(from..from + count).map(byte_at).collect::<Vec<_>>());
                }
                Step::Send(limit) => {
                    let Some((offset, piece)) = window.unsent(limit) else { continue };
                    prop_assert!(!piece.is_empty() && piece.len() <= limit);
                    prop_assert_eq!(offset, stored.len() as u64);
                    stored.extend_from_slice(piece);
                    let count = piece.len();
                    window.mark_sent(count);
                }
                Step::Acknowledge => window.acknowledge(stored.len() as u64).unwrap(),
                Step::Reconnect => window.resume(stored.len() as u64).unwrap(),
                Step::Nonsense(offset) if offset > window.end() => {
                    prop_assert!(window.acknowledge(offset).is_err());
                }
                Step::Nonsense(_) => {}
            }
            prop_assert!(window.bytes.len() <= OUTPUT_WINDOW_BYTES);
        }
        let expected: Vec<u8> = (0..stored.len() as u64).map(byte_at).collect();
        prop_assert_eq!(stored, expected);
    }
}

#[test]
fn a_host_that_lost_bytes_gets_the_kept_ones_and_an_error() {
    let mut window = Window::default();
    window.push(b"abcdef");
    window.acknowledge(4).unwrap();
    window.mark_sent(2);
    assert_eq!(
        window.resume(0),
        Err(WindowError::OutOfRange {
            offset: 0,
            base: 4,
            end: 6
        })
    );
    assert_eq!(window.unsent(10), Some((4, &b"ef"[..])));
    assert!(window.resume(7).is_err());
    assert_eq!(window.unsent(10), Some((4, &b"ef"[..])));
}

#[test]
fn a_full_window_stops_reading_until_the_host_acknowledges() {
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let mut output = Output::default();
    output.attach(reader);
    output.window.push(&vec![0; OUTPUT_WINDOW_BYTES - 3]);
    nix::unistd::write(&writer, b"abcdef").unwrap();
    let mut buffer = [0; 64];
    assert_eq!(output.read(&mut buffer), Reading::Full);
    assert!(output.wanted_pipe().is_none() && !output.ended());
    output.window.acknowledge(OUTPUT_WINDOW_BYTES as u64).unwrap();
    assert!(output.wanted_pipe().is_some());
    drop(writer);
    output.drain(&mut buffer);
    assert!(output.ended());
    assert_eq!(
        output.window.unsent(10),
        Some((OUTPUT_WINDOW_BYTES as u64, &b"def"[..]))
    );
}

#[test]
fn draining_ends_although_somebody_holds_the_pipe() {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    nix::unistd::write(&writer, b"last words").unwrap();
    let mut output = Output::default();
    output.attach(reader);
    output.drain(&mut [0; 4]);
    assert!(output.ended());
    assert_eq!(output.window.end(), 10);
}

#[test]
fn an_emptied_window_gives_its_memory_back() {
    let mut window = Window::default();
    window.push(&vec![7; OUTPUT_WINDOW_BYTES]);
    window.acknowledge(OUTPUT_WINDOW_BYTES as u64).unwrap();
    assert!(window.bytes.capacity() <= KEPT_CAPACITY);
}
