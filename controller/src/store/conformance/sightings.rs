//! What gateways saw: whose sighting makes room, and reading all of them.

use anteroom_proto::mac::MacAddr;

use super::*;

const HOUR: u64 = 3_600_000;

/// A sighting of address `number` at a port, by its gateway's clock seen from `first` to `last`.
fn seen(port: &str, number: u16, first: u64, last: u64) -> Sighting {
    let [high, low] = number.to_be_bytes();
    Sighting {
        port: port.parse().unwrap(),
        mac: MacAddr([2, 0, 0, 0, high, low]),
        first_seen: UnixMillis(first),
        last_seen: UnixMillis(last),
        ..sighting(0)
    }
}

fn confirmed(sighting: Sighting) -> Sighting {
    Sighting { member: Some(MemberId::from_bytes([7; 16])), ..sighting }
}

/// What is kept of gateway 1: port and number.
async fn kept(store: &dyn Store) -> Vec<(String, u16)> {
    let all = store.sightings_after(None, 100).await.unwrap();
    let mut all: Vec<_> = all
        .iter()
        .map(|record| {
            let [.., high, low] = record.sighting.mac.0;
            (record.sighting.port.to_string(), u16::from_be_bytes([high, low]))
        })
        .collect();
    all.sort();
    all
}

struct Told<'a> {
    store: &'a dyn Store,
    sequence: u64,
}

impl Told<'_> {
    async fn tell(&mut self, at: u64, sightings: Vec<Sighting>) -> u64 {
        self.sequence += 1;
        let new = Report { sightings, edges: vec![], ..report(1, self.sequence) };
        match self.store.record_report(gateway(1), &new, UnixMillis(at)).await.unwrap() {
            Recorded::Stored { turned_away, .. } => turned_away,
            Recorded::Duplicate => panic!("it is new"),
        }
    }
}

fn of(all: &[(&str, u16)]) -> Vec<(String, u16)> {
    all.iter().map(|(port, number)| ((*port).to_owned(), *number)).collect()
}

pub(super) async fn made_up_addresses_push_out_their_own_port_alone(store: &dyn Store) {
    enrolled(store, 1).await;
    let mut told = Told { store, sequence: 0 };
    // A neighbour's and a confirmed device's at another port, both long quiet; the third place is free.
    assert_eq!(told.tell(1, vec![seen("b", 1, 1, 1), confirmed(seen("b", 2, 1, 1))]).await, 0);
    assert_eq!(told.tell(2, (100..150).map(|n| seen("a", n, 2, 2)).collect()).await, 49);
    assert_eq!(kept(store).await, of(&[("a", 149), ("b", 1), ("b", 2)]));
    assert_eq!(told.tell(3, (200..250).map(|n| seen("a", n, 3, 3)).collect()).await, 50);
    assert_eq!(kept(store).await, of(&[("a", 249), ("b", 1), ("b", 2)]));
    // A neighbour at a third port finds room.
    assert_eq!(told.tell(4, vec![seen("c", 3, 4, 4)]).await, 1);
    assert_eq!(kept(store).await.len(), 3);
    assert!(kept(store).await.contains(&("c".to_owned(), 3)));
    assert!(kept(store).await.contains(&("b".to_owned(), 2)), "the confirmed one stays");
    let away = store.sightings_away().await.unwrap();
    assert_eq!(away.len(), 1);
    assert_eq!((away[&gateway(1)].count, away[&gateway(1)].last), (100, Some(UnixMillis(4))));
    // Where all that is kept was confirmed nothing makes room, and what is confirmed takes what isn't.
    let [x, y] = [seen("c", 4, 5, 5), seen("c", 5, 5, 5)].map(confirmed);
    assert_eq!(told.tell(5, vec![x, y]).await, 2);
    assert_eq!(kept(store).await, of(&[("b", 2), ("c", 4), ("c", 5)]));
    assert_eq!(told.tell(6, vec![seen("a", 300, 6, 6)]).await, 1);
    assert_eq!(kept(store).await, of(&[("b", 2), ("c", 4), ("c", 5)]));
    // What is told again without news takes nobody's place, and keeps its time.
    assert_eq!(told.tell(7, vec![confirmed(seen("b", 2, 7, 7))]).await, 0);
    assert_eq!(store.sightings_away().await.unwrap()[&gateway(1)].last, Some(UnixMillis(6)));
}

pub(super) async fn what_was_seen_long_ago_and_in_passing_makes_room(store: &dyn Store) {
    enrolled(store, 1).await;
    let mut told = Told { store, sequence: 0 };
    // A neighbour at the very port at which addresses are made up, which goes on speaking.
    told.tell(1, vec![seen("a", 1, 0, 0), seen("a", 2, 0, 0)]).await;
    told.tell(2, vec![seen("a", 1, 0, HOUR)]).await;
    told.tell(3, (100..150).map(|n| seen("a", n, 3, 3)).collect()).await;
    assert!(kept(store).await.contains(&("a".to_owned(), 1)), "{:?}", kept(store).await);
    // One that lost its place before it had settled is back when it is told of again, and stays.
    told.tell(4, vec![seen("a", 2, 0, HOUR)]).await;
    told.tell(5, (200..250).map(|n| seen("a", n, 5, 5)).collect()).await;
    assert_eq!(kept(store).await, of(&[("a", 1), ("a", 2), ("a", 249)]));
    // What is passing at the port goes before what settled at a fuller one.
    assert_eq!(told.tell(6, vec![seen("b", 3, 6, 6)]).await, 1);
    assert_eq!(kept(store).await, of(&[("a", 1), ("a", 2), ("b", 3)]));
    assert_eq!(told.tell(7, vec![seen("b", 4, 7, 7)]).await, 1);
    assert_eq!(kept(store).await, of(&[("a", 1), ("a", 2), ("b", 4)]));
    // What nothing was told of for long goes first, settled or not.
    let late = LIMITS.sighting_age + 3;
    told.tell(late, vec![seen("b", 4, 7, 8)]).await;
    assert_eq!(told.tell(late, vec![seen("b", 5, 9, 9)]).await, 1);
    assert_eq!(kept(store).await, of(&[("a", 2), ("b", 4), ("b", 5)]));
}

pub(super) async fn sightings_are_read_page_by_page(store: &dyn Store) {
    for number in 1..=2 {
        enrolled(store, number).await;
        let mut new = report(1, 1);
        let tagged = Sighting { vlan: Some(7), ..seen("a", 1, 1, 1) };
        new.sightings = vec![seen("a", 1, 1, 1), tagged, seen("b", 1, 1, 1)];
        store.record_report(gateway(number), &new, UnixMillis(9)).await.unwrap();
    }
    let place = |record: &SightingRecord| SightingPlace {
        gateway: record.gateway,
        port: record.sighting.port.clone(),
        mac: record.sighting.mac,
        vlan: record.sighting.vlan,
    };
    let whole = store.sightings_after(None, 100).await.unwrap();
    assert_eq!(whole.len(), 6);
    for size in [1, 2, 5] {
        let mut read = Vec::new();
        while let page = store.sightings_after(read.last().map(place).as_ref(), size).await.unwrap()
            && !page.is_empty()
        {
            assert!(page.len() <= size as usize);
            read.extend(page);
        }
        assert_eq!(read, whole, "{size} at once");
    }
}
