//! Which images go when there is no room, or somebody says so, and which stay.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod image_support;

use std::path::Path;
use std::time::{Duration, SystemTime};

use berth_runtime::image::{Image, ImageError, ImageOptions, ImageStore, PullLimits};
use image_support::{LIMITS, LayerBuilder, Packing, files_of, have, layout, pull};

const LAYER_BYTES: usize = 1 << 20;

/// A store with room for so many images of one layer, each once as a blob and once as a root file system, and for one
/// that is being unpacked.
fn store(dir: &Path, images: u64) -> ImageStore {
    let options = ImageOptions {
        budget_bytes: (2 * images + 1) * LAYER_BYTES as u64 + 256 * 1024,
        ..ImageOptions::default()
    };
    ImageStore::open(dir, options).unwrap()
}

fn image(dir: &Path, name: &str) -> String {
    // Which no compression makes smaller.
    let mut number = name
        .bytes()
        .fold(1, |hash: u64, byte| hash << 8 | u64::from(byte));
    let content: Vec<u8> = (0..LAYER_BYTES)
        .map(|_| {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            number.to_be_bytes()[0]
        })
        .collect();
    let tar = LayerBuilder::new().file(name, &content).tar();
    format!(
        "oci:{}:v1",
        layout(&dir.join(name), "v1", &[(tar, Packing::Gzip)])
            .dir
            .display()
    )
}

async fn kept(store: &ImageStore) -> Vec<String> {
    let images = store.list().await.unwrap().into_iter();
    images
        .map(|stored| {
            let folder = stored.image.reference.rsplit('/').next().unwrap().to_owned();
            folder.trim_end_matches(":v1").to_owned()
        })
        .collect()
}

/// As if everything that is there had been used so long ago.
fn age(dir: &Path, seconds: u64) {
    for folder in ["blobs/sha256", "erofs", "partial"] {
        for entry in std::fs::read_dir(dir.join(folder)).unwrap() {
            let file = std::fs::File::open(entry.unwrap().path()).unwrap();
            let modified = file.metadata().unwrap().modified().unwrap();
            file.set_modified(modified - Duration::from_secs(seconds))
                .unwrap();
        }
    }
}

async fn pull_for(store: &ImageStore, user: &str, reference: &str) -> Image {
    store
        .pull_for(user, reference, None, LIMITS, &|_| {})
        .await
        .unwrap()
}

fn blobs(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("blobs/sha256")).unwrap().count()
}

#[tokio::test]
async fn what_was_used_longest_ago_goes_first_and_layers_before_their_image() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let store = store(&dir, 2);
    let [a, b, c, d, e] = ["a", "b", "c", "d", "e"].map(|name| image(home.path(), name));
    for reference in [&a, &b, &c] {
        pull(&store, reference).await.unwrap();
        age(&dir, 10);
    }
    assert_eq!(kept(&store).await, ["b", "c"]);
    // Used without its layer, which goes before c, although c itself was not used since.
    pull(&store, &b).await.unwrap();
    pull(&store, &d).await.unwrap();
    assert_eq!(kept(&store).await, ["b", "c", "d"]);
    age(&dir, 10);
    pull(&store, &b).await.unwrap();
    pull(&store, &e).await.unwrap();
    assert_eq!(kept(&store).await, ["b", "d", "e"]);
    let (used, budget) = store.usage().await.unwrap();
    assert!(used <= budget, "{used} of {budget}");
    // What went can come again.
    pull(&store, &a).await.unwrap();
}

