//! DICOM (PS3.8): associations are read, what is sent over them isn't. Who signs in (user identity, PS3.7 D.3.3.7) is passed by.

use anteroom_proto::inventory::HintKind;

use crate::cursor::Cursor;
use crate::sight::{Sights, Station};
use crate::stream::Talk;

const REQUEST: u8 = 1;
const ACCEPT: u8 = 2;
const REJECT: u8 = 3;
/// Bytes of an association's own fields, before its items.
const FIXED: usize = 68;
/// Longest association that is believed.
const LONGEST: usize = 1 << 20;

/// Items and sub-items.
const CONTEXT_ASKED: u8 = 0x20;
const CONTEXT_ANSWERED: u8 = 0x21;
const ABSTRACT_SYNTAX: u8 = 0x30;
const USER_INFORMATION: u8 = 0x50;
const IMPLEMENTATION_CLASS: u8 = 0x52;
const IMPLEMENTATION_VERSION: u8 = 0x55;

/// An association as one side words it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Association<'a> {
    called: &'a [u8],
    calling: &'a [u8],
    implementation: Option<&'a [u8]>,
    version: Option<&'a [u8]>,
    /// Contexts: their numbers, with the abstract syntax where it is asked for.
    contexts: Vec<(u8, Option<&'a [u8]>)>,
    whole: bool,
}

pub(super) fn read(talk: &Talk<'_>, sights: &mut Sights) -> bool {
    let Some(asked) = association(talk.asked, REQUEST) else { return false };
    sights.tell(talk.client, HintKind::DicomRole, "scu");
    sights.tell(talk.client, HintKind::DicomCallingAe, asked.calling);
    implementation(talk.client, &asked, sights);
    let answered = association(talk.answered, ACCEPT);
    if let Some(answered) = &answered {
        sights.tell(talk.server, HintKind::DicomRole, "scp");
        sights.tell(talk.server, HintKind::DicomCalledAe, asked.called);
        implementation(talk.server, answered, sights);
    }
    // Long lists come last: they leave no room.
    for (number, syntax) in &asked.contexts {
        let syntax = syntax.unwrap_or_default();
        sights.tell(talk.client, HintKind::DicomSyntax, syntax);
        let accepts = |answer: &Association<'_>| answer.contexts.iter().any(|(n, _)| n == number);
        if answered.as_ref().is_some_and(accepts) {
            sights.tell(talk.server, HintKind::DicomSyntax, syntax);
        }
    }
    talk.answered.first() == Some(&REJECT)
        || asked.whole && answered.is_some_and(|answered| answered.whole)
}

fn implementation(who: Station, association: &Association<'_>, sights: &mut Sights) {
    for (kind, value) in [
        (HintKind::DicomImplementation, association.implementation),
        (HintKind::DicomVersion, association.version),
    ] {
        sights.tell(who, kind, value.unwrap_or_default());
    }
}

/// Reads a request or an answer, as far as it came.
fn association(bytes: &[u8], expected: u8) -> Option<Association<'_>> {
    let mut pdu = Cursor(bytes);
    if pdu.u8()? != expected || pdu.u8()? != 0 {
        return None;
    }
    let length = usize::try_from(pdu.be32()?).ok().filter(|n| (FIXED..=LONGEST).contains(n))?;
    let whole = pdu.0.len() >= length;
    let mut pdu = Cursor(pdu.take_most(length));
    // Version 1 is the only one.
    if pdu.be16()? & 1 == 0 {
        return None;
    }
    pdu.take(2)?;
    let mut association = Association {
        called: pdu.take(16)?,
        calling: pdu.take(16)?,
        whole,
        ..Association::default()
    };
    pdu.take(32)?;
    while let Some((kind, item)) = item(&mut pdu) {
        match kind {
            CONTEXT_ASKED => {
                let mut item = Cursor(item);
                let Some(number) = item.u8() else { continue };
                item.take_most(3);
                let syntax = sub_item(item, ABSTRACT_SYNTAX);
                association.contexts.push((number, syntax));
            }
            // The third byte is 0 where the context was accepted.
            CONTEXT_ANSWERED if item.get(2) == Some(&0) => {
                association.contexts.push((item[0], None));
            }
            USER_INFORMATION => {
                association.implementation = sub_item(Cursor(item), IMPLEMENTATION_CLASS);
                association.version = sub_item(Cursor(item), IMPLEMENTATION_VERSION);
            }
            _ => {}
        }
    }
    Some(association)
}

