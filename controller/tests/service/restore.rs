//! A controller that comes back from an old backup: nobody who was taken out since then comes back with it.

use anteroom_controller::directory::Directory;
use anteroom_controller::restore;
use anteroom_proto::api::{
    AuditEntry, AuthorityUpdate, ModelRevision, ModelRevisionBody, Restored, paths,
};
use anteroom_proto::authority::{Authority, AuthorityChain, Controller};
use anteroom_proto::cbor::Blob;
use anteroom_proto::cose::Signed;
use anteroom_proto::v1::{RefusalCode, ToAgent, ToController};
use anteroom_proto::view::{View, ViewError};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Row as _};

use crate::support::{Agent, Desk, Service, first_words, refusal, root_id};

/// What an operator's machine keeps.
struct Kept {
    newest: ModelRevision,
    chain: AuthorityChain,
}

async fn kept(desk: &Desk) -> Kept {
    Kept { newest: desk.client.get(paths::MODEL).await, chain: desk.chain().await }
}

impl Kept {
    /// The document that signs a restored controller back in, and the newest revision for it.
    fn sign_in(&self, desk: &Desk, change: impl FnOnce(&mut Authority)) -> AuthorityUpdate {
        let newest = self.chain.newest();
        let mut next = newest.next(newest.signed());
        next.incarnation += 1;
        next.root = Some(root_id(&self.newest.root));
        change(&mut next);
        let ModelRevision { root, model } = self.newest.clone();
        AuthorityUpdate {
            revision: Some(ModelRevisionBody { root, model }),
            ..desk.authority_update(&next, "controller restored")
        }
    }
}

/// Two gateways in force, a backup, and then: the first is revoked, a third is enrolled and approved, and its view
/// is in force.
async fn hospital(service: &Service) -> (Desk, Vec<Agent>) {
    let desk = service.claimed().await;
    let mut agents = Vec::new();
    for (n, name) in [(1, "imaging"), (2, "server-room")] {
        let agent = desk.invites(n, name).await;
        agent.enrol(service).await;
        desk.approve(&agent, name).await;
        agents.push(agent);
    }
    restore::backup(&service.directory(), &service.beside("backup")).await.unwrap();
    desk.revoke(&agents[0]).await;
    let late = desk.invites(3, "ward").await;
    late.enrol(service).await;
    desk.approve(&late, "ward").await;
    agents.push(late);
    for agent in &mut agents[1..] {
        let mut connected = agent.connect(service).await;
        let view = connected.view().await;
        agent.take(&mut connected, &desk.authority(), &view).await;
        connected.is_quiet(agent, 1).await;
    }
    (desk, agents)
}

#[tokio::test]
async fn a_restored_controller_serves_nobody_until_it_is_signed_in_with_what_it_lost() {
    let mut service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    let kept = kept(&desk).await;
    let old_view = {
        let mut fresh = Agent::new(2);
        fresh.applied = None;
        fresh.connect(&service).await.view().await
    };
    service.stop().await;
    let (from, to) = (service.beside("backup"), service.beside("restored"));
    restore::restore(&from, &to, false).await.unwrap();
    service.move_to("restored");
    service.start().await;
    let desk = Desk::new(&service).log_in().await;

    // Nobody is served, whoever they are; and nothing is changed.
    for agent in &agents {
        let hello = ToController::Hello(Box::new(agent.hello()));
        let refused = refusal(first_words(&service, &agent.identity, &hello).await);
        let late = agent.gateway == agents[2].gateway;
        let expected = if late { RefusalCode::Unknown } else { RefusalCode::Busy };
        assert_eq!(refused.code, expected, "{}: {refused:?}", agent.gateway);
    }
    let held: Option<Restored> = desk.client.get(paths::RESTORED).await;
    assert_eq!(held.unwrap().held, Some((agents[1].gateway, (1, 4))), "more than the backup's 2");
    let (model, base) = desk.base().await;
    let update = desk.update(&model, &desk.root(&model, base.as_ref()));
    let (status, error) = desk.client.post_error(paths::MODEL, &update).await;
    assert!(status == 409 && error.message.contains("waits for an operator"), "{error}");
    let plain = desk.next(|_| {}).await;
    let update = desk.authority_update(&plain, "a test");
    let (status, error) = desk.client.post_error(paths::AUTHORITY, &update).await;
    assert!(status == 409 && error.message.contains("must begin incarnation 2"), "{error}");
    // The revision must come along, and be the one that is named.
    let good = kept.sign_in(&desk, |_| {});
    let without = AuthorityUpdate { revision: None, ..good.clone() };
    let mut altered = good.clone();
    altered.revision.as_mut().unwrap().model = Blob(model.encode());
    for (what, update, expected, words) in [
        ("nothing comes along", without, 409, "hasn't got revision 4"),
        ("an altered model", altered, 400, "isn't the model"),
    ] {
        let (status, error) = desk.client.post_error(paths::AUTHORITY, &update).await;
        assert_eq!(status, expected, "{what}: {error}");
        assert!(error.message.contains(words), "{what}: {error}");
    }
    assert_eq!(desk.client.post_status(paths::AUTHORITY, &good).await, 204);
    let authority = good.document.verify_self_named().unwrap().into_document();
    assert_eq!(desk.client.get::<Option<Restored>>(paths::RESTORED).await, None);

    // It holds what was lost; views wait for a root of the new incarnation.
    assert_eq!(desk.base().await.1, Some(kept.newest.root.clone()));
    let mut server_room = agents[1].connect(&service).await;
    server_room.is_quiet(&agents[1], 2).await;
    desk.change(|_| {}).await;
    let view = server_room.view().await;
    let taken = agents[1].take(&mut server_room, &authority, &view).await;
    assert_eq!((taken.revision, taken.operation.number.to_string()), (5, "2.1".into()));
    // The one that enrolled after the backup is known; the one that was revoked after it stays out.
    let mut ward = agents[2].connect(&service).await;
    let view = ward.view().await;
    agents[2].take(&mut ward, &authority, &view).await;
    let hello = ToController::Hello(Box::new(agents[0].hello()));
    let refused = refusal(first_words(&service, &agents[0].identity, &hello).await);
    assert_eq!(refused.code, RefusalCode::Revoked);
    // Whoever still has the old controller has nothing that counts.
    let floor = agents[1].floor;
    let error = View::verify(&old_view, agents[1].gateway, &authority, &floor).unwrap_err();
    assert!(matches!(error, ViewError::Rollback { .. }), "{error}");
    let log: Vec<AuditEntry> = desk.client.get(paths::AUDIT).await;
    let actions: Vec<&str> = log.iter().map(|entry| entry.action.as_str()).collect();
    assert!(
        actions.ends_with(&["controller restore", "controller restored", "a test"]),
        "{actions:?}"
    );
    service.stop().await;
    service.start().await;
    service.stop().await;
}

