//! A controller's directory: how it is made, kept, and what is refused to be served from.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anteroom_controller::directory::Directory;
use anteroom_controller::init::{InitOptions, init, setup_code};
use anteroom_controller::run;

use crate::support::Service;

fn options(advertise: &[&str]) -> InitOptions {
    InitOptions {
        quic: "127.0.0.1:4433".parse().unwrap(),
        https: "127.0.0.1:8443".parse().unwrap(),
        advertise: advertise.iter().map(ToString::to_string).collect(),
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn init_makes_private_files_and_overwrites_nothing() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("deep/controller");
    let directory = Directory::new(&path);
    let code =
        init(&directory, &options(&["10.20.0.10", "fd00::1", "controller.example"])).await.unwrap();
    assert_eq!(code.https[1], "https://[fd00::1]:8443");
    assert_eq!(code.quic, ["10.20.0.10:4433", "[fd00::1]:4433", "controller.example:4433"]);
    assert_eq!(mode(&path), 0o700);
    let mut files = 0;
    for entry in std::fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap().path();
        assert_eq!(mode(&entry), 0o600, "{}", entry.display());
        files += 1;
    }
    assert!(files >= 6, "{files} files");
    assert_eq!(setup_code(&directory).await.unwrap(), code);
    let error = init(&directory, &options(&["10.20.0.10"])).await.unwrap_err().to_string();
    assert!(error.contains("is there already"), "{error}");
    assert_eq!(setup_code(&directory).await.unwrap(), code, "nothing was changed");
}

#[tokio::test]
async fn addresses_that_help_nobody_are_refused() {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("controller");
    for bad in ["0.0.0.0", "::", "host:8443", "https://host", "two words", "", "-x"] {
        let error = init(&Directory::new(&path), &options(&[bad])).await.unwrap_err().to_string();
        assert!(error.contains("--advertise"), "{bad:?}: {error}");
        assert!(!path.exists(), "{bad:?} left something behind");
    }
}

#[tokio::test]
async fn what_is_damaged_is_named_and_not_served() {
    let mut service = Service::new().await;
    service.claimed().await;
    service.stop().await;
    let error = setup_code(&service.directory()).await.unwrap_err().to_string();
    assert!(error.contains("has been claimed"), "{error}");
    let start =
        async || run::start(service.directory(), false).await.map(|_| ()).unwrap_err().to_string();
    let spoil = async |file: std::path::PathBuf, content: &[u8], words: &str| {
        let kept = std::fs::read(&file).unwrap();
        std::fs::write(&file, content).unwrap();
        let error = start().await;
        assert!(error.contains(words), "{}: {error}", file.display());
        std::fs::write(&file, kept).unwrap();
    };
    let directory = service.directory();
    spoil(directory.config(), b"[quick]\n", "controller.toml:1: ").await;
    spoil(directory.identity(), b"short\n", "identity.key: it isn't 32 bytes").await;
    let other = format!("{}\n", "B".repeat(42) + "A");
    spoil(directory.identity(), other.as_bytes(), "another controller's key").await;
    spoil(directory.certificate(), b"", "https.crt: it holds no certificate").await;
    spoil(directory.https_key(), b"nothing", "https.key: ").await;
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(directory.identity(), open).unwrap();
    assert!(start().await.contains("can be read by others"));
    std::fs::set_permissions(directory.identity(), std::fs::Permissions::from_mode(0o600)).unwrap();
    service.start().await;
    service.stop().await;
}
