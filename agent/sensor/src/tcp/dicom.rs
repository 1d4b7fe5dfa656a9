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
const ROLES: u8 = 0x54;
const IMPLEMENTATION_VERSION: u8 = 0x55;

/// How the UIDs of images' storage begin.
const STORAGE: &[u8] = b"1.2.840.10008.5.1.4.1.1.";

/// An association as one side words it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Association<'a> {
    called: &'a [u8],
    calling: &'a [u8],
    implementation: Option<&'a [u8]>,
    version: Option<&'a [u8]>,
    /// Contexts: their numbers, with the abstract syntax where it is asked for.
    contexts: Vec<(u8, Option<&'a [u8]>)>,
    /// For which abstract syntaxes the roles of whoever asks for the association are spoken of (PS3.7, D.3.3.4).
    roles: Vec<(&'a [u8], Roles)>,
    whole: bool,
}

/// What whoever asks for an association is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Roles {
    /// It uses what the other one offers.
    scu: bool,
    /// It offers.
    scp: bool,
}

impl Roles {
    /// Where nothing is said.
    const USUAL: Self = Self { scu: true, scp: false };
}

impl Association<'_> {
    fn roles(&self, syntax: &[u8]) -> Option<Roles> {
        self.roles.iter().find(|(of, _)| *of == syntax).map(|(_, roles)| *roles)
    }
}

pub(super) fn read(talk: &Talk<'_>, sights: &mut Sights) -> bool {
    let Some(asked) = association(talk.asked, REQUEST) else { return false };
    sights.tell(talk.client, HintKind::DicomCallingAe, asked.calling);
    implementation(talk.client, &asked, sights);
    let answered = association(talk.answered, ACCEPT);
    if let Some(answered) = &answered {
        sights.tell(talk.server, HintKind::DicomCalledAe, asked.called);
        implementation(talk.server, answered, sights);
    }
    // Roles stand at the end: before it is there, nobody knows who is to use what.
    if asked.whole || talk.ended[0] {
        let answered = answered.as_ref().filter(|answer| answer.whole || talk.ended[1]);
        syntaxes(talk, &asked, answered, sights);
    }
    asked.whole
        && (talk.answered.first() == Some(&REJECT) || answered.is_some_and(|answer| answer.whole))
}

/// Who uses and who offers what. Images' classes come last: there are many, and they leave others no room.
fn syntaxes(
    talk: &Talk<'_>,
    asked: &Association<'_>,
    answered: Option<&Association<'_>>,
    sights: &mut Sights,
) {
    let mut contexts: Vec<(u8, &[u8])> = asked
        .contexts
        .iter()
        .map(|(number, syntax)| (*number, syntax.unwrap_or_default()))
        .collect();
    contexts.sort_by_key(|(_, syntax)| syntax.starts_with(STORAGE));
    for (number, syntax) in contexts {
        let wanted = asked.roles(syntax);
        let accepted = answered.filter(|answer| answer.contexts.iter().any(|(n, _)| *n == number));
        // What isn't answered for stays as usual, and what wasn't asked for isn't granted.
        let roles = match (wanted, accepted.and_then(|answer| answer.roles(syntax))) {
            (Some(wanted), Some(granted)) => {
                Roles { scu: wanted.scu && granted.scu, scp: wanted.scp && granted.scp }
            }
            // Until the answer is there, it is no more than a wish.
            (Some(wanted), None) if answered.is_none() => Roles { scp: false, ..wanted },
            _ => Roles::USUAL,
        };
        for (is, uses, offers) in [
            (roles.scu, talk.client, accepted.and(talk.server)),
            (roles.scp, accepted.and(talk.server), accepted.and(talk.client)),
        ] {
            if is {
                sights.tell(uses, HintKind::DicomRole, "scu");
                sights.tell(uses, HintKind::DicomUses, syntax);
                sights.tell(offers, HintKind::DicomRole, "scp");
                sights.tell(offers, HintKind::DicomOffers, syntax);
            }
        }
    }
}

