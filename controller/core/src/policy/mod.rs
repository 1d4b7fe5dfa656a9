//! The policy: infrastructure, externals, segments, services, rules and tests, in one text file.
//!
//! Allow-only and order-free. [`parse()`] reads the text and keeps where each thing stands, so that a problem
//! can name file, line and key. Whether the devices that it names exist is for [`crate::resolve`] to say.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use anteroom_proto::name::Name;
use anteroom_proto::service::{PortMatch, Protocol};
use anteroom_proto::time::UnixMillis;
use ipnet::Ipv4Net;

use crate::problem::Problems;
use crate::service_catalog;
use crate::surface::Stated;

mod check;
pub(crate) mod drafting;
mod format;
mod parse;
mod template;
#[cfg(test)]
mod tests;

pub use format::format;
pub(crate) use parse::parse_all;
pub use template::template;

/// Longest policy text in bytes.
pub const MAX_POLICY_LEN: usize = 4 * 1024 * 1024;
/// The file name that problems of a model's own policy bear.
pub const POLICY_FILE: &str = "policy.toml";

/// Where something stands in the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Line from 1; 0 where there is none.
    pub line: usize,
    /// Column from 1, in characters.
    pub column: usize,
}

/// A value with the place where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct At<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub position: Position,
}

/// A policy as it was read. Names in it may still name nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Infrastructure by site.
    pub infrastructure: BTreeMap<Name, Infrastructure>,
    /// Externals by name.
    pub externals: BTreeMap<Name, External>,
    /// Segments by name.
    pub segments: BTreeMap<Name, Segment>,
    /// The policy's own services by name.
    pub services: BTreeMap<Name, Service>,
    /// Rules by name.
    pub rules: BTreeMap<Name, Rule>,
    /// Tests by name.
    pub tests: BTreeMap<Name, Test>,
}

/// Servers that every device of a site may use, and the routers that may ask for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Infrastructure {
    /// Where its table stands.
    pub position: Position,
    /// DHCP servers and relays.
    pub dhcp: Vec<Ipv4Addr>,
    /// DNS servers.
    pub dns: Vec<Ipv4Addr>,
    /// NTP servers.
    pub ntp: Vec<Ipv4Addr>,
    /// The own addresses of routers that share one.
    pub routers: Vec<Ipv4Addr>,
}

/// A named prefix outside the overlay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct External {
    /// Where its table stands.
    pub position: Position,
    /// Its prefixes.
    pub prefixes: Vec<Ipv4Net>,
    /// The day on which to look at it again, as midnight UTC.
    pub review: Option<UnixMillis>,
}

/// A named set of members and externals.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Segment {
    /// Where its table stands.
    pub position: Position,
    /// Members by name.
    pub members: Vec<At<Name>>,
    /// Externals by name.
    pub externals: Vec<At<Name>>,
    /// Members by site and labels; all of it must hold.
    pub matches: Option<Match>,
    /// What holds for those of its members that don't say otherwise themselves.
    pub surface: Stated,
    /// Whether two operators must approve before one of its devices is enforced.
    pub two_person: bool,
}

/// What a device must be to belong to a segment: all of it must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Match {
    /// Its gateway's site.
    pub site: Option<At<Name>>,
    /// Its labels.
    pub labels: BTreeMap<Name, String>,
}

/// A name for protocol and ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Service {
    /// Where its table stands.
    pub position: Position,
    /// Its protocols and ports.
    pub ports: Vec<PortMatch>,
    /// Whether its messages name patients, where the policy says so or not.
    pub patient_data: Option<bool>,
    /// Whether machines are looked after by it, where the policy says so or not.
    pub maintenance: Option<bool>,
}

/// A permission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Where its table stands.
    pub position: Position,
    /// Who may open: a segment, a member or an external.
    pub from: At<Name>,
    /// To whom.
    pub to: At<Name>,
    /// What, by the names of services.
    pub services: Vec<At<Name>>,
    /// Whether an enforced device may use it in the clear.
    pub clear: bool,
    /// Whether it survives quarantine.
    pub essential: bool,
    /// When it ends.
    pub expires: Option<UnixMillis>,
    /// Why it is there.
    pub reason: Option<String>,
}

/// What the policy's author wants to hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    /// Where its table stands.
    pub position: Position,
    /// Who would open.
    pub from: At<Name>,
    /// To whom.
    pub to: At<Name>,
    /// What.
    pub services: Vec<At<Name>>,
    /// Whether all of it must be allowed, or none of it.
    pub expect: Expect,
}

/// What a test expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Each pair and each port is allowed.
    Allow,
    /// No pair and no port is allowed.
    Deny,
}

/// Reads `text`; `file` is what problems call it. Needs no model, so it works offline.
///
/// # Errors
/// Every problem that can be seen without a model.
pub fn parse(file: &str, text: &str) -> Result<Policy, Problems> {
    let (policy, problems) = parse_all(file, text);
    problems.or(policy)
}

impl Policy {
    /// The ports of a service, the policy's own or built in.
    #[must_use]
    pub fn ports(&self, service: &str) -> Option<&[PortMatch]> {
        match self.services.get(service) {
            Some(own) => Some(&own.ports),
            None => service_catalog::find(service).map(|built_in| built_in.ports),
        }
    }

    /// Whether messages to a port name patients, as a rule: as its own services say, or the built-in ones.
    #[must_use]
    pub fn patient_data(&self, protocol: Protocol, port: u16) -> bool {
        let own = self.services.values();
        let own = own.map(|service| (service.ports.as_slice(), service.patient_data));
        service_catalog::patient_data(own, protocol, port)
    }

    /// Whether people look after machines by a port, as a rule: as its own services say, or the built-in ones.
    #[must_use]
    pub fn maintenance(&self, protocol: Protocol, port: u16) -> bool {
        let own = self.services.values();
        let own = own.map(|service| (service.ports.as_slice(), service.maintenance));
        service_catalog::maintenance(own, protocol, port)
    }

    /// The policy without its places, so that what it means can be compared.
    #[must_use]
    pub fn unplaced(mut self) -> Self {
        let lists = |list: &mut Vec<At<Name>>| list.iter_mut().for_each(At::unplace);
        self.infrastructure.values_mut().for_each(|entry| entry.position = Position::default());
        self.externals.values_mut().for_each(|entry| entry.position = Position::default());
        self.services.values_mut().for_each(|entry| entry.position = Position::default());
        for segment in self.segments.values_mut() {
            segment.position = Position::default();
            lists(&mut segment.members);
            lists(&mut segment.externals);
            if let Some(site) = segment.matches.as_mut().and_then(|found| found.site.as_mut()) {
                site.unplace();
            }
        }
        for rule in self.rules.values_mut() {
            rule.position = Position::default();
            rule.from.unplace();
            rule.to.unplace();
            lists(&mut rule.services);
        }
        for test in self.tests.values_mut() {
            test.position = Position::default();
            test.from.unplace();
            test.to.unplace();
            lists(&mut test.services);
        }
        self
    }
}

impl<T> At<T> {
    fn unplace(&mut self) {
        self.position = Position::default();
    }
}

/// A name as a key: names with a dot in them need quotes.
pub(crate) fn key(name: &Name) -> String {
    if name.as_str().contains('.') { format!("\"{name}\"") } else { name.to_string() }
}
