use anteroom_proto::authority::{Authority, Controller, Operator};
use anteroom_proto::cose::Signed;
use anteroom_proto::id::OrganisationId;
use anteroom_proto::key::Hash;

use super::*;
use crate::init::{InitOptions, init};
use crate::run;

#[test]
fn hosts_are_read_out_of_addresses() {
    assert_eq!(host("https://controller.example:8443").as_deref(), Some("controller.example"));
    assert_eq!(host("https://[fd00::1]:8443").as_deref(), Some("fd00::1"));
    assert_eq!(host("controller:8443"), None);
}

/// A controller that somebody has claimed.
async fn claimed(directory: &Directory) {
    let options = InitOptions {
        quic: "127.0.0.1:4433".parse().unwrap(),
        https: "127.0.0.1:8443".parse().unwrap(),
        advertise: vec!["127.0.0.1".into()],
    };
    let code = init(directory, &options).await.unwrap();
    let config = fs::read_to_string(directory.config()).unwrap();
    // Whoever runs it takes whatever port is free.
    let free = config
        .replace("listen = \"127.0.0.1:4433\"", "listen = \"127.0.0.1:0\"")
        .replace("listen = \"127.0.0.1:8443\"", "listen = \"127.0.0.1:0\"");
    assert_eq!(free.matches("127.0.0.1:0\"").count(), 2, "{config}");
    fs::write(directory.config(), free).unwrap();
    let operator = IdentityKey::from_seed(&[11; 32]);
    let authority = Authority {
        organisation: OrganisationId::from_bytes([1; 16]),
        number: 1,
        previous: Hash::ZERO,
        operators: vec![Operator { name: "ana".parse().unwrap(), key: operator.public() }],
        threshold: 1,
        controllers: vec![Controller { key: code.controller, addresses: code.quic }],
        relays: vec![],
        recovery: IdentityKey::from_seed(&[12; 32]).public(),
        incarnation: 1,
        root: None,
    };
    let store = SqliteStore::open(&directory.database(), false, Limits::default()).await.unwrap();
    let first = Signed::sign(&authority, &operator);
    assert!(store.claim(&first, &NewAudit::default()).await.unwrap());
    store.close().await;
    directory.remove_claim_secret().unwrap();
}

#[tokio::test]
async fn a_restore_that_is_cut_short_leaves_nothing_that_runs_as_the_controller_of_before() {
    let home = tempfile::tempdir().unwrap();
    let backup = Directory::new(&home.path().join("backup"));
    claimed(&backup).await;
    for steps in [&RESTORE[..], &RESTORE_WITH_NEW_KEY[..]] {
        for taken in 0..=steps.len() {
            let taken = &steps[..taken];
            let to = Directory::new(&home.path().join(format!("{}-{}", steps.len(), taken.len())));
            to.prepare().unwrap();
            take(taken, &backup, &to).await.unwrap();
            // As it is before anybody opens it, the database has its name only with the mark.
            if to.database().exists() {
                assert!(fs::metadata(to.database()).unwrap().len() > 0, "{taken:?}");
                let lone = home.path().join(format!("lone-{}-{}", steps.len(), taken.len()));
                fs::copy(to.database(), &lone).unwrap();
                let store = SqliteStore::open(&lone, false, Limits::default()).await.unwrap();
                assert!(store.restored().await.unwrap().is_some(), "{taken:?}: isn't marked");
                store.close().await;
            }
            let again = restore(&backup, &to, false).await;
            match (taken.len(), taken.last()) {
                (_, Some(Step::Config)) => {
                    let again = again.unwrap_err().to_string();
                    assert!(again.contains("anteroom-controller run"), "{again}");
                    let key = to.load_identity().unwrap().public();
                    let old = backup.load_identity().unwrap().public();
                    assert_eq!(key != old, steps.len() > RESTORE.len(), "{taken:?}");
                    let running = run::start(to, false).await.unwrap();
                    assert!(running.controller().restored().is_some(), "{taken:?}: serves");
                    running.stop().await;
                    continue;
                }
                // Nothing has its name yet: the next try succeeds.
                (0..=2, _) => {
                    again.unwrap();
                    continue;
                }
                _ => {}
            }
            let again = again.unwrap_err().to_string();
            assert!(again.contains("cut short") && !again.contains("run`"), "{again}");
            let started = run::start(to, false).await;
            let error = started.err().unwrap_or_else(|| panic!("{taken:?}: runs")).to_string();
            assert!(error.contains("controller.toml"), "{taken:?}: {error}");
        }
    }
}

#[tokio::test]
async fn nothing_is_restored_from_a_backup_that_was_cut_short() {
    let home = tempfile::tempdir().unwrap();
    let source = Directory::new(&home.path().join("c"));
    claimed(&source).await;
    for taken in 0..=BACKUP.len() {
        let taken = &BACKUP[..taken];
        let part = Directory::new(&home.path().join(format!("part-{}", taken.len())));
        let to = Directory::new(&home.path().join(format!("to-{}", taken.len())));
        part.prepare().unwrap();
        take(taken, &source, &part).await.unwrap();
        let restored = restore(&part, &to, false).await;
        if taken.len() == BACKUP.len() {
            restored.unwrap();
            continue;
        }
        let error = restored.unwrap_err().to_string();
        assert!(error.contains("controller.toml"), "{taken:?}: {error}");
        assert!(to.files().iter().all(|file| !file.exists()), "{taken:?}: something was left");
    }
}
