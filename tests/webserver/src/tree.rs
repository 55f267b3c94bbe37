//! What a container sees of a folder: a line for each entry, with all that an image can say of it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Writes, for each entry below `root` in the order of the paths' bytes: path (hex), mode (octal), owner, seconds of the last
/// change, links and size (of what is no directory), sha256 of the content or of the link's target, extended attributes
/// (`name=value`, hex), and the first path that is the same file (hex).
pub(crate) fn show(root: &str) -> Result<(), Box<dyn std::error::Error>> {
    let mut entries = BTreeMap::new();
    let mut folders = vec![PathBuf::from(root)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let found = path.symlink_metadata()?;
            if found.is_dir() {
                folders.push(path.clone());
            }
            entries.insert(path.as_os_str().as_bytes()[root.len()..].to_vec(), (path, found));
        }
    }
    let mut first = HashMap::new();
    let mut out = BufWriter::new(io::stdout().lock());
    for (name, (path, found)) in &entries {
        let same = first.entry((found.dev(), found.ino())).or_insert(name);
        let (links, size) = match found.is_dir() {
            true => (0, 0),
            false => (found.nlink(), found.size()),
        };
        writeln!(
            out,
            "{} {:o} {}:{} {} {links} {size} {} {} {}",
            hex(name),
            found.mode(),
            found.uid(),
            found.gid(),
            found.mtime(),
            content(path, found)?,
            attributes(path)?,
            hex(same)
        )?;
    }
    writeln!(out, "{} entries", entries.len())?;
    Ok(out.flush()?)
}

fn content(path: &Path, found: &fs::Metadata) -> io::Result<String> {
    let mut hasher = Sha256::new();
    if found.is_symlink() {
        hasher.update(fs::read_link(path)?.as_os_str().as_bytes());
    } else if found.is_file() {
        let mut file = fs::File::open(path)?;
        let mut buffer = vec![0; 1 << 16];
        loop {
            match io::Read::read(&mut file, &mut buffer)? {
                0 => break,
                read => hasher.update(&buffer[..read]),
            }
        }
    } else {
        return Ok("-".to_owned());
    }
    Ok(hex(&hasher.finalize()))
}

fn attributes(path: &Path) -> io::Result<String> {
    let mut all = BTreeMap::new();
    for name in xattr::list(path)? {
        let value = xattr::get(path, &name)?.unwrap_or_default();
        all.insert(hex(name.as_bytes()), hex(&value));
    }
    let pairs: Vec<String> = all
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    match pairs.is_empty() {
        true => Ok("-".to_owned()),
        false => Ok(pairs.join(",")),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
