//! Prices are data: dated, per region, per architecture, on demand or spot. The built-in list holds AWS's own public
//! prices for Fargate on Linux in us-east-1; an operator's list takes its place.

use serde::Deserialize;

use crate::model::Timestamp;
use crate::model::bill::{Architecture, LedgerLine, Purchase};

const BUILT_IN: &str = include_str!("prices.json");
/// A price of this region holds wherever no other does.
const ANY_REGION: &str = "*";

#[derive(Debug, thiserror::Error)]
pub enum PriceError {
    #[error("the price list cannot be read: {0}")]
    Format(#[from] serde_json::Error),
    #[error("the price list has no {purchase:?} price for {architecture:?} in {region} at {at}", at = .at.0)]
    Missing {
        region: String,
        architecture: Architecture,
        purchase: Purchase,
        at: Timestamp,
    },
}

/// Prices per hour in nano-units of the currency.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// From this time on, until a later price of the same kind.
    pub from_ms: u64,
    /// `*` for any.
    pub region: String,
    pub architecture: Architecture,
    pub purchase: Purchase,
    pub vcpu_hour_nanos: u64,
    pub gb_hour_nanos: u64,
    pub storage_gb_hour_nanos: u64,
    /// Of a paused task.
    #[serde(default)]
    pub paused_vcpu_hour_nanos: u64,
    /// Of a paused task; the same as of a running one where it is not given, since it holds its memory.
    paused_gb_hour_nanos: Option<u64>,
}

impl Price {
    pub fn paused_gb_hour_nanos(&self) -> u64 {
        self.paused_gb_hour_nanos.unwrap_or(self.gb_hour_nanos)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceList {
    currency: String,
    prices: Vec<Price>,
}

impl PriceList {
    /// AWS's public prices.
    pub fn built_in() -> Result<PriceList, PriceError> {
        PriceList::parse(BUILT_IN)
    }

    pub fn parse(json: &str) -> Result<PriceList, PriceError> {
        Ok(serde_json::from_str(json)?)
    }

    pub fn currency(&self) -> &str {
        &self.currency
    }

    /// The price in force when the line was opened: the line's own region before any region, the latest before earlier.
    pub fn at(&self, line: &LedgerLine) -> Result<&Price, PriceError> {
        self.prices
            .iter()
            .filter(|price| price.architecture == line.architecture && price.purchase == line.purchase)
            .filter(|price| price.region == line.region || price.region == ANY_REGION)
            .filter(|price| price.from_ms <= line.opened_at.0)
            .max_by_key(|price| (price.region == line.region, price.from_ms))
            .ok_or_else(|| PriceError::Missing {
                region: line.region.clone(),
                architecture: line.architecture,
                purchase: line.purchase,
                at: line.opened_at,
            })
    }
}
