use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn a_guest_gets_more_memory_than_its_task_paid_for_and_the_vmm_more_than_that(task_mib in 512..=122_880u32) {
        let guest = launch::guest_mib(task_mib);
        prop_assert!(guest > task_mib);
        prop_assert!(launch::machine_bytes(guest) > u64::from(guest) << 20);
    }
}

#[test]
fn the_tables_of_names_grow_with_the_memory() {
    let names = |mib| {
        let line = launch::cmdline(mib);
        assert!(line.ends_with(berth_protocol::GUEST_MARKER), "{line}");
        let value = |key| {
            let word = line.split(' ').find_map(|word| word.strip_prefix(key)).unwrap();
            word.parse::<u32>().unwrap()
        };
        let (names, inodes) = (value("dhash_entries="), value("ihash_entries="));
        assert_eq!(names, 2 * inodes);
        names
    };
    assert_eq!(names(569), 16_384);
    assert_eq!(names(2_132), 32_768);
    // The largest task's.
    assert_eq!(names(122_880 + 48 + 122_880 / 56), 1 << 20);
}

#[test]
fn a_machine_that_left_no_report_is_described_by_its_last_words() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join(LOG_FILE),
        "first\nberth-vmm: cannot map guest memory\n\n",
    )
    .unwrap();
    let end = running::end_of(dir.path(), Some("exit status 1"));
    assert_eq!(
        end.reason,
        "the machine of the task ended unexpectedly (exit status 1; berth-vmm: cannot map guest memory)"
    );
    assert_eq!(end.at, None);
}

#[test]
fn of_what_a_machine_left_only_the_end_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = std::fs::File::create(dir.path().join(LOG_FILE)).unwrap();
    // Far more than there is memory for, without a byte on the disk.
    log.set_len(1 << 42).unwrap();
    let mut end = &log;
    end.seek(SeekFrom::End(0)).unwrap();
    end.write_all(b"\nits \xff last words\n").unwrap();
    std::fs::File::create(dir.path().join(EXIT_FILE))
        .unwrap()
        .set_len(1 << 42)
        .unwrap();
    let end = running::end_of(dir.path(), None);
    assert!(
        end.reason.ends_with("(its \u{fffd} last words)"),
        "{}",
        end.reason
    );
}

#[test]
fn a_machine_that_broke_its_filter_is_described_so() {
    use std::os::unix::process::ExitStatusExt;

    let filter = std::process::ExitStatus::from_raw(libc::SIGSYS);
    assert!(running::described(filter).contains("SIGSYS"));
    assert_eq!(
        running::described(std::process::ExitStatus::from_raw(libc::SIGKILL)),
        "killed by signal 9"
    );
}

#[test]
fn a_report_gives_reason_and_time() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join(EXIT_FILE),
        r#"{"reason": "reset", "detail": null}"#,
    )
    .unwrap();
    let end = running::end_of(dir.path(), None);
    assert_eq!(end.reason, "the guest kernel panicked or was reset");
    assert!(end.at.is_some());
}

#[tokio::test]
async fn a_pid_file_names_its_process_only_as_long_as_it_lives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(PID_FILE);
    let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
    process::write_pid_file(&path, child.id()).unwrap();
    let found = process::Process::from_pid_file(&path).unwrap().unwrap();
    found.kill();
    found.ended().await;
    assert!(
        process::Process::from_pid_file(&path).unwrap().is_none(),
        "a zombie is no process"
    );
    child.wait().unwrap();
    assert!(process::Process::from_pid_file(&path).unwrap().is_none());
    // The same number, another process.
    let own = std::process::id();
    process::write_pid_file(&path, own).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let words: Vec<_> = text.split_whitespace().collect();
    std::fs::write(&path, format!("{} 1 {}", words[0], words[2])).unwrap();
    assert!(process::Process::from_pid_file(&path).unwrap().is_none());
}

#[test]
fn a_scratch_disk_is_sparse_and_a_copy_of_the_formatted_one() {
    let dir = tempfile::tempdir().unwrap();
    let disks = ScratchDisks::open(&dir.path().join("scratch")).unwrap();
    let mut first = disks.make(&dir.path().join("a.img"), 21).unwrap();
    assert_eq!(first.metadata().unwrap().len(), 21 << 30);
    assert!(first.metadata().unwrap().blocks() * 512 < 64 << 20);
    first.seek(SeekFrom::Start(4096)).unwrap();
    first.write_all(b"a tenant's data").unwrap();
    let second = dir.path().join("b.img");
    disks.make(&second, 21).unwrap();
    let bytes = std::fs::File::open(&second).unwrap();
    let mut superblock = [0; 2];
    std::os::unix::fs::FileExt::read_exact_at(&bytes, &mut superblock, 1024 + 56).unwrap();
    assert_eq!(u16::from_le_bytes(superblock), 0xef53);
    let mut text = [0; 15];
    std::os::unix::fs::FileExt::read_exact_at(&bytes, &mut text, 4096).unwrap();
    assert_ne!(&text, b"a tenant's data");
}
