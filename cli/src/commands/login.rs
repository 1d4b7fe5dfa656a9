//! `login`, `logout`, `whoami`.

use std::path::Path;

use anteroom_proto::api::{Claim, ControllerInfo, paths};
use anteroom_proto::authority::{Authority, AuthorityChain, Controller, Operator};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::OrganisationId;
use anteroom_proto::key::{Hash, IdentityKey};
use anteroom_proto::request::RequestCode;
use anteroom_proto::setup::SetupCode;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::args::Login;
use crate::client::Client;
use crate::error::{Error, Exit};
use crate::home::{Config, Home, HomeError, Trust, key_text, write_new};
use crate::output::Output;
use crate::output::table::facts;
use crate::remote::{Remote, log_in};

/// How a recovery key file's key begins.
pub(super) const RECOVERY_PREFIX: &str = "anteroom-recovery-key-1.";
/// How the line of a recovery key file begins that holds the first authority document's hash.
pub(super) const PIN_PREFIX: &str = "# authority ";

/// Who is logged in where.
#[derive(Debug, Serialize)]
struct Who {
    operator: String,
    fingerprint: String,
    key: String,
    organisation: String,
    controller: Vec<String>,
    controller_fingerprint: String,
    certificate: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: Option<u64>,
    /// Hash of the first authority document: what gateways and relays pin.
    #[serde(skip_serializing_if = "Option::is_none")]
    authority_hash: Option<String>,
    home: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    recovery_key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    /// Whether the controller takes this key.
    logged_in: bool,
}

impl Who {
    fn new(config: &Config, key: &IdentityKey, home: &Home) -> Self {
        Self {
            operator: config.operator.to_string(),
            fingerprint: key.public().fingerprint().to_string(),
            key: key.public().to_string(),
            organisation: config.organisation.to_string(),
            controller: config.controller.clone(),
            controller_fingerprint: config.controller_key.fingerprint().to_string(),
            certificate: config.certificate.to_string(),
            authority: None,
            authority_hash: None,
            home: home.path().display().to_string(),
            recovery_key: None,
            request: None,
            logged_in: false,
        }
    }

    fn follow(&mut self, chain: &AuthorityChain) {
        self.authority = Some(chain.newest().number);
        self.authority_hash = Some(chain.pin().to_string());
    }

    fn facts(&self) -> String {
        facts(&[
            ("Operator", self.operator.clone()),
            ("Your key", self.fingerprint.clone()),
            ("Organisation", self.organisation.clone()),
            ("Controller", self.controller.join(", ")),
            ("Its key", self.controller_fingerprint.clone()),
            ("Its certificate", self.certificate.clone()),
            ("Authority", self.authority.map(|n| format!("document {n}")).unwrap_or_default()),
            ("Its first one", self.authority_hash.clone().unwrap_or_default()),
            ("Kept in", self.home.clone()),
        ])
    }
}

/// `anteroom login`.
pub(super) fn login(args: &Login, home: &Home, output: &mut Output<'_>) -> Result<Exit, Error> {
    if args.target.trim().starts_with("https://") {
        let fingerprint = args.fingerprint.ok_or_else(|| {
            Error::Usage("with an address, give the SHA-256 of the controller's certificate too: --fingerprint HEX, as `anteroom whoami` shows it to another operator".into())
        })?;
        return join(args, fingerprint, home, output);
    }
    let code: SetupCode = args.target.parse().map_err(
        |error: anteroom_proto::setup::SetupCodeError| Error::Usage(format!("{error}. To join a controller that others use, give its address as https://HOST:PORT")),
    )?;
    if args.authority.is_some() {
        return Err(Error::Usage(
            "a setup code begins the organisation: leave --authority out".into(),
        ));
    }
    if args.fingerprint.is_some() {
        return Err(Error::Usage(
            "a setup code holds the fingerprint already: leave --fingerprint out".into(),
        ));
    }
    claim(args, &code, home, output)
}