/// The next item: its type and what it holds.
fn item<'a>(items: &mut Cursor<'a>) -> Option<(u8, &'a [u8])> {
    let kind = items.u8()?;
    items.u8()?;
    Some((kind, items.long()?))
}

fn sub_item(mut items: Cursor<'_>, wanted: u8) -> Option<&[u8]> {
    std::iter::from_fn(|| item(&mut items)).find(|(kind, _)| *kind == wanted).map(|(_, item)| item)
}

#[cfg(test)]
mod tests {
    use anteroom_proto::inventory::MAX_SYNTAXES;
    use anteroom_proto::mac::MacAddr;

    use super::*;

    fn item(kind: u8, held: &[u8]) -> Vec<u8> {
        let length = u16::try_from(held.len()).unwrap().to_be_bytes();
        [&[kind, 0][..], &length, held].concat()
    }

    /// An association with so many contexts.
    fn pdu(kind: u8, contexts: u8) -> Vec<u8> {
        let mut held = [&[0, 1, 0, 0][..], b"ARCHIVE         WORKSTATION     ", &[0; 32]].concat();
        for n in 0..contexts {
            let syntax = item(ABSTRACT_SYNTAX, format!("1.2.840.10008.5.1.4.{n}").as_bytes());
            held.extend(if kind == REQUEST {
                item(CONTEXT_ASKED, &[&[n, 0, 0, 0][..], &syntax].concat())
            } else {
                item(CONTEXT_ANSWERED, &[n, 0, 0, 0])
            });
        }
        held.extend(item(USER_INFORMATION, &item(IMPLEMENTATION_VERSION, &[b'V', b'0' + kind])));
        let length = u32::try_from(held.len()).unwrap().to_be_bytes();
        [&[kind, 0][..], &length, &held].concat()
    }

    #[test]
    fn an_archive_is_known_however_many_contexts_its_client_asks_for() {
        let station = |n| Station { mac: MacAddr([2, 0, 0, 0, 0, n]), vlan: None };
        let (asked, answered) = (pdu(REQUEST, 127), pdu(ACCEPT, 127));
        let mut sights = Sights::default();
        sights.begin();
        let is_done = read(
            &Talk {
                client: station(1),
                server: station(2),
                port: 104,
                asked: &asked,
                answered: &answered,
                answered_from_start: true,
                ended: [false; 2],
                done: [&mut 0, &mut 0],
                inflate: &mut 0,
            },
            &mut sights,
        );
        assert!(is_done);
        let seen: Vec<_> = sights.drain().collect();
        for (who, kind, value) in [
            (1, HintKind::DicomCallingAe, "WORKSTATION"),
            (1, HintKind::DicomVersion, "V1"),
            (2, HintKind::DicomRole, "scp"),
            (2, HintKind::DicomCalledAe, "ARCHIVE"),
            (2, HintKind::DicomVersion, "V2"),
        ] {
            let told = |sight: &crate::sight::Sight| {
                (sight.who, sight.kind, sight.value.as_str()) == (station(who), kind, value)
            };
            assert!(seen.iter().any(told), "no {kind} {value}: {seen:#?}");
        }
        for n in [1, 2] {
            let of = seen.iter().filter(|s| s.who == station(n) && s.kind == HintKind::DicomSyntax);
            assert_eq!(of.count(), MAX_SYNTAXES);
        }
    }
}
