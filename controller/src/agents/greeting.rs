//! First words: who may enrol, and who is greeted as a gateway.

use std::net::SocketAddr;

use anteroom_proto::binding::TunnelKeyBinding;
use anteroom_proto::cose::Signed;
use anteroom_proto::id::{GatewayId, OrganisationId};
use anteroom_proto::key::PublicKey;
use anteroom_proto::v1::{
    Applied, Enrol, Hello, ROTATES, Reachable, Refusal, RefusalCode, Rotate, ToAgent, VERSIONS,
    Welcome,
};

use crate::clock;
use crate::distribution::{TunnelEnds, replaced, revoked};
use crate::state::Controller;
use crate::store::{EnrolOutcome, Enrolment, HelloFacts, NewAudit, StoreError};
use crate::tunnel_keys::{Holder, KeyTaken};

/// Most characters kept of any text that an agent sends.
const MAX_TEXT: usize = 1024;
/// Most problems kept of those that an agent tells.
const MAX_PROBLEMS: usize = 64;

/// A refusal that isn't for good.
pub(super) fn refusal(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into(), fatal: false }
}

fn fatal(code: RefusalCode, message: impl Into<String>) -> Refusal {
    Refusal { code, message: message.into(), fatal: true }
}

pub(super) fn store_failed(error: &StoreError) -> Refusal {
    tracing::error!(%error, "the store failed");
    refusal(RefusalCode::Busy, "the controller can't store anything now; try again later")
}

fn unclaimed() -> Refusal {
    refusal(
        RefusalCode::Unknown,
        "no operator has claimed this controller yet: run `anteroom login` with its setup code first",
    )
}

/// What everyone hears until an operator has signed a restored controller back in.
fn waiting() -> Refusal {
    refusal(
        RefusalCode::Busy,
        "this controller was restored from a backup, or has another key than before, and waits for an operator to sign that",
    )
}

/// Makes the checked tunnel keys the gateway's own, unless another or a client has one of them: that is audited, and refused where the gateway can't
/// be asked for another key. One that can is served without what another has, which a thief may have named first. Gives its ends, and
/// which keys it is to be asked to replace; leaves in `reachable` what is its own.
pub(super) async fn claim_keys(
    controller: &Controller,
    (gateway, rotates): (GatewayId, bool),
    reachable: &mut Reachable,
    ends: TunnelEnds,
) -> Result<(TunnelEnds, Option<Rotate>), Refusal> {
    let keys = &controller.tunnel_keys;
    let Err(taken) = keys.claim(gateway, &reachable.keys) else { return Ok((ends, None)) };
    note_taken(controller, gateway, &taken).await?;
    let refused = |taken: KeyTaken| refusal(RefusalCode::Protocol, taken.to_string());
    if !rotates {
        return Err(refused(taken));
    }
    let serial = |key: &Signed<TunnelKeyBinding>| Some(key.verify_self_named().ok()?.serial);
    let (theirs, own): (Vec<_>, Vec<_>) =
        reachable.keys.drain(..).partition(|key| keys.is_anothers(gateway, key));
    reachable.keys = own;
    keys.claim(gateway, &reachable.keys).map_err(refused)?;
    let up_to = theirs.iter().filter_map(serial).max().unwrap_or_default();
    // The key for clients stays, whoever names it: their configurations do.
    let rotate = (up_to != TunnelKeyBinding::FOR_CLIENTS).then_some(Rotate { up_to, now: false });
    Ok((TunnelEnds::from_stored(reachable.clone()), rotate))
}

async fn note_taken(
    controller: &Controller,
    gateway: GatewayId,
    taken: &KeyTaken,
) -> Result<(), Refusal> {
    tracing::warn!(%gateway, %taken, "a gateway claims a key that isn't its own");
    if taken.news {
        let (holder, after) = match taken.holder {
            Holder::Gateway(holder) => (holder.to_string(), "another gateway has the key"),
            Holder::Client(client) => (format!("client {client}"), "the key is a client's"),
        };
        let audit = NewAudit {
            at: clock::now(),
            actor: gateway.to_string(),
            action: "gateway tunnel key refused".into(),
            subject: gateway.to_string(),
            before: Some(format!("tunnel key {} of {holder}", taken.key)),
            after: Some(format!("unchanged: {after}")),
            ..NewAudit::default()
        };
        controller.store.append_audit(&audit).await.map_err(|error| store_failed(&error))?;
    }
    Ok(())
}

