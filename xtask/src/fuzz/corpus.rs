//! The inputs of a target: those that are kept in the repository, and those that runs on this machine have found. What
//! they mean is known to the target alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{Target, run};
use crate::step::run as run_command;
use crate::workspace;

/// Most bytes of inputs that are kept for a target: they are read by everybody who clones the repository.
const MOST_KEPT_BYTES: u64 = 24 << 10;

/// Where a target's inputs are.
pub(super) struct Inputs {
    /// In the repository; every run starts from them.
    pub(super) kept: PathBuf,
    /// In the build folder.
    pub(super) found: PathBuf,
    /// For inputs that crash, each file's name beginning with the kind of crash.
    pub(super) crashes: PathBuf,
    /// What the last run printed.
    pub(super) log: PathBuf,
}

impl Inputs {
    /// Sees to it that the folders are there. What was found grows from run to run, or is `forgotten`.
    pub(super) fn of(target: Target, folder: &Path, forgotten: bool) -> Result<Self> {
        let inputs = Self {
            kept: workspace::root().join(format!("fuzz/corpus/{target}")),
            found: folder
                .join(if forgotten { "brief" } else { "found" })
                .join(target.to_string()),
            crashes: folder.join(format!("crashes/{target}")),
            log: folder.join(format!("{target}.log")),
        };
        if forgotten {
            // It may not be there.
            drop(fs::remove_dir_all(&inputs.found));
        }
        for folder in [&inputs.kept, &inputs.found, &inputs.crashes] {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        Ok(inputs)
    }

    /// Adds to the kept inputs the fewest found ones that reach all the code which the kept ones do not, as far as there is
    /// room. How often code is reached makes no difference here, as it would keep many times more.
    pub(super) fn keep(&self, program: &Path) -> Result<()> {
        let before = files(&self.kept)?;
        run_command(
            Command::new(program)
                .args(run::LIMITS)
                .args(["-set_cover_merge=1", "-use_counters=0"])
                .args([&self.kept, &self.found])
                .stderr(Stdio::null()),
        )?;
        let room = MOST_KEPT_BYTES.saturating_sub(before.iter().map(|(bytes, _)| bytes).sum());
        let added: Vec<_> = files(&self.kept)?.difference(&before).cloned().collect();
        for path in beyond(room, &added) {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }
}

/// The files of a folder with their sizes in bytes, the smallest first.
fn files(folder: &Path) -> Result<BTreeSet<(u64, PathBuf)>> {
    let list = || -> std::io::Result<_> {
        fs::read_dir(folder)?
            .map(|entry| {
                let entry = entry?;
                Ok((entry.metadata()?.len(), entry.path()))
            })
            .collect()
    };
    list().with_context(|| format!("cannot list {}", folder.display()))
}

/// The files for which there is no room, when the first come first.
fn beyond(room: u64, files: &[(u64, PathBuf)]) -> impl Iterator<Item = &PathBuf> {
    let mut taken = 0;
    files.iter().filter_map(move |(bytes, path)| {
        taken += bytes;
        (taken > room).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_inputs_are_kept_before_large_ones_as_far_as_there_is_room() {
        let file = |bytes, name: &str| (bytes, PathBuf::from(name));
        let files = [file(1, "a"), file(4, "b"), file(5, "c"), file(9, "d")];
        let left_out = |room| {
            beyond(room, &files)
                .map(|path| path.to_str().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(left_out(19), [""; 0]);
        assert_eq!(left_out(10), ["d"]);
        assert_eq!(left_out(0), ["a", "b", "c", "d"]);
    }
}
