//! The authority chain on the command line, against the real controller: operators who come and go, the recovery key,
//! a controller that was restored, and one with another key.

use std::net::SocketAddr;

use anteroom::archive;
use anteroom::home::Home;
use anteroom_controller::directory::Directory;
use anteroom_controller::init::{InitOptions, init};
use anteroom_controller::{restore, run};
use anteroom_proto::cose::Signed;
use anteroom_proto::export::Manifest;
use anteroom_proto::key::IdentityKey;
use anteroom_proto::relay::code::RelayCode;
use anteroom_proto::setup::SetupCode;
use tokio::runtime::Runtime;

use crate::person::{Person, Ran};
use crate::real::{Gateway, own_address};

/// A real controller, and its first operator.
struct Hospital {
    runtime: Runtime,
    running: Option<run::Running>,
    place: &'static str,
    https: SocketAddr,
    ana: Person,
}

impl Hospital {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let ana = Person::new();
        let directory = Directory::new(&ana.path("controller"));
        let https = own_address();
        let options = InitOptions { quic: https, https, advertise: vec![https.ip().to_string()] };
        let code: SetupCode = runtime.block_on(init(&directory, &options)).unwrap();
        let mut hospital = Self { runtime, running: None, place: "controller", https, ana };
        hospital.start();
        let recovery = hospital.ana.path("recovery.key").display().to_string();
        let login = ["login", &code.to_string(), "--name", "ana", "--recovery-out", &recovery];
        hospital.ana.run(&login).ok();
        hospital
    }

    fn directory(&self, place: &str) -> Directory {
        Directory::new(&self.ana.path(place))
    }

    fn start(&mut self) {
        let running = run::start(self.directory(self.place), false);
        self.running = Some(self.runtime.block_on(running).unwrap());
    }

    fn stop(&mut self) {
        self.runtime.block_on(self.running.take().unwrap().stop());
    }

    fn backup(&self) {
        let (from, to) = (self.directory(self.place), self.directory("backup"));
        self.runtime.block_on(restore::backup(&from, &to)).unwrap();
    }

    /// Stops the controller and starts one from the backup. Gives its code.
    fn restore(&mut self, new_key: bool) -> String {
        self.stop();
        let (from, to) = (self.directory("backup"), self.directory("restored"));
        let code = self.runtime.block_on(restore::restore(&from, &to, new_key)).unwrap();
        self.place = "restored";
        self.start();
        code.to_string()
    }

    /// A gateway that enrols and is approved.
    fn gateway(&self, name: &str, seed: u8) -> Gateway {
        let gateway = Gateway::new(&self.ana.invite(name), seed);
        self.runtime.block_on(gateway.enrol());
        self.ana.run(&["gateway", "approve", name, "--yes", "--no-wait"]).ok();
        gateway
    }

    fn controller_key(&self) -> String {
        self.directory(self.place).load_identity().unwrap().public().to_string()
    }

    fn certificate(&self) -> String {
        self.directory(self.place).load_https().unwrap().fingerprint.to_string()
    }

    fn join(&self, person: &Person, name: &str, more: &[&str]) -> Ran {
        let (url, print) = (format!("https://{}", self.https), self.certificate());
        let login = ["login", &url, "--fingerprint", &print, "--name", name];
        person.run(&[&["--json"], &login[..], more].concat())
    }

    /// Makes `name` an operator, as two people at two machines do.
    fn operator(&self, name: &str) -> Person {
        let person = Person::new();
        let asked = self.join(&person, name, &[]).json();
        let request = asked["request"].as_str().unwrap();
        let print = asked["fingerprint"].as_str().unwrap();
        let add = ["--json", "operator", "add", request, "--fingerprint", print];
        let added = self.ana.run(&[&add[..], &["--reason", "night shift", "--yes"]].concat()).ok();
        let line = added.json()["next"].as_str().unwrap().to_owned();
        let words: Vec<&str> = line.split(' ').skip(1).collect();
        person.run(&words).ok();
        person
    }
}

fn fails_with(ran: &Ran, code: u8, words: &str) {
    let text = ran.fails(code);
    assert!(text.contains(words), "{words} isn't in {text}");
}

