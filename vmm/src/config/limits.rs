//! Rate limits of devices, as they are configured. What they do is in [`crate::limits`].

use serde::{Deserialize, Serialize};

/// How fast something may go. Both numbers are 1 or more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateConfig {
    /// Bytes or operations per second in the long run.
    pub per_second: u64,
    /// Bytes or operations at once after a pause. A request that is larger is served when the pause was long enough for a
    /// whole burst, and what follows it waits for the difference as well.
    pub burst: u64,
}

/// The limits of a device; each is none for no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitsConfig {
    /// Bytes that the device moves: content of frames, of sectors, of buffers.
    pub bytes: Option<RateConfig>,
    /// Operations: a frame (of up to 64 KiB where the host does the segmentation), a request to a drive, a buffer of random
    /// bytes, a line of the serial port.
    pub ops: Option<RateConfig>,
}

/// What is wrong with limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is 0, not 1 or more; no limit is said by leaving {1} out")]
pub struct LimitsError(pub &'static str, pub &'static str);

impl LimitsConfig {
    /// A limit of bytes alone, for tests.
    #[cfg(test)]
    pub(crate) const fn bytes(per_second: u64, burst: u64) -> Self {
        Self {
            bytes: Some(RateConfig { per_second, burst }),
            ops: None,
        }
    }

    /// A limit of operations alone, for tests.
    #[cfg(test)]
    pub(crate) const fn ops(per_second: u64, burst: u64) -> Self {
        Self {
            bytes: None,
            ops: Some(RateConfig { per_second, burst }),
        }
    }

    /// Checks every value.
    pub fn validate(&self) -> Result<(), LimitsError> {
        let rates = [
            ("bytes", "bytes.per_second", "bytes.burst", self.bytes),
            ("ops", "ops.per_second", "ops.burst", self.ops),
        ];
        for (limit, per_second, burst, rate) in rates {
            match rate {
                Some(RateConfig { per_second: 0, .. }) => return Err(LimitsError(per_second, limit)),
                Some(RateConfig { burst: 0, .. }) => return Err(LimitsError(burst, limit)),
                _ => {}
            }
        }
        Ok(())
    }
}
