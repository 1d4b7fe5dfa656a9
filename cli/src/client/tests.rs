use super::*;

#[test]
fn addresses_are_https_and_nothing_more() {
    for good in
        ["https://10.0.0.1:8443", "https://controller.example:8443/", "https://[fd00::1]:8443"]
    {
        assert!(parse_address(good).is_ok(), "{good}");
    }
    for bad in [
        "",
        "10.0.0.1:8443",
        "http://10.0.0.1:8443",
        "https://10.0.0.1/admin",
        "https://a@b",
        "https://a?b",
    ] {
        assert!(parse_address(bad).is_err(), "{bad} was taken");
    }
}

#[test]
fn nobody_there_is_said_with_the_address() {
    // Bound, and closed again: nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let client = Client::new(&[format!("https://127.0.0.1:{port}")], Hash::ZERO).unwrap();
    let error = client.get::<()>("/v1/controller", &(), None).unwrap_err();
    assert!(matches!(&error, ClientError::Unreachable { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("can't reach the controller at https://127.0.0.1:{port}: ")),
        "{text}"
    );
    assert!(text.contains("refused"), "{text}");
}
