//! A device and its registers written down, and taken up again by a device of the same kind on another machine.

use serde::{Deserialize, Serialize};

use super::queue_setup::QueueSetup;
use super::registers::*;
use super::{Interrupt, MmioTransport, QueuePosition};
use crate::devices::virtio::DeviceState;

/// What of a device the driver knows or has set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TransportState {
    device: u32,
    status: u32,
    interrupt_status: u32,
    config_generation: u32,
    queue_select: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    queues: Vec<QueueSetup>,
    /// How far the device came in each queue; empty for one that was not at work.
    positions: Vec<QueuePosition>,
    own: DeviceState,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportStateError {
    #[error("the driver of the device of type {0} has given it up, or broken it")]
    Broken(u32),
    #[error("the snapshot has a device of type {then} where this machine has one of type {now}")]
    OtherDevice { then: u32, now: u32 },
    #[error(
        "the driver of the device of type {device} uses the features {missing:#x}, which this one has not"
    )]
    Features { device: u32, missing: u64 },
    #[error("the queues of the device of type {0} are not this one's")]
    Queues(u32),
    #[error("the device of type {0} was in a state in which this one cannot be")]
    State(u32),
    #[error("the device of type {0} cannot go on")]
    Activate(u32),
}

impl MmioTransport {
    /// Ends the device's work for good, and returns what another one needs to go on with it.
    pub fn leave(&self) -> Result<TransportState, TransportStateError> {
        let mut state = self.state();
        let page = &self.shared.page;
        let device = state.device.device_type();
        let positions = state.device.stop();
        let status = page.get(STATUS);
        let at_work = status & DRIVER_OK != 0;
        let broken = status & (FAILED | DEVICE_NEEDS_RESET) != 0;
        let used = state.device.queues_with(state.driver_features);
        if broken || at_work && positions.len() != used {
            return Err(TransportStateError::Broken(device));
        }
        Ok(TransportState {
            device,
            status,
            interrupt_status: page.get(INTERRUPT_STATUS),
            config_generation: page.get(CONFIG_GENERATION),
            queue_select: state.queue_select,
            device_features_select: state.device_features_select,
            driver_features_select: state.driver_features_select,
            driver_features: state.driver_features,
            queues: state.queues.clone(),
            positions,
            own: state.device.state(),
        })
    }

    /// Goes on where another device of this kind left. The driver is told that the configuration may have changed: the
    /// disk, the address or the context id are this machine's own.
    pub fn take_up(&self, then: &TransportState) -> Result<(), TransportStateError> {
        use TransportStateError as Error;
        let mut state = self.state();
        let page = &self.shared.page;
        let device = state.device.device_type();
        if then.device != device {
            return Err(Error::OtherDevice {
                then: then.device,
                now: device,
            });
        }
        let missing = then.driver_features & !state.device.features();
        if missing != 0 {
            return Err(Error::Features { device, missing });
        }
        let sizes = |queues: &[QueueSetup]| queues.iter().map(QueueSetup::max_size).collect::<Vec<_>>();
        if sizes(&then.queues) != sizes(&state.queues) {
            return Err(Error::Queues(device));
        }
        if !state.device.restore(then.own) {
            return Err(Error::State(device));
        }
        state.queues.clone_from(&then.queues);
        state.queue_select = then.queue_select;
        state.device_features_select = then.device_features_select;
        state.driver_features_select = then.driver_features_select;
        state.driver_features = then.driver_features;
        page.set(CONFIG_GENERATION, then.config_generation);
        page.set(INTERRUPT_STATUS, then.interrupt_status);
        page.set(STATUS, then.status);
        state.publish(page);
        state.publish_config(page);
        if then.status & DRIVER_OK == 0 {
            return Ok(());
        }
        if !state.activate(&self.shared, Some(&then.positions)) {
            return Err(Error::Activate(device));
        }
        // What the driver had kicked for and the other device had not seen is found by looking.
        for kick in &state.kicks {
            // The counter of an event that was just made cannot overflow.
            let _ = kick.write(1);
        }
        self.shared.signal_config();
        Ok(())
    }
}
