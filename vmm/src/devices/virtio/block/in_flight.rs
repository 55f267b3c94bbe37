//! The requests that a drive's ring has and has not given back. Where they come from and go to is not here.

use std::io;
use std::os::fd::RawFd;

use vm_memory::VolatileSlice;

use super::disk::{Disk, Pending, Work};
use super::ring::Ring;
use super::{MAX_REQUEST_BYTES, QUEUE_SIZE};
use crate::positioned::{MAX_SLICES, advance, vector};

/// Requests in flight, each with what the kernel reads and writes for it. While there is one, this does not go away.
pub(super) struct InFlight<'a> {
    ring: &'a mut Ring,
    disk: &'a Disk,
    /// By token.
    slots: Vec<Option<Flight<'a>>>,
    free: Vec<usize>,
    /// What all of them move, together.
    bytes: u64,
    ended: Vec<Ended>,
}

/// The head of a chain, and how many bytes were written to it.
pub(super) type Ended = (u16, u32);

struct Flight<'a> {
    head: u16,
    /// The work, and the buffers from `next` on, are what is left to do.
    pending: Pending<'a>,
    next: usize,
    left: u64,
    /// Those buffers as the kernel has them.
    vectors: Vec<libc::iovec>,
}

impl<'a> InFlight<'a> {
    pub(super) fn new(ring: &'a mut Ring, disk: &'a Disk) -> Self {
        let slots = usize::from(QUEUE_SIZE);
        Self {
            ring,
            disk,
            slots: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            bytes: 0,
            ended: Vec::new(),
        }
    }

    /// Readable when a request has ended.
    pub(super) fn event(&self) -> RawFd {
        self.ring.event()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// Most bytes that another request may move; none if there can be no other. All together are bounded as one is: a
    /// device that is to stop waits for them.
    pub(super) fn room(&self) -> Option<u64> {
        match self.free.len() {
            0 => None,
            // One that is too long by itself is refused for that.
            _ if self.is_empty() => Some(u64::MAX),
            _ => Some(MAX_REQUEST_BYTES - self.bytes),
        }
    }

    /// Whether a request is for the ring; if not, this thread is to carry it out.
    pub(super) fn takes(&self, pending: &Pending<'_>) -> bool {
        self.ring.takes(pending.work)
    }

    /// Prepares a request, of at most [`InFlight::room`] bytes, to be submitted.
    pub(super) fn begin(&mut self, head: u16, pending: Pending<'a>) {
        let moves = matches!(pending.work, Work::Move(..));
        if moves && pending.bytes == 0 {
            return self.end(head, &pending, Ok(()));
        }
        let Some(token) = self.free.pop() else {
            return self.end(head, &pending, Err(io::ErrorKind::ResourceBusy.into()));
        };
        self.bytes += pending.bytes;
        self.slots[token] = Some(Flight {
            head,
            next: 0,
            left: pending.bytes,
            vectors: Vec::new(),
            pending,
        });
        self.push(token);
    }

    /// Has the ring do what is left of a request.
    fn push(&mut self, token: usize) {
        let Some(flight) = &mut self.slots[token] else {
            return;
        };
        let pushed = match flight.pending.work {
            Work::Sync => self.ring.push_sync(token as u64),
            Work::Move(direction, offset) => {
                let left = flight.pending.buffers[flight.next..].iter();
                let guards = left.filter(|slice| !slice.is_empty()).take(MAX_SLICES);
                flight.vectors.clear();
                flight
                    .vectors
                    .extend(guards.map(|slice| vector(&slice.ptr_guard_mut())));
                // SAFETY: the vectors stay in their slot as they are, and the slices that they are made of, whose memory is
                // mapped for reading and writing, live as long as this, until the ring gives the token back: see `Drop`.
                // Guest memory is only ever accessed as raw bytes.
                unsafe {
                    self.ring
                        .push_move(direction, &flight.vectors, offset, token as u64)
                }
            }
        };
        if let Err(error) = pushed {
            self.land(token, Err(error));
        }
    }

    /// Submits what was prepared.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        while self.ring.has_pushed() {
            self.ring.enter(0)?;
        }
        Ok(())
    }

    /// As [`InFlight::submit`], then waits until a request has come back.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        self.submit()?;
        self.ring.enter(1)
    }

    /// Takes what has ended since the last time. What was done in part goes on: there is something to submit again.
    pub(super) fn take_ended(&mut self) -> std::vec::Drain<'_, Ended> {
        while let Some((token, moved)) = self.ring.ended() {
            if let Ok(token) = usize::try_from(token) {
                self.came_back(token, moved);
            }
        }
        self.ended.drain(..)
    }

    pub(super) fn has_to_submit(&self) -> bool {
        self.ring.has_pushed()
    }

    fn came_back(&mut self, token: usize, moved: io::Result<usize>) {
        let Some(Some(flight)) = self.slots.get_mut(token) else {
            return;
        };
        let result = match (flight.pending.work, moved) {
            // The kernel cannot do it beside this thread, for want of memory or of one of its own.
            (work, Err(error)) if is_passing(&error) => self
                .disk
                .carry_out(work, &mut flight.pending.buffers[flight.next..]),
            (Work::Sync, moved) => moved.map(drop),
            (Work::Move(..), Err(error)) => Err(error),
            (Work::Move(direction, offset), Ok(moved)) => match flight.go_on(moved) {
                Ok(true) => Ok(()),
                Ok(false) => {
                    flight.pending.work = Work::Move(direction, offset + moved as u64);
                    return self.push(token);
                }
                Err(error) => Err(error),
            },
        };
        self.land(token, result);
    }

    fn land(&mut self, token: usize, result: io::Result<()>) {
        if let Some(flight) = self.slots[token].take() {
            self.free.push(token);
            self.bytes -= flight.pending.bytes;
            self.end(flight.head, &flight.pending, result);
        }
    }

    fn end(&mut self, head: u16, pending: &Pending<'_>, result: io::Result<()>) {
        self.ended.push((head, self.disk.end(pending, result)));
    }
}

impl Flight<'_> {
    /// Notes that so many bytes more were moved; returns whether these are all.
    fn go_on(&mut self, moved: usize) -> io::Result<bool> {
        self.left = match (moved, self.left.checked_sub(moved as u64)) {
            (0, _) | (_, None) => return Err(io::ErrorKind::UnexpectedEof.into()),
            (_, Some(left)) => left,
        };
        let left: &mut [VolatileSlice<'_>] = &mut self.pending.buffers[self.next..];
        self.next += advance(left, moved)?;
        Ok(self.left == 0)
    }
}

fn is_passing(error: &io::Error) -> bool {
    let passing = [libc::EAGAIN, libc::EINTR, libc::ECANCELED, libc::ENOMEM];
    error.raw_os_error().is_some_and(|code| passing.contains(&code))
}

impl Drop for InFlight<'_> {
    /// The kernel must have let go of everything.
    fn drop(&mut self) {
        while !self.is_empty() {
            if let Err(error) = self.wait() {
                eprintln!("berth-vmm: cannot wait for requests in flight: {error}");
                std::process::abort();
            }
            while let Some((token, _)) = self.ring.ended() {
                if let Some(Some(_)) = usize::try_from(token).ok().map(|token| self.slots[token].take()) {
                    self.free.push(token as usize);
                }
            }
        }
    }
}
