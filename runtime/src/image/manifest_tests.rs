//! Tests of reading indexes, manifests and configurations.

use serde_json::{Value, json};

use super::*;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

fn digest(content: &str) -> String {
    Digest::of(content.as_bytes()).to_string()
}

fn descriptor(kind: &str, content: &str) -> Value {
    json!({"mediaType": kind, "digest": digest(content), "size": content.len()})
}

fn image(layers: Vec<Value>) -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(CONFIG, "c"), "layers": layers})
}

fn index(platforms: &[(&str, &str, Option<&str>)]) -> Value {
    let entry = |(at, (os, architecture, variant)): (usize, &(&str, &str, Option<&str>))| {
        let mut entry = descriptor(OCI_MANIFEST, &at.to_string());
        entry["platform"] = json!({"os": os, "architecture": architecture, "variant": variant});
        entry
    };
    let manifests: Vec<_> = platforms.iter().enumerate().map(entry).collect();
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})
}

fn read(value: &Value, served_as: Option<&str>) -> Result<Document, ImageError> {
    document("img", &serde_json::to_vec(value).unwrap(), served_as)
}

fn refusal(value: &Value, served_as: Option<&str>) -> String {
    read(value, served_as).unwrap_err().to_string()
}

#[test]
fn both_forms_of_manifest_are_read() {
    let oci = image(vec![
        descriptor(&format!("{TAR}+zstd"), "l"),
        descriptor(TAR, "m"),
    ]);
    let Ok(Document::Manifest(manifest)) = read(&oci, Some(OCI_MANIFEST)) else {
        panic!("not a manifest")
    };
    assert_eq!(manifest.config.to_string(), digest("c"));
    let compressions: Vec<_> = manifest.layers.iter().map(|layer| layer.compression).collect();
    assert_eq!(compressions, [Compression::Zstd, Compression::None]);

    let docker = json!({
        "schemaVersion": 2,
        "config": descriptor("application/vnd.docker.container.image.v1+json", "c"),
        "layers": [descriptor("application/vnd.docker.image.rootfs.diff.tar.gzip", "l")],
    });
    let Ok(Document::Manifest(manifest)) = read(&docker, Some(&format!("{DOCKER_MANIFEST}; charset=utf-8")))
    else {
        panic!("not a manifest")
    };
    assert_eq!(manifest.layers[0].compression, Compression::Gzip);
}

#[test]
fn the_entry_for_this_platform_is_chosen() {
    let arm = ("linux", "arm64", Some("v8"));
    let chosen = |platforms: &[_]| match read(&index(platforms), None) {
        Ok(Document::Index(entry)) => entry.digest.to_string(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        chosen(&[arm, ("linux", "amd64", None), ("windows", "amd64", None)]),
        digest("1")
    );
    assert_eq!(
        chosen(&[("linux", "amd64", Some("v3")), ("linux", "amd64", None)]),
        digest("1")
    );
    assert_eq!(chosen(&[("linux", "amd64", Some("v2"))]), digest("0"));
    let message = refusal(&index(&[arm, ("windows", "amd64", None)]), None);
    assert_eq!(
        message,
        "img: no image for linux/amd64, only for linux/arm64/v8, windows/amd64"
    );
}

#[test]
fn documents_that_contradict_themselves_are_refused() {
    let good = image(vec![]);
    assert!(refusal(&good, Some(OCI_INDEX)).contains("is served as"));
    let mut both = good.clone();
    both["manifests"] = json!([]);
    assert!(refusal(&both, None).contains("neither an index nor an image manifest"));
    let mut mislabelled = good.clone();
    mislabelled["mediaType"] = json!(OCI_INDEX);
    assert!(read(&mislabelled, None).is_err());
    assert!(refusal(&json!({"schemaVersion": 1, "fsLayers": []}), None).contains("schema version 1"));
    let mut artifact = good;
    artifact["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json");
    assert!(refusal(&artifact, None).contains("not a container image"));
}

#[test]
fn manifests_are_bounded() {
    assert!(read(&image(vec![descriptor(TAR, "l"); 128]), None).is_ok());
    assert!(refusal(&image(vec![descriptor(TAR, "l"); 129]), None).contains("129 layers"));
    let mut large = image(vec![]);
    large["config"]["size"] = json!(MAX_CONFIG_BYTES + 1);
    assert!(refusal(&large, None).contains("configuration of"));
    for kind in [
        "application/vnd.oci.image.layer.v1.tar+encrypted",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    ] {
        assert!(
            refusal(&image(vec![descriptor(kind, "l")]), None).contains("not supported"),
            "{kind}"
        );
    }
    let mut negative = image(vec![descriptor(TAR, "l")]);
    negative["layers"][0]["size"] = json!(-1);
    assert!(read(&negative, None).is_err());
    let mut sha512 = image(vec![descriptor(TAR, "l")]);
    sha512["layers"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128)));
    assert!(refusal(&sha512, None).contains("sha512 is not supported"));
}