/// `text`, cut to what is kept, without control characters.
pub(super) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect()
}

/// What an agent says that it has in force, cut to what is kept.
pub(super) fn clean_applied(applied: &Applied) -> Applied {
    Applied {
        refused: applied.refused.as_deref().map(clean),
        problems: applied.problems.iter().take(MAX_PROBLEMS).map(|text| clean(text)).collect(),
        ..applied.clone()
    }
}

/// Lets an identity have an invite.
pub(super) async fn enrol(
    controller: &Controller,
    key: PublicKey,
    enrol: &Enrol,
    from: SocketAddr,
) -> Result<ToAgent, Refusal> {
    let chain = controller.authority().ok_or_else(unclaimed)?;
    if controller.restored().is_some() {
        return Err(waiting());
    }
    let authority = chain.newest();
    let bad = |problem: String| fatal(RefusalCode::Invite, problem);
    let stored = controller
        .store
        .invite(enrol.invite)
        .await
        .map_err(|error| store_failed(&error))?
        .ok_or_else(|| {
            bad("this controller doesn't know the invite: ask for a new one with `anteroom gateway invite`".into())
        })?;
    let invite = stored
        .signed
        .verify(authority.organisation, &authority.operator_keys())
        .map_err(|error| bad(format!("the invite doesn't hold any more: {error}")))?;
    let claim = enrol
        .claim
        .verify(authority.organisation, &[invite.key])
        .map_err(|error| bad(format!("the claim doesn't hold: {error}")))?;
    if (claim.invite, claim.gateway) != (invite.invite, invite.gateway) {
        return Err(bad("the claim is for another invite".into()));
    }
    if claim.identity != key {
        return Err(bad("the claim is for another identity key than the connection's".into()));
    }
    if controller.current().is_some_and(|current| current.revokes(invite.gateway, key)) {
        return Err(Refusal { fatal: true, ..revoked() });
    }
    if controller.current().is_some_and(|current| current.model.is_former_identity(key)) {
        return Err(Refusal { fatal: true, ..replaced() });
    }
    let now = clock::now();
    let answer = ToAgent::Enrolled { authority: chain.to_signed() };
    if stored.used_by == Some(key) {
        return Ok(answer);
    }
    if stored.used_by.is_none() && invite.not_after < now {
        return Err(bad(
            "the invite has lapsed: ask for a new one with `anteroom gateway invite`".into()
        ));
    }
    let enrolment = Enrolment {
        gateway: invite.gateway,
        invite: invite.invite,
        identity: key,
        claim: enrol.claim.clone(),
        at: now,
        from,
    };
    let subject = format!("{} ({})", invite.name, invite.gateway);
    let audit = NewAudit {
        at: now,
        actor: invite.gateway.to_string(),
        action: "gateway enrol".into(),
        subject: subject.clone(),
        after: Some(format!("identity {} from {from}", key.fingerprint())),
        ..NewAudit::default()
    };
    let late = NewAudit {
        at: now,
        actor: format!("{} at {from}", key.fingerprint()),
        action: "gateway enrol refused".into(),
        subject,
        before: stored.used_by.map(|holder| format!("identity {}", holder.fingerprint())),
        after: Some("unchanged: another identity used the invite first".into()),
        ..NewAudit::default()
    };
    let outcome = controller
        .store
        .enrol(&enrolment, &audit, &late)
        .await
        .map_err(|error| store_failed(&error))?;
    match outcome {
        EnrolOutcome::First => {
            tracing::info!(gateway = %invite.gateway, name = %invite.name, %from, "enrolled");
            Ok(answer)
        }
        EnrolOutcome::Again => Ok(answer),
        EnrolOutcome::Taken => {
            tracing::warn!(invite = %invite.invite, %from, "a second identity tried a used invite");
            Err(fatal(
                RefusalCode::InviteUsed,
                "another gateway used this invite first. If that wasn't you, tell an operator; then ask for a new invite",
            ))
        }
    }
}

/// The authority chain, for a gateway that knows this controller by another key. Strangers aren't told who the
/// operators are.
pub(super) async fn authority(
    controller: &Controller,
    key: PublicKey,
    (organisation, gateway): (OrganisationId, GatewayId),
) -> Result<ToAgent, Refusal> {
    let chain = controller.authority().ok_or_else(unclaimed)?;
    if organisation != chain.newest().organisation || !knows(controller, gateway, key).await? {
        return Err(refusal(RefusalCode::Unknown, "this gateway isn't enrolled here"));
    }
    Ok(ToAgent::Authority(chain.to_signed()))
}

