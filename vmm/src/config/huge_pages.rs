//! Of what pages a guest's memory is made.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Whether the host may put huge pages (2 MiB) under a guest's memory. They make a guest's own way to its memory shorter
/// and its first touch of it dearer, and what it uses of one it uses whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HugePages {
    /// As the host is set (`/sys/kernel/mm/transparent_hugepage`), whoever asks for none.
    #[default]
    Host,
    Never,
    /// Wherever the host can and does not forbid it: of a memfd where `shmem_enabled` says `advise` or more; not of the
    /// pages of other files.
    Always,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} says nothing of huge pages: it is host, never or always")]
pub struct BadHugePages(String);

impl FromStr for HugePages {
    type Err = BadHugePages;

    fn from_str(text: &str) -> Result<Self, BadHugePages> {
        match text {
            "host" => Ok(Self::Host),
            "never" => Ok(Self::Never),
            "always" => Ok(Self::Always),
            _ => Err(BadHugePages(text.to_owned())),
        }
    }
}

impl HugePages {
    /// What is said to the kernel (madvise(2)), if anything.
    pub(crate) fn advice(self) -> Option<libc::c_int> {
        match self {
            Self::Host => None,
            Self::Never => Some(libc::MADV_NOHUGEPAGE),
            Self::Always => Some(libc::MADV_HUGEPAGE),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_on_the_command_line_are_those_of_the_configuration() {
        for pages in [HugePages::Host, HugePages::Never, HugePages::Always] {
            let word = serde_json::to_value(pages).unwrap();
            assert_eq!(word.as_str().unwrap().parse(), Ok(pages));
        }
        let bad = "sometimes".parse::<HugePages>().unwrap_err();
        assert_eq!(
            bad.to_string(),
            "\"sometimes\" says nothing of huge pages: it is host, never or always"
        );
    }
}
