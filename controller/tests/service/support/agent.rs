//! Agents that speak for gateways.

use super::*;

/// A gateway's agent, without a data plane.
pub(crate) struct Agent {
    n: u8,
    pub(crate) gateway: GatewayId,
    pub(crate) identity: IdentityKey,
    pub(crate) boot: BootId,
    pub(crate) applied: Option<Applied>,
    pub(crate) floor: Floor,
    pub(crate) endpoints: Vec<std::net::SocketAddr>,
    pub(crate) capabilities: Vec<String>,
    pub(crate) quic: Option<u16>,
}

/// Its connection, once it was welcomed.
pub(crate) struct Connected {
    pub(crate) link: Link,
    pub(crate) reader: MessageReader<ToAgent>,
    pub(crate) writer: MessageWriter<ToController>,
    pub(crate) welcome: Welcome,
}

impl Agent {
    pub(crate) fn new(n: u8) -> Self {
        Self {
            n,
            gateway: GatewayId::from_bytes([n; 16]),
            identity: IdentityKey::from_seed(&[n; 32]),
            boot: BootId::from_bytes([n; 16]),
            applied: None,
            floor: Floor::default(),
            endpoints: vec![std::net::SocketAddr::from(([10, 20, n, 2], 51820))],
            capabilities: vec![],
            quic: None,
        }
    }

    pub(crate) fn approved(&self, name: &str) -> Gateway {
        Gateway {
            name: name.parse().unwrap(),
            site: "north".parse().unwrap(),
            identity: self.identity.public(),
            former: Vec::new(),
            labels: BTreeMap::new(),
        }
    }

    pub(crate) fn claim(&self, identity: PublicKey) -> IdentityClaim {
        IdentityClaim {
            organisation: ORGANISATION,
            invite: InviteId::from_bytes([self.n; 16]),
            gateway: self.gateway,
            identity,
        }
    }

    pub(crate) fn enrolment(&self, identity: PublicKey) -> Enrol {
        let one_time = IdentityKey::from_seed(&[self.n ^ 0xf0; 32]);
        Enrol {
            invite: InviteId::from_bytes([self.n; 16]),
            claim: Signed::sign(&self.claim(identity), &one_time),
        }
    }

    pub(crate) async fn enrol(&self, service: &Service) -> ToAgent {
        let enrol = self.enrolment(self.identity.public());
        first_words(service, &self.identity, &ToController::Enrol(Box::new(enrol))).await
    }

    /// The tunnel key of `owner`, which may be another, signed as its own.
    pub(crate) fn binding_of(&self, owner: &Self) -> Signed<TunnelKeyBinding> {
        self.binding(TunnelSecret::from_bytes([owner.n; 32]).public())
    }

    /// Any tunnel key, signed as its own.
    pub(crate) fn binding(&self, x25519: TunnelPublicKey) -> Signed<TunnelKeyBinding> {
        let binding = TunnelKeyBinding {
            organisation: ORGANISATION,
            gateway: self.gateway,
            x25519,
            ml_kem_768: None,
            serial: 1,
            not_before: UnixMillis(0),
        };
        Signed::sign(&binding, &self.identity)
    }

    pub(crate) fn reachable(&self) -> Reachable {
        Reachable {
            endpoints: self.endpoints.clone(),
            keys: vec![self.binding_of(self)],
            ports: vec![PortInfo {
                name: "port1".parse().unwrap(),
                mac: "02:00:00:00:00:01".parse().unwrap(),
                up: true,
                unlisted: Unlisted::Hold,
            }],
            quic: None,
        }
    }

    pub(crate) fn hello(&self) -> Hello {
        Hello {
            versions: (1, 1),
            organisation: ORGANISATION,
            gateway: self.gateway,
            boot: self.boot,
            agent_version: "0.1.0-test".into(),
            capabilities: self.capabilities.clone(),
            authority: 1,
            applied: self.applied.clone(),
            reachable: self.reachable(),
            quic: self.quic,
        }
    }

    /// Connects and is welcomed.
    pub(crate) async fn connect(&self, service: &Service) -> Connected {
        let link = service.connect(&self.identity).await;
        let (send, receive) = link.connection().open_bi().await.unwrap();
        let mut writer = MessageWriter::new(send);
        let mut reader = MessageReader::new(receive, frame::MAX_TO_AGENT);
        writer.send(&ToController::Hello(Box::new(self.hello()))).await.unwrap();
        match soon("a welcome", reader.next()).await.unwrap() {
            Some(ToAgent::Welcome(welcome)) => {
                Connected { link, reader, writer, welcome: *welcome }
            }
            other => panic!("not welcomed: {other:?}"),
        }
    }

    /// Takes a view as the real agent does, and says so.
    pub(crate) async fn take(
        &mut self,
        connected: &mut Connected,
        authority: &Authority,
        signed: &SignedView,
    ) -> View {
        let view = View::verify(signed, self.gateway, authority, &self.floor).unwrap();
        self.floor = view.floor(&self.floor);
        let applied = Applied {
            number: view.operation.number,
            revision: view.revision,
            intent_hash: view.intent_hash,
            refused: None,
            problems: view.left_out.clone(),
        };
        self.applied = Some(applied.clone());
        connected.writer.send(&ToController::Applied(applied)).await.unwrap();
        view
    }
}

impl Connected {
    pub(crate) async fn next(&mut self) -> ToAgent {
        match soon("a message", self.reader.next()).await {
            Ok(Some(message)) => message,
            other => panic!("no message but {other:?}"),
        }
    }

    pub(crate) async fn view(&mut self) -> SignedView {
        match self.next().await {
            ToAgent::View(view) => *view,
            other => panic!("no view but {other:?}"),
        }
    }

    /// Nothing more comes before the answer to a report that is sent now.
    pub(crate) async fn is_quiet(&mut self, agent: &Agent, sequence: u64) {
        let report = empty_report(agent.boot, sequence);
        self.writer.send(&ToController::Report(Box::new(report))).await.unwrap();
        let next = self.next().await;
        assert_eq!(next, ToAgent::Reported { boot: agent.boot, sequence });
    }
}

pub(crate) fn empty_report(boot: BootId, sequence: u64) -> anteroom_proto::v1::telemetry::Report {
    anteroom_proto::v1::telemetry::Report {
        boot,
        sequence,
        at: UnixMillis(1),
        sightings: vec![],
        edges: vec![],
        drops: BTreeMap::new(),
        overflow: 0,
        tunnels: vec![],
        alarms: vec![],
        bypasses: vec![],
        trials: vec![],
        held_back: vec![],
        relays: Vec::new(),
        relays_away: Vec::new(),
        hints: Vec::new(),
    }
}

/// Says `first` over a new connection and returns the answer.
pub(crate) async fn first_words(
    service: &Service,
    identity: &IdentityKey,
    first: &ToController,
) -> ToAgent {
    let link = service.connect(identity).await;
    let (send, receive) = link.connection().open_bi().await.unwrap();
    MessageWriter::new(send).send(first).await.unwrap();
    let mut reader = MessageReader::new(receive, frame::MAX_TO_AGENT);
    let answer = soon("an answer", reader.next()).await.unwrap().unwrap();
    link.close("thanks").await;
    answer
}

pub(crate) fn refusal(answer: ToAgent) -> anteroom_proto::v1::Refusal {
    match answer {
        ToAgent::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}
