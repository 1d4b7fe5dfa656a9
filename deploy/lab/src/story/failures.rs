//! Act 4: what fails, and the way back.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::Story;
use crate::clinical::{dicom, hl7};
use crate::hospital::Hospital;
use crate::ping::{self, Pinging};
use crate::wait;

/// How often a device is pinged to see when it is back or gone.
const BEAT: Duration = Duration::from_millis(2);
/// When devices are back at the latest behind a gateway that runs anew, however busy the machine: what takes longer isn't slow, but
/// something that two gateways don't agree on.
pub const BACK_WITHIN: Duration = Duration::from_secs(5);

/// Starts the agent of a gateway and measures until the first ping through it is answered.
///
/// # Errors
/// If that takes longer than ten seconds.
pub fn restart_gateway(
    hospital: &mut Hospital,
    gateway: &str,
    from: &str,
    to: &str,
) -> Result<Duration> {
    let (host, target) = (hospital.machine(from).host.clone(), hospital.machine(to).address());
    hospital.gateway(gateway).kill()?;
    if ping::ping(&host, target, 5, BEAT)?.received > 0 {
        bail!("{from} still reaches {to} with the agent of {gateway} killed");
    }
    let pinging = Pinging::start(&host, target, 1_000_000, BEAT)?;
    let start = Instant::now();
    hospital.gateway(gateway).start()?;
    let back = wait::until(Duration::from_secs(20), "the first packet through the gateway", || {
        (pinging.received() > 0).then(|| start.elapsed())
    });
    let series = pinging.stop()?;
    back.with_context(|| format!("{series:?}; {}", hospital.gateways[gateway].tail()))
}

/// Revokes a gateway and waits for the others.
///
/// # Errors
/// What the command line said.
pub fn revoke(hospital: &Hospital, gateway: &str) -> Result<()> {
    let why = "stolen, in the story";
    let arguments = ["gateway", "revoke", gateway, "--reason", why, "--confirm", gateway, "--yes"];
    hospital.operator.ok(&arguments).map(|_| ())
}

impl Story {
    pub(super) fn failures(&mut self) {
        self.report.begin(4, "Failures, and the way back");
        self.controller_killed();
        self.gateway_restarted();
        let hospital = &mut self.hospital;
        self.report.check(
            "controller-back",
            "the controller returns; every gateway finds it and is up to date",
            || {
                let start = Instant::now();
                hospital.controller.start()?;
                hospital.operator.ok(&["status", "--wait", "20"])?;
                Ok(format!("all well after {:.1} s", start.elapsed().as_secs_f64()))
            },
        );
        self.revoked();
        self.back_to_observe();
        let hospital = &self.hospital;
        self.report.check(
            "audit",
            "the audit log holds every change, and its chain and signatures check out",
            || {
                hospital.operator.ok(&["audit", "verify"])?;
                let text =
                    hospital.operator.json(&["audit", "list", "--limit", "1000"])?.to_string();
                for word in ["gateway approve", "policy apply", "device mode", "gateway revoke"] {
                    if !text.contains(word) {
                        bail!("nothing of {word:?} in {text}");
                    }
                }
                Ok("verified; approvals, policy, modes and the revocation are in it".into())
            },
        );
        self.end_act("A gateway restarted without a controller", "gateway-restarted");
    }

    fn controller_killed(&mut self) {
        let hospital = &mut self.hospital;
        let engine = &self.engine;
        self.report.check(
            "controller-killed",
            "the controller is killed: new allowed connections still open",
            || {
                hospital.controller.kill()?;
                let (ct, mri) = (hospital.machine("ct-1"), hospital.machine("mri-1"));
                let to = (hospital.machine("pacs-1").address(), dicom::STORE_PORT);
                for modality in [ct, mri] {
                    dicom::echo(&hospital.programs, &modality.host, to, Duration::from_secs(20))
                        .with_context(|| format!("{}'s echo", modality.plan.name))?;
                }
                let mut seen = "CT and MRI opened new DICOM connections".to_owned();
                let monitor = &hospital.machine("monitor-1").host;
                let address = hospital.machine("hl7-1").at(hl7::PORT);
                if hl7::send_with_python(monitor, address, engine, "PYTHON-2")?.is_some() {
                    seen.push_str(", python-hl7 a new HL7 one");
                }
                Ok(seen)
            },
        );
    }

