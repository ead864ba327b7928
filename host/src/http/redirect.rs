//! Where a server may redirect to.
//!
//! Requests are made with the network of the host, so a server must not be able to choose what is requested in it: a
//! redirect leads from a server to others that are as far away, and not to what only this host or its network can reach.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use iri_string::types::{UriAbsoluteStr, UriReferenceStr};

/// How far away an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Reach {
    /// This host, or one to which packets are not routed. Clouds serve credentials at such addresses.
    Local,
    /// A private network.
    Private,
    /// Any other.
    Public,
}

impl Reach {
    /// How far away an address is.
    pub(crate) fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => match embedded(address) {
                Some(address) => of_v4(address),
                None => of_v6(address),
            },
        }
    }

    /// How far away the host of a URL is, if it is an address.
    pub(crate) fn of_literal(host: &str) -> Option<Self> {
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        address.parse().ok().map(Self::of)
    }
}

impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "this host",
            Self::Private => "a private network",
            Self::Public => "a public network",
        })
    }
}

fn of_v4(address: Ipv4Addr) -> Reach {
    let [first, second, ..] = address.octets();
    let is_shared = first == 100 && second & 0xc0 == 64;
    if address.is_loopback() || address.is_link_local() || first == 0 || first >= 224 || is_metadata(address)
    {
        Reach::Local
    } else if address.is_private() || is_shared {
        Reach::Private
    } else {
        Reach::Public
    }
}

/// Where clouds serve credentials, apart from link-local addresses: Alibaba, Oracle (with its block for protocols), Azure.
fn is_metadata(address: Ipv4Addr) -> bool {
    matches!(address.octets(), [100, 100, 100, 200] | [192, 0, 0, _] | [168, 63, 129, 16])
}

fn of_v6(address: Ipv6Addr) -> Reach {
    // The metadata of Amazon, and prefixes of networks that translate to IPv4 addresses in their own way.
    let is_special =
        matches!(address.segments(), [0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254] | [0x64, 0xff9b, 1, ..]);
    if is_special
        || address.is_loopback()
        || address.is_unspecified()
        || address.is_unicast_link_local()
        || address.is_multicast()
    {
        Reach::Local
    } else if address.is_unique_local() || address.segments()[0] & 0xffc0 == 0xfec0 {
        Reach::Private
    } else {
        Reach::Public
    }
}

/// The IPv4 address to which packets to an IPv6 address are translated.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let segments = address.segments();
    let from = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match segments {
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(from(high, low)),
        // `::` and `::1` are addresses of their own.
        [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Some(from(high, low)),
        [0x2002, high, low, ..] => Some(from(high, low)),
        _ => None,
    }
}

/// Whether a host is in a list of names, `*.name` and addresses.
pub(crate) fn is_listed(host: &str, list: &[String]) -> bool {
    let host = host.trim_matches(['[', ']']).trim_end_matches('.');
    let address: Option<IpAddr> = host.parse().ok();
    list.iter().any(|listed| match (listed.strip_prefix("*."), address) {
        (Some(parent), None) => {
            let (host, parent) = (host.as_bytes(), parent.as_bytes());
            host.len() > parent.len() + 1
                && host[host.len() - parent.len() - 1] == b'.'
                && host[host.len() - parent.len()..].eq_ignore_ascii_case(parent)
        }
        (None, Some(address)) => listed.parse() == Ok(address),
        (None, None) => listed.eq_ignore_ascii_case(host),
        (Some(_), Some(_)) => false,
    })
}

/// The URL that a redirect from `url` leads to, without its fragment.
pub(crate) fn resolve(url: &str, location: &str) -> Option<String> {
    let (url, location) = (escape(url), escape(location.trim()));
    let base = UriAbsoluteStr::new(&url).ok()?;
    let reference = UriReferenceStr::new(&location).ok()?;
    Some(reference.resolve_against(base).to_string())
}

/// A URL without its fragment, in which characters that a path must not contain are escaped, as browsers do.
fn escape(url: &str) -> String {
    let url = url.split('#').next().unwrap_or_default();
    let authority = url.find("//").filter(|at| !url[..*at].contains('/')).map_or(0, |at| at + 2);
    let path = match authority {
        0 => 0,
        start => url[start..].find(['/', '?']).map_or(url.len(), |at| start + at),
    };
    let mut escaped = url[..path].to_owned();
    for byte in url[path..].bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte) {
            escaped.push(byte.into());
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_at_one_of_three_distances() {
        let of = |text: &str| Reach::of_literal(text).unwrap();
        for local in [
            "127.0.0.1",
            "127.255.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "169.254.169.254",
            "255.255.255.255",
            "224.0.0.1",
            "[::1]",
            "[::]",
            "[fe80::1]",
            "[::ffff:127.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::169.254.169.254]",
            "[2002:7f00:1::]",
            "[ff02::1]",
            "100.100.100.200",
            "192.0.0.192",
            "168.63.129.16",
            "[fd00:ec2::254]",
            "[64:ff9b:1::a00:1]",
        ] {
            assert_eq!(of(local), Reach::Local, "{local}");
        }
        for private in
            ["10.0.0.1", "172.31.0.1", "192.168.1.1", "100.64.0.1", "[fd00::1]", "[::ffff:10.0.0.1]"]
        {
            assert_eq!(of(private), Reach::Private, "{private}");
        }
        for public in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "[2606:4700::1111]", "[::ffff:8.8.8.8]"] {
            assert_eq!(of(public), Reach::Public, "{public}");
        }
        assert_eq!(Reach::of_literal("localhost"), None);
        assert!(Reach::Local < Reach::Private && Reach::Private < Reach::Public);
    }

    #[test]
    fn a_list_has_names_domains_and_addresses() {
        let list: Vec<String> =
            ["a.example", "*.b.example", "10.0.0.1", "2001:db8::1"].map(str::to_owned).into();
        for host in ["a.example", "A.Example.", "x.b.example", "y.x.B.example", "10.0.0.1", "[2001:db8:0::1]"]
        {
            assert!(is_listed(host, &list), "{host}");
        }
        for host in [
            "b.example",
            "xb.example",
            ".b.example",
            "a.example.org",
            "10.0.0.11",
            "x.a.example",
            "é.example",
        ] {
            assert!(!is_listed(host, &list), "{host}");
        }
    }

    #[test]
    fn a_location_is_relative_to_the_url() {
        let resolve = |location| resolve("http://host:1/a/b?c#d", location);
        for (location, url) in [
            ("/x", "http://host:1/x"),
            ("x", "http://host:1/a/x"),
            ("../../x#y", "http://host:1/x"),
            ("?q", "http://host:1/a/b?q"),
            ("//other/x", "http://other/x"),
            (" https://other/x?y ", "https://other/x?y"),
            ("/[x] \u{e9}", "http://host:1/%5Bx%5D%20%C3%A9"),
            ("http://[::1]:2/x", "http://[::1]:2/x"),
            ("//[::ffff:127.0.0.1]:2", "http://[::ffff:127.0.0.1]:2"),
            ("file:///etc/passwd", "file:///etc/passwd"),
        ] {
            assert_eq!(resolve(location).as_deref(), Some(url), "{location}");
        }
        for malformed in ["http://a b/", "http://[::1/", "http://é/", "/%"] {
            assert_eq!(resolve(malformed), None, "{malformed}");
        }
    }
}
