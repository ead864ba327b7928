//! Registries that misbehave.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use cofferdam_core::provisioner::Digest;
use cofferdam_tests::images::{Layer, gzip};
use cofferdam_tests::registry::{AUTH, Registry, Seen, Server, respond, write_login};
use cofferdam_tests::{assert_contains, is_root};
use serde_json::{Value as Json, json};

use super::Fixture;

/// A registry of one image, whose parts a test can change.
#[derive(Clone)]
struct Content {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layer: Vec<u8>,
}

impl Content {
    fn new() -> Self {
        let archive = Layer::new().file("file", b"content").bytes();
        let layer = gzip(&archive);
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "rootfs": { "type": "layers", "diff_ids": [Digest::of(&archive)] },
        });
        let config = config.to_string().into_bytes();
        let manifest = manifest(&config, &layer).to_string().into_bytes();
        Self { manifest, config, layer }
    }

    fn serve(&self, request: &Seen, stream: &mut TcpStream) {
        let body = match request.path.rsplit('/').nth(1) {
            Some("manifests") => &self.manifest,
            _ if request.path.ends_with(&Digest::of(&self.config).to_string()) => &self.config,
            _ => &self.layer,
        };
        respond(stream, "200 OK", "", body);
    }
}

fn descriptor(bytes: &[u8]) -> Json {
    json!({ "digest": Digest::of(bytes), "size": bytes.len() })
}

fn manifest(config: &[u8], layer: &[u8]) -> Json {
    json!({ "schemaVersion": 2, "config": descriptor(config), "layers": [descriptor(layer)] })
}

/// Sends a body without end, until the client closes the connection.
fn endless(stream: &mut TcpStream) {
    let chunk = [&b"1000\r\n"[..], &[b' '; 0x1000], b"\r\n"].concat();
    let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    while sent.is_ok() {
        sent = stream.write_all(&chunk);
    }
}

/// Pulls from a server that is refused, and checks that nothing stays that could be used.
#[track_caller]
fn refused(serve: impl Fn(&Seen, &mut TcpStream) + Send + Sync + 'static) -> String {
    let server = Server::start(serve);
    let fixture = Fixture::new();
    let error = fixture.refused(&["--insecure", &format!("{}/web:1", server.address)]);
    for directory in ["layers/sha256", "references", "staging"] {
        assert_eq!(fixture.images.entries(directory), Vec::<String>::new(), "{error}");
    }
    error
}

#[test]
fn what_is_not_as_its_digest_says_is_refused() {
    if !is_root("a pull") {
        return;
    }
    let good = Content::new();
    let (other, original) = (gzip(&Layer::new().file("other", b"").bytes()), good.clone());
    for (content, reason) in [
        (Content { layer: other.clone(), ..good.clone() }, "is not complete"),
        (Content { layer: [&good.layer[..], b"x"].concat(), ..good.clone() }, "has more than"),
        (Content { layer: flipped(&good.layer), ..good.clone() }, "layer 1"),
        (Content { config: flipped(&good.config), ..good.clone() }, "expected"),
        (
            Content { manifest: manifest(&good.config, &other).to_string().into(), layer: other, ..good },
            "has the digest",
        ),
    ] {
        let config = original.config.clone();
        let error = refused(move |request, stream| {
            let is_config = request.path.ends_with(&Digest::of(&config).to_string());
            match is_config {
                true => respond(stream, "200 OK", "", &content.config),
                false => content.serve(request, stream),
            }
        });
        assert_contains(&error, &[reason]);
    }
    let content = original;
    let error = refused(move |request, stream| match request.path.contains("/manifests/") {
        true => {
            let other = format!("Docker-Content-Digest: {}\r\n", Digest::of(b"other"));
            respond(stream, "200 OK", &other, &content.manifest);
        }
        false => content.serve(request, stream),
    });
    assert_contains(&error, &["tag `1`", "expected"]);
}

fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes
}

