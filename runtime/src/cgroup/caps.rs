//! What a group may use at most, and how the kernel wants to be told.

/// The period in which processor time is shared out.
const PERIOD_USEC: u64 = 100_000;
/// The least that the kernel lets a group have in a period.
const MIN_QUOTA_USEC: u64 = 1_000;
const UNITS_PER_VCPU: u64 = 1_024;

/// The caps of a machine: all of its process, guest memory and the rest together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// In CPU units: 1,024 are one processor.
    pub cpu_units: u32,
    pub memory_bytes: u64,
    pub pids: u32,
}

impl Caps {
    /// Files of a group, and what is written to each, in order.
    pub(super) fn settings(&self) -> [(&'static str, String); 5] {
        [
            ("cpu.max", self.cpu_max()),
            ("memory.max", self.memory_bytes.to_string()),
            // A guest whose memory went to swap would be slow for reasons nobody could see.
            ("memory.swap.max", "0".to_owned()),
            // Half of a machine is no machine.
            ("memory.oom.group", "1".to_owned()),
            ("pids.max", self.pids.to_string()),
        ]
    }

    fn cpu_max(&self) -> String {
        let quota = u64::from(self.cpu_units) * PERIOD_USEC / UNITS_PER_VCPU;
        format!("{} {PERIOD_USEC}", quota.max(MIN_QUOTA_USEC))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_units_become_their_exact_share_of_a_period() {
        let cpu_max = |cpu_units| {
            Caps {
                cpu_units,
                memory_bytes: 0,
                pids: 0,
            }
            .cpu_max()
        };
        assert_eq!(cpu_max(256), "25000 100000");
        assert_eq!(cpu_max(1_024), "100000 100000");
        assert_eq!(cpu_max(16_384), "1600000 100000");
        assert_eq!(cpu_max(1), "1000 100000");
        assert_eq!(cpu_max(u32::MAX), "419430399902 100000");
    }
}
