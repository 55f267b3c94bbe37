use proptest::prelude::*;

use super::*;
use crate::model::Timestamp;
use crate::model::log::{LogPage, LogQuery, OutputStream};

const ALL: LogQuery = LogQuery {
    position: None,
    forward: true,
    start: None,
    end: None,
    from_order: None,
    limit: usize::MAX,
    max_bytes: usize::MAX,
    max_scanned_bytes: u64::MAX,
};

fn read(path: &Path, query: &LogQuery) -> Result<LogPage, LogError> {
    super::read(path, query, &|_| true)
}

fn task() -> TaskId {
    TaskId::parse("0123456789abcdef0123456789abcdef").unwrap()
}

/// The bytes of one stream, put together again from its events.
fn joined(path: &Path, stream: OutputStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    for event in read(path, &ALL)
        .unwrap()
        .events
        .into_iter()
        .filter(|event| event.stream == stream)
    {
        bytes.extend(event.bytes);
        bytes.extend(event.newline.then_some(b'\n'));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Frames in any cut, repeated from any earlier offset, and a writer that is opened anew at any point.
    #[test]
    fn no_byte_is_lost_or_repeated(
        text in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..2000),
        cuts in proptest::collection::vec((1..300usize, any::<bool>(), any::<bool>()), 1..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path()).unwrap();
        let mut writer = outputs.writer(&task(), "app").unwrap();
        let mut at = 0;
        let mut stderr_at = 0;
        for (length, crash, to_stderr) in cuts {
            if crash {
                drop(writer);
                writer = outputs.writer(&task(), "app").unwrap();
                // The guest sends again from what was stored.
                at = usize::try_from(writer.stored(OutputStream::Stdout)).unwrap();
                stderr_at = usize::try_from(writer.stored(OutputStream::Stderr)).unwrap();
            }
            let (stream, at) = if to_stderr { (OutputStream::Stderr, &mut stderr_at) } else { (OutputStream::Stdout, &mut at) };
            let end = text.len().min(*at + length);
            writer.append(stream, *at as u64, &text[*at..end], Timestamp(5)).unwrap();
            // A repeated frame changes nothing.
            writer.append(stream, *at as u64, &text[*at..end], Timestamp(6)).unwrap();
            *at = end;
        }
        writer.finish(Timestamp(9)).unwrap();
        let path = outputs.path(&task(), "app");
        prop_assert_eq!(joined(&path, OutputStream::Stdout), &text[..at]);
        prop_assert_eq!(joined(&path, OutputStream::Stderr), &text[..stderr_at]);
    }

    #[test]
    fn pages_forward_and_backward_hold_every_event_once(lines in 0..60u64, limit in 1..9usize) {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path()).unwrap();
        let mut writer = outputs.writer(&task(), "app").unwrap();
        let mut offset = 0;
        for line in 0..lines {
            let text = format!("line {line}\n");
            writer.append(OutputStream::Stdout, offset, text.as_bytes(), Timestamp(line)).unwrap();
            offset += text.len() as u64;
        }
        let path = outputs.path(&task(), "app");
        let expected: Vec<_> = (0..lines).map(|line| format!("line {line}").into_bytes()).collect();
        for forward in [true, false] {
            let mut query = LogQuery { forward, limit, ..ALL };
            let mut pages = Vec::new();
            loop {
                let page = read(&path, &query).unwrap();
                if page.events.is_empty() { prop_assert!(page.at_end); break; }
                query.position = Some(if forward { page.next_forward } else { page.next_backward });
                pages.push(page.events.into_iter().map(|event| event.bytes).collect::<Vec<_>>());
            }
            if !forward { pages.reverse(); }
            prop_assert_eq!(pages.concat(), expected.clone());
        }
    }
}

#[test]
fn a_record_cut_short_by_a_crash_is_dropped_and_its_bytes_are_asked_for_again() {
    let dir = tempfile::tempdir().unwrap();
    let outputs = Outputs::open(dir.path()).unwrap();
    let mut writer = outputs.writer(&task(), "app").unwrap();
    writer
        .append(OutputStream::Stdout, 0, b"one\ntwo\n", Timestamp(1))
        .unwrap();
    drop(writer);
    let path = outputs.path(&task(), "app");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 3).unwrap();
    let writer = outputs.writer(&task(), "app").unwrap();
    assert_eq!(writer.stored(OutputStream::Stdout), 4);
    assert_eq!(joined(&path, OutputStream::Stdout), b"one\n");
}

