//! Relays that stand alone, which die and are replaced.

use anyhow::{Context as _, Result};

use crate::hospital::Hospital;
use crate::relay::Relay;

/// How many there are.
pub(super) const COUNT: usize = 2;
/// Names, and the machines that they stand on.
const PLACES: [(&str, &str); COUNT] = [("east", "ws-1"), ("west", "hvac-1")];
/// A relay that takes another's place on its machine has the other one of these.
pub(super) const PORTS: [u16; 2] = [443, 4_500];
/// What every signature takes.
const WHY: [&str; 3] = ["--reason", "soak", "--yes"];

/// A relay, and what comes after it.
#[derive(Debug)]
struct Place {
    relay: Relay,
    /// Runs already, and waits to be named.
    next: Option<Relay>,
    /// Whether it is to run.
    up: bool,
    /// How many there were.
    made: usize,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Relays(Vec<Place>);

impl Relays {
    /// Makes and starts them, and has the operator name them.
    pub(super) fn start(hospital: &Hospital) -> Result<Self> {
        let mut all = Vec::new();
        for (name, machine) in PLACES {
            let mut relay = Relay::make(hospital, &format!("{name}-1"), machine, PORTS[0])?;
            relay.start()?;
            let words = ["relay", "add", name, "--code", &relay.code];
            hospital.operator.ok(&[&words[..], &WHY].concat())?;
            all.push(Place { relay, next: None, up: true, made: 1 });
        }
        Ok(Self(all))
    }

    pub(super) fn kill(&mut self, which: usize) -> Result<()> {
        let place = self.place(which)?;
        if std::mem::take(&mut place.up) { place.relay.kill() } else { Ok(()) }
    }

    pub(super) fn restart(&mut self, which: usize) -> Result<()> {
        let place = self.place(which)?;
        if std::mem::replace(&mut place.up, true) { Ok(()) } else { place.relay.start() }
    }

    /// Brings a new one up beside the one that it is to replace. Gives the name of that, and the new one's code.
    pub(super) fn prepare(
        &mut self,
        hospital: &Hospital,
        which: usize,
    ) -> Result<(&'static str, String)> {
        let (name, machine) = PLACES.get(which).context("no such relay")?;
        let place = self.place(which)?;
        place.made += 1;
        let port = PORTS[(place.made - 1) % PORTS.len()];
        let mut next = Relay::make(hospital, &format!("{name}-{}", place.made), machine, port)?;
        next.start()?;
        Ok((name, place.next.insert(next).code.clone()))
    }

    /// The new one has been named: the one before has nothing to do any more.
    pub(super) fn replaced(&mut self, which: usize) -> Result<()> {
        let place = self.place(which)?;
        place.relay = place.next.take().context("nothing was prepared")?;
        Ok(())
    }

    fn place(&mut self, which: usize) -> Result<&mut Place> {
        self.0.get_mut(which).context("no such relay")
    }
}
