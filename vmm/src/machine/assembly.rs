//! The devices of a machine while it is built: what is put on the buses, and on which interrupt line.

use std::sync::Arc;

use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::MachineError;
use crate::arch::layout;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::mmio::{
    INTERRUPT_ACK, MmioTransport, QUEUE_INTERRUPT, QUEUE_NOTIFY, RegisterPages,
};
use crate::metrics::Counters;
use crate::vcpu::Buses;

/// The devices of a machine while it is built.
pub(super) struct Assembly<'a> {
    pub(super) vm: &'a VmFd,
    pub(super) memory: &'a GuestMemoryMmap,
    pub(super) counters: &'a Arc<Counters>,
    pub(super) buses: Buses,
    pub(super) registers: Arc<RegisterPages>,
    pub(super) virtio: Vec<Arc<MmioTransport>>,
    pub(super) lines: InterruptLines,
    /// Where KVM leaves the acknowledgements of used buffers. Nobody reads them.
    pub(super) acknowledged: EventFd,
}

/// The events that raise interrupts, and on which line.
#[derive(Default)]
pub(super) struct InterruptLines(Vec<(EventFd, u32)>);

impl InterruptLines {
    /// Lets what is on its way arrive, and nothing more. KVM carries an event to the interrupt controllers on a thread of
    /// its own; whoever reads their state may be faster.
    pub(super) fn settle(&self, vm: &VmFd) -> Result<(), kvm_ioctls::Error> {
        self.0
            .iter()
            .try_for_each(|(event, line)| vm.unregister_irqfd(event, *line))
    }
}

impl Assembly<'_> {
    /// An event that raises an edge on an interrupt line.
    pub(super) fn interrupt_line(&mut self, line: u32) -> Result<EventFd, MachineError> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(MachineError::Event)?;
        self.vm
            .register_irqfd(&event, line)
            .map_err(|source| MachineError::InterruptLine { line, source })?;
        let ours = event.try_clone().map_err(MachineError::Event)?;
        self.lines.0.push((ours, line));
        Ok(event)
    }

    pub(super) fn add_ports(
        &mut self,
        first: u16,
        count: u16,
        device: Arc<dyn crate::bus::BusDevice>,
    ) -> Result<(), MachineError> {
        let first = u64::from(first);
        Ok(self.buses.pio.insert(first..first + u64::from(count), device)?)
    }

    /// Puts a virtio device behind the next transport, in the order in which the guest finds them.
    pub(super) fn add_virtio(
        &mut self,
        device: Box<dyn VirtioDevice>,
    ) -> Result<Arc<MmioTransport>, MachineError> {
        let index = self.virtio.len();
        let base = layout::virtio_mmio_base(index);
        let interrupt = self.interrupt_line(layout::virtio_gsi(index))?;
        let transport = MmioTransport::new(
            device,
            (self.registers.clone(), index),
            self.memory.clone(),
            interrupt,
            self.counters.clone(),
        )
        .map_err(MachineError::Event)?;
        transport.for_each_kick(|queue, kick| {
            let address = IoEventAddress::Mmio(base + QUEUE_NOTIFY);
            self.vm
                .register_ioevent(kick, &address, queue)
                .map_err(|source| MachineError::QueueKick {
                    device: index,
                    queue,
                    source,
                })
        })?;
        self.vm
            .register_ioevent(
                &self.acknowledged,
                &IoEventAddress::Mmio(base + INTERRUPT_ACK),
                QUEUE_INTERRUPT,
            )
            .map_err(|source| MachineError::Acknowledgements {
                device: index,
                source,
            })?;
        let transport = Arc::new(transport);
        self.buses
            .mmio
            .insert(base..base + layout::VIRTIO_MMIO_BYTES, transport.clone())?;
        self.virtio.push(transport.clone());
        Ok(transport)
    }
}
