//! Becoming an operator, and staying one.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::controller::Controller;
use crate::person::Person;

#[test]
fn the_first_operator_claims_the_controller_and_keeps_what_they_need() {
    let controller = Controller::start();
    let ana = Person::new();
    let ran = ana.login(&controller).ok();
    assert!(ran.out.starts_with("You are the first operator of org-"), "{ran:#?}");
    assert!(ran.out.contains("recovery.key. Move it to a place offline now"), "{ran:#?}");
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&ana.home()), 0o700);
    for file in ["home/operator.key", "home/session.json", "recovery.key"] {
        assert_eq!(mode(&ana.path(file)), 0o600, "{file}");
    }
    let key = fs::read_to_string(ana.path("home/operator.key")).unwrap();
    let recovery = fs::read_to_string(ana.path("recovery.key")).unwrap();
    assert!(recovery.contains("anteroom-recovery-key-1."), "{recovery}");
    for secret in [key.trim(), recovery.lines().last().unwrap()] {
        let secret = secret.rsplit_once('.').unwrap().1;
        assert!(!format!("{ran:?}").contains(secret), "a private key was printed");
    }
    let who = ana.run(&["--json", "whoami"]).ok().json();
    assert_eq!(who["operator"], "ana");
    assert_eq!(who["logged_in"], true);
    assert_eq!(who["authority"], 1);
    let operators = ana.run(&["--json", "operator", "list"]).ok().json();
    assert_eq!(operators["operators"][0]["name"], "ana");
    assert_eq!(operators["operators"][0]["fingerprint"], who["fingerprint"]);
}

#[test]
fn the_same_login_again_goes_on_where_it_was_cut_short() {
    let controller = Controller::start();
    let ana = Person::new();
    controller.lie("/v1/claim", |status, body| {
        *status = 500;
        *body = serde_json::json!("the answer is lost");
    });
    let ran = ana.login(&controller);
    assert!(ran.fails(1).contains("can't read the controller's answer to /v1/claim"), "{ran:#?}");
    controller.be_honest();
    let key = fs::read(ana.path("home/operator.key")).unwrap();
    ana.login(&controller).ok();
    assert_eq!(fs::read(ana.path("home/operator.key")).unwrap(), key, "another key was made");
}

#[test]
fn a_claimed_controller_isnt_claimed_twice() {
    let controller = Controller::start();
    Person::logged_in(&controller);
    let eve = Person::new();
    let ran = eve.login(&controller);
    assert!(
        ran.fails(1).starts_with("error: somebody has claimed this controller already."),
        "{ran:#?}"
    );
    assert!(!eve.home().exists() && !eve.path("recovery.key").exists());
}

#[test]
fn a_recovery_key_is_never_overwritten_and_nothing_is_left_behind() {
    let controller = Controller::start();
    let ana = Person::new();
    ana.write("recovery.key", "precious");
    let ran = ana.login(&controller);
    assert!(ran.fails(1).contains("a recovery key is never overwritten"), "{ran:#?}");
    assert_eq!(fs::read_to_string(ana.path("recovery.key")).unwrap(), "precious");
    assert!(!ana.path("home/operator.key").exists());
    assert!(controller.state().chain.is_empty(), "the controller was claimed all the same");
}

#[test]
fn a_damaged_setup_code_is_named() {
    let controller = Controller::start();
    let code = controller.setup_code();
    let ana = Person::new();
    let ran = ana.run(&["login", &code[..code.len() - 1], "--name", "ana"]);
    assert!(ran.fails(64).starts_with("error: the setup code was not copied whole: "), "{ran:#?}");
    let ran = ana.run(&["login", "hello", "--name", "ana"]);
    assert!(ran.fails(64).starts_with("error: this is not a setup code: "), "{ran:#?}");
    let ran = ana.run(&["login", "https://127.0.0.1:1", "--name", "ana"]);
    assert!(ran.fails(64).contains("--fingerprint HEX"), "{ran:#?}");
}

#[test]
fn another_certificate_is_an_impostor_and_gets_nothing() {
    let (real, other) = (Controller::start(), Controller::start());
    let ana = Person::logged_in(&real);
    let config = fs::read_to_string(ana.path("home/config.toml")).unwrap();
    let moved = config.replace(&real.port.to_string(), &other.port.to_string());
    assert_ne!(config, moved);
    fs::write(ana.path("home/config.toml"), moved).unwrap();
    let ran = ana.run(&["status"]);
    assert_eq!(
        ran.fails(1),
        format!(
            "error: https://127.0.0.1:{} shows another certificate than the one that was pinned: someone may be posing as the controller. Nothing was sent.\n  pinned: {}\n  shown:  {}\nIf the controller was set up anew on purpose, compare the shown line with the one on its console and log in again with another --home",
            other.port, real.certificate, other.certificate
        )
    );
}

#[test]
fn a_controller_with_another_key_than_the_setup_code_names_is_refused() {
    let controller = Controller::start();
    let code = controller.setup_code();
    controller.state().key = anteroom_proto::key::IdentityKey::from_seed(&[99; 32]);
    let ana = Person::new();
    let recovery = ana.path("r.key").display().to_string();
    let ran = ana.run(&["login", &code, "--name", "ana", "--recovery-out", &recovery]);
    assert!(ran.fails(1).contains("this isn't the controller that made the code"), "{ran:#?}");
    assert!(!ana.home().exists() && !ana.path("r.key").exists());
}

#[test]
fn a_lapsed_token_costs_one_login_and_no_question() {
    let controller = Controller::start();
    let ana = Person::logged_in(&controller);
    assert_eq!(controller.state().logins, 1);
    ana.run(&["status"]).ok();
    assert_eq!(controller.state().logins, 1);
    controller.state().tokens.clear();
    ana.run(&["status"]).ok();
    assert_eq!(controller.state().logins, 2);
    ana.run(&["logout"]).ok();
    assert!(!ana.path("home/session.json").exists());
    ana.run(&["status"]).ok();
    assert_eq!(controller.state().logins, 3);
}

#[test]
fn a_token_that_is_refused_for_ever_isnt_asked_for_for_ever() {
    let controller = Controller::start();
    let ana = Person::logged_in(&controller);
    controller.lie("/v1/gateways", |status, body| {
        *status = 401;
        *body = serde_json::json!({ "code": "unauthorised", "message": "no \u{1b}[31mtoken" });
    });
    let ran = ana.run(&["status"]);
    assert_eq!(ran.fails(1), "error: no \u{fffd}[31mtoken", "{ran:#?}");
    assert_eq!(controller.state().logins, 2);
}

#[test]
fn a_further_operator_gets_a_key_and_is_told_whom_to_ask() {
    let controller = Controller::start();
    Person::logged_in(&controller);
    let ben = Person::new();
    let print = controller.certificate.to_string();
    let ran = ben.run(&["login", &controller.address(), "--fingerprint", &print, "--name", "ben"]);
    assert_eq!(ran.code, 1, "{ran:#?}");
    assert!(ran.out.contains("the organisation doesn't know it yet"), "{ran:#?}");
    assert!(ran.out.contains("  anteroom operator add anteroom-operator-1."), "{ran:#?}");
    let ran = ben.run(&["status"]);
    assert!(ran.fails(1).starts_with("error: not an operator here: "), "{ran:#?}");
}

#[test]
fn without_a_login_every_command_says_so() {
    let ana = Person::new();
    for line in [&["status"][..], &["device", "list"], &["policy", "history"], &["audit", "verify"]]
    {
        let ran = ana.run(line);
        assert!(ran.fails(1).starts_with("error: not logged in: "), "{ran:#?}");
    }
}