#[test]
fn everything_that_a_registry_sends_has_a_bound() {
    if !is_root("a pull") {
        return;
    }
    let content = Content::new();
    for part in ["/manifests/", "/blobs/"] {
        let content = content.clone();
        let error = refused(move |request, stream| match request.path.contains(part) {
            true => endless(stream),
            false => content.serve(request, stream),
        });
        assert_contains(&error, &["has more than"]);
    }
    let mut layer = manifest(&content.config, &content.layer);
    layer["layers"][0]["size"] = json!(1_u64 << 60);
    let mut config = manifest(&content.config, &content.layer);
    config["config"]["size"] = json!(1_u64 << 60);
    let layers = vec![descriptor(&content.layer); 501];
    let many = json!({ "schemaVersion": 2, "config": descriptor(&content.config), "layers": layers });
    let large = json!({ "schemaVersion": 2, "large": " ".repeat(5 << 20) });
    let old = json!({ "schemaVersion": 1, "fsLayers": [], "history": [] });
    let both = json!({ "schemaVersion": 2, "manifests": [], "layers": [], "config": {} });
    let empty = json!({ "schemaVersion": 2, "manifests": [] });
    for (manifest, reason) in [
        (layer, "`--max-size`"),
        (config, "more than 4194304 bytes"),
        (many, "which the kernel cannot mount"),
        (large, "more than 4194304 bytes"),
        (old, "schema 1"),
        (both, "both an index and a manifest"),
        (empty, "no image for linux/"),
        (json!([]), "malformed"),
        (json!({}), "malformed"),
    ] {
        let content = Content { manifest: manifest.to_string().into_bytes(), ..content.clone() };
        assert_contains(&refused(move |request, stream| content.serve(request, stream)), &[reason]);
    }
}

#[test]
fn indexes_of_indexes_come_to_an_end() {
    if !is_root("a pull") {
        return;
    }
    let mut indexes: Vec<Vec<u8>> = vec![json!({ "manifests": [] }).to_string().into_bytes()];
    for _ in 0..10 {
        let inner = indexes.last().unwrap();
        indexes.push(json!({ "manifests": [descriptor(inner)] }).to_string().into_bytes());
    }
    let error = refused(move |request, stream| {
        let wanted = request.path.rsplit('/').next().unwrap();
        let found = indexes.iter().find(|index| Digest::of(index).to_string() == wanted);
        respond(stream, "200 OK", "", found.or(indexes.last()).unwrap());
    });
    assert_contains(&error, &["refers to more than 4 others in one another"]);
}