/// The first operator takes a new controller over.
fn claim(
    args: &Login,
    code: &SetupCode,
    home: &Home,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let client = Client::new(&code.https, code.certificate, home.exchange())?;
    let info: ControllerInfo = client.get(paths::CONTROLLER, &(), None)?;
    if info.key != code.controller {
        return Err(Error::Other(format!(
            "the controller's key is {}, but the setup code names {}: this isn't the controller that made the code. Nothing was changed",
            info.key.fingerprint(),
            code.controller.fingerprint()
        )));
    }
    let kept = existing(home, code)?;
    let (config, key, chain, fresh) = match kept {
        // An earlier attempt was cut short: whatever the controller knows of it, the same keys go on.
        Some((config, key, chain)) => (config, key, chain, false),
        None => {
            if info.organisation.is_some() {
                return Err(Error::Other("somebody has claimed this controller already. If it was you, use the --home of that time. If it was a colleague, join with `anteroom login https://HOST:PORT --fingerprint HEX --name NAME`. If nobody knows who: set the controller up anew".into()));
            }
            let (config, key, chain) = found(args, code, home)?;
            (config, key, chain, true)
        }
    };
    if info.organisation != Some(config.organisation) {
        if info.organisation.is_some() {
            return Err(Error::Other(format!(
                "somebody else has claimed this controller for {}: set it up anew, and this time claim it before others can read the setup code. Your keys in {} are of no use with it",
                info.organisation.map(|id| id.to_string()).unwrap_or_default(),
                home.path().display()
            )));
        }
        let Some(authority) = chain.first().cloned() else {
            return Err(Error::Other(
                "the kept authority chain is empty: use another --home".into(),
            ));
        };
        let claim = Claim { secret: code.secret.clone(), authority };
        match client.post_silent(paths::CLAIM, &claim, None) {
            Ok(()) => {}
            Err(error) => {
                // A clear no leaves nothing worth keeping; anything else may have been a yes.
                if fresh && matches!(error, crate::client::ClientError::Refused { .. }) {
                    home.forget();
                    let _ = std::fs::remove_file(&args.recovery_out);
                }
                return Err(error.into());
            }
        }
    }
    log_in(home, &config, &key, &client)?;
    let mut who = Who::new(&config, &key, home);
    if let Some(trust) = home.trust()? {
        who.follow(&trust.follow()?);
    }
    who.logged_in = true;
    who.recovery_key = fresh.then(|| args.recovery_out.display().to_string());
    output.data(&who, |who| {
        let recovery = who.recovery_key.as_ref().map(|path| {
            format!("\nThe recovery key is in {path}. Move it to a place offline now (a safe, a printed page): it can name new\noperators when every operator's key is lost, and whoever has it can do the same.\n")
        });
        format!(
            "You are the first operator of {}.\n\n{}{}\nNext: anteroom gateway invite NAME --site SITE",
            who.organisation,
            who.facts(),
            recovery.unwrap_or_default()
        )
    })?;
    Ok(Exit::Ok)
}

type Kept = (Config, IdentityKey, Vec<Signed<Authority>>);

/// What an earlier attempt with the same controller left behind. Anything else in the directory is left alone.
fn existing(home: &Home, code: &SetupCode) -> Result<Option<Kept>, Error> {
    match (home.find_config()?, home.find_key()?, home.trust()?) {
        (None, None, None) => Ok(None),
        (Some(config), Some(key), Some(trust)) if config.controller_key == code.controller => {
            trust.follow()?;
            Ok(Some((config, key, trust.chain)))
        }
        _ => Err(taken(home)),
    }
}

fn taken(home: &Home) -> Error {
    Error::Other(format!(
        "{} holds the key of another log-in already: nothing there was changed. Give this one a place of its own with --home DIR",
        home.path().display()
    ))
}

/// Makes the organisation: the operator's key, the recovery key, the first authority document.
fn found(args: &Login, code: &SetupCode, home: &Home) -> Result<Kept, Error> {
    home.create()?;
    let (key, recovery) = (draw_key()?, draw_key()?);
    let organisation = OrganisationId::from_bytes(draw()?);
    let authority = Authority {
        organisation,
        number: 1,
        previous: Hash::ZERO,
        operators: vec![Operator { name: args.name.clone(), key: key.public() }],
        threshold: 1,
        controllers: vec![Controller { key: code.controller, addresses: code.quic.clone() }],
        relays: vec![],
        recovery: recovery.public(),
        incarnation: 1,
        root: None,
    };
    let signed = Signed::sign(&authority, &key);
    let chain = AuthorityChain::follow_unpinned(std::slice::from_ref(&signed))?;
    let config = Config {
        controller: code.https.clone(),
        certificate: code.certificate,
        controller_key: code.controller,
        organisation,
        operator: args.name.clone(),
        authority: None,
    };
    write_recovery(&args.recovery_out, organisation, chain.pin(), &recovery)?;
    let write = || -> Result<(), HomeError> {
        home.write_key(&key)?;
        home.write_trust(&Trust::of(&chain))?;
        home.write_config(&config)
    };
    if let Err(error) = write() {
        home.forget();
        let _ = std::fs::remove_file(&args.recovery_out);
        return Err(error.into());
    }
    Ok((config, key, vec![signed]))
}

