//! Rules out of a MUD file, with what was seen of each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::Ipv4Addr;

use anteroom_proto::id::MemberId;
use anteroom_proto::name::Name;
use anteroom_proto::service::{PortMatch, Protocol};
use anteroom_proto::time::UnixMillis;

use super::{Allow, Mud, Opens, Peer, SEGMENT_URN};
use crate::decide::Party;
use crate::history::{Edge, History, Way};
use crate::policy::drafting::{Drafting, Space, covers, date, quoted};
use crate::policy::{Infrastructure, POLICY_FILE};
use crate::problem::Problems;
use crate::resolve::{Resolved, SideId};
use crate::suggest::ServerKind;

/// Most conversations that are told as seen and not in the file.
const MOST_SEEN: usize = 50;

/// Most ended rules that a new one says it opens again.
const MOST_ENDED: usize = 5;

/// What a MUD file comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// The whole policy: what there was, and what is new.
    pub text: String,
    /// Names of the new rules.
    pub rules: Vec<String>,
    /// What the file permits and the policy does already.
    pub already: usize,
    /// What can't be a rule before somebody says who is meant, for people.
    pub questions: Vec<String>,
    /// Conversations of these devices that were seen and aren't in the file, for people.
    pub beyond: Vec<String>,
}

/// What was seen of something that a file permits.
#[derive(Debug, Default)]
struct Seen {
    devices: BTreeSet<Party>,
    flows: u64,
}

/// Who a peer is here.
enum Meant {
    Side(Name),
    Network(ipnet::Ipv4Net),
    Infrastructure(ServerKind),
    Unknown(&'static str),
}

/// A site's servers of one kind.
fn servers(entry: &Infrastructure, kind: ServerKind) -> &[Ipv4Addr] {
    match kind {
        ServerKind::Dhcp => &entry.dhcp,
        ServerKind::Dns => &entry.dns,
        ServerKind::Ntp => &entry.ntp,
    }
}

/// Writes rules for what `mud` permits the devices of `class` behind the policy of `resolved`, whose lines all stay. What the policy opens already is left out. `peers`
/// says who is meant by words of the file, such as `my-controller`, by names that the policy knows.
///
/// # Errors
/// When what would come out can't be a policy: the problems that it would have.
pub fn draft(
    resolved: &Resolved,
    history: &History,
    file: &str,
    mud: &Mud,
    class: &str,
    peers: &BTreeMap<String, Name>,
    now: UnixMillis,
) -> Result<Draft, Problems> {
    let members = of(resolved, class);
    let mut writer = Writer {
        resolved,
        mud,
        history,
        peers,
        members: &members,
        drafting: Drafting::new(resolved, now),
        now,
        segments: String::new(),
        text: String::new(),
        draft: Draft {
            text: String::new(),
            rules: Vec::new(),
            already: 0,
            questions: Vec::new(),
            beyond: Vec::new(),
        },
    };
    let own = writer.own(class);
    writer.draft.questions.extend(mud.unread.iter().cloned());
    for (opens, far, allows) in writer.bundles() {
        writer.rule(file, &own, opens, &far, &allows);
    }
    writer.beyond();
    let Writer { drafting, segments, text, mut draft, .. } = writer;
    let heads = [drafting.external_text, segments, drafting.service_text].concat();
    draft.text = without(&resolved.model.policy, file);
    if !draft.text.is_empty() && !draft.text.ends_with('\n') {
        draft.text.push('\n');
    }
    if !text.is_empty() {
        let _ = write!(
            draft.text,
            "\n# Drafted from the MUD file {file}. Read it before you apply it.\n{heads}{text}"
        );
    }
    for (title, lines) in [
        ("isn't a rule until somebody says who is meant", &draft.questions),
        ("was seen of these devices, and its maker doesn't name it", &draft.beyond),
    ] {
        if !lines.is_empty() {
            let _ = write!(draft.text, "\n# MUD file {file}: this {title}.\n");
            lines.iter().for_each(|line| draft.text.push_str(&format!("# - {line}\n")));
        }
    }
    Resolved::from_text(&resolved.model, POLICY_FILE, &draft.text)?;
    Ok(draft)
}

/// A policy without what was told of the same file before, which is told anew.
fn without(text: &str, file: &str) -> String {
    let title = format!("# MUD file {file}: this ");
    let mut told = false;
    let mut kept: Vec<&str> = Vec::new();
    for line in text.lines() {
        told = line.starts_with(&title) || (told && line.starts_with("# - "));
        if line.starts_with(&title) && kept.last().is_some_and(|line| line.is_empty()) {
            kept.pop();
        }
        if !told {
            kept.push(line);
        }
    }
    kept.iter().flat_map(|line| [*line, "\n"]).collect()
}

/// The members that a class names: by the label, or a segment or member of that name.
pub(super) fn of(resolved: &Resolved, class: &str) -> BTreeSet<MemberId> {
    let labelled =
        |labels: &BTreeMap<Name, String>| labels.get("class").is_some_and(|value| value == class);
    let devices = resolved
        .model
        .devices
        .iter()
        .filter(|(_, device)| labelled(&device.labels))
        .map(|(id, _)| *id);
    let found: BTreeSet<MemberId> = devices.collect();
    if found.is_empty() {
        return resolved
            .side_named(class)
            .map(|id| resolved.side(id).members.iter().copied().collect())
            .unwrap_or_default();
    }
    found
}

struct Writer<'a> {
    resolved: &'a Resolved,
    mud: &'a Mud,
    history: &'a History,
    peers: &'a BTreeMap<String, Name>,
    members: &'a BTreeSet<MemberId>,
    drafting: Drafting<'a>,
    now: UnixMillis,
    segments: String,
    text: String,
    draft: Draft,
}

