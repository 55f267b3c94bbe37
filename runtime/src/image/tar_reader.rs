//! Reads a tar stream entry by entry, with every length bounded before anything is kept in memory: ustar, GNU long
//! names, sparse files in all their forms, and PAX records. What an entry means for a tree is not decided here.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::tar_sparse::{PaxSparse, SparseMap};

pub(super) const BLOCK: usize = 512;
/// Most bytes of one extension header (PAX records or a GNU long name).
const MAX_EXTENSION_BYTES: u64 = 1 << 20;
const XATTR_RECORD: &[u8] = b"SCHILY.xattr.";

/// Why a tar stream cannot be read on.
#[derive(Debug, thiserror::Error)]
pub(super) enum TarError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("invalid tar header at byte {at}: {reason}")]
    Header { at: u64, reason: &'static str },
    #[error("tar entry of type {0:?} is not supported")]
    Kind(char),
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Hardlink,
    Symlink,
    CharacterDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry. Its data, if any, comes next from the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    /// Seconds since 1970 and nanoseconds; earlier times are 1970.
    pub(super) mtime: (u64, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Bytes of the file, holes included.
    pub(super) size: u64,
    /// Where the data that follows belongs, in order: offset and length. Everything else is a hole.
    pub(super) segments: Vec<(u64, u64)>,
}

/// What PAX records and GNU long names say about the next entry.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    size: Option<u64>,
    mtime: Option<(u64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<Box<PaxSparse>>,
}

pub(super) struct TarReader<R> {
    input: R,
    /// Bytes read from the input.
    position: u64,
    /// Bytes left of the current entry's data, and of its padding to a whole block.
    data: u64,
    padding: u64,
}

impl<R: Read> TarReader<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            position: 0,
            data: 0,
            padding: 0,
        }
    }

    /// Where the data of the current entry begins, when asked right after [`Self::next`].
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Bytes left of the current entry's data.
    pub(super) fn data_left(&self) -> u64 {
        self.data
    }

    /// Gives the input back.
    pub(super) fn into_inner(self) -> R {
        self.input
    }

    /// The next entry; none at the end of the archive (two zero blocks, or the end of the stream).
    pub(super) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_data()?;
            let at = self.position;
            let invalid = |reason| TarError::Header { at, reason };
            let Some(block) = self.block()? else {
                return Ok(None);
            };
            if block.iter().all(|&byte| byte == 0) {
                return match self.block()? {
                    Some(second) if second.iter().any(|&byte| byte != 0) => Err(invalid("a lone zero block")),
                    _ => Ok(None),
                };
            }
            let header = Header::from_byte_slice(&block);
            let old = header.as_old();
            if numeric(&old.cksum) != Some(checksum(&block)) {
                return Err(invalid("wrong checksum"));
            }
            let stored = numeric(&old.size).ok_or_else(|| invalid("size"))?;
            match old.linkflag[0] {
                b'x' => {
                    let records = self.extension(stored, at)?;
                    pax(&records, &mut extensions).map_err(invalid)?;
                }
                b'g' => drop(self.extension(stored, at)?),
                b'L' => {
                    extensions
                        .path
                        .get_or_insert(until_nul(self.extension(stored, at)?));
                }
                b'K' => {
                    extensions
                        .link
                        .get_or_insert(until_nul(self.extension(stored, at)?));
                }
                flag => return self.entry(header, flag, stored, extensions, at).map(Some),
            }
        }
    }

    fn entry(
        &mut self,
        header: &Header,
        flag: u8,
        stored: u64,
        mut extensions: Extensions,
        at: u64,
    ) -> Result<Entry, TarError> {
        let invalid = |reason| TarError::Header { at, reason };
        let old = header.as_old();
        let path = extensions
            .sparse
            .as_mut()
            .and_then(|sparse| sparse.name.take())
            .or(extensions.path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let link = extensions.link.unwrap_or_else(|| {
            header
                .link_name_bytes()
                .map(|it| it.into_owned())
                .unwrap_or_default()
        });
        let kind = match flag {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::Hardlink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharacterDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(TarError::Kind(char::from(other))),
        };
        // Only files carry data; a size on anything else is noise, as Go's reader (which wrote most images) has it.
        let stored = if kind == Kind::File {
            extensions.size.unwrap_or(stored)
        } else {
            0
        };
        let (old_size, old_segments) = match flag {
            b'S' => self.sparse(header, stored, at)?,
            _ => (stored, vec![(0, stored)]),
        };
        self.data = stored;
        self.padding = stored
            .checked_next_multiple_of(BLOCK as u64)
            .ok_or_else(|| invalid("size"))?
            - stored;
        let (size, segments) = match extensions.sparse {
            Some(sparse) if kind == Kind::File && flag != b'S' => sparse.place(self, at)?,
            _ => (old_size, old_segments),
        };
        Ok(Entry {
            path,
            link,
            kind,
            mode: numeric(&old.mode).ok_or_else(|| invalid("mode"))? as u32 & 0o7777,
            uid: extensions
                .uid
                .or_else(|| numeric(&old.uid))
                .ok_or_else(|| invalid("uid"))?,
            gid: extensions
                .gid
                .or_else(|| numeric(&old.gid))
                .ok_or_else(|| invalid("gid"))?,
            mtime: extensions
                .mtime
                .or_else(|| time_field(&old.mtime))
                .ok_or_else(|| invalid("mtime"))?,
            xattrs: extensions.xattrs,
            size,
            segments,
        })
    }

    /// The size and the segments of an old GNU sparse file, whose map may go on in blocks after the header.
    fn sparse(&mut self, header: &Header, stored: u64, at: u64) -> Result<(u64, Vec<(u64, u64)>), TarError> {
        let invalid = |reason| TarError::Header { at, reason };
        let gnu = header
            .as_gnu()
            .ok_or_else(|| invalid("sparse file in an archive that is not GNU's"))?;
        let size = numeric(&gnu.realsize).ok_or_else(|| invalid("real size"))?;
        let mut map = SparseMap::new(size);
        let mut add = |parts: &[GnuSparseHeader]| {
            for part in parts.iter().take_while(|part| !part.is_empty()) {
                let offset = numeric(&part.offset).ok_or("sparse map")?;
                map.add(offset, numeric(&part.numbytes).ok_or("sparse map")?)?;
            }
            Ok(())
        };
        add(&gnu.sparse).map_err(invalid)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extension = GnuExtSparseHeader::new();
            *extension.as_mut_bytes() = self.block()?.ok_or_else(|| invalid("sparse map ends early"))?;
            add(extension.sparse()).map_err(invalid)?;
            more = extension.is_extended();
        }
        Ok((size, map.finish(stored).map_err(invalid)?))
    }

    /// Passes over what is left of the current entry.
    fn skip_data(&mut self) -> Result<(), TarError> {
        let left = self.data.saturating_add(self.padding);
        let skipped = io::copy(&mut self.input.by_ref().take(left), &mut io::sink())?;
        self.position = self.position.saturating_add(skipped);
        (self.data, self.padding) = (0, 0);
        if skipped < left {
            Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())
        } else {
            Ok(())
        }
    }

    /// One block; none if the stream ends right before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.position = self.position.saturating_add(BLOCK as u64);
        Ok(Some(block))
    }

    /// The data of an extension header.
    fn extension(&mut self, size: u64, at: u64) -> Result<Vec<u8>, TarError> {
        if size > MAX_EXTENSION_BYTES {
            return Err(TarError::Header {
                at,
                reason: "extension header longer than 1 MiB",
            });
        }
        self.data = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        if self.data > 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        Ok(bytes)
    }
}

