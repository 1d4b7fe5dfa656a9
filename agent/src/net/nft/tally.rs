//! What rules have counted.

use std::io;

use super::{Family, SUBSYSTEM};
use crate::net::netlink::{Attributes, Message, Session};

const GET_RULE: u16 = 7;

/// What the rules of a chain have counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) chain: String,
    pub(crate) packets: u64,
}

/// What each rule with a counter has counted in `table`.
///
/// # Errors
/// What the kernel says.
pub(crate) fn counted(session: &Session, family: Family, table: &str) -> io::Result<Vec<Counted>> {
    let mut question = Message::new(SUBSYSTEM << 8 | GET_RULE, 0, &[family as u8, 0, 0, 0]);
    question.put_text(1, table);
    let rules = session.dump(question)?;
    Ok(rules.iter().flat_map(|rule| counters(rule.get(4..).unwrap_or_default())).collect())
}

/// The counters in a rule.
fn counters(rule: &[u8]) -> Vec<Counted> {
    let chain = find(rule, 2).map(|chain| chain.split(|byte| *byte == 0).next().unwrap_or(&[]));
    let Some(chain) = chain.map(|chain| String::from_utf8_lossy(chain).into_owned()) else {
        return Vec::new();
    };
    let expressions = Attributes(find(rule, 4).unwrap_or_default());
    let counters = expressions.filter_map(|(_, expression)| {
        find(expression, 1).filter(|name| *name == b"counter\0")?;
        let packets = find(find(expression, 2)?, 2)?.try_into().ok()?;
        Some(Counted { chain: chain.clone(), packets: u64::from_be_bytes(packets) })
    });
    counters.collect()
}

fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    Attributes(bytes).find(|attribute| attribute.0 == kind).map(|attribute| attribute.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_rule_makes_it_panic(rule: Vec<u8>, length in 0..64_u8) {
            let mut rule = rule;
            if let Some(first) = rule.first_mut() {
                *first = length;
            }
            counters(&rule);
        }
    }
}