#[tokio::test]
async fn gateways_hear_of_another_key_from_the_chain_alone() {
    let mut service = Service::new().await;
    let (desk, mut agents) = hospital(&service).await;
    let kept = kept(&desk).await;
    let old = service.code.controller;
    service.stop().await;
    let code = restore::new_key(&service.directory()).await.unwrap();
    assert_ne!(code.controller, old);
    service.move_to("c");
    assert_eq!(service.code.certificate, code.certificate);
    service.start().await;
    let desk = Desk::new(&service).log_in().await;
    // The old key isn't named any more, so a document that names it alone doesn't count here.
    let stale = kept.sign_in(&desk, |_| {});
    let (status, error) = desk.client.post_error(paths::AUTHORITY, &stale).await;
    assert!(status == 400 && error.message.contains("doesn't name this controller"), "{error}");
    let update = kept.sign_in(&desk, |next| {
        next.controllers = vec![Controller { key: code.controller, addresses: code.quic.clone() }];
    });
    let update = AuthorityUpdate { revision: None, ..update };
    assert_eq!(desk.client.post_status(paths::AUTHORITY, &update).await, 204);
    desk.change(|_| {}).await;

    let ask = |agent: &Agent| ToController::AskAuthority {
        organisation: crate::support::ORGANISATION,
        gateway: agent.gateway,
    };
    let answer = first_words(&service, &agents[1].identity, &ask(&agents[1])).await;
    let ToAgent::Authority(chain) = answer else { panic!("no chain but {answer:?}") };
    let pin: Signed<Authority> = desk.claim().authority;
    let pinned = kept.chain.pin();
    assert_ne!(pin.hash(), pinned, "the test's desk knows the new key only");
    let chain = AuthorityChain::follow(pinned, &chain).unwrap();
    assert_eq!(chain.newest().controller_keys(), [code.controller]);
    let mut connected = agents[1].connect(&service).await;
    let view = connected.view().await;
    agents[1].take(&mut connected, chain.newest(), &view).await;
    // Strangers, and gateways in another's name, aren't told who the operators are.
    let refused = refusal(first_words(&service, &agents[2].identity, &ask(&agents[1])).await);
    assert_eq!(refused.code, RefusalCode::Unknown);
    // The old controller's word counts no more.
    let error = View::verify(&view, agents[1].gateway, kept.chain.newest(), &agents[1].floor);
    assert!(error.is_err(), "who still follows the old document doesn't take it for good");
    service.stop().await;
}

