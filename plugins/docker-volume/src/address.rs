//! Where a driver is: found by its name in the directories in which drivers announce themselves, in Docker's order.

use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use cofferdam_plugin_api::prelude::*;

/// Most of a file with an address, in bytes.
const MAX_SPEC: u64 = 64 << 10;

/// Longest name of a driver, in bytes.
const MAX_NAME: usize = 63;

/// Directories of the host.
pub struct Directories {
    pub sockets: PathBuf,
    pub specs: Vec<PathBuf>,
}

/// Where a driver accepts connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

/// A file of the type `.json`.
#[derive(Deserialize)]
struct Spec {
    #[serde(rename = "Addr", default)]
    address: String,
    #[serde(rename = "TLSConfig", default)]
    tls: Option<Json>,
}

/// Checks the name of a driver, which becomes part of paths.
pub fn check_name(driver: &str) -> Result<()> {
    if driver == "local" {
        return Err(Error::new(
            "`local` is the driver inside of the Docker engine, which others cannot use: name another driver, or use a \
             volume of the host",
        ));
    }
    let is_valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if driver.len() > MAX_NAME
        || !driver.starts_with(|c: char| c.is_ascii_alphanumeric())
        || !driver.chars().all(is_valid)
    {
        return Err(Error::new(format!(
            "`{}` is not the name of a driver; expected 1 to {MAX_NAME} letters, digits, `.`, `-` and `_`. Plugins that the \
             Docker engine manages (`docker plugin install`) can be used by it only",
            driver.escape_debug()
        )));
    }
    Ok(())
}

impl Directories {
    /// Finds a driver whose name was checked.
    pub fn find(&self, driver: &str) -> Result<Address> {
        let sockets = candidates(&self.sockets, driver, "sock");
        for path in &sockets {
            if fs::metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
                return Ok(Address::Unix(path.clone()));
            }
        }
        let of_directory = |directory: &PathBuf| {
            [candidates(directory, driver, "spec"), candidates(directory, driver, "json")].concat()
        };
        let specs: Vec<PathBuf> = self.specs.iter().flat_map(of_directory).collect();
        for path in &specs {
            if let Some(text) = read(path)? {
                return parse(path, &text).context(format!("`{}` cannot be used", path.display()));
            }
        }
        let searched: Vec<String> = std::iter::once(&self.sockets)
            .chain(&self.specs)
            .map(|path| path.display().to_string())
            .collect();
        Err(Error::new(format!(
            "no driver `{driver}` was found in {}; start it, or check its name",
            searched.join(", ")
        )))
    }
}

fn candidates(directory: &Path, driver: &str, extension: &str) -> [PathBuf; 2] {
    let file = format!("{driver}.{extension}");
    [directory.join(&file), directory.join(driver).join(&file)]
}

/// Content of a file; `None` if there is none.
fn read(path: &Path) -> Result<Option<String>> {
    let failed = || format!("cannot read `{}`", path.display());
    // A FIFO would wait for a writer.
    match fs::metadata(path) {
        Ok(found) if found.is_file() => {}
        Ok(_) => return Err(Error::new("it is not a regular file").context(failed())),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(error).context(failed()),
    }
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(MAX_SPEC).read_to_string(&mut text)).context(failed())?;
    Ok(Some(text))
}

fn parse(path: &Path, text: &str) -> Result<Address> {
    if path.extension().is_none_or(|extension| extension != "json") {
        return address(text.trim(), false);
    }
    let spec: Spec = serde_json::from_str(text)?;
    if spec.address.is_empty() {
        return Err(Error::new("it has no `Addr`"));
    }
    address(&spec.address, spec.tls.is_some_and(|tls| !tls.is_null()))
}

fn address(text: &str, tls: bool) -> Result<Address> {
    let (scheme, rest) = text.split_once("://").ok_or_else(|| {
        Error::new(format!(
            "`{}` is not an address; expected `unix:///PATH` or `tcp://IP:PORT`",
            text.escape_debug()
        ))
    })?;
    match scheme {
        "unix" if rest.starts_with('/') => Ok(Address::Unix(rest.into())),
        "unix" => Err(Error::new(format!("`{}` is not an absolute path", rest.escape_debug()))),
        "https" => Err(no_tls()),
        "tcp" | "http" if tls => Err(no_tls()),
        "tcp" | "http" => match rest.trim_end_matches('/').parse() {
            Ok(address) => Ok(Address::Tcp(address)),
            // To resolve a name has no time limit.
            Err(_) => Err(Error::new(format!(
                "`{}` is not an IP address with a port, such as `127.0.0.1:9000`; names are not resolved",
                rest.escape_debug()
            ))),
        },
        other => Err(Error::new(format!(
            "`{}` is not a known kind of address; expected `unix`, `tcp` or `http`",
            other.escape_debug()
        ))),
    }
}

fn no_tls() -> Error {
    Error::new(
        "drivers with TLS are not supported; run the driver on this host with a Unix socket, or a proxy in front of it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_docker_without_tls() {
        let unix = |path: &str| Address::Unix(path.into());
        let tcp = |text: &str| Address::Tcp(text.parse().unwrap());
        for (text, expected) in [
            ("unix:///run/x.sock", unix("/run/x.sock")),
            ("tcp://127.0.0.1:9000", tcp("127.0.0.1:9000")),
            ("http://[::1]:80/", tcp("[::1]:80")),
        ] {
            assert_eq!(address(text, false).unwrap(), expected);
            assert_eq!(address(&expected.to_string(), false).unwrap(), expected);
        }
        for (text, tls, expected) in [
            ("https://127.0.0.1:1", false, "TLS"),
            ("tcp://127.0.0.1:1", true, "TLS"),
            ("tcp://localhost:1", false, "names are not resolved"),
            ("unix://run/x.sock", false, "not an absolute path"),
            ("ftp://x", false, "not a known kind"),
            ("/run/x.sock", false, "is not an address"),
        ] {
            let error = address(text, tls).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn names_lead_to_no_other_directory() {
        for name in ["", "..", ".x", "a/b", "vieux/sshfs:latest", "a b", &"x".repeat(64)] {
            assert!(check_name(name).unwrap_err().to_string().contains("is not the name"), "{name}");
        }
        assert!(check_name("local").unwrap_err().to_string().contains("Docker engine"));
        check_name("rexray-2.0_a").unwrap();
    }
}
