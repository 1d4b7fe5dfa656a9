//! Operators: claim, log-in, invites, and what comes of malformed requests.

use anteroom_proto::api::{
    AuditEntry, Challenge, ControllerInfo, InviteInfo, LoginRequest, NewInvite, paths,
};
use anteroom_proto::authority::Authority;
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::OrganisationId;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::time::UnixMillis;
use reqwest::Method;
use reqwest::tls::Version;

use crate::support::{Desk, ORGANISATION, Service, soon};

const CLOSED_GETS: [&str; 13] = [
    paths::AUTHORITY,
    paths::INVITES,
    paths::PENDING,
    paths::GATEWAYS,
    paths::SIGHTINGS,
    paths::SIGHTINGS_PAGE,
    paths::MODEL,
    paths::REVISIONS,
    "/v1/progress/1",
    paths::EDGES,
    paths::HISTORY,
    paths::HINTS,
    paths::AUDIT,
];

#[tokio::test]
async fn only_who_knows_the_secret_claims_and_only_once() {
    let mut service = Service::new().await;
    let desk = Desk::new(&service);
    let info: ControllerInfo = desk.client.get(paths::CONTROLLER).await;
    assert_eq!((info.key, info.organisation), (service.code.controller, None));

    let mut wrong = desk.claim();
    wrong.secret = Blob(vec![0; 32]);
    let (status, error) = desk.client.post_error(paths::CLAIM, &wrong).await;
    assert_eq!((status, error.code.as_str()), (403, "forbidden"), "{error}");
    wrong.secret = Blob(desk.code.secret.0[..31].to_vec());
    assert_eq!(desk.client.post_status(paths::CLAIM, &wrong).await, 403);

    let stranger = IdentityKey::from_seed(&[99; 32]);
    let mut other_controller = desk.authority();
    other_controller.controllers[0].key = stranger.public();
    let second = Authority { number: 2, ..desk.authority() };
    for (what, authority) in [
        ("another controller", Signed::sign(&other_controller, &desk.key)),
        ("not the first", Signed::sign(&second, &desk.key)),
        ("a stranger's signature", Signed::sign(&desk.authority(), &stranger)),
        ("garbage", Signed::from_bytes(vec![1, 2, 3])),
    ] {
        let claim = anteroom_proto::api::Claim { authority, ..desk.claim() };
        let (status, error) = desk.client.post_error(paths::CLAIM, &claim).await;
        assert_eq!((status, error.code.as_str()), (400, "invalid"), "{what}: {error}");
        assert!(error.message.starts_with("authority: "), "{what}: {error}");
    }
    assert_eq!(desk.client.post_status(paths::CLAIM, &desk.claim()).await, 204);
    let (status, error) = desk.client.post_error(paths::CLAIM, &desk.claim()).await;
    assert_eq!((status, error.code.as_str()), (409, "conflict"), "{error}");
    assert!(!service.directory().claim_secret().exists());

    // A restart forgets nothing of it.
    service.stop().await;
    service.start().await;
    let desk = Desk::new(&service);
    assert_eq!(desk.client.post_status(paths::CLAIM, &desk.claim()).await, 409);
    let desk = desk.log_in().await;
    let chain: Vec<Signed<Authority>> = desk.client.get(paths::AUTHORITY).await;
    assert_eq!(chain, vec![desk.claim().authority]);
    let info: ControllerInfo = desk.client.get(paths::CONTROLLER).await;
    assert_eq!(info.organisation, Some(ORGANISATION));
    let log: Vec<AuditEntry> = desk.client.get(paths::AUDIT).await;
    assert_eq!(log.len(), 1);
    assert!(log[0].actor.starts_with("ana (") && log[0].action == "claim", "{:?}", log[0]);
    service.stop().await;
}

#[tokio::test]
async fn only_tls_1_3_is_spoken() {
    let service = Service::new().await;
    let pem = std::fs::read(service.directory().certificate()).unwrap();
    let url = format!("https://{}{}", service.running().https(), paths::CONTROLLER);
    for (version, welcome) in [(Version::TLS_1_2, false), (Version::TLS_1_3, true)] {
        let http = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&pem).unwrap()])
            .tls_version_min(version)
            .tls_version_max(version)
            .build()
            .unwrap();
        let answer = soon("an answer", http.get(&url).send()).await;
        assert_eq!(answer.is_ok(), welcome, "{version:?}: {answer:?}");
        if let Err(error) = answer {
            let shown = format!("{error:?}");
            assert!(shown.contains("ProtocolVersion"), "{shown}");
        }
    }
}

