//! What CNI plugins print: results of all versions, and errors.

use std::net::IpAddr;

use cofferdam_plugin_api::command::Output;
use cofferdam_plugin_api::prelude::*;
use serde_json::Map;

use crate::dns::Dns;
use crate::networks::Version;

/// Most of a plugin's own words in an error.
const MAX_WORDS: usize = 2000;

/// Most addresses of one interface.
const MAX_ADDRESSES: usize = 64;

/// What a container gets from one network.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    pub addresses: Vec<IpAddr>,
    pub dns: Dns,
}

/// Reads the result of ADD.
pub fn parse(version: Version, result: &Json) -> Result<Outcome> {
    let addresses: Vec<&str> = if version < Version::V0_3_0 {
        ["ip4", "ip6"].iter().filter_map(|key| result.get(key)?.get("ip")?.as_str()).collect()
    } else {
        let interfaces = result.get("interfaces").and_then(Json::as_array);
        // Those of interfaces on the host are not the container's.
        let is_inside = |ip: &&Json| {
            let index =
                ip.get("interface").and_then(Json::as_u64).and_then(|index| usize::try_from(index).ok());
            let interface = index.and_then(|index| interfaces?.get(index));
            let sandbox = |found: &Json| found.get("sandbox").and_then(Json::as_str).map(str::to_owned);
            interface.is_none_or(|found| sandbox(found).is_some_and(|sandbox| !sandbox.is_empty()))
        };
        let ips = result.get("ips").and_then(Json::as_array).into_iter().flatten();
        ips.filter(is_inside).filter_map(|ip| ip.get("address")?.as_str()).collect()
    };
    if addresses.len() > MAX_ADDRESSES {
        return Err(Error::new(format!("its result has more than {MAX_ADDRESSES} addresses")));
    }
    let parse = |text: &&str| {
        let address = text.split('/').next().unwrap_or_default().parse();
        address.map_err(|_| Error::new(format!("its result has `{}` as an address", text.escape_debug())))
    };
    let addresses = addresses.iter().map(parse).collect::<Result<_>>()?;
    let dns: Dns = match result.get("dns") {
        None | Some(Json::Null) => Dns::default(),
        Some(dns) => Dns::deserialize(dns).context("its result has DNS settings that cannot be read")?,
    };
    dns.check().context("its result has invalid DNS settings")?;
    Ok(Outcome { addresses, dns })
}

/// The JSON object that a plugin has printed.
pub fn object(output: &Output) -> Result<Json> {
    match serde_json::from_slice::<Map<String, Json>>(&output.stdout) {
        Ok(object) => Ok(Json::Object(object)),
        Err(error) => Err(Error::from(error).context(format!(
            "it has printed `{}` instead of a JSON object; update the CNI plugin",
            words(&output.stdout)
        ))),
    }
}

/// The error that a plugin prints.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    code: u64,
    msg: String,
    #[serde(skip_serializing)]
    details: String,
}

/// What a plugin reports that could not use its configuration or environment: by the codes of the specification, or the words of
/// plugins that only have a general code. This does not tell that it has done nothing: a plugin may report it of another one that
/// it has run, after it has created an interface.
pub fn rejection(output: &Output) -> Option<Report> {
    const CODES: [u64; 5] = [1, 2, 4, 6, 7];
    const WORDS: [&str; 4] = ["failed to load netconf", "failed to parse", "json: ", "invalid character"];
    let report: Report = serde_json::from_slice(&output.stdout).ok()?;
    let is_rejection = CODES.contains(&report.code)
        || (report.code >= 100 && WORDS.iter().any(|words| report.msg.contains(words)));
    is_rejection.then(|| Report { msg: words(report.msg.as_bytes()), details: String::new(), ..report })
}

