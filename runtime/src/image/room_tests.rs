//! Tests of what is given to pulls and what is refused, with real files and a file system of any size.

use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

struct Home {
    dir: tempfile::TempDir,
    cache: Arc<Cache>,
    blobs: u64,
}

impl Home {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cache = Arc::new(Cache::open(&dir.path().join("images")).unwrap());
        Self { dir, cache, blobs: 0 }
    }

    fn room(&self, budget: u64) -> Arc<Room> {
        Room::with_probe(Arc::clone(&self.cache), budget, Box::new(|_| Ok(VAST)))
    }

    /// A layer that nobody needs, used after those before it.
    fn blob(&mut self, bytes: u64) -> PathBuf {
        let path = self.cache.blob(Digest::of(&self.blobs.to_le_bytes()));
        self.blobs += 1;
        fs::write(&path, vec![1; usize::try_from(bytes).unwrap()]).unwrap();
        let file = fs::File::open(&path).unwrap();
        // So that what it takes is settled.
        file.sync_all().unwrap();
        let used = SystemTime::UNIX_EPOCH + Duration::from_secs(self.blobs);
        file.set_times(fs::FileTimes::new().set_modified(used)).unwrap();
        path
    }

    fn stored(&self) -> u64 {
        self.cache.stored_bytes(&BTreeSet::new()).unwrap()
    }
}

const VAST: FileSystem = FileSystem {
    bytes: 1 << 50,
    free_bytes: 1 << 49,
};

fn is_over_budget(result: Result<(), ImageError>, needed: u64, free: u64) -> bool {
    matches!(result, Err(ImageError::OverBudget { needed_bytes, free_bytes, .. })
        if (needed_bytes, free_bytes) == (needed, free))
}

#[test]
fn pulls_together_get_no_more_than_the_budget() {
    let home = Home::new();
    let room = home.room(10 * MIB);
    let first = room.reserve("first", None, None);
    let second = room.reserve("second", None, None);
    first.grow_now(4 * MIB).unwrap();
    second.grow_now(4 * MIB).unwrap();
    first.grow_now(MIB).unwrap();
    // What the first has ahead of its need, a 64th of the budget, is its own.
    let ahead = 10 * MIB / 64;
    assert!(is_over_budget(second.grow_now(MIB), 5 * MIB, 5 * MIB - ahead));
    // It keeps what it has, and gets what the first gives back.
    second.grow_now(MIB - ahead).unwrap();
    drop(first);
    second.grow_now(4 * MIB).unwrap();
    drop(second);
    assert_eq!(room.taken_bytes().unwrap(), 0);
    assert!(is_over_budget(
        room.reserve("all", None, None).grow_now(11 * MIB),
        11 * MIB,
        10 * MIB
    ));
}

#[test]
fn the_message_says_what_is_needed_what_there_is_and_what_to_do() {
    let home = Home::new();
    let room = home.room(20 * MIB);
    let error = room
        .reserve("the download", None, None)
        .grow_now(21 * MIB)
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "no room for the download: at least 21 MiB are needed, and 20 MiB are free of the image budget of 20 MiB; delete \
         images with `berth images prune`, or set a larger `berth serve --image-budget`"
    );
}

#[test]
fn what_nobody_needs_goes_before_a_pull_fails_oldest_first() {
    let mut home = Home::new();
    let blobs: Vec<_> = (0..4).map(|_| home.blob(MIB)).collect();
    let room = home.room(5 * MIB);
    let pull = room.reserve("the pull", None, None);
    pull.grow_now(MIB / 2).unwrap();
    let here = || blobs.iter().map(|blob| blob.exists()).collect::<Vec<_>>();
    assert_eq!(here(), [true, true, true, true]);
    pull.grow_now(MIB).unwrap();
    assert_eq!(here(), [false, true, true, true]);
    pull.grow_now(3 * MIB).unwrap();
    assert_eq!(here(), [false, false, false, false]);
    assert!(pull.grow_now(MIB).is_err());
}

#[test]
fn a_download_is_counted_once_also_when_it_is_there() {
    let mut home = Home::new();
    let room = home.room(2 * MIB);
    let digest = Digest::of(&0_u64.to_le_bytes());
    let download = room.reserve("the download", Some((Kind::Blob, digest)), None);
    download.grow_now(MIB).unwrap();
    let before = room.taken_bytes().unwrap();
    home.blob(MIB);
    assert_eq!(room.taken_bytes().unwrap(), before);
    // The root file system of this layer alone has its digest, if it is not compressed.
    let packed = room.reserve("the packed image", Some((Kind::Rootfs, digest)), None);
    drop(download);
    assert_eq!(room.taken_bytes().unwrap(), home.stored());
    drop(packed);
}

#[test]
fn what_cannot_be_had_is_refused_before_anything_goes() {
    let mut home = Home::new();
    let (kept, other) = (home.blob(2 * MIB), home.blob(MIB));
    let mut leases = super::super::cache::Leases::new(Arc::clone(&home.cache));
    leases.hold(Digest::of(&0_u64.to_le_bytes()));
    let room = home.room(4 * MIB);
    // The one that nobody needs could go.
    room.check("it", 2 * MIB, []).unwrap();
    assert!(is_over_budget(
        room.check("it", 2 * MIB + 1, []),
        2 * MIB + 1,
        2 * MIB
    ));
    // What is here of it already is a part of it.
    room.check("it", 4 * MIB, [Digest::of(&0_u64.to_le_bytes())])
        .unwrap();
    assert!(kept.exists() && other.exists());
}

