//! Strangers who flood the controller with enrolments, while gateways enrol and operators work (statement 10).

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anteroom_e2e::{Stage, fixture};
use anteroom_lab::anteroom::Outcome;
use anteroom_lab::hospital::{Hospital, address};
use anteroom_lab::ping::{self, Pinging};
use anteroom_lab::topology::{self, Host};
use anteroom_lab::wait;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::InviteId;
use anteroom_proto::invite::{IdentityClaim, InviteCode};
use anteroom_proto::key::IdentityKey;
use anteroom_proto::v1::frame::MAX_TO_AGENT;
use anteroom_proto::v1::{Enrol, RefusalCode, ToAgent, ToController};
use anteroom_transport::endpoint::{self, TransportError};
use anteroom_transport::message::{MessageReader, MessageWriter};

const BEAT: Duration = Duration::from_millis(5);

/// Machines of the attacker, each with an address of its own.
const FLOODERS: u8 = 10;

/// Connections that each of them makes at the same time.
const AT_ONCE: usize = 40;

/// What the controller may grow by under a flood, in kB.
const MEMORY: u64 = 96 * 1024;

/// What became of the attacker's tries.
#[derive(Debug, Default)]
struct Tally {
    /// Connections that were made.
    connected: AtomicU64,
    /// That weren't let in, or broke.
    turned_away: AtomicU64,
    /// Refused because the invite is unknown.
    unknown: AtomicU64,
    /// Refused because another gateway has used the invite.
    used: AtomicU64,
    /// Refused for being too many.
    busy: AtomicU64,
    /// Kept silent until the controller closed.
    silent: AtomicU64,
    /// Believed. There mustn't be any.
    enrolled: AtomicU64,
}

/// One connection of the attacker's, of one of several kinds.
async fn attempt(number: u64, code: &InviteCode, tally: &Tally) -> Result<(), TransportError> {
    let mut seed = [0x66; 32];
    seed[..8].copy_from_slice(&number.to_be_bytes());
    let identity = IdentityKey::from_seed(&seed);
    let at: SocketAddr = code.addresses[0].parse().expect("an address in the invite");
    let link = endpoint::connect(at, &identity, &[code.controller]).await?;
    tally.connected.fetch_add(1, Relaxed);
    let Ok((send, receive)) = link.connection().open_bi().await else { return Ok(()) };
    if number.is_multiple_of(2) {
        // Takes its place and says nothing, for as long as it is let.
        link.connection().closed().await;
        tally.silent.fetch_add(1, Relaxed);
        return Ok(());
    }
    // One in two with the invite that a gateway has used, the others with one that nobody made.
    let invite = if number % 4 == 1 { code.invite } else { InviteId::from_bytes([7; 16]) };
    let claim = IdentityClaim {
        organisation: code.organisation,
        invite,
        gateway: code.gateway,
        identity: identity.public(),
    };
    let claim = Signed::sign(&claim, &code.key().expect("the invite's key"));
    let enrol = ToController::Enrol(Box::new(Enrol { invite, claim }));
    if MessageWriter::new(send).send(&enrol).await.is_err() {
        return Ok(());
    }
    match MessageReader::<ToAgent>::new(receive, MAX_TO_AGENT).next().await {
        Ok(Some(ToAgent::Enrolled { .. })) => &tally.enrolled,
        Ok(Some(ToAgent::Refused(refusal))) => match refusal.code {
            RefusalCode::InviteUsed => &tally.used,
            RefusalCode::Busy => &tally.busy,
            _ => &tally.unknown,
        },
        _ => &tally.turned_away,
    }
    .fetch_add(1, Relaxed);
    Ok(())
}

/// Connects again and again until it is told to stop.
fn flood(seed: u64, code: &InviteCode, stop: &Arc<AtomicBool>, tally: &Arc<Tally>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        let mut number = seed << 32;
        while !stop.load(Relaxed) {
            while tasks.len() < AT_ONCE {
                number += 1;
                let (code, tally) = (code.clone(), tally.clone());
                tasks.spawn(async move {
                    let limit = Duration::from_secs(8);
                    let outcome = tokio::time::timeout(limit, attempt(number, &code, &tally)).await;
                    if !matches!(outcome, Ok(Ok(()))) {
                        tally.turned_away.fetch_add(1, Relaxed);
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                });
            }
            let _ = tokio::time::timeout(Duration::from_millis(100), tasks.join_next()).await;
        }
        tasks.abort_all();
    });
}

/// Plugs the attacker's machines in.
fn flooders(hospital: &Hospital) -> Vec<Host> {
    (0..FLOODERS)
        .map(|number| {
            let host = Host::create(&format!("flooder-{number}")).unwrap();
            let socket = format!("f{number}");
            topology::plug(&host, "eth0", None, &hospital.campus, "br-building", &socket).unwrap();
            host.address("eth0", address("building", 100 + number), 24).unwrap();
            host.default_route(address("building", 1)).unwrap();
            host
        })
        .collect()
}