/// The stored data of the current entry. The end of it is the end of the entry, or of a stream that is cut short.
impl<R: Read> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.input.read(&mut buffer[..most])?;
        self.data -= read as u64;
        self.position = self.position.saturating_add(read as u64);
        Ok(read)
    }
}

fn checksum(block: &[u8; BLOCK]) -> u64 {
    let field = 148..156;
    block
        .iter()
        .enumerate()
        .map(|(at, &byte)| if field.contains(&at) { 32 } else { u64::from(byte) })
        .sum()
}

/// A numeric field: octal text, or big-endian binary if the first bit is set. Blank is zero; negative is none.
fn numeric(field: &[u8]) -> Option<u64> {
    let (&first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let start = if first & 0x40 != 0 {
            return None;
        } else {
            u64::from(first & 0x3f)
        };
        return rest.iter().try_fold(start, |value, &byte| {
            Some(value.checked_mul(256)? | u64::from(byte))
        });
    }
    let text = field
        .split(|&byte| byte == 0)
        .next()
        .unwrap_or_default()
        .trim_ascii();
    text.iter().try_fold(0_u64, |value, &byte| match byte {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

fn time_field(field: &[u8]) -> Option<(u64, u32)> {
    let negative = field.first().is_some_and(|first| first & 0xc0 == 0xc0);
    if negative {
        Some((0, 0))
    } else {
        numeric(field).map(|seconds| (seconds, 0))
    }
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    if let Some(end) = name.iter().position(|&byte| byte == 0) {
        name.truncate(end);
    }
    name
}

/// Reads PAX records, each `LENGTH KEY=VALUE\n`.
fn pax(mut records: &[u8], extensions: &mut Extensions) -> Result<(), &'static str> {
    while !records.is_empty() {
        let space = records
            .iter()
            .take(20)
            .position(|&byte| byte == b' ')
            .ok_or("PAX record length")?;
        let length: usize = decimal(&records[..space])
            .and_then(|it| it.try_into().ok())
            .ok_or("PAX record length")?;
        if length <= space + 1 || length > records.len() {
            return Err("PAX record length");
        }
        let (record, rest) = records.split_at(length);
        records = rest;
        let body = record[space + 1..]
            .strip_suffix(b"\n")
            .ok_or("PAX record without an end")?;
        let equals = body
            .iter()
            .position(|&byte| byte == b'=')
            .ok_or("PAX record without =")?;
        let (key, value) = (&body[..equals], &body[equals + 1..]);
        match key {
            b"path" => extensions.path = Some(value.to_vec()),
            b"linkpath" => extensions.link = Some(value.to_vec()),
            b"uid" => extensions.uid = Some(decimal(value).ok_or("PAX uid")?),
            b"gid" => extensions.gid = Some(decimal(value).ok_or("PAX gid")?),
            b"size" => extensions.size = Some(decimal(value).ok_or("PAX size")?),
            b"mtime" => extensions.mtime = Some(pax_time(value).ok_or("PAX mtime")?),
            _ if key.starts_with(b"GNU.sparse.") => {
                let sparse = extensions.sparse.get_or_insert_default();
                sparse.record(&key[b"GNU.sparse.".len()..], value)?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_RECORD) {
                    extensions.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

/// Digits and nothing else.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, &byte| match byte {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(byte - b'0')),
        _ => None,
    })
}

/// `SECONDS[.FRACTION]`, possibly negative.
fn pax_time(text: &[u8]) -> Option<(u64, u32)> {
    if text.starts_with(b"-") {
        return Some((0, 0));
    }
    let mut parts = text.splitn(2, |&byte| byte == b'.');
    let seconds = decimal(parts.next()?)?;
    let mut digits = parts.next().unwrap_or_default().iter();
    let nanoseconds = (0..9).try_fold(0_u32, |value, _| {
        let digit = digits
            .next()
            .map_or(Some(0), |&byte| char::from(byte).to_digit(10))?;
        Some(value * 10 + digit)
    })?;
    Some((seconds, nanoseconds))
}

#[cfg(test)]
#[path = "tar_reader_tests.rs"]
mod tests;
