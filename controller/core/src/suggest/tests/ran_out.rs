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
fn another_rule_that_is_in_force_leaves_nothing_to_ask() {
    let mut model = vendors();
    model.policy.push_str("[rule.ticket-2]\nfrom = \"vendor\"\nto = \"ct\"\nservices = [\"vnc\"]\nclear = true\nexpires = 2030-01-01T00:00:00Z\n");
    let mut history = History::new(10_000);
    calls(&mut history, vendor(), member(10), 5900, 10..50);
    let (found, _) = learn(&model, &history);
    assert_eq!((found.questions.len(), found.rules.len()), (0, 0), "{}", found.text);
}
