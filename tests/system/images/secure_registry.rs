//! A registry with TLS, also behind a proxy, and how many connections a pull makes.

use std::process::Output;

use cofferdam_tests::images::{Layer, busybox};
use cofferdam_tests::registry::Registry;
use cofferdam_tests::tls::Certificates;
use cofferdam_tests::tunnel::Tunnel;
use cofferdam_tests::{assert_contains, is_root};

use super::Fixture;
use super::registry::compressed;

/// Layers that are downloaded at a time.
const THREADS: usize = 4;

/// A registry with TLS and an image of many layers.
struct Secure {
    registry: Registry,
    certificates: Certificates,
    _plain: Registry,
}

const LAYERS: usize = 12;

impl Secure {
    fn start(fixture: &Fixture) -> Self {
        let plain = Registry::start(false);
        let small = (1..LAYERS).map(|number| Layer::new().file(&format!("file-{number}"), b"content"));
        let layers: Vec<_> =
            std::iter::once(busybox()).chain(small).map(|layer| compressed(&layer)).collect();
        plain.image("web", "1", &layers, "amd64");
        let certificates = Certificates::create(fixture.directory.path(), "IP:127.0.0.1,DNS:registry.test");
        let registry = plain.with_tls(&certificates);
        Self { registry, certificates, _plain: plain }
    }
}

fn error(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_registry_is_trusted_by_its_authority_and_its_connections_are_used_again() {
    if !is_root("a pull") {
        return;
    }
    let fixture = Fixture::new();
    let secure = Secure::start(&fixture);
    let front = Tunnel::to(secure.registry.address);
    let name = format!("{}/web:1", front.address);
    assert_contains(&error(&fixture.pull(&[&name])), &[&name, "cannot agree on TLS", "SSL_CERT_FILE"]);
    let before = front.asked().len();
    let mut command = fixture.pull_command(&[&name]);
    let output = command.env("SSL_CERT_FILE", &secure.certificates.authority).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fixture.images.inspect(&name)["layers"].as_array().unwrap().len(), LAYERS);
    // The manifest, the configuration and each layer were requested.
    let connections = front.asked().len() - before;
    assert!((1..=THREADS).contains(&connections), "{connections} connections");
}

#[test]
fn a_registry_behind_a_proxy_is_reached_by_name_and_verified() {
    if !is_root("a pull") {
        return;
    }
    let fixture = Fixture::new();
    let secure = Secure::start(&fixture);
    let proxy = Tunnel::proxy(secure.registry.address);
    // A name that only the proxy knows.
    let name = "registry.test:5443/web:1";
    let pull = |name: &str| {
        let mut command = fixture.pull_command(&[name]);
        for variable in ["NO_PROXY", "no_proxy", "https_proxy", "all_proxy", "ALL_PROXY"] {
            command.env_remove(variable);
        }
        command.env("HTTPS_PROXY", format!("http://{}", proxy.address));
        command.env("SSL_CERT_FILE", &secure.certificates.authority).output().unwrap()
    };
    let output = pull(name);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let asked = proxy.asked();
    assert!(asked.iter().all(|line| line == "CONNECT registry.test:5443 HTTP/1.1"), "{asked:?}");
    assert!((1..=THREADS).contains(&asked.len()), "{asked:?}");
    // The certificate has another name: neither proxy nor server can be taken for the registry.
    assert_contains(&error(&pull("other.test:5443/web:1")), &["cannot agree on TLS with `other.test:5443`"]);
    assert!(!fixture.pull(&["--insecure", name]).status.success(), "only the proxy knows it");
}
