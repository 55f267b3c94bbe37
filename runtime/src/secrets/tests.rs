//! Sealing, the key file, and rotation cut off anywhere.

mod life;
mod races;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;
use proptest::prelude::*;
use tokio::sync::mpsc;

use super::seal::Key;
use super::*;
use crate::clock::SimulatedClock;
use crate::model::Timestamp;
use crate::model::secret::PREVIOUS;
use crate::store::{Change, Entry, Revision, Store};

const CLEAR: &str = "correct horse battery staple";

/// A data directory in which stores come and go.
struct World {
    dir: tempfile::TempDir,
    clock: Arc<SimulatedClock>,
}

impl World {
    fn new() -> World {
        World {
            dir: tempfile::tempdir().unwrap(),
            clock: Arc::new(SimulatedClock::at(Timestamp(1_700_000_000_000))),
        }
    }

    fn key_file(&self) -> PathBuf {
        self.dir.path().join("secrets.keys")
    }

    fn records(&self) -> Records {
        Records::new(Arc::new(
            SqliteStore::open(&self.dir.path().join("state.db")).unwrap(),
        ))
    }

    async fn try_open(&self, records: Records) -> Result<SecretStore, SecretError> {
        SecretStore::open(records, Arc::clone(&self.clock) as _, self.key_file()).await
    }

    async fn open(&self) -> SecretStore {
        self.try_open(self.records()).await.unwrap()
    }
}

fn put(name: &str, value: &str) -> PutParameter {
    PutParameter {
        name: name.into(),
        value: SecretText::new(value.into()),
        kind: Some(ParameterType::SecureString),
        tier: None,
        data_type: None,
        description: None,
        allowed_pattern: None,
        overwrite: true,
        tags: vec![],
        by: "root".into(),
    }
}

fn value(version: &str, text: &str) -> NewValue {
    NewValue {
        version: version.into(),
        binary: false,
        bytes: SecretBytes::new(text.into()),
        stages: BTreeSet::new(),
    }
}

fn create(name: &str, value: Option<NewValue>) -> CreateSecret {
    CreateSecret {
        name: name.into(),
        description: None,
        tags: vec![],
        value,
    }
}

async fn read(store: &SecretStore, name: &str) -> String {
    let (_, value) = store.parameter_value(name, None).await.unwrap();
    value.expose().to_owned()
}

async fn read_secret(store: &SecretStore, id: &str, selector: &VersionSelector) -> String {
    let (_, value) = store.secret_value(id, selector).await.unwrap();
    value.bytes.to_text().unwrap().expose().to_owned()
}

fn stage(stage: &str) -> VersionSelector {
    VersionSelector {
        id: None,
        stage: Some(stage.into()),
    }
}

/// Files of the directory that have these bytes in them.
fn files_with(dir: &Path, bytes: &[u8]) -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    files
        .filter(|path| {
            let content = std::fs::read(path).unwrap();
            content.windows(bytes.len()).any(|window| window == bytes)
        })
        .collect()
}

proptest! {
    #[test]
    fn what_is_sealed_opens_for_what_it_was_sealed_for(value: Vec<u8>, about: String, other: String) {
        let key = Key::random().unwrap();
        let sealed = key.seal(&about, &value).unwrap();
        let opened = key.open(&about, &sealed).unwrap();
        prop_assert_eq!(opened.expose(), &value[..]);
        prop_assert_ne!(&key.seal(&about, &value).unwrap(), &sealed, "a nonce came twice");
        if other != about {
            prop_assert!(key.open(&other, &sealed).is_err());
        }
        let stranger = Key::random().unwrap();
        prop_assert!(stranger.open(&about, &sealed).is_err());
    }

    #[test]
    fn what_was_changed_does_not_open(value in proptest::collection::vec(any::<u8>(), 0..40), at: prop::sample::Index, bit in 0u8..8) {
        use base64::Engine;
        use base64::engine::general_purpose::STANDARD;
        let key = Key::random().unwrap();
        let mut sealed = serde_json::to_value(key.seal("a", &value).unwrap()).unwrap();
        let mut data = STANDARD.decode(sealed["data"].as_str().unwrap()).unwrap();
        let at = at.index(data.len());
        data[at] ^= 1 << bit;
        sealed["data"] = STANDARD.encode(&data).into();
        let changed: Sealed = serde_json::from_value(sealed.clone()).unwrap();
        let refused = matches!(key.open("a", &changed), Err(SealError::Open { .. }));
        prop_assert!(refused);
        data.truncate(at);
        sealed["data"] = STANDARD.encode(&data).into();
        let cut: Sealed = serde_json::from_value(sealed).unwrap();
        prop_assert!(key.open("a", &cut).is_err());
    }
}