#[tokio::test]
async fn a_log_in_is_good_for_this_controller_this_operator_and_once() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let open = Desk::new(&service);
    let stranger = IdentityKey::from_seed(&[99; 32]);

    let good = open.login(open.challenge().await.nonce);
    let request = LoginRequest { login: Signed::sign(&good, &desk.key) };
    assert_eq!(open.client.post_status(paths::LOGIN, &request).await, 200);
    let (status, error) = open.client.post_error(paths::LOGIN, &request).await;
    assert_eq!(status, 401, "replayed: {error}");

    let mut elsewhere = open.login(open.challenge().await.nonce);
    elsewhere.controller = stranger.public();
    let mut other_organisation = open.login(open.challenge().await.nonce);
    other_organisation.organisation = OrganisationId::from_bytes([2; 16]);
    let fresh = open.login(open.challenge().await.nonce);
    let made_up = open.login(Blob(vec![7; 32]));
    for (what, login) in [
        ("for another controller", Signed::sign(&elsewhere, &desk.key)),
        ("for another organisation", Signed::sign(&other_organisation, &desk.key)),
        ("by a stranger", Signed::sign(&fresh, &stranger)),
        ("with a nonce that nobody gave", Signed::sign(&made_up, &desk.key)),
        (
            "another kind of document",
            Signed::from_bytes(desk.claim().authority.as_bytes().to_vec()),
        ),
        ("garbage", Signed::from_bytes(vec![0xff; 100])),
    ] {
        let (status, error) = open.client.post_error(paths::LOGIN, &LoginRequest { login }).await;
        assert_eq!((status, error.code.as_str()), (401, "unauthorised"), "{what}: {error}");
    }
    // What failed didn't use the challenge up for its owner.
    let request = LoginRequest { login: Signed::sign(&fresh, &desk.key) };
    assert_eq!(open.client.post_status(paths::LOGIN, &request).await, 200);

    assert_eq!(desk.client.post_status(paths::LOGOUT, &()).await, 204);
    let (status, error) = desk.client.get_error(paths::AUTHORITY).await;
    assert_eq!((status, error.code.as_str()), (401, "unauthorised"), "{error}");
    service.stop().await;
}

#[tokio::test]
async fn nobody_without_a_token_learns_anything() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let mut strangers = vec![service.client(), service.client()];
    strangers[1].token = Some("A".repeat(43));
    for client in &strangers {
        for path in CLOSED_GETS {
            let (status, error) = client.get_error(path).await;
            assert_eq!((status, error.code.as_str()), (401, "unauthorised"), "{path}: {error}");
        }
        for path in [paths::LOGOUT, paths::INVITES, paths::MODEL] {
            let (status, error) = client.post_error(path, &"x").await;
            assert_eq!(status, 401, "{path}: {error}");
        }
    }
    assert!(desk.client.get::<Vec<InviteInfo>>(paths::INVITES).await.is_empty());
    service.stop().await;
}

