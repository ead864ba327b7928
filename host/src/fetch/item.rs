//! URIs, parsed and validated before anything is fetched.

use std::io::{BufRead, Read};
use std::path::PathBuf;

use bzip2::bufread::MultiBzDecoder;
use data_encoding::HEXLOWER_PERMISSIVE;
use lzma_rust2::XzReader;

use super::sandbox_path::{InvalidPath, SandboxPath};
use crate::archive::{Gunzip, Unzstd};
use cofferdam_core::model::Uri;

/// Suffixes of archives that are unpacked.
const TAR: [(&str, Compression); 10] = [
    (".tar", Compression::None),
    (".tar.gz", Compression::Gzip),
    (".tgz", Compression::Gzip),
    (".tar.zst", Compression::Zstd),
    (".tzst", Compression::Zstd),
    (".tar.bz2", Compression::Bzip2),
    (".tbz2", Compression::Bzip2),
    (".tbz", Compression::Bzip2),
    (".tar.xz", Compression::Xz),
    (".txz", Compression::Xz),
];

/// Suffix of zip archives.
const ZIP: &str = ".zip";

/// Suffixes of compressed files, which are removed with the compression.
const COMPRESSED: [(&str, Compression); 2] = [(".gz", Compression::Gzip), (".zst", Compression::Zstd)];

/// Suffixes of archives that are not supported.
const UNSUPPORTED: [&str; 2] = [".tar.lz4", ".tar.lzma"];

/// Memory for unpacking xz, in KiB. An archive may claim to need any amount.
const XZ_MEMORY: u32 = 256 << 10;

/// A file to fetch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) source: Source,
    pub(super) name: SandboxPath,
    pub(super) treatment: Treatment,
    pub(super) sha256: Option<[u8; 32]>,
}

/// Where a file comes from.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A file on this machine.
    Local(PathBuf),
    /// An HTTP or HTTPS URL.
    Url(String),
}

/// What is done with a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Treatment {
    /// Placed in the sandbox with the permissions of the source.
    Place,
    /// Placed in the sandbox and made executable.
    PlaceExecutable,
    /// Unpacked into the sandbox; the archive itself is not kept.
    Untar(Compression),
    /// As before, from a zip archive.
    Unzip,
    /// Decompressed to this path; the compressed file itself is not kept.
    Decompress(Compression, SandboxPath),
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
}

impl Compression {
    /// The content of a stream.
    pub(super) fn decompress<'r>(self, stream: impl BufRead + 'r) -> Box<dyn Read + 'r> {
        match self {
            Self::None => Box::new(stream),
            Self::Gzip => Box::new(Gunzip::new(stream)),
            Self::Zstd => Box::new(Unzstd::new(stream)),
            Self::Bzip2 => Box::new(MultiBzDecoder::new(stream)),
            Self::Xz => Box::new(XzReader::new_mem_limit(stream, true, XZ_MEMORY)),
        }
    }
}

/// Why a URI is invalid.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ItemError {
    #[error(
        "the scheme `{scheme}` is not supported; use an absolute path, or a URL with `file`, `http` or `https`"
    )]
    Scheme { scheme: String },
    #[error("it is neither an absolute path nor a URL with `file`, `http` or `https`")]
    Relative,
    #[error(
        "a `file` URL must have an absolute path and no host other than `localhost`; found host `{host}`"
    )]
    RemoteFile { host: String },
    #[error("it contains a NUL character")]
    Nul,
    #[error("it does not end with a file name; set one with `output_file`")]
    NoFileName,
    #[error(transparent)]
    Path(#[from] InvalidPath),
    #[error(
        "unpacking `{suffix}` is not supported; use `.tar` with gzip, bzip2, xz or zstd, or `.zip`, or set `extract` to \
         false to keep the archive"
    )]
    UnsupportedArchive { suffix: &'static str },
    #[error("`{text}` is not a SHA-256; expected 64 hexadecimal digits")]
    Digest { text: String },
}

impl Source {
    /// Parses the value of a URI.
    pub(super) fn parse(uri: &str) -> Result<Self, ItemError> {
        Ok(parse_source(uri.trim_start())?.0)
    }
}

