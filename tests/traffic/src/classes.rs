//! What hospitals are made of, and who needs whom for what.

use anteroom_proto::service::Protocol;

use Protocol::{IcmpEcho, Tcp, Udp};

/// How a class's devices are spread.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Many {
    /// This share of all devices.
    Share(f64),
    /// So many in each ward.
    EachWard(usize),
    /// So many, and one more for each 1,000 devices.
    Few(usize),
}

/// A class of devices.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Class {
    pub(crate) name: &'static str,
    pub(crate) many: Many,
    /// Whether it is asleep at weekends.
    pub(crate) weekdays: bool,
    /// Into how many makers its devices fall.
    pub(crate) makers: usize,
}

const fn class(name: &'static str, many: Many, weekdays: bool, makers: usize) -> Class {
    Class { name, many, weekdays, makers }
}

pub(crate) const CLASSES: &[Class] = &[
    class("monitor", Many::Share(0.13), false, 1),
    class("central-station", Many::EachWard(1), false, 1),
    class("pump", Many::Share(0.17), false, 2),
    class("ventilator", Many::Share(0.04), false, 1),
    class("ct", Many::Share(0.006), false, 1),
    class("mri", Many::Share(0.004), true, 1),
    class("ultrasound", Many::Share(0.015), true, 2),
    class("analyser", Many::Share(0.012), false, 1),
    class("workstation", Many::Share(0.36), true, 1),
    class("printer", Many::Share(0.05), false, 1),
    class("nurse-call", Many::EachWard(1), false, 1),
    class("bms-controller", Many::Share(0.06), false, 1),
    class("camera", Many::Share(0.05), false, 1),
    class("pacs", Many::Few(2), false, 1),
    class("ris", Many::Few(1), false, 1),
    class("lis", Many::Few(1), false, 1),
    class("his", Many::Few(2), false, 1),
    class("hl7-engine", Many::Few(1), false, 1),
    class("pump-server", Many::Few(2), false, 2),
    class("domain-controller", Many::Few(2), false, 1),
    class("file-server", Many::Few(2), false, 1),
    class("bms-server", Many::Few(1), false, 1),
    class("recorder", Many::Few(1), false, 1),
    class("alarm-server", Many::Few(1), false, 1),
    class("network-manager", Many::Few(1), false, 1),
    class("jump-host", Many::Few(1), true, 1),
    class("backup", Many::Few(1), false, 1),
];

/// With whom of the other class one of this class has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Those of its ward.
    Ward,
    /// Those of its maker.
    Maker,
    /// All of them.
    All,
}

/// Whom of those it calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fan {
    /// Each of them.
    Each,
    /// One, always the same; now and then, when that fails, another.
    One,
    /// A few that are near, and now and then any.
    Roam,
}

/// When.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// Around the clock.
    Always,
    /// In the day shift.
    Day,
    /// On the last two days of a month and the first.
    MonthEnd,
    /// At night.
    Night,
}

/// Who the far end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Far {
    /// Devices of a class.
    Class(&'static str),
    /// One address without a gateway.
    Address([u8; 4]),
    /// Any of this many first addresses of a /24 outside.
    Cloud([u8; 4], u8),
}

/// Something that a class does.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Need {
    pub(crate) from: &'static str,
    pub(crate) to: Far,
    /// Whether the far end opens.
    pub(crate) reversed: bool,
    pub(crate) scope: Scope,
    pub(crate) fan: Fan,
    pub(crate) protocol: Protocol,
    pub(crate) port: u16,
    /// How often a day, towards each that it calls.
    pub(crate) daily: f64,
    pub(crate) when: When,
}

const fn need(
    from: &'static str,
    to: &'static str,
    scope: Scope,
    fan: Fan,
    (protocol, port): (Protocol, u16),
    daily: f64,
    when: When,
) -> Need {
    Need { from, to: Far::Class(to), reversed: false, scope, fan, protocol, port, daily, when }
}

const fn back(
    from: &'static str,
    to: &'static str,
    scope: Scope,
    fan: Fan,
    service: (Protocol, u16),
    daily: f64,
    when: When,
) -> Need {
    Need { reversed: true, ..need(from, to, scope, fan, service, daily, when) }
}

const fn outside(from: &'static str, to: Far, service: (Protocol, u16), daily: f64) -> Need {
    let (protocol, port) = service;
    let (scope, when) = (Scope::All, When::Always);
    Need { from, to, reversed: false, scope, fan: Fan::One, protocol, port, daily, when }
}

use Fan::{Each, One, Roam};
use Scope::{All, Maker, Ward};
use When::{Always, Day, MonthEnd, Night};

