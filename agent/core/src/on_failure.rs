//! What becomes of a device that nothing forwards for by its rules.

use anteroom_proto::intent::{Device, OnFailure};
use anteroom_proto::mode::Mode;

/// Whether a device is on a wire where the gateway can't do for it what the view says: while no agent runs, and where
/// there is no such port. `cut_off`: the controller has quarantined it.
///
/// What operators chose for it holds; by default a quarantined device stays cut off, or else ending the agent would
/// set it free.
#[must_use]
pub fn is_wire(device: &Device, cut_off: bool) -> bool {
    match device.on_failure {
        OnFailure::Wire => true,
        OnFailure::Closed => false,
        OnFailure::Default => {
            matches!(device.member.mode, Mode::Observe | Mode::Protect)
                && !device.member.quarantined
                && !cut_off
        }
    }
}