#[test]
fn an_operator_is_added_works_and_is_removed() {
    let mut hospital = Hospital::new();
    hospital.gateway("imaging", 1);
    let ben = hospital.operator("ben");
    ben.run(&["gateway", "label", "imaging", "floor=2", "--yes", "--no-wait"]).ok();
    let list = ben.run(&["--json", "operator", "list"]).ok().json();
    assert_eq!(list["operators"].as_array().unwrap().len(), 2, "{list}");
    let ana = &hospital.ana;
    fails_with(
        &ana.run(&["operator", "remove", "ben", "--reason", "left", "--yes"]),
        64,
        "add --confirm ben",
    );
    fails_with(&ana.run(&["operator", "remove", "eve", "--reason", "r"]), 1, "there are: ana, ben");
    let remove = ["operator", "remove", "ben", "--reason", "left", "--confirm", "ben"];
    ana.run(&remove).ok();
    fails_with(&ben.run(&["gateway", "label", "imaging", "floor=3", "--yes"]), 1, "");
    fails_with(
        &ana.run(&["operator", "remove", "ana", "--reason", "r", "--confirm", "ana"]),
        4,
        "the only operator",
    );
    // What he signed still stands, here and for a third operator who never saw it before.
    ana.run(&["gateway", "label", "imaging", "floor=4", "--yes", "--no-wait"]).ok();
    let cat = hospital.operator("cat");
    cat.run(&["gateway", "label", "imaging", "floor=5", "--yes", "--no-wait"]).ok();
    let log = cat.run(&["--json", "audit", "list"]).ok().out;
    for word in ["operator add", "operator remove", "night shift", "left"] {
        assert!(log.contains(word), "{word} isn't in\n{log}");
    }
    let ran = cat.run(&["audit", "verify"]).ok();
    assert!(ran.out.contains("each signed by an operator (ana, ben, cat)"), "{ran:#?}");
    hospital.stop();
}

#[test]
fn an_export_is_worth_what_its_signer_is() {
    let mut hospital = Hospital::new();
    hospital.gateway("imaging", 1);
    let (ben, auditor) = (hospital.operator("ben"), Person::new());
    let make = |name: &str| {
        let path = ben.path(name).display().to_string();
        let made = ben.run(&["--json", "export", "create", &path]).ok().json();
        (path, made["authority"].as_str().unwrap().to_owned())
    };
    let (early, pin) = make("early.zip");
    let ana = &hospital.ana;
    ana.run(&["export", "verify", &early]).ok();
    ben.run(&["gateway", "label", "imaging", "floor=2", "--yes", "--no-wait"]).ok();
    let (late, _) = make("late.zip");
    let remove = ["operator", "remove", "ben", "--reason", "left", "--confirm", "ben"];
    ana.run(&remove).ok();
    for bundle in [&early, &late] {
        fails_with(&ana.run(&["export", "verify", bundle]), 4, "ben is no operator any more");
        let ran = ana.run(&["export", "verify", bundle, "--former-operator"]).ok();
        assert!(
            ran.err.contains("nothing but the bundle says that it was made before"),
            "{ran:#?}"
        );
    }
    let since = ana.path("since").display().to_string();
    let ran = ana.run(&["export", "create", &since, "--since", &early]).ok();
    assert!(ran.err.contains("ben is no operator any more"), "{ran:#?}");
    // Whoever has the hash alone can't know of the removal, and sees the day and the name.
    let told = auditor.run(&["export", "verify", &early, "--authority", &pin]).ok().out;
    assert!(told.contains("by ben ("), "{told}");
    // Of a revision that came after his removal he can only have signed after it, whatever the day that he writes.
    let early = std::fs::read(&early).unwrap();
    let mut files = archive::unpack_exact(&early, 100_000_000).unwrap();
    let (_, manifest) = files.iter_mut().find(|(name, _)| name == "manifest.cose").unwrap();
    let signed = Signed::<Manifest>::from_bytes(manifest.clone());
    let mut forged = Manifest::clone(&signed.verify_self_named().unwrap());
    forged.revision += 10;
    let key = Home::locate(Some(&ben.home())).unwrap().key().unwrap();
    *manifest = Signed::sign(&forged, &key).as_bytes().to_vec();
    let packed = files.iter().map(|(name, content)| (name.as_str(), content.as_slice()));
    let forged = ben.path("forged.zip");
    std::fs::write(&forged, archive::pack(packed).unwrap()).unwrap();
    let ran = ana.run(&["export", "verify", forged.to_str().unwrap(), "--former-operator"]);
    fails_with(&ran, 1, "after they had ceased to be an operator");
    hospital.stop();
}

