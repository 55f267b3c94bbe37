//! Reading by time: the same as looking at everything, at a cost that does not grow with the log; and freeing what is old.

use std::os::unix::fs::{FileExt, MetadataExt};

use proptest::prelude::*;

use super::*;
use crate::model::log::{LogEvent, LogQuery, OutputStream};

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

/// What may become of an index between two readings.
#[derive(Clone, Debug)]
enum Damage {
    None,
    Removed,
    CutTo(u64),
    Overwritten(u64, u64),
    OfAnother,
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        Just(Damage::None),
        Just(Damage::Removed),
        (0..200u64).prop_map(Damage::CutTo),
        (0..30u64, prop_oneof![Just(0), Just(u64::MAX), 0..5000u64])
            .prop_map(|(at, word)| Damage::Overwritten(at, word)),
        Just(Damage::OfAnother),
    ]
}

fn inflict(damage: &Damage, log: &Path) {
    let path = index::path_of(log);
    let file = std::fs::OpenOptions::new().write(true).open(&path);
    match (damage, file) {
        (Damage::Removed, Ok(_)) => std::fs::remove_file(&path).unwrap(),
        (Damage::CutTo(length), Ok(file)) => {
            let length = file.metadata().unwrap().len().min(*length);
            file.set_len(length).unwrap();
        }
        (Damage::Overwritten(at, word), Ok(file)) => {
            let words = file.metadata().unwrap().len() / 8;
            file.write_all_at(&word.to_le_bytes(), at % words * 8).unwrap();
        }
        (Damage::OfAnother, _) => {
            let entries = (0..40u64).flat_map(|number| [number * 777, number * 3]);
            std::fs::write(&path, entries.flat_map(u64::to_le_bytes).collect::<Vec<_>>()).unwrap();
        }
        _ => {}
    }
}

fn read_by_pages(path: &Path, query: &LogQuery) -> Vec<LogEvent> {
    let mut query = *query;
    let mut pages = Vec::new();
    loop {
        let page = read(path, &query, &|_| true).unwrap();
        let next = if query.forward {
            page.next_forward
        } else {
            page.next_backward
        };
        let ended = page.at_end;
        pages.push(page.events);
        if ended {
            break;
        }
        assert_ne!(query.position, Some(next), "a page that is not the last leads on");
        query.position = Some(next);
    }
    if !query.forward {
        pages.reverse();
    }
    pages.concat()
}

