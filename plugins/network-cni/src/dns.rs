//! DNS settings: those of CNI results and of the configuration, merged into a `resolv.conf`.

use std::fs::File;
use std::io::Read;
use std::net::IpAddr;

use cofferdam_plugin_api::prelude::*;

/// What name servers a container that cannot reach the host's loopback interface is given, where systemd-resolved runs.
const OF_RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Most of the host's file that is read.
const MAX_FILE: u64 = 64 << 10;

/// As in CNI results.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, PluginConfig)]
#[serde(default)]
pub struct Dns {
    /// Addresses of name servers.
    pub nameservers: Vec<String>,
    /// The local domain.
    pub domain: Option<String>,
    /// Domains in which names are searched.
    pub search: Vec<String>,
    /// Options of the resolver.
    pub options: Vec<String>,
}

impl Dns {
    /// Checks that every value is one word of its line.
    pub fn check(&self) -> Result<()> {
        for server in &self.nameservers {
            // `fe80::1%eth0` has a zone.
            let address = server.split('%').next().unwrap_or_default();
            if address.parse::<IpAddr>().is_err() {
                return Err(Error::new(format!(
                    "the name server `{}` is not an address",
                    server.escape_debug()
                )));
            }
        }
        let is_word = |text: &&String| {
            !text.is_empty() && text.len() <= 255 && text.chars().all(|c| c.is_ascii_graphic() && c != '#')
        };
        let words = self.nameservers.iter().chain(&self.domain).chain(&self.search).chain(&self.options);
        match words.into_iter().find(|text| !is_word(text)) {
            Some(text) => Err(Error::new(format!("`{}` cannot be in a resolv.conf", text.escape_debug()))),
            None => Ok(()),
        }
    }

    /// Adds the settings of another network. What is already there comes first.
    pub fn merge(&mut self, other: &Self) {
        let add = |all: &mut Vec<String>, more: &Vec<String>| {
            for value in more {
                if !all.contains(value) {
                    all.push(value.clone());
                }
            }
        };
        add(&mut self.nameservers, &other.nameservers);
        add(&mut self.search, &other.search);
        add(&mut self.options, &other.options);
        if self.domain.is_none() {
            self.domain.clone_from(&other.domain);
        }
    }

    /// The `resolv.conf`.
    pub fn file(&self) -> String {
        let mut text = String::new();
        if let Some(domain) = &self.domain {
            text += &format!("domain {domain}\n");
        }
        for (keyword, values) in [("search", &self.search), ("options", &self.options)] {
            if !values.is_empty() {
                text += &format!("{keyword} {}\n", values.join(" "));
            }
        }
        for server in &self.nameservers {
            text += &format!("nameserver {server}\n");
        }
        text
    }
}

/// The host's `resolv.conf`, for a container in another network namespace: without name servers on the loopback interface,
/// which it cannot reach. Empty if the host has none.
pub fn of_host() -> Result<String> {
    let text = read("/etc/resolv.conf")?;
    let reachable = without_loopback(&text);
    if reachable.lines().any(is_server) || !text.lines().any(is_server) {
        return Ok(reachable);
    }
    let behind = without_loopback(&read(OF_RESOLVED)?);
    if !behind.lines().any(is_server) {
        warn!(
            "the host's name servers are on its loopback interface, which containers cannot reach: set `dns` in the \
             network's configuration, or `default_container_dns`"
        );
        return Ok(reachable);
    }
    Ok(behind)
}

fn read(path: &str) -> Result<String> {
    let mut text = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(MAX_FILE).read_to_end(&mut text).context(format!("cannot read `{path}`"))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error).context(format!("cannot open `{path}`")),
    };
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn is_server(line: &str) -> bool {
    line.split_ascii_whitespace().next() == Some("nameserver")
}

fn without_loopback(text: &str) -> String {
    let is_reachable = |line: &&str| {
        let address = line.split_ascii_whitespace().nth(1).unwrap_or_default().parse::<IpAddr>();
        !is_server(line) || !address.is_ok_and(|address| address.is_loopback())
    };
    text.lines().filter(is_reachable).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(servers: &[&str], domain: Option<&str>) -> Dns {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        Dns { nameservers: owned(servers), domain: domain.map(str::to_owned), ..Dns::default() }
    }

    #[test]
    fn settings_of_networks_are_merged_in_their_order() {
        let mut merged = dns(&["10.0.0.1"], None);
        let mut other = dns(&["10.0.0.1", "10.0.0.2"], Some("example.org"));
        other.search = vec!["a".into(), "b".into()];
        other.options = vec!["ndots:2".into()];
        merged.merge(&other);
        merged.merge(&dns(&[], Some("later.org")));
        assert_eq!(
            merged.file(),
            "domain example.org\nsearch a b\noptions ndots:2\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"
        );
    }

    #[test]
    fn what_could_add_a_line_is_refused() {
        for bad in [
            dns(&["10.0.0.1\nnameserver 6.6.6.6"], None),
            dns(&["ns.example.org"], None),
            dns(&[], Some("a b")),
            dns(&[], Some("")),
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
        assert!(dns(&["10.0.0.1", "fe80::1%eth0"], Some("example.org")).check().is_ok());
    }

    #[test]
    fn name_servers_on_the_loopback_interface_are_left_out() {
        let text = "# c\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver ::1\noptions edns0\n";
        assert_eq!(without_loopback(text), "# c\nnameserver 10.0.0.1\noptions edns0\n");
    }
}