impl Item {
    /// Parses a URI.
    pub(super) fn parse(uri: &Uri) -> Result<Self, ItemError> {
        let (source, file_name) = parse_source(uri.value.trim_start())?;
        let name = match uri.output_file.as_deref() {
            Some(name) if name.contains('\0') => return Err(ItemError::Nul),
            Some(name) => SandboxPath::parse_file(name)?,
            None if file_name.is_empty() => return Err(ItemError::NoFileName),
            None => SandboxPath::parse_file(file_name)?,
        };
        let treatment = treatment(uri, &name)?;
        let sha256 = uri.sha256.as_deref().map(parse_sha256).transpose()?;
        Ok(Self { source, name, treatment, sha256 })
    }
}

/// The source of a URI, and the last component of its path.
fn parse_source(uri: &str) -> Result<(Source, &str), ItemError> {
    if uri.contains('\0') {
        return Err(ItemError::Nul);
    }
    let last = |path: &str| path.rfind('/').map_or(0, |slash| slash + 1);
    let Some((scheme, rest)) = uri.split_once("://") else {
        return match uri.starts_with('/') {
            true => Ok((Source::Local(uri.into()), &uri[last(uri)..])),
            false => Err(no_source(uri)),
        };
    };
    match scheme.to_ascii_lowercase().as_str() {
        // An absolute path that contains `://`.
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
            Ok((Source::Url(uri.into()), name))
        }
        _ => Err(ItemError::Scheme { scheme: scheme.into() }),
    }
}

/// The error for a URI that has no `://` and is not an absolute path.
fn no_source(uri: &str) -> ItemError {
    match uri.split_once(':') {
        Some((scheme, _))
            if !scheme.is_empty() && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) =>
        {
            ItemError::Scheme { scheme: scheme.into() }
        }
        _ => ItemError::Relative,
    }
}

/// Chooses the treatment of a file by its suffix in the sandbox.
fn treatment(uri: &Uri, name: &SandboxPath) -> Result<Treatment, ItemError> {
    if uri.executable {
        return Ok(Treatment::PlaceExecutable);
    }
    let Some(text) = name.as_path().to_str().filter(|_| uri.extract) else { return Ok(Treatment::Place) };
    if let Some((_, compression)) = TAR.iter().find(|(suffix, _)| text.ends_with(suffix)) {
        return Ok(Treatment::Untar(*compression));
    }
    if text.ends_with(ZIP) {
        return Ok(Treatment::Unzip);
    }
    if let Some(suffix) = UNSUPPORTED.iter().find(|suffix| text.ends_with(**suffix)) {
        return Err(ItemError::UnsupportedArchive { suffix });
    }
    let stripped = COMPRESSED.iter().find_map(|(suffix, compression)| {
        let content = text.strip_suffix(suffix)?;
        (!content.is_empty() && !content.ends_with('/')).then_some((*compression, content))
    });
    match stripped {
        Some((compression, content)) => {
            Ok(Treatment::Decompress(compression, SandboxPath::parse_file(content)?))
        }
        None => Ok(Treatment::Place),
    }
}