#[tokio::test]
async fn an_image_in_use_never_goes_and_goes_when_it_is_not() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let [a, b, c] = ["a", "b", "c"].map(|name| image(home.path(), name));
    {
        let store = store(&dir, 1);
        let image = pull_for(&store, "task-1", &a).await;
        assert!(pull_for(&store, "task-2", &a).await.rootfs == image.rootfs && image.rootfs.exists());
        age(&dir, 10);
        for other in [&b, &c] {
            pull(&store, other).await.unwrap();
            age(&dir, 10);
        }
        // b was used after a.
        assert_eq!(kept(&store).await, ["a", "c"]);
        let error = store.remove(&a).await.unwrap_err();
        assert!(
            matches!(&error, ImageError::InUse { users, .. } if users == "task-1, task-2"),
            "{error}"
        );
        assert_eq!(
            store.prune(SystemTime::now()).await.unwrap().0,
            std::slice::from_ref(&c)
        );
        store.release("task-1").await.unwrap();
    }
    // Another process, which is told what the earlier one gave, and has no room at all.
    let options = ImageOptions {
        budget_bytes: 0,
        ..ImageOptions::default()
    };
    let store = ImageStore::open(&dir, options).unwrap();
    let rootfs = store.list().await.unwrap()[0].image.rootfs.clone();
    store.hold("task-2", &rootfs);
    store.make_room().await.unwrap();
    assert_eq!(kept(&store).await, ["a"]);
    assert_eq!(store.list().await.unwrap()[0].users, ["task-2"]);
    store.release("task-2").await.unwrap();
    assert_eq!(kept(&store).await, Vec::<String>::new());
    assert!(!rootfs.exists());
}

#[tokio::test]
async fn prune_and_remove_leave_what_others_share() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let store = store(&dir, 100);
    let [old, recent] = ["old", "recent"].map(|name| image(home.path(), name));
    pull(&store, &old).await.unwrap();
    age(&dir, 3600);
    pull(&store, &recent).await.unwrap();
    std::fs::write(dir.join("partial/half"), "x").unwrap();
    let ago = |seconds| SystemTime::now() - Duration::from_secs(seconds);
    assert_eq!(store.prune(ago(7200)).await.unwrap().0, Vec::<String>::new());
    let (gone, won) = store.prune(ago(1800)).await.unwrap();
    assert_eq!(gone, std::slice::from_ref(&old));
    assert!(won >= 2 * LAYER_BYTES as u64, "{won}");
    assert_eq!(
        blobs(&dir),
        3,
        "manifest, configuration and layer of the one that stays"
    );
    assert_eq!(store.remove(&old).await.unwrap(), None);
    assert!(store.remove(&recent).await.unwrap().unwrap() >= 2 * LAYER_BYTES as u64);
    assert_eq!(files_of(&dir), Vec::<String>::new());
}

#[tokio::test]
async fn a_daemon_that_dies_while_it_deletes_leaves_a_store_that_works() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let reference = image(home.path(), "a");
    let image = pull(&store(&dir, 100), &reference).await.unwrap();
    let folder = |name: &str| {
        std::fs::read_dir(dir.join(name))
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path()
    };
    // In the order in which it deletes: the record, what is known of the size, the root file system.
    let note = image.rootfs.with_extension("json");
    for gone in [folder("refs"), note, image.rootfs.clone()] {
        std::fs::remove_file(gone).unwrap();
        let store = store(&dir, 100);
        assert_eq!(kept(&store).await, Vec::<String>::new());
        store.make_room().await.unwrap();
    }
    let again = pull(&store(&dir, 100), &reference).await.unwrap();
    assert_eq!(again, image);
}

#[tokio::test]
async fn what_the_images_of_one_task_unpack_to_is_bounded_together() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let store = store(&dir, 100);
    let [a, b, c] = ["a", "b", "c"].map(|name| image(home.path(), name));
    // For two images and a half.
    let disk = PullLimits {
        max_unpacked_bytes: 5 * LAYER_BYTES as u64 / 2,
    };
    let pull_within = async |user: &str, reference: &str| {
        let pulled = store.pull_for(user, reference, None, disk, &|_| {}).await;
        pulled.map_err(|error| error.to_string())
    };
    let refused = "image and the task's other images, of 2 MiB, are together larger than the 2621440 bytes of disk the task has";
    pull_within("task-1", &a).await.unwrap();
    pull_within("task-1", &b).await.unwrap();
    assert_eq!(pull_within("task-1", &c).await.unwrap_err(), refused);
    // Several containers with one image have it once, and another task has its own disk.
    pull_within("task-1", &a).await.unwrap();
    assert_eq!(files_of(&dir.join("tmp")), Vec::<String>::new());
    assert_eq!(std::fs::read_dir(dir.join("erofs")).unwrap().count(), 2 * 2);
    pull_within("task-2", &c).await.unwrap();
    // It is not otherwise if the image is here already.
    assert_eq!(pull_within("task-1", &c).await.unwrap_err(), refused);
    let users: Vec<_> = store
        .list()
        .await
        .unwrap()
        .into_iter()
        .map(|it| it.users)
        .collect();
    assert_eq!(users, [["task-1"], ["task-1"], ["task-2"]]);
    store.release("task-1").await.unwrap();
    pull_within("task-1", &c).await.unwrap();
}