/// A log of lines, at these times.
fn log_of_lines(dir: &Path, times: impl Iterator<Item = u64>) -> (Outputs, PathBuf) {
    let outputs = Outputs::open(dir).unwrap();
    let task = TaskId::parse("0123456789abcdef0123456789abcdef").unwrap();
    let mut writer = outputs.writer(&task, "app").unwrap();
    let mut offset = 0;
    for time in times {
        let line = format!("the time is {time} and all is well\n");
        writer
            .append(OutputStream::Stdout, offset, line.as_bytes(), Timestamp(time))
            .unwrap();
        offset += line.len() as u64;
    }
    let path = outputs.path(&task, "app");
    (outputs, path)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn reading_by_time_is_looking_at_everything_and_keeping_what_is_in_time(
        batches in proptest::collection::vec((0..1000u64, 1..12usize, 0..400usize), 1..40),
        in_order: bool,
        range in (proptest::option::of(0..1100u64), proptest::option::of(0..1100u64)),
        limit in 1..50usize,
        scanned in prop_oneof![Just(u64::MAX), 300..5000u64],
        damages in (damage(), damage()),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let outputs = Outputs::open(dir.path()).unwrap();
        let half = batches.len() / 2;
        let mut latest = 0;
        let path = outputs.put_path("x");
        for (number, (time, count, length)) in batches.into_iter().enumerate() {
            if number == half {
                inflict(&damages.0, &path);
            }
            latest = latest.max(time);
            let at = Timestamp(if in_order { latest } else { time });
            let message = "m".repeat(length + 1);
            outputs.put("x", &vec![(at, message.as_str()); count], Timestamp(9)).unwrap();
        }
        inflict(&damages.1, &path);
        let everything = read(&path, &ALL, &|_| true).unwrap().events;
        let (start, end) = (range.0.map(Timestamp), range.1.map(Timestamp));
        let expected: Vec<_> = everything
            .into_iter()
            .filter(|event| start.is_none_or(|start| event.timestamp >= start))
            .filter(|event| end.is_none_or(|end| event.timestamp < end))
            .collect();
        for forward in [true, false] {
            let query = LogQuery { forward, start, end, limit, max_scanned_bytes: scanned, ..ALL };
            prop_assert_eq!(&read_by_pages(&path, &query), &expected, "forward {}", forward);
        }
    }

    #[test]
    fn what_is_freed_is_old_and_the_rest_stays_where_it_was(
        gaps in proptest::collection::vec(0..20u64, 1..400),
        cutoffs in proptest::collection::vec(0..4000u64, 1..4),
        damage in damage(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let mut now = 0;
        let times: Vec<u64> = gaps.iter().map(|gap| { now += gap; now }).collect();
        let (outputs, path) = log_of_lines(dir.path(), times.iter().copied());
        let before = read(&path, &ALL, &|_| true).unwrap().events;
        let mut latest = 0;
        for cutoff in cutoffs {
            latest = cutoff.max(latest);
            trim(&path, Timestamp(cutoff)).unwrap();
            inflict(&damage, &path);
            let after = read(&path, &ALL, &|_| true).unwrap().events;
            prop_assert!(before.ends_with(&after));
            let kept = before.iter().filter(|event| event.timestamp.0 >= latest).count();
            prop_assert!(after.len() >= kept.max(1), "{} of {kept} that are not old", after.len());
            let query = LogQuery { forward: false, ..ALL };
            prop_assert_eq!(&read_by_pages(&path, &query), &after);
        }
        // It goes on where it was.
        let task = TaskId::parse("0123456789abcdef0123456789abcdef").unwrap();
        let writer = outputs.writer(&task, "app").unwrap();
        let length: usize = times.iter().map(|time| format!("the time is {time} and all is well\n").len()).sum();
        prop_assert_eq!(writer.stored(OutputStream::Stdout), length as u64);
    }
}

#[test]
fn what_a_range_costs_does_not_grow_with_the_log() {
    let cost = |lines: u64| {
        let dir = tempfile::tempdir().unwrap();
        let (_outputs, path) = log_of_lines(dir.path(), 0..lines);
        let middle = lines / 2;
        [true, false].map(|forward| {
            let query = LogQuery {
                forward,
                start: Some(Timestamp(middle)),
                end: Some(Timestamp(middle + 10)),
                ..ALL
            };
            let page = read(&path, &query, &|_| true).unwrap();
            assert_eq!(page.events.len(), 10);
            page.bytes_read
        })
    };
    let (small, large) = (cost(1_000), cost(30_000));
    for (small, large) in small.into_iter().zip(large) {
        // A search takes a few entries more.
        assert!(
            large < small + 1024,
            "{large} bytes of the large log, {small} of the small one"
        );
        assert!(large < 64 * 1024, "{large} bytes");
    }
}

#[test]
fn a_page_by_token_and_the_last_events_cost_what_they_give() {
    let dir = tempfile::tempdir().unwrap();
    let (_outputs, path) = log_of_lines(dir.path(), 0..30_000);
    for (forward, position) in [(true, None), (false, None)] {
        let query = LogQuery {
            forward,
            position,
            limit: 10,
            ..ALL
        };
        let page = read(&path, &query, &|_| true).unwrap();
        assert!(page.bytes_read < 16 * 1024, "{} bytes", page.bytes_read);
        let on = LogQuery {
            position: Some(if forward {
                page.next_forward
            } else {
                page.next_backward
            }),
            ..query
        };
        let page = read(&path, &on, &|_| true).unwrap();
        assert_eq!(page.events.len(), 10);
        assert!(page.bytes_read < 16 * 1024, "{} bytes", page.bytes_read);
    }
}

#[test]
fn a_log_that_is_cut_short_is_mended_without_reading_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (_outputs, path) = log_of_lines(dir.path(), 0..30_000);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 3).unwrap();
    let query = LogQuery {
        forward: false,
        limit: 1,
        ..ALL
    };
    let page = read(&path, &query, &|_| true).unwrap();
    assert_eq!(page.events[0].bytes, b"the time is 29998 and all is well");
    assert!(page.bytes_read < 64 * 1024, "{} bytes", page.bytes_read);
}

#[test]
fn what_is_freed_is_given_back_to_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (_outputs, path) = log_of_lines(dir.path(), 0..30_000);
    let blocks = || std::fs::metadata(&path).unwrap().blocks() * 512;
    let before = blocks();
    let freed = trim(&path, Timestamp(27_000)).unwrap();
    assert!(freed > before / 10 * 8, "{freed} of {before}");
    assert!(blocks() <= before - freed + 3 * 4096, "{} of {before}", blocks());
    assert_eq!(
        stats(&path).unwrap().stored_bytes,
        std::fs::metadata(&path).unwrap().len() - freed
    );
    assert_eq!(trim(&path, Timestamp(27_000)).unwrap(), 0);
}

