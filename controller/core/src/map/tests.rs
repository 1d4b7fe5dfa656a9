use insta::assert_snapshot;

use super::*;
use crate::decide::End;
use crate::fixture::{NOW, hospital, member_id, name};
use crate::history::{Counts, Seen};

fn history() -> History {
    let mut history = History::new(100);
    let mut add = |from: Party, to: Party, port, way, back| {
        history.add(&Seen {
            from,
            to,
            protocol: Protocol::Tcp,
            port,
            way,
            at: End::From,
            counts: Counts { flows: 3, packets: 9, packets_back: back, ..Counts::default() },
            first: NOW,
            last: NOW,
        });
    };
    let member = |number| Party::Member(member_id(number));
    add(member(1), member(5), 104, Way::Clear, 1);
    add(member(4), member(6), 2575, Way::Guarded, 1);
    add(member(3), Party::Address([10, 20, 9, 9].into()), 4711, Way::Dropped, 0);
    add(member(3), member(6), 445, Way::Clear, 0);
    add(member(5), Party::Address([10, 20, 4, 20].into()), 443, Way::Clear, 1);
    history
}

fn drawn(
    resolved: &Resolved,
    grain: Grain,
    since: UnixMillis,
    wanted: &dyn Fn(&Edge) -> bool,
) -> Map {
    map(resolved, &Surfaces::of(resolved), &history(), grain, since, wanted)
}

