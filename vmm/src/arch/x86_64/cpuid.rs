//! What CPUID says to a guest: what KVM supports, less what a guest has no business with, plus this machine's topology
//! and clock. A pure function of its arguments.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// One thread per core, one package: a guest cannot draw conclusions about siblings from vCPUs that the host moves about.
const THREADS_PER_CORE: u32 = 1;

/// The first hypervisor leaf; Linux looks for "KVM" there.
const HYPERVISOR: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;
/// Frequencies, where several hypervisors say them (VMware's and QEMU's convention).
const HYPERVISOR_FREQUENCIES: u32 = 0x4000_0010;
/// KVM's local APIC timer counts nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Bits of leaf 1.
mod leaf_1 {
    pub(super) const EDX_MCE: u32 = 1 << 7;
    pub(super) const EDX_MCA: u32 = 1 << 14;
    pub(super) const EDX_HTT: u32 = 1 << 28;
    pub(super) const ECX_DTES64: u32 = 1 << 2;
    pub(super) const ECX_MONITOR: u32 = 1 << 3;
    pub(super) const ECX_VMX: u32 = 1 << 5;
    pub(super) const ECX_PDCM: u32 = 1 << 15;
    pub(super) const ECX_X2APIC: u32 = 1 << 21;
    pub(super) const ECX_TSC_DEADLINE: u32 = 1 << 24;
    pub(super) const ECX_HYPERVISOR: u32 = 1 << 31;
}

/// What of the machine CPUID speaks about.
#[derive(Clone, Copy, Debug)]
pub struct Topology {
    /// The vCPU, which is also its APIC id.
    pub vcpu: u8,
    pub vcpus: u8,
    /// Whether KVM's local APIC has a TSC-deadline timer.
    pub tsc_deadline: bool,
    /// Frequency of the guest's TSC, where KVM knows it.
    pub tsc_khz: Option<u32>,
}

/// The leaves for one vCPU, from those that KVM supports.
pub fn for_vcpu(supported: &[kvm_cpuid_entry2], topology: Topology) -> Vec<kvm_cpuid_entry2> {
    let mut leaves: Vec<kvm_cpuid_entry2> = supported
        .iter()
        .filter(|leaf| !matches!(leaf.function, 0xb | 0x1f | HYPERVISOR_FREQUENCIES))
        .copied()
        .collect();
    for leaf in &mut leaves {
        adapt(leaf, topology);
    }
    let highest = leaves
        .iter()
        .find(|leaf| leaf.function == 0)
        .map_or(0, |leaf| leaf.eax);
    if highest >= 0xb {
        leaves.extend(extended_topology(0xb, topology));
    }
    if highest >= 0x1f {
        leaves.extend(extended_topology(0x1f, topology));
    }
    if let Some(tsc_khz) = topology.tsc_khz {
        add_frequencies(&mut leaves, tsc_khz);
    }
    leaves
}

/// Bits of an APIC id that number the cores.
fn core_bits(vcpus: u8) -> u32 {
    u32::from(vcpus).next_power_of_two().trailing_zeros()
}

fn adapt(leaf: &mut kvm_cpuid_entry2, topology: Topology) {
    let vcpu = u32::from(topology.vcpu);
    let vcpus = u32::from(topology.vcpus);
    match (leaf.function, leaf.index) {
        (0x1, _) => {
            // Bits 8 to 15 (cache line) stay.
            leaf.ebx = leaf.ebx & 0xffff | vcpus << 16 | vcpu << 24;
            // Machine checks go to the host; without the bit, the guest does not set up 32 banks of registers.
            leaf.edx &= !(leaf_1::EDX_MCE | leaf_1::EDX_MCA | leaf_1::EDX_HTT);
            if vcpus > 1 {
                leaf.edx |= leaf_1::EDX_HTT;
            }
            leaf.ecx &= !(leaf_1::ECX_DTES64 | leaf_1::ECX_MONITOR | leaf_1::ECX_VMX | leaf_1::ECX_PDCM);
            leaf.ecx |= leaf_1::ECX_HYPERVISOR | leaf_1::ECX_X2APIC;
            if topology.tsc_deadline {
                leaf.ecx |= leaf_1::ECX_TSC_DEADLINE;
            }
        }
        // Intel's caches: threads that share each (level in bits 5 to 7 of eax), and cores in the package.
        (0x4, _) if leaf.eax & 0x1f != 0 => {
            let sharing = if leaf.eax >> 5 & 7 >= 3 {
                1 << core_bits(topology.vcpus)
            } else {
                THREADS_PER_CORE
            };
            leaf.eax = leaf.eax & 0x3fff | (sharing - 1) << 14 | ((1 << core_bits(topology.vcpus)) - 1) << 26;
        }
        // Energy hints that name the host's own state.
        (0x6, _) => leaf.ecx &= !(1 << 3),
        // No performance counters, whose registers no one virtualizes here, and nothing about the nesting that is not.
        (0xa | 0x8000_0022 | 0x8000_000a, _) => (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0),
        (KVM_FEATURES, _) => {
            // Interrupt destinations beyond 255 need help from user space.
            leaf.eax &= !(1 << 15);
        }
        (0x8000_0001, _) => {
            // No nested guests (SVM), no instruction sampling, no performance counter extensions; one thread per core.
            leaf.ecx &= !(1 << 2 | 1 << 10 | 1 << 23 | 1 << 24 | 1 << 28);
            leaf.ecx &= !(1 << 1);
            if vcpus > 1 {
                leaf.ecx |= 1 << 1;
            }
        }
        // AMD: how many cores, and how many bits of the APIC id number them.
        (0x8000_0008, _) => leaf.ecx = leaf.ecx & !0xf0ff | core_bits(topology.vcpus) << 12 | (vcpus - 1),
        // AMD's caches, as leaf 4.
        (0x8000_001d, _) if leaf.eax & 0x1f != 0 => {
            let sharing = if leaf.eax >> 5 & 7 >= 3 {
                vcpus
            } else {
                THREADS_PER_CORE
            };
            leaf.eax = leaf.eax & !(0xfff << 14) | (sharing - 1) << 14;
        }
        // AMD: APIC id; core id and threads per core less one; one node.
        (0x8000_001e, _) => {
            leaf.eax = vcpu;
            leaf.ebx = vcpu & 0xff | (THREADS_PER_CORE - 1) << 8;
            leaf.ecx = 0;
            leaf.edx = 0;
        }
        _ => {}
    }
}

