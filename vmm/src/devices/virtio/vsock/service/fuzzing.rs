//! The queues and the connections of a vsock device, run on the caller's thread in the steps that [`Service::run`] takes.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::{Service, WAKE};
use crate::devices::virtio::vsock::VsockHandle;
use crate::devices::virtio::vsock::handle::Shared;
use crate::devices::virtio::vsock::table::{Key, Table};
use crate::devices::virtio::{Interrupt, QueuePosition};
use crate::metrics::Counters;

pub struct VsockQueues {
    service: Service,
    epoll: Arc<Epoll>,
    wake: EventFd,
    interrupt: Arc<dyn Interrupt>,
}

impl VsockQueues {
    /// The queues are those of reception, transmission and events.
    pub fn new(
        guest_cid: u64,
        memory: GuestMemoryMmap,
        [receive, transmit, event]: [Queue; 3],
        interrupt: Arc<dyn Interrupt>,
    ) -> io::Result<(Self, VsockHandle)> {
        let shared = Arc::new(Shared::default());
        let counters = Arc::new(Counters::default());
        let epoll = Arc::new(Epoll::new()?);
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        epoll.ctl(
            ControlOperation::Add,
            std::os::fd::AsRawFd::as_raw_fd(&wake),
            EpollEvent::new(EventSet::IN, WAKE),
        )?;
        shared.open(wake.try_clone()?);
        let service = Service {
            receive: Some(receive),
            transmit: Some(transmit),
            event,
            burst: 1,
            restored: false,
            memory,
            table: Table::new(guest_cid, Arc::clone(&epoll), Arc::clone(&counters)),
            shared: Arc::clone(&shared),
            counters,
        };
        let queues = Self {
            service,
            epoll,
            wake,
            interrupt,
        };
        Ok((queues, VsockHandle::new(shared)))
    }

    /// Deals with what happened to sockets and handles.
    pub fn sockets(&mut self) -> io::Result<()> {
        let mut ready = [EpollEvent::default(); 64];
        let count = self.epoll.wait(0, &mut ready)?;
        for event in ready.iter().take(count) {
            if event.data() == WAKE {
                let _ = self.wake.read();
                self.service.serve_handles();
            } else if let Some(key) = Key::from_token(event.data()) {
                let events = EventSet::from_bits_truncate(event.events());
                self.service.table.on_socket(key, events);
            }
        }
        Ok(())
    }

    /// Deals with packets of the guest. True where there may be more.
    pub fn transmit(&mut self) -> bool {
        let result = self.service.run_transmit();
        self.service.settle(
            result,
            |service| &mut service.transmit,
            &mut false,
            &*self.interrupt,
        )
    }

    /// Sends packets to the guest. True where there may be more.
    pub fn receive(&mut self) -> bool {
        let result = self.service.run_receive();
        self.service.settle(
            result,
            |service| &mut service.receive,
            &mut false,
            &*self.interrupt,
        )
    }

    /// Ends what the guest has not answered for so long.
    pub fn expire(&mut self, after: Duration) {
        self.service.table.expire(Instant::now() + after);
    }

    /// What a device does first that goes on with another's queues. False for a broken queue.
    pub fn reset_transport(&mut self) -> bool {
        self.service.reset_transport().is_ok()
    }

    pub fn leave(self) -> Vec<QueuePosition> {
        self.service.shared.close();
        self.service.positions()
    }
}