#[test]
fn a_map_says_who_talks_to_whom_and_how() {
    let resolved = Resolved::new(&hospital()).unwrap();
    let found = drawn(&resolved, Grain::Each, NOW, &|_| true);
    assert_eq!(found.unanswered, 1);
    assert_snapshot!(found.text(), @r"
    ct-1
      -> pacs-1: dicom (clear, 3 flows, patient data in the clear)
    monitor-1
      -> hl7-1: hl7 (tunnel, 3 flows, patient data)
    pacs-1
      -> outside archive: https (clear, 3 flows)
    pump-1
      -> outside 10.20.9.9: tcp/4711 (dropped, 3 flows)
    ");
    let later = UnixMillis(NOW.0 + 1);
    assert!(drawn(&resolved, Grain::Each, later, &|_| true).nodes.is_empty());
    let only = Party::Member(member_id(4));
    let one = drawn(&resolved, Grain::Each, NOW, &|edge| edge.from == only);
    assert_eq!((one.nodes.len(), one.lines.len()), (2, 1));
}

#[test]
fn a_scan_that_came_to_nothing_hides_no_conversation() {
    let resolved = Resolved::new(&hospital()).unwrap();
    let mut scanned = history();
    for (to, ports) in [(5, 1..=12), (6, 1..=3)] {
        for port in ports {
            scanned.add(&Seen {
                from: Party::Member(member_id(3)),
                to: Party::Member(member_id(to)),
                protocol: Protocol::Tcp,
                port: 9_000 + port,
                way: Way::Dropped,
                at: End::From,
                counts: Counts { flows: 1, packets: 1, ..Counts::default() },
                first: NOW,
                last: UnixMillis(NOW.0 + u64::from(port)),
            });
        }
    }
    let surfaces = Surfaces::of(&resolved);
    let found = map(&resolved, &surfaces, &scanned, Grain::Each, NOW, &|_| true);
    assert_snapshot!(found.text(), @r"
    ct-1
      -> pacs-1: dicom (clear, 3 flows, patient data in the clear)
    monitor-1
      -> hl7-1: hl7 (tunnel, 3 flows, patient data)
    pacs-1
      -> outside archive: https (clear, 3 flows)
    pump-1
      -> outside 10.20.9.9: tcp/4711 (dropped, 3 flows)
      -> hl7-1: tcp/9001 (dropped, 1 flow)
      -> hl7-1: tcp/9002 (dropped, 1 flow)
      -> hl7-1: tcp/9003 (dropped, 1 flow)
      -> pacs-1: 12 services (dropped, 12 flows)
    ");
    let all = found.lines.iter().find(|line| line.service == "12 services").unwrap();
    assert_eq!(all.last, UnixMillis(NOW.0 + 12));
}

#[test]
fn classes_stand_for_their_devices() {
    let mut model = hospital();
    let monitors = [(name("class"), Some("monitor".to_owned()))];
    model.label_device("pump-1", &monitors).unwrap();
    let resolved = Resolved::new(&model).unwrap();
    let found = drawn(&resolved, Grain::Class, NOW, &|_| true);
    assert_snapshot!(found.text(), @r"
    ct
      -> pacs: dicom (clear, 3 flows, patient data in the clear)
    monitor (2)
      -> outside 10.20.9.0/24: tcp/4711 (dropped, 3 flows)
      -> hl7: hl7 (tunnel, 3 flows, patient data)
    pacs
      -> outside archive: https (clear, 3 flows)
    ");
}

#[test]
fn pictures_are_well_formed_whatever_things_are_called() {
    let mut model = hospital();
    let odd = [(name("class"), Some("<\"&\\ct>".to_owned()))];
    model.label_device("ct-1", &odd).unwrap();
    let resolved = Resolved::new(&model).unwrap();
    let found = drawn(&resolved, Grain::Class, NOW, &|_| true);
    let dot = found.dot();
    assert!(dot.contains(r#"[label = "<\"&\\ct>"]"#), "{dot}");
    assert_eq!(dot.matches(" -> ").count(), found.lines.len(), "{dot}");
    let svg = found.svg();
    assert!(svg.contains("&lt;&quot;&amp;\\ct&gt;") && !svg.contains("<\"&"), "{svg}");
    assert_eq!(svg.matches("<g class=\"am-cell\">").count(), found.lines.len(), "{svg}");
    assert_eq!(Map::default().svg().matches("am-cell\"").count(), 0);
}

#[test]
fn lives_stand_out_and_services_of_the_policy_may_name_patients() {
    let mut model = hospital();
    let critical = "[segment.monitors]\ncriticality = \"life-support\"";
    model.policy = model.policy.replace("[segment.monitors]", critical);
    model.policy.push_str("[service.x]\nports = [\"tcp/4711\"]\npatient_data = true\n");
    let monitors = [(name("class"), Some("monitor".to_owned()))];
    model.label_device("hl7-1", &monitors).unwrap();
    model.label_device("pump-1", &[(name("class"), None)]).unwrap();
    let resolved = Resolved::new(&model).unwrap();
    let found = drawn(&resolved, Grain::Class, NOW, &|_| true);
    assert_snapshot!(found.text(), @r"
    10.20.2.0/24, no class
      -> outside 10.20.9.0/24: x (dropped, 3 flows)
    ct
      -> pacs: dicom (clear, 3 flows, patient data in the clear)
    monitor (2, life support)
      -> monitor (2, life support): hl7 (tunnel, 3 flows, patient data)
    pacs
      -> outside archive: https (clear, 3 flows)
    ");
    let svg = found.svg();
    assert_eq!(svg.matches("class=\"am-life\"").count(), 2, "on either side: {svg}");
    assert_eq!(found.dot().matches("fillcolor").count(), 1);
    let mut sorted = found.clone();
    sorted.most_critical_first();
    let text = sorted.text();
    assert!(text.starts_with("monitor (2, life support)\n  -> monitor"), "{text}");
    assert_eq!((sorted.lines.len(), text.len()), (found.lines.len(), found.text().len()));
    let found = drawn(&resolved, Grain::Segment, NOW, &|_| true);
    let names: Vec<&str> = found.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(
        names,
        ["10.20.2.0/24, no class", "10.20.9.0/24", "archive", "ct", "monitors", "pacs"]
    );
}

#[test]
fn things_of_two_kinds_and_of_two_sites_are_two_nodes() {
    let mut model = hospital();
    // The scanner is in no segment, and its class is called as the segment of monitors.
    let odd = [(name("class"), Some("monitors".to_owned()))];
    model.label_device("ct-1", &odd).unwrap();
    let resolved = Resolved::new(&model).unwrap();
    let found = drawn(&resolved, Grain::Segment, NOW, &|_| true);
    let names: Vec<&str> = found.nodes.iter().map(|node| node.name.as_str()).collect();
    assert!(names.contains(&"monitors") && names.contains(&"monitors, no segment"), "{names:?}");

    model.label_device("ct-1", &[(name("class"), None)]).unwrap();
    model.label_device("pacs-1", &[(name("class"), None)]).unwrap();
    let (scanner, archive) = (member_id(1), member_id(5));
    let address = model.devices[&scanner].addresses.clone();
    model.devices.get_mut(&archive).unwrap().addresses = address;
    let gateway = model.devices[&archive].attachment.gateway;
    model.gateways.get_mut(&gateway).unwrap().site = name("south");
    model.policy = "format = 1\n".into();
    let resolved = Resolved::new(&model).unwrap();
    let found = drawn(&resolved, Grain::Class, NOW, &|_| true);
    let names: Vec<&str> = found.nodes.iter().map(|node| node.name.as_str()).collect();
    let of = |site: &str| format!("10.20.1.0/24 of {site}, no class");
    assert!(
        names.contains(&of("north").as_str()) && names.contains(&of("south").as_str()),
        "{names:?}"
    );
}

#[test]
fn marks_differ_by_shape_and_not_only_by_colour() {
    let line = |to, service: &str, patient_data, guarded, clear, dropped| Line {
        from: 0,
        to,
        service: service.into(),
        patient_data,
        guarded,
        clear,
        dropped,
        bytes: 0,
        last: NOW,
    };
    let node = |number: usize| Node {
        name: format!("node-{number}\u{202e}"),
        outside: false,
        size: 1,
        criticality: None,
        life_support: 0,
    };
    let lines = vec![
        line(0, "a", false, 1, 0, 0),
        line(1, "a", false, 0, 1, 0),
        line(2, "a", false, 0, 0, 1),
        line(3, "a", true, 1, 0, 0),
        line(4, "a", true, 0, 1, 0),
        line(5, "a", false, 1, 1, 0),
        line(5, "b", false, 0, 1, 0),
        line(6, "a", false, 0, 0, 0),
    ];
    let map = Map { nodes: (0..7).map(node).collect(), lines, unanswered: 0 };
    let svg = map.svg();
    let shapes = |line: &str| -> String {
        let mut shapes: Vec<String> = Vec::new();
        for part in line.split('<').skip(1).filter(|part| !part.starts_with(['/', 'g', 't'])) {
            let word = part.split(' ').next().unwrap_or_default();
            let patient = if part.contains("am-patient") { "!" } else { "" };
            shapes.push(format!("{word}{patient}"));
        }
        shapes.join("+")
    };
    let cells: Vec<&str> = svg.lines().filter(|line| line.contains("am-cell\"")).collect();
    let found: Vec<String> = cells.iter().map(|line| shapes(line)).collect();
    let wanted = ["circle", "rect", "path", "circle+path!", "rect+path!", "rect+circle", "circle"];
    assert_eq!(found, wanted, "{svg}");
    assert!(svg.contains(">2</text>"), "two services: {svg}");
    assert!(!svg.contains('\u{202e}'), "{svg}");
}

#[test]
fn of_very_many_nodes_those_with_most_flows_are_drawn() {
    let nodes = (0..1_500).map(|number| Node {
        name: format!("n{number}"),
        outside: false,
        size: 1,
        criticality: None,
        life_support: 0,
    });
    let line = |from: usize| Line {
        from,
        to: 0,
        service: "a".into(),
        patient_data: false,
        guarded: from as u64,
        clear: 0,
        dropped: 0,
        bytes: 0,
        last: NOW,
    };
    let map = Map { nodes: nodes.collect(), lines: (0..1_500).map(line).collect(), unanswered: 0 };
    let svg = map.svg();
    assert!(svg.contains("500 nodes with fewer flows aren't drawn"), "it says so");
    assert!(svg.contains(">n1499</text>") && !svg.contains(">n7</text>"));
}
