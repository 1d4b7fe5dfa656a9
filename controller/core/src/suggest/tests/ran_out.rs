use super::*;

/// A hospital whose vendor's rule ran out on the thirtieth of the sixty days.
fn vendors() -> Model {
    let mut model = empty();
    class(&mut model, "ct", 10, 12, 1);
    model.policy.push_str(
        "[external.vendor]\nprefixes = [\"10.9.0.5/32\"]\n[segment.ct]\nmatch = { label.class = \"ct\" }\n\
         [rule.ticket-1]\nfrom = \"vendor\"\nto = \"ct\"\nservices = [\"vnc\"]\nclear = true\nexpires = 2026-10-23T00:00:00Z\n",
    );
    model
}

fn vendor() -> Party {
    Party::Address([10, 9, 0, 5].into())
}

#[test]
fn what_a_rule_opened_that_is_over_is_asked_for_where_it_goes_on() {
    let model = vendors();
    let mut history = History::new(10_000);
    calls(&mut history, vendor(), member(10), 5900, 10..50);
    calls(&mut history, vendor(), member(11), 5900, 10..29);
    calls(&mut history, member(12), vendor(), 443, 10..50);
    let (found, after) = learn(&model, &history);
    let asked: Vec<_> = found.questions.iter().map(|one| (one.to, one.doubt)).collect();
    assert_eq!(asked, [(member(10), Doubt::RanOut)], "{}", found.text);
    assert!(
        found.text.contains("# - vendor to ct-10, tcp/5900: 200 flows, last on 2026-11-11; rule.ticket-1 opened it until 2026-10-23\n"),
        "{}",
        found.text
    );
    assert!(
        after
            .rules
            .iter()
            .all(|rule| rule.name.as_str() == "ticket-1" || rule.ports[0].first == 443),
        "{}",
        found.text
    );
    assert_eq!(found.rules.len(), 1, "what the rule never opened is learnt: {}", found.text);
}

#[test]
fn a_service_s_other_port_opens_nothing_again_that_a_rule_s_end_closed() {
    let mut model = vendors();
    model.policy = model.policy.replace("[\"vnc\"]", "[\"archive\"]");
    model.policy.push_str("[service.archive]\nports = [\"tcp/11112\"]\n");
    let mut history = History::new(10_000);
    calls(&mut history, vendor(), member(10), 104, 10..50);
    let (found, after) = learn(&model, &history);
    assert!(opens(&after, vendor(), member(10), 104), "{}", found.text);
    let again = after.rules.iter().filter(|rule| rule.name.as_str() != "ticket-1");
    let ports: Vec<u16> = again.flat_map(|rule| &rule.ports).map(|port| port.first).collect();
    assert_eq!(ports, [104], "{}", found.text);
    // Where nothing was closed, the service has its name.
    model.policy = "format = 1\n".into();
    let (found, _) = learn(&model, &history);
    assert!(found.text.contains("services = [\"dicom\"]"), "{}", found.text);
}

#[test]
fn another_rule_that_is_in_force_leaves_nothing_to_ask() {
    let mut model = vendors();
    model.policy.push_str("[rule.ticket-2]\nfrom = \"vendor\"\nto = \"ct\"\nservices = [\"vnc\"]\nclear = true\nexpires = 2030-01-01T00:00:00Z\n");
    let mut history = History::new(10_000);
    calls(&mut history, vendor(), member(10), 5900, 10..50);
    let (found, _) = learn(&model, &history);
    assert_eq!((found.questions.len(), found.rules.len()), (0, 0), "{}", found.text);
}

#[test]
fn what_others_of_a_class_do_opens_nothing_again_that_a_rule_s_end_closed() {
    for (case, days) in [("it goes on", 10..50), ("it stopped", 10..29)] {
        let mut model = vendors();
        model.policy = model.policy.replace("to = \"ct\"", "to = \"ct-10\"");
        let mut history = History::new(10_000);
        calls(&mut history, vendor(), member(10), 5900, days.clone());
        for number in 11..22 {
            calls(&mut history, vendor(), member(number), 5900, 10..50);
        }
        let (found, after) = learn(&model, &history);
        let anew = |number: u32| {
            let flow =
                Flow { from: vendor(), to: member(number), protocol: Protocol::Tcp, port: 5900 };
            let mut rules = Vec::new();
            candidates(&after, &flow, &mut |_, rule| rules.push(rule.name.to_string()));
            rules.retain(|rule| rule != "ticket-1");
            rules
        };
        assert_eq!(anew(10), [""; 0], "{case}: {}", found.text);
        for number in 11..22 {
            assert!(!anew(number).is_empty(), "{case}, ct-{number}: {}", found.text);
        }
        let asked: Vec<_> = found.questions.iter().map(|one| (one.to, one.doubt)).collect();
        let wanted: &[_] = if days.end == 50 { &[(member(10), Doubt::RanOut)] } else { &[] };
        assert_eq!(asked, wanted, "{case}: {}", found.text);
    }
}