    fn gateway_restarted(&mut self) {
        let hospital = &mut self.hospital;
        let mut measured = None;
        self.report.check(
            "gateway-restarted",
            "a gateway is killed and restarted with no controller: its devices are back by themselves",
            || {
                let took = restart_gateway(hospital, "servers", "ct-1", "pacs-1")?;
                measured = Some(took);
                if took > BACK_WITHIN {
                    bail!("only after {} ms", took.as_millis());
                }
                let to = (hospital.machine("pacs-1").address(), dicom::STORE_PORT);
                let ct = &hospital.machine("ct-1").host;
                dicom::echo(&hospital.programs, ct, to, Duration::from_secs(20))?;
                Ok(format!("first packet {} ms after the agent's start", took.as_millis()))
            },
        );
        if let Some(took) = measured {
            self.report.figure("agent_start_to_first_packet_ms", took.as_secs_f64() * 1000.0);
        }
    }

    fn revoked(&mut self) {
        let hospital = &self.hospital;
        let mut measured = None;
        self.report.check(
            "revoked",
            "the imaging gateway is revoked: its devices are cut off, the others aren't",
            || {
                let (ct, pacs) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
                let pinging = Pinging::start(&ct.host, pacs.address(), 1_000_000, BEAT)?;
                wait::until(Duration::from_secs(60), "a ping to pass before", || {
                    (pinging.received() > 0).then_some(())
                })?;
                let start = std::time::SystemTime::now();
                let revoked = revoke(hospital, "imaging");
                let series = pinging.stop()?;
                revoked?;
                let last = series.last_reply_at.context("no ping passed")?;
                let took = last.duration_since(start).unwrap_or_default();
                let every = Duration::from_millis(20);
                if ping::ping(&ct.host, pacs.address(), 20, every)?.received > 0 {
                    bail!("ct-1 still reaches pacs-1");
                }
                let to = (pacs.address(), dicom::STORE_PORT);
                if super::open_tcp(&ct.host, to, Duration::from_secs(1)).is_ok() {
                    bail!("ct-1 still opens connections to pacs-1");
                }
                measured = Some(took);
                Ok(format!("last packet {} ms after the command was typed", took.as_millis()))
            },
        );
        if let Some(took) = measured {
            self.report.figure("revoke_typed_to_cut_off_ms", took.as_secs_f64() * 1000.0);
        }
    }

    fn back_to_observe(&mut self) {
        let (hospital, engine) = (&self.hospital, &self.engine);
        self.report.check(
            "back-to-observe",
            "the pump goes back to observe: a wire again, found and heard as before; the monitor beside it isn't",
            || {
                hospital.operator.mode(&["pump-1"], "observe", "back, whatever it was")?;
                let (pump, monitor) = (hospital.machine("pump-1"), hospital.machine("monitor-1"));
                let intruder = &hospital.machine("intruder").host;
                let every = Duration::from_millis(50);
                wait::until_ok(Duration::from_secs(60), "the pump to answer a ping", || {
                    let series = ping::ping(intruder, pump.address(), 3, every)?;
                    if series.received == 0 {
                        bail!("no answer");
                    }
                    Ok(())
                })?;
                let series = ping::ping(intruder, monitor.address(), 3, every)?;
                if series.received > 0 {
                    bail!("monitor-1, still enforced, answered the intruder");
                }
                let address = hospital.machine("hl7-1").at(hl7::PORT);
                hl7::send_with_python(&pump.host, address, engine, "PYTHON-3")?;
                Ok("the intruder's ping is answered by the pump alone".into())
            },
        );
    }
}
