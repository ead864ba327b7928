//! Downloads that are interrupted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::server::{Request, serve_requests};
use super::*;

/// Bytes of a file, and how many of them the first connection sends.
const SIZE: usize = 300_000;
const CUT: usize = 100_000;

fn content(seed: usize) -> Vec<u8> {
    (0..SIZE).map(|index| u8::try_from((index * 31 + index / 251 + seed) % 251).unwrap()).collect()
}

/// What a server was asked for: `Range` and `If-Range` of each request.
type Seen = Arc<Mutex<Vec<(Option<String>, Option<String>)>>>;

/// A response: headers and a part of the body, of which the length is announced.
struct Response {
    head: String,
    body: Vec<u8>,
}

impl Response {
    fn new(status: &str, headers: &str, announced: usize, body: &[u8]) -> Self {
        let head =
            format!("HTTP/1.1 {status}\r\nContent-Length: {announced}\r\nConnection: close\r\n{headers}\r\n");
        Self { head, body: body.to_vec() }
    }

    fn partial(headers: &str, content: &[u8], begin: usize) -> Self {
        let range = format!("Content-Range: bytes {begin}-{}/{SIZE}\r\n{headers}", SIZE - 1);
        Self::new("206 Partial Content", &range, SIZE - begin, &content[begin..])
    }
}

/// Answers the first request with an incomplete response, and the others by `then`, which gets their number.
fn interrupted(
    headers: &'static str,
    then: impl Fn(usize, &Request) -> Response + Send + 'static,
) -> (String, Seen) {
    let seen = Seen::default();
    let requests = Arc::clone(&seen);
    let root = serve_requests(move |request, mut stream| {
        let header = |name| request.header(name).map(str::to_owned);
        let number = requests.lock().len();
        requests.lock().push((header("range"), header("if-range")));
        let Response { head, body } = match number {
            0 => Response::new("200 OK", headers, SIZE, &content(0)[..CUT]),
            number => then(number, request),
        };
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&body).unwrap();
    });
    (root, seen)
}

/// Fetches a file that has this hash at last.
async fn fetch(root: &str, expected: &[u8]) {
    let world = World::new();
    let hash = HEXLOWER.encode(&Sha256::digest(expected));
    let list = [Uri { sha256: Some(hash), ..uri(format!("{root}/x")) }];
    world.fetch(&list).await.unwrap();
    assert!(fs::read(world.inside("x")).unwrap() == expected);
}

const ETAG: &str = "ETag: \"a\"\r\n";

#[tokio::test]
async fn a_download_is_continued_where_it_was_interrupted() {
    let (root, seen) = interrupted(ETAG, |_, _| Response::partial(ETAG, &content(0), CUT));
    fetch(&root, &content(0)).await;
    let (range, if_range) = seen.lock()[1].clone();
    assert_eq!(range.as_deref(), Some(format!("bytes={CUT}-").as_str()));
    assert_eq!((if_range.as_deref(), seen.lock().len()), (Some("\"a\""), 2));
    // By a date, if that is not the one of the response.
    let dates = "Last-Modified: Sat, 28 Nov 2020 10:00:00 GMT\r\nDate: Sun, 29 Nov 2020 10:00:00 GMT\r\n";
    let (root, seen) = interrupted(dates, |_, _| Response::partial("", &content(0), CUT));
    fetch(&root, &content(0)).await;
    assert_eq!(seen.lock()[1].1.as_deref(), Some("Sat, 28 Nov 2020 10:00:00 GMT"));
}

#[tokio::test]
async fn a_download_begins_again_when_the_server_does() {
    // It ignores `Range`.
    let (root, _) = interrupted(ETAG, |_, _| Response::new("200 OK", ETAG, SIZE, &content(0)));
    fetch(&root, &content(0)).await;
    // It has another file meanwhile.
    let changed = "ETag: \"b\"\r\n";
    let (root, _) = interrupted(ETAG, move |_, _| Response::new("200 OK", changed, SIZE, &content(1)));
    fetch(&root, &content(1)).await;
    // It ignores `If-Range`.
    let (root, seen) = interrupted(ETAG, move |number, _| match number {
        1 => Response::partial(changed, &content(1), CUT),
        _ => Response::new("200 OK", changed, SIZE, &content(1)),
    });
    fetch(&root, &content(1)).await;
    assert_eq!(seen.lock()[2], (None, None));
    // It continues elsewhere.
    let (root, _) = interrupted(ETAG, |number, _| match number {
        1 => Response::partial(ETAG, &content(0), CUT - 1),
        _ => Response::new("200 OK", ETAG, SIZE, &content(0)),
    });
    fetch(&root, &content(0)).await;
    // It has a shorter one.
    let (root, _) = interrupted(ETAG, |number, _| match number {
        1 => Response::new("416 Range Not Satisfiable", "", 0, b""),
        _ => Response::new("200 OK", changed, 5, b"short"),
    });
    fetch(&root, b"short").await;
}

