//! What people write: policies, service names, codes and configuration files.
//!
//! What is read is read the same after it was formatted or printed, and what is refused is refused in words that name
//! the place.

use std::fmt::{Debug, Display};
use std::path::Path;
use std::str::FromStr;

use anteroom_controller_core::compile::compile;
use anteroom_controller_core::model::Model;
use anteroom_controller_core::policy;
use anteroom_proto::id::{GatewayId, MemberId, OrganisationId};
use anteroom_proto::key::PublicKey;
use anteroom_proto::mac::MacAddr;
use anteroom_proto::mode::Mode;
use anteroom_proto::name::Name;
use anteroom_proto::service::PortMatch;

/// Takes the first byte of `data` for what the text behind it is.
///
/// # Panics
/// If an invariant doesn't hold.
pub fn run(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    let Ok(text) = std::str::from_utf8(rest) else { return };
    match kind % 4 {
        0 => policy_file(text),
        1 => words(text),
        2 => {
            if let Err(error) = anteroom_agent::config::Config::parse(Path::new("agent.toml"), text)
            {
                named(&error, "agent.toml");
            }
        }
        _ => {
            let file = Path::new("controller.toml");
            if let Err(error) = anteroom_controller::config::Config::parse(file, text) {
                named(&error, "controller.toml");
            }
        }
    }
}

/// An error says where.
fn named(error: &impl Display, file: &str) {
    let text = error.to_string();
    assert!(text.starts_with(file) && text.len() > file.len() + 3, "{text:?}");
}

fn policy_file(text: &str) {
    let read = policy::parse("policy.toml", text);
    let formatted = policy::format("policy.toml", text);
    match (&read, &formatted) {
        (Err(problems), _) => {
            assert!(!problems.is_empty());
            for problem in &problems.list {
                named(problem, "policy.toml");
            }
        }
        (Ok(_), Err(problems)) => panic!("it is read and can't be formatted: {problems}"),
        (Ok(_), Ok(_)) => {}
    }
    if let Ok(formatted) = &formatted {
        let again = policy::format("policy.toml", formatted);
        assert_eq!(again.as_ref().ok(), Some(formatted), "formatting again changes it");
        if let Ok(read) = read.clone() {
            let reread = policy::parse("policy.toml", formatted).map(policy::Policy::unplaced);
            assert_eq!(reread.ok(), Some(read.unplaced()), "formatting changed what it means");
        }
    }
    if read.is_ok() {
        let mut model = Model::new(OrganisationId::from_bytes([1; 16]));
        model.policy = text.into();
        if let Err(problems) = compile(&model) {
            assert!(!problems.is_empty());
        }
    }
}

/// What is printed is read as the same.
fn printed<T: FromStr + Display + PartialEq + Debug>(text: &str)
where
    T::Err: Debug,
{
    if let Ok(value) = text.parse::<T>() {
        let printed = value.to_string();
        match printed.parse::<T>() {
            Ok(again) => assert_eq!(again, value, "{text:?} is printed as {printed:?}"),
            Err(error) => panic!("{text:?} is printed as {printed:?}, which is {error:?}"),
        }
    }
}

fn words(text: &str) {
    printed::<PortMatch>(text);
    printed::<Name>(text);
    printed::<MacAddr>(text);
    printed::<Mode>(text);
    printed::<GatewayId>(text);
    printed::<MemberId>(text);
    printed::<PublicKey>(text);
}