#[test]
fn a_full_log_drops_its_oldest_lines_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let outputs = Outputs::open(dir.path()).unwrap();
    let task = TaskId::parse("0123456789abcdef0123456789abcdef").unwrap();
    let mut writer = outputs.writer(&task, "app").unwrap().holding(100_000);
    let mut offset = 0;
    for number in 0..5_000u64 {
        let line = format!("line {number}\n");
        writer
            .append(OutputStream::Stdout, offset, line.as_bytes(), Timestamp(number))
            .unwrap();
        offset += line.len() as u64;
    }
    let path = outputs.path(&task, "app");
    assert!(stats(&path).unwrap().stored_bytes <= 101_000);
    let events = read(&path, &ALL, &|_| true).unwrap().events;
    assert_eq!(events.last().unwrap().bytes, b"line 4999");
    let texts = events.iter().map(|event| String::from_utf8_lossy(&event.bytes));
    let notes: Vec<_> = texts.filter(|text| text.starts_with("berth: ")).collect();
    assert!(
        notes[0].starts_with("berth: the log reached 100000 bytes, and its oldest "),
        "{notes:?}"
    );
    let numbers: Vec<u64> = events
        .iter()
        .filter_map(|event| {
            std::str::from_utf8(&event.bytes)
                .ok()?
                .strip_prefix("line ")?
                .parse()
                .ok()
        })
        .collect();
    assert!(
        numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "nothing is missing between"
    );
}

/// `BERTH_TEST_LOG_BYTES=1000000000` makes the log large; the time that a search takes is then worth a look.
#[test]
fn a_rare_word_in_one_minute_of_an_hour_is_found_in_what_that_minute_wrote() {
    let given = std::env::var("BERTH_TEST_LOG_BYTES").ok();
    let log_bytes: u64 = given.map_or(6_000_000, |text| text.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let outputs = Outputs::open(dir.path()).unwrap();
    let task = TaskId::parse("0123456789abcdef0123456789abcdef").unwrap();
    let path = outputs.path(&task, "app");
    let mut writer = outputs.writer(&task, "app").unwrap();
    let line = |text: &str| format!("{text:.<99}\n");
    let seconds = 3600;
    let lines = log_bytes / seconds / 140;
    let usual = line("GET /index.html 200").repeat(usize::try_from(lines).unwrap());
    let mut offset = 0;
    for second in 0..seconds {
        let rare = if second % 600 == 330 {
            line("xyzzy")
        } else {
            String::new()
        };
        let text = format!("{usual}{rare}");
        let now = Timestamp(second * 1000);
        writer
            .append(OutputStream::Stdout, offset, text.as_bytes(), now)
            .unwrap();
        offset += text.len() as u64;
    }
    let minute = 330 / 60 * 60;
    let query = LogQuery {
        start: Some(Timestamp(minute * 1000)),
        end: Some(Timestamp((minute + 60) * 1000)),
        ..ALL
    };
    let began = std::time::Instant::now();
    let is_wanted = |bytes: &[u8]| String::from_utf8_lossy(bytes).contains("xyzzy");
    let page = read(&path, &query, &is_wanted).unwrap();
    let took = began.elapsed();
    let size = std::fs::metadata(&path).unwrap().len();
    println!("{} of {size} bytes were read in {took:?}", page.bytes_read);
    assert_eq!(page.events.len(), 1);
    assert!(
        page.bytes_read < size / 60 + 600_000,
        "{} of {size} bytes",
        page.bytes_read
    );
}

#[test]
fn what_is_free_already_is_not_where_a_log_starts_again() {
    let dir = tempfile::tempdir().unwrap();
    let (_, path) = log_of_lines(dir.path(), 0..400);
    let events = read(&path, &ALL, &|_| true).unwrap().events;
    // Retention has looked where it is to start, and the writer of the full log has freed more by then.
    let (early, late) = (events[100].position, events[200].position);
    assert_eq!(trim::free(&path, late).unwrap(), late);
    assert_eq!(trim::free(&path, early).unwrap(), 0);
    let left = read(&path, &ALL, &|_| true).unwrap().events;
    assert_eq!(left, events[200..]);
}
