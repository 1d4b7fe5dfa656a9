//! Act 2: gateways are approved, devices named, a policy applied; what is allowed goes through the tunnel, the rest still
//! passes and is listed.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{POLICY, Story, open_tcp, refused};
use crate::capture::{Capture, Seen};
use crate::clinical::dicom;
use crate::hospital::{GATEWAYS, Hospital};
use crate::wait;

/// Approves every gateway by the fingerprint that its own console shows.
///
/// # Errors
/// What the command line said.
pub fn approve_all(hospital: &Hospital) -> Result<String> {
    let pending = hospital.operator.json(&["gateway", "pending"])?.to_string();
    let mut shown = Vec::new();
    for name in GATEWAYS {
        let fingerprint = hospital.gateways[name].fingerprint()?;
        if !pending.contains(&fingerprint) {
            bail!("{name} shows {fingerprint}, which isn't pending: {pending}");
        }
        let reason = "fingerprint read off the console";
        hospital.operator.ok(&[
            "gateway",
            "approve",
            name,
            "--fingerprint",
            &fingerprint,
            "--reason",
            reason,
            "--yes",
        ])?;
        shown.push(format!("{name} {fingerprint}"));
    }
    Ok(shown.join(", "))
}

/// Waits until every device stands in the inventory, seen by its gateway.
///
/// # Errors
/// Which isn't there.
pub fn wait_for_inventory(hospital: &Hospital) -> Result<String> {
    let devices = hospital.devices().count();
    wait::until_ok(Duration::from_secs(60), "the inventory to show every device", || {
        let new = hospital.operator.json(&["device", "list", "--new"])?.to_string();
        for device in hospital.devices() {
            let (mac, address) = (device.plan.mac(), device.address().to_string());
            if !new.contains(&mac) || !new.contains(&format!("\"{address}\"")) {
                bail!("{} ({mac}, {address}) isn't in the inventory: {new}", device.plan.name);
            }
        }
        Ok(format!("{devices} of {devices} devices, with their Ethernet and IP addresses"))
    })
}

/// Confirms every device under its name, with labels.
///
/// # Errors
/// What the command line said.
pub fn confirm_all(hospital: &Hospital) -> Result<String> {
    for device in hospital.devices() {
        confirm(hospital, device.plan.name, &[])?;
    }
    Ok("6 devices named and labelled".into())
}

/// Confirms one device under its name, with labels, and with further arguments.
///
/// # Errors
/// What the command line said.
pub fn confirm(hospital: &Hospital, name: &str, further: &[&str]) -> Result<()> {
    let device = hospital.machine(name);
    let (mac, class) = (device.plan.mac(), format!("class={}", device.plan.class));
    let address = device.address().to_string();
    let router = crate::hospital::address(device.plan.subnet, 1).to_string();
    let mut arguments = vec!["device", "confirm", &mac, "--name", name];
    arguments.extend(["--address", &address, "--prefix-len", "24", "--router", &router]);
    arguments.extend(["--label", &class]);
    if matches!(device.plan.class, "ct" | "mri") {
        arguments.extend(["--label", "role=modality"]);
    }
    arguments.extend(["--reason", "read off the rating plate", "--yes"]);
    arguments.extend(further);
    hospital.operator.ok(&arguments).map(|_| ())
}

/// Names of all devices.
#[must_use]
pub fn device_names(hospital: &Hospital) -> Vec<&'static str> {
    hospital.devices().map(|device| device.plan.name).collect()
}

