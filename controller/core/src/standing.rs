//! How things are, where that isn't how they were ordered: devices whose trial is over, and devices that their gateways hold
//! back for lack of approvals, are in another mode until an operator orders something else.

use std::collections::BTreeMap;

use anteroom_proto::api::GatewayStatus;
use anteroom_proto::id::MemberId;
use anteroom_proto::mode::Mode;
use anteroom_proto::rollout::{Over, Rollout, Why};

use crate::model::{Device, Model};

/// Devices that aren't in the mode that was ordered, as their gateways tell.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Standing {
    devices: BTreeMap<MemberId, Aside>,
}

/// A device that isn't in the mode that was ordered.
#[derive(Debug, Clone, PartialEq)]
pub struct Aside {
    /// The mode that was ordered.
    pub ordered: Mode,
    /// The mode that it is in.
    pub mode: Mode,
    /// Why.
    pub because: Because,
    /// What the order was: another one isn't what its gateway told this of.
    rollout: Rollout,
}

/// Why a device isn't in the mode that was ordered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Because {
    /// Its trial is over.
    TrialOver(Over),
    /// Two operators must approve of it, and fewer have.
    HeldBack,
}

impl Standing {
    /// What gateways tell of the devices that `model` has behind them.
    #[must_use]
    pub fn of(model: &Model, told: &[GatewayStatus]) -> Self {
        let mut devices = BTreeMap::new();
        for status in told {
            let here = |member| {
                let device = model.devices.get(&member)?;
                (device.attachment.gateway == status.gateway).then_some(device)
            };
            for trial in &status.trials {
                let (Some(device), Some(over)) = (here(trial.member), &trial.over) else {
                    continue;
                };
                let ordered = device.rollout.trial.as_ref();
                if let Some(ordered) = ordered.filter(|ordered| ordered.since == trial.since) {
                    let because = Because::TrialOver(over.clone());
                    devices.insert(trial.member, Aside::of(device, ordered.back_to, because));
                }
            }
            for back in &status.held_back {
                let device = here(back.member).filter(|device| device.mode == back.signed);
                if let Some(device) = device {
                    devices.insert(back.member, Aside::of(device, back.mode, Because::HeldBack));
                }
            }
        }
        Self { devices }
    }

    /// Whether every device is as ordered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// The device, if it isn't in the mode that was ordered.
    #[must_use]
    pub fn get(&self, member: MemberId) -> Option<&Aside> {
        self.devices.get(&member)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (MemberId, &Aside)> {
        self.devices.iter().map(|(member, aside)| (*member, aside))
    }

    /// `model` with these devices in the modes that they are in: as far as it orders of them what was ordered when their
    /// gateways told.
    #[must_use]
    pub fn apply(&self, model: &Model) -> Model {
        let mut now = model.clone();
        for (member, aside) in &self.devices {
            let Some(device) = now.devices.get_mut(member) else { continue };
            if device.mode == aside.ordered && device.rollout == aside.rollout {
                device.mode = aside.mode;
                device.rollout.trial = None;
            }
        }
        now
    }
}

impl Aside {
    fn of(device: &Device, mode: Mode, because: Because) -> Self {
        Self { ordered: device.mode, mode, because, rollout: device.rollout.clone() }
    }

