//! The endpoints below `/files`, with which the web interface of Mesos and its command line show sandboxes.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::{fmt, io};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value as Json, json};
use tokio::sync::mpsc;

use super::error::ApiError;
use super::files::{self, OpenedFile, Sandboxes};
use super::reply;
use super::stream::BytesBody;
use super::types::FileInfo;
use crate::api::context::ApiContext;
use cofferdam_core::blocking::WorkPool;

type Context = State<Arc<ApiContext>>;
type Result<T = Response> = std::result::Result<T, ApiError>;

/// What is read of a file at a time.
const CHUNK: u64 = 64 << 10;

/// Chunks that wait for the client to read.
const WAITING: usize = 2;

#[derive(Deserialize)]
pub(super) struct PathQuery {
    path: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct ReadQuery {
    path: Option<String>,
    offset: Option<String>,
    length: Option<String>,
}

/// `GET /files/browse`: the entries of a directory.
pub(super) async fn browse(State(context): Context, Query(query): Query<PathQuery>) -> Result {
    let path = required(query.path)?;
    let list = files::run_blocking(&context, move |sandboxes: &Sandboxes| sandboxes.list(&path)).await?;
    Ok(reply::json(&list.iter().map(entry).collect::<Vec<_>>()))
}

/// `GET /files/read`: part of a file as text; its size as `offset`, without `offset` or with -1.
pub(super) async fn read(State(context): Context, Query(query): Query<ReadQuery>) -> Result {
    let path = required(query.path)?;
    let (offset, length) = (number("offset", query.offset)?, number("length", query.length)?);
    // 0 is the length that returns the size only.
    let (start, length) = (offset.unwrap_or(0), if offset.is_some() { length } else { Some(0) });
    let read = move |sandboxes: &Sandboxes| sandboxes.read(&path, start, length);
    let file = files::run_blocking(&context, read).await?;
    let start = offset.unwrap_or(file.size);
    let text = text_of(&file.data.0, start.saturating_add(file.data.0.len() as u64) < file.size);
    Ok(reply::json(&json!({"offset": start, "data": text})))
}

/// `GET /files/download`: a file.
pub(super) async fn download(State(context): Context, Query(query): Query<PathQuery>) -> Result {
    let path = required(query.path)?;
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    let file = files::run_blocking(&context, move |sandboxes: &Sandboxes| sandboxes.open(&path)).await?;
    let size = file.size;
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        tokio::select! {
            () = send(file, sender, &context.files) => {}
            () = context.stopped() => {}
        }
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, size.into()),
        (header::CONTENT_DISPOSITION, disposition(&name)),
        // It is what a container has written, which no browser should take for a page.
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    Ok((headers, Body::new(BytesBody::new(receiver))).into_response())
}

