//! Serving the queue of a drive that has a ring: what is available is submitted together, and ends in any order.

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::disk::{Begun, Disk};
use super::in_flight::InFlight;
use super::ring::Ring;
use crate::devices::virtio::worker::{BATCH, QueueError, QueueService, Stop};
use crate::devices::virtio::{Interrupt, QueuePosition};

/// As [`QueueService::run`], by a ring. What was begun is waited for before this returns.
pub(super) fn run(
    mut service: QueueService,
    stop: &Stop,
    disk: &Disk,
    ring: &mut Ring,
) -> Vec<QueuePosition> {
    let memory = service.memory.clone();
    let mut flights = InFlight::new(ring, disk);
    let served = serve(&mut service, &memory, stop, disk, &mut flights);
    drop(flights);
    service.positions(served)
}

fn serve<'a>(
    service: &mut QueueService,
    memory: &'a GuestMemoryMmap,
    stop: &Stop,
    disk: &Disk,
    flights: &mut InFlight<'a>,
) -> Result<(), QueueError> {
    service.watch(stop, disk.throttle(), Some(flights.event()))?;
    while service.wait(stop, disk.throttle())? {
        for queue in &mut service.queues {
            let (queue, interrupt) = (&mut queue.queue, &*service.interrupt);
            while !stop.asked() && serve_batch(queue, memory, interrupt, stop, disk, flights)? {}
        }
    }
    for queue in &mut service.queues {
        land(&mut queue.queue, memory, &*service.interrupt, flights)?;
    }
    Ok(())
}

/// What is in the queue after a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    Nothing,
    Perhaps,
    /// What must wait: for the limits, or until something has ended.
    Held,
}

/// Begins a batch of what is in the queue, and tells the driver of what has ended. False when there is nothing to do but to
/// wait: for the driver, for the ring or for the limits.
pub(super) fn serve_batch<'a>(
    queue: &mut Queue,
    memory: &'a GuestMemoryMmap,
    interrupt: &dyn Interrupt,
    stop: &Stop,
    disk: &Disk,
    flights: &mut InFlight<'a>,
) -> Result<bool, QueueError> {
    queue.disable_notification(memory)?;
    let (rest, done) = begin(queue, memory, stop, disk, flights)?;
    flights.submit().map_err(QueueError::Wait)?;
    let told = tell(queue, memory, interrupt, flights, done)?;
    if flights.has_to_submit() {
        return Ok(true);
    }
    Ok(match rest {
        Rest::Perhaps => true,
        Rest::Held => told,
        Rest::Nothing => queue.enable_notification(memory)?,
    })
}

/// Waits for what is in flight, and tells the driver of it.
pub(super) fn land(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    interrupt: &dyn Interrupt,
    flights: &mut InFlight<'_>,
) -> Result<(), QueueError> {
    while !flights.is_empty() {
        flights.wait().map_err(QueueError::Wait)?;
        tell(queue, memory, interrupt, flights, false)?;
    }
    Ok(())
}

/// Begins a batch, of which the driver finds in the queue what this thread has done; returns whether there was any. Between
/// requests the device can be stopped, however dear they are.
fn begin<'a>(
    queue: &mut Queue,
    memory: &'a GuestMemoryMmap,
    stop: &Stop,
    disk: &Disk,
    flights: &mut InFlight<'a>,
) -> Result<(Rest, bool), QueueError> {
    let mut done = false;
    for _ in 0..BATCH {
        let Some(room) = flights.room().filter(|_| !stop.asked()) else {
            return Ok((Rest::Held, done));
        };
        let Some(chain) = queue.iter(memory)?.next() else {
            return Ok((Rest::Nothing, done));
        };
        let head = chain.head_index();
        let written = match disk.begin(memory, chain, room) {
            Begun::Refused => {
                queue.go_to_previous_position();
                return Ok((Rest::Held, done));
            }
            Begun::Pending(pending) if flights.takes(&pending) => {
                flights.begin(head, pending);
                continue;
            }
            Begun::Pending(pending) => {
                // What was there before goes on meanwhile.
                flights.submit().map_err(QueueError::Wait)?;
                disk.finish(pending)
            }
            Begun::Done(written) => written,
        };
        queue.add_used(memory, head, written)?;
        done = true;
    }
    Ok((Rest::Perhaps, done))
}

/// Gives back the chains of what has ended, and interrupts the driver once for all of them and what was `done` before. Returns
/// whether there were any.
fn tell(
    queue: &mut Queue,
    memory: &GuestMemoryMmap,
    interrupt: &dyn Interrupt,
    flights: &mut InFlight<'_>,
    done: bool,
) -> Result<bool, QueueError> {
    let mut told = done;
    for (head, written) in flights.take_ended() {
        queue.add_used(memory, head, written)?;
        told = true;
    }
    if told && queue.needs_notification(memory)? {
        interrupt.signal_queue();
    }
    Ok(told)
}