#[test]
fn debug_shows_no_secret() {
    let key = Key::random().unwrap();
    let shown = format!(
        "{:?} {:?} {:?} {:?}",
        SecretText::new(CLEAR.into()),
        put("a", CLEAR),
        value("v", CLEAR),
        key
    );
    assert!(shown.contains("(hidden)") && !shown.contains(CLEAR), "{shown}");
    let bytes = format!("{:?}", CLEAR.as_bytes());
    assert!(!shown.contains(&bytes) && !shown.contains(&format!("{:?}", key.bytes())));
}

#[tokio::test]
async fn values_are_not_found_in_the_files_and_the_key_file_is_private() {
    let world = World::new();
    let store = world.open().await;
    assert!(!world.key_file().exists(), "made before it is used");
    store.put_parameter(put("/findable/name", CLEAR)).await.unwrap();
    store
        .create_secret(create("s", Some(value("v", CLEAR))))
        .await
        .unwrap();
    assert_eq!(read(&store, "/findable/name").await, CLEAR);
    let mode = std::fs::metadata(world.key_file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    assert!(
        !files_with(world.dir.path(), b"/findable/name").is_empty(),
        "the search finds nothing at all"
    );
    assert_eq!(
        files_with(world.dir.path(), CLEAR.as_bytes()),
        Vec::<PathBuf>::new()
    );
    std::fs::set_permissions(world.key_file(), std::fs::Permissions::from_mode(0o640)).unwrap();
    let refused = world.try_open(world.records()).await.err().unwrap();
    assert!(refused.to_string().contains("0640"), "{refused}");
}

#[tokio::test]
async fn a_lost_key_file_is_not_replaced_by_itself() {
    let world = World::new();
    let store = world.open().await;
    store.put_parameter(put("a", CLEAR)).await.unwrap();
    drop(store);
    let keys = std::fs::read(world.key_file()).unwrap();
    std::fs::remove_file(world.key_file()).unwrap();
    assert!(matches!(
        world.try_open(world.records()).await,
        Err(SecretError::KeyFileMissing(_))
    ));
    // An empty one says that it is lost: what was sealed stays closed, and can be put anew.
    std::fs::write(world.key_file(), "").unwrap();
    std::fs::set_permissions(world.key_file(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let store = world.open().await;
    let closed = store.parameter_value("a", None).await;
    assert!(
        matches!(closed, Err(SecretError::Seal(SealError::UnknownKey { .. }))),
        "{closed:?}"
    );
    store.put_parameter(put("a", "new")).await.unwrap();
    assert_eq!(read(&store, "a").await, "new");
    store.rotate().await.unwrap();
    assert_eq!(read(&store, "a").await, "new");
    assert_ne!(std::fs::read(world.key_file()).unwrap(), keys);
}

#[tokio::test]
async fn a_malformed_key_file_is_named_by_its_line_and_not_shown() {
    let world = World::new();
    std::fs::write(world.key_file(), "# keys\n0123456789abcdef hunter2\n").unwrap();
    std::fs::set_permissions(world.key_file(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let refused = world.try_open(world.records()).await.err().unwrap().to_string();
    assert!(
        refused.contains("line 2") && !refused.contains("hunter2"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_value_moved_to_another_record_does_not_open() {
    let world = World::new();
    let records = world.records();
    let store = world.try_open(records.clone()).await.unwrap();
    for name in ["mine", "theirs"] {
        store.put_parameter(put(name, CLEAR)).await.unwrap();
    }
    let theirs = records
        .store()
        .get(&names::sealed_parameter("theirs", 1))
        .await
        .unwrap()
        .unwrap();
    let swap = Transaction {
        checks: vec![],
        writes: vec![crate::store::Write::Put {
            key: names::sealed_parameter("mine", 1),
            value: theirs.value,
        }],
    };
    records.commit(swap).await.unwrap();
    let opened = store.parameter_value("mine", None).await;
    assert!(
        matches!(opened, Err(SecretError::Seal(SealError::Open { .. }))),
        "{opened:?}"
    );
    // Nor is a key dropped that something cannot be opened with: it stays, for whoever repairs it.
    store.rotate().await.unwrap_err();
    assert_eq!(store.key_ids().len(), 2);
    assert_eq!(read(&store, "theirs").await, CLEAR);
    store.delete_parameter("mine").await.unwrap();
    store.rotate().await.unwrap();
    assert_eq!(store.key_ids().len(), 1);
    assert_eq!(read(&store, "theirs").await, CLEAR);
}

/// A store that fails for good after so many commits, as under a daemon that is killed.
struct Dying {
    store: SqliteStore,
    left: AtomicUsize,
}

impl Store for Dying {
    fn get(&self, key: &str) -> BoxFuture<'_, Result<Option<Entry>, StoreError>> {
        self.store.get(key)
    }
    fn list(&self, prefix: &str) -> BoxFuture<'_, Result<Vec<Entry>, StoreError>> {
        self.store.list(prefix)
    }
    fn commit(&self, transaction: Transaction) -> BoxFuture<'_, Result<Revision, StoreError>> {
        let alive = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        match alive {
            Ok(_) => self.store.commit(transaction),
            Err(_) => Box::pin(async { Err(StoreError::Failed("killed".into())) }),
        }
    }
    fn watch(
        &self,
        prefix: &str,
        from: Revision,
    ) -> BoxFuture<'_, Result<mpsc::UnboundedReceiver<Change>, StoreError>> {
        self.store.watch(prefix, from)
    }
    fn revision(&self) -> BoxFuture<'_, Result<Revision, StoreError>> {
        self.store.revision()
    }
}

async fn check_all(store: &SecretStore) {
    for number in 0..3 {
        assert_eq!(
            read(store, &format!("/p/{number}")).await,
            format!("{CLEAR} {number}")
        );
    }
    assert_eq!(
        store.parameter_value("/p/0", Some(1)).await.unwrap().1.expose(),
        "older"
    );
    assert_eq!(
        read_secret(store, "s", &VersionSelector::default()).await,
        "second"
    );
    assert_eq!(read_secret(store, "s", &stage(PREVIOUS)).await, "first");
}

#[tokio::test]
async fn a_rotation_that_is_cut_off_anywhere_loses_nothing_and_is_ended_later() {
    let world = World::new();
    let store = world.open().await;
    store.put_parameter(put("/p/0", "older")).await.unwrap();
    for number in 0..3 {
        let name = format!("/p/{number}");
        store
            .put_parameter(put(&name, &format!("{CLEAR} {number}")))
            .await
            .unwrap();
    }
    store
        .create_secret(create("s", Some(value("1", "first"))))
        .await
        .unwrap();
    store.put_secret_value("s", value("2", "second")).await.unwrap();
    // Noted now, so that no read is a commit below.
    check_all(&store).await;
    drop(store);
    let first_keys = std::fs::read(world.key_file()).unwrap();

    let mut cut_off = 0;
    for commits in 0.. {
        let dying = Dying {
            store: SqliteStore::open(&world.dir.path().join("state.db")).unwrap(),
            left: AtomicUsize::new(commits),
        };
        let store = world.try_open(Records::new(Arc::new(dying))).await.unwrap();
        let keys_before = store.key_ids().len();
        let done = store.rotate().await;
        check_all(&store).await;
        drop(store);
        // A file that was being written then says nothing.
        std::fs::write(world.key_file().with_extension("keys.new"), "half a l").unwrap();
        let store = world.open().await;
        check_all(&store).await;
        match done {
            Ok(rotation) => {
                assert_eq!(rotation.values, 6);
                assert_eq!(store.key_ids(), [rotation.key.unwrap()]);
                break;
            }
            Err(_) => {
                cut_off += 1;
                assert_eq!(store.key_ids().len(), keys_before + 1);
                if commits % 2 == 1 {
                    store.finish_rotation().await.unwrap();
                    assert_eq!(store.key_ids().len(), 1);
                    check_all(&store).await;
                }
            }
        }
    }
    // One commit for each parameter and for the secret.
    assert_eq!(cut_off, 4);
    // The first key is gone for good: with it nothing opens any more.
    std::fs::write(world.key_file(), first_keys).unwrap();
    let store = world.open().await;
    assert!(store.parameter_value("/p/0", None).await.is_err());
}
