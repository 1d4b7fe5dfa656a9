//! `relay list|add|replace|remove`: machines that carry sealed packets, as the authority document names them.

mod missed;

use std::collections::BTreeMap;

use anteroom_proto::address::is_host_port;
use anteroom_proto::authority::{Authority, MAX_ENTRIES, Relay};
use anteroom_proto::key::PublicKey;
use anteroom_proto::name::Name;
use anteroom_proto::relay::code::MAX_ADDRESSES;
use serde::Serialize;

use super::authority::{Consent, Decree, consent, decree, newest_root, next};
use crate::args::{AuthorityArgs, RelayPlace};
use crate::change;
use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::table;
use crate::remote::Remote;

pub(super) use missed::missed;

/// One machine that relays.
#[derive(Debug, Serialize)]
struct Row {
    /// None: it is a controller.
    name: Option<Name>,
    fingerprint: String,
    key: PublicKey,
    addresses: Vec<String>,
    /// Gateways that said they are connected to it, by name.
    gateways: Vec<Guest>,
}

/// A gateway at a relay.
#[derive(Debug, Serialize)]
struct Guest {
    gateway: String,
    /// Microseconds.
    round_trip: Option<u32>,
    /// Peers that packets take the relay to now.
    carries: u32,
}

/// `anteroom relay list`.
pub(super) fn list(remote: &mut Remote, output: &mut Output<'_>) -> Result<Exit, Error> {
    let mut guests = guests(remote)?;
    let newest = remote.chain().newest();
    let relays = newest.relays.iter().map(|relay| (Some(&relay.name), relay.key, &relay.addresses));
    let controllers = newest.controllers.iter().map(|one| (None, one.key, &one.addresses));
    let rows: Vec<Row> = relays
        .chain(controllers)
        .map(|(name, key, addresses)| Row {
            name: name.cloned(),
            fingerprint: key.fingerprint().to_string(),
            key,
            addresses: addresses.clone(),
            gateways: guests.remove(&key).unwrap_or_default(),
        })
        .collect();
    output.data(&rows, |rows| {
        let lines = rows.iter().map(|row| {
            let guests: Vec<String> = row.gateways.iter().map(Guest::text).collect();
            vec![
                row.name.as_ref().map_or("(controller)", Name::as_str).to_owned(),
                row.fingerprint.clone(),
                row.addresses.join(", "),
                if guests.is_empty() { "-".into() } else { guests.join(", ") },
            ]
        });
        table(&["RELAY", "KEY", "REACHED AT", "GATEWAYS"], lines)
    })?;
    Ok(Exit::Ok)
}

impl Guest {
    fn text(&self) -> String {
        let mut words = Vec::new();
        if let Some(micros) = self.round_trip {
            words.push(format!("{:.1} ms", f64::from(micros) / 1000.0));
        }
        if self.carries > 0 {
            let s = if self.carries == 1 { "" } else { "s" };
            words.push(format!("for {} peer{s}", self.carries));
        }
        if words.is_empty() {
            self.gateway.clone()
        } else {
            format!("{} ({})", self.gateway, words.join(", "))
        }
    }
}

/// Which gateways are connected to which relay, as they told the controller.
fn guests(remote: &mut Remote) -> Result<BTreeMap<PublicKey, Vec<Guest>>, Error> {
    let model = change::fetch(remote)?.model;
    let mut guests: BTreeMap<PublicKey, Vec<Guest>> = BTreeMap::new();
    for status in remote.gateways()? {
        let name = model.gateways.get(&status.gateway).map(|gateway| gateway.name.to_string());
        let gateway = name.unwrap_or_else(|| status.gateway.to_string());
        for relay in &status.relays {
            let guest = Guest {
                gateway: gateway.clone(),
                round_trip: relay.round_trip,
                carries: relay.carries,
            };
            guests.entry(relay.key).or_default().push(guest);
        }
    }
    guests.values_mut().for_each(|all| all.sort_by(|a, b| a.gateway.cmp(&b.gateway)));
    Ok(guests)
}

/// The relay that `place` speaks of.
fn named(place: &RelayPlace) -> Result<Relay, Error> {
    let (key, mut addresses) = match (&place.code, place.key) {
        (Some(code), _) => (code.key, code.addresses.clone()),
        (None, Some(key)) => (key, Vec::new()),
        (None, None) => {
            return Err(Error::Usage(
                "give the relay's --code, or its --key and addresses. Nothing was changed.".into(),
            ));
        }
    };
    if !place.addresses.is_empty() {
        addresses.clone_from(&place.addresses);
    }
    if addresses.is_empty() || addresses.len() > MAX_ADDRESSES {
        return Err(Error::Usage(format!(
            "a relay has 1 to {MAX_ADDRESSES} addresses. Nothing was changed."
        )));
    }
    if let Some(bad) = addresses.iter().find(|address| !is_host_port(address)) {
        return Err(Error::Usage(format!(
            "{bad:?} is no address of a relay: write host:port, such as relay.example:443. Nothing was changed."
        )));
    }
    Ok(Relay { name: place.name.clone(), key, addresses })
}

