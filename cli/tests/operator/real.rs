//! The command line against the real controller, with a gateway that enrols and confirms over QUIC.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anteroom_controller::directory::Directory;
use anteroom_controller::init::{InitOptions, init};
use anteroom_controller::run;
use anteroom_proto::authority::AuthorityChain;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::BootId;
use anteroom_proto::invite::{IdentityClaim, InviteCode};
use anteroom_proto::key::{Hash, IdentityKey};
use anteroom_proto::operation::ViewNumber;
use anteroom_proto::setup::SetupCode;
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::telemetry::{Report, Sighting};
use anteroom_proto::v1::{
    Applied, Enrol, Hello, Reachable, ToAgent, ToController, VERSIONS, frame,
};
use anteroom_proto::view::{Floor, View};
use anteroom_transport::endpoint::connect;
use anteroom_transport::message::{MessageReader, MessageWriter};
use tokio::runtime::Runtime;

use crate::person::{Person, shown_plan};

const MAC: &str = "02:00:00:00:01:0a";

/// A gateway that does as it is told, and has seen one device.
pub(crate) struct Gateway {
    code: InviteCode,
    identity: IdentityKey,
    address: SocketAddr,
}

impl Gateway {
    pub(crate) fn new(invite: &str, seed: u8) -> Self {
        let code: InviteCode = invite.parse().unwrap();
        let address = code.addresses[0].parse().unwrap();
        Self { code, identity: IdentityKey::from_seed(&[seed; 32]), address }
    }

    pub(crate) async fn enrol(&self) -> ToAgent {
        let claim = IdentityClaim {
            organisation: self.code.organisation,
            invite: self.code.invite,
            gateway: self.code.gateway,
            identity: self.identity.public(),
        };
        let claim = Signed::sign(&claim, &self.code.key().unwrap());
        let link = connect(self.address, &self.identity, &[self.code.controller]).await.unwrap();
        let (send, receive) = link.connection().open_bi().await.unwrap();
        let mut writer = MessageWriter::<ToController>::new(send);
        let enrol = Enrol { invite: self.code.invite, claim };
        writer.send(&ToController::Enrol(Box::new(enrol))).await.unwrap();
        let mut reader = MessageReader::<ToAgent>::new(receive, frame::MAX_TO_AGENT);
        reader.next().await.unwrap().unwrap()
    }

    fn hello(&self, boot: BootId, applied: Option<Applied>) -> Hello {
        Hello {
            versions: VERSIONS,
            organisation: self.code.organisation,
            gateway: self.code.gateway,
            boot,
            agent_version: "0.1.0".into(),
            capabilities: Vec::new(),
            authority: 1,
            applied,
            reachable: Reachable {
                endpoints: Vec::new(),
                keys: Vec::new(),
                ports: Vec::new(),
                quic: None,
            },
            quic: None,
        }
    }

    /// Says hello as one that has `revision` in force and holds document `authority`, and hears the answer.
    pub(crate) async fn claim_to_hold(&self, revision: u64, authority: u64) {
        let link = connect(self.address, &self.identity, &[self.code.controller]).await.unwrap();
        let (send, receive) = link.connection().open_bi().await.unwrap();
        let applied = Applied {
            number: ViewNumber { incarnation: 1, sequence: 9 },
            revision,
            intent_hash: Hash::ZERO,
            refused: None,
            problems: Vec::new(),
        };
        let mut hello = self.hello(BootId::from_bytes([2; 16]), Some(applied));
        hello.authority = authority;
        let mut writer = MessageWriter::<ToController>::new(send);
        writer.send(&ToController::Hello(Box::new(hello))).await.unwrap();
        let mut reader = MessageReader::<ToAgent>::new(receive, frame::MAX_TO_AGENT);
        let answer = reader.next().await.unwrap().unwrap();
        assert!(matches!(answer, ToAgent::Refused(_)), "{answer:?}");
    }

