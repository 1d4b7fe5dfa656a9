use std::net::SocketAddr;

use anteroom_proto::v1::Refusal;
use anteroom_transport::endpoint::{listen, peer_key};
use tokio::sync::mpsc;

use super::*;
use crate::state::Held;
use crate::state::tests::state;
use crate::testkit::{GATEWAY, INVITE, INVITE_SEED, ORGANISATION, Organisation, nowhere};

/// What a controller of the test's own was told: the client key and the claim, verified.
type Claims = mpsc::Receiver<(anteroom_proto::key::PublicKey, IdentityClaim)>;

/// A controller that gives `answer` to every enrolment.
fn controller(answer: impl Fn(&Organisation) -> Option<ToAgent>) -> (Organisation, Claims) {
    let endpoint =
        listen("127.0.0.1:0".parse().unwrap(), &IdentityKey::from_seed(&[11; 32])).unwrap();
    let organisation = Organisation::new(&[endpoint.local_addr().unwrap()]);
    let answer = answer(&organisation);
    let (told, claims) = mpsc::channel(8);
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let connection = incoming.await.unwrap();
            let (send, receive) = connection.accept_bi().await.unwrap();
            let mut reader = MessageReader::new(receive, 65536);
            let Ok(Some(ToController::Enrol(enrol))) = reader.next().await else {
                panic!("not an enrolment");
            };
            let invite_key = IdentityKey::from_seed(&INVITE_SEED).public();
            let claim = enrol.claim.verify(ORGANISATION, &[invite_key]).unwrap().into_document();
            assert_eq!((enrol.invite, claim.invite, claim.gateway), (INVITE, INVITE, GATEWAY));
            told.send((peer_key(&connection).unwrap(), claim)).await.unwrap();
            let mut writer = MessageWriter::new(send);
            match &answer {
                Some(answer) => {
                    writer.send(answer).await.unwrap();
                    writer.finish().await;
                }
                None => connection.close(0u32.into(), b"out of order"),
            }
            connection.closed().await;
        }
    });
    (organisation, claims)
}

fn enrolled(organisation: &Organisation) -> Option<ToAgent> {
    Some(ToAgent::Enrolled { authority: organisation.chain.clone() })
}

fn refused(code: RefusalCode) -> impl Fn(&Organisation) -> Option<ToAgent> {
    move |_| {
        let message = "the invite lapsed yesterday".into();
        Some(ToAgent::Refused(Refusal { code, message, fatal: true }))
    }
}

#[tokio::test]
async fn a_machine_becomes_a_gateway_and_stays_it_when_repeated() {
    let (organisation, mut claims) = controller(enrolled);
    let (_parent, state) = state();
    let code = organisation.invite().to_string();
    let first = enrol(&state, &format!(" {code}\n")).await.unwrap();
    let (key, claim) = claims.recv().await.unwrap();
    assert_eq!(key, claim.identity, "the key that speaks is the key that is claimed");
    assert_eq!(first.fingerprint, key.fingerprint());
    assert_eq!((first.gateway, first.organisation), (GATEWAY, ORGANISATION));
    let held = Held::load(&state).unwrap();
    assert!(held.problems.is_empty(), "{:?}", held.problems);
    let held = held.enrolled.unwrap();
    assert_eq!(held.enrolment, organisation.enrolment());
    assert_eq!(held.chain.unwrap(), organisation.followed());
    let tunnel = held.ring;

    assert_eq!(enrol(&state, &code).await.unwrap(), first);
    assert_eq!(claims.recv().await.unwrap().0, key);
    assert_eq!(Held::load(&state).unwrap().enrolled.unwrap().ring, tunnel);
}

#[tokio::test]
async fn a_try_that_broke_off_is_repeated_with_the_same_key() {
    let (organisation, mut claims) = controller(|_| None);
    let (_parent, state) = state();
    let code = organisation.invite().to_string();
    for _ in 0..2 {
        let error = enrol(&state, &code).await.unwrap_err();
        assert!(matches!(error, EnrolError::Broken { .. }), "{error}");
        assert!(error.to_string().contains("Repeat the command"), "{error}");
        assert!(Held::load(&state).unwrap().enrolled.is_none());
    }
    assert_eq!(claims.recv().await.unwrap().0, claims.recv().await.unwrap().0);
}

#[tokio::test]
async fn each_refusal_says_what_to_do() {
    for (code, words) in [
        (RefusalCode::InviteUsed, "another gateway has used this invite"),
        (RefusalCode::Invite, "the invite lapsed yesterday. Ask for a new one"),
        (RefusalCode::Busy, "the controller refuses"),
    ] {
        let (organisation, _claims) = controller(refused(code));
        let (_parent, state) = state();
        let error = enrol(&state, &organisation.invite().to_string()).await.unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(Held::load(&state).unwrap().enrolled.is_none());
    }
}

#[tokio::test]
async fn a_damaged_invite_makes_no_connection_and_no_key() {
    let (_parent, state) = state();
    let code = Organisation::new(&[nowhere()]).invite().to_string();
    for bad in ["", "hello", &code[..code.len() - 3], &code.replace('B', "C")] {
        let error = enrol(&state, bad).await.unwrap_err();
        assert!(matches!(error, EnrolError::Invite(_)), "{error}");
    }
    assert!(state.identity().unwrap().is_none());
}

#[tokio::test]
async fn an_unreachable_controller_is_named_by_its_addresses() {
    let (_parent, state) = state();
    let addresses: [SocketAddr; 2] = [nowhere(), nowhere()];
    let organisation = Organisation::new(&addresses);
    let error = enrol(&state, &organisation.invite().to_string()).await.unwrap_err().to_string();
    for address in addresses {
        assert!(error.contains(&address.to_string()), "{error}");
    }
}

#[tokio::test]
async fn somebody_else_at_the_controllers_address_is_told_nothing() {
    let (organisation, mut claims) = controller(enrolled);
    let (_parent, state) = state();
    let mut code = organisation.invite();
    code.controller = IdentityKey::from_seed(&[66; 32]).public();
    let error = enrol(&state, &code.to_string()).await.unwrap_err();
    assert!(matches!(error, EnrolError::WrongController(_)), "{error}");
    let found = organisation.controller.public().fingerprint().to_string();
    assert!(error.to_string().contains(&found), "{error}");
    assert!(claims.try_recv().is_err());
}

#[tokio::test]
async fn another_organisations_chain_is_not_stored() {
    let (organisation, _claims) = controller(|_| {
        Some(ToAgent::Enrolled { authority: Organisation::new(&[nowhere()]).chain })
    });
    let (_parent, state) = state();
    let error = enrol(&state, &organisation.invite().to_string()).await.unwrap_err();
    assert!(matches!(error, EnrolError::Authority(_)), "{error}");
    assert!(Held::load(&state).unwrap().enrolled.is_none());
}

#[tokio::test]
async fn a_gateway_isnt_made_another_one_by_accident() {
    let (organisation, _claims) = controller(enrolled);
    let (_parent, state) = state();
    enrol(&state, &organisation.invite().to_string()).await.unwrap();
    let mut other = organisation.invite();
    other.invite = anteroom_proto::id::InviteId::from_bytes([99; 16]);
    let error = enrol(&state, &other.to_string()).await.unwrap_err();
    assert!(matches!(error, EnrolError::Already { .. }), "{error}");
    assert!(error.to_string().contains(&GATEWAY.to_string()), "{error}");
}
