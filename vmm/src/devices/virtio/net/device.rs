//! The network device as its transport sees it: features, configuration, life of its thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
    VIRTIO_NET_F_MTU,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::rx::Receive;
use super::service::{self, Events};
use super::tx::Transmit;
use super::{QUEUE_SIZE, tap};
use crate::devices::virtio::throttle::Throttle;
use crate::devices::virtio::worker::Worker;
use crate::devices::virtio::{ActivateError, Activation, QueuePosition, VirtioDevice};
use crate::metrics::Counters;

/// The limits of a network device.
#[derive(Clone)]
pub struct NetThrottles {
    /// Frames to the guest.
    pub receive: Arc<Throttle>,
    /// Frames from the guest.
    pub transmit: Arc<Throttle>,
}

/// A network device on a tap (virtio 1.3, 5.1).
pub struct Net {
    tap: Arc<OwnedFd>,
    mac: [u8; 6],
    mtu: Option<u16>,
    counters: Arc<Counters>,
    throttles: NetThrottles,
    worker: Worker,
}

impl Net {
    /// `tap` was opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR` and does not block.
    pub fn new(
        tap: OwnedFd,
        mac: [u8; 6],
        mtu: Option<u16>,
        counters: Arc<Counters>,
        throttles: NetThrottles,
        worker: Worker,
    ) -> Self {
        Self {
            tap: Arc::new(tap),
            mac,
            mtu,
            counters,
            throttles,
            worker,
        }
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let mut bits = vec![
            VIRTIO_F_VERSION_1,
            VIRTIO_RING_F_EVENT_IDX,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
        ];
        if self.mtu.is_some() {
            bits.push(VIRTIO_NET_F_MTU);
        }
        bits.into_iter().fold(0, |features, bit| features | 1 << bit)
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // `struct virtio_net_config`: mac, status, max_virtqueue_pairs, mtu.
        let mut config = [0; 12];
        config[..6].copy_from_slice(&self.mac);
        config[10..].copy_from_slice(&self.mtu.unwrap_or(0).to_le_bytes());
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = config.get(from..).unwrap_or_default().iter().copied();
        for (byte, value) in data.iter_mut().zip(rest.chain(std::iter::repeat(0))) {
            *byte = value;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        self.worker.stop();
        let Activation {
            memory,
            queues,
            interrupt,
            features,
            ..
        } = activation;
        let got = queues.len();
        let Ok([receive, transmit]) = <[_; 2]>::try_from(queues) else {
            return Err(ActivateError::Queues { expected: 2, got });
        };
        tap::configure(&self.tap, features).map_err(ActivateError::Backend)?;
        let throttles = self.throttles.clone();
        let events = Events::new(receive.kick, transmit.kick, &self.tap, throttles.clone())
            .map_err(ActivateError::Events)?;
        let tap = Arc::clone(&self.tap);
        let counters = Arc::clone(&self.counters);
        self.worker.serve(move |stop| {
            // Made on the thread: they hold pointers into guest memory, which do not travel.
            let receive = Receive::new(
                receive.queue,
                memory.clone(),
                features,
                Arc::clone(&counters),
                throttles.receive,
            );
            let transmit = Transmit::new(
                transmit.queue,
                memory,
                features,
                Arc::clone(&counters),
                throttles.transmit,
            );
            service::run(
                stop,
                &events,
                &tap,
                receive,
                transmit,
                interrupt.as_ref(),
                &counters,
            )
        })
    }

    fn stop(&mut self) -> Vec<QueuePosition> {
        self.worker.stop()
    }
}
