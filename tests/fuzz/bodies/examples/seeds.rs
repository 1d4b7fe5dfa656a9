//! Writes the first inputs of each fuzzer into `tests/fuzz/corpus`: `cargo run -p anteroom-fuzz-bodies --example seeds`.

use std::path::Path;

use anteroom_agent_core::wire::arp;
use anteroom_controller_core::model::Model;
use anteroom_fuzz_bodies::documents::{GATEWAY, ORGANISATION};
use anteroom_proto::approval::Place;
use anteroom_proto::cbor;
use anteroom_proto::id::{InviteId, MemberId, RuleId};
use anteroom_proto::intent::{Endpoint, Intent};
use anteroom_proto::invite::{IdentityClaim, Invite};
use anteroom_proto::key::{Hash, IdentityKey};
use anteroom_proto::mode::Mode;
use anteroom_proto::operation::{Operation, ViewNumber};
use anteroom_proto::rollout::{Expected, Trial};
use anteroom_proto::time::UnixMillis;
use anteroom_proto::v1::{Refusal, RefusalCode, ToAgent};
use anteroom_sim::{hospital, packet, plan};

fn main() -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    for (fuzzer, seeds) in [
        ("frames", frames()),
        ("documents", documents()),
        ("text", text()),
        ("engine", noise(40, 300)),
        ("peer", noise(10, 160)),
    ] {
        let directory = corpus.join(fuzzer);
        std::fs::create_dir_all(&directory)?;
        for (name, bytes) in seeds {
            std::fs::write(directory.join(format!("seed-{name}")), bytes)?;
        }
    }
    Ok(())
}

type Seeds = Vec<(String, Vec<u8>)>;

/// Repeatable bytes that look like nothing.
fn noise(count: u64, len: usize) -> Seeds {
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut byte = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    };
    (0..count)
        .map(|at| {
            let mut bytes: Vec<u8> = (0..len).map(|_| byte()).collect();
            // Half begin with everything in enforce and a live tunnel.
            bytes[0] = if at % 2 == 0 { 0x80 } else { bytes[0] };
            (format!("{at:02}"), bytes)
        })
        .collect()
}

fn frames() -> Seeds {
    let (a, b) = ([10, 20, 1, 10].into(), [10, 20, 4, 10].into());
    let (mac_a, mac_b) = (plan::mac(0xde, 1), plan::mac(0xde, 2));
    let control = |flags: u8, gso: u8, size: u16, limit: u16| {
        let mut bytes = vec![flags, 0, gso, 54, 0];
        bytes.extend(size.to_le_bytes());
        bytes.extend([34, 0, 16, 0]);
        bytes.extend(limit.to_le_bytes());
        bytes.extend([7, 0]);
        bytes
    };
    let ip = |packet: &[u8]| packet::frame(mac_b, mac_a, 0x0800, packet);
    let tcp = ip(&packet::tcp((a, 40_000), (b, 104), 0x18, &[0x5a; 400]));
    let syn = ip(&packet::tcp((a, 40_000), (b, 104), 0x02, &[]));
    let udp = ip(&packet::udp((a, 5_000), (b, 5_000), &[0x5a; 300]));
    let mut tagged = udp.clone();
    tagged.splice(12..12, [0x81, 0, 0, 42]);
    let cases = [
        ("tcp-whole", control(7, 0, 0, 1_440), tcp.clone()),
        ("tcp-super", control(7, 1, 100, 1_440), tcp.clone()),
        ("tcp-cut", control(7, 0, 0, 200), tcp),
        ("syn", control(7, 0, 0, 1_000), syn),
        ("udp-super", control(5, 5, 64, 1_440), udp.clone()),
        ("udp-cut", control(5, 0, 0, 120), udp),
        ("echo", control(5, 0, 0, 1_440), ip(&packet::echo(a, b, false, 9, &[1; 32]))),
        ("tagged", control(8, 0, 0, 1_440), tagged),
        ("arp", control(0, 0, 0, 0), arp::request(mac_a, a, b)[14..].to_vec()),
    ];
    cases
        .into_iter()
        .map(|(name, control, frame)| (name.into(), [control, frame].concat()))
        .collect()
}

