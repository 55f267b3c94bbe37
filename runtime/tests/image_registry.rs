//! Images from registries: a real one (Debian's docker-registry), and scripted ones that misbehave.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod image_support;

use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use berth_runtime::image::{Digest, ImageError, ImageOptions, ImageStore};
use image_support::{
    LIMITS, Layout, Registry, Scripted, answer, credentials, files_of, free_address, have, layout_for, pull,
    serve, small, store,
};
use serde_json::{Value, json};

const TOOLS: &[&str] = &["docker-registry", "skopeo", "mkfs.erofs"];

#[tokio::test]
async fn an_image_is_pulled_by_tag_and_by_digest_and_fetched_once() {
    if !have(TOOLS) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::start(false);
    let layout = small(&home.path().join("layout"), "hello");
    let reference = registry.push(&layout, "team/app:v1", &["--preserve-digests"]);
    let store = store(&home.path().join("store"), &[&registry.address]);
    let image = pull(&store, &reference).await.unwrap();
    assert_eq!(
        (image.reference.as_str(), image.digest),
        (reference.as_str(), layout.manifest)
    );

    let before = registry.requests().len();
    assert_eq!(pull(&store, &reference).await.unwrap(), image);
    let requests = registry.requests();
    assert_eq!(
        requests[before..],
        ["HEAD /v2/team/app/manifests/v1"],
        "a tag is only looked up again"
    );

    let by_digest = format!("{}/team/app@{}", registry.address, layout.manifest);
    assert_eq!(pull(&store, &by_digest).await.unwrap().rootfs, image.rootfs);
    assert_eq!(
        registry.requests().len(),
        requests.len(),
        "what is known by digest needs no registry"
    );

    let fresh = image_support::store(&home.path().join("fresh"), &[&registry.address]);
    assert_eq!(pull(&fresh, &by_digest).await.unwrap().digest, layout.manifest);
}

#[tokio::test]
async fn docker_manifests_are_pulled() {
    if !have(TOOLS) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::start(false);
    let reference = registry.push(
        &small(&home.path().join("layout"), "hello"),
        "app:v1",
        &["--format", "v2s2"],
    );
    let image = pull(
        &store(&home.path().join("store"), &[&registry.address]),
        &reference,
    )
    .await
    .unwrap();
    assert_eq!(image.config.env, ["A=b"]);
}

