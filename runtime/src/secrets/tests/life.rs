//! The life of parameters and secrets.

use std::time::Duration;

use super::*;
use crate::model::parameter::ParameterTier;
use crate::model::secret::CURRENT;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[tokio::test]
async fn a_parameter_keeps_its_newest_hundred_versions() {
    let world = World::new();
    let store = world.open().await;
    for number in 1..=103 {
        let parameter = store.put_parameter(put("a", &number.to_string())).await.unwrap();
        assert_eq!(parameter.newest.version, number);
    }
    let versions = store.parameter_versions("a").await.unwrap();
    assert_eq!((versions.len(), versions[0]), (100, 4));
    assert_eq!(store.parameter_value("a", Some(4)).await.unwrap().1.expose(), "4");
    assert!(matches!(
        store.parameter_value("a", Some(3)).await,
        Err(SecretError::ParameterVersionNotFound { version: 3, .. })
    ));
    store.delete_parameter("a").await.unwrap();
    assert!(store.records.store().list("sealed/").await.unwrap().is_empty());
    assert!(matches!(
        store.delete_parameter("a").await,
        Err(SecretError::ParameterNotFound(_))
    ));
}

#[tokio::test]
async fn an_overwritten_parameter_keeps_what_is_not_said_and_its_type() {
    let world = World::new();
    let store = world.open().await;
    let first = PutParameter {
        description: Some("d".into()),
        tier: Some(ParameterTier::Advanced),
        ..put("a", "1")
    };
    store.put_parameter(first).await.unwrap();
    let refused = store
        .put_parameter(PutParameter {
            overwrite: false,
            ..put("a", "2")
        })
        .await;
    assert!(matches!(refused, Err(SecretError::ParameterExists(_))));
    let kind = Some(ParameterType::String);
    let refused = store
        .put_parameter(PutParameter {
            kind,
            ..put("a", "2")
        })
        .await;
    assert!(matches!(refused, Err(SecretError::ParameterTypeChange { .. })));
    let tier = Some(ParameterTier::Standard);
    let refused = store
        .put_parameter(PutParameter {
            tier,
            ..put("a", "2")
        })
        .await;
    assert!(matches!(refused, Err(SecretError::ParameterTierChange(_))));
    let second = store
        .put_parameter(PutParameter {
            kind: None,
            ..put("a", "2")
        })
        .await
        .unwrap();
    assert_eq!(second.newest.kind, ParameterType::SecureString);
    assert_eq!(second.newest.description.as_deref(), Some("d"));
    assert_eq!(second.newest.version, 2);
    assert!(matches!(
        store
            .put_parameter(PutParameter {
                kind: None,
                ..put("b", "2")
            })
            .await,
        Err(SecretError::ParameterWithoutType)
    ));
}

#[tokio::test]
async fn labels_move_as_versions_come() {
    let world = World::new();
    let store = world.open().await;
    store
        .create_secret(create("s", Some(value("1", "one"))))
        .await
        .unwrap();
    store.put_secret_value("s", value("2", "two")).await.unwrap();
    assert_eq!(read_secret(&store, "s", &stage(PREVIOUS)).await, "one");
    let pending = NewValue {
        stages: ["AWSPENDING".to_owned()].into(),
        ..value("3", "three")
    };
    store.put_secret_value("s", pending.clone()).await.unwrap();
    assert_eq!(read_secret(&store, "s", &VersionSelector::default()).await, "two");
    assert_eq!(read_secret(&store, "s", &stage("AWSPENDING")).await, "three");
    // The same request again changes nothing; the same id with another value is refused.
    store.put_secret_value("s", pending).await.unwrap();
    let refused = store.put_secret_value("s", value("3", "other")).await;
    assert!(matches!(refused, Err(SecretError::SecretVersionExists(..))));
    let refused = store.move_secret_stage("s", CURRENT, None, Some("3")).await;
    assert!(matches!(refused, Err(SecretError::SecretStageTaken(..))));
    store
        .move_secret_stage("s", CURRENT, Some("2"), Some("3"))
        .await
        .unwrap();
    assert_eq!(
        read_secret(&store, "s", &VersionSelector::default()).await,
        "three"
    );
    assert_eq!(read_secret(&store, "s", &stage(PREVIOUS)).await, "two");
    let both = VersionSelector {
        id: Some("1".into()),
        stage: Some(CURRENT.into()),
    };
    let refused = store.secret_value("s", &both).await;
    assert!(matches!(refused, Err(SecretError::SecretStageElsewhere(..))));
    let secret = store.secret("s").await.unwrap();
    assert!(
        secret.versions["1"].stages.is_empty(),
        "a version that is deprecated has no label"
    );
    assert_eq!(store.secret(&secret.resource()).await.unwrap(), secret);
    assert!(store.secret(&format!("{}x", secret.resource())).await.is_err());
}

#[tokio::test]
async fn a_secret_made_twice_by_one_request_is_one() {
    let world = World::new();
    let store = world.open().await;
    let first = store
        .create_secret(create("s", Some(value("1", "one"))))
        .await
        .unwrap();
    let again = store
        .create_secret(create("s", Some(value("1", "one"))))
        .await
        .unwrap();
    assert_eq!(first, again);
    for other in [Some(value("1", "two")), Some(value("2", "one")), None] {
        let refused = store.create_secret(create("s", other)).await;
        assert!(matches!(refused, Err(SecretError::SecretExists(_))));
    }
}