fn implementation(who: Option<Station>, association: &Association<'_>, sights: &mut Sights) {
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
                association.roles = sub_items(Cursor(item))
                    .filter(|(kind, _)| *kind == ROLES)
                    .filter_map(|(_, item)| roles(item))
                    .collect();
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

fn sub_items(mut items: Cursor<'_>) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || item(&mut items))
}

fn sub_item(items: Cursor<'_>, wanted: u8) -> Option<&[u8]> {
    sub_items(items).find(|(kind, _)| *kind == wanted).map(|(_, item)| item)
}

/// An abstract syntax, and what its roles are to be.
fn roles(item: &[u8]) -> Option<(&[u8], Roles)> {
    let mut item = Cursor(item);
    let syntax = item.long()?;
    Some((syntax, Roles { scu: item.u8()? == 1, scp: item.u8()? == 1 }))
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

    /// What is told of both, by who they are.
    fn told(asked: &[u8], answered: &[u8]) -> Vec<(u8, HintKind, String)> {
        let station = |n| Station { mac: MacAddr([2, 0, 0, 0, 0, n]), vlan: None };
        let mut sights = Sights::default();
        sights.begin();
        let talk = Talk {
            client: Some(station(1)),
            server: Some(station(2)),
            ips: ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()),
            port: 104,
            asked,
            answered,
            answered_from_start: true,
            ended: [false; 2],
            done: [&mut 0, &mut 0],
            inflate: &mut 0,
        };
        read(&talk, &mut sights);
        sights.drain().map(|sight| (sight.who.mac.0[5], sight.kind, sight.value)).collect()
    }

    const CT: &str = "1.2.840.10008.5.1.4.1.1.2";
    const COMMITMENT: &str = "1.2.840.10008.1.20.1";

    /// An association for one syntax, with roles or without.
    fn for_one(kind: u8, syntax: &str, roles: Option<[u8; 2]>) -> Vec<u8> {
        let mut held = [&[0, 1, 0, 0][..], b"ARCHIVE         MODALITY        ", &[0; 32]].concat();
        held.extend(if kind == REQUEST {
            let syntax = item(ABSTRACT_SYNTAX, syntax.as_bytes());
            item(CONTEXT_ASKED, &[&[1, 0, 0, 0][..], &syntax].concat())
        } else {
            item(CONTEXT_ANSWERED, &[1, 0, 0, 0])
        });
        let roles = roles.map(|roles| {
            let length = u16::try_from(syntax.len()).unwrap().to_be_bytes();
            item(ROLES, &[&length[..], syntax.as_bytes(), &roles].concat())
        });
        held.extend(item(USER_INFORMATION, &roles.unwrap_or_default()));
        let length = u32::try_from(held.len()).unwrap().to_be_bytes();
        [&[kind, 0][..], &length, &held].concat()
    }

    #[test]
    fn who_uses_and_who_offers_is_what_both_agreed_on() {
        let syntaxes = |syntax: &str, wanted, granted: Option<Option<[u8; 2]>>| {
            let asked = for_one(REQUEST, syntax, wanted);
            let answered = granted.map(|granted| for_one(ACCEPT, syntax, granted));
            let mut told = told(&asked, answered.as_deref().unwrap_or_default());
            told.retain(|(_, kind, value)| {
                matches!(kind, HintKind::DicomUses | HintKind::DicomOffers) && value == syntax
                    || *kind == HintKind::DicomRole
            });
            let told = told.into_iter().filter(|(_, kind, _)| *kind != HintKind::DicomRole);
            told.map(|(who, kind, _)| (who, kind)).collect::<Vec<_>>()
        };
        let usual = vec![(1, HintKind::DicomUses), (2, HintKind::DicomOffers)];
        let reverse = vec![(2, HintKind::DicomUses), (1, HintKind::DicomOffers)];
        assert_eq!(syntaxes(CT, None, Some(None)), usual);
        assert_eq!(syntaxes(CT, None, None), usual[..1], "nobody answered yet");
        // C-GET: whoever asks takes images. A commitment is reported by whoever made it.
        for syntax in [CT, COMMITMENT] {
            assert_eq!(syntaxes(syntax, Some([0, 1]), Some(Some([0, 1]))), reverse);
            assert_eq!(syntaxes(syntax, Some([0, 1]), Some(Some([0, 0]))), []);
            assert_eq!(syntaxes(syntax, Some([0, 1]), None), [], "it is a wish");
            assert_eq!(syntaxes(syntax, Some([0, 1]), Some(None)), usual, "it isn't granted");
            assert_eq!(syntaxes(syntax, None, Some(Some([0, 1]))), usual, "it wasn't asked for");
            let both = syntaxes(syntax, Some([1, 1]), Some(Some([1, 1])));
            assert_eq!(both, [usual.clone(), reverse.clone()].concat());
        }
        let roles = told(
            &for_one(REQUEST, COMMITMENT, Some([0, 1])),
            &for_one(ACCEPT, COMMITMENT, Some([0, 1])),
        );
        for (who, role) in [(1, "scp"), (2, "scu")] {
            let found: Vec<_> = roles
                .iter()
                .filter(|(of, kind, _)| *of == who && *kind == HintKind::DicomRole)
                .map(|(_, _, role)| role.as_str())
                .collect();
            assert_eq!(found, [role], "of {who}");
        }
        let cut = for_one(REQUEST, COMMITMENT, Some([0, 1]));
        for end in 0..cut.len() {
            told(&cut[..end], &[]);
        }
    }

    #[test]
    fn an_archive_is_known_however_many_contexts_its_client_asks_for() {
        let station = |n| Station { mac: MacAddr([2, 0, 0, 0, 0, n]), vlan: None };
        let (asked, answered) = (pdu(REQUEST, 127), pdu(ACCEPT, 127));
        let mut sights = Sights::default();
        sights.begin();
        let is_done = read(
            &Talk {
                client: Some(station(1)),
                server: Some(station(2)),
                ips: ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()),
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
        for (n, kind) in [(1, HintKind::DicomUses), (2, HintKind::DicomOffers)] {
            let of = seen.iter().filter(|s| s.who == station(n) && s.kind == kind);
            assert_eq!(of.count(), MAX_SYNTAXES);
        }
    }
}
