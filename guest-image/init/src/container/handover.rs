//! The form in which `berth-init` hands to itself, executed anew, what there is to do: plain bytes in a file without a name.
//! Only this very binary reads them, so they have no version and no names.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;

use berth_protocol::message::{Mount, SystemControl, Tmpfs};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// What can be handed over.
pub(crate) trait Handed: Sized {
    fn put(&self, to: &mut Vec<u8>);
    /// None where the bytes are none of this.
    fn take(from: &mut &[u8]) -> Option<Self>;
}

/// Fields one after the other.
macro_rules! handed {
    ($type:ty { $($field:ident),* $(,)? }) => {
        impl $crate::container::handover::Handed for $type {
            fn put(&self, to: &mut Vec<u8>) {
                $($crate::container::handover::Handed::put(&self.$field, to);)*
            }
            fn take(from: &mut &[u8]) -> Option<Self> {
                Some(Self { $($field: $crate::container::handover::Handed::take(from)?,)* })
            }
        }
    };
}
pub(crate) use handed;

handed!(Mount {
    volume,
    path,
    readonly
});
handed!(Tmpfs { path, bytes, options });
handed!(SystemControl { name, value });

impl Handed for u64 {
    fn put(&self, to: &mut Vec<u8>) {
        to.extend(self.to_le_bytes());
    }
    fn take(from: &mut &[u8]) -> Option<Self> {
        let (bytes, rest) = from.split_first_chunk()?;
        *from = rest;
        Some(u64::from_le_bytes(*bytes))
    }
}

impl Handed for i32 {
    fn put(&self, to: &mut Vec<u8>) {
        u64::from(self.cast_unsigned()).put(to);
    }
    fn take(from: &mut &[u8]) -> Option<Self> {
        u32::try_from(u64::take(from)?).ok().map(u32::cast_signed)
    }
}

impl Handed for bool {
    fn put(&self, to: &mut Vec<u8>) {
        u64::from(*self).put(to);
    }
    fn take(from: &mut &[u8]) -> Option<Self> {
        u64::take(from).map(|value| value != 0)
    }
}

impl Handed for String {
    fn put(&self, to: &mut Vec<u8>) {
        (self.len() as u64).put(to);
        to.extend(self.as_bytes());
    }
    fn take(from: &mut &[u8]) -> Option<Self> {
        let length = usize::try_from(u64::take(from)?).ok()?;
        let (bytes, rest) = from.split_at_checked(length)?;
        *from = rest;
        String::from_utf8(bytes.to_vec()).ok()
    }
}

/// All paths here come from texts.
impl Handed for PathBuf {
    fn put(&self, to: &mut Vec<u8>) {
        self.to_string_lossy().into_owned().put(to);
    }
    fn take(from: &mut &[u8]) -> Option<Self> {
        String::take(from).map(PathBuf::from)
    }
}

impl<T: Handed> Handed for Vec<T> {
    fn put(&self, to: &mut Vec<u8>) {
        (self.len() as u64).put(to);
        for item in self {
            item.put(to);
        }
    }
    fn take(from: &mut &[u8]) -> Option<Self> {
        let count = u64::take(from)?;
        (0..count).map(|_| T::take(from)).collect()
    }
}

impl Handed for BTreeMap<String, String> {
    fn put(&self, to: &mut Vec<u8>) {
        (self.len() as u64).put(to);
        for (name, value) in self {
            name.put(to);
            value.put(to);
        }
    }
    fn take(from: &mut &[u8]) -> Option<Self> {
        let count = u64::take(from)?;
        (0..count)
            .map(|_| Some((String::take(from)?, String::take(from)?)))
            .collect()
    }
}

/// Something in a file without a name.
pub(super) fn write_down(what: &impl Handed) -> io::Result<File> {
    let mut bytes = Vec::new();
    what.put(&mut bytes);
    let mut file = File::from(memfd_create(c"order", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&bytes)?;
    file.rewind()?;
    Ok(file)
}

pub(super) fn read_down<T: Handed>(mut file: File) -> io::Result<T> {
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let mut rest = bytes.as_slice();
    let what = T::take(&mut rest).filter(|_| rest.is_empty());
    what.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(what: &impl Handed) -> Vec<u8> {
        let mut bytes = Vec::new();
        what.put(&mut bytes);
        bytes
    }

    proptest! {
        #[test]
        fn what_is_handed_over_arrives(
            tmpfs in proptest::collection::vec(("\\PC*", any::<u64>(), proptest::collection::vec("\\PC*", 0..3)), 0..4),
            map: BTreeMap<String, String>,
            number: i32,
        ) {
            let tmpfs: Vec<Tmpfs> = tmpfs
                .into_iter()
                .map(|(path, bytes, options)| Tmpfs { path, bytes, options })
                .collect();
            prop_assert_eq!(read_down::<Vec<Tmpfs>>(write_down(&tmpfs).unwrap()).unwrap(), tmpfs);
            prop_assert_eq!(BTreeMap::take(&mut bytes(&map).as_slice()), Some(map));
            prop_assert_eq!(i32::take(&mut bytes(&number).as_slice()), Some(number));
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes: Vec<u8>) {
            let _ = Vec::<Tmpfs>::take(&mut bytes.as_slice());
            let _ = Vec::<Vec<u64>>::take(&mut bytes.as_slice());
        }

        #[test]
        fn what_is_cut_off_is_refused(texts in proptest::collection::vec("[a-z]{0,5}", 1..4), cut in 1usize..8) {
            let bytes = bytes(&texts);
            prop_assert_eq!(Vec::<String>::take(&mut &bytes[..bytes.len() - cut]), None);
        }
    }
}
