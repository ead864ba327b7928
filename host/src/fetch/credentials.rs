//! Credentials for servers, from a file in the format of netrc: `machine HOST login USER password SECRET`.
//!
//! A container chooses what is requested, so a server gets them by `https` only, unless its entry says `http`:
//! `machine http://HOST`. No server that another one redirects to gets them.

use std::fmt;
use std::path::{Path, PathBuf};

use data_encoding::BASE64;
use ureq::http::HeaderValue;
use ureq::http::uri::Uri;

use crate::secret_file::{self, SecretFileError};

/// Longest file.
const MAX_FILE: u64 = 256 << 10;

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum CredentialsError {
    #[error("the file `credentials` of `[fetch]` cannot be used")]
    File(#[from] SecretFileError),
    #[error("the file `{}`, `credentials` of `[fetch]`, has more than {MAX_FILE} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("the file `{}`, `credentials` of `[fetch]`, cannot be used: line {line}: {reason}", path.display())]
    Invalid { path: PathBuf, line: usize, reason: &'static str },
}

/// Credentials for servers. `Debug` does not show them.
#[derive(Clone, Default)]
pub(super) struct Credentials(Vec<Entry>);

#[derive(Clone)]
struct Entry {
    is_secure: bool,
    /// In lower case.
    host: String,
    /// Any if `None`.
    port: Option<u16>,
    login: String,
    password: String,
}

impl Credentials {
    /// Reads a file, with the privileges of the agent. Without one, there are none.
    pub(super) fn read(path: Option<&Path>) -> Result<Self, CredentialsError> {
        let Some(path) = path else { return Ok(Self::default()) };
        let content = secret_file::read(path, MAX_FILE + 1)?;
        if content.len() as u64 > MAX_FILE {
            return Err(CredentialsError::TooLong { path: path.to_owned() });
        }
        parse(&content).map(Self).map_err(|(line, reason)| CredentialsError::Invalid {
            path: path.to_owned(),
            line,
            reason,
        })
    }

    /// What is sent to the server of a URL, if there is an entry for it and the URL has no user itself.
    pub(super) fn authorization(&self, url: &str) -> Option<HeaderValue> {
        let uri: Uri = url.parse().ok()?;
        if uri.authority()?.as_str().contains('@') {
            return None;
        }
        let is_secure = uri.scheme_str()?.eq_ignore_ascii_case("https");
        let port = uri.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        let host = uri.host()?;
        let is_of = |entry: &&Entry| {
            entry.is_secure == is_secure
                && entry.host.eq_ignore_ascii_case(host)
                && entry.port.is_none_or(|of_entry| of_entry == port)
        };
        let Entry { login, password, .. } = self.0.iter().find(is_of)?;
        let encoded = BASE64.encode(format!("{login}:{password}").as_bytes());
        let mut value = HeaderValue::from_str(&format!("Basic {encoded}")).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|entry| &entry.host)).finish()
    }
}

/// Parses the content of a file. An error has the number of its line, and nothing of its content.
fn parse(content: &[u8]) -> Result<Vec<Entry>, (usize, &'static str)> {
    let text = std::str::from_utf8(content).map_err(|error| {
        let line = content[..error.valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        (line, "it is not text in UTF-8")
    })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with('#'));
    let mut words =
        lines.flat_map(|(index, line)| line.split_whitespace().map(move |word| (index + 1, word)));
    let mut entries: Vec<Entry> = Vec::new();
    while let Some((line, word)) = words.next() {
        let value = match word {
            "machine" | "login" | "password" | "account" => {
                words.next().ok_or((line, "the last word has no value"))?.1
            }
            "default" => return Err((line, "`default` is not supported, as it would be for all servers")),
            "macdef" => return Err((line, "`macdef` is not supported")),
            _ => return Err((line, "expected `machine`, `login` or `password`, each followed by its value")),
        };
        match (word, entries.last_mut()) {
            ("machine", _) => entries.push(machine(value).ok_or((
                line,
                "expected a host after `machine`, such as `example.com`, `example.com:8443` or `http://example.com`",
            ))?),
            (_, None) => return Err((line, "`machine` comes first")),
            ("login", Some(entry)) => value.clone_into(&mut entry.login),
            ("password", Some(entry)) => value.clone_into(&mut entry.password),
            _ => {}
        }
    }
    Ok(entries)
}

