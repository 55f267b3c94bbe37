//! How fast the devices of a task's machine may be: in proportion to the processors that the task paid for, as what it gets
//! of them is.

use berth_vmm::config::{LimitsConfig, RateConfig};

const UNITS_PER_VCPU: u64 = 1024;
/// Once seeded a guest makes its own random bytes; this is for what it asks of the host all the same.
const ENTROPY_BYTES_PER_SECOND: u64 = 1 << 20;

/// What a task has for each vCPU, and a part of it for a part of one; 0 is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rates {
    /// Megabits of network a second, in each direction.
    pub network_mbit: u32,
    /// Megabytes a second of each drive.
    pub disk_mb: u32,
    /// Requests a second of each drive.
    pub disk_iops: u32,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            network_mbit: 2000,
            disk_mb: 250,
            disk_iops: 8000,
        }
    }
}

impl Rates {
    /// Of the interface, in each direction.
    pub(super) fn network(self, cpu_units: u32) -> Option<LimitsConfig> {
        limits(rate(u64::from(self.network_mbit) * 125_000, cpu_units), None)
    }

    /// Of each drive.
    pub(super) fn drive(self, cpu_units: u32) -> Option<LimitsConfig> {
        limits(
            rate(u64::from(self.disk_mb) * 1_000_000, cpu_units),
            rate(u64::from(self.disk_iops), cpu_units),
        )
    }
}

/// Of the source of random bytes, whatever the size of the task.
pub(super) fn entropy() -> Option<LimitsConfig> {
    limits(rate(ENTROPY_BYTES_PER_SECOND, 1024), None)
}

fn limits(bytes: Option<RateConfig>, ops: Option<RateConfig>) -> Option<LimitsConfig> {
    (bytes.is_some() || ops.is_some()).then_some(LimitsConfig { bytes, ops })
}

/// The task's part, of which it may use a second's worth at once after a pause.
fn rate(per_vcpu: u64, cpu_units: u32) -> Option<RateConfig> {
    let per_second = per_vcpu
        .saturating_mul(u64::from(cpu_units))
        .div_ceil(UNITS_PER_VCPU);
    (per_second > 0).then_some(RateConfig {
        per_second,
        burst: per_second,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_has_its_part_and_no_limit_is_none() {
        let rates = Rates {
            network_mbit: 1000,
            disk_mb: 200,
            disk_iops: 0,
        };
        let bytes = |limits: Option<LimitsConfig>| limits.unwrap().bytes.unwrap().per_second;
        assert_eq!(bytes(rates.network(256)), 31_250_000);
        assert_eq!(bytes(rates.network(16_384)), 2_000_000_000);
        assert_eq!(bytes(rates.drive(512)), 100_000_000);
        assert_eq!(rates.drive(512).unwrap().ops, None);
        let none = Rates {
            network_mbit: 0,
            disk_mb: 0,
            disk_iops: 0,
        };
        assert_eq!((none.network(1024), none.drive(1024)), (None, None));
    }

    #[test]
    fn every_size_makes_limits_that_a_machine_takes() {
        let most = Rates {
            network_mbit: u32::MAX,
            disk_mb: u32::MAX,
            disk_iops: u32::MAX,
        };
        let least = Rates {
            network_mbit: 1,
            disk_mb: 1,
            disk_iops: 1,
        };
        for rates in [most, least, Rates::default()] {
            for units in [256, 1024, 16_384] {
                for limits in [rates.network(units), rates.drive(units), entropy()] {
                    limits.unwrap().validate().unwrap();
                }
            }
        }
    }
}
