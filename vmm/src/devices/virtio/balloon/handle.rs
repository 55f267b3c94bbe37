//! What the host has of a balloon: how large it is to be, and what its guest says of its memory. The device's thread asks
//! the guest; who wants to know gets what it says, or when the time is up what it said last.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use super::PAGE_BYTES;
use crate::control::server::BalloonDone;
use crate::control::{BalloonReport, MemoryStatistics};

/// Memory that no target takes from a guest, in MiB: what its kernel and its init live in.
pub const FLOOR_MIB: u32 = 64;
/// Most that wait for the guest; whoever comes then gets what it said last.
const MAX_WAITING: usize = 64;
const PAGES_PER_MIB: u32 = (1 << 20) / PAGE_BYTES as u32;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{target_mib} MiB is too much for the balloon: of {memory_mib} MiB the guest keeps {FLOOR_MIB}")]
pub struct TargetTooLarge {
    target_mib: u32,
    memory_mib: u32,
}

/// The balloon, seen from outside the device.
#[derive(Clone)]
pub struct BalloonHandle(pub(super) Arc<Shared>);

impl BalloonHandle {
    /// How much of the guest's memory is to be in the balloon. The driver finds it in the configuration, which is for the
    /// transport to show.
    pub fn set_target(&self, target_mib: u32) -> Result<(), TargetTooLarge> {
        let memory_mib = self.0.memory_mib;
        if target_mib > memory_mib.saturating_sub(FLOOR_MIB) {
            return Err(TargetTooLarge {
                target_mib,
                memory_mib,
            });
        }
        let pages = target_mib * PAGES_PER_MIB;
        self.0.target_pages.store(pages, Ordering::SeqCst);
        Ok(())
    }

    /// Has `done` called with what the guest answers, or after `wait` with what it said last. At once for no time, a device
    /// that is not at work, or a driver without statistics.
    pub fn report(&self, wait: Duration, done: BalloonDone) {
        let mut questions = self.0.questions();
        if wait.is_zero() || !questions.guest_answers || questions.waiting.len() >= MAX_WAITING {
            let report = self.0.report_of(&questions);
            drop(questions);
            return done(Ok(report));
        }
        let until = Instant::now() + wait;
        questions.waiting.push(Waiting { until, done });
        self.0.anybody_waits.store(true, Ordering::Release);
        // The counter of an event that is read each time it is seen cannot overflow.
        let _ = self.0.asked.write(1);
    }
}

/// What the device and its thread share with the handle.
pub(super) struct Shared {
    pub(super) memory_mib: u32,
    pub(super) target_pages: AtomicU32,
    /// As the driver says.
    pub(super) actual_pages: AtomicU32,
    /// Somebody has a question.
    pub(super) asked: EventFd,
    /// Spares the device's thread the lock and the clock.
    anybody_waits: AtomicBool,
    questions: Mutex<Questions>,
}

#[derive(Default)]
struct Questions {
    guest_answers: bool,
    waiting: Vec<Waiting>,
    last: Option<(MemoryStatistics, Instant)>,
}

struct Waiting {
    until: Instant,
    done: BalloonDone,
}

impl Shared {
    pub(super) fn new(memory_mib: u32) -> io::Result<Self> {
        Ok(Self {
            memory_mib,
            target_pages: AtomicU32::new(0),
            actual_pages: AtomicU32::new(0),
            asked: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            anybody_waits: AtomicBool::new(false),
            questions: Mutex::default(),
        })
    }

    /// Whether a balloon of this machine may be that large.
    pub(super) fn allows(&self, target_pages: u32) -> bool {
        target_pages.div_ceil(PAGES_PER_MIB) <= self.memory_mib.saturating_sub(FLOOR_MIB)
    }

    pub(super) fn anybody_waits(&self) -> bool {
        self.anybody_waits.load(Ordering::Acquire)
    }

    /// When the first of those who wait has waited long enough.
    pub(super) fn first_deadline(&self) -> Option<Instant> {
        let questions = self.questions();
        questions.waiting.iter().map(|waiting| waiting.until).min()
    }

    /// The guest has answered; none if nobody can make anything of it.
    pub(super) fn answered(&self, statistics: Option<MemoryStatistics>) {
        if let Some(statistics) = statistics {
            self.questions().last = Some((statistics, Instant::now()));
        }
        self.answer(|_| true);
    }

    /// Answers those whose time is up.
    pub(super) fn answer_late(&self) {
        if self.anybody_waits() {
            let now = Instant::now();
            self.answer(|waiting| waiting.until <= now);
        }
    }

    fn answer(&self, whom: impl Fn(&Waiting) -> bool) {
        let mut questions = self.questions();
        let report = self.report_of(&questions);
        let (answered, waiting) = std::mem::take(&mut questions.waiting).into_iter().partition(whom);
        questions.waiting = waiting;
        self.anybody_waits
            .store(!questions.waiting.is_empty(), Ordering::Release);
        drop(questions);
        let answered: Vec<Waiting> = answered;
        for waiting in answered {
            (waiting.done)(Ok(report.clone()));
        }
    }

    fn report_of(&self, questions: &Questions) -> BalloonReport {
        let bytes = |pages: &AtomicU32| u64::from(pages.load(Ordering::SeqCst)) * PAGE_BYTES;
        let last = questions.last.as_ref();
        BalloonReport {
            target_bytes: bytes(&self.target_pages),
            // The driver may say anything.
            actual_bytes: bytes(&self.actual_pages).min(u64::from(self.memory_mib) << 20),
            statistics: last.map(|(statistics, _)| statistics.clone()),
            statistics_age_ms: last
                .map(|(_, at)| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
        }
    }

    fn questions(&self) -> MutexGuard<'_, Questions> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// While it lives there is somebody who asks the guest.
pub(super) struct Asking(Arc<Shared>);

impl Asking {
    pub(super) fn begin(shared: &Arc<Shared>, guest_answers: bool) -> Self {
        shared.questions().guest_answers = guest_answers;
        Self(shared.clone())
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.questions().guest_answers = false;
        self.0.answer(|_| true);
    }
}
