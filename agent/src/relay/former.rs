//! Where relays were that operators took out: no gateway is to be reached there, unless it is known to be there itself.

use std::net::{IpAddr, SocketAddr};

use anteroom_proto::authority::{Authority, AuthorityChain};

/// Most addresses that are kept of relays that were named by a host's name: where they were met.
const MOST_MET: usize = 64;

/// Addresses of relays that were taken out.
#[derive(Debug, Default)]
pub(super) struct Former {
    /// Where those were met that are gone, the oldest first, and those that aren't.
    met: Vec<IpAddr>,
    present: Vec<IpAddr>,
    /// What the data plane was told.
    told: Vec<IpAddr>,
}

impl Former {
    /// Relays that were met `gone` are left, and those that are met at `present` are not.
    pub(super) fn note(
        &mut self,
        gone: impl Iterator<Item = IpAddr>,
        present: impl Iterator<Item = IpAddr>,
    ) {
        for ip in gone {
            put_last(&mut self.met, ip);
        }
        let surplus = self.met.len().saturating_sub(MOST_MET);
        self.met.drain(..surplus);
        self.present = present.collect();
    }

    /// What the data plane is to be told, if that is another thing than before, or if a relay was `taken_out` just now: all
    /// addresses, the oldest first, and by which document.
    pub(super) fn told(
        &mut self,
        chain: Option<&AuthorityChain>,
        taken_out: bool,
    ) -> Option<(Vec<IpAddr>, u64)> {
        let chain = chain?;
        let mut all = Vec::new();
        for document in chain.documents() {
            addresses(document).for_each(|ip| put_last(&mut all, ip));
        }
        self.met.iter().for_each(|ip| put_last(&mut all, *ip));
        let now: Vec<IpAddr> = addresses(chain.newest()).chain(self.present.clone()).collect();
        all.retain(|ip| !now.contains(ip));
        let news = taken_out || all != self.told;
        self.told.clone_from(&all);
        news.then(|| (all, chain.newest().number))
    }
}

fn put_last(all: &mut Vec<IpAddr>, ip: IpAddr) {
    all.retain(|known| *known != ip);
    all.push(ip);
}

/// The addresses of all that may relay, those aside that are hosts' names.
fn addresses(authority: &Authority) -> impl Iterator<Item = IpAddr> {
    let relays = authority.relays.iter().flat_map(|relay| &relay.addresses);
    let controllers = authority.controllers.iter().flat_map(|one| &one.addresses);
    let literal = |text: &String| text.parse::<SocketAddr>().ok();
    relays.chain(controllers).filter_map(literal).map(|at| at.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use anteroom_proto::authority::Relay;
    use anteroom_proto::key::IdentityKey;

    use super::*;
    use crate::testkit::Organisation;

    fn relay(number: u8, at: &str) -> Relay {
        let key = IdentityKey::from_seed(&[number; 32]).public();
        Relay { name: format!("relay-{number}").parse().unwrap(), key, addresses: vec![at.into()] }
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn whatever_was_named_once_and_is_not_now_is_told_once_and_again_when_one_goes() {
        let mut organisation = Organisation::new(&[]);
        let mut former = Former::default();
        let told = |former: &mut Former, organisation: &Organisation, taken_out| {
            former.told(Some(&organisation.followed()), taken_out).map(|told| told.0)
        };
        organisation.extend(|next| {
            next.relays = vec![relay(1, "192.0.2.1:4433"), relay(2, "north.example:4433")];
        });
        assert_eq!(told(&mut former, &organisation, false), None, "none was ever taken out");
        organisation.extend(|next| next.relays = vec![relay(3, "192.0.2.3:443")]);
        former.note([ip("192.0.2.2")].into_iter(), std::iter::empty());
        let both = vec![ip("192.0.2.1"), ip("192.0.2.2")];
        assert_eq!(told(&mut former, &organisation, true), Some(both.clone()));
        assert_eq!(told(&mut former, &organisation, false), None);
        assert_eq!(told(&mut former, &organisation, true), Some(both));
        // After a start what was met is forgotten, and what documents say isn't.
        let first = Some(vec![ip("192.0.2.1")]);
        assert_eq!(told(&mut Former::default(), &organisation, false), first);
        // Another one on the machine of an earlier one, by its address or met there.
        organisation.extend(|next| next.relays.push(relay(4, "192.0.2.1:4433")));
        former.note(std::iter::empty(), [ip("192.0.2.2")].into_iter());
        assert_eq!(told(&mut former, &organisation, false), Some(vec![]));
    }
}
