//! What of the host is promised to tasks: processors, memory and disk, each up to what the host has, times a ratio that the
//! operator chooses. Addresses are the networks' affair.

use std::fmt;
use std::str::FromStr;

use super::{Runtime, RuntimeError};
use crate::machine;
use crate::model::task::{Task, TaskStatus};
use crate::model::volume::Volume;
use crate::state::keys;
use crate::task::host::Resources;

/// How much of a resource may be promised: 1 is what there is, 2 is twice that, 0.9 leaves a tenth to the host.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(f64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a ratio is a number from 0.01 to 1000, such as 1.5")]
pub struct BadRatio;

impl Ratio {
    pub const ONE: Ratio = Ratio(1.0);

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "positive; it saturates, and below 8 PiB nothing is lost"
    )]
    fn of(self, amount: u64) -> u64 {
        (amount as f64 * self.0) as u64
    }
}

impl Default for Ratio {
    fn default() -> Self {
        Ratio::ONE
    }
}

impl FromStr for Ratio {
    type Err = BadRatio;

    fn from_str(text: &str) -> Result<Self, BadRatio> {
        let ratio = text.parse::<f64>().map_err(|_| BadRatio)?;
        // Not so for what is no number.
        if (0.01..=1000.0).contains(&ratio) {
            Ok(Ratio(ratio))
        } else {
            Err(BadRatio)
        }
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Of which resource how much more is promised than there is.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Overcommit {
    pub cpu: Ratio,
    pub memory: Ratio,
    pub disk: Ratio,
}

/// What is missing on this host for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{needed} {unit} are needed, and {free} are free")]
pub struct Shortage {
    /// As AWS's failures name it: `CPU`, `MEMORY`, `DISK` or `ENI`.
    pub resource: &'static str,
    pub unit: &'static str,
    pub needed: u64,
    pub free: u64,
}

/// Whether `new` fits beside what is `promised` already on a host that has `supply`; else the first thing that is missing.
fn fits(supply: Resources, ratios: Overcommit, promised: Resources, new: Resources) -> Result<(), Shortage> {
    let rows = [
        (
            "CPU",
            "CPU units",
            0,
            ratios.cpu.of(supply.cpu_units),
            promised.cpu_units,
            new.cpu_units,
        ),
        (
            "MEMORY",
            "MiB of memory",
            20,
            ratios.memory.of(supply.memory_bytes),
            promised.memory_bytes,
            new.memory_bytes,
        ),
        (
            "DISK",
            "GiB of disk",
            30,
            ratios.disk.of(supply.disk_bytes),
            promised.disk_bytes,
            new.disk_bytes,
        ),
    ];
    for (resource, unit, shift, there, promised, needed) in rows {
        let free = there.saturating_sub(promised);
        if needed > free {
            return Err(Shortage {
                resource,
                unit,
                needed: needed.div_ceil(1 << shift),
                free: free >> shift,
            });
        }
    }
    Ok(())
}

/// Of a volume or a snapshot, whether anybody has it or not.
fn volume_bytes(gib: u32) -> u64 {
    u64::from(gib) << 30
}

/// What these tasks may come to use, their volumes aside.
fn demand<'a>(tasks: impl IntoIterator<Item = &'a Task>) -> Resources {
    let mut sum = Resources::default();
    for task in tasks {
        sum.cpu_units += u64::from(task.cpu_units);
        sum.memory_bytes += machine::memory_bytes(task.memory_mib);
        sum.disk_bytes += u64::from(task.ephemeral_storage_gib) << 30;
    }
    sum
}

impl Runtime {
    /// Whether the host has room for these tasks beside all that have not stopped.
    pub(super) async fn check_capacity(&self, new: &[Task]) -> Result<(), RuntimeError> {
        let tasks = self.tasks().await?;
        let mut needed = demand(new);
        for volume in new.iter().filter_map(|task| task.volume.as_ref()) {
            // One that is there already is promised already.
            needed.disk_bytes += if volume.made {
                volume_bytes(volume.size_gib)
            } else {
                0
            };
        }
        self.check_beside(&tasks, needed).await
    }

