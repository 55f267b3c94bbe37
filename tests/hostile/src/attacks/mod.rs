//! What is done to the devices: one table of attacks, each against one device that was reset before. After each the device is
//! reset and must serve a driver that means no harm.

mod balloon;
mod block;
mod chains;
mod harmless;
mod net;
mod races;
mod registers;
mod rings;
mod storms;
mod vsock;

pub use races::second_processor;

use crate::machine::say;
use crate::virtio::{Device, Kind};

/// What a device let pass that it should have refused.
pub type Passed = &'static str;

struct Attack {
    name: &'static str,
    /// None for all kinds.
    kind: Option<Kind>,
    run: fn(&Device) -> Result<(), Passed>,
}

const fn on_all(name: &'static str, run: fn(&Device) -> Result<(), Passed>) -> Attack {
    Attack {
        name,
        kind: None,
        run,
    }
}

const fn on(kind: Kind, name: &'static str, run: fn(&Device) -> Result<(), Passed>) -> Attack {
    Attack {
        name,
        kind: Some(kind),
        run,
    }
}

const ATTACKS: &[Attack] = &[
    on_all("queue-sizes", registers::queue_sizes),
    on_all("rings-outside-ram", registers::rings_outside_ram),
    on_all("features-not-offered", registers::features_not_offered),
    on_all("status-out-of-order", registers::status_out_of_order),
    on_all("absent-queues", registers::absent_queues),
    on_all("config-writes", registers::config_writes),
    on_all("registers-of-every-width", registers::registers_of_every_width),
    on_all("looping-chains", chains::looping),
    on_all("overlapping-chains", chains::overlapping),
    on_all("chains-outside-the-table", chains::outside_the_table),
    on_all("huge-lengths", chains::huge_lengths),
    on_all("buffers-outside-ram", chains::buffers_outside_ram),
    on_all("indirect-tables", chains::indirect_tables),
    on_all("wrong-directions", chains::wrong_directions),
    on_all("available-index", rings::available_index),
    on_all("used-overrun", rings::used_overrun),
    on_all("rings-on-rings", rings::rings_on_rings),
    on_all("dma-onto-rings", rings::dma_onto_rings),
    on_all("noise", rings::noise),
    on_all("kick-storm", storms::kicks),
    on_all("reset-mid-flight", storms::reset_mid_flight),
    on_all("changes-under-way", races::changes_under_way),
    on_all("two-drivers", races::two_drivers),
    on(Kind::Block, "bad-requests", block::bad_requests),
    on(Kind::Block, "endless-work", block::endless_work),
    on(Kind::Net, "bad-frames", net::bad_frames),
    on(Kind::Net, "few-receive-buffers", net::few_receive_buffers),
    on(Kind::Vsock, "forged-addresses", vsock::forged_addresses),
    on(Kind::Vsock, "forged-lengths", vsock::forged_lengths),
    on(Kind::Vsock, "forged-credit", vsock::forged_credit),
    on(Kind::Vsock, "too-many-connections", vsock::too_many_connections),
    on(Kind::Vsock, "answers-nobody-takes", vsock::answers_nobody_takes),
    on(Kind::Balloon, "pages-that-are-not", balloon::pages_that_are_not),
    on(Kind::Balloon, "all-memory", balloon::all_memory),
    on(Kind::Balloon, "the-same-pages", balloon::the_same_pages),
    on(Kind::Balloon, "forged-statistics", balloon::forged_statistics),
];

/// Runs the attacks named `name`, or all but the one named `without`, against the devices of one kind; says of each how it
/// went. Returns how many there were.
pub fn run(kind: &str, name: Option<&str>, without: Option<&str>) -> usize {
    let mut count = 0;
    for device in Device::all().filter(|device| device.kind.name() == kind) {
        for attack in ATTACKS {
            let fits = attack.kind.is_none_or(|kind| kind == device.kind);
            let left_out = name.is_some_and(|name| name != attack.name) || without == Some(attack.name);
            if !fits || left_out {
                continue;
            }
            say!("attack {}", attack.name);
            device.reset();
            let passed = (attack.run)(&device);
            device.reset();
            let serves = harmless::is_served(&device);
            match (passed, serves) {
                (Ok(()), Ok(())) => say!("done {}", attack.name),
                (Err(what), _) => say!("passed {}: {what}", attack.name),
                (_, Err(what)) => say!("broken {}: {what}", attack.name),
            }
            count += 1;
        }
    }
    count
}

/// Breaks the queues of every device, kicks it some more, and leaves it so. Returns how many there were.
pub fn leave_all_broken() -> usize {
    let break_it = |device: &Device| {
        let result = rings::available_index(device);
        (0..100).for_each(|kick| device.kick(kick % device.queues));
        result
    };
    Device::all().filter(|device| break_it(device).is_ok()).count()
}