#[test]
fn a_request_that_was_changed_on_the_way_is_refused() {
    let mut hospital = Hospital::new();
    let (ben, eve) = (Person::new(), Person::new());
    let asked = hospital.join(&ben, "ben", &[]).json();
    let swapped = hospital.join(&eve, "ben", &[]).json();
    let request = swapped["request"].as_str().unwrap();
    let print = asked["fingerprint"].as_str().unwrap();
    let add = ["operator", "add", request, "--fingerprint", print, "--reason", "r", "--yes"];
    fails_with(&hospital.ana.run(&add), 4, "somebody has changed it on the way");
    fails_with(&hospital.ana.run(&["operator", "add", &request[..40]]), 64, "not copied whole");
    let quiet = ["operator", "add", request, "--reason", "r"];
    fails_with(&hospital.ana.run(&quiet), 64, "add --yes if you mean it");
    // Another organisation's beginning isn't believed, though the controller says so.
    let forged = "0".repeat(64);
    hospital.operator("cat");
    let dan = Person::new();
    hospital.join(&dan, "dan", &["--authority", &forged]);
    let asked = hospital.join(&dan, "dan", &["--authority", &forged]).json();
    let request = asked["request"].as_str().unwrap();
    hospital.ana.run(&["operator", "add", request, "--reason", "r", "--yes"]).ok();
    fails_with(&dan.run(&["operator", "list"]), 1, "isn't the one that was pinned");
    hospital.stop();
}

#[test]
fn the_recovery_key_makes_one_new_operator() {
    let mut hospital = Hospital::new();
    hospital.gateway("imaging", 1);
    let zoe = Person::new();
    hospital.join(&zoe, "zoe", &[]);
    let key = hospital.ana.path("recovery.key").display().to_string();
    let fresh = zoe.path("new.key").display().to_string();
    let recover = |key: &str, out: &str| {
        let line = ["operator", "recover", "--recovery-key", key, "--recovery-out", out];
        zoe.run(&[&line[..], &["--reason", "fire", "--confirm", "zoe"]].concat())
    };
    let other = zoe.path("other.key").display().to_string();
    std::fs::write(&other, "anteroom-recovery-key-1.AAAA\n").unwrap();
    fails_with(&recover(&other, &fresh), 1, "it holds no recovery key");
    let ran = recover(&key, &fresh).ok();
    assert!(ran.out.contains("zoe is the only operator now"), "{ran:#?}");
    assert!(std::fs::read_to_string(&fresh).unwrap().contains("anteroom-recovery-key-1."));
    zoe.run(&["gateway", "label", "imaging", "floor=2", "--yes", "--no-wait"]).ok();
    fails_with(&hospital.ana.run(&["status"]), 1, "");
    // The used key has had its day.
    let again = zoe.path("again.key").display().to_string();
    fails_with(&recover(&key, &again), 1, "");
    assert!(!std::path::Path::new(&again).exists());
    recover(&fresh, &again).ok();
    zoe.run(&["audit", "verify"]).ok();
    hospital.stop();
}