/// An entry for a host, without user and password.
fn machine(text: &str) -> Option<Entry> {
    let (is_secure, authority) = match text.split_once("://") {
        None => (true, text),
        Some(("https", authority)) => (true, authority),
        Some(("http", authority)) => (false, authority),
        Some(_) => return None,
    };
    let uri: Uri = format!("https://{authority}").parse().ok()?;
    let is_host = !authority.contains(['@', '/', '?', '#']) && !uri.host()?.is_empty();
    let entry = Entry {
        is_secure,
        host: uri.host()?.to_ascii_lowercase(),
        port: uri.port_u16(),
        login: String::new(),
        password: String::new(),
    };
    is_host.then_some(entry)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn credentials(text: &str) -> Credentials {
        Credentials(parse(text.as_bytes()).unwrap())
    }

    #[test]
    fn a_server_gets_what_is_for_it_alone() {
        let credentials = credentials(
            "# servers\nmachine example.com login one password secret\n\
             machine example.com:8443\n  login two password x account y\n\
             machine http://10.0.0.1:80 login three password z machine [::1]:5 login four",
        );
        let of = |url: &str| {
            let value = credentials.authorization(url)?;
            assert!(value.is_sensitive());
            let encoded = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
            Some(String::from_utf8(BASE64.decode(encoded.as_bytes()).unwrap()).unwrap())
        };
        for (url, expected) in [
            ("https://example.com/x?y", Some("one:secret")),
            ("https://EXAMPLE.com:443/", Some("one:secret")),
            // The first entry is for all of its ports.
            ("https://example.com:8443/x", Some("one:secret")),
            ("http://example.com/x", None),
            ("https://example.com.other.example/x", None),
            ("https://www.example.com/x", None),
            ("https://me@example.com/x", None),
            ("https://example.com@other.example/x", None),
            ("http://10.0.0.1/x", Some("three:z")),
            ("http://10.0.0.1:8080/x", None),
            ("https://10.0.0.1/x", None),
            ("https://[::1]:5/x", Some("four:")),
            ("no url", None),
        ] {
            assert_eq!(of(url).as_deref(), expected, "{url}");
        }
        assert_eq!(format!("{credentials:?}"), r#"["example.com", "example.com", "10.0.0.1", "[::1]"]"#);
    }

    #[test]
    fn what_is_invalid_is_named_by_its_line_and_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("netrc");
        for (text, expected) in [
            (&b"machine a login SECRET\nSECRET"[..], "line 2: expected `machine`"),
            (b"login SECRET", "line 1: `machine` comes first"),
            (b"\nmachine a/SECRET", "line 2: expected a host"),
            (b"machine SECRET@a", "line 1: expected a host"),
            (b"machine ftp://a", "line 1: expected a host"),
            (b"machine a\nlogin SECRET\npassword", "line 3: the last word has no value"),
            (b"default login SECRET", "`default` is not supported"),
            (b"macdef SECRET\n", "`macdef` is not supported"),
            (b"machine a login SECRET\npassword \xff", "line 2: it is not text"),
            (&vec![b'#'; usize::try_from(MAX_FILE).unwrap() + 1], "more than 262144 bytes"),
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
            let error = Credentials::read(Some(&path)).unwrap_err();
            let shown = cofferdam_core::error_chain::describe(&error);
            assert!(shown.contains(expected) && shown.contains("`credentials` of `[fetch]`"), "{shown}");
            assert!(!shown.contains("SECRET"), "{shown}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let error = Credentials::read(Some(&path)).unwrap_err();
        let shown = cofferdam_core::error_chain::describe(&error);
        assert!(shown.contains("its mode is 0644; run `chmod 600"), "{shown}");
        assert!(Credentials::read(None).unwrap().0.is_empty());
    }
}
