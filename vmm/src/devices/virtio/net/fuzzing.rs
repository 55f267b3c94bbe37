//! The two queues of a network device, run on the caller's thread. In place of the tap there may be any descriptor of
//! packets, as nothing is configured.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_queue::Queue;
use vm_memory::GuestMemoryMmap;

use super::rx::Receive;
use super::tx::Transmit;
use crate::devices::virtio::QueuePosition;
use crate::devices::virtio::throttle::Throttle;
use crate::metrics::Counters;

pub struct NetQueues {
    receive: Receive,
    transmit: Transmit,
}

impl NetQueues {
    pub fn new(memory: GuestMemoryMmap, receive: Queue, transmit: Queue, features: u64) -> io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let throttle = Throttle::new(None, counters.clone(), |counters| &counters.net_rx_throttled)?;
        let throttle = Arc::new(throttle);
        Ok(Self {
            receive: Receive::new(
                receive,
                memory.clone(),
                features,
                Arc::clone(&counters),
                Arc::clone(&throttle),
            ),
            transmit: Transmit::new(transmit, memory, features, counters, throttle),
        })
    }

    /// Whether there may be more to receive at once; none for a broken queue.
    pub fn receive(&mut self, tap: &OwnedFd) -> Option<bool> {
        self.receive.tap_is_ready();
        self.receive.run(tap).ok().map(|progress| progress.more)
    }

    /// Whether there may be more to send at once; none for a broken queue.
    pub fn transmit(&mut self, tap: &OwnedFd) -> Option<bool> {
        self.transmit.run(tap).ok().map(|progress| progress.more)
    }

    pub fn leave(self) -> [QueuePosition; 2] {
        [self.receive.leave(), self.transmit.position()]
    }
}
