//! What operators order while other things happen.

use std::thread::JoinHandle;

use anyhow::{Context as _, Result, bail};

use super::changes::{Burst, Change};
use super::flows::{PING_RULE, SIDE_RULE};
use super::world::World;
use crate::anteroom::{Operator, Outcome};
use crate::hospital::Hospital;
use crate::story::POLICY;

/// The exit code of a command that some gateways haven't followed yet.
const LAGS: i32 = 3;

/// What has been ordered.
#[derive(Debug)]
pub(super) struct Orders {
    /// Whether the side rule is in the policy that was applied last.
    side: bool,
    /// How many labels were given.
    labels: u64,
}

/// An order that is being carried out.
#[derive(Debug)]
pub(super) struct Order {
    change: Change,
    thread: JoinHandle<Result<Outcome>>,
}

fn policy(side: bool) -> String {
    format!("{POLICY}{PING_RULE}{}", if side { SIDE_RULE } else { "" })
}

impl Orders {
    /// Applies the policy that the soak begins with.
    pub(super) fn begin(world: &World) -> Result<Self> {
        let orders = Self { side: false, labels: 0 };
        orders.see_to_it(world)?;
        Ok(orders)
    }

    /// Whether the port that opens and closes is to be open.
    pub(super) const fn open(&self) -> bool {
        self.side
    }

    /// Gives an order, and doesn't wait for what comes of it.
    pub(super) fn give(&mut self, world: &mut World, change: Change) -> Result<Order> {
        let commands = match change {
            Change::ReplaceRelay(which) => {
                let (name, code) = world.relays.prepare(&world.hospital, which)?;
                vec![signed(&["relay", "replace", name, "--code", &code])]
            }
            Change::Rotate => vec![signed(&["gateway", "rotate", "--all"])],
            Change::RotateNow(gateway) => vec![signed(&["gateway", "rotate", gateway, "--now"])],
            Change::Rekey(gateway) => vec![signed(&["gateway", "rekey", gateway])],
            Change::Label => {
                self.labels += 1;
                vec![signed(&["device", "label", "ct-1", &format!("round={}", self.labels)])]
            }
            Change::Revision => {
                self.side = !self.side;
                self.apply(&world.hospital)?
            }
            other => bail!("nobody orders this: {other}"),
        };
        let operator = world.hospital.operator.with_home(&world.hospital.operator.home);
        let carry_out = move || carry_out(&operator, &commands);
        let thread = std::thread::Builder::new().name("operator".into()).spawn(carry_out)?;
        Ok(Order { change, thread })
    }

    /// Commands that put the policy into force as it is to be.
    fn apply(&self, hospital: &Hospital) -> Result<Vec<Vec<String>>> {
        let file = hospital.operator.write_policy("soak.toml", &policy(self.side))?;
        let plan = format!("{file}.plan");
        let planned = ["policy", "plan", &file, "--out", &plan].map(str::to_owned);
        Ok(vec![planned.into(), signed(&["policy", "apply", &plan])])
    }

    /// Waits for what comes of it. What else happened may be why gateways lag; a controller that wasn't there, why nobody
    /// can say whether it was heard: then it is given again.
    pub(super) fn follow(&self, world: &mut World, order: Order, burst: &Burst) -> Result<()> {
        let Order { change, thread } = order;
        let outcome = thread.join().map_err(|_| anyhow::anyhow!("an operator panicked"))??;
        let deaf = burst.changes().any(|other| matches!(other, Change::Controller(_)));
        match outcome.code {
            0 => {}
            // They have followed by the time that all goes on.
            LAGS => world.settle()?,
            _ if deaf => {}
            _ => return outcome.ok().map(drop),
        }
        match change {
            Change::ReplaceRelay(which) => world.relays.replaced(which),
            Change::Revision if ![0, LAGS].contains(&outcome.code) => {
                world.settle()?;
                self.see_to_it(world)
            }
            _ => Ok(()),
        }
    }

    /// Puts the policy into force, and waits until it is.
    fn see_to_it(&self, world: &World) -> Result<()> {
        let outcome = carry_out(&world.hospital.operator, &self.apply(&world.hospital)?)?;
        if outcome.code != LAGS {
            outcome.ok()?;
        }
        world.settle()
    }
}

/// A command with what every signature takes.
fn signed(words: &[&str]) -> Vec<String> {
    words.iter().chain(&["--reason", "soak", "--yes"]).map(|word| (*word).to_owned()).collect()
}

/// Gives commands one after the other, up to one that fails. Gives what came of the last.
fn carry_out(operator: &Operator, commands: &[Vec<String>]) -> Result<Outcome> {
    let mut last = None;
    for words in commands {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let outcome = operator.command(&words)?;
        let failed = outcome.code != 0;
        last = Some(outcome);
        if failed {
            break;
        }
    }
    last.context("nothing was ordered")
}