#[test]
fn a_restored_controller_gets_back_what_was_decided_since() {
    let mut hospital = Hospital::new();
    hospital.gateway("imaging", 1);
    hospital.gateway("ward", 2);
    hospital.backup();
    let ana = &hospital.ana;
    ana.run(&["gateway", "revoke", "imaging", "--reason", "stolen", "--confirm", "imaging"]).ok();
    ana.run(&["audit", "verify"]).ok();
    // An operator came after the backup as well: the chain itself is longer than the controller's.
    let ben = hospital.operator("ben");
    ben.run(&["gateway", "label", "ward", "floor=2", "--yes", "--no-wait"]).ok();
    hospital.restore(false);
    let ana = &hospital.ana;
    fails_with(&ana.run(&["status"]), 1, "which is already held");
    // She never saw what ben signed last; that machine knows only that it saw the revocation.
    ana.run(&["controller", "restored", "--reason", "disk failure", "--yes"]).ok();
    let gateways = ana.run(&["--json", "gateway", "list"]).ok().json();
    let names: Vec<_> =
        gateways.as_array().unwrap().iter().map(|row| row["name"].clone()).collect();
    assert_eq!(names, ["ward"], "the revoked gateway is back: {gateways}");
    let list = ana.run(&["--json", "operator", "list"]).ok().json();
    assert_eq!(list["operators"].as_array().unwrap().len(), 2, "ben is still one: {list}");
    let ran = ana.run(&["audit", "verify"]).ok();
    assert!(ran.out.contains("entries are lost"), "{ran:#?}");
    let ran = ana.run(&["controller", "restored", "--reason", "r", "--yes"]);
    fails_with(&ran, 1, "doesn't wait to be signed in");
    ana.run(&["gateway", "label", "ward", "floor=3", "--yes", "--no-wait"]).ok();
    hospital.stop();
}

#[test]
fn a_machine_that_knows_too_little_doesnt_sign_a_restored_controller_in() {
    let mut hospital = Hospital::new();
    let ward = hospital.gateway("ward", 2);
    let ben = hospital.operator("ben");
    ben.run(&["status"]);
    hospital.backup();
    let ana = &hospital.ana;
    ana.run(&["gateway", "label", "ward", "floor=2", "--yes", "--no-wait"]).ok();
    hospital.restore(false);
    // The gateway has what ana signed in force; ben's machine has never seen it.
    hospital.runtime.block_on(ward.claim_to_hold(2, 2));
    let signs = |person: &Person, more: &[&str]| {
        let line = ["controller", "restored", "--reason", "r", "--yes"];
        person.run(&[&line[..], more].concat())
    };
    fails_with(
        &signs(&ben, &[]),
        4,
        "says that it has revision 2 in force, and the newest that is known here is 1",
    );
    // A document that neither has seen: gateways that follow it would follow no other in its place.
    hospital.runtime.block_on(ward.claim_to_hold(2, 9));
    fails_with(&signs(&hospital.ana, &[]), 4, "says that it holds authority document 9");
    signs(&hospital.ana, &["--force"]).ok();
    ben.run(&["gateway", "label", "ward", "floor=3", "--yes", "--no-wait"]).ok();
    hospital.stop();
}

#[test]
fn a_controller_with_another_key_is_signed_in_and_learnt_by_colleagues() {
    let mut hospital = Hospital::new();
    hospital.gateway("ward", 2);
    let ben = hospital.operator("ben");
    hospital.backup();
    let code = hospital.restore(true);
    let ana = &hospital.ana;
    fails_with(&ana.run(&["status"]), 1, "shows another certificate than the one that was pinned");
    let replace = ["controller", "replace", &code, "--reason", "stolen", "--yes"];
    ana.run(&replace).ok();
    let list = ana.run(&["--json", "operator", "list"]).ok().json();
    assert_eq!(list["controllers"].as_array().unwrap().len(), 1, "{list}");
    fails_with(&ben.run(&["status"]), 1, "shows another certificate");
    let ran = ben.run(&replace).ok();
    assert!(ran.out.contains("signed this controller in already"), "{ran:#?}");
    ben.run(&["gateway", "label", "ward", "floor=3", "--yes", "--no-wait"]).ok();
    ben.run(&["audit", "verify"]).ok();
    hospital.stop();
}

fn relay_code(seed: u8, address: &str) -> RelayCode {
    let key = IdentityKey::from_seed(&[seed; 32]).public();
    RelayCode { key, addresses: vec![address.to_owned()] }
}