impl Story {
    pub(super) fn protect(&mut self) {
        self.report.begin(2, "What would break");
        let hospital = &mut self.hospital;
        self.report.check(
            "controller",
            "a controller is made, and claimed by its first operator with the setup code",
            || {
                hospital.start_controller()?;
                let who = hospital.operator.json(&["whoami"])?;
                Ok(format!("claimed by {}", who["operator"].as_str().unwrap_or("somebody")))
            },
        );
        self.report.check("enrol", "three gateways are invited and enrol", || {
            hospital.enrol_gateways()?;
            Ok("3 enrolled, none approved: wires still".into())
        });
        let hospital = &self.hospital;
        self.report.check(
            "approve",
            "each gateway is approved by the fingerprint on its own console",
            || approve_all(hospital),
        );
        self.report.check("inventory", "the devices appear in the inventory by themselves", || {
            wait_for_inventory(hospital)
        });
        self.report
            .check("confirm", "the operator names and labels them", || confirm_all(hospital));
        self.report.check(
            "policy-mistake",
            "a mistake in a policy is named by file and line, and nothing changes",
            || {
                let text = POLICY.replace("\"ct-listen\"]", "\"ct-lisen\"]");
                let file = hospital.operator.write_policy("mistake.toml", &text)?;
                let outcome = hospital
                    .operator
                    .command(&["policy", "apply", &file, "--reason", "x", "--yes"])?;
                let line = text.lines().position(|line| line.contains("ct-lisen"));
                let place = format!("mistake.toml:{}", line.context("the mistake is there")? + 1);
                refused(&outcome, 1, &[&place, "ct-listen", "Nothing was changed"])
            },
        );
        let policy = hospital.operator.write_policy("policy.toml", POLICY);
        self.report.check("policy", "a policy is checked, planned and applied", || {
            let file = policy?;
            hospital.operator.ok(&["policy", "check", &file])?;
            hospital.operator.apply(&file, "first policy")?;
            Ok("checked offline, planned, in force at every gateway".into())
        });
        self.report.check("mode-protect", "all devices go to protect", || {
            let names = device_names(hospital);
            hospital.operator.mode(&names, "protect", "pilot")?;
            Ok("acknowledged by every gateway".into())
        });
        self.study_through_the_tunnel("study-protected");
        let hospital = &self.hospital;
        self.report.check(
            "would-drop",
            "what isn't allowed still passes, and is listed as what enforce would drop",
            || {
                let hvac = hospital.machine("hvac-1");
                let to = (hospital.machine("pacs-1").address(), dicom::STORE_PORT);
                open_tcp(&hvac.host, to, Duration::from_secs(15))
                    .context("in protect it passes")?;
                wait::until_ok(Duration::from_secs(60), "the flow to be listed", || {
                    let flows = hospital.operator.json(&["flows", "--would-drop"])?.to_string();
                    let address = format!("\"{}\"", hvac.address());
                    if !flows.contains(&address) {
                        bail!("no {address} in {flows}");
                    }
                    Ok(format!("hvac-1 ({}) to pacs-1 passed, and is listed", hvac.address()))
                })
            },
        );
        self.end_act("A study", "study-protected");
    }

    /// A study from the CT to the PACS that must arrive, and must not be readable on the campus.
    pub(super) fn study_through_the_tunnel(&mut self, id: &str) {
        let study = self.new_study(5);
        let (hospital, pacs) = (&self.hospital, &self.pacs);
        self.report.check(
            id,
            "the study goes through WireGuard and arrives byte-identical; the campus sees ciphertext",
            || {
                let study = study?;
                let capture = Capture::start(&hospital.campus, study.secrets()?)?;
                let (ct, to) = (hospital.machine("ct-1"), hospital.machine("pacs-1"));
                let target = (to.address(), dicom::STORE_PORT);
                let sent =
                    dicom::store(&hospital.programs, &ct.host, target, &study, &pacs.directory);
                let seen = capture.stop()?;
                let arrived = sent?;
                only_ciphertext(&seen, ct.address(), to.address())?;
                let gateways =
                    (crate::hospital::address("imaging", 2), crate::hospital::address("servers", 2));
                let tunnel = seen.between(gateways.0, gateways.1);
                let packets = tunnel.get("wireguard").copied().unwrap_or(0);
                if packets < 10 {
                    bail!("hardly any WireGuard between the gateways: {tunnel:?}");
                }
                Ok(format!("{arrived} slices identical; {packets} WireGuard packets, nothing readable"))
            },
        );
    }
}

/// An error if a capture could read a secret, or saw IP packets between two devices.
///
/// # Errors
/// What could be read.
pub fn only_ciphertext(seen: &Seen, a: Ipv4Addr, b: Ipv4Addr) -> Result<()> {
    if !seen.secrets.is_empty() {
        bail!("readable on the campus: {:?}", seen.secrets);
    }
    let clear = seen.between(a, b);
    if !clear.is_empty() {
        bail!("in the clear between {a} and {b}: {clear:?}");
    }
    Ok(())
}
