//! The documents that describe an image: index, manifest and configuration, OCI's and Docker's forms. Pure: bytes in,
//! checked values out. Getting the bytes, and checking their digest, is done elsewhere.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Deserializer};

use super::ImageConfig;
use super::digest::Digest;
use super::error::ImageError;

/// Largest manifest or index in bytes.
pub(super) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
/// Largest image configuration in bytes.
pub(super) const MAX_CONFIG_BYTES: u64 = 8 << 20;
/// Most layers of one image; Docker's own limit is 127.
const MAX_LAYERS: usize = 128;
/// The platform that is run here, as the words of an index.
const OS: &str = "linux";
const ARCHITECTURE: &str = "amd64";

pub(super) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(super) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(super) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(super) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG_TYPES: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// The annotation by which an OCI layout names its images.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A pointer to content: what kind, which, how much.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    #[serde(default)]
    pub(super) media_type: String,
    pub(super) digest: Digest,
    pub(super) size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

/// How a layer is compressed, by its media type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// One layer of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layer {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) compression: Compression,
}

/// A manifest that has passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) config: Digest,
    pub(super) config_size: u64,
    pub(super) layers: Vec<Layer>,
}

/// What a registry or a layout gives for a name.
#[derive(Debug)]
pub(super) enum Document {
    Manifest(Manifest),
    /// The entry of the index that is for this platform; it may itself be an index.
    Index(Descriptor),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawDocument {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<String>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
}

/// Reads an index or a manifest. `served_as` is the `Content-Type` of the answer, or the media type of the descriptor
/// that led here; it must not contradict what the document says of itself.
pub(super) fn document(image: &str, bytes: &[u8], served_as: Option<&str>) -> Result<Document, ImageError> {
    let invalid = |reason: String| ImageError::manifest(image, reason);
    let raw: RawDocument =
        serde_json::from_slice(bytes).map_err(|error| invalid(format!("invalid manifest: {error}")))?;
    if raw.schema_version != 2 {
        return Err(invalid(format!(
            "manifest schema version {} is not supported, only 2 is",
            raw.schema_version
        )));
    }
    let served_as = served_as.map(essence).filter(|kind| is_document_type(kind));
    let own = raw.media_type.as_deref().filter(|kind| !kind.is_empty());
    if let (Some(own), Some(served)) = (own, &served_as)
        && own != served
    {
        return Err(invalid(format!(
            "invalid manifest: it says it is {}, and is served as {served}",
            shown(own)
        )));
    }
    let kind = own.or(served_as.as_deref());
    match (raw.manifests, raw.config, raw.layers) {
        (Some(manifests), None, None) if kind.is_none_or(|kind| kind == OCI_INDEX || kind == DOCKER_LIST) => {
            choose(image, &manifests).map(Document::Index)
        }
        (None, Some(config), Some(layers))
            if kind.is_none_or(|kind| kind == OCI_MANIFEST || kind == DOCKER_MANIFEST) =>
        {
            manifest(image, &config, &layers).map(Document::Manifest)
        }
        _ => Err(invalid(match kind {
            Some(kind) if !is_document_type(kind) => {
                format!("manifest type {} is not supported", shown(kind))
            }
            _ => "invalid manifest: neither an index nor an image manifest".to_owned(),
        })),
    }
}

/// The entry of an OCI layout's `index.json` with this tag, or its only one.
pub(super) fn layout_entry(image: &str, bytes: &[u8], tag: Option<&str>) -> Result<Descriptor, ImageError> {
    let raw: RawDocument = serde_json::from_slice(bytes)
        .map_err(|error| ImageError::manifest(image, format!("invalid index.json: {error}")))?;
    let manifests = raw.manifests.unwrap_or_default();
    let Some(tag) = tag else {
        return match manifests.as_slice() {
            [] => Err(ImageError::NotFound {
                image: image.to_owned(),
            }),
            [only] => Ok(only.clone()),
            several => {
                let names: BTreeSet<_> = several
                    .iter()
                    .filter_map(|it| it.annotations.get(REF_NAME))
                    .collect();
                if names.len() > 1 {
                    let names: Vec<_> = names.into_iter().take(20).map(|name| shown(name)).collect();
                    let reason = format!("the layout has several images, name one of {}", names.join(", "));
                    return Err(ImageError::manifest(image, reason));
                }
                choose(image, several)
            }
        };
    };
    // The annotation is a bare tag, or (podman, buildkit) a whole reference that ends with it.
    let named = |name: &str| name == tag || name.rsplit_once(':').is_some_and(|(_, end)| end == tag);
    let tagged: Vec<_> = manifests
        .into_iter()
        .filter(|it| it.annotations.get(REF_NAME).is_some_and(|name| named(name)))
        .collect();
    match tagged.as_slice() {
        [] => Err(ImageError::NotFound {
            image: image.to_owned(),
        }),
        [only] => Ok(only.clone()),
        several => choose(image, several),
    }
}

/// The first entry for linux/amd64, a plain one before one that asks for a newer processor (`v2`, `v3`).
fn choose(image: &str, manifests: &[Descriptor]) -> Result<Descriptor, ImageError> {
    if let [only @ Descriptor { platform: None, .. }] = manifests {
        return Ok(only.clone());
    }
    let ours = |it: &&Descriptor| {
        it.platform
            .as_ref()
            .is_some_and(|platform| platform.os == OS && platform.architecture == ARCHITECTURE)
    };
    let newness = |it: &&Descriptor| {
        let variant = it
            .platform
            .as_ref()
            .and_then(|platform| platform.variant.as_deref());
        match variant {
            None | Some("" | "v1") => 0_u8,
            Some("v2") => 1,
            Some(_) => 2,
        }
    };
    manifests
        .iter()
        .filter(ours)
        .min_by_key(newness)
        .cloned()
        .ok_or_else(|| {
            let found: BTreeSet<String> = manifests
                .iter()
                .filter_map(|it| it.platform.as_ref())
                .map(Platform::words)
                .collect();
            let found: Vec<_> = found.into_iter().take(32).collect();
            let found = if found.is_empty() {
                "no named platform".to_owned()
            } else {
                found.join(", ")
            };
            ImageError::Platform {
                image: image.to_owned(),
                found,
            }
        })
}

impl Platform {
    fn words(&self) -> String {
        let mut words = format!("{}/{}", shown(&self.os), shown(&self.architecture));
        if let Some(variant) = &self.variant {
            // Writing into a String cannot fail.
            let _ = write!(words, "/{}", shown(variant));
        }
        words
    }
}

fn manifest(image: &str, config: &Descriptor, layers: &[Descriptor]) -> Result<Manifest, ImageError> {
    if !CONFIG_TYPES.contains(&config.media_type.as_str()) {
        let reason = format!(
            "not a container image (configuration of type {})",
            shown(&config.media_type)
        );
        return Err(ImageError::manifest(image, reason));
    }
    if config.size > MAX_CONFIG_BYTES {
        let reason = format!(
            "configuration of {} bytes, more than {MAX_CONFIG_BYTES}",
            config.size
        );
        return Err(ImageError::manifest(image, reason));
    }
    if layers.len() > MAX_LAYERS {
        return Err(ImageError::manifest(
            image,
            format!("{} layers, more than {MAX_LAYERS}", layers.len()),
        ));
    }
    let layers = layers
        .iter()
        .map(|it| {
            Ok(Layer {
                digest: it.digest,
                size: it.size,
                compression: compression(image, &it.media_type)?,
            })
        })
        .collect::<Result<_, ImageError>>()?;
    Ok(Manifest {
        config: config.digest,
        config_size: config.size,
        layers,
    })
}

fn compression(image: &str, media_type: &str) -> Result<Compression, ImageError> {
    match media_type {
        "application/vnd.oci.image.layer.v1.tar" | "application/vnd.docker.image.rootfs.diff.tar" => {
            Ok(Compression::None)
        }
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
        other => Err(ImageError::manifest(
            image,
            format!("layer of type {}, which is not supported", shown(other)),
        )),
    }
}

#[derive(Deserialize)]
struct RawConfig {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default, deserialize_with = "null_is_default")]
    config: RawRun,
    rootfs: RawRootfs,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "null_is_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawRun {
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    working_dir: String,
    #[serde(deserialize_with = "null_is_default")]
    user: String,
    stop_signal: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
}

