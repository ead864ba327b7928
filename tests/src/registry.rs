//! A real registry on loopback, and servers in front of it that misbehave.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use cofferdam_core::provisioner::Digest;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

use crate::tls::Certificates;

/// A user of the registry and its password, as bcrypt has it.
const HTPASSWD: &str = "user:$2y$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";

/// The same as `Authorization`.
const AUTHORIZATION: &str = "Authorization: Basic dXNlcjpzZWNyZXQ=\r\n";

/// The same in a file of `docker login`.
pub const AUTH: &str = "dXNlcjpzZWNyZXQ=";

/// How long a server may take to start.
const START: Duration = Duration::from_secs(60);

/// The registry of Debian's package `docker-registry`, with content of its own.
#[derive(Debug)]
pub struct Registry {
    directory: Arc<TempDir>,
    child: Child,
    /// Its address.
    pub address: SocketAddr,
    authorization: &'static str,
}

impl Registry {
    /// Starts a registry for everybody, or for `user` with the password `secret`.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn start(with_user: bool) -> Self {
        let directory = tempfile::Builder::new().prefix("cofferdam-test-").tempdir().expect("a directory");
        Self::serve(Arc::new(directory), "plain", with_user, None)
    }

    /// Starts another one with the content and the users of this one, such as in another network.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn again(&self) -> Self {
        Self::serve(Arc::clone(&self.directory), "again", !self.authorization.is_empty(), None)
    }

    /// Starts another one with the content of this one, and TLS.
    ///
    /// # Panics
    /// If it does not start.
    #[must_use]
    pub fn with_tls(&self, certificates: &Certificates) -> Self {
        Self::serve(Arc::clone(&self.directory), "tls", false, Some(certificates))
    }

    /// `kind` is a part of the names of its files.
    fn serve(
        directory: Arc<TempDir>,
        kind: &str,
        with_user: bool,
        certificates: Option<&Certificates>,
    ) -> Self {
        let path = |name: &str| directory.path().join(name);
        let own = |name: &str| path(&format!("{kind}-{name}"));
        // Nobody else has this port soon after it is closed.
        let address = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = address.expect("a port");
        let mut config = json!({
            "version": 0.1,
            "log": { "level": "error", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": path("data") } },
            "http": { "addr": address.to_string() },
        });
        if with_user {
            config["auth"] = json!({ "htpasswd": { "realm": "test", "path": path("htpasswd") } });
            fs::write(path("htpasswd"), HTPASSWD).expect("a file");
        }
        if let Some(Certificates { certificate, key, .. }) = certificates {
            config["http"]["tls"] = json!({ "certificate": certificate, "key": key });
        }
        // JSON is YAML.
        fs::write(own("config.yml"), config.to_string()).expect("a file");
        let log = fs::File::create(own("log")).expect("a file");
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(own("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a descriptor"))
            .stderr(log)
            .spawn()
            .expect("docker-registry (package docker-registry)");
        let deadline = std::time::Instant::now() + START;
        // It reports nothing when it listens.
        while TcpStream::connect(address).is_err() {
            let ended = child.try_wait().expect("a child");
            let log = || fs::read_to_string(own("log")).unwrap_or_default();
            assert!(ended.is_none() && std::time::Instant::now() < deadline, "{ended:?}: {}", log());
            thread::sleep(Duration::from_millis(20));
        }
        let authorization = if with_user { AUTHORIZATION } else { "" };
        Self { directory, child, address, authorization }
    }

    /// The name of a repository in this registry.
    #[must_use]
    pub fn name(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    /// Pushes an image of layers, each as an archive and as a blob. Returns the descriptor of its manifest.
    ///
    /// # Panics
    /// If it is refused.
    pub fn image(&self, repository: &str, tag: &str, layers: &[(Vec<u8>, Vec<u8>)], platform: &str) -> Json {
        let diff_ids: Vec<_> = layers.iter().map(|(archive, _)| Digest::of(archive)).collect();
        let config = json!({
            "architecture": platform, "os": "linux", "config": { "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let config = self.blob(repository, "application/vnd.docker.container.image.v1+json", &config);
        let kind = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        let layers: Vec<Json> = layers.iter().map(|(_, blob)| self.blob(repository, kind, blob)).collect();
        let kind = "application/vnd.docker.distribution.manifest.v2+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers });
        self.manifest(repository, tag, kind, &manifest)
    }

    /// Pushes an image of OCI, whose layers are compressed with zstd, each as an archive and as a blob.
    ///
    /// # Panics
    /// If it is refused.
    pub fn zstd_image(&self, repository: &str, tag: &str, layers: &[(Vec<u8>, Vec<u8>)]) {
        let diff_ids: Vec<_> = layers.iter().map(|(archive, _)| Digest::of(archive)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": { "Cmd": ["sh"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string().into_bytes();
        let config = self.blob(repository, "application/vnd.oci.image.config.v1+json", &config);
        let kind = "application/vnd.oci.image.layer.v1.tar+zstd";
        let layers: Vec<Json> = layers.iter().map(|(_, blob)| self.blob(repository, kind, blob)).collect();
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({ "schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers });
        self.manifest(repository, tag, kind, &manifest);
    }

    /// Pushes a blob. Returns its descriptor.
    ///
    /// # Panics
    /// If it is refused.
    pub fn blob(&self, repository: &str, kind: &str, bytes: &[u8]) -> Json {
        let started = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"");
        let location = header(&started, "location").unwrap_or_else(|| panic!("{started}"));
        let path = location.split_once(&self.address.to_string()).map_or(location.as_str(), |(_, path)| path);
        let digest = Digest::of(bytes);
        let kind_of_body = "Content-Type: application/octet-stream\r\n";
        let done = self.request("PUT", &format!("{path}&digest={digest}"), kind_of_body, bytes);
        assert!(done.starts_with("HTTP/1.1 201"), "{done}");
        json!({ "mediaType": kind, "digest": digest, "size": bytes.len() })
    }

    /// Pushes a manifest or an index. Returns its descriptor.
    ///
    /// # Panics
    /// If it is refused.
    pub fn manifest(&self, repository: &str, tag: &str, kind: &str, manifest: &Json) -> Json {
        let bytes = manifest.to_string().into_bytes();
        let header = format!("Content-Type: {kind}\r\n");
        let done = self.request("PUT", &format!("/v2/{repository}/manifests/{tag}"), &header, &bytes);
        assert!(done.starts_with("HTTP/1.1 201"), "{done}");
        json!({ "mediaType": kind, "digest": Digest::of(&bytes), "size": bytes.len() })
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> String {
        let headers = format!("{headers}{}", self.authorization);
        let response = exchange(self.address, method, path, &headers, body).expect("a response");
        String::from_utf8_lossy(&response).into_owned()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It has no state that anybody needs.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Sends a request and returns the whole response.
///
/// # Errors
/// Those of the connection.
pub fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &str,
    body: &[u8],
) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address)?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    Ok(response)
}

/// A header of a message.
#[must_use]
pub fn header(message: &str, name: &str) -> Option<String> {
    let head = message.split("\r\n\r\n").next()?;
    let fields = head.lines().filter_map(|line| line.split_once(':'));
    let mut values = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
    values.next().map(|(_, value)| value.trim().to_owned())
}

/// A request as a server of a test sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The whole head.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Seen {
    /// A header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<String> {
        header(&self.head, name)
    }

    /// The response of another server to the same request.
    #[must_use]
    pub fn forward(&self, to: SocketAddr) -> Vec<u8> {
        let fields: String = ["Accept", "Authorization", "Range"]
            .iter()
            .flat_map(|name| {
                let lines = self.head.lines().filter(move |line| {
                    line.split_once(':').is_some_and(|(field, _)| field.eq_ignore_ascii_case(name))
                });
                lines.map(|line| format!("{line}\r\n")).collect::<Vec<_>>()
            })
            .collect();
        exchange(to, &self.method, &self.path, &fields, b"").unwrap_or_default()
    }
}

/// What a server of a test does with a request.
pub type Handler = dyn Fn(&Seen, &mut TcpStream) + Send + Sync;

/// An HTTP server that does whatever a test wants. It ends with the process of the test.
#[derive(Debug, Clone)]
pub struct Server {
    /// Its address.
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    /// Starts a server that handles one request for each connection, on a thread of its own.
    ///
    /// # Panics
    /// If it cannot listen.
    #[must_use]
    pub fn start(handle: impl Fn(&Seen, &mut TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = Self { address, seen: Arc::default() };
        let (seen, handle): (_, Arc<Handler>) = (Arc::clone(&server.seen), Arc::new(handle));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, handle) = (Arc::clone(&seen), Arc::clone(&handle));
                thread::spawn(move || {
                    let mut stream = stream;
                    let Ok(request) = receive(&stream) else { return };
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(request.clone());
                    handle(&request, &mut stream);
                    // The client may be gone.
                    drop(stream.shutdown(Shutdown::Both));
                });
            }
        });
        server
    }

    /// All requests until now.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn receive(stream: &TcpStream) -> io::Result<Seen> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    let length = header(&head, "content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = String::new();
    reader.take(length).read_to_string(&mut body)?;
    let mut words = head.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    Ok(Seen { method, path, head, body })
}

/// Sends a response. The client may be gone.
pub fn respond(stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n");
    drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)));
}

/// Writes a `config.json` with the password of `user` for a server, readable by its owner.
///
/// # Panics
/// If it cannot be written.
pub fn write_login(path: &Path, server: &str) {
    fs::write(path, json!({ "auths": { server: { "auth": AUTH } } }).to_string()).expect("a file");
}
