//! Image references: where an image is and under which name. Parsing only; nothing is looked up here.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::digest::{Digest, DigestError};

/// The registry of a reference that names none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The first part of the name of an image of the default registry that has only one part.
const DEFAULT_NAMESPACE: &str = "library";
const DEFAULT_TAG: &str = "latest";
const MAX_REFERENCE_BYTES: usize = 1024;
const MAX_NAME_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;

/// Where an image is: in a registry, or in an OCI layout on this host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reference {
    /// `[registry[:port]/]name[:tag][@digest]`.
    Registry(RegistryReference),
    /// `oci:/absolute/directory[:tag]`.
    Layout { path: PathBuf, tag: Option<String> },
    /// `oci-archive:/absolute/file[:tag]`.
    Archive { path: PathBuf, tag: Option<String> },
}

/// An image in a registry, with the defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegistryReference {
    /// Host and optional port, as the reference names it (`docker.io`, not the host that serves it).
    pub registry: String,
    /// For example `library/busybox`.
    pub name: String,
    /// `latest` if the reference has neither tag nor digest.
    pub tag: Option<String>,
    /// Decides, when there is one, and the tag is only words.
    pub digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    #[error("it is empty")]
    Empty,
    #[error("it is longer than {MAX_REFERENCE_BYTES} bytes")]
    TooLong,
    #[error("\"{0}\" is not a registry (host or host:port)")]
    Registry(String),
    #[error("\"{0}\" is not a repository name (lowercase letters, digits, separators, at most 255 bytes)")]
    Name(String),
    #[error("\"{0}\" is not a tag (letters, digits, _ . -, at most 128)")]
    Tag(String),
    #[error("{0}")]
    Digest(#[from] DigestError),
    #[error("\"{0}\" is not an absolute path without \"..\"")]
    Path(String),
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > MAX_REFERENCE_BYTES {
            return Err(ReferenceError::TooLong);
        }
        if let Some(rest) = text.strip_prefix("oci:/") {
            let (path, tag) = local(rest)?;
            Ok(Self::Layout { path, tag })
        } else if let Some(rest) = text.strip_prefix("oci-archive:/") {
            let (path, tag) = local(rest)?;
            Ok(Self::Archive { path, tag })
        } else {
            remote(text).map(Self::Registry)
        }
    }
}

/// Path (without its first slash) and tag of a layout.
fn local(rest: &str) -> Result<(PathBuf, Option<String>), ReferenceError> {
    let (path, name) = match rest.rsplit_once(':') {
        Some((path, name)) if !name.contains('/') => (path, Some(name)),
        _ => (rest, None),
    };
    let absolute = Path::new("/").join(path);
    if path.is_empty() || path.contains('\0') || path.split('/').any(|part| part == "..") {
        return Err(ReferenceError::Path(absolute.display().to_string()));
    }
    Ok((absolute, name.map(tag).transpose()?))
}

fn remote(text: &str) -> Result<RegistryReference, ReferenceError> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest.parse()?)),
        None => (text, None),
    };
    // A colon after the last slash begins a tag; one before it, a port.
    let (rest, named_tag) = match rest.rsplit_once(':') {
        Some((name, name_tag)) if !name_tag.contains('/') => (name, Some(tag(name_tag)?)),
        _ => (rest, None),
    };
    let (registry, name) = match rest.split_once('/') {
        Some((first, name)) if first.contains(['.', ':']) || first == "localhost" => (first, name.to_owned()),
        Some(_) => (DEFAULT_REGISTRY, rest.to_owned()),
        None => (DEFAULT_REGISTRY, format!("{DEFAULT_NAMESPACE}/{rest}")),
    };
    let registry = if registry == "index.docker.io" {
        DEFAULT_REGISTRY
    } else {
        registry
    };
    if !is_registry(registry) {
        return Err(ReferenceError::Registry(registry.to_owned()));
    }
    let name = if registry == DEFAULT_REGISTRY && !name.contains('/') {
        format!("{DEFAULT_NAMESPACE}/{name}")
    } else {
        name
    };
    if name.len() > MAX_NAME_BYTES || !name.split('/').all(is_name_part) {
        return Err(ReferenceError::Name(name));
    }
    let tag = named_tag.or_else(|| digest.is_none().then(|| DEFAULT_TAG.to_owned()));
    Ok(RegistryReference {
        registry: registry.to_owned(),
        name,
        tag,
        digest,
    })
}

fn tag(text: &str) -> Result<String, ReferenceError> {
    let well_formed = !text.is_empty()
        && text.len() <= MAX_TAG_BYTES
        && !text.starts_with(['.', '-'])
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if well_formed {
        Ok(text.to_owned())
    } else {
        Err(ReferenceError::Tag(text.to_owned()))
    }
}

/// A DNS name, an IPv4 address or an IPv6 address in brackets, each with an optional port.
fn is_registry(text: &str) -> bool {
    if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return false;
        };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (port.is_empty() || port.strip_prefix(':').is_some_and(is_port));
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    host.split('.').all(|label| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    }) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

/// Lowercase words joined by `.`, `_`, `__` or any number of `-`.
fn is_name_part(part: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    word(first)
        && word(last)
        && bytes.split(|&byte| word(byte)).all(|between| {
            matches!(between, b"" | b"." | b"_" | b"__") || between.iter().all(|&byte| byte == b'-')
        })
}

impl RegistryReference {
    /// What a manifest is asked for by: the digest, or else the tag.
    pub(super) fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, path, tag) = match self {
            Self::Registry(reference) => return reference.fmt(f),
            Self::Layout { path, tag } => ("oci", path, tag),
            Self::Archive { path, tag } => ("oci-archive", path, tag),
        };
        write!(f, "{scheme}:{}", path.display())?;
        tag.iter().try_for_each(|tag| write!(f, ":{tag}"))
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.name)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

#[cfg(test)]
#[path = "reference_tests.rs"]
mod tests;