    /// Whether the host has room for one more volume.
    pub(super) async fn check_disk(&self, volume_gib: u32) -> Result<(), RuntimeError> {
        let needed = Resources {
            disk_bytes: volume_bytes(volume_gib),
            ..Resources::default()
        };
        self.check_beside(&self.tasks().await?, needed).await
    }

    async fn check_beside(&self, tasks: &[Task], needed: Resources) -> Result<(), RuntimeError> {
        let mut promised = demand(tasks.iter().filter(|task| task.status != TaskStatus::Stopped));
        for volume in self.shared.context.records.list::<Volume>(keys::VOLUMES).await? {
            promised.disk_bytes += volume_bytes(volume.value.size_gib);
        }
        let supply = self.shared.context.host.resources().await?;
        fits(supply, self.shared.settings.overcommit, promised, needed).map_err(RuntimeError::Capacity)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn host(cpu_units: u64, memory_gib: u64, disk_gib: u64) -> Resources {
        Resources {
            cpu_units,
            memory_bytes: memory_gib * GIB,
            disk_bytes: disk_gib * GIB,
        }
    }

    fn check(supply: Resources, promised: Resources, new: Resources) -> Result<(), String> {
        fits(supply, Overcommit::default(), promised, new)
            .map_err(|shortage| format!("{}: {shortage}", shortage.resource))
    }

    #[test]
    fn what_is_missing_is_named_with_what_there_is() {
        let full = host(2048, 8, 100);
        assert_eq!(check(full, host(1024, 4, 50), host(1024, 4, 50)), Ok(()));
        let new = host(1025, 5, 51);
        let says = |text: &str| Err(text.to_owned());
        assert_eq!(
            check(full, host(1024, 4, 50), new),
            says("CPU: 1025 CPU units are needed, and 1024 are free")
        );
        assert_eq!(
            check(full, host(0, 4, 50), new),
            says("MEMORY: 5120 MiB of memory are needed, and 4096 are free")
        );
        assert_eq!(
            check(full, host(0, 0, 50), new),
            says("DISK: 51 GiB of disk are needed, and 50 are free")
        );
        // A ratio that was made smaller since, or a disk that something else fills.
        assert_eq!(
            check(host(2048, 8, 10), host(0, 0, 50), new),
            says("DISK: 51 GiB of disk are needed, and 0 are free")
        );
    }

    #[test]
    fn ratios_are_read_and_bounded() {
        assert_eq!("1.5".parse(), Ok(Ratio(1.5)));
        assert_eq!("1000".parse(), Ok(Ratio(1000.0)));
        for text in ["", "0", "-1", "1001", "NaN", "inf", "2x"] {
            assert_eq!(text.parse::<Ratio>(), Err(BadRatio), "{text}");
        }
        assert_eq!(Ratio(2.0).of(3), 6);
        assert_eq!(Ratio(1000.0).of(u64::MAX), u64::MAX);
    }

    proptest! {
        /// However many tasks come one after another: never more is promised than the ratio allows, and what is left does not fit.
        #[test]
        fn never_more_is_promised_than_there_is(
            units in 0_u64..100_000, each in 1_u64..4096, hundredths in 1_u32..1000,
        ) {
            let ratio = Ratio(f64::from(hundredths) / 100.0);
            let ratios = Overcommit { cpu: ratio, ..Overcommit::default() };
            let new = host(each, 0, 0);
            let mut promised = host(0, 0, 0);
            while fits(host(units, 0, 0), ratios, promised, new).is_ok() {
                promised.cpu_units += each;
            }
            prop_assert!(promised.cpu_units <= ratio.of(units));
            prop_assert!(promised.cpu_units + each > ratio.of(units));
        }
    }
}
