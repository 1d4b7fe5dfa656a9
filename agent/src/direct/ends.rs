//! How connections end, and what then becomes of others with the same peer.

use std::collections::HashMap;
use std::time::Duration;

use anteroom_proto::id::GatewayId;
use tokio::time::Instant;
use tracing::{debug, info};

use super::link::Active;
use super::plan::Need;
use super::{Keeper, LOOK, PARTING};

/// Why peers' connections end that came to another uplink.
const MOVED: &str = "this gateway's uplink changed";

impl Keeper {
    /// Ends connections that have fallen silent.
    pub(super) async fn end_the_dead(&mut self, now: Instant) {
        let links = self.links.iter_mut();
        let dead = links.filter_map(|(gateway, link)| link.is_silent(now).then_some(*gateway));
        for gateway in dead.collect::<Vec<_>>() {
            self.ended(gateway, "nothing came for 5 s").await;
        }
    }

    /// Another uplink may be in use: `changes` says how often one was taken, `forced` whether the one before had failed.
    ///
    /// Connections of peers that came to that one are let go: what they are sent bears its address, and they take nothing
    /// from another. Where it works still nothing is lost: each end takes what is under way until the other sends by other ways.
    pub(super) async fn follow_uplink(&mut self, changes: u64, forced: bool) {
        if std::mem::replace(&mut self.moves, changes) == changes {
            return;
        }
        let came = self.links.iter().filter(|(_, link)| !link.dialled);
        let came: Vec<GatewayId> = came.map(|(gateway, _)| *gateway).collect();
        if !forced {
            for gateway in came {
                self.let_go(gateway, MOVED, true);
            }
            let before = self.leaving.iter_mut().filter(|(_, _, link)| !link.dialled);
            before.for_each(|(_, _, link)| link.parted = true);
            return;
        }
        let gone = self.leaving.extract_if(.., |(_, _, link)| !link.dialled);
        for link in gone.map(|(_, _, link)| link).collect::<Vec<_>>() {
            self.forget(link).await;
        }
        for gateway in came {
            self.ended(gateway, MOVED).await;
        }
    }

    /// As [`part`](Self::part), and says in the status why. `tells`: the peer doesn't know of it yet.
    pub(super) fn let_go(&mut self, gateway: GatewayId, why: &str, tells: bool) {
        let Some(link) = self.links.get_mut(&gateway) else { return };
        link.tells = tells;
        link.tell();
        let (lasted, now) = (link.since.elapsed(), Instant::now());
        info!(%gateway, "{why}: the QUIC connection is let go");
        self.part(gateway);
        let random = getrandom::u32().unwrap_or_default();
        self.needs.entry(gateway).or_default().ended(lasted, now, random);
        self.errors.insert(gateway, format!("the connection is let go: {why}"));
    }

    /// Ends connections that were kept for what was under way, and tells peers of the others that they end.
    pub(super) async fn end_the_left(&mut self, now: Instant) {
        let gone = self.leaving.extract_if(.., |(until, _, _)| *until <= now);
        for link in gone.map(|(_, _, link)| link).collect::<Vec<_>>() {
            self.forget(link).await;
        }
        for (_, _, link) in &self.leaving {
            link.tell();
        }
    }

    /// A connection with a peer is no more.
    pub(super) async fn ended(&mut self, gateway: GatewayId, why: &str) {
        let Some(link) = self.links.remove(&gateway) else { return };
        let problem = format!("the connection ended: {why}");
        debug!(%gateway, "{problem}");
        let lasted = link.since.elapsed();
        self.forget(link).await;
        if self.goes_back(gateway) {
            return;
        }
        self.cut(gateway).await;
        self.needs.entry(gateway).or_default().ended(
            lasted,
            Instant::now(),
            getrandom::u32().unwrap_or_default(),
        );
        self.errors.insert(gateway, problem);
    }

    /// Goes back to the connection before, if the peer still has it: it may not have wanted the one after.
    pub(super) fn goes_back(&mut self, gateway: GatewayId) -> bool {
        let is_there = |(_, of, link): &(Instant, GatewayId, Active)| {
            *of == gateway
                && !link.parted
                && link.connection.close_reason().is_none()
                && self.is_peer(gateway, &link.identity)
        };
        let Some(at) = self.leaving.iter().rposition(is_there) else { return false };
        let (_, _, before) = self.leaving.remove(at);
        info!(%gateway, "the connection before is there still, and goes on");
        before.leaves.send_replace(false);
        self.links.insert(gateway, before);
        true
    }

    /// Lets go of the connection that has been of no use for longest. False where all are.
    pub(super) async fn make_room(&mut self) -> bool {
        let unused = |gateway: &GatewayId| self.needs.get(gateway).and_then(Need::direct_since);
        let unused = self.links.keys().filter_map(|gateway| Some((unused(gateway)?, *gateway)));
        let Some((_, gateway)) = unused.min() else { return false };
        self.cut(gateway).await;
        true
    }

    /// Has packets to a peer go other ways, and takes for a while what it still sends by the connection, which ends then.
    pub(super) fn part(&mut self, gateway: GatewayId) {
        let Some(mut link) = self.links.remove(&gateway) else { return };
        link.parted = true;
        link.leaves.send_replace(true);
        self.table.found(link.id, HashMap::new(), Duration::MAX, 0);
        self.leaving.push((Instant::now() + PARTING, gateway, link));
    }

    /// Ends the connection with a peer.
    pub(super) async fn cut(&mut self, gateway: GatewayId) {
        let leaving = self.leaving.extract_if(.., |(_, of, _)| *of == gateway);
        let mut gone: Vec<Active> = leaving.map(|(_, _, link)| link).collect();
        gone.extend(self.links.remove(&gateway));
        for link in gone {
            self.forget(link).await;
        }
    }

    /// This gateway has another identity key, by which peers know it from now on. Packets go other ways at once; what peers that
    /// hear of it a moment later have under way is still taken.
    pub(super) fn prepare_anew(&mut self) {
        let linked: Vec<GatewayId> = self.links.keys().copied().collect();
        for gateway in linked {
            self.part(gateway);
        }
        self.dialling.clear();
        self.anew = Some(Instant::now() + PARTING);
    }

    /// Has the socket made anew, and with it connections, by another identity key.
    pub(super) async fn begin_anew(&mut self) {
        self.anew = None;
        let linked: Vec<GatewayId> = self.links.keys().copied().collect();
        for gateway in linked {
            self.cut(gateway).await;
        }
        for (_, _, link) in std::mem::take(&mut self.leaving) {
            self.forget(link).await;
        }
        self.dialling.clear();
        self.naming = None;
        self.close().await;
        // Tasks that end let go of the port only then.
        self.retry = Some(Instant::now() + LOOK);
    }

    /// Ends a connection, and with it what is known of it: its task first, which might still tell of it.
    pub(super) async fn forget(&self, mut link: Active) {
        let id = link.id;
        link.carrying.end().await;
        drop(link);
        self.table.forget(id).await;
    }
}