/// The configuration of an image and the digests of its layers when unpacked, lowest first.
#[derive(Clone, Debug)]
pub(super) struct Configuration {
    pub(super) config: ImageConfig,
    pub(super) diff_ids: Vec<Digest>,
}

/// Reads a configuration, which must be for this platform and have a `diff_id` for each layer.
pub(super) fn configuration(image: &str, bytes: &[u8], layers: usize) -> Result<Configuration, ImageError> {
    let raw: RawConfig = serde_json::from_slice(bytes)
        .map_err(|error| ImageError::manifest(image, format!("invalid image configuration: {error}")))?;
    if raw.os != OS || raw.architecture != ARCHITECTURE {
        let platform = Platform {
            os: raw.os,
            architecture: raw.architecture,
            variant: None,
        };
        return Err(ImageError::Platform {
            image: image.to_owned(),
            found: platform.words(),
        });
    }
    let diff_ids = raw.rootfs.diff_ids;
    if diff_ids.len() != layers {
        let reason = format!(
            "{layers} layers in the manifest, and {} in the configuration",
            diff_ids.len()
        );
        return Err(ImageError::manifest(image, reason));
    }
    let run = raw.config;
    let config = ImageConfig {
        entrypoint: run.entrypoint,
        cmd: run.cmd,
        env: run.env,
        working_dir: run.working_dir,
        user: run.user,
        stop_signal: run.stop_signal.filter(|signal| !signal.is_empty()),
        labels: run.labels,
        exposed_ports: run.exposed_ports.into_keys().collect(),
    };
    Ok(Configuration { config, diff_ids })
}

/// The chain id of a stack of layers (OCI image specification, config.md): the same for every image with these layers.
pub(super) fn chain_id(diff_ids: &[Digest]) -> Digest {
    let mut ids = diff_ids.iter().copied();
    let Some(first) = ids.next() else {
        return Digest::of(b"");
    };
    ids.fold(first, |below, diff_id| {
        Digest::of(format!("{below} {diff_id}").as_bytes())
    })
}

fn is_document_type(kind: &str) -> bool {
    [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST].contains(&kind)
}

/// A media type without its parameters.
fn essence(media_type: &str) -> String {
    media_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
}

/// Foreign text in a message: short, and without control characters.
pub(super) fn shown(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Docker writes `null` for lists and maps that are empty.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
