//! Names of images, as the users of Docker write them.

use std::fmt;
use std::str::FromStr;

use super::digest::Digest;

/// Registry of a name that has none.
const DEFAULT_REGISTRY: &str = "docker.io";

/// Namespace of a repository in the default registry that has none.
const DEFAULT_NAMESPACE: &str = "library/";

/// Tag of a name that has neither a tag nor a digest.
const DEFAULT_TAG: &str = "latest";

/// Maximum length of registry and repository, as registries have it.
const MAX_REPOSITORY: usize = 255;

/// Digits of the shortest and of the longest id that an image is found by.
pub(super) const MIN_ID: usize = 12;
const MAX_ID: usize = 64;

/// Maximum length of a tag.
const MAX_TAG: usize = 128;

/// The name of an image: `[registry/]repository[:tag][@digest]`, with defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageName {
    /// Host and port of the registry.
    pub registry: String,
    /// Path of the repository in it.
    pub repository: String,
    /// Tag, unless there is a digest.
    pub tag: Option<String>,
    /// Digest of the manifest. If it is there, the tag has no meaning and is dropped.
    pub digest: Option<Digest>,
}

/// A text is not the name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{}` is not the name of an image: {reason}; expected `[REGISTRY/]REPOSITORY[:TAG][@sha256:DIGEST]`, such as \
     `busybox:1.36` or `registry.example:5000/team/web@sha256:…`",
    .text.escape_debug()
)]
pub struct InvalidName {
    text: String,
    reason: &'static str,
}

impl FromStr for ImageName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = |reason| InvalidName { text: text.to_owned(), reason };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                (rest, Some(digest.parse().map_err(|_| invalid("its digest is no SHA-256"))?))
            }
            None => (text, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(invalid("its tag has other characters than letters, digits, `_`, `.` and `-`"));
        }
        let (registry, repository) = match path.split_once('/') {
            Some((host, repository)) if host == "localhost" || host.contains(['.', ':']) => {
                (host, repository.to_owned())
            }
            Some(_) => (DEFAULT_REGISTRY, path.to_owned()),
            None => (DEFAULT_REGISTRY, format!("{DEFAULT_NAMESPACE}{path}")),
        };
        if !is_host(registry) {
            return Err(invalid("its registry is not a host with an optional port"));
        }
        if repository.len() + registry.len() > MAX_REPOSITORY || !repository.split('/').all(is_component) {
            return Err(invalid("its repository has other characters than a-z, 0-9, `.`, `_`, `-` and `/`"));
        }
        if registry == DEFAULT_REGISTRY && repository.strip_prefix(DEFAULT_NAMESPACE).is_some_and(is_like_id)
        {
            return Err(invalid("it is the beginning of an id, or could be taken for one"));
        }
        let tag = match digest {
            Some(_) => None,
            None => Some(tag.unwrap_or(DEFAULT_TAG).to_owned()),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl ImageName {
    /// Whether a text is a registry: a host with an optional port.
    #[must_use]
    pub fn is_registry(text: &str) -> bool {
        is_host(text)
    }

    /// The name as people write it, without what is the default.
    #[must_use]
    pub fn familiar(&self) -> String {
        let text = self.to_string();
        let text = text.strip_prefix(&format!("{DEFAULT_REGISTRY}/")).unwrap_or(&text);
        text.strip_prefix(DEFAULT_NAMESPACE).unwrap_or(text).to_owned()
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { registry, repository, tag, digest } = self;
        write!(f, "{registry}/{repository}")?;
        if let Some(tag) = tag {
            write!(f, ":{tag}")?;
        }
        match digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn is_tag(tag: &str) -> bool {
    let is_first = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(is_first)
        && tag.bytes().all(|byte| is_first(byte) || b".-".contains(&byte))
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (host, None),
    };
    let is_literal = name.starts_with('[')
        && name.ends_with(']')
        && name[1..name.len() - 1].parse::<std::net::Ipv6Addr>().is_ok();
    let is_label = |label: &str| {
        !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    (is_literal || name.split('.').all(is_label))
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Lower-case letters and digits, with `.`, `_`, `__` or hyphens between them.
fn is_component(component: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    bytes.first().copied().is_some_and(is_inner)
        && bytes.last().copied().is_some_and(is_inner)
        && bytes.iter().all(|byte| is_inner(*byte) || b"._-".contains(byte))
        && !component.contains("..")
}

/// Whether a name without registry and namespace is also how people write an id: `sha256:…`, or its digits alone. Whoever
/// has such a name would be found instead of the image with the id.
fn is_like_id(name: &str) -> bool {
    let is_digits = name.bytes().all(|byte| byte.is_ascii_hexdigit());
    name == "sha256" || is_digits && (MIN_ID..=MAX_ID).contains(&name.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parsed(text: &str) -> String {
        text.parse::<ImageName>().map(|name| name.to_string()).unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn defaults_are_filled_in() {
        assert_eq!(parsed("busybox"), "docker.io/library/busybox:latest");
        assert_eq!(parsed("busybox:1.36"), "docker.io/library/busybox:1.36");
        assert_eq!(parsed("team/web"), "docker.io/team/web:latest");
        assert_eq!(parsed("localhost/web"), "localhost/web:latest");
        assert_eq!(parsed("host:5000/a/b/c:x-1"), "host:5000/a/b/c:x-1");
        assert_eq!(parsed("[::1]:5000/a"), "[::1]:5000/a:latest");
        assert_eq!(parsed(&format!("web:1@{DIGEST}")), format!("docker.io/library/web@{DIGEST}"));
        let familiar = |text: &str| text.parse::<ImageName>().unwrap().familiar();
        assert_eq!(familiar("docker.io/library/busybox"), "busybox:latest");
        assert_eq!(familiar("team/web:1"), "team/web:1");
        assert_eq!(familiar("host:5000/a"), "host:5000/a:latest");
    }

    #[test]
    fn invalid_names_are_refused() {
        for text in [
            "",
            ":",
            "a:",
            "a:b:c",
            "A",
            "a/",
            "/a",
            "a//b",
            "../a",
            "a/../b",
            "a@",
            "a@sha256:00",
            "a b",
            "-a",
            "host:0/a",
            "host:x/a",
            "ho_st.x/a",
            "a:.x",
            "a\n",
            "a/b_:1",
            "[::1/a",
        ] {
            assert!(parsed(text).contains("is not the name of an image"), "{text:?}: {}", parsed(text));
        }
        for text in [
            "sha256:abc",
            "library/sha256",
            "sha256",
            "docker.io/library/sha256:x",
            &format!("sha256@{DIGEST}"),
        ] {
            assert!(parsed(text).contains("could be taken for one"), "{text:?}: {}", parsed(text));
        }
        for digits in [12, 13, 64] {
            for text in [&"abcdef0123456789".repeat(4)[..digits], &format!("{}:1", "0".repeat(digits))] {
                assert!(parsed(text).contains("could be taken for one"), "{text:?}: {}", parsed(text));
            }
        }
        for text in ["team/sha256", "host:5000/sha256", "abcdef01234", "team/abcdef012345", &"a".repeat(65)] {
            assert!(text.parse::<ImageName>().is_ok(), "{text:?}");
        }
        assert!(parsed(&"a".repeat(300)).contains("is not the name"));
        assert!(parsed(&format!("a:{}", "x".repeat(129))).contains("is not the name"));
    }
}