#[tokio::test]
async fn a_manifest_list_leads_to_this_platform() {
    if !have(TOOLS) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::start(false);
    let ours = small(&home.path().join("amd64"), "amd64");
    let theirs = layout_for(&home.path().join("arm64"), "v1", &[], "arm64", &json!({}));
    registry.push(&ours, "app:amd64", &["--preserve-digests"]);
    registry.push(&theirs, "app:arm64", &["--preserve-digests"]);
    let entry = |layout: &Layout, architecture: &str| {
        let size = layout
            .dir
            .join("blobs/sha256")
            .join(layout.manifest.hex())
            .metadata()
            .unwrap()
            .len();
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": layout.manifest, "size": size,
            "platform": {"os": "linux", "architecture": architecture},
        })
    };
    for (kind, tag) in [
        ("application/vnd.oci.image.index.v1+json", "oci"),
        (
            "application/vnd.docker.distribution.manifest.list.v2+json",
            "docker",
        ),
    ] {
        let index = |manifests: &[Value]| {
            json!({"schemaVersion": 2, "mediaType": kind, "manifests": manifests}).to_string()
        };
        let both = index(&[entry(&theirs, "arm64"), entry(&ours, "amd64")]);
        registry.put_manifest("app", tag, kind, &both);
        registry.put_manifest(
            "app",
            &format!("{tag}-arm"),
            kind,
            &index(&[entry(&theirs, "arm64")]),
        );
        let store = store(&home.path().join(tag), &[&registry.address]);
        let image = pull(&store, &format!("{}/app:{tag}", registry.address))
            .await
            .unwrap();
        assert_eq!(image.digest, ours.manifest);
        let before = registry.requests().len();
        let by_digest = format!("{}/app@{}", registry.address, Digest::of(both.as_bytes()));
        assert_eq!(pull(&store, &by_digest).await.unwrap().digest, ours.manifest);
        assert_eq!(registry.requests().len(), before);
        let error = pull(&store, &format!("{}/app:{tag}-arm", registry.address))
            .await
            .unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("no image for linux/amd64, only for linux/arm64"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn basic_credentials_are_needed_and_enough() {
    if !have(TOOLS) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::start(true);
    let layout = small(&home.path().join("layout"), "private");
    let reference = registry.push(&layout, "app:v1", &["--dest-creds", "alice:correct horse"]);
    let store = store(&home.path().join("store"), &[&registry.address]);
    for wrong in [None, credentials("wrong")] {
        let error = store.pull(&reference, wrong, LIMITS, &|_| {}).await.unwrap_err();
        assert!(matches!(error, ImageError::Denied { .. }), "{error}");
        assert!(error.to_string().contains("UNAUTHORIZED"), "{error}");
        assert!(!format!("{error:?}").contains("wrong"), "{error:?}");
    }
    store
        .pull(&reference, credentials("correct horse"), LIMITS, &|_| {})
        .await
        .unwrap();
    // A tag in the cache is no way around the registry.
    assert!(matches!(
        pull(&store, &reference).await,
        Err(ImageError::Denied { .. })
    ));
}

#[tokio::test]
async fn a_blob_that_is_not_its_digest_is_refused() {
    if !have(TOOLS) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::start(false);
    let layout = small(&home.path().join("layout"), "hello");
    let reference = registry.push(&layout, "app:v1", &["--preserve-digests"]);
    let path = registry.blob(layout.layers[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let dir = home.path().join("store");
    let store = store(&dir, &[&registry.address]);
    let error = pull(&store, &reference).await.unwrap_err().to_string();
    assert!(
        error.contains(&layout.layers[0].to_string()) && error.contains(&Digest::of(&bytes).to_string()),
        "{error}"
    );
    assert!(
        !files_of(&dir)
            .iter()
            .any(|name| name.contains(&layout.layers[0].hex()) || name.contains("tmp"))
    );
}

#[tokio::test]
async fn downloads_are_bounded_before_they_begin() {
    if !have(TOOLS) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::start(false);
    let reference = registry.push(&small(&home.path().join("layout"), "hello"), "app:v1", &[]);
    let options = ImageOptions {
        insecure_registries: [registry.address.clone()].into(),
        max_compressed_bytes: 10,
        ..ImageOptions::default()
    };
    let store = ImageStore::open(&home.path().join("store"), options).unwrap();
    let error = pull(&store, &reference).await.unwrap_err();
    assert!(
        matches!(error, ImageError::DownloadTooLarge { limit: 10, .. }),
        "{error}"
    );
    // Only the configuration, which says what the layers are, was fetched.
    let blobs = registry
        .requests()
        .iter()
        .filter(|it| it.starts_with("GET") && it.contains("/blobs/"))
        .count();
    assert_eq!(blobs, 1);
}

#[tokio::test]
async fn failures_name_their_cause() {
    if !have(TOOLS) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::start(false);
    let nobody = free_address();
    let store = store(&home.path().join("store"), &[&registry.address, &nobody]);
    let unknown = format!("{}/no/such:v1", registry.address);
    assert_eq!(
        pull(&store, &unknown).await.unwrap_err().to_string(),
        format!("{unknown}: manifest unknown: not found")
    );
    let down = pull(&store, &format!("{nobody}/app:v1")).await.unwrap_err();
    assert_eq!(down.to_string(), format!("registry {nobody}: connection refused"));
    let strict = image_support::store(&home.path().join("strict"), &[]);
    let plain = pull(&strict, &unknown).await.unwrap_err();
    assert!(matches!(plain, ImageError::PlainHttp { .. }), "{plain}");
    assert!(plain.to_string().contains("insecure registries"), "{plain}");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pulls_fetch_once() {
    if !have(TOOLS) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let registry = Registry::start(false);
    let reference = registry.push(&small(&home.path().join("layout"), "hello"), "app:v1", &[]);
    let store = store(&home.path().join("store"), &[&registry.address]);
    let before = registry.requests().len();
    let pulls: Vec<_> = (0..8)
        .map(|_| {
            let (store, reference) = (store.clone(), reference.clone());
            tokio::spawn(async move { pull(&store, &reference).await.unwrap() })
        })
        .collect();
    for pull in pulls {
        pull.await.unwrap();
    }
    let requests = registry.requests();
    let mut blobs: Vec<_> = requests[before..]
        .iter()
        .filter(|it| it.contains("/blobs/"))
        .collect();
    assert_eq!(blobs.len(), 2, "one configuration and one layer: {blobs:?}");
    blobs.dedup();
    assert_eq!(blobs.len(), 2);
}

#[tokio::test]
async fn bearer_tokens_are_fetched_with_the_credentials_and_used() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = small(&home.path().join("layout"), "token");
    let registry = Scripted::start(move |head, stream| {
        let line = |name: &str| {
            head.lines()
                .find(|line| line.to_lowercase().starts_with(name))
                .unwrap_or_default()
                .to_owned()
        };
        let host = line("host: ").split_once(' ').unwrap().1.to_owned();
        let authorized = line("authorization: ");
        let bytes = if head.starts_with("GET /token?") {
            // alice:secret
            assert!(authorized.ends_with("Basic YWxpY2U6c2VjcmV0"), "{head}");
            assert!(
                head.contains("scope=repository%3Aapp%3Apull") && head.contains("service=test"),
                "{head}"
            );
            answer("200 OK", "", br#"{"token":"t0k3n"}"#)
        } else if authorized.ends_with("Bearer t0k3n") {
            serve(&layout, head).unwrap()
        } else {
            let header =
                format!("WWW-Authenticate: Bearer realm=\"http://{host}/token\",service=\"test\"\r\n");
            answer("401 Unauthorized", &header, b"")
        };
        let _ = stream.write_all(&bytes);
    });
    let store = store(&home.path().join("store"), &[&registry.address]);
    store
        .pull(
            &format!("{}/app:v1", registry.address),
            credentials("secret"),
            LIMITS,
            &|_| {},
        )
        .await
        .unwrap();
    let tokens = registry
        .requests
        .lock()
        .unwrap()
        .iter()
        .filter(|head| head.contains("/token"))
        .count();
    assert_eq!(tokens, 1);
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = small(&home.path().join("layout"), "redirect");
    let elsewhere_layout = Layout {
        dir: layout.dir.clone(),
        manifest: layout.manifest,
        layers: layout.layers.clone(),
    };
    let elsewhere = Scripted::start(move |head, stream| {
        let _ = stream.write_all(&serve(&elsewhere_layout, head).unwrap());
    });
    // Another name for the same machine is another host.
    let target = elsewhere.address.replace("127.0.0.1", "localhost");
    let registry = Scripted::start(move |head, stream| {
        let bytes = if !head.to_lowercase().contains("authorization: basic") {
            answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n", b"")
        } else if head.contains("/blobs/") {
            let path = head.split(' ').nth(1).unwrap();
            answer(
                "307 Temporary Redirect",
                &format!("Location: http://{target}{path}\r\n"),
                b"",
            )
        } else {
            serve(&layout, head).unwrap()
        };
        let _ = stream.write_all(&bytes);
    });
    let store = store(&home.path().join("store"), &[&registry.address]);
    store
        .pull(
            &format!("{}/app:v1", registry.address),
            credentials("secret"),
            LIMITS,
            &|_| {},
        )
        .await
        .unwrap();
    let seen = elsewhere.requests.lock().unwrap();
    assert!(
        seen.len() == 2
            && seen
                .iter()
                .all(|head| !head.to_lowercase().contains("authorization")),
        "{seen:?}"
    );
}

#[tokio::test]
async fn endless_answers_are_cut_off() {
    if !have(&[]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let endless = |head: &'static str| {
        Scripted::start(move |_, stream| {
            let _ = stream.write_all(head.as_bytes());
            while stream.write_all(&[b' '; 65536]).is_ok() {}
        })
    };
    let begun = Instant::now();
    let manifest = endless("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n");
    let error = endless("HTTP/1.1 500 Oops\r\nConnection: close\r\n\r\n");
    let store = store(&home.path().join("store"), &[&manifest.address, &error.address]);
    let too_long = pull(&store, &format!("{}/app:v1", manifest.address))
        .await
        .unwrap_err();
    assert!(
        too_long
            .to_string()
            .contains("manifest of more than 4194304 bytes"),
        "{too_long}"
    );
    let failed = pull(&store, &format!("{}/app:v1", error.address))
        .await
        .unwrap_err();
    assert!(
        failed
            .to_string()
            .ends_with("it answered 500 Internal Server Error"),
        "{failed}"
    );
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_blob_is_neither_longer_nor_shorter_than_the_manifest_says() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    for (name, change) in [("longer", 1_i64), ("shorter", -1)] {
        let layout = small(&home.path().join(name), name);
        let layer = layout.layers[0];
        let registry = Scripted::start(move |head, stream| {
            let mut bytes = serve(&layout, head).unwrap();
            if head.contains(&layer.hex()) {
                let mut body = std::fs::read(layout.dir.join("blobs/sha256").join(layer.hex())).unwrap();
                body.resize(
                    body.len()
                        .checked_add_signed(isize::try_from(change).unwrap())
                        .unwrap(),
                    0,
                );
                bytes = answer("200 OK", "", &body);
            }
            let _ = stream.write_all(&bytes);
        });
        let dir = home.path().join(format!("store-{name}"));
        let store = store(&dir, &[&registry.address]);
        let error = pull(&store, &format!("{}/app:v1", registry.address))
            .await
            .unwrap_err();
        assert!(matches!(error, ImageError::Size { .. }), "{error}");
        assert!(!files_of(&dir).iter().any(|file| file.contains(&layer.hex())));
    }
}

#[tokio::test]
async fn a_download_that_breaks_off_is_begun_again() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = small(&home.path().join("layout"), "again");
    let layer = layout.layers[0];
    let broken = Mutex::new(1);
    let registry = Scripted::start(move |head, stream| {
        let bytes = serve(&layout, head).unwrap();
        let mut left = broken.lock().unwrap();
        let whole = !head.contains(&layer.hex()) || *left == 0;
        let end = if whole { bytes.len() } else { bytes.len() - 10 };
        if !whole {
            *left -= 1;
        }
        let _ = stream.write_all(&bytes[..end]);
    });
    let store = store(&home.path().join("store"), &[&registry.address]);
    let last = Mutex::new(None);
    let reference = format!("{}/app:v1", registry.address);
    store
        .pull(&reference, None, LIMITS, &|progress| {
            *last.lock().unwrap() = Some(progress)
        })
        .await
        .unwrap();
    let last = last.into_inner().unwrap().unwrap();
    assert_eq!(last.bytes_done, last.bytes_total);
}

#[tokio::test]
async fn a_pull_that_is_dropped_leaves_the_next_one_free() {
    if !have(&["mkfs.erofs"]) {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let layout = small(&home.path().join("layout"), "slow");
    let layer = layout.layers[0];
    let stall = Mutex::new(true);
    let registry = Scripted::start(move |head, stream| {
        if head.contains(&layer.hex()) && std::mem::take(&mut *stall.lock().unwrap()) {
            std::thread::sleep(Duration::from_secs(30));
        }
        let _ = stream.write_all(&serve(&layout, head).unwrap());
    });
    let dir = home.path().join("store");
    let store = store(&dir, &[&registry.address]);
    let reference = format!("{}/app:v1", registry.address);
    let first = tokio::spawn({
        let (store, reference) = (store.clone(), reference.clone());
        async move { pull(&store, &reference).await }
    });
    let asked = || {
        registry
            .requests
            .lock()
            .unwrap()
            .iter()
            .any(|head| head.contains(&layer.hex()))
    };
    while !asked() {
        assert!(!first.is_finished(), "the first pull was to stall");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    tokio::time::timeout(Duration::from_secs(20), pull(&store, &reference))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(std::fs::read_dir(dir.join("tmp")).unwrap().count(), 0);
}