#[tokio::test]
async fn malformed_requests_are_told_what_is_wrong_and_where() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let client = &desk.client;
    for path in [paths::CLAIM, paths::LOGIN, paths::INVITES, paths::MODEL] {
        for body in ["", "{", "[]", "null", "{\"unknown\": 1}", "\u{0}\u{1}", &"[".repeat(5000)] {
            let (status, bytes) =
                client.send(Method::POST, path, Some(body.as_bytes().to_vec())).await;
            let error: anteroom_proto::api::ApiError = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(
                (status, error.code.as_str()),
                (400, "invalid"),
                "{path} {body:.20}: {error}"
            );
            assert!(error.message.starts_with("body: "), "{path}: {error}");
            assert!(error.message.contains("line 1 column"), "{path}: {error}");
        }
    }
    for path in [paths::CLAIM, paths::LOGIN, paths::INVITES] {
        let (status, _) = client.send(Method::POST, path, Some(vec![b' '; 300 * 1024])).await;
        assert_eq!(status, 413, "{path}");
    }
    for (path, words) in [
        ("/v1/model/one", "isn't the number of a revision"),
        ("/v1/model/-1", "isn't the number of a revision"),
        ("/v1/model/99999999999999999999999", "isn't the number of a revision"),
        ("/v1/progress/+1", "isn't the number of a revision"),
        ("/v1/edges?verdict=maybe", "verdict"),
        ("/v1/edges?member=ct-1", "ct-1"),
        ("/v1/edges?limit=10001", "10000"),
        ("/v1/edges?limit=many", "query: "),
        ("/v1/edges?colour=red", "colour"),
        ("/v1/history?after=x", "query: "),
        ("/v1/history?limit=10001", "10000"),
        ("/v1/history?member=ct-1", "member"),
        ("/v1/audit?after=x", "query: "),
        ("/v1/audit?limit=4294967296", "query: "),
    ] {
        let (status, error) = client.get_error(path).await;
        assert_eq!((status, error.code.as_str()), (400, "invalid"), "{path}: {error}");
        assert!(error.message.contains(words), "{path}: {error}");
    }
    for path in ["/", "/v1", "/v1/nothing", "/v1/model/1", "/v1/progress/7", paths::MODEL] {
        let (status, error) = client.get_error(path).await;
        assert_eq!((status, error.code.as_str()), (404, "not-found"), "{path}: {error}");
    }
    let (status, bytes) = client.send(Method::DELETE, paths::AUDIT, None).await;
    let error: anteroom_proto::api::ApiError = serde_json::from_slice(&bytes).unwrap();
    assert_eq!((status, error.code.as_str()), (405, "method"));
    let log: Vec<AuditEntry> = client.get(paths::AUDIT).await;
    assert_eq!(log.len(), 1, "nothing was changed: {log:?}");
    service.stop().await;
}

#[tokio::test]
async fn invites_are_an_operators_and_bear_their_signature() {
    let mut service = Service::new().await;
    let desk = service.claimed().await;
    let new = |invite| NewInvite { invite, reason: None };
    let stranger = IdentityKey::from_seed(&[99; 32]);
    let lapsed = anteroom_proto::invite::Invite { not_after: UnixMillis(1), ..desk.invite(1, "a") };
    for (what, invite) in [
        ("a stranger's", Signed::sign(&desk.invite(1, "a"), &stranger)),
        ("lapsed", Signed::sign(&lapsed, &desk.key)),
        ("garbage", Signed::from_bytes(vec![])),
    ] {
        let (status, error) = desk.client.post_error(paths::INVITES, &new(invite)).await;
        assert_eq!((status, error.code.as_str()), (400, "invalid"), "{what}: {error}");
        assert!(error.message.starts_with("invite"), "{what}: {error}");
    }
    let long = NewInvite {
        invite: Signed::sign(&desk.invite(1, "a"), &desk.key),
        reason: Some("x".repeat(1001)),
    };
    let (_, error) = desk.client.post_error(paths::INVITES, &long).await;
    assert!(error.message.starts_with("reason: "), "{error}");
    let good = new(Signed::sign(&desk.invite(1, "imaging"), &desk.key));
    assert_eq!(desk.client.post_status(paths::INVITES, &good).await, 204);
    let (status, error) = desk.client.post_error(paths::INVITES, &good).await;
    assert_eq!((status, error.code.as_str()), (409, "conflict"), "{error}");
    let invites: Vec<InviteInfo> = desk.client.get(paths::INVITES).await;
    assert_eq!(invites, vec![InviteInfo { invite: good.invite, used_by: None }]);
    service.stop().await;
}

#[tokio::test]
async fn guessing_is_slowed_down() {
    let mut service = Service::new().await;
    let desk = Desk::new(&service);
    let mut wrong = desk.claim();
    wrong.secret = Blob(vec![0; 32]);
    let mut codes = Vec::new();
    for _ in 0..12 {
        codes.push(desk.client.post_error(paths::CLAIM, &wrong).await.1.code);
    }
    assert_eq!(codes.iter().filter(|code| *code == "forbidden").count(), 10, "{codes:?}");
    assert_eq!(codes.last().map(String::as_str), Some("busy"));
    let mut busy = false;
    for _ in 0..200 {
        let (status, body) = desk.client.send(Method::POST, paths::CHALLENGE, None).await;
        busy |= status == 429;
        if !busy {
            assert!(serde_json::from_slice::<Challenge>(&body).is_ok(), "{status}");
        }
    }
    assert!(busy, "200 challenges in a row");
    service.stop().await;
}