impl Writer<'_> {
    /// The name of the segment that these devices are: the policy's, or a new one.
    fn own(&mut self, class: &str) -> String {
        let same = |side: &crate::resolve::Side| {
            side.externals.is_empty()
                && side.members.len() == self.members.len()
                && side.members.iter().all(|id| self.members.contains(id))
        };
        let sides: Vec<_> = self.resolved.sides().filter(|(_, side)| same(side)).collect();
        let segment =
            sides.iter().find(|(_, side)| self.resolved.policy.segments.contains_key(&side.name));
        if let Some((_, side)) = segment
            .filter(|_| !self.members.is_empty())
            .or_else(|| sides.first().filter(|_| !self.members.is_empty()))
        {
            return side.name.to_string();
        }
        let name = self.drafting.name(Space::Ends, class);
        let value = toml_edit::Value::from(class);
        let _ = write!(
            self.segments,
            "\n[segment.{}]\nmatch = {{ label.class = {value} }}\n",
            quoted(&name)
        );
        name
    }

    /// What the file permits, by who opens and to whom.
    fn bundles(&self) -> Vec<(Opens, Peer, Vec<Allow>)> {
        let mut bundles: BTreeMap<(Opens, &Peer), Vec<Allow>> = BTreeMap::new();
        for allow in &self.mud.allows {
            bundles.entry((allow.opens, &allow.peer)).or_default().push(allow.clone());
        }
        bundles.into_iter().map(|((opens, peer), allows)| (opens, peer.clone(), allows)).collect()
    }

    fn meant(&self, peer: &Peer) -> Meant {
        if let Some(name) = self.peers.get(&peer.word()) {
            return Meant::Side(name.clone());
        }
        match peer {
            Peer::Network(net) => Meant::Network(*net),
            Peer::Controller(uri) if uri == "urn:ietf:params:mud:dns" => {
                Meant::Infrastructure(ServerKind::Dns)
            }
            Peer::Controller(uri) if uri == "urn:ietf:params:mud:ntp" => {
                Meant::Infrastructure(ServerKind::Ntp)
            }
            Peer::Controller(uri) => {
                let ours = uri.strip_prefix(SEGMENT_URN).and_then(|name| name.parse::<Name>().ok());
                let known = ours.filter(|name| {
                    self.resolved.side_named(name.as_str()).is_some()
                        || self.drafting.is_taken(Space::Ends, name.as_str())
                });
                known.map_or(
                    Meant::Unknown("a class of machines that only people here know"),
                    Meant::Side,
                )
            }
            Peer::Dns(_) => Meant::Unknown("a name, while rules have addresses: which are they?"),
            Peer::MyController => Meant::Unknown("whoever controls these devices"),
            Peer::SameManufacturer | Peer::Manufacturer(_) => Meant::Unknown("devices of a maker"),
            Peer::Model(_) => Meant::Unknown("devices of a model"),
            Peer::LocalNetworks => Meant::Unknown("everything nearby, which no rule should open"),
            Peer::Anybody => Meant::Unknown("anybody at all, which no rule should open"),
        }
    }

    /// What the file permits with name or time servers: infrastructure opens just that to the devices of a site which lists some, and nothing else.
    fn infrastructure(
        &mut self,
        kind: ServerKind,
        opens: Opens,
        peer: &Peer,
        services: &[PortMatch],
    ) {
        let way = if opens == Opens::Device { "to" } else { "from" };
        let (served, others): (Vec<PortMatch>, Vec<PortMatch>) = services
            .iter()
            .partition(|service| opens == Opens::Device && ServerKind::of(**service) == Some(kind));
        let words = |services: &[PortMatch]| {
            services.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        };
        if !others.is_empty() {
            self.draft.questions.push(format!(
                "{} {way} {}: no infrastructure opens that; who is it, and is it needed?",
                words(&others),
                peer.word()
            ));
        }
        if served.is_empty() {
            return;
        }
        let sites: BTreeSet<&Name> =
            self.members.iter().filter_map(|id| self.resolved.site_of(*id)).collect();
        let lists = |site: &Name| {
            let found = self.resolved.policy.infrastructure.get(site);
            found.is_some_and(|entry| !servers(entry, kind).is_empty())
        };
        let without: Vec<String> =
            sites.iter().filter(|site| !lists(site)).map(|site| format!("\"{site}\"")).collect();
        if without.is_empty() && !sites.is_empty() {
            self.draft.already += served.len();
            return;
        }
        let whose = match without.as_slice() {
            [] => "the site's servers".to_owned(),
            [site] => format!("the servers of site {site}"),
            sites => format!("the servers of sites {}", sites.join(", ")),
        };
        self.draft.questions.push(format!(
            "{} {way} {}: name {whose} under [infrastructure]",
            words(&served),
            peer.word()
        ));
    }

    fn rule(&mut self, file: &str, own: &str, opens: Opens, peer: &Peer, allows: &[Allow]) {
        let services: Vec<PortMatch> = allows.iter().map(|allow| allow.service).collect();
        let listed = services.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        let way = if opens == Opens::Device { "to" } else { "from" };
        let far = match self.meant(peer) {
            Meant::Side(name) => name.to_string(),
            Meant::Infrastructure(kind) => {
                return self.infrastructure(kind, opens, peer, &services);
            }
            Meant::Unknown(who) => {
                let seen = self.seen(opens, None, &services);
                self.draft.questions.push(format!(
                    "{listed} {way} {} ({who}). {}",
                    peer.word(),
                    told(&seen)
                ));
                return;
            }
            Meant::Network(net) => self.drafting.external(&BTreeSet::from([net])),
        };
        let open: Vec<PortMatch> =
            services.iter().copied().filter(|service| !self.opened(&far, opens, service)).collect();
        self.draft.already += services.len() - open.len();
        if open.is_empty() {
            return;
        }
        let seen = self.seen(opens, Some(peer), &open);
        let again = self.again(&far, opens, peer, &open);
        let mut called: Vec<(String, Vec<PortMatch>)> = Vec::new();
        for service in open {
            // A maker's word is for these ports, not for what else usually goes with them.
            let name = self.drafting.service_within(service, &services);
            match called.iter_mut().find(|(known, _)| *known == name) {
                Some((_, ports)) => ports.push(service),
                None => called.push((name, vec![service])),
            }
        }
        let (from, to) =
            if opens == Opens::Device { (own, far.as_str()) } else { (far.as_str(), own) };
        let name = self.drafting.name(Space::Rules, &format!("mud-{from}-to-{to}"));
        let outside = matches!(peer, Peer::Network(_));
        let wide = called
            .iter()
            .flat_map(|(_, ports)| ports)
            .any(|service| service.first == 1 && service.last == u16::MAX);
        let by = self
            .mud
            .manufacturer
            .as_deref()
            .map(|maker| format!(" of {}", maker.replace('#', " ")))
            .unwrap_or_default();
        let _ = write!(
            self.text,
            "\n# From the MUD file {file}{by}: its maker says that the device needs this.\n# {}\n",
            told(&seen)
        );
        if !again.is_empty() {
            let _ = writeln!(
                self.text,
                "# Somebody wrote an end to what this opens again: {}.",
                again.join(", ")
            );
        }
        if wide {
            self.text.push_str(
                "# It names no port, so this opens all of them: name those that are needed.\n",
            );
        }
        let called: Vec<String> = called.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        let _ = write!(
            self.text,
            "[rule.{}]\nfrom = \"{from}\"\nto = \"{to}\"\nservices = [{}]\n",
            quoted(&name),
            called.join(", ")
        );
        if outside {
            self.text.push_str("clear = true # an address without a gateway\n");
        }
        self.draft.rules.push(name);
    }

    /// Whether the policy opens it already, for all of both ends.
    fn opened(&self, far: &str, opens: Opens, service: &PortMatch) -> bool {
        let own_holds = |side: SideId| {
            let side = self.resolved.side(side);
            let all = self.members.iter().all(|id| side.members.binary_search(id).is_ok());
            all && !self.members.is_empty()
        };
        let wanted = self.resolved.side_named(far).map(|id| self.resolved.side(id));
        let far_holds = |side: SideId| {
            let side = self.resolved.side(side);
            let Some(wanted) = wanted else {
                return side.externals.iter().any(|external| external.as_str() == far);
            };
            wanted.members.iter().all(|id| side.members.binary_search(id).is_ok())
                && wanted.externals.iter().all(|name| side.externals.contains(name))
        };
        self.resolved.rules.iter().any(|rule| {
            let (own_side, far_side) =
                if opens == Opens::Device { (rule.from, rule.to) } else { (rule.to, rule.from) };
            let open = covers(rule, service) && !rule.expired(self.now);
            open && own_holds(own_side) && far_holds(far_side)
        })
    }

    /// Rules that opened some of it until they ended, for people.
    fn again(&self, far: &str, opens: Opens, peer: &Peer, services: &[PortMatch]) -> Vec<String> {
        let externals = &self.resolved.policy.externals;
        let wanted = self.resolved.side_named(far).map(|id| self.resolved.side(id));
        let far_is_of = |side: SideId| {
            let side = self.resolved.side(side);
            let near = |net: &ipnet::Ipv4Net| {
                let mut known = side.externals.iter().filter_map(|name| externals.get(name));
                known.any(|one| {
                    one.prefixes.iter().any(|own| own.contains(net) || net.contains(own))
                })
            };
            wanted.is_some_and(|wanted| {
                wanted.members.iter().any(|id| side.members.binary_search(id).is_ok())
                    || wanted.externals.iter().any(|name| side.externals.contains(name))
            }) || matches!(peer, Peer::Network(net) if near(net))
        };
        let ended = self.resolved.rules.iter().filter_map(|rule| {
            let end = rule.expires.filter(|_| rule.expired(self.now))?;
            let (own_side, far_side) =
                if opens == Opens::Device { (rule.from, rule.to) } else { (rule.to, rule.from) };
            let mut own = self.resolved.side(own_side).members.iter();
            let some = services.iter().any(|service| covers(rule, service));
            (some && own.any(|id| self.members.contains(id)) && far_is_of(far_side))
                .then(|| format!("rule.{} opened it until {}", rule.name, date(end)))
        });
        let mut ended: Vec<String> = ended.collect();
        if let Some(more) = ended.len().checked_sub(MOST_ENDED).filter(|more| *more > 0) {
            ended.truncate(MOST_ENDED);
            ended.push(format!("and {more} more"));
        }
        ended
    }

    /// Conversations of these devices: who of them, the other end, and whether the device opened.
    fn edges(&self) -> impl Iterator<Item = (Edge, Party, Party, Opens)> + '_ {
        let own = |party: Party| matches!(party, Party::Member(id) if self.members.contains(&id));
        self.history.edges().filter(|edge| edge.way != Way::Dropped).filter_map(move |edge| {
            if own(edge.from) {
                Some((edge, edge.from, edge.to, Opens::Device))
            } else if own(edge.to) {
                Some((edge, edge.to, edge.from, Opens::Peer))
            } else {
                None
            }
        })
    }

    fn is(&self, party: Party, peer: &Peer) -> bool {
        match (self.meant(peer), party) {
            (Meant::Network(net), Party::Address(address)) => net.contains(&address),
            (Meant::Network(net), Party::Member(id)) => {
                self.address(id).is_some_and(|address| net.contains(&address))
            }
            (Meant::Side(name), party) => {
                self.resolved.side_named(name.as_str()).is_some_and(|id| match party {
                    Party::Member(member) => {
                        self.resolved.side(id).members.binary_search(&member).is_ok()
                    }
                    Party::Address(address) => self.resolved.external_holds(id, address),
                })
            }
            (Meant::Infrastructure(kind), Party::Address(address)) => {
                let mut all = self.resolved.policy.infrastructure.values();
                all.any(|entry| servers(entry, kind).contains(&address))
            }
            (Meant::Infrastructure(_), Party::Member(_)) => false,
            // Who is meant isn't known, so nothing speaks against it.
            (Meant::Unknown(_), _) => true,
        }
    }

    fn address(&self, id: MemberId) -> Option<Ipv4Addr> {
        let device = self.resolved.model.devices.get(&id)?;
        device.addresses.iter().find(|net| net.prefix_len() == 32).map(ipnet::Ipv4Net::addr)
    }

    fn seen(&self, opens: Opens, peer: Option<&Peer>, services: &[PortMatch]) -> Seen {
        let mut seen = Seen::default();
        for (edge, own, far, opened) in self.edges() {
            let fits = services.iter().any(|service| service.matches(edge.protocol, edge.port));
            if opened == opens && fits && peer.is_none_or(|peer| self.is(far, peer)) {
                seen.devices.insert(own);
                seen.flows = seen.flows.saturating_add(edge.counts.flows);
            }
        }
        seen
    }

    /// What these devices did that the file doesn't name.
    fn beyond(&mut self) {
        type Talk = (Opens, String, PortMatch);
        let mut beyond: BTreeMap<Talk, Seen> = BTreeMap::new();
        for (edge, own, far, opens) in self.edges() {
            let silent = edge.protocol != Protocol::Udp && !edge.answered();
            let named = self.mud.allows.iter().any(|allow| {
                allow.opens == opens
                    && allow.service.matches(edge.protocol, edge.port)
                    && self.is(far, &allow.peer)
            });
            if silent || named {
                continue;
            }
            let service = PortMatch { protocol: edge.protocol, first: edge.port, last: edge.port };
            let seen = beyond
                .entry((opens, crate::parties::label(self.resolved, far), service))
                .or_default();
            seen.devices.insert(own);
            seen.flows = seen.flows.saturating_add(edge.counts.flows);
        }
        let more = beyond.len().saturating_sub(MOST_SEEN);
        let lines = beyond.into_iter().take(MOST_SEEN).map(|((opens, far, service), seen)| {
            let way = if opens == Opens::Device { "to" } else { "from" };
            format!("{service} {way} {far}: {}", told(&seen))
        });
        let mut lines: Vec<String> = lines.collect();
        if more > 0 {
            lines.push(format!("and {more} more"));
        }
        self.draft.beyond = lines;
    }
}

fn told(seen: &Seen) -> String {
    match seen.devices.len() {
        0 => "Seen here: nothing of it.".to_owned(),
        1 => format!("Seen here: {} flows of 1 device.", seen.flows),
        more => format!("Seen here: {} flows of {more} devices.", seen.flows),
    }
}