#[test]
fn layout_entries_are_found_by_tag() {
    let named = |name: &str, content: &str| {
        let mut entry = descriptor(OCI_MANIFEST, content);
        entry["annotations"] = json!({REF_NAME: name});
        entry
    };
    let layout = json!({"schemaVersion": 2, "manifests": [named("v1", "a"), named("reg.io/app:v2", "b")]});
    let layout = serde_json::to_vec(&layout).unwrap();
    let found = |tag| layout_entry("img", &layout, tag).map(|entry| entry.digest.to_string());
    assert_eq!(found(Some("v1")).unwrap(), digest("a"));
    assert_eq!(found(Some("v2")).unwrap(), digest("b"));
    assert!(matches!(found(Some("v3")), Err(ImageError::NotFound { .. })));
    assert!(
        found(None)
            .unwrap_err()
            .to_string()
            .contains("name one of reg.io/app:v2, v1")
    );
}

#[test]
fn configurations_give_how_to_run() {
    let text = json!({
        "os": "linux", "architecture": "amd64",
        "config": {
            "Entrypoint": ["/bin/sh"], "Cmd": null, "Env": ["A=b"], "WorkingDir": "/w", "User": "1:2",
            "StopSignal": "SIGQUIT", "Labels": {"k": "v"}, "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}},
        },
        "rootfs": {"type": "layers", "diff_ids": [digest("a")]},
    });
    let read = |value: &Value, layers| configuration("img", &serde_json::to_vec(value).unwrap(), layers);
    let it = read(&text, 1).unwrap();
    let expected = ImageConfig {
        entrypoint: vec!["/bin/sh".into()],
        cmd: vec![],
        env: vec!["A=b".into()],
        working_dir: "/w".into(),
        user: "1:2".into(),
        stop_signal: Some("SIGQUIT".into()),
        labels: BTreeMap::from([("k".into(), "v".into())]),
        exposed_ports: vec!["80/tcp".into()],
    };
    assert_eq!(it.config, expected);
    assert!(
        read(&text, 2)
            .unwrap_err()
            .to_string()
            .contains("2 layers in the manifest, and 1")
    );
    let mut arm = text.clone();
    arm["architecture"] = json!("arm64");
    assert_eq!(
        read(&arm, 1).unwrap_err().to_string(),
        "img: no image for linux/amd64, only for linux/arm64"
    );
    let mut bare = text;
    bare["config"] = Value::Null;
    assert_eq!(read(&bare, 1).unwrap().config, ImageConfig::default());
}

#[test]
fn the_chain_id_is_that_of_the_specification() {
    let ids = ["a", "b", "c"].map(|content| Digest::of(content.as_bytes()));
    assert_eq!(chain_id(&ids[..1]), ids[0]);
    let two = Digest::of(format!("{} {}", ids[0], ids[1]).as_bytes());
    assert_eq!(chain_id(&ids[..2]), two);
    assert_eq!(chain_id(&ids), Digest::of(format!("{two} {}", ids[2]).as_bytes()));
}
