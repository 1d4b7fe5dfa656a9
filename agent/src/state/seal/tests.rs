//! Sealing with a secret of the machine and with a TPM in software, and what happens when these are gone.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anteroom_lab::namespace::in_private_network;
use anteroom_proto::mode::Mode;
use tempfile::TempDir;

use super::*;
use crate::config::Config;
use crate::net::wiring::Wiring;
use crate::state::tests::fill;
use crate::state::{Held, StateDir, wiring_on_disk};
use crate::testkit::{GATEWAY, Organisation, nowhere};

/// A program that a test needs and that not every machine has.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.exists())
}

/// Whether the program is there; says so where it isn't.
fn has(name: &str, package: &str) -> bool {
    let found = program(name).is_some();
    if !found {
        eprintln!("skipped: {name} isn't installed (package {package})");
    }
    found
}

/// A TPM in software, whose memory survives a restart.
struct Tpm {
    process: Child,
    device: String,
}

impl Tpm {
    fn start(memory: &Path) -> Self {
        fs::create_dir_all(memory).unwrap();
        // Its control port is the next one: find two that are free together.
        for _ in 0..50 {
            let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let port = free.local_addr().unwrap().port();
            drop(free);
            let Some(control) = port.checked_add(1) else { continue };
            let mut process = Command::new("swtpm")
                .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
                .arg(format!("--tpmstate=dir={}", memory.display()))
                .arg(format!("--server=type=tcp,port={port},bindaddr=127.0.0.1"))
                .arg(format!("--ctrl=type=tcp,port={control},bindaddr=127.0.0.1"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            while process.try_wait().unwrap().is_none() && Instant::now() < deadline {
                if std::net::TcpStream::connect(("127.0.0.1", control)).is_ok() {
                    return Self { process, device: format!("swtpm:host=127.0.0.1,port={port}") };
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            process.kill().ok();
            process.wait().ok();
        }
        panic!("swtpm doesn't start");
    }
}

/// `TPM2_Shutdown(CLEAR)`, as the kernel sends it before a machine goes down. A TPM takes its absence for an attack.
const SHUTDOWN: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x45, 0, 0];

impl Drop for Tpm {
    fn drop(&mut self) {
        let port = self.device.rsplit('=').next().unwrap_or_default();
        if let Ok(mut stream) = std::net::TcpStream::connect(format!("127.0.0.1:{port}")) {
            stream.set_read_timeout(Some(Duration::from_secs(5))).ok();
            if stream.write_all(&SHUTDOWN).is_ok() {
                stream.read_exact(&mut [0; 10]).ok();
            }
        }
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// A gateway's disk and what is beside it.
struct Machine {
    parent: TempDir,
    organisation: Organisation,
}

impl Machine {
    fn new() -> Self {
        let machine = Self {
            parent: tempfile::tempdir().unwrap(),
            organisation: Organisation::new(&[nowhere()]),
        };
        fill(&machine.state(None), &machine.organisation, Mode::Enforce);
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.parent.path().join(name)
    }

    /// The state as a new process finds it. With a TPM that was started for this, since a socket has no resource
    /// manager, which a real TPM's device has.
    fn state(&self, tpm: Option<&Tpm>) -> StateDir {
        let mut state = StateDir::open(&self.path("state")).unwrap();
        let device = tpm.map(|tpm| tpm.device.clone());
        let credentials = Credentials::at(device, self.path("secret"));
        state.secrets = Secrets::new(state.path().to_owned(), credentials);
        state
    }

    /// The same with a program that seals and opens nothing. It is much faster than the real one.
    fn quick(&self) -> impl Fn() -> StateDir {
        let program = self.path("creds");
        let text = "#!/bin/sh\n[ $1 = encrypt ] && exec base64\nexec base64 -d\n";
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        move || {
            let mut state = self.state(None);
            let credentials = Credentials::by(program.clone());
            state.secrets = Secrets::new(state.path().to_owned(), credentials);
            state
        }
    }

    fn tpm(&self) -> Tpm {
        Tpm::start(&self.path("tpm"))
    }

    /// The bytes of all files of the state.
    fn disk(&self) -> Vec<u8> {
        let files = fs::read_dir(self.path("state")).unwrap().flatten();
        files.flat_map(|file| fs::read(file.path()).unwrap_or_default()).collect()
    }
}

/// The keys of a state, to be compared and looked for.
fn keys(state: &StateDir) -> (Vec<u8>, Vec<Vec<u8>>) {
    let identity = state.identity().unwrap().unwrap().to_seed().to_vec();
    let tunnels = state.tunnel_keys().unwrap();
    (identity, tunnels.iter().map(|key| key.secret.as_bytes().to_vec()).collect())
}

fn holds(disk: &[u8], keys: &(Vec<u8>, Vec<Vec<u8>>)) -> bool {
    let holds = |key: &[u8]| disk.windows(key.len()).any(|window| window == key);
    holds(&keys.0) || keys.1.iter().any(|key| holds(key))
}

fn config(state: &StateDir) -> Config {
    let text = format!(
        "state = {:?}\n[uplink]\ninterface = \"eth0\"\n[underlay]\nlisten = \"0.0.0.0:51820\"\n\
         [[port]]\nname = \"port1\"\ninterface = \"eth1\"\n",
        state.path()
    );
    Config::parse(Path::new("agent.toml"), &text).unwrap()
}

#[test]
fn keys_are_sealed_with_a_secret_of_the_machine_and_unsealed_again() {
    if !has("systemd-creds", "systemd") {
        return;
    }
    let machine = Machine::new();
    let state = machine.state(None);
    let before = keys(&state);
    assert!(holds(&machine.disk(), &before), "the test looks for the wrong bytes");
    state.seal(Sealing::Host).unwrap();
    assert_eq!(state.sealing().unwrap(), Sealing::Host);
    assert!(!holds(&machine.disk(), &before));

    let next = machine.state(None);
    assert_eq!(keys(&next), before);
    let held = Held::load(&next).unwrap();
    assert!(held.problems.is_empty() && held.enrolled.is_some(), "{:?}", held.problems);

    // A key that comes later is sealed too.
    next.new_tunnel_key(&next.tunnel_keys().unwrap(), 0).unwrap();
    let more = keys(&machine.state(None));
    assert_eq!(more.1.len(), before.1.len() + 1);
    assert!(!holds(&machine.disk(), &more));

    // Sealed anew, and then not at all.
    next.seal(Sealing::Host).unwrap();
    assert_eq!(keys(&machine.state(None)), more);
    next.seal(Sealing::None).unwrap();
    assert_eq!(machine.state(None).sealing().unwrap(), Sealing::None);
    assert!(holds(&machine.disk(), &more) && !machine.path("state/seal").exists());
    fs::remove_file(machine.path("secret")).unwrap();
    assert_eq!(keys(&machine.state(None)), more);
}

#[test]
fn a_copied_disk_opens_nowhere_else_and_loses_nothing_by_trying() {
    if !has("systemd-creds", "systemd") {
        return;
    }
    let machine = Machine::new();
    let before = keys(&machine.state(None));
    machine.state(None).seal(Sealing::Host).unwrap();
    let secret = machine.path("secret");
    fs::rename(&secret, machine.path("elsewhere")).unwrap();
    let disk = machine.disk();

    let state = machine.state(None);
    let held = Held::load(&state).unwrap();
    assert!(held.enrolled.is_none() && held.closed, "an enforced gateway opens");
    assert_eq!(held.locked.map(|enrolment| enrolment.gateway), Some(GATEWAY), "it is a gateway");
    let problems: Vec<String> = held.problems.iter().map(ToString::to_string).collect();
    assert_eq!(problems.len(), 1, "{problems:?}");
    for part in ["sealed with host", "credential.secret", "gateway invite"] {
        assert!(problems[0].contains(part), "{part} isn't in: {}", problems[0]);
    }
    // What the ports are to do before the agent runs needs no keys.
    let config = config(&state);
    let view = machine.organisation.verified(&machine.organisation.view(4, 7, Mode::Enforce));
    assert_eq!(wiring_on_disk(&config), Wiring::of(&config, Some(&view)));
    // Nothing new is made in the place of what can't be opened.
    assert!(state.identity_or_new().is_err());
    assert!(state.new_tunnel_key(&[], 0).is_err());
    assert!(state.seal(Sealing::None).is_err());
    assert_eq!(machine.disk(), disk);

    // What was tried in vain is tried again, without a restart.
    fs::rename(machine.path("elsewhere"), secret).unwrap();
    let deadline = Instant::now() + 10 * AGAIN;
    while state.identity().is_err() {
        assert!(Instant::now() < deadline, "{}", state.identity().unwrap_err());
        std::thread::sleep(Duration::from_millis(20));
    }
    let held = Held::load(&machine.state(None)).unwrap();
    assert!(held.enrolled.is_some() && !held.closed, "{:?}", held.problems);
    assert!(held.locked.is_none());
    assert_eq!(keys(&machine.state(None)), before);
}

#[test]
fn keys_that_cant_be_sealed_stay_as_they_are() {
    let machine = Machine::new();
    let mut state = machine.state(None);
    let before = keys(&state);
    let disk = machine.disk();
    for program in ["/nowhere/systemd-creds", "false", "true", "cat"] {
        state.secrets = Secrets::new(state.path().to_owned(), Credentials::by(program.into()));
        let error = state.seal(Sealing::Tpm2).unwrap_err();
        assert!(matches!(error, StateError::NotSealed { .. }), "{program}: {error}");
        assert_eq!(machine.disk(), disk, "{program}");
    }
    assert_eq!(keys(&machine.state(None)), before);
}

/// Runs this as if the power went after so many changes to the disk. Whether it came to its end.
fn cut_short(after: u32, run: impl FnOnce() -> Result<(), StateError>) -> bool {
    file::WRITES_LEFT.set(Some(after));
    let done = run();
    file::WRITES_LEFT.set(None);
    match done {
        Ok(()) => true,
        Err(StateError::File { error, .. }) if error.to_string() == "the power is gone" => false,
        Err(error) => panic!("after {after} changes to the disk: {error}"),
    }
}

/// As many changes to a disk as any way of keeping keys takes to become another.
const ALL: u32 = 4;

/// Power that goes again and again, or a disk that fails at each try a little earlier.
#[test]
fn as_many_changes_as_there_are_files_may_be_cut_short_in_a_row() {
    let machine = Machine::new();
    let before = keys(&machine.state(None));
    let state = machine.quick();
    state().seal(Sealing::Host).unwrap();
    for writes in (1..=ALL).rev() {
        cut_short(writes, || state().seal(Sealing::Host));
        assert_eq!(keys(&state()), before, "cut after {writes} changes to the disk");
    }
    assert!(state().secrets.openers().unwrap().len() > 3, "each of the files has its own");
    // And yet another one.
    cut_short(1, || state().seal(Sealing::Host));
    assert_eq!(keys(&state()), before);
    state().finish_sealing().unwrap();
    assert_eq!(keys(&state()), before);
    assert_eq!(state().secrets.openers().unwrap().len(), 1);
}

#[test]
fn changes_cut_short_anywhere_leave_keys_that_can_be_read() {
    let machine = Machine::new();
    let before = keys(&machine.state(None));
    let state = machine.quick();
    let ways = [Sealing::Host, Sealing::None];
    let mut cut = 0;
    for from in ways {
        for (first, second) in ways.into_iter().flat_map(|way| ways.map(|next| (way, next))) {
            for (writes, more) in (0..=ALL).flat_map(|n| (0..=ALL).map(move |m| (n, m))) {
                let story = format!("{from}, {first} for {writes}, {second} for {more}");
                state().seal(from).unwrap();
                let done = cut_short(writes, || state().seal(first));
                assert_eq!(keys(&state()), before, "{story}: in between");
                let done = done & cut_short(more, || state().seal(second));
                assert_eq!(keys(&state()), before, "{story}");
                cut += u32::from(!done);
                // As the agent does when it starts.
                let next = state();
                let wanted = next.sealing().unwrap();
                next.finish_sealing().unwrap();
                assert_eq!(keys(&state()), before, "{story}: finished");
                assert!(next.sealing_is_finished().unwrap(), "{story}");
                assert_eq!(next.sealing().unwrap(), wanted, "{story}");
                assert_eq!(holds(&machine.disk(), &before), wanted == Sealing::None, "{story}");
                if done {
                    assert_eq!(wanted, second, "{story}");
                }
            }
        }
    }
    assert!(cut > 0, "nothing was ever cut short");
}

#[test]
fn an_unfinished_change_is_told() {
    if !has("systemd-creds", "systemd") {
        return;
    }
    let machine = Machine::new();
    let before = keys(&machine.state(None));
    assert!(!cut_short(1, || machine.state(None).seal(Sealing::Host)));
    let state = machine.state(None);
    assert_eq!(state.sealing().unwrap(), Sealing::Host);
    assert!(!state.sealing_is_finished().unwrap(), "the keys lie there in plain");
    assert!(holds(&machine.disk(), &before));
    // What needs no keys is read without them.
    assert!(!state.seals_nothing());
}

#[test]
fn keys_arent_written_in_plain_where_the_opener_is_lost() {
    if !has("systemd-creds", "systemd") {
        return;
    }
    let machine = Machine::new();
    let state = machine.state(None);
    state.seal(Sealing::Host).unwrap();
    fs::remove_file(machine.path("state/seal")).unwrap();
    // It still knows the opener.
    let error = state.new_tunnel_key(&state.tunnel_keys().unwrap(), 0).unwrap_err().to_string();
    assert!(error.contains("no key to open it in seal"), "{error}");
    let more = keys(&state);
    assert!(!holds(&machine.disk(), &more));
}

#[test]
fn damage_is_noticed_and_named() {
    if !has("systemd-creds", "systemd") {
        return;
    }
    let machine = Machine::new();
    machine.state(None).seal(Sealing::Host).unwrap();
    let directory = machine.path("state");
    let (identity, tunnels) = (directory.join("identity"), directory.join("tunnel-keys"));
    // One file in the place of another, its first line made to fit.
    let whole = fs::read(&identity).unwrap();
    let state = machine.state(None);
    let (_, body) = crate::state::records::IDENTITY.read_body(&directory).unwrap().unwrap();
    crate::state::records::TUNNEL_KEYS.write_body(&directory, SEALED, &body).unwrap();
    let error = state.tunnel_keys().unwrap_err().to_string();
    assert!(error.contains("isn't what was sealed"), "{error}");
    fs::remove_file(&tunnels).unwrap();
    // Any byte.
    for at in (0..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        fs::write(&identity, &bytes).unwrap();
        assert!(matches!(state.identity(), Err(StateError::Damaged { .. })), "byte {at}");
    }
    fs::write(&identity, &whole).unwrap();
    assert!(state.identity().unwrap().is_some());
    // Without the opener there is nothing to open with.
    fs::remove_file(directory.join("seal")).unwrap();
    let error = machine.state(None).identity().unwrap_err().to_string();
    assert!(error.contains("no key to open it in seal"), "{error}");
}

#[test]
fn a_tpm_opens_what_it_sealed_and_another_or_a_cleared_one_doesnt() {
    if !has("swtpm", "swtpm") || !has("systemd-creds", "systemd") {
        return;
    }
    // A network of its own, where nobody else takes a port that a TPM has just left.
    let test = "state::seal::tests::a_tpm_opens_what_it_sealed_and_another_or_a_cleared_one_doesnt";
    if !in_private_network(test) {
        return;
    }
    anteroom_lab::topology::ip("link set lo up").unwrap();
    let machine = Machine::new();
    let before = keys(&machine.state(None));
    for sealing in [Sealing::Tpm2, Sealing::HostAndTpm2] {
        let tpm = machine.tpm();
        match machine.state(Some(&tpm)).seal(sealing) {
            Err(StateError::NotSealed { error: SealError::NoTpm { said }, .. }) => {
                eprintln!("skipped: systemd-creds reaches no TPM in software here: {said}");
                return;
            }
            result => result.unwrap(),
        }
        assert!(!holds(&machine.disk(), &before));
        drop(tpm);
        // The machine starts again.
        let tpm = machine.tpm();
        let state = machine.state(Some(&tpm));
        assert_eq!(keys(&state), before, "{sealing}");
        assert!(Held::load(&state).unwrap().problems.is_empty());
        drop(tpm);

        let problem = |tpm: Option<&Tpm>| {
            let held = Held::load(&machine.state(tpm)).unwrap();
            assert!(held.enrolled.is_none());
            held.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
        };
        // The disk in another machine.
        let other = Tpm::start(&machine.path("other-tpm"));
        let text = problem(Some(&other));
        assert!(text.contains("isn't the one that sealed them, or was cleared"), "{text}");
        drop(other);
        // A TPM that hasn't come up.
        let gone = Tpm::start(&machine.path("gone"));
        let device = gone.device.clone();
        drop(gone);
        let mut state = machine.state(None);
        let credentials = Credentials::at(Some(device), machine.path("secret"));
        state.secrets = Secrets::new(state.path().to_owned(), credentials);
        let text = Held::load(&state).unwrap().problems[0].to_string();
        assert!(text.contains("no TPM 2.0 answers"), "{text}");
        // And after all that, the keys are still there.
        let tpm = machine.tpm();
        assert_eq!(keys(&machine.state(Some(&tpm))), before, "{sealing}");
        drop(tpm);
        let tpm = machine.tpm();
        machine.state(Some(&tpm)).seal(Sealing::None).unwrap();
    }
    assert_eq!(keys(&machine.state(None)), before);

    if !has("tpm2_clear", "tpm2-tools") {
        return;
    }
    let tpm = machine.tpm();
    machine.state(Some(&tpm)).seal(Sealing::Tpm2).unwrap();
    drop(tpm);
    let tpm = machine.tpm();
    let cleared = Command::new("tpm2_clear").args(["-c", "p", "-T", &tpm.device]).output().unwrap();
    assert!(cleared.status.success(), "{cleared:?}");
    drop(tpm);
    let tpm = machine.tpm();
    let error = machine.state(Some(&tpm)).identity().unwrap_err().to_string();
    assert!(error.contains("was cleared") && error.contains("gateway invite"), "{error}");
}
