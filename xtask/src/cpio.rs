//! A writer of cpio archives in the "newc" form, the form of an initial RAM file system
//! (Linux `Documentation/driver-api/early-userspace/buffer-format.rst`). Writes only; compresses nothing.

use std::io::{self, Write};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;
const SYMLINK: u32 = 0o120_000;
const TRAILER: &str = "TRAILER!!!";

/// An archive being written. Everything in it belongs to root and has no time, so equal content gives equal bytes.
pub(crate) struct Archive<W> {
    out: W,
    inode: u32,
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    links: u32,
    device: (u32, u32),
    data: &'a [u8],
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    pub(crate) fn directory(&mut self, name: &str, permissions: u32) -> io::Result<()> {
        self.entry(&Entry {
            name,
            mode: DIRECTORY | permissions,
            links: 2,
            device: (0, 0),
            data: &[],
        })
    }

    pub(crate) fn file(&mut self, name: &str, permissions: u32, data: &[u8]) -> io::Result<()> {
        self.entry(&Entry {
            name,
            mode: REGULAR | permissions,
            links: 1,
            device: (0, 0),
            data,
        })
    }

    pub(crate) fn symlink(&mut self, name: &str, target: &str) -> io::Result<()> {
        self.entry(&Entry {
            name,
            mode: SYMLINK | 0o777,
            links: 1,
            device: (0, 0),
            data: target.as_bytes(),
        })
    }

    pub(crate) fn character_device(
        &mut self,
        name: &str,
        permissions: u32,
        major: u32,
        minor: u32,
    ) -> io::Result<()> {
        self.entry(&Entry {
            name,
            mode: CHARACTER | permissions,
            links: 1,
            device: (major, minor),
            data: &[],
        })
    }

    /// Writes the trailer and gives the sink back.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.write(
            0,
            &Entry {
                name: TRAILER,
                mode: 0,
                links: 1,
                device: (0, 0),
                data: &[],
            },
        )?;
        Ok(self.out)
    }

    fn entry(&mut self, entry: &Entry<'_>) -> io::Result<()> {
        self.inode += 1;
        self.write(self.inode, entry)
    }

    fn write(&mut self, inode: u32, entry: &Entry<'_>) -> io::Result<()> {
        let too_large = |_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("{} is too large", entry.name),
            )
        };
        let size = u32::try_from(entry.data.len()).map_err(too_large)?;
        let name_size = u32::try_from(entry.name.len() + 1).map_err(too_large)?;
        let (major, minor) = entry.device;
        // Magic, then: inode, mode, uid, gid, links, time, size, device (2), the node's own device (2), name, check.
        self.out.write_all(b"070701")?;
        for field in [
            inode,
            entry.mode,
            0,
            0,
            entry.links,
            0,
            size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ] {
            write!(self.out, "{field:08X}")?;
        }
        self.out.write_all(entry.name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(110 + entry.name.len() + 1)?;
        self.out.write_all(entry.data)?;
        self.pad(entry.data.len())
    }

    /// Name and data each end on a multiple of four.
    fn pad(&mut self, length: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..length.next_multiple_of(4) - length])
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Name, mode, device and data.
    type Node = (String, u32, (u32, u32), Vec<u8>);

    /// Each entry, read by the rules of the format.
    fn read(mut archive: &[u8]) -> Vec<Node> {
        let mut entries = Vec::new();
        loop {
            assert_eq!(&archive[..6], b"070701");
            let field = |n: usize| {
                let digits = std::str::from_utf8(&archive[6 + n * 8..14 + n * 8]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let device = (field(9), field(10));
            let name = std::str::from_utf8(&archive[110..110 + name_size - 1])
                .unwrap()
                .to_owned();
            assert_eq!(archive[110 + name_size - 1], 0);
            let data = (110 + name_size).next_multiple_of(4);
            if name == TRAILER {
                return entries;
            }
            entries.push((name, mode, device, archive[data..data + size].to_vec()));
            archive = &archive[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn each_kind_of_node_reads_back() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev", 0o755).unwrap();
        archive.character_device("dev/console", 0o600, 5, 1).unwrap();
        archive.file("init", 0o755, b"#!").unwrap();
        archive.symlink("bin", "usr/bin").unwrap();
        let entries = read(&archive.finish().unwrap());
        assert_eq!(
            entries,
            [
                ("dev".to_owned(), 0o040_755, (0, 0), vec![]),
                ("dev/console".to_owned(), 0o020_600, (5, 1), vec![]),
                ("init".to_owned(), 0o100_755, (0, 0), b"#!".to_vec()),
                ("bin".to_owned(), 0o120_777, (0, 0), b"usr/bin".to_vec()),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_files_read_back(files in prop::collection::vec(("[a-z]{1,9}", prop::collection::vec(any::<u8>(), 0..40)), 0..6)) {
            let mut archive = Archive::new(Vec::new());
            for (name, data) in &files {
                archive.file(name, 0o644, data).unwrap();
            }
            let bytes = archive.finish().unwrap();
            prop_assert_eq!(bytes.len() % 4, 0);
            let read: Vec<_> = read(&bytes).into_iter().map(|(name, _, _, data)| (name, data)).collect();
            prop_assert_eq!(read, files);
        }
    }
}
