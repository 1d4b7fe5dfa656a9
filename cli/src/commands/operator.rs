//! `operator list`.

use serde::Serialize;

use crate::error::{Error, Exit};
use crate::output::Output;
use crate::output::table::table;
use crate::remote::Remote;

#[derive(Debug, Serialize)]
struct Authorities {
    organisation: String,
    authority: u64,
    threshold: u8,
    operators: Vec<Person>,
    controllers: Vec<Machine>,
    recovery_fingerprint: String,
}

#[derive(Debug, Serialize)]
struct Person {
    name: String,
    fingerprint: String,
    key: String,
    you: bool,
}

#[derive(Debug, Serialize)]
struct Machine {
    fingerprint: String,
    key: String,
    addresses: Vec<String>,
}

/// `anteroom operator list`.
pub(super) fn list(remote: &Remote, output: &mut Output<'_>) -> Result<Exit, Error> {
    let newest = remote.chain().newest();
    let mine = remote.key().public();
    let list = Authorities {
        organisation: newest.organisation.to_string(),
        authority: newest.number,
        threshold: newest.threshold,
        operators: newest
            .operators
            .iter()
            .map(|operator| Person {
                name: operator.name.to_string(),
                fingerprint: operator.key.fingerprint().to_string(),
                key: operator.key.to_string(),
                you: operator.key == mine,
            })
            .collect(),
        controllers: newest
            .controllers
            .iter()
            .map(|controller| Machine {
                fingerprint: controller.key.fingerprint().to_string(),
                key: controller.key.to_string(),
                addresses: controller.addresses.clone(),
            })
            .collect(),
        recovery_fingerprint: newest.recovery.fingerprint().to_string(),
    };
    output.data(&list, |list| {
        let people = list.operators.iter().map(|person| {
            let you = if person.you { "you" } else { "" };
            vec![person.name.clone(), person.fingerprint.clone(), you.into()]
        });
        let machines = list
            .controllers
            .iter()
            .map(|machine| vec![machine.fingerprint.clone(), machine.addresses.join(", ")]);
        format!(
            "Authority document {} of {}\n\n{}\n\n{}\n\nRecovery key: {} (kept offline)",
            list.authority,
            list.organisation,
            table(&["OPERATOR", "KEY", ""], people),
            table(&["CONTROLLER", "REACHED AT"], machines),
            list.recovery_fingerprint
        )
    })?;
    Ok(Exit::Ok)
}
