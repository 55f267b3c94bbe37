//! The limits of a machine's devices: made with the machine, changed by clients of its control socket.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::config::{LimitsConfig, LimitsError, MachineConfig};
use crate::control::LimitedDevice;
use crate::devices::serial::SerialPort;
use crate::devices::virtio::net::NetThrottles;
use crate::devices::virtio::throttle::Throttle;
use crate::metrics::Counters;

/// The throttles of all devices, in the order of the configuration. The serial port has its limits itself.
pub(super) struct DeviceLimits {
    /// With the drives' ids.
    pub(super) drives: Vec<(String, Arc<Throttle>)>,
    pub(super) nets: Vec<NetThrottles>,
    /// None for a machine without an entropy device.
    pub(super) entropy: Option<Arc<Throttle>>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SetLimitsError {
    #[error("the limits cannot be set: {0}")]
    Limits(#[from] LimitsError),
    #[error("the machine has no drive {0:?}")]
    NoDrive(String),
    #[error("the machine has no network device {index}: it has {there}, counted from 0")]
    NoNet { index: usize, there: usize },
    #[error("the machine has no entropy device")]
    NoEntropy,
    #[error("the machine has no serial port")]
    NoSerial,
}

impl DeviceLimits {
    pub(super) fn new(config: &MachineConfig, counters: &Arc<Counters>) -> io::Result<Self> {
        let throttle = |limits, throttled: fn(&Counters) -> &AtomicU64| {
            Throttle::new(limits, counters.clone(), throttled).map(Arc::new)
        };
        let drives = config
            .drives
            .iter()
            .map(|drive| Ok((drive.id.clone(), throttle(drive.limits, |c| &c.block_throttled)?)))
            .collect::<io::Result<_>>()?;
        let nets = config
            .nets
            .iter()
            .map(|net| {
                Ok(NetThrottles {
                    receive: throttle(net.rx_limits, |c| &c.net_rx_throttled)?,
                    transmit: throttle(net.tx_limits, |c| &c.net_tx_throttled)?,
                })
            })
            .collect::<io::Result<_>>()?;
        let entropy = config
            .entropy
            .then(|| throttle(config.entropy_limits, |c| &c.entropy_throttled))
            .transpose()?;
        Ok(Self {
            drives,
            nets,
            entropy,
        })
    }

    /// Gives a device other limits.
    pub(super) fn set(
        &self,
        device: &LimitedDevice,
        limits: Option<LimitsConfig>,
        serial: Option<&SerialPort>,
    ) -> Result<(), SetLimitsError> {
        if let Some(limits) = &limits {
            limits.validate()?;
        }
        let throttle = match device {
            LimitedDevice::Drive(id) => {
                let found = self.drives.iter().find(|(other, _)| other == id);
                &found.ok_or_else(|| SetLimitsError::NoDrive(id.clone()))?.1
            }
            LimitedDevice::NetRx(index) => &self.net(*index)?.receive,
            LimitedDevice::NetTx(index) => &self.net(*index)?.transmit,
            LimitedDevice::Entropy => self.entropy.as_ref().ok_or(SetLimitsError::NoEntropy)?,
            LimitedDevice::Serial => {
                serial.ok_or(SetLimitsError::NoSerial)?.set_limits(limits);
                return Ok(());
            }
        };
        throttle.change(limits);
        Ok(())
    }

    fn net(&self, index: usize) -> Result<&NetThrottles, SetLimitsError> {
        let there = self.nets.len();
        self.nets.get(index).ok_or(SetLimitsError::NoNet { index, there })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_net_and_no_more() -> DeviceLimits {
        DeviceLimits {
            drives: vec![("root".into(), Throttle::open())],
            nets: vec![NetThrottles {
                receive: Throttle::open(),
                transmit: Throttle::open(),
            }],
            entropy: None,
        }
    }

    #[test]
    fn each_device_has_its_own_limits() {
        let limits = one_net_and_no_more();
        let set = |device, ops| limits.set(&device, ops, None);
        let one = Some(LimitsConfig::ops(1, 1));
        let throttles = [
            (LimitedDevice::Drive("root".into()), &limits.drives[0].1),
            (LimitedDevice::NetRx(0), &limits.nets[0].receive),
            (LimitedDevice::NetTx(0), &limits.nets[0].transmit),
        ];
        for (device, throttle) in throttles {
            set(device.clone(), one).unwrap();
            throttle.charge(1_000_000, 0);
            let refused = |throttle: &Arc<Throttle>| !throttle.allows(0);
            let all = [
                &limits.drives[0].1,
                &limits.nets[0].receive,
                &limits.nets[0].transmit,
            ];
            assert_eq!(all.into_iter().filter(|throttle| refused(throttle)).count(), 1);
            assert!(refused(throttle));
            set(device, None).unwrap();
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        let limits = one_net_and_no_more();
        let said = |device| limits.set(&device, None, None).unwrap_err().to_string();
        assert_eq!(
            said(LimitedDevice::Drive("other".into())),
            "the machine has no drive \"other\""
        );
        for device in [LimitedDevice::NetRx(1), LimitedDevice::NetTx(1)] {
            assert_eq!(
                said(device),
                "the machine has no network device 1: it has 1, counted from 0"
            );
        }
        assert_eq!(said(LimitedDevice::Entropy), "the machine has no entropy device");
        assert_eq!(said(LimitedDevice::Serial), "the machine has no serial port");
        let nothing = limits.set(&LimitedDevice::NetRx(0), Some(LimitsConfig::bytes(0, 1)), None);
        assert_eq!(
            nothing.unwrap_err().to_string(),
            "the limits cannot be set: bytes.per_second is 0, not 1 or more; no limit is said by leaving bytes out"
        );
    }
}
