//! The bill.

use super::{Runtime, RuntimeError};
use crate::metering;
use crate::model::bill::{Bill, BillQuery, LedgerLine};
use crate::state::keys;

impl Runtime {
    /// Lines in the order in which they opened.
    pub async fn bill(&self, query: BillQuery) -> Result<Bill, RuntimeError> {
        let context = &self.shared.context;
        let lines = context.records.list::<LedgerLine>(keys::LEDGER).await?;
        let mut lines: Vec<LedgerLine> = lines
            .into_iter()
            .map(|record| record.value)
            .filter(|line| query.task.as_ref().is_none_or(|task| line.task == *task))
            .filter(|line| query.since.is_none_or(|since| line.opened_at >= since))
            .collect();
        lines.sort_by(|a, b| (a.opened_at, &a.task).cmp(&(b.opened_at, &b.task)));
        let minimum = self.shared.settings.minimum_billed_seconds;
        Ok(metering::bill(
            lines,
            &self.shared.prices,
            minimum,
            context.clock.now(),
        )?)
    }
}