/// Parses a SHA-256.
fn parse_sha256(text: &str) -> Result<[u8; 32], ItemError> {
    let decoded = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    decoded.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| ItemError::Digest { text: text.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(value: &str) -> Uri {
        Uri {
            value: value.into(),
            executable: false,
            extract: true,
            cache: false,
            output_file: None,
            sha256: None,
        }
    }

    fn parse(value: &str) -> Result<(Source, String), ItemError> {
        let item = Item::parse(&uri(value))?;
        Ok((item.source, item.name.as_path().to_str().unwrap().to_owned()))
    }

    #[test]
    fn supported_uris_have_a_source_and_a_name() {
        let local = |path: &str, name: &str| Ok((Source::Local(path.into()), name.to_owned()));
        let web = |url: &str, name: &str| Ok((Source::Url(url.into()), name.to_owned()));
        assert_eq!(parse("/a/b?c#d"), local("/a/b?c#d", "b?c#d"));
        assert_eq!(parse("/a/http://x/y"), local("/a/http://x/y", "y"));
        assert_eq!(parse("  file:///a/b"), local("/a/b", "b"));
        assert_eq!(parse("FILE://localhost/a"), local("/a", "a"));
        let url = "https://u:p@host:8443/a/b.txt?c=/d#/e";
        assert_eq!(parse(url), web(url, "b.txt"));
        assert_eq!(parse("http://host/x#y/z"), web("http://host/x#y/z", "x"));
    }

    #[test]
    fn unsupported_uris_are_rejected() {
        let scheme = |scheme: &str| Err(ItemError::Scheme { scheme: scheme.into() });
        assert_eq!(parse("hdfs://host/a"), scheme("hdfs"));
        assert_eq!(parse("s3:bucket/a"), scheme("s3"));
        assert_eq!(parse("a/b"), Err(ItemError::Relative));
        assert_eq!(parse(""), Err(ItemError::Relative));
        assert_eq!(parse("file://host/a"), Err(ItemError::RemoteFile { host: "host".into() }));
        assert_eq!(parse("file://a"), Err(ItemError::RemoteFile { host: "a".into() }));
        assert_eq!(parse("/a\0b"), Err(ItemError::Nul));
        for uri in ["http://host", "http://host/", "http://host/a/?b", "/a/", "http://host?a/b"] {
            assert_eq!(parse(uri), Err(ItemError::NoFileName), "{uri}");
        }
        assert!(matches!(parse("http://host/.."), Err(ItemError::Path(_))));
        for bad in ["", "/a", "../a", "a/", "a/../b"] {
            let uri = Uri { output_file: Some(bad.into()), ..uri("/x") };
            assert!(matches!(Item::parse(&uri), Err(ItemError::Path(_))), "{bad}");
        }
    }

    #[test]
    fn the_treatment_depends_on_suffix_and_flags() {
        let treatment = |uri: Uri| Item::parse(&uri).map(|item| item.treatment);
        assert_eq!(treatment(uri("http://h/a.tgz?x")), Ok(Treatment::Untar(Compression::Gzip)));
        assert_eq!(treatment(uri("/a.tar")), Ok(Treatment::Untar(Compression::None)));
        let decompress =
            |compression| Ok(Treatment::Decompress(compression, SandboxPath::parse_file("a").unwrap()));
        assert_eq!(treatment(uri("/b/a.gz")), decompress(Compression::Gzip));
        assert_eq!(treatment(uri("/b/a.zst")), decompress(Compression::Zstd));
        assert_eq!(treatment(uri("/b/a.tzst")), Ok(Treatment::Untar(Compression::Zstd)));
        assert_eq!(treatment(uri("/b/.gz")), Ok(Treatment::Place));
        assert_eq!(treatment(uri("/a.txt")), Ok(Treatment::Place));
        assert_eq!(treatment(uri("/a.tar.zst")), Ok(Treatment::Untar(Compression::Zstd)));
        assert_eq!(treatment(uri("/a.tar.xz")), Ok(Treatment::Untar(Compression::Xz)));
        assert_eq!(treatment(uri("/a.tbz2")), Ok(Treatment::Untar(Compression::Bzip2)));
        assert_eq!(treatment(uri("http://h/a.zip?x")), Ok(Treatment::Unzip));
        assert_eq!(treatment(uri("/a.tar.lz4")), Err(ItemError::UnsupportedArchive { suffix: ".tar.lz4" }));
        assert_eq!(treatment(Uri { extract: false, ..uri("/a.zip") }), Ok(Treatment::Place));
        assert_eq!(treatment(Uri { executable: true, ..uri("/a.tar.gz") }), Ok(Treatment::PlaceExecutable));
        assert_eq!(treatment(Uri { output_file: Some("x".into()), ..uri("/a.tar") }), Ok(Treatment::Place));
        let named = Uri { output_file: Some("d/x.tgz".into()), ..uri("/a") };
        assert_eq!(treatment(named), Ok(Treatment::Untar(Compression::Gzip)));
    }

    #[test]
    fn a_sha256_has_64_hexadecimal_digits() {
        assert_eq!(parse_sha256(&"0aF".repeat(22)[..64]).unwrap()[..3], [0x0a, 0xf0, 0xaf]);
        for invalid in ["", "00", &"g0".repeat(32), &"+0".repeat(32), &"é".repeat(32)] {
            assert_eq!(parse_sha256(invalid), Err(ItemError::Digest { text: invalid.into() }));
        }
    }
}