    /// Why, in a few words; devices by the names that `model` has.
    #[must_use]
    pub fn words(&self, model: &Model) -> String {
        match &self.because {
            Because::TrialOver(over) => {
                format!("its trial is over ({})", why_words(&over.why, model))
            }
            Because::HeldBack => {
                "its gateway holds it back: two operators must approve of it, and fewer have".into()
            }
        }
    }
}

/// Why a trial is over, with devices by the names that `model` has.
#[must_use]
pub fn why_words(why: &Why, model: &Model) -> String {
    match why {
        Why::Neighbour { member } => match model.devices.get(member) {
            Some(device) => format!("{}, on the same port, went back", device.name),
            None => why.to_string(),
        },
        _ => why.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use anteroom_proto::approval::Place;
    use anteroom_proto::id::GatewayId;
    use anteroom_proto::rollout::{HeldBackReport, TrialReport};
    use anteroom_proto::time::UnixMillis;

    use super::*;
    use crate::fixture;

    fn status(gateway: GatewayId) -> GatewayStatus {
        let text = format!(
            r#"{{"gateway":"{gateway}","online":true,"wanted":1,"problems":[],"ports":[],"tunnels":[],"drops":{{}},"alarms":[],"bypasses":[]}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn on_trial() -> Model {
        let mut model = fixture::hospital();
        model.set_mode("ct-1", Mode::Protect, 2).unwrap();
        model.enforce_on_trial("ct-1", 60_000, Vec::new(), Place::new(0, 3)).unwrap();
        model
    }

    #[test]
    fn a_device_that_went_back_is_where_it_is_and_no_other() {
        let model = on_trial();
        let (id, device) = model.device_named("ct-1").unwrap();
        let gateway = device.attachment.gateway;
        let mode = |gateway: GatewayId, since: Place, over: Option<Why>| {
            let over = over.map(|why| Over { why, at: UnixMillis(1) });
            let trials = vec![TrialReport { member: id, since, left: 0, over }];
            let told = [GatewayStatus { trials, ..status(gateway) }];
            Standing::of(&model, &told).apply(&model).devices[&id].mode
        };
        let over = || Some(Why::Unconfirmed);
        assert_eq!(mode(gateway, Place::new(0, 3), over()), Mode::Protect);
        assert_eq!(mode(gateway, Place::new(0, 3), None), Mode::Enforce, "it goes on");
        assert_eq!(mode(gateway, Place::new(0, 2), over()), Mode::Enforce, "an earlier one");
        assert_eq!(mode(gateway, Place::new(1, 3), over()), Mode::Enforce, "another branch's");
        let other = GatewayId::from_bytes([0xee; 16]);
        assert_eq!(mode(other, Place::new(0, 3), over()), Mode::Enforce, "another gateway's word");
    }

    #[test]
    fn a_device_that_is_held_back_is_in_the_mode_that_its_gateway_tells() {
        let mut model = fixture::hospital();
        model.set_mode("ct-1", Mode::Enforce, 2).unwrap();
        let (id, device) = model.device_named("ct-1").unwrap();
        let back = HeldBackReport { member: id, signed: Mode::Enforce, mode: Mode::Protect };
        let told = |gateway| [GatewayStatus { held_back: vec![back], ..status(gateway) }];
        let own = Standing::of(&model, &told(device.attachment.gateway));
        assert_eq!(own.apply(&model).devices[&id].mode, Mode::Protect);
        assert!(own.get(id).unwrap().words(&model).contains("two operators must approve"));
        assert!(Standing::of(&model, &told(GatewayId::from_bytes([0xee; 16]))).is_empty());
        // What was ordered since then isn't what it told of.
        let mut later = model.clone();
        later.set_mode("ct-1", Mode::Observe, 3).unwrap();
        assert_eq!(own.apply(&later), later);
        assert!(Standing::of(&later, &told(device.attachment.gateway)).is_empty());
    }

    #[test]
    fn an_order_made_after_it_went_back_is_judged_as_it_stands() {
        let model = on_trial();
        let (id, device) = model.device_named("ct-1").unwrap();
        let over = Some(Over { why: Why::Unconfirmed, at: UnixMillis(1) });
        let trials = vec![TrialReport { member: id, since: Place::new(0, 3), left: 0, over }];
        let told = [GatewayStatus { trials, ..status(device.attachment.gateway) }];
        let standing = Standing::of(&model, &told);
        let mut again = model.clone();
        again.enforce_on_trial("ct-1", 60_000, Vec::new(), Place::new(0, 4)).unwrap();
        assert_eq!(standing.apply(&again), again, "another trial is an order to enforce");
        let mut other = model.clone();
        other.label_device("ct-1", &[(fixture::name("floor"), Some("2".into()))]).unwrap();
        assert_eq!(standing.apply(&other).devices[&id].mode, Mode::Protect, "nothing begins anew");
    }
}
