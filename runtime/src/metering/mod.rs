//! What tasks cost: the ledger line of a task (`ledger`), dated prices (`prices`) and the bill made of both.
//!
//! All of it is pure: a bill can be made again from the ledger and always comes out the same.

mod ledger;
mod prices;
#[cfg(test)]
mod tests;

pub use ledger::line;
pub use prices::{PriceError, PriceList};

use crate::model::Timestamp;
use crate::model::bill::{Bill, BilledLine, LedgerLine};

/// Ephemeral storage that costs nothing, in GiB.
pub const FREE_STORAGE_GIB: u32 = 20;

/// The bill over `lines`; open ones are billed up to `now`.
pub fn bill(
    lines: Vec<LedgerLine>,
    prices: &PriceList,
    minimum_seconds: u64,
    now: Timestamp,
) -> Result<Bill, PriceError> {
    let lines: Vec<BilledLine> = lines
        .into_iter()
        .map(|line| bill_line(line, prices, minimum_seconds, now))
        .collect::<Result<_, _>>()?;
    let total_nanos = lines.iter().map(|line| line.total_nanos).sum();
    Ok(Bill {
        currency: prices.currency().to_owned(),
        minimum_seconds,
        lines,
        total_nanos,
    })
}

/// Seconds billed for an interval in milliseconds: rounded up, at least the minimum.
pub fn billed_seconds(millis: u64, minimum_seconds: u64) -> u64 {
    millis.div_ceil(1000).max(minimum_seconds)
}

fn bill_line(
    line: LedgerLine,
    prices: &PriceList,
    minimum_seconds: u64,
    now: Timestamp,
) -> Result<BilledLine, PriceError> {
    let end = line.closed.map_or(now, |closing| closing.at);
    let millis = end.millis_since(line.opened_at);
    let seconds = billed_seconds(millis, minimum_seconds);
    let paused = line.pauses.until(end).min(millis) / 1000;
    let running = seconds - paused;
    let price = prices.at(&line)?;
    let storage_gib = line.ephemeral_storage_gib.saturating_sub(FREE_STORAGE_GIB);
    let vcpu_nanos = cost(
        [
            (running, price.vcpu_hour_nanos),
            (paused, price.paused_vcpu_hour_nanos),
        ],
        u64::from(line.cpu_units),
        1024,
    );
    let memory_nanos = cost(
        [
            (running, price.gb_hour_nanos),
            (paused, price.paused_gb_hour_nanos()),
        ],
        u64::from(line.memory_mib),
        1024,
    );
    let storage_nanos = cost(
        [(seconds, price.storage_gb_hour_nanos)],
        u64::from(storage_gib),
        1,
    );
    Ok(BilledLine {
        open: line.closed.is_none(),
        billed_seconds: seconds,
        paused_seconds: paused,
        vcpu_nanos,
        memory_nanos,
        storage_nanos,
        total_nanos: vcpu_nanos
            .saturating_add(memory_nanos)
            .saturating_add(storage_nanos),
        line,
    })
}

/// `amount / per_unit` units for so many seconds at a price per unit-hour each, all of it rounded half up to the nano-unit.
fn cost<const PRICES: usize>(seconds_at: [(u64, u64); PRICES], amount: u64, per_unit: u64) -> u64 {
    let divisor = u128::from(per_unit) * 3600;
    let product = seconds_at
        .iter()
        .map(|(seconds, hour_nanos)| u128::from(*seconds) * u128::from(*hour_nanos))
        .fold(0, u128::saturating_add)
        .saturating_mul(u128::from(amount));
    u64::try_from(product.saturating_add(divisor / 2) / divisor).unwrap_or(u64::MAX)
}