/// Runs a command until it succeeds, as its error says: what it took.
fn retried(mut command: impl FnMut() -> Outcome) -> (Outcome, u32) {
    let start = Instant::now();
    let mut tries = 0;
    loop {
        tries += 1;
        let outcome = command();
        if outcome.code == 0 {
            return (outcome, tries);
        }
        assert!(start.elapsed() < Duration::from_secs(60), "after {tries} tries: {outcome}");
    }
}

#[test]
fn floods_of_enrolments_keep_neither_gateways_nor_operators_from_working() {
    let test = "floods_of_enrolments_keep_neither_gateways_nor_operators_from_working";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &mut fixture.hospital;
    // The attacker has found the invite that the imaging gateway has used.
    let code = std::fs::read_to_string(hospital.operator.desk.join("imaging.invite")).unwrap();
    let code: InviteCode = code.trim().parse().unwrap();
    let before = hospital.controller.process().unwrap().resident().unwrap();
    let pacs = hospital.machine("pacs-1").address();
    let pinging = Pinging::start(&hospital.machine("ct-1").host, pacs, 10_000_000, BEAT).unwrap();

    let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
    let threads: Vec<_> = (0_u64..)
        .zip(flooders(hospital))
        .map(|(seed, host)| {
            let (code, stop, tally) = (code.clone(), stop.clone(), tally.clone());
            host.thread(move || flood(seed, &code, &stop, &tally)).unwrap()
        })
        .collect();
    let grown = |name: &str, counter: &AtomicU64, least: u64| {
        wait::until(Duration::from_secs(60), name, || {
            (counter.load(Relaxed) >= least).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {tally:?}"));
    };
    grown("enrolments with an invite of nobody's", &tally.unknown, 50);
    grown("enrolments with a used invite", &tally.used, 50);
    grown("silent connections", &tally.silent, 50);

    // Operators work, and a gateway enrols, is approved, and gets its view.
    let start = Instant::now();
    hospital.operator.ok(&["status", "--wait", "20"]).unwrap();
    let invite = hospital.operator.invite("spare", "north").unwrap();
    let operators = start.elapsed();
    hospital.add_spare("spare", "building", 3).unwrap();
    let start = Instant::now();
    let (_, tries) = retried(|| hospital.gateways["spare"].command(&["enroll", &invite]).unwrap());
    let enrolled = start.elapsed();
    let spare = hospital.gateway("spare");
    let fingerprint = spare.fingerprint().unwrap();
    spare.start().unwrap();
    spare.wait_running().unwrap();
    let start = Instant::now();
    hospital
        .operator
        .ok(&[
            &["gateway", "approve", "spare", "--fingerprint", &fingerprint][..],
            &["--reason", "read off the console", "--yes"],
        ]
        .concat())
        .unwrap();
    let in_force = |hospital: &Hospital, name: &str| {
        wait::until_ok(Duration::from_secs(60), "the controller's word", || {
            let status = hospital.gateways[name].status()?;
            let control = &status["control"];
            anyhow::ensure!(control["connected"].is_string(), "{status}");
            anyhow::ensure!(control["applied"]["revision"].is_u64(), "{status}");
            Ok(())
        })
        .unwrap();
    };
    in_force(hospital, "spare");
    let approved = start.elapsed();
    // A gateway that starts anew finds its way to the controller, too.
    let start = Instant::now();
    hospital.gateway("ward").kill().unwrap();
    hospital.gateway("ward").start().unwrap();
    hospital.gateway("ward").wait_running().unwrap();
    in_force(hospital, "ward");
    let restarted = start.elapsed();

    let grown_by = hospital.controller.process().unwrap().resident().unwrap() - before;
    stop.store(true, Relaxed);
    for thread in threads {
        thread.join().unwrap().unwrap();
    }
    let series = pinging.stop().unwrap();
    println!(
        "{tally:?}; operators' commands {operators:?}, enrolled {enrolled:?} ({tries} tries), approved and in force \
         {approved:?}, restarted {restarted:?}; controller +{grown_by} kB; {} of {} pings lost",
        series.lost(),
        series.sent
    );
    assert_eq!(series.lost(), 0, "{series:?}");
    assert_eq!(tally.enrolled.load(Relaxed), 0, "{tally:?}");
    assert!(grown_by < MEMORY, "the controller grew by {grown_by} kB: {tally:?}");

    // Nobody slipped in, the log wasn't filled, and the invite's owner is who it was.
    let gateways = hospital.operator.json(&["gateway", "list"]).unwrap();
    assert_eq!(gateways.as_array().unwrap().len(), 4, "{gateways}");
    let pending = hospital.operator.json(&["gateway", "pending"]).unwrap();
    assert!(pending.as_array().unwrap().is_empty(), "{pending}");
    let audit = hospital.operator.json(&["audit", "list", "--limit", "500"]).unwrap();
    let entries = audit.as_array().unwrap();
    let refused = entries.iter().filter(|entry| entry["action"] == "gateway enrol refused").count();
    assert!((1..=32).contains(&refused), "{refused} of {} entries", entries.len());
    hospital.operator.ok(&["audit", "verify"]).unwrap();
    hospital.operator.ok(&["status", "--wait", "20"]).unwrap();
    let ct = &hospital.machine("ct-1").host;
    assert_eq!(ping::ping(ct, pacs, 20, BEAT).unwrap().lost(), 0);
}
