//! What gateways count of traffic is at the controller once and only once, whoever stops, dies and comes back in between.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anteroom::home::Home;
use anteroom::remote::Remote;
use anteroom_agent_core::report::FlowInfo;
use anteroom_e2e::{Stage, fixture};
use anteroom_lab::hospital::Hospital;
use anteroom_lab::story::approve_all;
use anteroom_lab::wait;
use anteroom_proto::api::HistoryQuery;

/// How long anything may take on a machine that has a lot else to do.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long an answer may take before it is asked for again.
const ANSWER: Duration = Duration::from_secs(1);
/// Where the archive answers.
const PORT: u16 = 9_999;
/// Datagrams of each round.
const ROUND: usize = 40;

/// Packets from the device and to it.
type Count = [u64; 2];

fn plus(a: Count, b: Count) -> Count {
    [a[0] + b[0], a[1] + b[1]]
}

/// Has the CT ask the archive, and stay silent from then on.
fn talk(hospital: &Hospital) {
    let (ct, archive) = (hospital.machine("ct-1"), hospital.machine("archive-1"));
    let open = |host: &anteroom_lab::topology::Host, at: SocketAddr| {
        let socket = host.enter(|| UdpSocket::bind(at)).unwrap().unwrap();
        socket.set_read_timeout(Some(ANSWER)).unwrap();
        socket
    };
    let asks = open(&ct.host, ct.at(0));
    let answers = open(&archive.host, archive.at(PORT));
    let mut answered = 0;
    wait::until(PATIENCE, "the archive to answer", || {
        let mut buffer = [0; 16];
        asks.send_to(b"?", archive.at(PORT)).unwrap();
        // One that is lost is asked again: what passed is counted by the gateway.
        if let Ok((_, from)) = answers.recv_from(&mut buffer) {
            answers.send_to(b"!", from).unwrap();
            answered += usize::from(asks.recv_from(&mut buffer).is_ok());
        }
        (answered >= ROUND).then_some(())
    })
    .unwrap();
}

/// What the gateway itself has counted of that since its start.
fn counted(hospital: &Hospital) -> Count {
    let outcome = hospital.gateways["imaging"].command(&["flows", "--json"]).unwrap().ok().unwrap();
    let flows: Vec<FlowInfo> = serde_json::from_str(&outcome.stdout).unwrap();
    let ours = flows.iter().filter(|flow| flow.responder_port == PORT);
    ours.fold([0; 2], |sum, flow| plus(sum, [flow.packets_out, flow.packets_in]))
}

/// What the controller keeps of it.
fn kept(hospital: &Hospital) -> anyhow::Result<Count> {
    hospital.operator.host.enter(|| {
        let mut remote = Remote::open(&Home::locate(Some(&hospital.operator.home))?)?;
        let (mut sum, mut query) = ([0; 2], HistoryQuery::default());
        while let Some(page) = remote.history_page(&query)? {
            let ours = page.edges.iter().filter(|edge| edge.port == PORT && edge.outbound);
            sum = ours.fold(sum, |sum, edge| plus(sum, [edge.packets_out, edge.packets_in]));
            query.after = page.next;
            if page.next.is_none() {
                break;
            }
        }
        Ok(sum)
    })?
}

fn restart(hospital: &mut Hospital) {
    let gateway = hospital.gateway("imaging");
    gateway.stop().unwrap();
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
}

fn wait_until_kept(hospital: &Hospital, wanted: Count) {
    wait::until_ok(PATIENCE, "all that was counted to be at the controller", || {
        let kept = kept(hospital)?;
        anyhow::ensure!(kept == wanted, "{kept:?} of {wanted:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn restarts_and_a_controller_that_is_away_lose_no_edge_and_double_none() {
    let test = "restarts_and_a_controller_that_is_away_lose_no_edge_and_double_none";
    let Some(mut fixture) = fixture(test, Stage::Wires) else { return };
    let hospital = &mut fixture.hospital;
    approve_all(hospital).unwrap();

    // The agent stops before its next report is due.
    talk(hospital);
    let mut wanted = counted(hospital);
    assert!(wanted.iter().all(|count| *count >= ROUND as u64), "{wanted:?}");
    restart(hospital);
    wait_until_kept(hospital, wanted);

    // The controller is away, and the agent stops twice before it is back.
    hospital.controller.kill().unwrap();
    for _ in 0..2 {
        talk(hospital);
        wanted = plus(wanted, counted(hospital));
        restart(hospital);
    }
    hospital.controller.start().unwrap();
    wait_until_kept(hospital, wanted);

    // Nothing of it comes again.
    restart(hospital);
    talk(hospital);
    wanted = plus(wanted, counted(hospital));
    restart(hospital);
    wait_until_kept(hospital, wanted);
}