#[test]
fn text_that_looks_like_a_record_is_none_where_its_own_was_cut_short() {
    let dir = tempfile::tempdir().unwrap();
    let outputs = Outputs::open(dir.path()).unwrap();
    let mut writer = outputs.writer(&task(), "app").unwrap();
    let forged = record::Header {
        text_len: 6,
        order: Timestamp(1 << 40),
        origin: record::Origin::Output {
            stream: OutputStream::Stderr,
            newline: false,
            stdout_end: 1 << 40,
            stderr_end: 1 << 40,
        },
    };
    let mut line = b"printed by the container: ".to_vec();
    let before = line.len();
    record::encode(&forged, &[b"forged"], &mut line);
    assert!(!line.contains(&b'\n'));
    let forged = line[before..].to_vec();
    writer
        .append(OutputStream::Stdout, 0, b"one\n", Timestamp(1))
        .unwrap();
    line.extend(b" and more\n");
    writer
        .append(OutputStream::Stdout, 4, &line, Timestamp(2))
        .unwrap();
    drop(writer);
    let path = outputs.path(&task(), "app");
    let bytes = std::fs::read(&path).unwrap();
    let at = bytes.windows(forged.len()).position(|window| window == forged);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len((at.unwrap() + forged.len()) as u64).unwrap();
    // Who reads meanwhile sees the same.
    let page = read(
        &path,
        &LogQuery {
            forward: false,
            ..ALL
        },
    )
    .unwrap();
    assert_eq!(page.events.len(), 1);
    assert_eq!(stats(&path).unwrap().last_event_at, Some(Timestamp(1)));
    let writer = outputs.writer(&task(), "app").unwrap();
    assert_eq!(writer.stored(OutputStream::Stdout), 4);
    assert_eq!(joined(&path, OutputStream::Stdout), b"one\n");
}

#[test]
fn a_position_inside_a_record_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let outputs = Outputs::open(dir.path()).unwrap();
    let mut writer = outputs.writer(&task(), "app").unwrap();
    writer
        .append(OutputStream::Stdout, 0, b"one\ntwo\n", Timestamp(1))
        .unwrap();
    let path = outputs.path(&task(), "app");
    for forward in [true, false] {
        let query = LogQuery {
            position: Some(7),
            forward,
            ..ALL
        };
        assert!(matches!(read(&path, &query), Err(LogError::Position(7))));
    }
}

#[test]
fn a_line_longer_than_an_event_is_split_and_only_its_last_piece_ends_it() {
    let dir = tempfile::tempdir().unwrap();
    let outputs = Outputs::open(dir.path()).unwrap();
    let mut writer = outputs.writer(&task(), "app").unwrap();
    let line = [vec![b'x'; MAX_EVENT_BYTES * 2 + 10], vec![b'\n']].concat();
    writer
        .append(OutputStream::Stdout, 0, &line, Timestamp(1))
        .unwrap();
    let page = read(&outputs.path(&task(), "app"), &ALL).unwrap();
    assert_eq!(
        page.events.iter().map(|event| event.newline).collect::<Vec<_>>(),
        [false, false, true]
    );
}

#[test]
fn a_time_range_keeps_what_is_inside_it() {
    let dir = tempfile::tempdir().unwrap();
    let outputs = Outputs::open(dir.path()).unwrap();
    let mut writer = outputs.writer(&task(), "app").unwrap();
    for at in 0..10u64 {
        writer
            .append(
                OutputStream::Stderr,
                at * 2,
                format!("{at}\n").as_bytes(),
                Timestamp(at),
            )
            .unwrap();
    }
    let path = outputs.path(&task(), "app");
    for forward in [true, false] {
        let query = LogQuery {
            forward,
            start: Some(Timestamp(3)),
            end: Some(Timestamp(6)),
            ..ALL
        };
        let texts: Vec<_> = read(&path, &query)
            .unwrap()
            .events
            .into_iter()
            .map(|event| event.bytes)
            .collect();
        assert_eq!(texts, [b"3", b"4", b"5"]);
    }
}
