//! The options `expose` and `publish`: ports, and ranges of them.

use std::ops::RangeInclusive;

/// A port of the container, and where on the host it is.
#[derive(Debug, PartialEq)]
pub(super) struct Published {
    /// With its protocol.
    pub(super) container: String,
    /// Address of the host, empty for all.
    pub(super) address: String,
    /// A port, a range to choose one of, or empty for any.
    pub(super) host: String,
}

/// `port[-port][/protocol]`: each with its protocol.
pub(super) fn expose(text: &str) -> Option<Vec<String>> {
    let (ports, protocol) = container(text)?;
    Some(ports.map(|port| format!("{port}/{protocol}")).collect())
}

/// `[[address:]port[-port]:]port[-port][/protocol]`.
pub(super) fn publish(text: &str) -> Option<Vec<Published>> {
    let (rest, ports) = match text.rsplit_once(':') {
        Some((rest, ports)) => (Some(rest), ports),
        None => (None, text),
    };
    let (ports, protocol) = container(ports)?;
    let (address, host) = match rest.map(|rest| rest.rsplit_once(':').unwrap_or(("", rest))) {
        Some((address, host)) => (address.trim_matches(['[', ']']), host),
        None => ("", ""),
    };
    let host_range = if host.is_empty() { None } else { Some(range(host)?) };
    let published = |port: u16, host: String| Published {
        container: format!("{port}/{protocol}"),
        address: address.to_owned(),
        host,
    };
    match host_range {
        None => Some(ports.map(|port| published(port, String::new())).collect()),
        Some(hosts) if hosts.len() == ports.len() => {
            Some(ports.zip(hosts).map(|(port, host)| published(port, host.to_string())).collect())
        }
        // The engine chooses.
        Some(_) if ports.len() == 1 => Some(vec![published(*ports.start(), host.to_owned())]),
        Some(_) => None,
    }
}

fn container(text: &str) -> Option<(RangeInclusive<u16>, &str)> {
    let (ports, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    ["tcp", "udp", "sctp"].contains(&protocol).then_some(())?;
    Some((range(ports)?, protocol))
}

fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
    (first > 0 && first <= last).then_some(first..=last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_published_one_by_one() {
        let published = |text: &str| -> Option<Vec<(String, String, String)>> {
            let all = publish(text)?.into_iter();
            Some(all.map(|it| (it.address, it.host, it.container)).collect())
        };
        let one =
            |address: &str, host: &str, container: &str| (address.into(), host.into(), container.into());
        assert_eq!(published("80"), Some(vec![one("", "", "80/tcp")]));
        assert_eq!(published("[::1]:8080:80/udp"), Some(vec![one("::1", "8080", "80/udp")]));
        assert_eq!(published("127.0.0.1::80"), Some(vec![one("127.0.0.1", "", "80/tcp")]));
        assert_eq!(
            published("8000-8001:80-81"),
            Some(vec![one("", "8000", "80/tcp"), one("", "8001", "81/tcp")])
        );
        assert_eq!(published("8000-8005:80"), Some(vec![one("", "8000-8005", "80/tcp")]));
        assert_eq!(published("80-81").unwrap().len(), 2);
        for wrong in ["", "0", "80/icmp", "81-80", "8000-8002:80-81", "x:80", "70000"] {
            assert_eq!(published(wrong), None, "{wrong}");
        }
        assert_eq!(expose("53-54/udp").unwrap(), ["53/udp", "54/udp"]);
        assert_eq!(expose("x"), None);
    }
}
