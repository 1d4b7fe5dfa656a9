//! Of people nothing is told: a name stands in every place of every protocol where one may, and in no hint.

use anteroom_proto::inventory::HintKind;
use anteroom_sensor::{Look, Sensor, Sights};

/// Somebody's name, as it stands in what is sent.
const NAME: &str = "Mustermann";

/// A conversation over TCP, from its opening on.
struct Talk {
    ports: (u16, u16),
    next: [u32; 2],
    frames: Vec<Vec<u8>>,
}

impl Talk {
    fn open(port: u16) -> Self {
        let mut talk = Self { ports: (40_000, port), next: [1, 1], frames: Vec::new() };
        talk.segment(false, 0x02, 0, b"");
        talk.segment(true, 0x12, 0, b"");
        talk
    }

    fn segment(&mut self, answers: bool, flags: u8, sequence: u32, payload: &[u8]) {
        let ports = if answers { (self.ports.1, self.ports.0) } else { self.ports };
        let mut tcp = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
        tcp.extend(sequence.to_be_bytes());
        tcp.extend([0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        tcp.extend(payload);
        self.frames.push(frame(answers, 6, &tcp));
    }

    fn says(mut self, answers: bool, payload: impl AsRef<[u8]>) -> Self {
        let (payload, sender) = (payload.as_ref(), usize::from(answers));
        self.segment(answers, 0x18, self.next[sender], payload);
        self.next[sender] += u32::try_from(payload.len()).unwrap();
        self
    }

    fn asks(self, payload: impl AsRef<[u8]>) -> Self {
        self.says(false, payload)
    }

    fn answers(self, payload: impl AsRef<[u8]>) -> Self {
        self.says(true, payload)
    }
}

fn frame(answers: bool, protocol: u8, held: &[u8]) -> Vec<u8> {
    let (to, from) = if answers { (1, 2) } else { (2, 1) };
    let length = u16::try_from(20 + held.len()).unwrap().to_be_bytes();
    let mut frame = vec![2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from, 8, 0];
    frame.extend([0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, protocol, 0, 0]);
    frame.extend([10, 0, 0, from, 10, 0, 0, to]);
    frame.extend(held);
    frame
}

fn datagram(ports: (u16, u16), payload: &[u8]) -> Vec<Vec<u8>> {
    let mut udp = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    udp.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
    udp.extend([0, 0]);
    udp.extend(payload);
    vec![frame(false, 17, &udp)]
}

fn told(frames: &[Vec<u8>]) -> Vec<(HintKind, String)> {
    let (mut sensor, mut sights) = (Sensor::new(), Sights::default());
    let mut told = Vec::new();
    for frame in frames {
        sensor.frame(frame, None, Look::Further, &mut sights);
        told.extend(sights.drain().map(|sight| (sight.kind, sight.value)));
    }
    told
}

/// That reading these frames tells something of this kind, and nobody's name.
#[track_caller]
fn passes_by(what: &str, frames: &[Vec<u8>], kind: HintKind) {
    let holds = |frame: &Vec<u8>| {
        let plain: Vec<u8> = frame.iter().filter(|byte| **byte != 0).copied().collect();
        let low = String::from_utf8_lossy(&plain).to_lowercase();
        low.contains(&NAME.to_lowercase()) || low.contains(&netbios(NAME, 0).to_lowercase()[2..12])
    };
    assert!(frames.iter().any(holds), "{what}: the name isn't even sent");
    // Whole, and from each frame on: a gateway may come late.
    for first in 0..frames.len() {
        let told = told(&frames[first..]);
        for (kind, value) in &told {
            let low = value.to_lowercase();
            assert!(!low.contains(&NAME.to_lowercase()), "{what}: {kind} = {value:?}");
        }
        let found = first > 0 || told.iter().any(|(of, _)| *of == kind);
        assert!(found, "{what}: no {kind} among {told:?}");
    }
}

fn wide(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// A name as NetBIOS encodes it.
fn netbios(name: &str, suffix: u8) -> String {
    let mut padded = name.to_uppercase().into_bytes();
    padded.resize(15, b' ');
    padded.push(suffix);
    padded.iter().flat_map(|b| [b'A' + (b >> 4), b'A' + (b & 15)]).map(char::from).collect()
}

#[test]
fn who_signs_in_and_what_is_typed_is_passed_by() {
    let ftp = Talk::open(21).answers("220 PACS spool\r\n").asks(format!("USER {NAME}\r\n"));
    let ftp = ftp.answers(format!("331 Password for {NAME}\r\n")).asks(format!("PASS {NAME}\r\n"));
    let ftp = ftp.asks(format!("STOR {NAME}.dcm\r\n"));
    passes_by("FTP", &ftp.frames, HintKind::Banner);
    let mail = Talk::open(25).answers("220 relay ready\r\n").asks(format!("EHLO {NAME}-pc\r\n"));
    let mail = mail.asks(format!("MAIL FROM:<{NAME}@ward>\r\n")).answers(format!("250 {NAME}\r\n"));
    passes_by("SMTP", &mail.frames, HintKind::Banner);
    let telnet = Talk::open(23).answers("login: ").asks(NAME).answers(format!("{NAME}\r\n"));
    passes_by("Telnet", &telnet.answers(format!("{NAME}, bed 7\r\n")).frames, HintKind::Listens);
    let telnet = Talk::open(2323).answers(format!("login: {NAME}\r\n"));
    passes_by("Telnet elsewhere", &telnet.frames, HintKind::Listens);
}

#[test]
fn of_http_neither_paths_nor_forms_nor_answers_name_anybody() {
    let body = format!("<root><device><serialNumber>1</serialNumber></device><p>{NAME}</p></root>");
    let asks = Talk::open(80).asks(format!(
        "POST /{NAME}?n={NAME} HTTP/1.1\r\nHost: ris\r\nUser-Agent: Viewer/2\r\nCookie: {NAME}\r\nAuthorization: Basic {NAME}\r\nReferer: http://ris/{NAME}\r\nFrom: {NAME}@ward\r\nX-Patient: {NAME}\r\nContent-Length: 10\r\n\r\n{NAME}"
    ));
    let answer = format!(
        "HTTP/1.1 200 {NAME}\r\nServer: ris/3\r\nSet-Cookie: {NAME}\r\nLocation: /{NAME}\r\nContent-Type: text/xml\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    passes_by("HTTP", &asks.answers(answer).frames, HintKind::HttpServer);
    for report in [
        "EpisodicContextReport><PatientContextState><Familyname>@</Familyname></PatientContextState></EpisodicContextReport",
        "GetContextStatesResponse><Person><Types>@</Types></Person><Scopes>@</Scopes></GetContextStatesResponse",
        "ProbeMatch><Types>d:MedicalDevice</Types><Scopes>sdc.ctxt.pat:/@ sdc%2ectxt.pat:@ http://x/patient=@</Scopes></ProbeMatch",
    ] {
        let body = format!(
            "<s:Envelope xmlns:s=\"http://www.w3.org/2003/05/soap-envelope\" xmlns=\"http://docs.oasis-open.org/ws-dd/ns/discovery/2009/01\"><s:Body><{}></s:Body></s:Envelope>",
            report.replace('@', NAME)
        );
        let head = "HTTP/1.1 200 OK\r\nServer: sdc\r\nContent-Type: application/soap+xml";
        let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let talk = Talk::open(8080).asks("POST / HTTP/1.1\r\nHost: sdc\r\n\r\n").answers(answer);
        passes_by("SDC", &talk.frames, HintKind::HttpServer);
    }
}

#[test]
fn of_hl7_and_dicom_no_patient_and_no_operator_is_told() {
    let message = format!(
        "\x0bMSH|^~\\&|MONITOR|ICU|EHR|HOSP|2026||ORU^R01|{NAME}|P|2.5\rPID|1||47||{NAME}^Erika\rOBX|1|TX|||{NAME}\r\x1c\r"
    );
    let answer = format!(
        "\x0bMSH|^~\\&|EHR|HOSP|MONITOR|ICU|2026||ACK|1|P|2.5\rMSA|AA|{NAME}|for {NAME}\r\x1c\r"
    );
    let talk = Talk::open(2575).asks(message).answers(answer);
    passes_by("HL7", &talk.frames, HintKind::Hl7Sender);

    let item = |kind: u8, held: &[u8]| {
        let length = u16::try_from(held.len()).unwrap().to_be_bytes();
        [&[kind, 0][..], &length, held].concat()
    };
    // User identity (PS3.7, D.3.3.7): a name and a passcode.
    let length = u16::try_from(NAME.len()).unwrap().to_be_bytes();
    let mut identity = vec![2, 0];
    for _ in 0..2 {
        identity.extend([&length[..], NAME.as_bytes()].concat());
    }
    let context = [&[1, 0, 0, 0][..], &item(0x30, b"1.2.840.10008.1.1")].concat();
    let user = [item(0x52, b"1.2.3.4"), item(0x58, &identity), item(0x55, b"V1")].concat();
    let pdu = |kind: u8, held: &[u8]| {
        let length = u32::try_from(held.len()).unwrap().to_be_bytes();
        [&[kind, 0][..], &length, held].concat()
    };
    let fixed = [&[0, 1, 0, 0][..], b"ARCHIVE         WORKSTATION     ", &[0; 32]].concat();
    let asked = pdu(1, &[fixed.clone(), item(0x20, &context), item(0x50, &user)].concat());
    let granted = [fixed, item(0x21, &[1, 0, 0, 0]), item(0x50, &item(0x59, NAME.as_bytes()))];
    let data = pdu(4, format!("....PN..{NAME}^Erika").as_bytes());
    let talk = Talk::open(104).asks(asked).answers(pdu(2, &granted.concat()));
    let talk = talk.asks(&data).answers(&data);
    passes_by("DICOM", &talk.frames, HintKind::DicomCalledAe);
}

#[test]
fn of_windows_no_user_is_told() {
    let message = |held: Vec<u8>| {
        let length = u32::try_from(held.len()).unwrap().to_be_bytes();
        [&length[..], &held].concat()
    };
    // SMB 1: a session is asked for, with two passwords, account, domain, system and program.
    let texts: Vec<u8> = [NAME, "WARD", "Windows 5.1", "Windows 2000 LAN Manager"]
        .iter()
        .flat_map(|text| [text.as_bytes(), &[0]].concat())
        .collect();
    let mut setup = [b"\xffSMB\x73".as_slice(), &[0; 27], &[13]].concat();
    setup.extend([0xff, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    setup.extend(u16::try_from(texts.len()).unwrap().to_le_bytes());
    setup.extend(&texts);
    let share = [b"\xffSMB\x75".as_slice(), &[0; 27], &[0, 11, 0], NAME.as_bytes()].concat();
    let talk = Talk::open(139).asks(message(setup)).asks(message(share));
    passes_by("SMB 1", &talk.frames, HintKind::SmbOs);

    // NTLM within SMB 2: the server's challenge, and the client's answer with user and machine.
    let computer = wide("NAS");
    let mut challenge = b"NTLMSSP\0\x02\0\0\0".to_vec();
    challenge.extend([0; 28]);
    let target = [
        &1_u16.to_le_bytes()[..],
        &u16::try_from(computer.len()).unwrap().to_le_bytes(),
        &computer,
    ];
    let target = [target.concat(), vec![0; 4]].concat();
    let length = u16::try_from(target.len()).unwrap().to_le_bytes();
    challenge.extend(
        [&length[..], &length, &56_u32.to_le_bytes(), &[10, 0, 0x61, 0x4a, 0, 0, 0, 15]].concat(),
    );
    challenge.extend(target);
    let mut answer = b"NTLMSSP\0\x03\0\0\0".to_vec();
    answer.extend([0; 52]);
    answer.extend(wide(&format!("WARD{NAME}{NAME}-PC")));
    let smb = |held: &[u8]| message([b"\xfeSMB".as_slice(), &[0; 60], held].concat());
    let talk = Talk::open(445).asks(smb(&answer)).answers(smb(&challenge)).asks(smb(&answer));
    passes_by("NTLM", &talk.frames, HintKind::NetbiosName);

    // The name service: whoever is logged on (suffix 3), beside the machine.
    let registers = |name: &str, suffix: u8| {
        let mut asked = vec![0, 1, 0x29, 0x10, 0, 1, 0, 0, 0, 0, 0, 1, 32];
        asked.extend(netbios(name, suffix).bytes());
        asked.extend([
            0, 0, 0x20, 0, 1, 0xc0, 0x0c, 0, 0x20, 0, 1, 0, 0, 0, 0, 0, 6, 0, 0, 10, 0, 0, 1,
        ]);
        datagram((137, 137), &asked)
    };
    let frames = [registers("PACS", 0), registers(NAME, 3)].concat();
    passes_by("NetBIOS", &frames, HintKind::NetbiosName);
}

#[test]
fn communities_users_and_rooms_are_passed_by() {
    let element =
        |kind: u8, held: &[u8]| [&[kind, u8::try_from(held.len()).unwrap()][..], held].concat();
    let name = element(4, NAME.as_bytes());
    // Contact and place of the system group, too.
    let variable = |last: u8| {
        element(0x30, &[element(6, &[0x2b, 6, 1, 2, 1, 1, last, 0]), name.clone()].concat())
    };
    let variables = element(0x30, &[variable(4), variable(6)].concat());
    let pdu = element(0xa2, &[&[2, 1, 9, 2, 1, 0, 2, 1, 0][..], &variables].concat());
    let message = element(0x30, &[&[2, 1, 1][..], &name, &pdu].concat());
    passes_by("SNMP", &datagram((161, 40_000), &message), HintKind::SnmpRole);
}
