//! What a URI asks for, understood before anything is fetched.

use std::path::PathBuf;

use super::name::{Name, NameError};
use cofferdam_core::model::Uri;

/// Endings of archives that are unpacked.
const TAR: [(&str, Gzip); 3] = [(".tar", Gzip::No), (".tar.gz", Gzip::Yes), (".tgz", Gzip::Yes)];

/// Endings of archives that somebody expects to be unpacked, and that are not.
const FOREIGN: [&str; 8] = [".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".zip", ".tar.lz4"];

/// A file to bring in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) source: Source,
    pub(super) name: Name,
    pub(super) treatment: Treatment,
    pub(super) sha256: Option<[u8; 32]>,
}

/// Where it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// On this machine.
    Local(PathBuf),
    /// At a URL.
    Web(String),
}

/// What becomes of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// It is put into the sandbox, with the permissions it has where it comes from.
    Place,
    /// It is put into the sandbox and can be executed.
    PlaceExecutable,
    /// Its members are put into the sandbox, and itself is not.
    Untar(Gzip),
    /// What it holds is put into the sandbox under this name, and itself is not.
    Gunzip(Name),
}

/// Whether a tar archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gzip {
    Yes,
    No,
}

/// What is wrong with a URI.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ItemError {
    #[error(
        "the scheme `{scheme}` is not supported; use an absolute path, or a URL with `file`, `http` or `https`"
    )]
    Scheme { scheme: String },
    #[error("it is neither an absolute path nor a URL with `file`, `http` or `https`")]
    Relative,
    #[error(
        "its file is on the host `{host}`; a `file` URL has no host but `localhost`, and an absolute path"
    )]
    RemoteFile { host: String },
    #[error("it holds a NUL character")]
    Nul,
    #[error("it does not end with a file name; choose one with `output_file`")]
    Nameless,
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(
        "unpacking `{ending}` is not supported yet; use `.tar`, `.tar.gz` or `.tgz`, or set `extract` to false to \
         get it as it is"
    )]
    Foreign { ending: &'static str },
    #[error("`{text}` is not a SHA-256, which has 64 hexadecimal digits")]
    Digest { text: String },
}

impl Item {
    /// Understands a URI.
    pub(super) fn understand(uri: &Uri) -> Result<Self, ItemError> {
        let (source, last) = locate(uri.value.trim_start())?;
        let name = match uri.output_file.as_deref() {
            Some(name) if name.contains('\0') => return Err(ItemError::Nul),
            Some(name) => Name::parse_file(name)?,
            None if last.is_empty() => return Err(ItemError::Nameless),
            None => Name::parse_file(last)?,
        };
        let treatment = treatment(uri, &name)?;
        let sha256 = uri.sha256.as_deref().map(digest).transpose()?;
        Ok(Self { source, name, treatment, sha256 })
    }
}

/// Where a URI leads, and the last part of its path.
fn locate(uri: &str) -> Result<(Source, &str), ItemError> {
    if uri.contains('\0') {
        return Err(ItemError::Nul);
    }
    let last = |path: &str| path.rfind('/').map_or(0, |slash| slash + 1);
    let Some((scheme, rest)) = uri.split_once("://") else {
        return match uri.starts_with('/') {
            true => Ok((Source::Local(uri.into()), &uri[last(uri)..])),
            false => Err(unknown(uri)),
        };
    };
    match scheme.to_ascii_lowercase().as_str() {
        // A path that holds `://` further down.
        _ if uri.starts_with('/') => Ok((Source::Local(uri.into()), &uri[last(uri)..])),
        "file" => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            if path.is_empty() || !(host.is_empty() || host.eq_ignore_ascii_case("localhost")) {
                return Err(ItemError::RemoteFile { host: host.into() });
            }
            Ok((Source::Local(path.into()), &path[last(path)..]))
        }
        "http" | "https" => {
            let path = &rest[..rest.find(['?', '#']).unwrap_or(rest.len())];
            let name = path.find('/').map_or("", |_| &path[last(path)..]);
            Ok((Source::Web(uri.into()), name))
        }
        _ => Err(ItemError::Scheme { scheme: scheme.into() }),
    }
}

/// What is wrong with a URI that has no `://` and is no absolute path.
fn unknown(uri: &str) -> ItemError {
    match uri.split_once(':') {
        Some((scheme, _))
            if !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) =>
        {
            ItemError::Scheme { scheme: scheme.into() }
        }
        _ => ItemError::Relative,
    }
}

/// What becomes of a file, judged by the name it gets.
fn treatment(uri: &Uri, name: &Name) -> Result<Treatment, ItemError> {
    if uri.executable {
        return Ok(Treatment::PlaceExecutable);
    }
    // A name that is not text has no ending that anybody knows.
    let Some(text) = name.path().to_str().filter(|_| uri.extract) else { return Ok(Treatment::Place) };
    if let Some((_, gzip)) = TAR.iter().find(|(ending, _)| text.ends_with(ending)) {
        return Ok(Treatment::Untar(*gzip));
    }
    if let Some(ending) = FOREIGN.iter().find(|ending| text.ends_with(*ending)) {
        return Err(ItemError::Foreign { ending });
    }
    match text.strip_suffix(".gz") {
        Some(content) if !content.is_empty() && !content.ends_with('/') => {
            Ok(Treatment::Gunzip(Name::parse_file(content)?))
        }
        _ => Ok(Treatment::Place),
    }
}