fn documents() -> Seeds {
    let key = IdentityKey::from_seed(&[3; 32]).public();
    let world = hospital::hospital(1);
    let intent = Intent {
        identity: None,
        organisation: ORGANISATION,
        gateway: GATEWAY,
        ..world.plan.view(0).intent.clone()
    };
    // Smaller: what a fuzzer changes should matter.
    let mut small = intent.clone();
    small.rules.truncate(1);
    small.rules[0].to = Endpoint::Member(MemberId::from_bytes([5; 16]));
    small.rules[0].id = RuleId::of("scans");
    let mut trial = small.clone();
    trial.devices[0].member.mode = Mode::Enforce;
    trial.devices[0].rollout.trial = Some(Trial {
        since: Place::new(1, 7),
        within: 60_000,
        back_to: Mode::Protect,
        expects: vec![Expected {
            remote: [10, 20, 9, 5].into(),
            outbound: true,
            protocol: 6,
            port: 104,
        }],
    });
    let operation = Operation {
        organisation: ORGANISATION,
        gateway: GATEWAY,
        number: ViewNumber { incarnation: 1, sequence: 7 },
        revision: 7,
        peers: Vec::new(),
        quarantined: vec![MemberId::from_bytes([1; 16])],
        suspended: Vec::new(),
        issued_at: UnixMillis(1_800_000_000_000),
    };
    let invite = Invite {
        organisation: ORGANISATION,
        invite: InviteId::from_bytes([2; 16]),
        gateway: GATEWAY,
        name: "imaging".parse().expect("a name"),
        site: "north".parse().expect("a name"),
        key,
        not_after: UnixMillis(1_800_000_000_000),
    };
    let claim = IdentityClaim {
        organisation: ORGANISATION,
        invite: InviteId::from_bytes([2; 16]),
        gateway: GATEWAY,
        identity: key,
    };
    let refused = ToAgent::Refused(Refusal {
        code: RefusalCode::Busy,
        message: "later".into(),
        fatal: false,
    });
    let view = |intent: &Intent, operation: Vec<u8>| {
        let intent = cbor::encode(intent);
        let len = (intent.len() as u16).to_be_bytes();
        [&len[..], &intent, &operation].concat()
    };
    let kind = |kind: u8, bytes: Vec<u8>| [vec![kind], bytes].concat();
    let mut model = Model::new(ORGANISATION);
    model.policy = "format = 1\n[service.x]\nports = [\"tcp/1\"]\n".into();
    let cases = [
        ("refused", kind(1, cbor::encode(&refused))),
        ("intent", kind(3, cbor::encode(&small))),
        ("trial", kind(3, cbor::encode(&trial))),
        ("view-trial", kind(16, view(&trial, Vec::new()))),
        ("operation", kind(4, cbor::encode(&operation))),
        ("model", kind(6, model.encode())),
        ("invite", kind(9, cbor::encode(&invite))),
        ("claim", kind(10, cbor::encode(&claim))),
        ("signed-operation", kind(13, cbor::encode(&operation))),
        ("view", kind(16, view(&intent, Vec::new()))),
        ("view-small", kind(16, view(&small, Vec::new()))),
        ("view-operation", kind(16, view(&small, cbor::encode(&operation)))),
        ("code", kind(17, cbor::encode(&(Hash::ZERO, key)))),
        ("json", kind(19, br#"{"after":3,"limit":9}"#.to_vec())),
    ];
    cases.into_iter().map(|(name, bytes)| (name.into(), bytes)).collect()
}

fn text() -> Seeds {
    let policy = r#"format = 1
[infrastructure.north]
dhcp = ["10.20.0.2"]
[external.pacs-vip]
prefixes = ["10.20.4.11/32"]
review = 2027-03-01
[segment.pacs]
externals = ["pacs-vip"]
[segment.ct]
match = { site = "north", label.class = "ct" }
[service.listen]
ports = ["tcp/4006", "udp/5000-5010", "icmp/echo"]
[rule.a] # why
from = "ct"
to = "pacs"
services = ["dicom", "listen"]
clear = true
expires = 2026-12-01T18:00:00+01:00
reason = "PM"
[test.t]
from = "ct"
to = "pacs"
services = ["dicom"]
expect = "deny"
"#;
    let agent = "[uplink]\ninterface = \"up0\"\n[underlay]\nlisten = \"0.0.0.0:51820\"\n[[port]]\nname = \"port1\"\ninterface = \"port0\"\n";
    let controller = "[quic]\nlisten = \"0.0.0.0:4433\"\nadvertise = [\"c.example:4433\"]\n[https]\nlisten = \"0.0.0.0:8443\"\nadvertise = [\"c.example:8443\"]\n";
    let cases = [
        ("policy", 0, policy),
        ("service", 1, "udp/5000-5010"),
        ("mac", 1, "00:1b:21:00:de:01"),
        ("agent", 2, agent),
        ("controller", 3, controller),
    ];
    cases
        .into_iter()
        .map(|(name, kind, text)| (name.into(), [&[kind], text.as_bytes()].concat()))
        .collect()
}