/// Whether the gateway enrolled with this key, or operators have approved it so: what enrolled after the backup was
/// taken that the controller came from is in the model alone. Where operators have approved a key, no other one counts.
async fn knows(
    controller: &Controller,
    gateway: GatewayId,
    key: PublicKey,
) -> Result<bool, Refusal> {
    if let Some(current) = controller.current()
        && current.model.gateways.contains_key(&gateway)
    {
        return Ok(current.approves(gateway, key));
    }
    let enrolment =
        controller.store.enrolment(gateway).await.map_err(|error| store_failed(&error))?;
    Ok(enrolment.is_some_and(|enrolment| enrolment.identity == key))
}

/// A gateway that was greeted.
pub(super) struct Greeted {
    pub(super) approved: bool,
    /// The authority document that it has once it has read its welcome.
    pub(super) authority: u64,
    pub(super) ends: TunnelEnds,
    /// Which of its tunnel keys it is asked to replace, since another gateway has one.
    pub(super) rotate: Option<Rotate>,
    pub(super) welcome: Welcome,
    pub(super) facts: HelloFacts,
}

/// Checks a gateway's greeting.
pub(super) async fn hello(
    controller: &Controller,
    key: PublicKey,
    hello: &Hello,
    from: SocketAddr,
) -> Result<Greeted, Refusal> {
    let (low, high) = (hello.versions.0.max(VERSIONS.0), hello.versions.1.min(VERSIONS.1));
    if low > high {
        return Err(refusal(
            RefusalCode::Version,
            format!(
                "this controller speaks versions {} to {}, the agent {} to {}: bring both to the same release",
                VERSIONS.0, VERSIONS.1, hello.versions.0, hello.versions.1
            ),
        ));
    }
    let chain = controller.authority().ok_or_else(unclaimed)?;
    let organisation = chain.newest().organisation;
    let unknown = |message: &str| refusal(RefusalCode::Unknown, message);
    if hello.organisation != organisation {
        return Err(unknown("this controller serves another organisation"));
    }
    let gateway = hello.gateway;
    let store = &controller.store;
    if !knows(controller, gateway, key).await? {
        if controller.current().is_some_and(|current| current.model.is_former_identity(key)) {
            return Err(replaced());
        }
        let enrolled = store.enrolment(gateway).await.map_err(|error| store_failed(&error))?;
        return Err(unknown(match enrolled {
            Some(_) => "this gateway is enrolled with another identity key",
            None => "this gateway isn't enrolled here: enrol it with an invite",
        }));
    }
    if controller.restored().is_some() {
        let applied = hello.applied.as_ref();
        let place = applied.map(|applied| (applied.number.incarnation, applied.revision));
        controller.note_held(gateway, place, hello.authority);
        return Err(waiting());
    }
    let current = controller.current();
    let approved = current.as_ref().is_some_and(|current| current.approves(gateway, key));
    if current.as_ref().is_some_and(|current| current.revokes(gateway, key)) {
        return Err(revoked());
    }
    if !approved && store.was_approved(gateway).await.map_err(|error| store_failed(&error))? {
        return Err(revoked());
    }
    let mut reachable = Reachable { quic: hello.quic, ..hello.reachable.clone() };
    let ends = TunnelEnds::check(organisation, gateway, key, &reachable)
        .map_err(|error| refusal(RefusalCode::Protocol, error.to_string()))?;
    let rotates = hello.capabilities.iter().any(|capability| capability == ROTATES);
    let (ends, rotate) = claim_keys(controller, (gateway, rotates), &mut reachable, ends).await?;
    let now = clock::now();
    let newer = chain.newest().number > hello.authority;
    Ok(Greeted {
        approved,
        authority: chain.newest().number.max(hello.authority),
        ends,
        rotate,
        welcome: Welcome {
            version: high,
            approved,
            authority: newer.then(|| chain.to_signed()),
            observed: from,
            time: now,
            report_every: controller.config.telemetry.report_every_ms,
        },
        facts: HelloFacts {
            at: now,
            agent_version: clean(&hello.agent_version).chars().take(64).collect(),
            observed: from,
            reachable,
            applied: hello.applied.as_ref().map(clean_applied),
        },
    })
}
