use super::*;
use crate::authority::{Authority, Operator, RootId};
use crate::key::IdentityKey;
use crate::mode::Mode;

pub(super) const ORGANISATION: OrganisationId = OrganisationId::from_bytes([1; 16]);
pub(super) const MEMBER: MemberId = MemberId::from_bytes([5; 16]);

pub(super) fn key(seed: u8) -> IdentityKey {
    IdentityKey::from_seed(&[seed; 32])
}

pub(super) const fn at(revision: u64) -> Place {
    Place::new(0, revision)
}

/// A chain of documents: whose are the operators' keys, in which incarnation, and which root is the newest.
pub(super) fn chain(documents: &[(&[u8], u64, Option<Place>)]) -> AuthorityChain {
    let mut signed: Vec<Signed<Authority>> = Vec::new();
    for (number, (seeds, incarnation, root)) in (1..).zip(documents) {
        let operator = |seed: &u8| Operator {
            name: format!("operator-{seed}").parse().unwrap(),
            key: key(*seed).public(),
        };
        let root = root.map(|Place { incarnation, revision }| RootId {
            incarnation,
            number: revision,
            hash: Hash::ZERO,
        });
        let document = Authority {
            organisation: ORGANISATION,
            number,
            previous: signed.last().map_or(Hash::ZERO, Signed::hash),
            operators: seeds.iter().map(operator).collect(),
            threshold: 1,
            controllers: vec![crate::authority::Controller {
                key: key(99).public(),
                addresses: vec!["10.0.0.1:8443".into()],
            }],
            relays: Vec::new(),
            recovery: key(98).public(),
            incarnation: *incarnation,
            root,
        };
        signed.push(Signed::sign(&document, &key(1)));
    }
    AuthorityChain::follow_unpinned(&signed).unwrap()
}

/// Approvals of a step for one device by the operators with these seeds.
pub(super) fn approvals(step: Step, at: Place, seeds: &[u8]) -> Vec<Signed<Approval>> {
    let approval =
        Approval { organisation: ORGANISATION, member: MEMBER, step, at, signed_at: UnixMillis(1) };
    seeds.iter().map(|seed| Signed::sign(&approval, &key(*seed))).collect()
}

const FOR_GOOD: Step = Step::Enforce { trial: None };

fn agree(chain: &AuthorityChain, approvals: &[Signed<Approval>]) -> bool {
    let voters = Voters { organisation: ORGANISATION, chain };
    voters.agree(MEMBER, approvals, FOR_GOOD, |_| true)
}

#[test]
fn two_distinct_operators_are_wanted() {
    let chain = chain(&[(&[1, 2, 3], 0, None)]);
    for (seeds, enough) in [
        (&[][..], false),
        (&[1], false),
        (&[1, 1, 1], false),
        (&[1, 9], false),
        (&[1, 2], true),
        (&[9, 3, 2], true),
    ] {
        assert_eq!(agree(&chain, &approvals(FOR_GOOD, at(7), seeds)), enough, "{seeds:?}");
    }
}

#[test]
fn an_approval_is_for_one_device_one_step_one_revision_and_one_organisation() {
    let chain = chain(&[(&[1, 2, 3], 0, None)]);
    let good = approvals(FOR_GOOD, at(7), &[1, 2]);
    let voters = Voters { organisation: ORGANISATION, chain: &chain };
    assert!(voters.agree(MEMBER, &good, FOR_GOOD, |place| place == at(7)));
    assert!(!voters.agree(MEMBER, &good, FOR_GOOD, |place| place == at(8)));
    assert!(!voters.agree(MEMBER, &good, Step::Waive {}, |_| true));
    assert!(!voters.agree(MemberId::from_bytes([8; 16]), &good, FOR_GOOD, |_| true));
    let trial = Trial {
        since: Place::new(0, 7),
        within: 60_000,
        back_to: Mode::Protect,
        expects: Vec::new(),
    };
    assert!(!voters.agree(MEMBER, &good, Step::enforce(Some(&trial)), |_| true));
    let elsewhere = Voters { organisation: OrganisationId::from_bytes([2; 16]), ..voters };
    assert!(!elsewhere.agree(MEMBER, &good, FOR_GOOD, |_| true));
    // One for each of two revisions is one for neither.
    let mut apart = approvals(FOR_GOOD, at(7), &[1]);
    apart.extend(approvals(FOR_GOOD, at(8), &[2]));
    assert!(!agree(&chain, &apart));
}

#[test]
fn what_an_operator_approved_of_counts_for_good_and_nothing_after_they_left() {
    // Operator 2 came with the second document, at revision 4, and left with the third, at 9.
    let chain = chain(&[(&[1], 0, None), (&[1, 2], 0, Some(at(4))), (&[1], 0, Some(at(9)))]);
    for (revision, counts) in [(1, false), (4, false), (5, true), (9, true), (10, false)] {
        let signed = approvals(FOR_GOOD, at(revision), &[1, 2]);
        assert_eq!(agree(&chain, &signed), counts, "revision {revision}");
    }
}

#[test]
fn what_a_restore_gave_up_is_approved_of_by_nobody() {
    // Brought back with revision 4 as the newest: what was 5 and later before is another branch.
    let chain = chain(&[(&[1, 2], 0, None), (&[1, 2], 1, Some(at(4)))]);
    assert!(agree(&chain, &approvals(FOR_GOOD, at(4), &[1, 2])));
    assert!(!agree(&chain, &approvals(FOR_GOOD, at(5), &[1, 2])), "the branch that was lost");
    assert!(agree(&chain, &approvals(FOR_GOOD, Place::new(1, 5), &[1, 2])));
}

#[test]
fn approvals_of_an_earlier_form_are_refused_by_name() {
    #[derive(serde::Serialize)]
    struct Old {
        since: u64,
        trial: Option<Hash>,
    }
    let old = cbor::encode(&std::collections::BTreeMap::from([(
        "enforce",
        Old { since: 7, trial: None },
    )]));
    let error = cbor::decode::<Step>(&old, 1024).unwrap_err().to_string();
    assert!(error.contains("since"), "{error}");
}
