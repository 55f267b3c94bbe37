//! The sizes a task can have: which memory goes with which CPU, and the ways to write them.

/// CPU units (1024 are one vCPU), and the least, the most, and the step of the memory in MiB that go with them.
const TABLE: [(u32, u32, u32, u32); 6] = [
    (512, 1024, 4096, 1024),
    (1024, 2048, 8192, 1024),
    (2048, 4096, 16384, 1024),
    (4096, 8192, 30720, 1024),
    (8192, 16384, 61440, 4096),
    (16384, 32768, 122_880, 8192),
];
/// The smallest CPU, whose memory does not grow by steps.
const SMALLEST: (u32, [u32; 3]) = (256, [512, 1024, 2048]);

/// Whether a task may have this CPU and memory.
pub(crate) fn exists(cpu_units: u32, memory_mib: u32) -> bool {
    let (smallest, its_memory) = SMALLEST;
    (cpu_units == smallest && its_memory.contains(&memory_mib))
        || TABLE.iter().any(|&(cpu, least, most, step)| {
            cpu == cpu_units
                && (least..=most).contains(&memory_mib)
                && (memory_mib - least).is_multiple_of(step)
        })
}

/// CPU units from `256`, `1 vCPU` or `.5 vcpu`.
pub(crate) fn parse_cpu(text: &str) -> Option<u32> {
    parse(text, "vcpu")
}

/// MiB from `512`, `2GB` or `0.5 GB`.
pub(crate) fn parse_memory(text: &str) -> Option<u32> {
    parse(text, "gb")
}

/// A whole number of the small unit, or a decimal one of the big unit, which is 1024 small ones.
fn parse(text: &str, big_unit: &str) -> Option<u32> {
    let text = text.trim().to_ascii_lowercase();
    let Some(number) = text.strip_suffix(big_unit) else {
        return digits(&text);
    };
    let number = number.trim_end();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { digits(whole)? };
    let fraction = if fraction.is_empty() { "0" } else { fraction };
    // 1024 is 2 to the tenth, so that a fraction which comes out whole has at most ten places.
    let denominator = 10u64
        .checked_pow(u32::try_from(fraction.len()).ok()?)
        .filter(|_| fraction.len() <= 10)?;
    let small = fraction
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| fraction.parse::<u64>().ok())??;
    let small = small.checked_mul(1024)?;
    if !small.is_multiple_of(denominator) {
        return None;
    }
    whole
        .checked_mul(1024)?
        .checked_add(u32::try_from(small / denominator).ok()?)
}

fn digits(text: &str) -> Option<u32> {
    text.bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn there_are_seventy_four_sizes() {
        let mut count = 0;
        for cpu in (0..=32768).step_by(128) {
            for memory in (0..=262_144).step_by(256) {
                count += usize::from(exists(cpu, memory));
            }
        }
        assert_eq!(count, 74);
    }

    #[test]
    fn the_edges_of_the_table_are_where_they_should_be() {
        for (cpu, memory) in [
            (256, 512),
            (256, 2048),
            (512, 4096),
            (4096, 30720),
            (8192, 61440),
            (16384, 122_880),
        ] {
            assert!(exists(cpu, memory), "{cpu} and {memory}");
        }
        for (cpu, memory) in [
            (256, 1536),
            (256, 3072),
            (512, 512),
            (512, 5120),
            (4096, 31744),
            (8192, 17408),
            (16384, 36864),
            (16384, 131_072),
            (128, 512),
        ] {
            assert!(!exists(cpu, memory), "{cpu} and {memory}");
        }
    }

    #[test]
    fn sizes_are_read_in_either_unit() {
        assert_eq!(parse_cpu("256"), Some(256));
        assert_eq!(parse_cpu("1 vCPU"), Some(1024));
        assert_eq!(parse_cpu(".25vcpu"), Some(256));
        assert_eq!(parse_memory("2GB"), Some(2048));
        assert_eq!(parse_memory("0.5 GB"), Some(512));
        assert_eq!(parse_memory("1. gb"), Some(1024));
        for bad in [
            "",
            "vcpu",
            ".vcpu",
            "-1",
            "+1",
            "1e3",
            "1.5",
            "0.1 vcpu",
            "1 2 vcpu",
            "4294967296",
            "99999999 vcpu",
        ] {
            assert_eq!(parse_cpu(bad), None, "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange_to_be_read(text in "[0-9 .a-zA-Zé+-]{0,24}") {
            let _ = (parse_cpu(&text), parse_memory(&text));
        }

        #[test]
        fn a_size_reads_back_as_it_was_written(units in 0..=u32::MAX) {
            prop_assert_eq!(parse_cpu(&units.to_string()), Some(units));
            let vcpus = format!("{}.{:010} vCPU", units / 1024, u64::from(units % 1024) * 10_000_000_000 / 1024);
            prop_assert_eq!(parse_cpu(&vcpus), Some(units));
        }
    }
}
