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

/// Writes into a pipe whatever the stream reads out of it.
fn feed(output: &mut Output, text: &[u8]) {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    output.attach(reader);
    let mut buffer = [0; 700];
    for piece in text.chunks(4096) {
        assert_eq!(nix::unistd::write(&writer, piece).unwrap(), piece.len());
        while output.read(&mut buffer) == Reading::Dry && output.has_unread() {}
    }
    drop(writer);
    output.drain(&mut buffer);
}

impl Output {
    fn has_unread(&self) -> bool {
        let mut poll = self
            .pipe
            .iter()
            .map(|pipe| nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(pipe), nix::poll::PollFlags::POLLIN))
            .collect::<Vec<_>>();
        nix::poll::poll(&mut poll, nix::poll::PollTimeout::ZERO).unwrap() > 0
    }
}

/// The lines that arrived, and how many the stream says were dropped, in how many notes.
fn account(stored: &[u8]) -> (Vec<String>, u64, usize) {
    let text = String::from_utf8(stored.to_vec()).unwrap();
    let (notes, lines): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("berth: "));
    let counts = notes.iter().map(|note| {
        let number = note.strip_prefix("berth: ").unwrap().split(' ').next().unwrap();
        number.parse::<u64>().unwrap()
    });
    (
        lines.iter().map(|line| (*line).to_owned()).collect(),
        counts.sum(),
        notes.len(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_arrives_and_what_is_told_as_dropped_are_all_that_was_written(
        lengths in vec(0usize..900, 1..400),
        acknowledge_after in vec(0usize..30_000, 0..20),
        most in 4096usize..20_000,
    ) {
        let mut output = Output::dropping_beyond(most);
        let lines: Vec<String> = lengths.iter().enumerate().map(|(n, length)| format!("{n}:{}", "x".repeat(*length))).collect();
        let text = lines.iter().map(|line| format!("{line}\n")).collect::<String>().into_bytes();
        let mut stored = Vec::new();
        let store = |output: &mut Output, stored: &mut Vec<u8>| {
            while let Some((_, bytes)) = output.window.unsent(1000) {
                stored.extend_from_slice(bytes);
                let count = bytes.len();
                output.window.mark_sent(count);
            }
            output.acknowledge(stored.len() as u64).unwrap();
        };
        let mut rest = text.as_slice();
        for count in acknowledge_after {
            let (now, later) = rest.split_at(count.min(rest.len()));
            output.take(now);
            prop_assert!(output.window.bytes.len() <= most + LINE_SLACK);
            store(&mut output, &mut stored);
            rest = later;
        }
        feed(&mut output, rest);
        store(&mut output, &mut stored);
        store(&mut output, &mut stored);
        let (arrived, dropped, notes) = account(&stored);
        prop_assert_eq!(arrived.len() as u64 + dropped, lines.len() as u64);
        let mut written = lines.iter();
        prop_assert!(arrived.iter().all(|line| written.any(|it| it == line)), "whole lines, in order");
        prop_assert!(notes as u64 <= dropped);
    }
}

#[test]
fn a_container_that_must_not_wait_is_always_read() {
    let mut output = Output::dropping_beyond(4096);
    feed(&mut output, "0123456789abcde\n".repeat(10_000).as_bytes());
    let stored: Vec<u8> = output.window.bytes.iter().copied().collect();
    let (arrived, dropped, notes) = account(&stored);
    assert_eq!((arrived.len(), dropped, notes), (256, 9744, 1));
    assert!(output.ended());
}

#[test]
fn a_line_that_never_ends_is_cut_and_counted() {
    let mut output = Output::dropping_beyond(4096);
    output.take(&[b'x'; 2000]);
    output.take(&vec![b'x'; 4 * LINE_SLACK]);
    output.take(b"xx\nnext\n");
    output.end();
    let stored: Vec<u8> = output.window.bytes.iter().copied().collect();
    let (arrived, dropped, notes) = account(&stored);
    assert_eq!(arrived, ["x".repeat(2000), "next".to_owned()]);
    assert_eq!((dropped, notes), (1, 1));
}

#[test]
fn containers_that_want_more_than_there_is_share_it() {
    let specs = |sizes: &[Option<u64>]| -> Vec<ContainerSpec> {
        let one = |size: &Option<u64>| ContainerSpec {
            output_buffer_bytes: *size,
            ..crate::supervisor::task::example().containers[0].clone()
        };
        sizes.iter().map(one).collect()
    };
    assert_eq!(buffers(&specs(&[None, Some(10 << 20)])), [None, Some(10 << 20)]);
    assert_eq!(
        buffers(&specs(&[Some(1), Some(1 << 20)])),
        [Some(4096), Some(1 << 20)]
    );
    assert_eq!(buffers(&specs(&[Some(u64::MAX); 2])), [Some(5 << 20); 2]);
}

#[test]
fn what_a_dead_container_left_is_counted_to_its_end() {
    let mut output = Output::dropping_beyond(4096);
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    output.attach(reader);
    let text = "0123456789abcde\n".repeat(3000);
    assert_eq!(nix::unistd::write(&writer, text.as_bytes()).unwrap(), text.len());
    // Something else holds the writing end still.
    output.drain(&mut [0; 700]);
    assert!(output.ended());
    let stored: Vec<u8> = output.window.bytes.iter().copied().collect();
    let (arrived, dropped, notes) = account(&stored);
    assert_eq!((arrived.len(), dropped, notes), (256, 2744, 1));
}

#[test]
fn what_others_write_into_a_dead_containers_pipe_neither_counts_nor_holds_up_its_end() {
    for dropping in [None, Some(4096)] {
        let (reader, own) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
        let others = own.try_clone().unwrap();
        let mut output = dropping.map_or_else(Output::default, Output::dropping_beyond);
        output.attach(reader);
        nix::unistd::write(&own, b"last words\n").unwrap();
        drop(own);
        output.writers_ended();
        nix::unistd::write(&others, b"not its own\n").unwrap();
        output.drain(&mut [0; 8]);
        assert!(output.ended());
        assert_eq!(output.window.bytes, b"last words\n");
    }
}

#[test]
fn a_full_window_keeps_the_last_words_of_a_dead_container() {
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    let mut output = Output {
        window: Window::holding(4),
        ..Output::default()
    };
    output.attach(reader);
    nix::unistd::write(&writer, b"0123456789").unwrap();
    output.writers_ended();
    nix::unistd::write(&writer, b"more").unwrap();
    let mut got = Vec::new();
    while !output.ended() {
        output.drain(&mut [0; 64]);
        let end = output.window.end();
        got.extend(output.window.bytes.iter().copied());
        output.acknowledge(end).unwrap();
    }
    assert_eq!(got, b"0123456789");
}
