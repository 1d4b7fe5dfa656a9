//! What the devices of the IoT SENTINEL captures are, by their makers' words.

/// A kind of device: its folder's name, class, make and model. An empty model isn't judged: it isn't known, or no protocol could state it.
pub const KINDS: &[(&str, &str, &str, &str)] = &[
    ("Aria", "scale", "Fitbit", "Aria"),
    ("D-LinkCam", "camera", "D-Link", "DCS-935L"),
    ("D-LinkDayCam", "camera", "D-Link", "DCS-930L"),
    ("D-LinkDoorSensor", "sensor", "D-Link", "DCH-Z110"),
    ("D-LinkHomeHub", "home-hub", "D-Link", "DCH-G020"),
    ("D-LinkSensor", "sensor", "D-Link", "DCH-S150"),
    ("D-LinkSiren", "siren", "D-Link", "DCH-S220"),
    ("D-LinkSwitch", "smart-plug", "D-Link", "DSP-W215"),
    ("D-LinkWaterSensor", "sensor", "D-Link", "DCH-S160"),
    ("EdimaxCam", "camera", "Edimax", "IC-3115W"),
    ("EdimaxPlug1101W", "smart-plug", "Edimax", "SP-1101W"),
    ("EdimaxPlug2101W", "smart-plug", "Edimax", "SP-2101W"),
    ("EdnetCam", "camera", "Ednet", ""),
    ("HomeMaticPlug", "smart-plug", "eQ-3", ""),
    ("HueBridge", "lighting", "Philips Hue", "BSB002"),
    ("HueSwitch", "lighting", "Philips Hue", "BSB002"),
    ("Lightify", "lighting", "Osram", "Lightify"),
    ("MAXGateway", "home-hub", "eQ-3", ""),
    ("SmarterCoffee", "coffee-machine", "Smarter", ""),
    ("TP-LinkPlugHS100", "smart-plug", "TP-Link", "HS100"),
    ("TP-LinkPlugHS110", "smart-plug", "TP-Link", "HS110"),
    ("WeMoInsightSwitch", "smart-plug", "Belkin", "WeMo Insight"),
    ("WeMoLink", "lighting", "Belkin", "WeMo Link"),
    ("WeMoSwitch", "smart-plug", "Belkin", "WeMo Switch"),
    ("Withings", "scale", "Withings", "WS-30"),
    ("iKettle2", "kettle", "Smarter", "iKettle"),
];

/// Class, make and model of a kind.
#[must_use]
pub fn of(kind: &str) -> Option<(&'static str, &'static str, &'static str)> {
    KINDS
        .iter()
        .find(|(name, ..)| *name == kind)
        .map(|(_, class, make, model)| (*class, *make, *model))
}

/// A kind's model: the kind itself where no protocol could state one.
#[must_use]
pub fn model(kind: &str) -> &str {
    of(kind).map(|(_, _, model)| model).filter(|model| !model.is_empty()).unwrap_or(kind)
}