/// The 32 bytes of a SHA-256.
fn digest(text: &str) -> Result<[u8; 32], ItemError> {
    let wrong = || ItemError::Digest { text: text.into() };
    let mut bytes = [0; 32];
    // Only digits, as the parser below would take a sign too.
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(bytes)
}

/// A URI as it may be shown: of a URL, neither user nor query, which may hold secrets.
pub(super) fn shown(uri: &str) -> String {
    let uri = uri.trim_start();
    let Some((scheme, rest)) = uri.split_once("://").filter(|_| !uri.starts_with('/')) else {
        return cofferdam_core::fetcher::printable(uri);
    };
    let (rest, query) = match rest.find(['?', '#']) {
        Some(at) => (&rest[..at], "?…"),
        None => (rest, ""),
    };
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    cofferdam_core::fetcher::printable(&format!("{scheme}://{host}{path}{query}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(value: &str) -> Uri {
        Uri { value: value.into(), executable: false, extract: true, output_file: None, sha256: None }
    }

    fn understand(value: &str) -> Result<(Source, String), ItemError> {
        let item = Item::understand(&uri(value))?;
        Ok((item.source, item.name.path().to_str().unwrap().to_owned()))
    }

    #[test]
    fn every_supported_uri_leads_somewhere_and_has_a_name() {
        let local = |path: &str, name: &str| Ok((Source::Local(path.into()), name.to_owned()));
        let web = |url: &str, name: &str| Ok((Source::Web(url.into()), name.to_owned()));
        assert_eq!(understand("/a/b?c#d"), local("/a/b?c#d", "b?c#d"));
        assert_eq!(understand("/a/http://x/y"), local("/a/http://x/y", "y"));
        assert_eq!(understand("  file:///a/b"), local("/a/b", "b"));
        assert_eq!(understand("FILE://localhost/a"), local("/a", "a"));
        let url = "https://u:p@host:8443/a/b.txt?c=/d#/e";
        assert_eq!(understand(url), web(url, "b.txt"));
        assert_eq!(understand("http://host/x#y/z"), web("http://host/x#y/z", "x"));
    }

    #[test]
    fn every_other_uri_is_refused_for_its_reason() {
        let scheme = |scheme: &str| Err(ItemError::Scheme { scheme: scheme.into() });
        assert_eq!(understand("hdfs://host/a"), scheme("hdfs"));
        assert_eq!(understand("s3:bucket/a"), scheme("s3"));
        assert_eq!(understand("a/b"), Err(ItemError::Relative));
        assert_eq!(understand(""), Err(ItemError::Relative));
        assert_eq!(understand("file://host/a"), Err(ItemError::RemoteFile { host: "host".into() }));
        assert_eq!(understand("file://a"), Err(ItemError::RemoteFile { host: "a".into() }));
        assert_eq!(understand("/a\0b"), Err(ItemError::Nul));
        for nameless in ["http://host", "http://host/", "http://host/a/?b", "/a/", "http://host?a/b"] {
            assert_eq!(understand(nameless), Err(ItemError::Nameless), "{nameless}");
        }
        assert!(matches!(understand("http://host/.."), Err(ItemError::Name(_))));
        for bad in ["", "/a", "../a", "a/", "a/../b"] {
            let uri = Uri { output_file: Some(bad.into()), ..uri("/x") };
            assert!(matches!(Item::understand(&uri), Err(ItemError::Name(_))), "{bad}");
        }
    }

    #[test]
    fn the_name_and_the_flags_decide_what_becomes_of_it() {
        let of = |uri: Uri| Item::understand(&uri).map(|item| item.treatment);
        assert_eq!(of(uri("http://h/a.tgz?x")), Ok(Treatment::Untar(Gzip::Yes)));
        assert_eq!(of(uri("/a.tar")), Ok(Treatment::Untar(Gzip::No)));
        assert_eq!(of(uri("/b/a.gz")), Ok(Treatment::Gunzip(Name::parse_file("a").unwrap())));
        assert_eq!(of(uri("/b/.gz")), Ok(Treatment::Place));
        assert_eq!(of(uri("/a.txt")), Ok(Treatment::Place));
        assert_eq!(of(uri("/a.tar.zst")), Err(ItemError::Foreign { ending: ".tar.zst" }));
        assert_eq!(of(Uri { extract: false, ..uri("/a.zip") }), Ok(Treatment::Place));
        assert_eq!(of(Uri { executable: true, ..uri("/a.tar.gz") }), Ok(Treatment::PlaceExecutable));
        assert_eq!(of(Uri { output_file: Some("x".into()), ..uri("/a.tar") }), Ok(Treatment::Place));
        let named = Uri { output_file: Some("d/x.tgz".into()), ..uri("/a") };
        assert_eq!(of(named), Ok(Treatment::Untar(Gzip::Yes)));
    }

    #[test]
    fn a_digest_has_sixty_four_digits() {
        assert_eq!(digest(&"0aF".repeat(22)[..64]).unwrap()[..3], [0x0a, 0xf0, 0xaf]);
        for bad in ["", "00", &"g0".repeat(32), &"+0".repeat(32), &"é".repeat(32)] {
            assert_eq!(digest(bad), Err(ItemError::Digest { text: bad.into() }));
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        assert_eq!(shown("https://user:pass@host/a?token=b"), "https://host/a?…");
        assert_eq!(shown("http://host/a@b"), "http://host/a@b");
        assert_eq!(shown("/a/b?c@d\n"), "/a/b?c@d\\n");
    }
}
