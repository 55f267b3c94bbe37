use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn put(key: &str, value: &str) -> Write {
    Write::Put {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
    }
}

fn open() -> (tempfile::TempDir, SqliteStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&dir.path().join("state.db")).unwrap();
    (dir, store)
}

#[tokio::test]
async fn a_transaction_whose_check_fails_writes_nothing() {
    let (_dir, store) = open();
    let first = Transaction {
        checks: vec![],
        writes: vec![put("a", "1")],
    };
    let revision = store.commit(first).await.unwrap();
    let clash = Transaction {
        checks: vec![
            Check::Unchanged {
                key: "a".into(),
                revision,
            },
            Check::Absent { key: "a".into() },
        ],
        writes: vec![put("a", "2"), put("b", "2")],
    };
    assert!(matches!(store.commit(clash).await, Err(StoreError::Conflict { key }) if key == "a"));
    assert_eq!(store.get("a").await.unwrap().unwrap().value, b"1");
    assert_eq!(store.get("b").await.unwrap(), None);
    assert_eq!(store.revision().await.unwrap(), revision);
}

#[tokio::test]
async fn a_watch_replays_from_its_revision_and_then_follows() {
    let (_dir, store) = open();
    let commit = |writes| {
        store.commit(Transaction {
            checks: vec![],
            writes,
        })
    };
    let first = commit(vec![put("t/1", "a")]).await.unwrap();
    commit(vec![put("t/2", "b"), put("u/1", "x")]).await.unwrap();
    let mut changes = store.watch("t/", first).await.unwrap();
    commit(vec![Write::Delete { key: "t/1".into() }]).await.unwrap();
    let replayed = changes.recv().await.unwrap();
    assert_eq!(
        (replayed.key.as_str(), replayed.value.as_deref()),
        ("t/2", Some(&b"b"[..]))
    );
    let live = changes.recv().await.unwrap();
    assert_eq!((live.key.as_str(), live.value), ("t/1", None));
}

#[tokio::test]
async fn an_unknown_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.db");
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute_batch("PRAGMA user_version = 99")
        .unwrap();
    assert!(matches!(
        SqliteStore::open(&path),
        Err(StoreError::Schema { found: 99, .. })
    ));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_reopened_store_holds_what_was_committed(
        writes in proptest::collection::vec(("[a-c]/[a-d]{1,2}", proptest::option::of("[a-z]{0,8}")), 1..40)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut model = BTreeMap::new();
        let store = SqliteStore::open(&path).unwrap();
        for (key, value) in &writes {
            let write = match value {
                Some(value) => { model.insert(key.clone(), value.clone()); put(key, value) }
                None => { model.remove(key); Write::Delete { key: key.clone() } }
            };
            runtime.block_on(store.commit(Transaction { checks: vec![], writes: vec![write] })).unwrap();
        }
        drop(store);
        let store = SqliteStore::open(&path).unwrap();
        for prefix in ["a/", "b/", "c/", ""] {
            let listed: Vec<_> = runtime.block_on(store.list(prefix)).unwrap().into_iter()
                .map(|entry| (entry.key, String::from_utf8(entry.value).unwrap())).collect();
            let expected: Vec<_> = model.iter().filter(|(key, _)| key.starts_with(prefix))
                .map(|(key, value)| (key.clone(), value.clone())).collect();
            prop_assert_eq!(listed, expected);
        }
        prop_assert_eq!(runtime.block_on(store.revision()).unwrap(), writes.len() as u64);
    }
}
