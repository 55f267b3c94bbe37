//! How images come over the network: what is asked of a registry once, again, from the middle, or not at all.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod image_support;

use std::io::Write;
use std::net::TcpStream;
use std::num::NonZeroU64;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use berth_runtime::image::{Digest, ImageError, ImageOptions, ImageStore, PullBehavior};
use image_support::{
    LIMITS, LayerBuilder, Layout, Packing, Registry, Scripted, answer, free_address, have, layout, pull,
    serve, small, store,
};

const TOOLS: &[&str] = &["docker-registry", "skopeo", "mkfs.erofs"];

fn open(dir: &Path, registry: &str, change: impl FnOnce(&mut ImageOptions)) -> ImageStore {
    let mut options = ImageOptions {
        insecure_registries: [registry.to_owned()].into(),
        ..ImageOptions::default()
    };
    change(&mut options);
    ImageStore::open(dir, options).unwrap()
}

/// A layout whose layers hold a file each, with these names; the contents do not compress.
fn layered(dir: &Path, names: &[&str], bytes: usize) -> Layout {
    let layers: Vec<_> = names
        .iter()
        .map(|name| {
            let mut content = Vec::with_capacity(bytes);
            let mut block = Digest::of(name.as_bytes());
            while content.len() < bytes {
                content.extend_from_slice(block.hex().as_bytes());
                block = Digest::of(block.hex().as_bytes());
            }
            (LayerBuilder::new().file(name, &content).tar(), Packing::Plain)
        })
        .collect();
    layout(dir, "v1", &layers)
}

fn range(head: &str) -> Option<usize> {
    let line = head
        .lines()
        .find(|line| line.to_lowercase().starts_with("range: "))?;
    line.split_once("bytes=")?.1.trim_end_matches('-').parse().ok()
}

/// The blob from the byte that was asked for.
fn rest(body: &[u8], from: usize) -> Vec<u8> {
    let range = format!(
        "Content-Range: bytes {from}-{}/{}\r\n",
        body.len() - 1,
        body.len()
    );
    answer("206 Partial Content", &range, &body[from..])
}

fn break_off(stream: &mut TcpStream, bytes: &[u8], missing: usize) {
    let _ = stream.write_all(&bytes[..bytes.len() - missing]);
}

fn requests_for(registry: &Scripted, digest: Digest) -> Vec<String> {
    let requests = registry.requests.lock().unwrap();
    requests
        .iter()
        .filter(|head| head.contains(&digest.hex()))
        .cloned()
        .collect()
}