/// Leaves 0xb and 0x1f: levels of the APIC id (thread, core), and the end of the list.
fn extended_topology(function: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, shift: u32, processors: u32, kind: u32| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind << 8,
        edx: u32::from(topology.vcpu),
        ..Default::default()
    };
    [
        level(0, 0, THREADS_PER_CORE, 1),
        level(1, core_bits(topology.vcpus), u32::from(topology.vcpus), 2),
        level(2, 0, 0, 0),
    ]
}

fn add_frequencies(leaves: &mut Vec<kvm_cpuid_entry2>, tsc_khz: u32) {
    let Some(hypervisor) = leaves.iter_mut().find(|leaf| leaf.function == HYPERVISOR) else {
        return;
    };
    hypervisor.eax = hypervisor.eax.max(HYPERVISOR_FREQUENCIES);
    leaves.push(kvm_cpuid_entry2 {
        function: HYPERVISOR_FREQUENCIES,
        eax: tsc_khz,
        ebx: APIC_BUS_KHZ,
        ..Default::default()
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        let found: Vec<_> = leaves
            .iter()
            .filter(|leaf| leaf.function == function && leaf.index == index)
            .collect();
        assert_eq!(found.len(), 1, "leaf {function:#x} index {index}");
        *found[0]
    }

    fn topology(vcpu: u8, vcpus: u8) -> Topology {
        Topology {
            vcpu,
            vcpus,
            tsc_deadline: true,
            tsc_khz: Some(2_500_000),
        }
    }

    fn supported() -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0, [0x1f, 0, 0, 0]),
            leaf(1, 0, [0; 4].map(|_: u32| u32::MAX)),
            leaf(4, 3, [3 << 5 | 3 | 0xffff_c000, 0, 0, 0]),
            leaf(0xa, 0, [u32::MAX; 4]),
            leaf(0xb, 0, [9, 9, 9, 99]),
            leaf(0xb, 1, [9, 9, 9, 99]),
            leaf(HYPERVISOR, 0, [KVM_FEATURES, 0, 0, 0]),
            leaf(0x8000_0001, 0, [u32::MAX; 4]),
            leaf(0x8000_0008, 0, [0x3030, 0, 0x7fff, 0]),
            leaf(0x8000_001e, 0, [u32::MAX; 4]),
        ]
    }

    #[test]
    fn a_guest_sees_no_nesting_no_counters_and_no_machine_checks() {
        let leaves = for_vcpu(&supported(), topology(0, 1));
        let one = find(&leaves, 1, 0);
        assert_eq!(one.ecx & leaf_1::ECX_VMX, 0);
        assert_eq!(one.edx & (leaf_1::EDX_MCE | leaf_1::EDX_MCA | leaf_1::EDX_HTT), 0);
        assert_ne!(one.ecx & leaf_1::ECX_HYPERVISOR, 0);
        assert_eq!(find(&leaves, 0x8000_0001, 0).ecx & (1 << 2), 0);
        assert_eq!(find(&leaves, 0xa, 0).eax, 0);
    }

    #[test]
    fn the_clock_is_told_when_it_is_known() {
        let leaves = for_vcpu(&supported(), topology(0, 1));
        assert_eq!(find(&leaves, HYPERVISOR, 0).eax, HYPERVISOR_FREQUENCIES);
        assert_eq!(find(&leaves, HYPERVISOR_FREQUENCIES, 0).eax, 2_500_000);
        let leaves = for_vcpu(
            &supported(),
            Topology {
                tsc_khz: None,
                ..topology(0, 1)
            },
        );
        assert!(leaves.iter().all(|leaf| leaf.function != HYPERVISOR_FREQUENCIES));
    }

    proptest! {
        #[test]
        fn topology_leaves_agree_for_every_vcpu(vcpus in 1u8..=32, pick in 0u8..32) {
            let vcpu = pick % vcpus;
            let leaves = for_vcpu(&supported(), topology(vcpu, vcpus));
            prop_assert_eq!(find(&leaves, 1, 0).ebx >> 24, u32::from(vcpu));
            prop_assert_eq!(find(&leaves, 1, 0).ebx >> 16 & 0xff, u32::from(vcpus));
            for function in [0xb, 0x1f] {
                let core = find(&leaves, function, 1);
                prop_assert_eq!(core.ebx, u32::from(vcpus));
                prop_assert_eq!(core.edx, u32::from(vcpu));
                prop_assert!(1u32 << core.eax >= u32::from(vcpus));
                prop_assert_eq!(find(&leaves, function, 2).ecx >> 8, 0);
            }
            prop_assert_eq!(find(&leaves, 0x8000_001e, 0).eax, u32::from(vcpu));
            prop_assert_eq!(find(&leaves, 0x8000_0008, 0).ecx & 0xff, u32::from(vcpus) - 1);
            prop_assert!(find(&leaves, 4, 3).eax >> 26 < 64);
        }
    }
}