#[tokio::test]
async fn a_continuation_is_complete_only_with_all_of_the_rest() {
    let part = |begin: usize, end: usize, size: &str| {
        let range = format!("Content-Range: bytes {begin}-{}/{size}\r\n{ETAG}", end - 1);
        Response::new("206 Partial Content", &range, end - begin, &content(0)[begin..end])
    };
    // Less than was asked for.
    let (root, seen) = interrupted(ETAG, move |number, _| match number {
        1 => part(CUT, 2 * CUT, &SIZE.to_string()),
        _ => part(2 * CUT, SIZE, &SIZE.to_string()),
    });
    fetch(&root, &content(0)).await;
    assert_eq!(seen.lock()[2].0.as_deref(), Some(format!("bytes={}-", 2 * CUT).as_str()));
    // The same of a file whose size was not announced.
    let begin = |size: &'static str| {
        let requests = AtomicUsize::new(0);
        serve_requests(move |_, mut stream| {
            let Response { head, body } = match requests.fetch_add(1, Ordering::SeqCst) {
                0 => Response {
                    head: format!(
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n{ETAG}\r\n{CUT:x}\r\n"
                    ),
                    body: content(0)[..CUT].to_vec(),
                },
                1 => part(CUT, 2 * CUT, size),
                2 if size != "*" => part(2 * CUT, SIZE, size),
                _ => Response::new("200 OK", ETAG, SIZE, &content(0)),
            };
            stream.write_all(head.as_bytes()).unwrap();
            stream.write_all(&body).unwrap();
        })
    };
    fetch(&begin("300000"), &content(0)).await;
    // It does not say how large it is: what it sends may be anything.
    fetch(&begin("*"), &content(0)).await;
}

#[tokio::test]
async fn a_file_that_may_have_changed_is_not_continued() {
    let same = "Last-Modified: Sun, 29 Nov 2020 10:00:00 GMT\r\nDate: Sun, 29 Nov 2020 10:00:00 GMT\r\n";
    for headers in ["", "ETag: W/\"a\"\r\n", same] {
        let (root, seen) =
            interrupted(headers, move |_, _| Response::new("200 OK", headers, SIZE, &content(1)));
        fetch(&root, &content(1)).await;
        assert_eq!(seen.lock()[1..], [(None, None)], "{headers}");
    }
}

#[tokio::test]
async fn a_server_that_never_completes_is_asked_a_few_times() {
    let (root, seen) = interrupted(ETAG, |_, _| Response::new("200 OK", ETAG, SIZE, &content(0)[..CUT]));
    let world = World::new();
    let error = world.fetch_error(&[uri(format!("{root}/x"))]).await;
    assert!(error.contains("cannot fetch `http://127.0.0.1:"), "{error}");
    assert_eq!((seen.lock().len(), world.contents().len()), (5, 0));
}

#[tokio::test]
async fn a_server_that_fails_meanwhile_is_asked_again() {
    let (root, seen) = interrupted(ETAG, |number, _| match number {
        1 => Response::new("503 Service Unavailable", "", 0, b""),
        _ => Response::partial(ETAG, &content(0), CUT),
    });
    fetch(&root, &content(0)).await;
    assert_eq!(seen.lock().len(), 3);
    // At the beginning, its status is the answer.
    let root = serve_requests(|_, stream| respond(stream, "503 Service Unavailable", "", ""));
    let error = World::new().fetch_error(&[uri(format!("{root}/x"))]).await;
    assert!(
        error.ends_with("the server responds with `503 Service Unavailable`, expected `200 OK`"),
        "{error}"
    );
}