/// The error of a plugin that has failed, in its own words.
pub fn failure(output: &Output) -> Error {
    let Ok(Report { code, msg, details }) = serde_json::from_slice(&output.stdout) else {
        let printed = [&output.stderr, &output.stdout]
            .into_iter()
            .map(|text| words(text))
            .find(|text| !text.is_empty());
        let printed = printed.unwrap_or_else(|| "without a message".to_owned());
        return Error::new(format!("it failed ({}): {printed}", output.status));
    };
    let mut message = format!("it failed with code {code}: {}", words(msg.as_bytes()));
    if !details.is_empty() {
        message += &format!("; {}", words(details.as_bytes()));
    }
    // The codes that the specification reserves, as far as the operator can act on them.
    message += match code {
        1 => " (change `cniVersion` to one that this plugin supports, or update the plugin)",
        2 | 7 => " (correct the network's configuration)",
        5 => " (see the log of the host for I/O errors)",
        6 => " (the network's configuration does not have the form that this plugin expects)",
        11 => " (the plugin asks to try again later)",
        50 | 51 => " (the network is not available; see the plugin's documentation)",
        _ => "",
    };
    let error = Error::new(message);
    if code == 11 { error.retryable() } else { error }
}

/// Text of a plugin on one line, of limited length.
fn words(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_WORDS)]);
    let line: Vec<&str> = text.split_ascii_whitespace().collect();
    line.join(" ").chars().filter(|c| !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;

    use super::*;

    fn version(text: &str) -> Version {
        Version::try_from(text.to_owned()).unwrap()
    }

    fn failed(stdout: &str, stderr: &str) -> Error {
        let status = ExitStatus::from_raw(1 << 8);
        failure(&Output { status, stdout: stdout.into(), stderr: stderr.into() })
    }

    #[test]
    fn results_of_all_versions_have_addresses() {
        let old = json!({"ip4": {"ip": "10.1.0.2/16"}, "ip6": {"ip": "fd00::2/64"}, "dns": {"nameservers": ["10.1.0.1"]}});
        let new = json!({
            "interfaces": [
                {"name": "cni0", "sandbox": ""}, {"name": "eth0", "sandbox": "/run/ns"}, {"name": "veth1"},
            ],
            "ips": [
                {"version": "4", "address": "10.1.0.1/16", "interface": 0},
                {"version": "4", "address": "10.1.0.3/16", "interface": 2},
                {"version": "4", "address": "10.1.0.2/16", "interface": 1},
                {"address": "fd00::2/64"},
            ],
            "dns": {"nameservers": ["10.1.0.1"]},
        });
        for (text, result) in [
            ("0.1.0", &old),
            ("0.2.0", &old),
            ("0.3.0", &new),
            ("0.4.0", &new),
            ("1.0.0", &new),
            ("1.1.0", &new),
        ] {
            let outcome = parse(version(text), result).unwrap();
            let expected: [IpAddr; 2] = ["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
            assert_eq!(outcome.addresses, expected, "{text}");
            assert_eq!(outcome.dns.nameservers, ["10.1.0.1"], "{text}");
        }
        assert_eq!(parse(version("1.0.0"), &json!({})).unwrap(), Outcome::default());
    }

    #[test]
    fn invalid_results_are_refused() {
        for (result, expected) in [
            (json!({"ips": [{"address": "ten"}]}), "`ten` as an address"),
            (json!({"dns": {"nameservers": ["a\nb"]}}), "invalid DNS settings"),
            (json!({"dns": {"search": 7}}), "cannot be read"),
            (json!({"ips": vec![json!({"address": "10.0.0.1/8"}); 65]}), "more than 64 addresses"),
        ] {
            let error = parse(version("1.0.0"), &result).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }

    #[test]
    fn an_error_has_the_words_of_the_plugin_and_what_to_do() {
        let error = failed(r#"{"code": 11, "msg": "busy\nnow", "details": "x"}"#, "");
        assert!(error.to_string().contains("code 11: busy now; x (the plugin asks to try again"), "{error}");
        assert!(error.is_retryable());
        let error = failed("", "panic: \u{1b}[31mno\n");
        assert!(error.to_string().ends_with("panic: [31mno") && !error.is_retryable(), "{error}");
        assert!(failed("", "").to_string().contains("without a message"));
        let long = format!("\"{}", "x".repeat(10_000));
        assert!(failed(&long, "").to_string().len() < MAX_WORDS + 100);
    }
}
