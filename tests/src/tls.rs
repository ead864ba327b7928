//! A certificate authority of a test, and a server certificate by it, made with openssl(1).

use std::path::{Path, PathBuf};
use std::process::Command;

/// Files in PEM format.
#[derive(Debug)]
pub struct Certificates {
    /// The certificate of the authority.
    pub authority: PathBuf,
    /// The certificate of the server.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Certificates {
    /// Makes a certificate for a server with these names, as in `IP:127.0.0.1,DNS:registry.test`.
    ///
    /// # Panics
    /// If openssl is missing or fails.
    #[must_use]
    pub fn create(directory: &Path, names: &str) -> Self {
        let path = |name: &str| directory.join(name);
        let text = |name: &str| path(name).to_str().expect("text").to_owned();
        let new = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let (authority, authority_key) = (text("authority.pem"), text("authority.key"));
        let own = ["-x509", "-days", "2", "-subj", "/CN=authority of a test"];
        run(&[&new[..], &own, &["-keyout", &authority_key, "-out", &authority]].concat());
        let (request, key, certificate) = (text("server.csr"), text("server.key"), text("server.pem"));
        let alternatives = format!("subjectAltName={names}");
        let wanted = ["-subj", "/CN=server of a test", "-addext", &alternatives];
        run(&[&new[..], &wanted, &["-keyout", &key, "-out", &request]].concat());
        let by = ["x509", "-req", "-days", "2", "-copy_extensions", "copy", "-CAcreateserial"];
        let files = ["-in", &request, "-CA", &authority, "-CAkey", &authority_key, "-out", &certificate];
        run(&[&by[..], &files].concat());
        Self { authority: path("authority.pem"), certificate: path("server.pem"), key: path("server.key") }
    }
}

fn run(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).output().expect("openssl (package openssl)");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
