//! Where things are: the checkout, its build output, and the cache that outlives both. Creates nothing.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The root of the checkout.
pub(crate) fn root() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Where finished artefacts are put, whatever cargo's own target folder is.
pub(crate) fn output() -> PathBuf {
    root().join("target")
}

/// Where cargo puts what it builds.
pub(crate) fn cargo_target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(output, |path| root().join(path))
}

/// `$BERTH_CACHE`, or `berth` in the user's cache folder: downloads and builds that are dear to make again.
pub(crate) fn cache() -> Result<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = set("BERTH_CACHE") {
        return std::path::absolute(&path).with_context(|| format!("bad BERTH_CACHE {}", path.display()));
    }
    if let Some(path) = set("XDG_CACHE_HOME") {
        return Ok(Path::new(&path).join("berth"));
    }
    let home = set("HOME").context("neither BERTH_CACHE, XDG_CACHE_HOME nor HOME is set")?;
    Ok(Path::new(&home).join(".cache/berth"))
}

/// The cargo that runs this, or the one on the path.
pub(crate) fn cargo() -> OsString {
    env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