#[tokio::test]
async fn a_pull_beyond_the_budget_fails_and_leaves_nothing() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let reference = image(home.path(), "a");
    let layer = LAYER_BYTES as u64;
    // Where it ends: before the download, while it is unpacked, before it is packed.
    for (budget, what) in [
        (layer, "the download"),
        (3 * layer / 2, "the unpacked image"),
        (2 * layer + layer / 16, "the packed image"),
    ] {
        let dir = home.path().join(what);
        let options = |budget_bytes| ImageOptions {
            budget_bytes,
            ..ImageOptions::default()
        };
        let store = ImageStore::open(&dir, options(budget)).unwrap();
        let error = pull(&store, &reference).await.unwrap_err();
        assert!(
            matches!(&error, ImageError::OverBudget { what: at, needed_bytes, .. }
                if *at == what && *needed_bytes > layer / 4),
            "{what}: {error}"
        );
        assert_eq!(kept(&store).await, Vec::<String>::new());
        for folder in ["tmp", "partial", "erofs"] {
            assert_eq!(
                std::fs::read_dir(dir.join(folder)).unwrap().count(),
                0,
                "{folder}"
            );
        }
        let (used, budget) = store.usage().await.unwrap();
        assert!(used <= budget, "{used} of {budget}");
        drop(store);
        let budget = 3 * layer;
        let store = ImageStore::open(&dir, options(budget)).unwrap();
        // Nobody writes between two steps; folders are not counted.
        let within = |_| assert!(disk_use(&dir) <= budget + 64 * 1024);
        store.pull(&reference, None, LIMITS, &within).await.unwrap();
    }
}

#[tokio::test]
async fn what_holes_take_once_they_are_packed_is_counted_before() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let size = LIMITS.max_unpacked_bytes;
    let tar = LayerBuilder::new()
        .pax(&[("GNU.sparse.size", size.to_string().as_bytes())])
        .file("hole", b"")
        .tar();
    let layout = layout(&home.path().join("layout"), "v1", &[(tar, Packing::Gzip)]);
    let dir = home.path().join("store");
    let store = store(&dir, 10);
    let error = pull(&store, &format!("oci:{}:v1", layout.dir.display())).await;
    assert!(
        matches!(&error, Err(ImageError::OverBudget { what: "the packed image", needed_bytes, .. })
            if *needed_bytes >= size),
        "{error:?}"
    );
    assert!(disk_use(&dir) < LAYER_BYTES as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_at_once_stay_within_the_budget_together() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let store = store(&dir, 4);
    let references: Vec<_> = (0..10)
        .map(|number| image(home.path(), &format!("i{number}")))
        .collect();
    let pulls = references
        .iter()
        .map(|reference| pull_for_task(&store, reference));
    let pulled = futures_util::future::join_all(pulls);
    let over = async {
        loop {
            let (used, budget) = store.usage().await.unwrap();
            assert!(used <= budget, "{used} of {budget}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let pulled = tokio::select! {
        pulled = pulled => pulled,
        () = over => unreachable!(),
    };
    let (done, failed): (Vec<_>, Vec<_>) = pulled.into_iter().partition(Result::is_ok);
    // Of the 9 MiB, each takes one as long as it is in use; the last ones need another to be unpacked.
    assert!((2..10).contains(&done.len()), "{}", done.len());
    for error in failed {
        let error = error.unwrap_err();
        assert!(matches!(error, ImageError::OverBudget { .. }), "{error}");
    }
    assert_eq!(files_of(&dir.join("tmp")), Vec::<String>::new());
}

async fn pull_for_task(store: &ImageStore, reference: &str) -> Result<Image, ImageError> {
    store.pull_for(reference, reference, None, LIMITS, &|_| {}).await
}

fn disk_use(dir: &Path) -> u64 {
    let Ok(metadata) = std::fs::symlink_metadata(dir) else {
        return 0;
    };
    let below = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let below: u64 = below.map(|entry| disk_use(&entry.path())).sum();
    below + std::os::unix::fs::MetadataExt::blocks(&metadata) * 512
}