/// The true policy, with how often it is used.
pub(crate) const NEEDS: &[Need] = &[
    need("monitor", "central-station", Ward, Each, (Udp, 24105), 400.0, Always),
    back("monitor", "central-station", Ward, Each, (IcmpEcho, 0), 40.0, Always),
    need("monitor", "printer", Ward, One, (Tcp, 9100), 0.4, Always),
    need("ventilator", "central-station", Ward, Each, (Tcp, 4601), 300.0, Always),
    need("central-station", "hl7-engine", All, Each, (Tcp, 2575), 200.0, Always),
    need("central-station", "alarm-server", All, Each, (Tcp, 8400), 50.0, Always),
    need("nurse-call", "alarm-server", All, Each, (Tcp, 8400), 80.0, Always),
    need("pump", "pump-server", Maker, Each, (Tcp, 443), 24.0, Always),
    // The drug library, every few weeks.
    back("pump", "pump-server", Maker, Each, (Tcp, 1500), 0.05, Night),
    need("pump-server", "his", All, Each, (Tcp, 443), 100.0, Always),
    need("ct", "pacs", All, One, (Tcp, 11112), 60.0, Always),
    need("mri", "pacs", All, One, (Tcp, 11112), 25.0, Day),
    need("ultrasound", "pacs", All, One, (Tcp, 11112), 10.0, Day),
    need("ct", "ris", All, Each, (Tcp, 11112), 50.0, Always),
    need("mri", "ris", All, Each, (Tcp, 11112), 30.0, Day),
    need("ultrasound", "ris", All, Each, (Tcp, 11112), 12.0, Day),
    // Storage commitment comes back.
    back("ct", "pacs", All, One, (Tcp, 4006), 40.0, Always),
    back("mri", "pacs", All, One, (Tcp, 4006), 20.0, Day),
    outside("ct", Far::Cloud([203, 0, 113, 0], 12), (Tcp, 443), 3.0),
    outside("mri", Far::Address([198, 51, 100, 20]), (Tcp, 443), 1.0),
    // The maker looks in once in a while.
    Need { reversed: true, ..outside("ct", Far::Address([198, 51, 100, 7]), (Tcp, 5900), 0.04) },
    need("ris", "hl7-engine", All, Each, (Tcp, 2575), 300.0, Always),
    need("lis", "hl7-engine", All, Each, (Tcp, 2575), 300.0, Always),
    need("hl7-engine", "his", All, Each, (Tcp, 2575), 500.0, Always),
    need("hl7-engine", "ris", All, Each, (Tcp, 2576), 200.0, Always),
    need("analyser", "lis", All, Each, (Tcp, 5001), 100.0, Always),
    back("analyser", "lis", All, Each, (Tcp, 5002), 60.0, Always),
    need("workstation", "his", All, Each, (Tcp, 443), 30.0, Day),
    need("workstation", "pacs", All, Each, (Tcp, 443), 2.0, Day),
    need("workstation", "domain-controller", All, Each, (Tcp, 88), 5.0, Day),
    need("workstation", "domain-controller", All, One, (Tcp, 389), 4.0, Day),
    need("workstation", "file-server", All, Each, (Tcp, 445), 6.0, Day),
    need("workstation", "printer", All, Roam, (Tcp, 9100), 0.8, Day),
    need("printer", "file-server", All, One, (Tcp, 445), 1.5, Day),
    need("camera", "recorder", All, Each, (Tcp, 554), 200.0, Always),
    need("bms-controller", "bms-server", All, Each, (Udp, 47808), 150.0, Always),
    back("bms-controller", "bms-server", All, Each, (Udp, 47808), 150.0, Always),
    need("bms-controller", "bms-controller", Ward, Each, (Udp, 47808), 5.0, Always),
    back("printer", "network-manager", All, Each, (Udp, 161), 96.0, Always),
    back("camera", "network-manager", All, Each, (IcmpEcho, 0), 96.0, Always),
    need("jump-host", "his", All, Roam, (Tcp, 22), 0.5, Day),
    need("jump-host", "pacs", All, Roam, (Tcp, 22), 0.3, Day),
    need("jump-host", "file-server", All, Roam, (Tcp, 3389), 0.3, Day),
    need("jump-host", "domain-controller", All, Roam, (Tcp, 3389), 0.3, Day),
    back("his", "backup", All, Each, (Tcp, 10000), 1.0, Night),
    back("pacs", "backup", All, Each, (Tcp, 10000), 1.0, Night),
    Need { when: MonthEnd, ..outside("his", Far::Address([192, 0, 2, 44]), (Tcp, 22), 3.0) },
    outside("workstation", Far::Address([10, 0, 0, 53]), (Udp, 53), 100.0),
    outside("monitor", Far::Address([10, 0, 0, 123]), (Udp, 123), 20.0),
    outside("pump", Far::Address([10, 0, 0, 123]), (Udp, 123), 20.0),
    outside("ct", Far::Address([10, 0, 0, 53]), (Udp, 53), 20.0),
    outside("ct", Far::Address([10, 0, 0, 123]), (Udp, 123), 20.0),
];
