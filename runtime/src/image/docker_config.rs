//! Credentials of registries in a `config.json` as Docker, Podman and skopeo write it. Programs that it names (`credsStore`,
//! `credHelpers`) are not run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Credentials;
use super::auth::Login;
use super::error::ImageError;
use crate::secrets::SecretText;

const MAX_BYTES: u64 = 1 << 20;
/// The key under which Docker keeps what is for Docker Hub, without its scheme, and the registry's name in references.
const DOCKER_HUB: (&str, &str) = ("index.docker.io", "docker.io");

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    /// Base64 of `username:password`.
    auth: Option<SecretText>,
    username: Option<String>,
    password: Option<SecretText>,
    identitytoken: Option<SecretText>,
}

/// What the file has for a repository of a registry; none if it has nothing, or there is no file. Blocks.
pub(super) fn login(path: &Path, registry: &str, name: &str) -> Result<Option<Login>, ImageError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file.map_err(ImageError::io(path))?,
    };
    // Never longer than its room: a buffer that grows leaves what it held behind.
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_BYTES as usize + 1));
    file.take(MAX_BYTES + 1)
        .read_to_end(&mut text)
        .map_err(ImageError::io(path))?;
    find(&text, registry, name).map_err(|reason| ImageError::Layout {
        path: path.to_owned(),
        reason,
    })
}

/// The error says where, and nothing of what stands there.
fn find(text: &[u8], registry: &str, name: &str) -> Result<Option<Login>, String> {
    if text.len() as u64 > MAX_BYTES {
        return Err(format!(
            "more than {MAX_BYTES} bytes, which is no Docker configuration"
        ));
    }
    let config: Config = serde_json::from_slice(text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        format!("not a Docker configuration (line {line}, column {column})")
    })?;
    let repository = format!("{registry}/{name}");
    // The most particular one counts: of `registry/team/app`, `registry/team`, `registry`.
    let best = config
        .auths
        .iter()
        .map(|(key, auth)| (normal(key), auth))
        .filter(|(key, _)| repository == *key || repository.starts_with(&format!("{key}/")))
        .max_by_key(|(key, _)| key.len());
    match best {
        Some((key, auth)) => read(auth).map_err(|reason| format!("auths of {key}: {reason}")),
        None => Ok(None),
    }
}

/// `https://index.docker.io/v1/` is `docker.io`, `https://registry/v2/` is `registry`.
fn normal(key: &str) -> String {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let bare = bare.trim_end_matches('/');
    let bare = bare
        .strip_suffix("/v1")
        .or_else(|| bare.strip_suffix("/v2"))
        .unwrap_or(bare);
    match bare.strip_prefix(DOCKER_HUB.0) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => format!("{}{rest}", DOCKER_HUB.1),
        _ => bare.to_owned(),
    }
}

fn read<'a>(auth: &'a Auth) -> Result<Option<Login>, &'static str> {
    let full = |text: &'a Option<SecretText>| {
        text.as_ref()
            .map(SecretText::expose)
            .filter(|text| !text.is_empty())
    };
    if let Some(token) = full(&auth.identitytoken) {
        return Ok(Some(Login::IdentityToken(Zeroizing::new(token.to_owned()))));
    }
    let (username, password) = match (full(&auth.auth), &auth.username, &auth.password) {
        (Some(encoded), _, _) => {
            let pair = STANDARD.decode(encoded.trim()).map(Zeroizing::new);
            let pair = pair.map_err(|_| "\"auth\" is not base64")?;
            let pair = std::str::from_utf8(&pair).map_err(|_| "\"auth\" is not text")?;
            let (username, password) = pair.split_once(':').ok_or("\"auth\" has no colon in it")?;
            // Docker once wrote a NUL at its end.
            (username.to_owned(), password.trim_end_matches('\0').to_owned())
        }
        (None, Some(username), Some(password)) => (username.clone(), password.expose().to_owned()),
        // As `docker logout` and credential stores leave it.
        _ => return Ok(None),
    };
    Ok(Some(Login::Password(Credentials { username, password })))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"{
        "auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "registry.example:5000": {"auth": "YTpiOmM="},
            "registry.example:5000/team": {"username": "t", "password": "p"},
            "https://token.example/v2/": {"auth": "eDo=", "identitytoken": "1d"},
            "store.example": {}
        },
        "credsStore": "desktop"
    }"#;

    fn found(registry: &str, name: &str) -> Option<(String, String)> {
        match find(CONFIG.as_bytes(), registry, name).unwrap()? {
            Login::Password(credentials) => {
                Some((credentials.username.clone(), credentials.password.clone()))
            }
            Login::IdentityToken(token) => Some(("<token>".into(), token.to_string())),
        }
    }

    #[test]
    fn the_most_particular_entry_of_a_registry_counts() {
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(found("docker.io", "library/busybox"), pair("hub", "pw"));
        assert_eq!(found("registry.example:5000", "app"), pair("a", "b:c"));
        assert_eq!(found("registry.example:5000", "team/app"), pair("t", "p"));
        assert_eq!(found("registry.example:5000", "teams/app"), pair("a", "b:c"));
        assert_eq!(found("token.example", "app"), pair("<token>", "1d"));
        assert_eq!(found("store.example", "app"), None);
        assert_eq!(found("registry.example", "app"), None);
    }

    #[test]
    fn a_file_that_is_wrong_is_named_and_not_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        assert!(login(&path, "r", "app").unwrap().is_none());
        for (text, reason) in [
            (r#"{"auths": {"r": {"auth": "hunter2!"}}}"#, "not base64"),
            (r#"{"auths": {"r": {"auth": "aHVudGVyMg=="}}}"#, "no colon"),
            (r#"{"auths": {"r": {"auth": ["hunter2"]}}}"#, "line 1"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = login(&path, "r", "app").err().unwrap();
            let said = format!("{error} {error:?}");
            assert!(said.contains(reason) && said.contains("config.json"), "{said}");
            assert!(!said.contains("hunter2") && !said.contains("aHVudGVy"), "{said}");
        }
    }
}
