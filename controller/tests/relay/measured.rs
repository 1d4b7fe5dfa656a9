//! What relaying costs. Run on demand, optimised: `cargo test --release -p anteroom-controller --test relay -- --ignored
//! --nocapture measured`.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anteroom_proto::relay::packet::{self, Datagram};

use crate::support::{Bed, Gateway, read, sealed, soon};

/// Kills the relay when the test is over, however that ends.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Seconds of processor time that a process has used.
fn processor_seconds(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "measures; run it optimised and alone"]
async fn what_a_gigabyte_costs() {
    let mut bed = Bed::made("");
    let (key, port) = (bed.key, 24433);
    bed.decree(|bed, next| {
        next.relays = vec![anteroom_proto::authority::Relay {
            name: "relay".parse().unwrap(),
            key,
            addresses: vec![bed.address.to_string()],
        }];
    });
    let config = bed.path().join("relay.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("127.0.0.1:0", &format!("127.0.0.1:{port}"))).unwrap();
    bed.address = ([127, 0, 0, 1], port).into();
    let program = Command::new(env!("CARGO_BIN_EXE_anteroom-controller"))
        .args(["relay", "--dir"])
        .arg(bed.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let program = Program(program);
    let mut a = Gateway::connect(&bed, 1, 1, &[2]).await;
    let mut b = Gateway::connect(&bed, 2, 2, &[1]).await;
    let to_b = a.hear_of(2, |room| room.is_some_and(|room| room > 1350)).await;
    b.meet(1).await;
    let mut trips = Vec::new();
    for nonce in 0u64..200 {
        let begun = Instant::now();
        a.link.connection().send_datagram(packet::probe(nonce.to_be_bytes()).into()).unwrap();
        let answer = soon("an answer", a.link.connection().read_datagram()).await.unwrap();
        assert_eq!(packet::parse(&answer), Some(Datagram::Answer(nonce.to_be_bytes())));
        trips.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    trips.sort_unstable();
    println!("round trip to the relay: median {:?}, 95 % under {:?}", trips[100], trips[190]);
    for len in [1300usize, 200] {
        let before = processor_seconds(program.0.id());
        let begun = Instant::now();
        let sender = a.link.connection().clone();
        let sending = tokio::spawn(async move {
            let packet = bytes::Bytes::from(sealed(to_b, 1, len));
            let mut sent = 0u64;
            while begun.elapsed() < Duration::from_secs(10) {
                sender.send_datagram_wait(packet.clone()).await.unwrap();
                sent += 1;
            }
            sent
        });
        let mut arrived = 0u64;
        while let Ok(Ok(datagram)) =
            tokio::time::timeout(Duration::from_secs(1), b.link.connection().read_datagram()).await
        {
            assert_eq!(read(&datagram).2, len);
            arrived += 1;
        }
        let sent = soon("the sender", sending).await.unwrap();
        let used = processor_seconds(program.0.id()) - before;
        #[allow(clippy::cast_precision_loss, reason = "figures for people")]
        let (bytes, lost) = ((arrived * len as u64) as f64, (sent - arrived) as f64 / sent as f64);
        println!(
            "{len}-byte packets: {:.0} Mbit/s, {:.2} processor seconds per gigabyte, {:.1} % of {sent} lost",
            bytes * 8.0 / 10.0 / 1e6,
            used / (bytes / 1e9),
            lost * 100.0
        );
    }
}
