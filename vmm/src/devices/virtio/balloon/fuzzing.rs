//! The queues of a balloon, served on the caller's thread, and questions to its guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use vm_memory::GuestMemoryMmap;

use super::handle::{Asking, BalloonHandle, Shared};
use super::service::Service;
use super::{Backing, Role};
use crate::control::BalloonReport;
use crate::devices::virtio::worker::Stop;
use crate::devices::virtio::{ActivateError, ActiveQueue, Interrupt};

const MEMORY_MIB: u32 = 128;

pub struct BalloonQueues {
    service: Service,
    handle: BalloonHandle,
    /// Those who wait are answered when it goes.
    _asking: Asking,
    answers: Arc<AtomicUsize>,
    asked: usize,
}

impl BalloonQueues {
    /// Queues for inflating, deflating, statistics and reporting. The memory is the process's own.
    pub fn new(
        memory: GuestMemoryMmap,
        queues: [ActiveQueue; 4],
        interrupt: Arc<dyn Interrupt>,
    ) -> Result<Self, ActivateError> {
        let shared = Arc::new(Shared::new(MEMORY_MIB).map_err(ActivateError::Events)?);
        let roles = [Role::Inflate, Role::Deflate, Role::Statistics, Role::Reporting];
        let queues = roles.into_iter().zip(queues).collect();
        let rest = (Backing::Anonymous, Arc::default(), shared.clone());
        Ok(Self {
            service: Service::new(queues, memory, interrupt, rest)?,
            _asking: Asking::begin(&shared, true),
            handle: BalloonHandle(shared),
            answers: Arc::default(),
            asked: 0,
        })
    }

    /// What a kick has the device's thread do; about `most` requests of each queue. False for a broken queue.
    pub fn kick(&mut self, most: usize) -> std::io::Result<bool> {
        let stop = Stop::new()?;
        let mut served = 0;
        let turned = self.service.turn(&stop, &mut || {
            served += 1;
            if served >= most {
                stop.ask();
            }
        });
        Ok(turned.is_ok())
    }

    /// Asks the guest for its statistics; nobody's time is ever up.
    pub fn ask(&mut self) {
        let answers = self.answers.clone();
        self.asked += 1;
        self.handle.report(
            Duration::from_secs(3600),
            Box::new(move |report: Result<BalloonReport, String>| {
                assert!(report.is_ok_and(|report| report.actual_bytes <= u64::from(MEMORY_MIB) << 20));
                answers.fetch_add(1, Ordering::SeqCst);
            }),
        );
    }

    /// Ends the service: whoever has asked has one answer then.
    pub fn end(self) {
        let Self {
            answers,
            asked,
            _asking,
            ..
        } = self;
        drop(_asking);
        assert_eq!(
            answers.load(Ordering::SeqCst),
            asked,
            "an answer for each question"
        );
    }
}
