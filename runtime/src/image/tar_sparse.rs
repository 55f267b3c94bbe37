//! Sparse files in tar: where the data that is stored belongs. The three forms that PAX records have for it, and the rules that
//! GNU's old form shares with them.

use std::io::Read;

use super::tar_reader::{BLOCK, TarError, TarReader, decimal};

/// Most data segments of one sparse file.
const MAX_SEGMENTS: usize = 100_000;
/// Digits of the largest number.
const MAX_DIGITS: usize = 20;

/// Where the data of a sparse file belongs: in order, and within the file.
pub(super) struct SparseMap {
    size: u64,
    end: u64,
    total: u64,
    segments: Vec<(u64, u64)>,
}

impl SparseMap {
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            end: 0,
            total: 0,
            segments: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, offset: u64, length: u64) -> Result<(), &'static str> {
        let next = offset
            .checked_add(length)
            .filter(|&next| offset >= self.end && next <= self.size);
        self.end = next.ok_or("sparse map out of order or out of bounds")?;
        self.total = self.total.checked_add(length).ok_or("sparse map")?;
        self.segments.push((offset, length));
        match self.segments.len() > MAX_SEGMENTS {
            true => Err("too many sparse segments"),
            false => Ok(()),
        }
    }

    /// `stored` is how many bytes there are to be placed.
    pub(super) fn finish(self, stored: u64) -> Result<Vec<(u64, u64)>, &'static str> {
        match self.total == stored {
            true => Ok(self.segments),
            false => Err("sparse map does not match the stored size"),
        }
    }
}

/// What `GNU.sparse` records say, in any of their three versions (0.0, 0.1 and 1.0).
#[derive(Default)]
pub(super) struct PaxSparse {
    /// The entry itself has a name for tools that know no sparse files.
    pub(super) name: Option<Vec<u8>>,
    size: Option<u64>,
    major: u64,
    /// Offset and length in turn; of version 1 they are with the data.
    map: Vec<u64>,
}

impl PaxSparse {
    /// Takes one record, by the rest of its key.
    pub(super) fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        let number = |text| decimal(text).ok_or("PAX sparse record");
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"major" => self.major = number(value)?,
            b"offset" | b"numbytes" => self.map.push(number(value)?),
            b"map" => {
                let parts = value.split(|&byte| byte == b',');
                self.map = parts.map(number).collect::<Result<_, _>>()?;
            }
            // The number of segments, which is counted here, and the minor version.
            _ => {}
        }
        Ok(())
    }

    /// The size and the segments of the current entry. In version 1 the map comes before the data, as lines with a number
    /// each, in whole blocks.
    pub(super) fn place<R: Read>(
        self,
        reader: &mut TarReader<R>,
        at: u64,
    ) -> Result<(u64, Vec<(u64, u64)>), TarError> {
        let invalid = |reason| TarError::Header { at, reason };
        let size = self.size.ok_or_else(|| invalid("sparse file without its size"))?;
        let mut map = SparseMap::new(size);
        if self.major == 1 {
            let mut lines = Lines::default();
            let count = lines.number(reader, at)?;
            for _ in 0..count {
                let offset = lines.number(reader, at)?;
                let length = lines.number(reader, at)?;
                map.add(offset, length).map_err(invalid)?;
            }
        } else {
            let (pairs, rest) = self.map.as_chunks::<2>();
            if !rest.is_empty() {
                return Err(invalid("sparse map with an offset and no length"));
            }
            for &[offset, length] in pairs {
                map.add(offset, length).map_err(invalid)?;
            }
        }
        let segments = map.finish(reader.data_left()).map_err(invalid)?;
        Ok((size, segments))
    }
}

/// The blocks of a map that comes with the data.
#[derive(Default)]
struct Lines {
    block: Vec<u8>,
    next: usize,
}