/// `GET /files/debug`: where the sandboxes are on the host.
pub(super) async fn debug(State(context): Context) -> Result {
    let paths = files::run_blocking(&context, |sandboxes: &Sandboxes| {
        let pairs =
            sandboxes.directories().map(|(path, directory)| (text(path), Json::from(text(directory))));
        Ok(pairs.collect::<Map<String, Json>>())
    });
    Ok(reply::json(&paths.await?))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn required(path: Option<String>) -> Result<String> {
    path.filter(|path| !path.is_empty())
        .ok_or_else(|| ApiError::bad_request("`path=…` is missing in the query"))
}

/// Bytes as text. A character that ends after them, of which there is more, is left to the next part.
fn text_of(bytes: &[u8], is_continued: bool) -> String {
    let last = bytes.utf8_chunks().last().map_or(0, |chunk| chunk.invalid().len());
    let is_cut = |rest: &[u8]| std::str::from_utf8(rest).is_err_and(|error| error.error_len().is_none());
    let whole = bytes.len() - last;
    // All of them if that is everything, so that a client always gets ahead.
    let end = if is_continued && whole > 0 && is_cut(&bytes[whole..]) { whole } else { bytes.len() };
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A number of the query; `None` also for -1.
fn number(name: &str, text: Option<String>) -> Result<Option<u64>> {
    let Some(text) = text.filter(|text| text != "-1") else { return Ok(None) };
    text.parse().map(Some).map_err(|_| {
        let text = text.escape_debug();
        ApiError::bad_request(format!("`{name}={text}` is invalid; expected a number of bytes, or -1"))
    })
}

/// Sends a file in chunks, as fast as the client reads.
async fn send(file: OpenedFile, sender: mpsc::Sender<Bytes>, threads: &WorkPool) {
    let OpenedFile { file, size } = file;
    let file = Arc::new(file);
    let mut offset = 0;
    while offset < size {
        let (file, length) = (Arc::clone(&file), CHUNK.min(size - offset));
        let chunk = threads.run(move || read_chunk(&file, offset, length)).await;
        // A response that is shorter than it said tells the client that something has failed.
        let Ok(Ok(chunk)) = chunk else { return };
        offset += chunk.len() as u64;
        if chunk.is_empty() || sender.send(chunk.into()).await.is_err() {
            return;
        }
    }
}

fn read_chunk(file: &File, offset: u64, length: u64) -> io::Result<Vec<u8>> {
    let mut chunk = vec![0; usize::try_from(length).unwrap_or_default()];
    loop {
        match file.read_at(&mut chunk, offset) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(count) => {
                chunk.truncate(count);
                return Ok(chunk);
            }
        }
    }
}

/// `Content-Disposition` with the name of a file, which a container may have chosen.
fn disposition(name: &str) -> HeaderValue {
    let is_plain = |character: &char| character.is_ascii_graphic() && !matches!(character, '"' | '\\' | '%');
    let plain: String =
        name.chars().map(|character| if is_plain(&character) { character } else { '_' }).collect();
    HeaderValue::try_from(format!("attachment; filename=\"{plain}\""))
        .unwrap_or_else(|_| HeaderValue::from_static("attachment"))
}

fn entry(info: &FileInfo) -> Json {
    let seconds = info.mtime.as_ref().map_or(0, |mtime| mtime.nanoseconds.div_euclid(1_000_000_000));
    json!({
        "path": info.path,
        "nlink": info.nlink.unwrap_or_default(),
        "size": info.size.unwrap_or_default(),
        "mtime": seconds,
        "mode": ModeText(info.mode.unwrap_or_default()).to_string(),
        "uid": info.uid.as_deref().unwrap_or_default(),
        "gid": info.gid.as_deref().unwrap_or_default(),
    })
}

/// Type and permissions as ls(1) shows them: `drwxr-xr-x`.
struct ModeText(u32);

impl fmt::Display for ModeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.0 & libc::S_IFMT {
            libc::S_IFREG => '-',
            libc::S_IFDIR => 'd',
            libc::S_IFLNK => 'l',
            libc::S_IFCHR => 'c',
            libc::S_IFBLK => 'b',
            libc::S_IFIFO => 'p',
            libc::S_IFSOCK => 's',
            _ => '?',
        };
        write!(f, "{kind}")?;
        for (shift, special, letter) in
            [(6, libc::S_ISUID, 's'), (3, libc::S_ISGID, 's'), (0, libc::S_ISVTX, 't')]
        {
            let bits = self.0 >> shift;
            let execute = match (bits & 1 != 0, self.0 & special != 0) {
                (true, false) => 'x',
                (true, true) => letter,
                (false, true) => letter.to_ascii_uppercase(),
                (false, false) => '-',
            };
            let (read, write) =
                (if bits & 4 != 0 { 'r' } else { '-' }, if bits & 2 != 0 { 'w' } else { '-' });
            write!(f, "{read}{write}{execute}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_are_shown_as_by_ls() {
        for (mode, text) in [
            (0o100_644, "-rw-r--r--"),
            (0o040_755, "drwxr-xr-x"),
            (0o120_777, "lrwxrwxrwx"),
            (0o104_755, "-rwsr-xr-x"),
            (0o102_644, "-rw-r-Sr--"),
            (0o041_777, "drwxrwxrwt"),
            (0o010_600, "prw-------"),
        ] {
            assert_eq!(ModeText(mode).to_string(), text);
        }
    }

    #[test]
    fn a_character_is_not_cut() {
        let text = "a\u{e9}\u{20ac}";
        let bytes = text.as_bytes();
        assert_eq!(text_of(bytes, false), text);
        for (length, expected) in
            [(1, "a"), (2, "a"), (3, "a\u{e9}"), (4, "a\u{e9}"), (5, "a\u{e9}"), (6, text)]
        {
            assert_eq!(text_of(&bytes[..length], true), expected, "{length}");
        }
        assert_eq!(text_of(&bytes[..2], false), "a\u{fffd}");
        // What is no text at all is passed on in full.
        assert_eq!(text_of(b"\xc3", true), "\u{fffd}");
        assert_eq!(text_of(b"\xff\xffa", true), "\u{fffd}\u{fffd}a");
    }

    #[test]
    fn a_name_does_not_leave_its_header() {
        let name = disposition("a\"b\r\nX: y\u{e9}.txt");
        assert_eq!(name, "attachment; filename=\"a_b__X:_y_.txt\"");
    }
}