#[test]
fn credentials_are_not_sent_to_whom_a_registry_redirects() {
    if !is_root("a pull") {
        return;
    }
    let registry = Registry::start(true);
    registry.image("web", "1", &[(Layer::new().bytes(), gzip(&Layer::new().bytes()))], "amd64");
    let address = registry.address;
    // Has the blobs, and needs no credentials.
    let storage = Server::start(move |request, stream| {
        let head = format!("{}\r\nAuthorization: Basic {AUTH}\r\n\r\n", request.head.trim_end());
        let login = Seen { head, ..request.clone() };
        drop(stream.write_all(&login.forward(address)));
    });
    let to = storage.address;
    let front = Server::start(move |request, stream| match request.path.contains("/blobs/") {
        true => respond(
            stream,
            "307 Temporary Redirect",
            &format!("Location: http://{to}{}\r\n", request.path),
            b"",
        ),
        false => drop(stream.write_all(&request.forward(address))),
    });
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("docker")).unwrap();
    write_login(&fixture.path("docker/config.json"), &front.address.to_string());
    let name = format!("{}/web:1", front.address);
    fixture.pulled(&["--insecure", &name]);
    assert!(front.seen().iter().any(|request| request.header("authorization").is_some()));
    let seen = storage.seen();
    assert!(
        !seen.is_empty() && seen.iter().all(|request| request.header("authorization").is_none()),
        "{seen:?}"
    );

    // And a redirect that leads nowhere is an error that shows no secret of the URL.
    let front = Server::start(|_, stream| {
        respond(stream, "302 Found", "Location: ftp://user:hunter2@host/x?hunter2\r\n", b"");
    });
    let error = fixture.refused(&["--insecure", &format!("{}/web:1", front.address)]);
    assert_contains(&error, &["redirects to `ftp://host/x?…`"]);
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn tokens_are_requested_for_what_is_pulled_and_again_when_they_expire() {
    if !is_root("a pull") {
        return;
    }
    let content = Content::new();
    let issued = Arc::new(AtomicUsize::new(0));
    let tokens = {
        let issued = Arc::clone(&issued);
        Server::start(move |request, stream| {
            let is_login = request.header("authorization") == Some(format!("Basic {AUTH}"));
            let is_refresh = request.method == "POST" && request.body.contains("refresh_token=from-login");
            if !is_login && !is_refresh {
                return respond(stream, "401 Unauthorized", "", b"");
            }
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            let key = if is_refresh { "access_token" } else { "token" };
            respond(stream, "200 OK", "", json!({ key: format!("secret-{number}") }).to_string().as_bytes());
        })
    };
    let realm = format!("http://{}/token?a=b", tokens.address);
    let registry = {
        // Each token is good for one request.
        let (issued, used) = (Arc::clone(&issued), Mutex::new(0));
        Server::start(move |request, stream| {
            let mut used = used.lock().unwrap();
            let last = issued.load(Ordering::SeqCst);
            let is_valid = request.header("authorization") == Some(format!("Bearer secret-{last}"));
            if is_valid && last > *used {
                *used = last;
                return content.serve(request, stream);
            }
            let challenge = format!(
                "WWW-Authenticate: Bearer realm=\"{realm}\",service=\"a service\",scope=\"repository:other:push\"\r\n"
            );
            respond(stream, "401 Unauthorized", &challenge, b"");
        })
    };
    let fixture = Fixture::new();
    fs::create_dir(fixture.path("docker")).unwrap();
    let name = format!("{}/team/web:1", registry.address);
    let error = fixture.refused(&["--insecure", &name]);
    assert_contains(&error, &["without credentials", "docker login"]);
    let config = fixture.path("docker/config.json");
    write_login(&config, &registry.address.to_string());
    fixture.pulled(&["--insecure", &name]);
    // Manifest, configuration and layer.
    assert_eq!(issued.load(Ordering::SeqCst), 3);
    let last = tokens.seen().pop().unwrap();
    assert_eq!(last.path, "/token?a=b&scope=repository%3Ateam%2Fweb%3Apull&service=a%20service");

    fixture.images.run(&["prune", "--all"]);
    let login = json!({ "auths": { registry.address.to_string(): { "identitytoken": "from-login" } } });
    fs::write(&config, login.to_string()).unwrap();
    fixture.pulled(&["--insecure", &name]);
    let last = tokens.seen().pop().unwrap();
    assert_contains(&last.body, &["grant_type=refresh_token", "scope=repository%3Ateam%2Fweb%3Apull"]);
    // No registry that is not the one of the name sees anything of it.
    fixture.images.run(&["prune", "--all"]);
    write_login(&config, "127.0.0.1:1");
    let error = fixture.refused(&["--insecure", &name]);
    assert!(!error.contains("secret"), "{error}");
}

#[test]
fn a_registry_that_is_busy_is_asked_again_and_one_that_stalls_is_not_waited_for() {
    if !is_root("a pull") {
        return;
    }
    let content = Content::new();
    let attempts = AtomicUsize::new(0);
    let server = {
        let content = content.clone();
        Server::start(move |request, stream| match attempts.fetch_add(1, Ordering::SeqCst) % 3 {
            0 => respond(stream, "429 Too Many Requests", "Retry-After: 0\r\n", b""),
            1 => respond(stream, "500 Internal Server Error", "", b""),
            _ => content.serve(request, stream),
        })
    };
    let fixture = Fixture::new();
    let log = fixture.pulled(&["--insecure", &format!("{}/web:1", server.address)]);
    assert_contains(&log, &["429 Too Many Requests", "500 Internal Server Error"]);

    let body = br#"{"errors": [{"code": "TOOMANYREQUESTS", "message": "come back \u001b[2J tomorrow"}]}"#;
    let error = refused(|_, stream| respond(stream, "429 Too Many Requests", "Retry-After: 3600\r\n", body));
    assert_contains(&error, &["TOOMANYREQUESTS: come back \\u{1b}[2J tomorrow"]);

    let config = fixture.path("agent.toml");
    let server = Server::start(move |request, stream| match request.path.contains("/blobs/") {
        // Until the client closes the connection.
        true => drop(std::io::copy(stream, &mut std::io::sink())),
        false => content.serve(request, stream),
    });
    fs::write(&config, "[registry]\nstall_timeout = \"100ms\"\n").unwrap();
    let name = format!("{}/web:1", server.address);
    let error = fixture.refused(&["--insecure", "--config", config.to_str().unwrap(), &name]);
    assert_contains(&error, &["no data from the server for 100ms"]);
}
