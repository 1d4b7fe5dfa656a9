//! The last reports of a run: to the controller, and what it doesn't store in time to disk, from where the next run sends them. Each
//! run has numbers of its own, so that what was stored after all doesn't count twice.

use std::time::Duration;

use anteroom_agent_core::report::EngineReport;
use anteroom_proto::v1::ToAgent;
use anteroom_proto::v1::telemetry::Report;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::warn;

use super::Client;
use super::greet::Welcomed;
use crate::plane::Plane;
use crate::relay;

/// How long the controller has to store the last reports, the disk to take them, and the sensor to read what it was given.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often hints are asked for at most, each time of some devices.
const MOST_ASKED: usize = 64;

impl<P: Plane> Client<P> {
    /// Tells the controller what there is left to tell, and waits until it is stored, though not for long.
    pub(super) async fn tell_the_last(&mut self, welcomed: &mut Welcomed) {
        let Welcomed { reader, out, .. } = welcomed;
        for report in self.take_the_last().await {
            // What finds no room on the way is on disk for the next run.
            if out.send(self.reads.fitted(&report)).is_err() {
                return;
            }
        }
        let stored = async {
            while self.outbox.waiting().next().is_some() {
                match reader.next().await {
                    Ok(Some(ToAgent::Reported { boot, sequence })) => {
                        self.outbox.stored(boot, sequence);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => return,
                }
            }
        };
        // What isn't stored by then goes to disk.
        let _ = timeout(PATIENCE, stored).await;
        self.count_reports();
    }

    /// Takes in all that there is to tell, however full the outbox is. Gives the new reports.
    async fn take_the_last(&mut self) -> Vec<Report> {
        self.told_the_last = true;
        // A data plane that is closed or has ended has nothing to tell.
        let report = self.plane.report().await.unwrap_or_default();
        // What the worker has seen by then, the sensor may not have read.
        self.plane.settled(PATIENCE).await;
        let (mut hints, mut overflow) = (Vec::new(), report.overflow);
        for _ in 0..MOST_ASKED {
            let (some, away) = self.plane.hints();
            overflow = overflow.saturating_add(away);
            if some.is_empty() {
                break;
            }
            hints.extend(some);
        }
        let relays = relay::told(&self.relay_status.borrow(), &report.tunnels);
        let report = EngineReport { overflow, ..report };
        let at = self.clock.now();
        self.outbox.push(report, hints, &relays, at).cloned().collect()
    }

    /// Writes down what no controller has stored. A disk that is stuck holds the end up for no longer than this.
    pub(super) async fn keep_the_rest(&mut self) {
        if !self.told_the_last {
            self.take_the_last().await;
        }
        let left: Vec<Report> = self.outbox.waiting().cloned().collect();
        let count = left.len();
        let before = self.forgetting.take();
        if left.is_empty() && !self.reports_on_disk {
            return;
        }
        let writing = async {
            if let Some(before) = before {
                let _ = before.await;
            }
            let _ = self.write_reports(left).await;
        };
        if timeout(PATIENCE, writing).await.is_err() {
            warn!("{count} reports may not be kept over the restart: the disk doesn't answer");
        }
    }

    /// Takes what a run before this one left off the disk, once all of it is stored. Nobody waits for that.
    pub(super) fn forget_what_was_left(&mut self) {
        if self.reports_on_disk && !self.outbox.has_left() {
            self.reports_on_disk = false;
            self.forgetting = Some(self.write_reports(Vec::new()));
        }
    }

    fn write_reports(&self, reports: Vec<Report>) -> JoinHandle<()> {
        let (disk, gateway) = (self.disk.clone(), self.enrolment.gateway);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = disk.keep_reports(gateway, &reports) {
                warn!("reports that the controller hasn't stored: {error}");
            }
        })
    }
}