#[tokio::test]
async fn an_image_that_shares_layers_downloads_only_the_new_ones() {
    if !have(TOOLS) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::start(false);
    let old = layered(&home.path().join("old"), &["base", "lib", "app-1"], 1000);
    let new = layered(&home.path().join("new"), &["base", "lib", "app-2"], 1000);
    let old_reference = registry.push(&old, "app:1", &["--preserve-digests"]);
    let new_reference = registry.push(&new, "other:2", &["--preserve-digests"]);
    let store = store(&home.path().join("store"), &[&registry.address]);
    pull(&store, &old_reference).await.unwrap();
    let before = registry.requests().len();
    pull(&store, &new_reference).await.unwrap();
    let requests = registry.requests()[before..].to_vec();
    let layers: Vec<_> = new.layers.iter().map(|layer| layer.to_string()).collect();
    let fetched = |layer: &String| requests.iter().filter(|it| it.contains(layer.as_str())).count();
    assert_eq!(
        layers.iter().map(fetched).collect::<Vec<_>>(),
        [0, 0, 1],
        "{requests:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_pulls_at_once_fetch_everything_once() {
    if !have(TOOLS) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::start(false);
    let layout = layered(&home.path().join("layout"), &["a", "b", "c", "d"], 100_000);
    let reference = registry.push(&layout, "app:v1", &["--preserve-digests"]);
    let store = store(&home.path().join("store"), &[&registry.address]);
    let before = registry.requests().len();
    let pulls: Vec<_> = (0..20)
        .map(|_| {
            let (store, reference) = (store.clone(), reference.clone());
            tokio::spawn(async move { pull(&store, &reference).await.unwrap() })
        })
        .collect();
    for pull in pulls {
        pull.await.unwrap();
    }
    let requests = registry.requests()[before..].to_vec();
    let mut fetched: Vec<_> = requests.iter().filter(|it| it.starts_with("GET ")).collect();
    fetched.sort();
    let count = fetched.len();
    fetched.dedup();
    // The manifest, the configuration and the layers.
    assert_eq!((count, fetched.len()), (6, 6), "{requests:?}");
    let looked_up = requests.iter().filter(|it| it.starts_with("HEAD ")).count();
    assert_eq!(looked_up, 20, "each asks what the tag stands for");
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_broke_off() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = layered(&home.path().join("layout"), &["a"], 200_000);
    let layer = layout.layers[0];
    let body = std::fs::read(layout.dir.join("blobs/sha256").join(layer.hex())).unwrap();
    let length = body.len();
    let registry = Scripted::start(move |head, stream| {
        let bytes = match (head.contains(&layer.hex()), range(head)) {
            (true, None) => return break_off(stream, &answer("200 OK", "", &body), 150_000),
            (true, Some(from)) if from < 100_000 => return break_off(stream, &rest(&body, from), 50_000),
            (true, Some(from)) => rest(&body, from),
            (false, _) => serve(&layout, head).unwrap(),
        };
        let _ = stream.write_all(&bytes);
    });
    let store = store(&home.path().join("store"), &[&registry.address]);
    let last = Mutex::new(None);
    let reference = format!("{}/app:v1", registry.address);
    let progress = |progress| *last.lock().unwrap() = Some(progress);
    store.pull(&reference, None, LIMITS, &progress).await.unwrap();
    let asked: Vec<_> = requests_for(&registry, layer)
        .iter()
        .map(|head| range(head))
        .collect();
    assert_eq!(asked, [None, Some(length - 150_000), Some(length - 50_000)]);
    let last = last.into_inner().unwrap().unwrap();
    assert_eq!(last.bytes_done, last.bytes_total);
}

#[tokio::test]
async fn a_later_daemon_goes_on_with_what_an_earlier_one_got() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = layered(&home.path().join("layout"), &["a"], 200_000);
    let layer = layout.layers[0];
    let body = std::fs::read(layout.dir.join("blobs/sha256").join(layer.hex())).unwrap();
    let length = body.len();
    let down = Arc::new(Mutex::new(true));
    let is_down = Arc::clone(&down);
    let registry = Scripted::start(move |head, stream| {
        let bytes = match (head.contains(&layer.hex()), range(head)) {
            (true, None) => return break_off(stream, &answer("200 OK", "", &body), 50_000),
            (true, Some(_)) if *is_down.lock().unwrap() => return,
            (true, Some(from)) => rest(&body, from),
            (false, _) => serve(&layout, head).unwrap(),
        };
        let _ = stream.write_all(&bytes);
    });
    let dir = home.path().join("store");
    let reference = format!("{}/app:v1", registry.address);
    let error = pull(&store(&dir, &[&registry.address]), &reference)
        .await
        .unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    *down.lock().unwrap() = false;
    let before = requests_for(&registry, layer).len();
    pull(&store(&dir, &[&registry.address]), &reference)
        .await
        .unwrap();
    let asked: Vec<_> = requests_for(&registry, layer)[before..]
        .iter()
        .map(|head| range(head))
        .collect();
    assert_eq!(asked, [Some(length - 50_000)]);
    assert_eq!(std::fs::read_dir(dir.join("partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_beginning_that_is_wrong_is_thrown_away() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = layered(&home.path().join("layout"), &["a"], 50_000);
    let layer = layout.layers[0];
    let dir = home.path().join("store");
    drop(store(&dir, &[]));
    std::fs::write(dir.join("partial").join(layer.hex()), [7; 1000]).unwrap();
    let body = std::fs::read(layout.dir.join("blobs/sha256").join(layer.hex())).unwrap();
    let registry = Scripted::start(move |head, stream| {
        let bytes = match (head.contains(&layer.hex()), range(head)) {
            (true, Some(from)) => rest(&body, from),
            _ => serve(&layout, head).unwrap(),
        };
        let _ = stream.write_all(&bytes);
    });
    let store = store(&dir, &[&registry.address]);
    pull(&store, &format!("{}/app:v1", registry.address))
        .await
        .unwrap();
    let asked: Vec<_> = requests_for(&registry, layer)
        .iter()
        .map(|head| range(head))
        .collect();
    assert_eq!(asked, [Some(1000), None]);
}

#[tokio::test]
async fn a_registry_that_ignores_ranges_or_lies_about_them_does_no_harm() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    for lie in [false, true] {
        let home = tempfile::tempdir().unwrap();
        let layout = layered(&home.path().join("layout"), &["a"], 50_000);
        let layer = layout.layers[0];
        let dir = home.path().join("store");
        drop(store(&dir, &[]));
        let body = std::fs::read(layout.dir.join("blobs/sha256").join(layer.hex())).unwrap();
        std::fs::write(dir.join("partial").join(layer.hex()), &body[..1000]).unwrap();
        let registry = Scripted::start(move |head, stream| {
            let bytes = match range(head) {
                Some(_) if lie => rest(&body, 0),
                _ => serve(&layout, head).unwrap(),
            };
            let _ = stream.write_all(&bytes);
        });
        let store = store(&dir, &[&registry.address]);
        let pulled = pull(&store, &format!("{}/app:v1", registry.address)).await;
        match lie {
            false => drop(pulled.unwrap()),
            true => assert!(
                pulled
                    .unwrap_err()
                    .to_string()
                    .contains("answered with \"bytes 0-")
            ),
        }
    }
}

#[tokio::test]
async fn a_registry_that_is_busy_is_asked_again_when_it_says() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = small(&home.path().join("layout"), "busy");
    let refusals = Mutex::new(vec![
        ("429 Too Many Requests", "Retry-After: 2\r\n"),
        ("503 Service Unavailable", ""),
        ("429 Too Many Requests", "Retry-After: 0\r\n"),
    ]);
    let registry = Scripted::start(move |head, stream| {
        let refusal = match head.starts_with("GET ") {
            true => refusals.lock().unwrap().pop(),
            false => None,
        };
        let bytes = match refusal {
            Some((status, headers)) => answer(status, headers, b""),
            None => serve(&layout, head).unwrap(),
        };
        let _ = stream.write_all(&bytes);
    });
    let begun = Instant::now();
    let store = store(&home.path().join("store"), &[&registry.address]);
    pull(&store, &format!("{}/app:v1", registry.address))
        .await
        .unwrap();
    assert!(
        begun.elapsed() >= Duration::from_secs(2),
        "the last refusal asks for two seconds"
    );
}

#[tokio::test]
async fn downloads_keep_to_the_rate() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = layered(&home.path().join("layout"), &["a", "b"], 150_000);
    let registry = Scripted::start(move |head, stream| {
        let _ = stream.write_all(&serve(&layout, head).unwrap());
    });
    let store = open(&home.path().join("store"), &registry.address, |options| {
        options.bytes_per_second = NonZeroU64::new(150_000);
    });
    let begun = Instant::now();
    pull(&store, &format!("{}/app:v1", registry.address))
        .await
        .unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn without_a_registry_what_is_here_is_used_unless_always_asked() {
    if !have(TOOLS) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("store");
    let registry = Registry::start(false);
    let address = registry.address.clone();
    let reference = registry.push(&small(&home.path().join("one"), "one"), "app:v1", &[]);
    let behave = |behavior| open(&dir, &address, |options| options.behavior = behavior);
    let first = pull(&behave(PullBehavior::PreferCached), &reference)
        .await
        .unwrap();
    registry.push(&small(&home.path().join("two"), "two"), "app:v1", &[]);
    let before = registry.requests().len();
    let kept = pull(&behave(PullBehavior::PreferCached), &reference)
        .await
        .unwrap();
    assert_eq!((kept, registry.requests().len()), (first.clone(), before));
    let moved = pull(&behave(PullBehavior::Default), &reference).await.unwrap();
    assert_ne!(moved.digest, first.digest);
    drop(registry);
    let kept = pull(&behave(PullBehavior::Default), &reference).await.unwrap();
    assert_eq!(kept, moved);
    let error = pull(&behave(PullBehavior::Always), &reference).await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    let nobody = free_address();
    let store = open(&home.path().join("other"), &nobody, |_| {});
    assert!(pull(&store, &format!("{nobody}/app:v1")).await.is_err());
}

#[tokio::test]
async fn the_docker_configuration_has_credentials_by_registry() {
    if !have(TOOLS) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::start(true);
    let layout = small(&home.path().join("layout"), "private");
    let reference = registry.push(&layout, "team/app:v1", &["--dest-creds", "alice:correct horse"]);
    let config = home.path().join("config.json");
    let store = open(&home.path().join("store"), &registry.address, |options| {
        options.docker_config = Some(config.clone());
    });
    assert!(matches!(
        pull(&store, &reference).await,
        Err(ImageError::Denied { .. })
    ));
    // It is read anew each time: base64 of "alice:correct horse".
    let auths = format!(
        r#"{{"auths": {{"http://{}/v2/": {{"auth": "YWxpY2U6Y29ycmVjdCBob3JzZQ=="}}}}}}"#,
        registry.address
    );
    std::fs::write(&config, auths).unwrap();
    pull(&store, &reference).await.unwrap();
}

#[tokio::test]
async fn an_identity_token_is_given_to_the_token_server_alone() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = small(&home.path().join("layout"), "identity");
    let registry = Scripted::start(move |head, stream| {
        let line = |name: &str| {
            let mut lines = head.lines();
            let line = lines.find(|line| line.to_lowercase().starts_with(name));
            line.unwrap_or_default().to_owned()
        };
        let host = line("host: ").split_once(' ').unwrap().1.to_owned();
        let bytes = if head.starts_with("POST /token ") {
            let length: usize = line("content-length: ")
                .split_once(' ')
                .unwrap()
                .1
                .parse()
                .unwrap();
            let mut form = vec![0; length];
            std::io::Read::read_exact(stream, &mut form).unwrap();
            let form = String::from_utf8(form).unwrap();
            let wanted = [
                "grant_type=refresh_token",
                "refresh_token=1d%2Bt",
                "scope=repository%3Aapp%3Apull",
            ];
            match wanted.iter().all(|part| form.contains(part)) {
                true => answer("200 OK", "", br#"{"access_token":"t0k3n"}"#),
                false => answer("401 Unauthorized", "", b""),
            }
        } else if line("authorization: ").ends_with("Bearer t0k3n") {
            serve(&layout, head).unwrap()
        } else {
            let header =
                format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"test\"\r\n");
            answer("401 Unauthorized", &header, b"")
        };
        let _ = stream.write_all(&bytes);
    });
    let config = home.path().join("config.json");
    let auths = format!(
        r#"{{"auths": {{"{}": {{"identitytoken": "1d+t"}}}}}}"#,
        registry.address
    );
    std::fs::write(&config, auths).unwrap();
    let store = open(&home.path().join("store"), &registry.address, |options| {
        options.docker_config = Some(config);
    });
    pull(&store, &format!("{}/app:v1", registry.address))
        .await
        .unwrap();
}
