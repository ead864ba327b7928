//! The challenge of a registry: `WWW-Authenticate`.

use std::collections::BTreeMap;

use ureq::http::HeaderMap;
use ureq::http::header::WWW_AUTHENTICATE;

/// How a registry wants to be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// With a token of the server at `realm`.
    Bearer { realm: String, service: Option<String> },
    /// With user and password.
    Basic,
}

impl Challenge {
    /// The challenge of a response; the one for a token if there are several.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let challenges =
            headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|value| parse(value.to_str().ok()?));
        let is_basic = |challenge: &Self| *challenge == Self::Basic;
        challenges.min_by_key(is_basic)
    }
}

fn parse(text: &str) -> Option<Challenge> {
    let (scheme, rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let mut parameters = parameters(rest)?;
    Some(Challenge::Bearer { realm: parameters.remove("realm")?, service: parameters.remove("service") })
}

/// `key=value` or `key="value"`, separated by commas.
fn parameters(text: &str) -> Option<BTreeMap<String, String>> {
    let mut parameters = BTreeMap::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = after.find([',', ' ']).unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            }
        };
        parameters.insert(key.trim().to_ascii_lowercase(), value);
        rest = after.trim_start_matches([' ', ',']);
    }
    Some(parameters)
}

/// A quoted text without its first quote, and what follows it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(characters.next()?.1),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
    }

    #[test]
    fn challenges_of_registries_are_parsed() {
        let text = r#"Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push""#;
        assert_eq!(parse(text), bearer("https://auth.example/token", Some("registry.example")));
        assert_eq!(parse(r#"bearer service=x , realm="a\"b,c" "#), bearer("a\"b,c", Some("x")));
        assert_eq!(parse(r#"Basic realm="x""#), Some(Challenge::Basic));
        assert_eq!(parse("BASIC"), Some(Challenge::Basic));
        for invalid in
            ["", "Negotiate", "Bearer", r#"Bearer realm="x"#, "Bearer service=x", r#"Bearer realm="x\"#]
        {
            assert_eq!(parse(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn a_token_is_preferred() {
        let mut headers = HeaderMap::new();
        headers.append(WWW_AUTHENTICATE, "Basic".parse().unwrap());
        assert_eq!(Challenge::of(&headers), Some(Challenge::Basic));
        headers.append(WWW_AUTHENTICATE, "Bearer realm=x".parse().unwrap());
        assert_eq!(Challenge::of(&headers), bearer("x", None));
        assert_eq!(Challenge::of(&HeaderMap::new()), None);
    }

    #[test]
    fn any_challenge_is_parsed_or_refused() {
        let samples = [
            &br#"Bearer realm="https://auth.example/token",service="a",scope="repository:a/b:pull""#[..],
            br#"Basic realm="a\"b""#,
        ];
        let samples = samples.map(<[u8]>::to_vec);
        cofferdam_fuzz::fuzz_bytes(&samples, &["=", "\"", "\\", ",", "realm=", "\u{e4}"], |text| {
            if let Some(Challenge::Bearer { realm, .. }) = parse(&String::from_utf8_lossy(text)) {
                assert!(realm.len() <= text.len() * 3);
            }
        });
    }
}
