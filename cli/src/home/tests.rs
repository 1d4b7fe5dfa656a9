use std::fs;
use std::os::unix::fs::PermissionsExt;

use anteroom_proto::time::UnixMillis;

use super::*;

fn home() -> (tempfile::TempDir, Home) {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::locate(Some(&dir.path().join("home"))).unwrap();
    (dir, home)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_and_tokens_are_their_owners_alone() {
    let (_dir, home) = home();
    let key = IdentityKey::from_seed(&[7; 32]);
    home.write_key(&key).unwrap();
    let session = Session {
        token: "secret".into(),
        operator: "ana".parse().unwrap(),
        not_after: UnixMillis(5),
    };
    home.write_session(Some(&session)).unwrap();
    assert_eq!(mode(home.path()), 0o700);
    for name in ["operator.key", "session.json"] {
        assert_eq!(mode(&home.file(name)), 0o600, "{name}");
    }
    assert_eq!(home.key().unwrap().public(), key.public());
    assert_eq!(home.session().unwrap(), Some(session));
    home.write_session(None).unwrap();
    home.write_session(None).unwrap();
    assert_eq!(home.session().unwrap(), None);
    let left: Vec<_> = fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["operator.key"], "a draft was left behind");
}

#[test]
fn lax_permissions_are_refused_with_the_command_that_mends_them() {
    let (_dir, home) = home();
    home.write_key(&IdentityKey::from_seed(&[7; 32])).unwrap();
    let path = home.file("operator.key");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = home.key().unwrap_err().to_string();
    assert!(error.contains("mode 640") && error.contains("chmod 600 "), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let error = home.key().unwrap_err().to_string();
    assert!(error.contains("mode 755") && error.contains("chmod 700 "), "{error}");
}

#[test]
fn damaged_files_are_named() {
    let (_dir, home) = home();
    assert!(matches!(home.key(), Err(HomeError::NotLoggedIn { .. })));
    assert!(matches!(home.config(), Err(HomeError::NotLoggedIn { .. })));
    home.create().unwrap();
    for (name, text) in [
        ("operator.key", "anteroom-operator-key-1.AAAA\n"),
        ("config.toml", "controller = 5\n"),
        ("seen.json", "{\"number\": 5"),
        ("authority.json", ""),
    ] {
        files::write(&home.file(name), text).unwrap();
    }
    for error in [
        home.key().unwrap_err(),
        home.config().unwrap_err(),
        home.seen().unwrap_err(),
        home.trust().unwrap_err(),
    ] {
        assert!(
            matches!(&error, HomeError::File { path, .. } if path.contains("/home/")),
            "{error}"
        );
    }
}

#[test]
fn a_new_file_never_replaces_an_old_one() {
    let (dir, _) = home();
    let path = dir.path().join("recovery.key");
    write_new(&path, "one").unwrap();
    assert_eq!(mode(&path), 0o600);
    assert!(write_new(&path, "two").is_err());
    assert_eq!(fs::read_to_string(&path).unwrap(), "one");
}
