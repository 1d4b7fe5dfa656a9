//! Enforcing one device at a time: on trial, back in seconds, and by two persons where that is demanded.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anteroom_e2e::{Stage, fixture};
use anteroom_lab::anteroom::Operator;
use anteroom_lab::hospital::Hospital;
use anteroom_lab::story::{open_tcp, refused};
use anteroom_lab::wait;
use serde_json::Value;

/// How long anything may take on a machine that has a lot else to do.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one attempt to connect lasts.
const ATTEMPT: Duration = Duration::from_secs(3);
/// Where somebody listens whom no rule names.
const UNDECLARED: u16 = 8_080;

/// Somebody on the campus who answers at a port that no rule names.
struct Listener {
    stop: Arc<AtomicBool>,
    task: Option<JoinHandle<()>>,
}

impl Listener {
    fn on(hospital: &Hospital) -> Self {
        let hvac = hospital.machine("hvac-1");
        let listener = hvac.host.enter(|| TcpListener::bind(hvac.at(UNDECLARED))).unwrap().unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let task = std::thread::spawn(move || {
            while !told.load(Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        let _ = stream.set_nonblocking(false);
                        let _ = stream.set_read_timeout(Some(ATTEMPT));
                        let mut asked = [0; 4];
                        if stream.read_exact(&mut asked).is_ok() {
                            let _ = stream.write_all(b"pong");
                        }
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self { stop, task: Some(task) }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(task) = self.task.take() {
            let _ = task.join();
        }
    }
}

/// Whether the CT scanner gets an answer from whom no rule names.
fn undeclared(hospital: &Hospital) -> anyhow::Result<()> {
    let to = hospital.machine("hvac-1").address();
    let mut stream: TcpStream =
        open_tcp(&hospital.machine("ct-1").host, (to, UNDECLARED), ATTEMPT)?;
    stream.set_read_timeout(Some(ATTEMPT))?;
    stream.write_all(b"ping")?;
    stream.read_exact(&mut [0; 4])?;
    Ok(())
}

/// What the scanner's gateway says of trials.
fn trials(hospital: &Hospital) -> anyhow::Result<Vec<Value>> {
    let status = hospital.gateways["imaging"].status()?;
    let trials = &status["data_plane"]["engine"]["trials"];
    trials.as_array().cloned().ok_or_else(|| anyhow::anyhow!("no trials in {status}"))
}

/// Enforces the scanner on trial. `breaks`: what is known to break is accepted, and doesn't end the trial.
fn on_trial(operator: &Operator, time: &str, breaks: bool) {
    let enforce = ["device", "mode", "ct-1", "enforce", "--confirm-within", time];
    let accept: &[&str] = if breaks { &["--accept-breaks"] } else { &[] };
    let change = ["--confirm", "ct-1", "--force", "--reason", "trial"];
    operator.ok(&[&enforce[..], accept, &change].concat()).unwrap();
}

fn went_back(operator: &Operator, why: &str) -> Value {
    wait::until_ok(PATIENCE, "the audit log to say that the device went back", || {
        let audit = operator.json(&["audit", "list", "--limit", "50"])?;
        let mut entries = audit.as_array().into_iter().flatten();
        let fits = |entry: &&Value| {
            entry["action"] == "device went back"
                && entry["subject"] == "ct-1"
                && entry["reason"].as_str().is_some_and(|reason| reason.contains(why))
        };
        entries.rfind(fits).cloned().ok_or_else(|| anyhow::anyhow!("{audit}"))
    })
    .unwrap()
}

#[test]
fn a_trial_is_confirmed_or_ends_by_itself_with_no_controller_and_a_restart_in_between() {
    let test = "a_trial_is_confirmed_or_ends_by_itself_with_no_controller_and_a_restart_in_between";
    let Some(mut fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &mut fixture.hospital;
    let _listener = Listener::on(hospital);
    assert!(undeclared(hospital).is_err(), "no rule names it");
    hospital.operator.mode(&["ct-1"], "protect", "round").unwrap();

    // Confirmed in time: it stays, also once the time would be over.
    on_trial(&hospital.operator, "30s", true);
    let begun = Instant::now();
    assert!(undeclared(hospital).is_err(), "it is enforced meanwhile");
    assert_eq!(trials(hospital).unwrap().len(), 1);
    let shown = hospital.operator.json(&["device", "show", "ct-1"]).unwrap();
    assert_eq!(shown["mode"], "enforce", "{shown}");
    hospital.operator.ok(&["device", "keep", "ct-1", "--yes", "--reason", "went well"]).unwrap();
    assert!(trials(hospital).unwrap().is_empty());
    while begun.elapsed() < Duration::from_secs(32) {
        assert!(undeclared(hospital).is_err(), "it was confirmed");
    }

    // One command takes it back.
    let asked = Instant::now();
    hospital.operator.ok(&["device", "back", "ct-1", "--yes", "--reason", "images"]).unwrap();
    let told = asked.elapsed();
    wait::until_ok(PATIENCE, "what no rule names to pass again", || undeclared(hospital)).unwrap();
    println!("back after {told:?}, the next connection after {:?}", asked.elapsed());

    // Nobody confirms, nor could: the controller is dead, and the gateway is started again in the middle.
    let kept = hospital.gateways["imaging"].state.join("trials");
    let earlier = std::fs::read(&kept).unwrap_or_default();
    let ordered = Instant::now();
    on_trial(&hospital.operator, "20s", true);
    let begun = Instant::now();
    wait::until_ok(PATIENCE, "the trial to be on disk", || {
        let now = std::fs::read(&kept)?;
        anyhow::ensure!(now != earlier && now.len() > 10, "{now:?}");
        Ok(())
    })
    .unwrap();
    hospital.controller.kill().unwrap();
    let gateway = hospital.gateway("imaging");
    gateway.kill().unwrap();
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
    // Before it is asked: what passes until it answers makes it less.
    let passed = u64::try_from(begun.elapsed().as_millis()).unwrap();
    let only = || <[Value; 1]>::try_from(trials(hospital).unwrap()).unwrap();
    let [trial] = only();
    let left = trial["left"].as_u64().unwrap();
    assert!(left + passed <= 20_500, "{trial} after {passed} ms: a restart prolongs nothing");
    let answered = undeclared(hospital);
    let [trial] = only();
    if trial["over"].is_null() {
        assert!(answered.is_err(), "the trial goes on: {trial}");
    }
    wait::until_ok(PATIENCE, "the device to be back in protect", || undeclared(hospital)).unwrap();
    let after = ordered.elapsed();
    assert!(after >= Duration::from_secs(20), "too early: {after:?}");
    println!("nobody confirmed for 20 s: back after {after:?}");
    // A gateway that starts once more doesn't begin it again.
    let gateway = hospital.gateway("imaging");
    gateway.kill().unwrap();
    gateway.start().unwrap();
    gateway.wait_running().unwrap();
    wait::until_ok(PATIENCE, "it to stay in protect", || undeclared(hospital)).unwrap();

    hospital.controller.start().unwrap();
    let entry = went_back(&hospital.operator, "nobody confirmed in time");
    assert!(entry["after"].as_str().unwrap().starts_with("mode protect"), "{entry}");
    let late = ["device", "keep", "ct-1", "--yes", "--reason", "late"];
    refused(&hospital.operator.command(&late).unwrap(), 4, &["its trial is over", "nobody"])
        .unwrap();
    let status = hospital.operator.command(&["status"]).unwrap();
    assert!(status.stdout.contains("BACK IN PROTECT: nobody confirmed in time"), "{status}");
    assert_eq!(status.code, 2, "it stands until somebody decides: {status}");
    // What is told of today is what is.
    let hvac = hospital.machine("hvac-1").address().to_string();
    let why = hospital.operator.command(&["--json", "why", "ct-1", &hvac, "tcp/8080"]).unwrap();
    let told: Value = serde_json::from_str(&why.stdout).unwrap_or_else(|e| panic!("{e}: {why}"));
    assert_eq!(told["answers"][0]["from_mode"], "protect", "{told}");
    assert!(why.to_string().contains("its trial is over (nobody confirmed in time)"), "{why}");
    hospital.operator.ok(&["audit", "verify"]).unwrap();
}

#[test]
fn a_trial_ends_where_a_connection_fails_that_was_answered_before() {
    let test = "a_trial_ends_where_a_connection_fails_that_was_answered_before";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let operator = &hospital.operator;
    let _listener = Listener::on(hospital);
    operator.mode(&["ct-1"], "protect", "round").unwrap();
    wait::until_ok(PATIENCE, "what no rule names to pass", || undeclared(hospital)).unwrap();
    wait::until_ok(PATIENCE, "it to be recorded with its answer", || {
        let rows = operator.json(&["flows", "ct-1"])?;
        let of = |row: &&Value| {
            row["port"] == UNDECLARED
                && row["from"]["name"] == "ct-1"
                && row["packets"].as_u64() > Some(6)
        };
        let found = rows.as_array().into_iter().flatten().find(of).cloned();
        found.map(drop).ok_or_else(|| anyhow::anyhow!("{rows}"))
    })
    .unwrap();

    // With the break accepted the trial goes on.
    on_trial(operator, "10m", true);
    for _ in 0..3 {
        assert!(undeclared(hospital).is_err());
    }
    assert!(trials(hospital).unwrap()[0]["over"].is_null());
    operator.ok(&["device", "back", "ct-1", "--yes", "--reason", "again"]).unwrap();

    on_trial(operator, "10m", false);
    let begun = Instant::now();
    assert!(undeclared(hospital).is_err(), "no rule names it");
    wait::until_ok(PATIENCE, "the device to be back in protect", || undeclared(hospital)).unwrap();
    println!("a connection failed: back after {:?}", begun.elapsed());
    let entry = went_back(operator, "tcp/8080 to ");
    assert!(entry["reason"].as_str().unwrap().contains("was answered before"), "{entry}");
    let list = operator.ok(&["device", "list"]).unwrap().stdout;
    assert!(list.contains("BACK IN PROTECT: tcp/8080 to "), "{list}");
}

/// Makes `name` an operator, with a home of their own.
fn second(hospital: &Hospital, name: &str) -> Operator {
    let ana = &hospital.operator;
    let other = ana.with_home(&ana.desk.join(name));
    let who = ana.json(&["whoami"]).unwrap();
    let (url, print) =
        (who["controller"][0].as_str().unwrap(), who["certificate"].as_str().unwrap());
    // It ends with 1, since who asks isn't an operator yet.
    let login = ["--json", "login", url, "--fingerprint", print, "--name", name];
    let asked = other.command(&login).unwrap().stdout;
    let asked: Value = serde_json::from_str(&asked).unwrap_or_else(|e| panic!("{e}: {asked}"));
    let [request, print] =
        ["request", "fingerprint"].map(|key| asked[key].as_str().unwrap().to_owned());
    let add = ["operator", "add", &request, "--fingerprint", &print, "--reason", "two", "--yes"];
    let line = ana.json(&add).unwrap()["next"].as_str().unwrap().to_owned();
    let words: Vec<&str> = line.split(' ').skip(1).collect();
    other.ok(&words).unwrap();
    other
}

#[test]
fn a_class_that_two_persons_enforce_is_enforced_by_no_one_alone() {
    let test = "a_class_that_two_persons_enforce_is_enforced_by_no_one_alone";
    let Some(fixture) = fixture(test, Stage::Enforced) else { return };
    let hospital = &fixture.hospital;
    let ana = &hospital.operator;
    let _listener = Listener::on(hospital);
    ana.mode(&["ct-1"], "protect", "round").unwrap();
    let text = ana.ok(&["policy", "show"]).unwrap().stdout;
    let text = text.replace("[segment.ct]\n", "[segment.ct]\ntwo_person = true\n");
    let file = ana.write_policy("two.toml", &text).unwrap();
    ana.apply(&file, "life support").unwrap();
    let ben = second(hospital, "ben");

    // One is refused, and so is the same one twice.
    let enforce = [
        "device",
        "mode",
        "ct-1",
        "enforce",
        "--confirm-within",
        "10m",
        "--confirm",
        "ct-1",
        "--force",
        "--reason",
        "trial",
    ];
    let alone = ana.command(&enforce).unwrap();
    refused(&alone, 4, &["two operators must approve", "--propose"]).unwrap();
    let proposal = ana.desk.join("ct-1.json").display().to_string();
    let propose = [&enforce[..], &["--propose", &proposal]].concat();
    ana.ok(&propose).unwrap();
    let approve = ["approve", &proposal, "--force", "--confirm", "ct-1", "--reason", "looked at"];
    let twice = ana.command(&approve).unwrap();
    refused(&twice, 1, &["no operator but you"]).unwrap();
    wait::until_ok(PATIENCE, "nothing to have changed", || undeclared(hospital)).unwrap();

    // Two are enough, and the log names both.
    let earlier = std::fs::read_to_string(&proposal).unwrap();
    let file = |name: &str, proposal: &Value| {
        let path = ana.desk.join(name);
        std::fs::write(&path, proposal.to_string()).unwrap();
        path.display().to_string()
    };
    let approving = |file: &str| {
        ben.command(&["approve", file, "--force", "--confirm", "ct-1", "--reason", "r"]).unwrap()
    };
    // Nobody puts another model into her mouth.
    let mut altered: Value = serde_json::from_str(&earlier).unwrap();
    altered["model"] = Value::Array(Vec::new());
    let altered = file("altered.json", &altered);
    refused(&approving(&altered), 1, &["Nothing was changed"]).unwrap();
    let agreed = ben.ok(&approve).unwrap();
    assert!(agreed.to_string().contains("measured by"), "{agreed}");
    assert!(undeclared(hospital).is_err(), "it is enforced");
    assert_eq!(trials(hospital).unwrap().len(), 1);
    let audit = ana.json(&["audit", "list", "--limit", "5"]).unwrap();
    let entry = audit
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["action"] == "approve")
        .unwrap_or_else(|| panic!("{audit}"));
    assert!(entry["actor"].as_str().unwrap().contains("ben"), "{entry}");
    let reason = entry["reason"].as_str().unwrap();
    assert!(reason.contains("proposed and approved by ana"), "{entry}");
    assert_eq!(
        entry["after"].as_str().unwrap().matches("approves to enforce").count(),
        2,
        "{entry}"
    );
    // A proposal is for the revision that it stood on.
    refused(&ben.command(&approve).unwrap(), 1, &["have it proposed anew"]).unwrap();

    // What was approved stands whatever one of them changes beside it; going on for good wants both again.
    ana.ok(&["device", "label", "ct-1", "floor=2", "--reason", "r", "--yes"]).unwrap();
    assert_eq!(trials(hospital).unwrap().len(), 1);
    let keep = ["device", "keep", "ct-1", "--yes", "--reason", "went well"];
    refused(&ana.command(&keep).unwrap(), 4, &["two operators must approve"]).unwrap();
    ben.ok(&[&keep[..], &["--propose", &proposal]].concat()).unwrap();
    ana.ok(&["approve", &proposal, "--confirm", "ct-1", "--force", "--reason", "yes"]).unwrap();
    assert!(trials(hospital).unwrap().is_empty());
    assert!(undeclared(hospital).is_err(), "enforced for good");

    // No one alone drops the demand; back is anybody's at once.
    let plain = ana.write_policy("one.toml", &text.replace("two_person = true\n", "")).unwrap();
    let drop = ["policy", "apply", &plain, "--reason", "hurry", "--yes"];
    refused(&ben.command(&drop).unwrap(), 4, &["two operators must approve"]).unwrap();
    ben.ok(&["device", "back", "ct-1", "--yes", "--reason", "images"]).unwrap();
    wait::until_ok(PATIENCE, "it to be back", || undeclared(hospital)).unwrap();

    // What ana signed then is for then, whoever proposes it now.
    ben.ok(&[&enforce[..], &["--propose", &proposal]].concat()).unwrap();
    let mut replayed: Value =
        serde_json::from_str(&std::fs::read_to_string(&proposal).unwrap()).unwrap();
    let earlier: Value = serde_json::from_str(&earlier).unwrap();
    let hers = earlier["approvals"].as_array().unwrap().clone();
    replayed["approvals"].as_array_mut().unwrap().extend(hers);
    let replayed_file = file("replayed.json", &replayed);
    refused(&approving(&replayed_file), 1, &["no operator but you"]).unwrap();
    replayed["words"] = earlier["words"].clone();
    let replayed_file = file("replayed.json", &replayed);
    refused(&approving(&replayed_file), 1, &["another model or revision"]).unwrap();
    undeclared(hospital).unwrap();
    ana.ok(&["audit", "verify"]).unwrap();
}
