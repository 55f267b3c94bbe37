//! Tests of who unpacks when, and of what ends when nobody waits for it any more.

use std::cell::Cell;
use std::future::poll_fn;
use std::os::unix::process::ExitStatusExt;
use std::pin::Pin;
use std::process::Command;
use std::task::Poll;

use super::*;
use crate::image::manifest::Compression;
use crate::image::{ImageOptions, ImageStore};

fn store(dir: &std::path::Path) -> ImageStore {
    ImageStore::open(&dir.join("images"), ImageOptions::default()).unwrap()
}

/// A layer of nothing but zeros after the end of its archive, which nobody reads to its end.
fn endless_layer(inner: &Inner) -> Layer {
    let digest = Digest::of(b"endless");
    let size = 8 << 40;
    let file = File::create(inner.cache.blob(digest)).unwrap();
    file.set_len(size).unwrap();
    Layer {
        digest,
        size,
        compression: Compression::None,
    }
}

fn trees(inner: &Inner) -> usize {
    std::fs::read_dir(inner.cache.dir().join("tmp")).unwrap().count()
}

async fn until(what: impl Fn() -> bool) {
    while !what() {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

async fn go_on(work: &mut (impl Future<Output = ()> + Unpin)) {
    let pending = poll_fn(|context| Poll::Ready(Pin::new(&mut *work).poll(context).is_pending()));
    assert!(pending.await, "it ended");
}

#[tokio::test]
async fn so_many_unpack_at_once_and_who_goes_away_leaves_place_and_disk_to_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let store = store(dir.path());
    let inner = &store.inner;
    let layers = [endless_layer(inner)];
    // How often each was told of: once when it comes, once when its first layer is begun.
    let told = [const { Cell::new(0) }; 5];
    let unpack = |number: usize| {
        let (layers, told) = (&layers, &told[number]);
        Box::pin(async move {
            let rootfs = Rootfs {
                inner,
                chain_id: Digest::of(b"chain"),
                layers,
                diff_ids: &[Digest::of(b"")],
                max_bytes: u64::MAX,
            };
            rootfs
                .unpack(|_| told.set(told.get() + 1))
                .await
                .map(drop)
                .unwrap();
        })
    };
    let mut first = unpack(0);
    let mut second = unpack(1);
    let mut goes_away = unpack(2);
    let mut third = unpack(3);
    let mut fourth = unpack(4);
    for work in [&mut first, &mut second, &mut goes_away, &mut third, &mut fourth] {
        go_on(work).await;
    }
    until(|| trees(inner) == MAX_UNPACKING).await;
    while told[0].get() < 2 {
        go_on(&mut first).await;
        tokio::task::yield_now().await;
    }
    go_on(&mut third).await;
    assert_eq!(told.each_ref().map(Cell::get)[2..], [1, 1, 1]);
    assert_eq!(inner.places.0.available_permits(), 0);

    drop(goes_away);
    drop(first);
    // Its thread notices and deletes what it has made, and the one that has waited longest is next.
    while told[3].get() < 2 {
        go_on(&mut third).await;
        go_on(&mut fourth).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(told[4].get(), 1);
    assert_eq!(trees(inner), MAX_UNPACKING);
    drop((second, third, fourth));
    until(|| trees(inner) == 0 && inner.places.0.available_permits() == MAX_UNPACKING).await;
}

#[test]
fn a_program_ends_with_the_one_who_waits_for_it() {
    let sleep = || Command::new("sleep").arg("1000000").spawn().unwrap();
    let waiting = Waiting::default();
    let stop = Arc::clone(&waiting.0);
    stop.ends(sleep());
    drop(waiting);
    assert_eq!(stop.child().unwrap().wait().unwrap().signal(), Some(9));
    // One that is started too late, too.
    stop.ends(sleep());
    assert_eq!(stop.child().unwrap().wait().unwrap().signal(), Some(9));
}