impl Lines {
    fn number<R: Read>(&mut self, reader: &mut TarReader<R>, at: u64) -> Result<u64, TarError> {
        let invalid = || TarError::Header {
            at,
            reason: "sparse map",
        };
        let mut digits = Vec::new();
        loop {
            if self.next == self.block.len() {
                self.block.resize(BLOCK, 0);
                reader.read_exact(&mut self.block)?;
                self.next = 0;
            }
            let byte = self.block[self.next];
            self.next += 1;
            if byte == b'\n' {
                return decimal(&digits).ok_or_else(invalid);
            }
            digits.push(byte);
            if digits.len() > MAX_DIGITS {
                return Err(invalid());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};
    use std::process::Command;

    use super::*;
    use crate::image::tar_reader::Kind;

    /// Files with holes at the beginning, in the middle and at the end, as GNU tar writes them.
    #[test]
    fn every_form_that_gnu_tar_writes_is_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let mut file = File::create(&path).unwrap();
        // More segments than a block of a map holds.
        for segment in 1..200_u64 {
            file.seek(std::io::SeekFrom::Start(segment * 65_536)).unwrap();
            file.write_all(&segment.to_le_bytes()).unwrap();
        }
        file.set_len(200 * 65_536).unwrap();
        let content = std::fs::read(&path).unwrap();
        for form in [
            &["--format=gnu"][..],
            &["--format=posix", "--sparse-version=0.0"],
            &["--format=posix", "--sparse-version=0.1"],
            &["--format=posix", "--sparse-version=1.0"],
        ] {
            let archive = Command::new("tar")
                .args(form)
                .args(["--sparse", "-cf", "-", "-C"])
                .arg(dir.path())
                .arg("sparse")
                .output()
                .unwrap();
            assert!(archive.status.success() && archive.stdout.len() < content.len() / 2);
            let mut reader = TarReader::new(archive.stdout.as_slice());
            let entry = reader.next().unwrap().unwrap();
            assert_eq!(
                (entry.path.as_slice(), entry.kind, entry.size),
                (b"sparse".as_slice(), Kind::File, content.len() as u64)
            );
            let mut unpacked = vec![0; content.len()];
            for &(offset, length) in &entry.segments {
                let start = usize::try_from(offset).unwrap();
                let end = start + usize::try_from(length).unwrap();
                reader.read_exact(&mut unpacked[start..end]).unwrap();
            }
            assert!(unpacked == content, "{form:?}");
            assert!(reader.next().unwrap().is_none(), "{form:?}");
        }
    }

    #[test]
    fn maps_that_lie_are_refused() {
        let place = |records: &[(&str, &str)], data: &[u8]| {
            let mut builder = tar::Builder::new(Vec::new());
            let records = records.iter().map(|(key, value)| (*key, value.as_bytes()));
            builder.append_pax_extensions(records).unwrap();
            let mut header = tar::Header::new_ustar();
            header.set_size(data.len() as u64);
            builder.append_data(&mut header, "x", data).unwrap();
            TarReader::new(builder.into_inner().unwrap().as_slice())
                .next()
                .map(|entry| entry.unwrap().segments)
        };
        let map = |text: &str| {
            place(
                &[("GNU.sparse.size", "100"), ("GNU.sparse.map", text)],
                b"0123456789",
            )
        };
        assert_eq!(map("90,10").unwrap(), [(90, 10)]);
        for lie in [
            "90,11",
            "95,10",
            "50,5,40,5",
            "90,9",
            "90",
            "",
            "a,b",
            "18446744073709551615,10",
        ] {
            assert!(map(lie).is_err(), "{lie}");
        }
        let first = [("GNU.sparse.major", "1"), ("GNU.sparse.realsize", "100")];
        for lie in [
            "",
            "1\n0\n",
            "99999999999999999999999\n",
            "18446744073709551615\n1\n1\n",
            "x\n",
        ] {
            let mut data = lie.as_bytes().to_vec();
            data.resize(BLOCK, 0);
            assert!(place(&first, &data).is_err(), "{lie}");
        }
        assert!(place(&[("GNU.sparse.map", "0,10")], b"0123456789").is_err());
    }
}