/// Writes a recovery key, with what it takes to know the organisation again.
pub(super) fn write_recovery(
    path: &Path,
    organisation: OrganisationId,
    pin: Hash,
    key: &IdentityKey,
) -> Result<(), Error> {
    let text = Zeroizing::new(format!(
        "# Recovery key of the Anteroom organisation {organisation}, fingerprint {}.\n\
         # Keep it offline. It can name new operators when every operator's key is lost.\n\
         {PIN_PREFIX}{pin}\n{}",
        key.public().fingerprint(),
        key_text(RECOVERY_PREFIX, key).as_str()
    ));
    write_new(path, &text).map_err(|error| {
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            Error::file(path, "there is a file already, and a recovery key is never overwritten: move it, or give another place with --recovery-out FILE")
        } else {
            Error::file(path, format!("can't write the recovery key: {error}"))
        }
    })
}

/// A further machine or person: makes a key and shows it, for an operator to add.
fn join(
    args: &Login,
    certificate: Hash,
    home: &Home,
    output: &mut Output<'_>,
) -> Result<Exit, Error> {
    let addresses = vec![args.target.trim().trim_end_matches('/').to_owned()];
    let client = Client::new(&addresses, certificate, home.exchange())?;
    let info: ControllerInfo = client.get(paths::CONTROLLER, &(), None)?;
    let organisation = info.organisation.ok_or_else(|| {
        Error::Other("nobody has claimed this controller yet: its first operator logs in with the setup code that `anteroom-controller init` printed".into())
    })?;
    let config = Config {
        controller: addresses,
        certificate,
        controller_key: info.key,
        organisation,
        operator: args.name.clone(),
        authority: args.authority,
    };
    let key = match (home.find_config()?, home.find_key()?) {
        (None, None) => {
            home.create()?;
            let key = draw_key()?;
            home.write_key(&key)?;
            home.write_config(&config)?;
            key
        }
        (Some(kept), Some(key))
            if kept.organisation == organisation && kept.controller_key == info.key =>
        {
            if kept != config && home.trust()?.is_none() {
                home.write_config(&config)?;
            }
            key
        }
        _ => return Err(taken(home)),
    };
    let mut who = Who::new(&config, &key, home);
    who.logged_in = match log_in(home, &config, &key, &client) {
        Ok(_) => {
            who.follow(Remote::open(home)?.chain());
            true
        }
        Err(Error::Client(crate::client::ClientError::Refused { .. })) => false,
        Err(error) => return Err(error),
    };
    if !who.logged_in {
        let request = RequestCode::new(organisation, args.name.clone(), &key);
        who.request = Some(request.to_string());
    }
    output.data(&who, |who| {
        if who.logged_in {
            return format!("Logged in.\n\n{}", who.facts());
        }
        format!(
            "Your key is made, but the organisation doesn't know it yet.\n\n{}\nGive this to an operator, and read your key's fingerprint out to them:\n\n  anteroom operator add {}\n\nThen type the line that it prints.",
            who.facts(),
            who.request.as_deref().unwrap_or_default()
        )
    })?;
    Ok(if who.logged_in { Exit::Ok } else { Exit::Error })
}

/// `anteroom logout`.
pub(super) fn logout(home: &Home, output: &mut Output<'_>) -> Result<Exit, Error> {
    if home.session()?.is_some() {
        Remote::open(home)?.log_out()?;
    } else {
        home.config()?;
    }
    output.note("Logged out. Your key stays here, and the next command logs in again.")?;
    Ok(Exit::Ok)
}

/// `anteroom whoami`.
pub(super) fn whoami(home: &Home, output: &mut Output<'_>) -> Result<Exit, Error> {
    let mut who = Who::new(&home.config()?, &home.key()?, home);
    if let Some(trust) = home.trust()? {
        who.follow(&trust.follow()?);
    }
    let reached = Remote::open(home);
    who.logged_in = reached.is_ok();
    output.data(&who, Who::facts)?;
    reached.map(|_| Exit::Ok)
}

pub(super) fn draw<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::Other(format!("this machine gives no random numbers: {error}")))?;
    Ok(bytes)
}

pub(super) fn draw_key() -> Result<IdentityKey, Error> {
    Ok(IdentityKey::from_seed(&Zeroizing::new(draw()?)))
}