#[test]
fn relays_are_added_replaced_and_removed_each_in_one_signed_step() {
    let hospital = Hospital::new();
    let ana = &hospital.ana;
    let mine = || relays(ana);
    assert_eq!(mine(), Vec::<(String, String)>::new());
    let (first, second) = (relay_code(50, "r1.example:443"), relay_code(51, "10.0.0.9:4433"));
    let yes = ["--reason", "second building", "--yes"];
    let code = first.to_string();
    ana.run(&[&["relay", "add", "north", "--code", &code][..], &yes].concat()).ok();
    let key = second.key.to_string();
    let by_key = ["relay", "add", "south", "10.0.0.9:4433", "r2.example:443", "--key", &key];
    ana.run(&[&by_key[..], &yes].concat()).ok();
    let place = |code: &RelayCode, addresses: &str| (code.key.to_string(), addresses.to_owned());
    let both =
        vec![place(&first, "r1.example:443"), place(&second, "10.0.0.9:4433 r2.example:443")];
    assert_eq!(mine(), both);
    let text = ana.run(&["relay", "list"]).ok().out;
    assert!(text.contains("north") && text.contains("(controller)"), "{text}");

    // What can't be meant changes nothing.
    let wrong = |words: &[&str], exit: u8, text: &str| {
        fails_with(&ana.run(&[words, &yes].concat()), exit, text);
        assert_eq!(mine(), both, "{words:?}");
    };
    let other = relay_code(52, "r3.example:443").to_string();
    wrong(&["relay", "add", "north", "--code", &other], 1, "there is a relay north already");
    wrong(&["relay", "add", "west", "--code", &code], 1, "this is the key of the relay north");
    wrong(&["relay", "add", "west", "--code", &code[..40]], 64, "was not copied whole");
    wrong(&["relay", "add", "west", "r3.example", "--key", &key], 64, "write host:port");
    wrong(&["relay", "add", "west", "--key", &key], 64, "<ADDRESS>");
    wrong(&["relay", "add", "west", "r3.example:443"], 64, "--code");
    let own = hospital.controller_key();
    wrong(&["relay", "add", "west", "r3.example:443", "--key", &own], 1, "a controller's key");
    wrong(&["relay", "remove", "west"], 1, "there are: north, south");
    wrong(&["relay", "replace", "west", "--code", &other], 1, "there are: north, south");
    wrong(&["relay", "replace", "north", "--code", &code], 1, "already");
    let unreasoned = ana.run(&["relay", "remove", "north", "--yes"]);
    fails_with(&unreasoned, 64, "wants a reason");
    let unconfirmed = ana.run(&["relay", "remove", "north", "--reason", "stolen"]);
    fails_with(&unconfirmed, 64, "--yes");
    assert_eq!(mine(), both);

    // A stolen one is replaced: the document that names the new one doesn't name it any more.
    let before = ana.run(&["--json", "operator", "list"]).ok().json()["authority"].as_u64();
    let replace = ["relay", "replace", "north", "--code", &other];
    ana.run(&[&replace[..], &["--reason", "stolen", "--yes"]].concat()).ok();
    let after = ana.run(&["--json", "operator", "list"]).ok().json()["authority"].as_u64();
    assert_eq!(after, before.map(|number| number + 1));
    let third = relay_code(52, "r3.example:443");
    assert_eq!(mine(), [place(&third, "r3.example:443"), both[1].clone()]);
    ana.run(&[&["relay", "remove", "south"][..], &yes].concat()).ok();
    assert_eq!(mine(), [place(&third, "r3.example:443")]);

    // Who, when, why, and what it was before.
    let log = ana.run(&["--json", "audit", "list"]).ok().json();
    let entries: Vec<_> = log.as_array().unwrap().iter().collect();
    let of = |action: &str| {
        let found = entries.iter().find(|entry| entry["action"] == action);
        (*found.unwrap_or_else(|| panic!("no {action} in {log}"))).clone()
    };
    let replaced = of("relay replace");
    assert_eq!((&replaced["subject"], &replaced["reason"]), (&"north".into(), &"stolen".into()));
    assert!(replaced["before"].to_string().contains("r1.example:443"), "{replaced}");
    assert!(replaced["after"].to_string().contains("r3.example:443"), "{replaced}");
    assert_eq!(of("relay remove")["subject"], "south");
    ana.run(&["audit", "verify"]).ok();
}

/// Keys and addresses of the relays that stand alone.
fn relays(person: &Person) -> Vec<(String, String)> {
    let list = person.run(&["--json", "relay", "list"]).ok().json();
    let rows = list.as_array().unwrap().iter().filter(|row| !row["name"].is_null());
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    rows.map(|row| {
        let addresses = row["addresses"].as_array().unwrap().iter().map(text);
        (text(&row["key"]), addresses.collect::<Vec<_>>().join(" "))
    })
    .collect()
}