#[tokio::test]
async fn deprecated_versions_make_room_for_new_ones() {
    let world = World::new();
    let store = world.open().await;
    store.create_secret(create("s", None)).await.unwrap();
    for number in 0..105 {
        world.clock.advance_millis(1);
        let number = number.to_string();
        store
            .put_secret_value("s", value(&number, &number))
            .await
            .unwrap();
    }
    let secret = store.secret("s").await.unwrap();
    assert_eq!(secret.versions.len(), 100);
    assert!(!secret.versions.contains_key("4") && secret.versions.contains_key("5"));
    assert_eq!(store.records.store().list("sealed/").await.unwrap().len(), 100);
    assert_eq!(read_secret(&store, "s", &stage(PREVIOUS)).await, "103");
}

#[tokio::test]
async fn a_deleted_secret_can_be_restored_until_its_window_is_over_and_is_gone_after_it() {
    let world = World::new();
    let store = world.open().await;
    for name in ["kept", "lost"] {
        store
            .create_secret(create(name, Some(value("1", CLEAR))))
            .await
            .unwrap();
        store.delete_secret(name, Some(7 * DAY)).await.unwrap();
        assert!(matches!(
            store.secret_value(name, &VersionSelector::default()).await,
            Err(SecretError::SecretDeleted(_))
        ));
        let again = store.delete_secret(name, Some(7 * DAY)).await;
        assert!(matches!(again, Err(SecretError::SecretDeleted(_))));
        let made = store.create_secret(create(name, None)).await;
        assert!(matches!(made, Err(SecretError::SecretDeleted(_))));
    }
    world.clock.advance_millis(7 * DAY.as_millis() as u64 - 1);
    store.sweep().await.unwrap();
    store.restore_secret("kept").await.unwrap();
    world.clock.advance_millis(1);
    store.sweep().await.unwrap();
    assert_eq!(
        read_secret(&store, "kept", &VersionSelector::default()).await,
        CLEAR
    );
    assert!(matches!(
        store.restore_secret("lost").await,
        Err(SecretError::SecretNotFound(_))
    ));
    assert_eq!(store.records.store().list("sealed/").await.unwrap().len(), 1);
    // Without a window it goes at once.
    store.delete_secret("kept", None).await.unwrap();
    assert!(store.records.store().list("sealed/").await.unwrap().is_empty());
    store.create_secret(create("kept", None)).await.unwrap();
}

fn object(key: &str, content: &str) -> PutObject {
    PutObject {
        bucket: "config".into(),
        key: key.into(),
        content: SecretBytes::new(content.as_bytes().to_vec()),
        etag: format!("etag of {key}"),
        content_type: None,
    }
}

#[tokio::test]
async fn objects_are_sealed_listed_by_bucket_and_outlive_a_rotation() {
    let world = World::new();
    let store = world.open().await;
    let missing = store.put_object(object("a", CLEAR)).await;
    assert!(matches!(missing, Err(SecretError::BucketNotFound(_))));
    for bucket in ["config", "config2"] {
        store.create_bucket(bucket).await.unwrap();
    }
    let again = store.create_bucket("config").await;
    assert!(matches!(again, Err(SecretError::BucketExists(_))));
    for content in ["first", CLEAR] {
        store.put_object(object("b/a", content)).await.unwrap();
    }
    store.put_object(object("a", "x")).await.unwrap();
    assert_eq!(
        files_with(world.dir.path(), CLEAR.as_bytes()),
        Vec::<PathBuf>::new()
    );

    let rotated = store.rotate().await.unwrap();
    assert_eq!(rotated.values, 2);
    drop(store);
    let store = world.open().await;
    let (about, content) = store.object("config", "b/a").await.unwrap();
    assert_eq!(content.expose(), CLEAR.as_bytes());
    assert_eq!((about.bytes, about.etag), (28, "etag of b/a".to_owned()));
    let keys = store.objects("config").await.unwrap();
    assert_eq!(
        keys.iter().map(|object| &object.key).collect::<Vec<_>>(),
        ["a", "b/a"]
    );
    assert!(store.objects("config2").await.unwrap().is_empty());

    let kept = store.delete_bucket("config").await;
    assert!(matches!(kept, Err(SecretError::BucketNotEmpty(_))));
    // What is not there is deleted, too.
    for key in ["a", "b/a", "b/a"] {
        store.delete_object("config", key).await.unwrap();
    }
    let gone = store.object("config", "a").await;
    assert!(matches!(gone, Err(SecretError::ObjectNotFound { .. })));
    assert!(store.records.store().list("sealed/").await.unwrap().is_empty());
    store.delete_bucket("config").await.unwrap();
    assert_eq!(store.buckets().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_key_file_that_is_lost_is_missed_by_an_object_alone() {
    let world = World::new();
    let store = world.open().await;
    store.create_bucket("config").await.unwrap();
    store.put_object(object("a", "x")).await.unwrap();
    drop(store);
    std::fs::remove_file(world.key_file()).unwrap();
    let lost = world.try_open(world.records()).await;
    assert!(matches!(lost, Err(SecretError::KeyFileMissing(_))));
}