    /// Connects, reports a device, and confirms every view that it can verify.
    async fn run(self, chain: AuthorityChain) {
        let link = connect(self.address, &self.identity, &[self.code.controller]).await.unwrap();
        let (send, receive) = link.connection().open_bi().await.unwrap();
        let mut writer = MessageWriter::<ToController>::new(send);
        let boot = BootId::from_bytes([1; 16]);
        let hello = self.hello(boot, None);
        writer.send(&ToController::Hello(Box::new(hello))).await.unwrap();
        let sighting = Sighting {
            port: "port1".parse().unwrap(),
            mac: MAC.parse().unwrap(),
            vlan: None,
            addresses: vec![Ipv4Addr::new(10, 20, 1, 10)],
            prefix_len: Some(24),
            router: None,
            member: None,
            held: false,
            kinds: Vec::new(),
            claim: None,
            first_seen: UnixMillis(1_764_000_000_000),
            last_seen: UnixMillis(1_764_000_100_000),
        };
        let report = Report {
            boot,
            sequence: 1,
            at: UnixMillis(1_764_000_100_000),
            sightings: vec![sighting],
            edges: Vec::new(),
            drops: std::collections::BTreeMap::new(),
            overflow: 0,
            tunnels: Vec::new(),
            alarms: Vec::new(),
            bypasses: Vec::new(),
            trials: Vec::new(),
            held_back: Vec::new(),
            relays: Vec::new(),
            relays_away: Vec::new(),
            hints: Vec::new(),
        };
        writer.send(&ToController::Report(Box::new(report))).await.unwrap();
        let mut reader = MessageReader::<ToAgent>::new(receive, frame::MAX_TO_AGENT);
        let mut floor = Floor::default();
        while let Ok(Some(message)) = reader.next().await {
            let ToAgent::View(signed) = message else { continue };
            let view = View::verify(&signed, self.code.gateway, chain.newest(), &floor).unwrap();
            floor = view.floor(&floor);
            let applied = Applied {
                number: view.operation.number,
                revision: view.revision,
                intent_hash: view.intent_hash,
                refused: None,
                problems: Vec::new(),
            };
            writer.send(&ToController::Applied(applied)).await.unwrap();
        }
    }
}

/// Where a controller of this test's own may listen. Nobody else has the address, whatever runs beside this test, and the
/// port is none that the kernel gives away.
pub(crate) fn own_address() -> SocketAddr {
    static TAKEN: AtomicU8 = AtomicU8::new(0);
    let process = std::process::id() % 62_500;
    let [high, low] = [process / 250, process % 250].map(|part| u8::try_from(part).unwrap());
    let last = TAKEN.fetch_add(1, Ordering::Relaxed).checked_add(1).expect("fewer controllers");
    SocketAddr::from((Ipv4Addr::new(127, high + 1, low, last), 17_443))
}