/// Refuses a key that somebody has already.
fn check_free(authority: &Authority, relay: &Relay) -> Result<(), Error> {
    let other = authority.relays.iter().find(|other| other.key == relay.key);
    if let Some(other) = other {
        return Err(Error::Other(format!(
            "this is the key of the relay {}. Nothing was changed",
            other.name
        )));
    }
    if authority.controller_keys().contains(&relay.key) {
        return Err(Error::Other(
            "this is a controller's key, and every controller relays already. Nothing was changed"
                .into(),
        ));
    }
    Ok(())
}

/// Where a relay of this name stands.
fn find(authority: &Authority, name: &Name) -> Result<usize, Error> {
    authority.relays.iter().position(|relay| relay.name == *name).ok_or_else(|| {
        let names: Vec<&str> = authority.relays.iter().map(|relay| relay.name.as_str()).collect();
        let there = if names.is_empty() {
            "there are none yet but the controllers".to_owned()
        } else {
            format!("there are: {}", names.join(", "))
        };
        Error::Other(format!("there is no relay {name}; {there}. Nothing was changed"))
    })
}

/// What became of it.
#[derive(Debug, Serialize)]
struct Done {
    /// Number of the authority document.
    authority: u64,
    relay: Name,
    fingerprint: String,
    /// Gateways that haven't heard of it, since they are offline.
    offline: Vec<String>,
}

/// `anteroom relay add`.
pub(super) fn add(
    place: RelayPlace,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let relay = named(&place)?;
    let mut next = next(remote);
    check_free(&next, &relay)?;
    if next.relays.iter().any(|other| other.name == relay.name) {
        return Err(Error::Other(format!(
            "there is a relay {} already: choose another name, or `anteroom relay replace`. Nothing was changed",
            relay.name
        )));
    }
    if next.relays.len() >= MAX_ENTRIES {
        return Err(Error::Other(format!(
            "there are {MAX_ENTRIES} relays, and no more can be named. Nothing was changed"
        )));
    }
    note_key(&relay, output)?;
    next.relays.push(relay.clone());
    let done = sign(next, "relay add", &relay, place.change, remote, output)?;
    report(&done, output, |done| {
        format!(
            "{} is a relay now (authority document {}): gateways connect to it, and choose it where it is nearest. Which ones are there: anteroom relay list; `anteroom status` says so where they try in vain.",
            done.relay, done.authority
        )
    })
}

/// `anteroom relay replace`.
pub(super) fn replace(
    place: RelayPlace,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let relay = named(&place)?;
    let mut next = next(remote);
    let at = find(&next, &relay.name)?;
    let old = next.relays.remove(at);
    if old == relay {
        return Err(Error::Other(format!(
            "{} has this key and these addresses already. Nothing was changed",
            relay.name
        )));
    }
    check_free(&next, &relay)?;
    note_key(&relay, output)?;
    next.relays.insert(at, relay.clone());
    let done = sign(next, "relay replace", &relay, place.change, remote, output)?;
    report(&done, output, |done| {
        format!(
            "{} has the key {} from now on (authority document {}); gateways leave the one before.",
            done.relay, done.fingerprint, done.authority
        )
    })
}

/// `anteroom relay remove`.
pub(super) fn remove(
    name: &Name,
    args: AuthorityArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let mut next = next(remote);
    let at = find(&next, name)?;
    let relay = next.relays.remove(at);
    let done = sign(next, "relay remove", &relay, args, remote, output)?;
    report(&done, output, |done| {
        format!(
            "{} is no relay any more (authority document {}): gateways leave it.",
            done.relay, done.authority
        )
    })
}

fn note_key(relay: &Relay, output: &mut Output<'_>) -> Result<(), Error> {
    output.note(format_args!(
        "Relay {} with the key {}, at {}: compare it with what the relay's own console shows.\nIt will see which gateways speak with each other, and when; never what.",
        relay.name,
        relay.key.fingerprint(),
        relay.addresses.join(", ")
    ))
}

fn sign(
    mut next: Authority,
    action: &'static str,
    relay: &Relay,
    mut args: AuthorityArgs,
    remote: &mut Remote,
    output: &mut Output<'_>,
) -> Result<Done, Error> {
    next.root = newest_root(remote)?;
    consent(action, &Consent::Yes, &mut args, output)?;
    let authority = next.number;
    let key = remote.key().clone();
    let (subject, reason) = (relay.name.to_string(), args.reason);
    decree(remote, &key, Decree { next, action, subject, reason, revision: None })?;
    // It is signed and in force: what can't be told about it is no error.
    let offline = offline(remote).unwrap_or_default();
    let fingerprint = relay.key.fingerprint().to_string();
    Ok(Done { authority, relay: relay.name.clone(), fingerprint, offline })
}

/// Gateways that the controller can't reach.
fn offline(remote: &mut Remote) -> Result<Vec<String>, Error> {
    let model = change::fetch(remote)?.model;
    let away = remote.gateways()?.into_iter().filter(|status| !status.online);
    let name = |id| model.gateways.get(&id).map(|gateway| gateway.name.to_string());
    Ok(away.filter_map(|status| name(status.gateway)).collect())
}

fn report(
    done: &Done,
    output: &mut Output<'_>,
    text: impl FnOnce(&Done) -> String,
) -> Result<Exit, Error> {
    output.data(done, |done| {
        let mut text = text(done);
        if !done.offline.is_empty() {
            let names = done.offline.join(", ");
            text.push_str(&format!(" Offline, and told when they are back: {names}."));
        }
        text
    })?;
    Ok(Exit::Ok)
}