/// A file system whose free bytes shrink by what the store holds.
fn small_disk(cache: &Arc<Cache>, bytes: u64, others: u64) -> Probe {
    let cache = Arc::clone(cache);
    Box::new(move |_| {
        let stored = cache.stored_bytes(&BTreeSet::new()).unwrap();
        Ok(FileSystem {
            bytes,
            free_bytes: bytes - others - stored,
        })
    })
}

#[test]
fn a_reserve_of_the_file_system_stays_free_whatever_the_budget() {
    let mut home = Home::new();
    let blob = home.blob(MIB);
    // 5 MiB of 100 stay free; 10 MiB are.
    let probe = small_disk(&home.cache, 100 * MIB, 89 * MIB);
    let room = Room::with_probe(Arc::clone(&home.cache), u64::MAX, probe);
    let (one, two) = (home.dir.path().join("1"), home.dir.path().join("2"));
    let first = room.reserve("the unpacked image", None, Some(&one));
    first.grow_now(3 * MIB).unwrap();
    assert!(blob.exists());
    let second = room.reserve("the packed image", None, Some(&two));
    // What the first has and has not written yet counts, with what it has ahead, and what nobody needs goes here, too.
    second.grow_now(2 * MIB).unwrap();
    assert!(!blob.exists());
    let error = second.grow_now(MIB).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "no room for the packed image: at least 896 KiB more are needed, and 384 KiB are left of the file system of /"
        ) && error.ends_with(
            "beside the 5 MiB that images leave free; delete images with `berth images prune`, or other files there"
        ),
        "{error}"
    );
    // Nothing is left over of what the first gives back.
    drop(first);
    second.grow_now(MIB).unwrap();
}

#[test]
fn the_reserve_is_modest() {
    let of = |bytes| FileSystem { bytes, free_bytes: 0 }.reserve_bytes();
    assert_eq!(of(1 << 50), 1 << 30);
    assert_eq!(of(100 * MIB), 5 * MIB);
    assert_eq!(of(0), 0);
}

#[test]
fn the_rest_of_the_budget_and_the_reserve_are_promised_to_images() {
    let mut home = Home::new();
    home.blob(MIB);
    let room = home.room(100 * MIB);
    assert_eq!(
        room.promised_bytes().unwrap(),
        100 * MIB - home.stored() + (1 << 30)
    );
    let pull = room.reserve("the pull", None, None);
    // What is written has left the free bytes, what is only granted has not.
    pull.grow_now(10 * MIB).unwrap();
    assert_eq!(
        room.promised_bytes().unwrap(),
        90 * MIB - home.stored() + (1 << 30)
    );
    // More in use than a budget that was made smaller.
    assert_eq!(home.room(KIB).promised_bytes().unwrap(), 1 << 30);
}

proptest! {
    /// Whatever several pulls ask for, give back and keep, beside layers that may go: never is more taken than the budget, never
    /// less left free than the reserve, and who is refused could not have had it.
    #[test]
    fn never_more_is_given_than_there_is(
        blobs in prop::collection::vec(1_u64..64, 0..4),
        steps in prop::collection::vec((0_usize..4, 0_u64..96, prop::bool::weighted(0.1)), 1..40),
        budget in 64_u64..512,
        disk in 64_u64..512,
    ) {
        let mut home = Home::new();
        for kib in blobs {
            home.blob(kib * KIB);
        }
        let disk_bytes = disk * KIB + home.stored();
        let (budget, probe) = (budget * KIB, small_disk(&home.cache, disk_bytes, 0));
        let room = Room::with_probe(Arc::clone(&home.cache), budget, probe);
        room.trim().unwrap();
        let reserve = FileSystem { bytes: disk_bytes, free_bytes: 0 }.reserve_bytes();
        let empty = || -> Vec<_> { (0..4).map(|_| room.reserve("a pull", None, None)).collect() };
        let mut pulls = empty();
        let mut sums = vec![0; pulls.len()];
        for (pull, kib, ends) in steps {
            let bytes = kib * KIB;
            if ends {
                pulls[pull] = room.reserve("a pull", None, None);
                sums[pull] = 0;
            }
            match pulls[pull].grow_now(bytes) {
                Ok(()) => sums[pull] += bytes,
                Err(_) => {
                    let ahead = 4 * (budget / AHEAD_PARTS);
                    let all = sums.iter().sum::<u64>() + bytes + ahead;
                    prop_assert_eq!(home.stored(), 0, "what could go is here");
                    prop_assert!(all > budget || all + reserve > disk_bytes);
                }
            }
            let taken = sums.iter().sum::<u64>() + home.stored();
            prop_assert!(taken <= budget && room.taken_bytes().unwrap() >= taken);
            prop_assert!(room.taken_bytes().unwrap() <= budget);
        }
    }
}