/// Repeats a command until `done` likes what it printed.
#[track_caller]
fn until(person: &Person, args: &[&str], done: impl Fn(&serde_json::Value) -> bool) {
    let end = std::time::Instant::now() + Duration::from_secs(60);
    loop {
        let seen = person.run(&[&["--json"], args].concat()).ok().json();
        if done(&seen) {
            return;
        }
        assert!(std::time::Instant::now() < end, "{args:?} still says {seen}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn from_an_invite_to_a_rollback_with_the_real_controller() {
    let runtime = Runtime::new().unwrap();
    let ana = Person::new();
    let directory = Directory::new(&ana.path("controller"));
    let address = own_address();
    let options =
        InitOptions { quic: address, https: address, advertise: vec![address.ip().to_string()] };
    let code: SetupCode = runtime.block_on(init(&directory, &options)).unwrap();
    let running = runtime.block_on(run::start(directory, false)).unwrap();
    let recovery = ana.path("recovery.key").display().to_string();
    let login = ["login", &code.to_string(), "--name", "ana", "--recovery-out", &recovery]
        .map(str::to_owned);
    ana.run(&login.each_ref().map(String::as_str)).ok();

    let invite = ana.invite("imaging");
    let gateway = Gateway::new(&invite, 1);
    let ToAgent::Enrolled { authority } = runtime.block_on(gateway.enrol()) else {
        panic!("not enrolled");
    };
    let chain = AuthorityChain::follow(gateway.code.authority, &authority).unwrap();
    let fingerprint = gateway.identity.public().fingerprint().to_string();
    let thief = Gateway::new(&invite, 66);
    assert!(matches!(runtime.block_on(thief.enrol()), ToAgent::Refused(_)));
    let task = runtime.spawn(gateway.run(chain));

    until(&ana, &["gateway", "pending"], |rows| rows[0]["online"] == true);
    let wrong = thief.identity.public().fingerprint().to_string();
    let approve = ["gateway", "approve", "imaging", "--yes", "--fingerprint"];
    ana.run(&[&approve[..], &[&wrong]].concat()).fails(4);
    let ran = ana.run(&[&approve[..], &[&fingerprint]].concat()).ok();
    assert!(ran.out.contains("In force at imaging."), "{ran:#?}");
    until(&ana, &["device", "list", "--new"], |rows| rows[0]["mac"] == MAC);
    let confirm = ["device", "confirm", MAC, "--name", "ct-1", "--label", "class=ct"];
    let looked_at = shown_plan(&ana.run(&confirm), 64);
    let by_id = [&confirm[..], &["--confirm", &looked_at]].concat();
    let other = [&confirm[..], &["--confirm", "0123abcd"]].concat();
    assert!(ana.run(&other).fails(4).contains(&format!("this is plan {looked_at}")));
    let ran = ana.run(&by_id).ok();
    assert!(ran.out.contains("In force at imaging."), "{ran:#?}");
    assert!(ana.run(&by_id).fails(1).contains("ct-1"), "the second taker is told whose it is");
    ana.run(&["device", "mode", "ct-1", "protect", "--yes", "--reason", "pilot"]).ok();
    let policy = ana.write(
        "policy.toml",
        "format = 1\n[external.archive]\nprefixes = [\"10.20.4.50/32\"]\n[rule.store]\nfrom = \"ct-1\"\nto = \"archive\"\nservices = [\"dicom\"]\nclear = true\n",
    );
    ana.run(&["policy", "check", &policy]).ok();
    let plan = ana.path("change.plan").display().to_string();
    ana.run(&["policy", "plan", &policy, "--out", &plan]).ok();
    ana.run(&["policy", "apply", &plan, "--yes", "--reason", "ticket 4711"]).ok();
    let why = ana.run(&["--json", "why", "ct-1", "archive", "dicom"]).ok().json();
    assert_eq!(why["answers"][0]["rule"], "store", "{why}");
    ana.run(&["policy", "rollback", "3", "--yes", "--reason", "back"]).ok();
    let ran = ana.run(&["status", "--wait", "60"]).ok();
    assert!(ran.out.contains("All is well. Revision 5"), "{ran:#?}");
    let ran = ana.run(&["audit", "verify"]).ok();
    assert!(ran.out.contains("5 revisions, each signed by an operator (ana)"), "{ran:#?}");
    let log = ana.run(&["audit", "list"]).ok().out;
    for word in ["gateway approve", "device mode", "policy apply", "ticket 4711"] {
        assert!(log.contains(word), "{word} isn't in\n{log}");
    }
    ana.run(&["flows"]).ok();
    ana.run(&["gateway", "show", "imaging"]).ok();
    ana.run(&["device", "show", "ct-1"]).ok();
    let list = ana.write("assets.csv", &format!("name;mac;owner\nCT 1;{MAC};Radiology\n"));
    ana.run(&["asset", "import", &list, "--yes", "--reason", "from the books"]).ok();
    let bundle = ana.path("audit.zip").display().to_string();
    ana.run(&["export", "create", &bundle]).ok();
    let checked = ana.run(&["--json", "export", "verify", &bundle]).ok().json();
    assert_eq!(checked["revision"], 6, "{checked}");
    ana.run(&["gateway", "revoke", "imaging", "--reason", "stolen", "--confirm", "imaging"]).ok();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("not cut off").unwrap();
        running.stop().await;
    });
    let ran = ana.run(&["status"]);
    assert!(
        ran.fails(1)
            .starts_with(&format!("error: can't reach the controller at https://{address}")),
        "{ran:#?}"
    );
}