#[tokio::test]
async fn a_damaged_backup_is_refused_and_leaves_nothing() {
    let mut service = Service::new().await;
    let _desk = service.claimed().await;
    let (backup, target) = (service.beside("backup"), service.beside("target"));
    restore::backup(&service.directory(), &backup).await.unwrap();
    service.stop().await;
    assert!(
        restore::backup(&service.directory(), &backup).await.is_err(),
        "nothing is overwritten"
    );
    let mut bytes = std::fs::read(backup.database()).unwrap();
    bytes.truncate(bytes.len() / 2);
    std::fs::write(backup.database(), &bytes).unwrap();
    let error = restore::restore(&backup, &target, false).await.unwrap_err();
    assert!(error.to_string().contains("database"), "{error}");
    assert!(target.files().iter().all(|file| !file.exists()), "something was left");
    // Others could read the keys.
    std::fs::set_permissions(
        backup.identity(),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let error = restore::restore(&backup, &target, false).await.unwrap_err();
    assert!(!error.to_string().is_empty() && !target.identity().exists(), "{error}");
}

/// A row for a table, whatever its columns are: each value is of its column's type.
async fn fill(database: &mut SqliteConnection, table: &str) {
    let columns =
        sqlx::query(AssertSqlSafe(format!("SELECT name, type FROM pragma_table_info('{table}')")))
            .fetch_all(&mut *database)
            .await
            .unwrap();
    let value = |(at, row): (usize, &SqliteRow)| match row.get::<String, _>("type").as_str() {
        // Tables of one row check that it is the first.
        "INTEGER" => "1".to_owned(),
        "BLOB" => format!("X'{:02X}{}'", at, "5A".repeat(15)),
        "TEXT" => format!("'{table} {at}'"),
        other => panic!("{table}: a column of type {other}"),
    };
    let values: Vec<String> = columns.iter().enumerate().map(value).collect();
    let insert = format!("INSERT INTO {table} VALUES ({})", values.join(", "));
    sqlx::query(AssertSqlSafe(insert.clone()))
        .execute(database)
        .await
        .unwrap_or_else(|error| panic!("{insert}: {error}"));
}

/// All rows of a table, as text.
async fn rows(database: &mut SqliteConnection, table: &str) -> Vec<String> {
    let columns =
        sqlx::query(AssertSqlSafe(format!("SELECT name FROM pragma_table_info('{table}')")))
            .fetch_all(&mut *database)
            .await
            .unwrap();
    let quoted: Vec<String> =
        columns.iter().map(|row| format!("quote(\"{}\")", row.get::<String, _>("name"))).collect();
    let select = format!("SELECT {} AS text FROM {table} ORDER BY 1", quoted.join(" || ',' || "));
    let found = sqlx::query(AssertSqlSafe(select)).fetch_all(database).await.unwrap();
    found.iter().map(|row| row.get("text")).collect()
}

async fn open(directory: &Directory) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(directory.database()).foreign_keys(false);
    options.connect().await.unwrap()
}

#[tokio::test]
async fn whatever_the_database_holds_is_in_a_backup_and_comes_back() {
    let mut service = Service::new().await;
    let _desk = service.claimed().await;
    service.stop().await;
    let mut source = open(&service.directory()).await;
    let tables: Vec<String> = sqlx::query(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY name",
    )
    .fetch_all(&mut source)
    .await
    .unwrap()
    .iter()
    .map(|row| row.get("name"))
    .collect();
    assert!(tables.len() > 15 && tables.iter().any(|table| table == "rekeys"), "{tables:?}");
    for table in &tables {
        // That it waits for an operator, a controller that was restored says by itself.
        if table != "restored" && rows(&mut source, table).await.is_empty() {
            fill(&mut source, table).await;
        }
    }
    let mut held = Vec::new();
    for table in &tables {
        held.push(rows(&mut source, table).await);
    }
    source.close().await.unwrap();

    let (backup, target) = (service.beside("backup"), service.beside("target"));
    restore::backup(&service.directory(), &backup).await.unwrap();
    restore::restore(&backup, &target, false).await.unwrap();
    let (mut copy, mut restored) = (open(&backup).await, open(&target).await);
    for (table, held) in tables.iter().zip(&held) {
        assert_eq!(rows(&mut copy, table).await, *held, "{table} in the backup");
        let back = rows(&mut restored, table).await;
        match table.as_str() {
            "restored" => assert_eq!(back.len(), 1, "{back:?}"),
            "audit" => {
                assert!(back.len() == held.len() + 1, "that it was restored: {back:#?}");
                assert!(held.iter().all(|row| back.contains(row)), "{held:#?}: {back:#?}");
            }
            // That what was offered is as old as the backup is noted.
            "rekeys" => assert_eq!(back.len(), held.len(), "{back:?}"),
            _ => assert_eq!(back, *held, "{table}, restored"),
        }
    }
    // And every file beside the database.
    for file in std::fs::read_dir(service.path()).unwrap() {
        let (file, name) = file.map(|file| (file.path(), file.file_name())).unwrap();
        if name.to_string_lossy().contains(".db") {
            continue;
        }
        let content = std::fs::read(&file).unwrap();
        for directory in [&backup, &target] {
            let copied = std::fs::read(directory.path().join(&name));
            assert_eq!(copied.ok().as_ref(), Some(&content), "{name:?} in {directory:?}");
        }
    }
}
