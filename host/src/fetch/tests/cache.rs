//! The cache of fetched files.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use cofferdam_core::blocking::WorkPool;
use cofferdam_core::config::FetchCacheConfig;
use cofferdam_core::fetcher::{CacheError, FetchStats};
use cofferdam_core::model::FetchProgress;
use parking_lot::Mutex;

use super::server::{Request, serve_requests};
use super::*;

const MIB: u64 = 1 << 20;

impl World {
    fn cache(&self) -> PathBuf {
        self.outside("cache")
    }

    fn try_cached_fetcher(&self, size: u64) -> Result<Fetcher, CacheError> {
        let config = FetchCacheConfig { directory: self.cache(), size };
        self.fetcher().cached(&config, WorkPool::start(1, NonZeroUsize::MIN).unwrap())
    }

    fn cached_fetcher(&self, size: u64) -> Fetcher {
        self.try_cached_fetcher(size).unwrap()
    }

    /// Names in a directory of the cache.
    fn in_cache(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.cache().join(directory)).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.inside(name)).unwrap()
    }
}

fn cached(value: impl Into<String>) -> Uri {
    Uri { cache: true, ..uri(value) }
}

fn counts(fetcher: &Fetcher) -> (u64, u64, u64, u64) {
    let FetchStats { hits, misses, bypasses, evictions, .. } = fetcher.stats();
    (hits, misses, bypasses, evictions)
}

/// A file of a server, with an `ETag`.
#[derive(Clone)]
struct Served(Arc<Mutex<(String, String)>>);

impl Served {
    fn new(etag: &str, body: &str) -> Self {
        Self(Arc::new(Mutex::new((etag.to_owned(), body.to_owned()))))
    }

    fn replace(&self, etag: &str, body: &str) {
        *self.0.lock() = (etag.to_owned(), body.to_owned());
    }

    /// Returns how often its content was sent, as well.
    fn serve(&self, is_conditional: bool) -> (String, Arc<AtomicUsize>) {
        let (served, sent) = (self.clone(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&sent);
        let root = serve_requests(move |request: &Request, stream| {
            let (etag, body) = served.0.lock().clone();
            if is_conditional && request.header("if-none-match") == Some(&etag) {
                return respond(stream, "304 Not Modified", "", "");
            }
            count.fetch_add(1, Ordering::SeqCst);
            respond(stream, "200 OK", &format!("ETag: {etag}\r\n"), &body);
        });
        (root, sent)
    }
}

#[tokio::test]
async fn a_file_is_received_again_only_if_it_has_changed() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let served = Served::new("\"one\"", "first");
    let (root, sent) = served.serve(true);
    let list = [cached(format!("{root}/x"))];
    for _ in 0..3 {
        world.fetch_by(fetcher.clone(), &list).await.unwrap();
        assert_eq!(world.read("x"), b"first");
        fs::remove_file(world.inside("x")).unwrap();
    }
    assert_eq!((sent.load(Ordering::SeqCst), counts(&fetcher)), (1, (2, 1, 0, 0)));

    served.replace("\"two\"", "second");
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    assert_eq!(world.read("x"), b"second");
    assert_eq!((sent.load(Ordering::SeqCst), counts(&fetcher)), (2, (2, 2, 0, 0)));
    let stats = fetcher.stats();
    assert_eq!((stats.cache_files, stats.cache_size, stats.succeeded), (1, MIB, 4));
    // Without the flag, nothing of the cache is used.
    world.fetch_by(fetcher.clone(), &[uri(format!("{root}/x"))]).await.unwrap();
    assert_eq!((sent.load(Ordering::SeqCst), counts(&fetcher)), (3, (2, 2, 0, 0)));
}

#[tokio::test]
async fn a_server_without_conditional_requests_sends_no_content_that_is_known() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let served = Served::new("\"one\"", "first");
    let (root, _) = served.serve(false);
    for _ in 0..2 {
        world.fetch_by(fetcher.clone(), &[cached(format!("{root}/x"))]).await.unwrap();
        assert_eq!(world.read("x"), b"first");
    }
    assert_eq!(counts(&fetcher), (1, 1, 0, 0));
    // The same `ETag`, but another size: one of them is wrong.
    served.replace("\"one\"", "longer");
    world.fetch_by(fetcher.clone(), &[cached(format!("{root}/x"))]).await.unwrap();
    assert_eq!((world.read("x"), counts(&fetcher)), (b"longer".to_vec(), (1, 2, 0, 0)));
}

#[tokio::test]
async fn what_cannot_be_validated_is_not_kept() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    // The second one may be changed again within the same second.
    let date = "Sun, 29 Nov 2020 10:00:00 GMT";
    for (misses, headers) in [(2, ""), (4, &*format!("Last-Modified: {date}\r\nDate: {date}\r\n"))] {
        let headers = headers.to_owned();
        let root = serve(move |_, stream| respond(stream, "200 OK", &headers, "content"));
        for _ in 0..2 {
            world.fetch_by(fetcher.clone(), &[cached(format!("{root}/x"))]).await.unwrap();
            assert_eq!(world.read("x"), b"content");
        }
        assert_eq!((counts(&fetcher), fetcher.stats().cache_files), ((0, misses, 0, 0), 0));
    }
    assert!(world.in_cache("entries").is_empty());
}

#[tokio::test]
async fn concurrent_fetches_share_a_download() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let (root, sent) = Served::new("\"one\"", "content").serve(true);
    let uri = |name: &str| [Uri { output_file: Some(name.to_owned()), ..cached(format!("{root}/x")) }];
    let (one, two, three) = (uri("one"), uri("two"), uri("three"));
    let fetch = |list| world.fetch_by(fetcher.clone(), list);
    let outcomes = tokio::join!(fetch(&one), fetch(&two), fetch(&three));
    assert!(matches!(outcomes, (Ok(()), Ok(()), Ok(()))), "{outcomes:?}");
    assert_eq!((sent.load(Ordering::SeqCst), counts(&fetcher)), (1, (0, 1, 0, 0)));
    for name in ["one", "two", "three"] {
        assert_eq!(world.read(name), b"content");
    }
    let missing = [cached(format!("{}/x", serve(|_, stream| respond(stream, "404 Not Found", "", ""))))];
    let (one, other) = tokio::join!(fetch(&missing), fetch(&missing));
    for outcome in [one, other] {
        let error = error_chain::describe(&outcome.unwrap_err());
        assert!(error.contains("cannot fetch `http://127.0.0.1:"), "{error}");
        assert!(error.ends_with("the server responds with `404 Not Found`, expected `200 OK`"), "{error}");
    }
    assert_eq!(fetcher.stats().failed, 2);
}

#[tokio::test]
async fn a_request_that_is_invalid_fails_no_other_one() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let (root, sent) = Served::new("\"one\"", "content").serve(true);
    let named = |name: &str| [Uri { output_file: Some(name.to_owned()), ..cached(format!("{root}/x")) }];
    let (bad, good) = (named("../x"), named("good"));
    let (wrong_hash, archive) =
        ([Uri { sha256: Some("0".repeat(64)), ..named("hash")[0].clone() }], named("a.tar.gz"));
    let fetch = |list| world.fetch_by(fetcher.clone(), list);
    // The invalid one is the first, and begins the download.
    let (bad, good, wrong_hash, archive) =
        tokio::join!(fetch(&bad), fetch(&good), fetch(&wrong_hash), fetch(&archive));
    good.unwrap();
    assert_eq!((world.read("good"), sent.load(Ordering::SeqCst)), (b"content".to_vec(), 1));
    for (outcome, expected) in
        [(bad, "it contains `..`"), (wrong_hash, "expected `000"), (archive, "cannot unpack it")]
    {
        let error = error_chain::describe(&outcome.unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn what_is_removed_from_the_directory_is_received_again() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let (root, sent) = Served::new("\"one\"", "content").serve(true);
    let list = [cached(format!("{root}/x"))];
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    let [name] = &world.in_cache("content")[..] else { panic!() };
    fs::remove_file(world.cache().join("content").join(name)).unwrap();
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    assert_eq!((sent.load(Ordering::SeqCst), counts(&fetcher)), (2, (0, 2, 0, 0)));
    // All of it: no file of the cache can be created.
    fs::remove_dir_all(world.cache()).unwrap();
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    assert_eq!(
        (world.read("x"), sent.load(Ordering::SeqCst), counts(&fetcher)),
        (b"content".to_vec(), 3, (0, 2, 1, 0))
    );
}

#[tokio::test]
async fn what_fails_in_the_sandbox_is_received_again_and_nothing_else() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let good = world.file("good", "content");
    let hash = HEXLOWER.encode(&Sha256::digest(b"content"));
    let archive = world.file("a.tar.gz", gzip(&tar(&[Member::file("member", b"m")])));
    let list = [Uri { sha256: Some(hash), ..cached(&good) }, cached(&archive)];
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    // The disk has changed the archive, which has no hash.
    let size = fs::metadata(&archive).unwrap().len();
    let of_archive =
        |name: &&String| fs::metadata(world.cache().join("content").join(name)).unwrap().len() == size;
    let names = world.in_cache("content");
    let name = names.iter().find(of_archive).unwrap();
    fs::write(world.cache().join("content").join(name), vec![b'x'; usize::try_from(size).unwrap()]).unwrap();
    let error = world.fetch_by(fetcher.clone(), &list).await.unwrap_err();
    assert!(error_chain::describe(&error).contains("cannot unpack it"), "{error}");
    assert_eq!(counts(&fetcher), (2, 2, 0, 0));
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    assert_eq!((world.read("member"), counts(&fetcher)), (b"m".to_vec(), (3, 3, 0, 0)));
}

#[tokio::test]
async fn what_cannot_be_placed_is_not_received_again() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let archive =
        world.file("a.tar.gz", gzip(&tar(&[Member::file("member", b"m"), Member::file("other", b"o")])));
    let list = [cached(&archive)];
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    let limited = |limits| world.fetch_by(fetcher.clone().limited(limits), &list);
    let error = limited(FetchLimits { files: 1, ..FetchLimits::default() }).await.unwrap_err();
    assert!(error_chain::describe(&error).contains("more than 1 members"), "{error:?}");
    // Something is in its place.
    fs::remove_file(world.inside("member")).unwrap();
    fs::create_dir(world.inside("member")).unwrap();
    let error = limited(FetchLimits::default()).await.unwrap_err();
    assert!(error_chain::describe(&error).contains("member"), "{error:?}");
    fs::remove_dir(world.inside("member")).unwrap();
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    assert_eq!(counts(&fetcher), (3, 1, 0, 0));
}

#[tokio::test]
async fn what_is_invalid_is_reported_before_anything_is_received() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    // Its server never sends all of it.
    let (root, _connected) = serve_incomplete();
    let invalid = Uri { output_file: Some("../x".to_owned()), ..uri(world.file("good", "g")) };
    for list in [
        [cached(format!("{root}/x")), invalid.clone()],
        [cached(format!("{root}/y")), cached("hdfs://host/a")],
    ] {
        let fetched = world.fetch_by(fetcher.clone(), &list);
        let error = tokio::time::timeout(TIMEOUT, fetched).await.expect("it waited for a file").unwrap_err();
        assert!(matches!(&error, FetchError::Failed(FetchFailure::Invalid { .. })), "{error:?}");
    }
    assert_eq!(counts(&fetcher), (0, 0, 0, 0));
}

#[tokio::test]
async fn a_file_of_unknown_size_removes_nothing_if_it_does_not_fit() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let small = "s".repeat(600 << 10);
    let large = "x".repeat(3 << 20);
    let root = serve(move |path, mut stream| match path {
        "/small" => respond(stream, "200 OK", "ETag: \"a\"\r\n", &small),
        _ => {
            let head = "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nConnection: close\r\n\r\n";
            // The first process is killed meanwhile.
            drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(large.as_bytes())));
        }
    });
    let (small, large) = ([cached(format!("{root}/small"))], [cached(format!("{root}/large"))]);
    world.fetch_by(fetcher.clone(), &small).await.unwrap();
    world.fetch_by(fetcher.clone(), &large).await.unwrap();
    assert_eq!(world.read("large").len(), 3 << 20);
    assert_eq!((counts(&fetcher), fetcher.stats().cache_used), ((0, 1, 1, 0), 600 << 10));
}

#[tokio::test]
async fn progress_counts_each_file_once() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let paths = ["a", "b", "c"].map(|name| world.file(name, name));
    let list = [uri(&paths[0]), cached(&paths[1]), cached(&paths[2])];
    for _ in 0..2 {
        let (sandbox, reserved) = (world.sandbox(), reserved());
        let mut seen = Vec::new();
        let each = |progress: FetchProgress| seen.push((progress.files, progress.fetched_files));
        fetcher.fetch(world.request(&list, &sandbox, &reserved), each, pending::<()>()).await.unwrap();
        assert!(seen.is_sorted() && seen.iter().all(|(files, _)| *files == 3), "{seen:?}");
        assert_eq!((seen.first(), seen.last()), (Some(&(3, 0)), Some(&(3, 3))));
    }
}

#[tokio::test]
async fn a_download_is_cancelled_with_the_last_container_that_waits() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let (root, connected) = serve_incomplete();
    let list = [cached(format!("{root}/x"))];
    let (sandbox, reserved) = (world.sandbox(), reserved());
    let (stop_one, stopped_one) = oneshot::channel::<()>();
    let (stop_other, stopped_other) = oneshot::channel::<()>();
    let fetch = |stopped| fetcher.fetch(world.request(&list, &sandbox, &reserved), drop, stopped);
    let watch = async {
        tokio::task::spawn_blocking(move || connected.recv_timeout(TIMEOUT).unwrap()).await.unwrap();
        stop_one.send(()).unwrap();
    };
    let both = async {
        let one = async {
            let outcome = fetch(stopped_one).await;
            assert!(matches!(outcome, Err(FetchError::Stopped)), "{outcome:?}");
            let process = world.child();
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            let ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&now)).unwrap();
            assert_eq!(ended, 0, "the other one waits");
            stop_other.send(()).unwrap();
            process
        };
        let (process, outcome, ()) = tokio::join!(one, fetch(stopped_other), watch);
        assert!(matches!(outcome, Err(FetchError::Stopped)), "{outcome:?}");
        process
    };
    let process = tokio::time::timeout(TIMEOUT, both).await.expect("cancelling did not finish");
    assert!(has_ended(&process));
    assert_eq!((counts(&fetcher), fetcher.stats().failed), ((0, 0, 0, 0), 0));
}

#[tokio::test]
async fn what_does_not_fit_is_fetched_without_the_cache() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let large = "x".repeat(3 << 20);
    let content = large.clone();
    // Once with its size, and once without.
    let root = serve(move |path, mut stream| match path {
        "/sized" => respond(stream, "200 OK", "ETag: \"a\"\r\n", &content),
        _ => {
            let head = "HTTP/1.1 200 OK\r\nETag: \"a\"\r\nConnection: close\r\n\r\n";
            // The first process is killed meanwhile.
            drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(content.as_bytes())));
        }
    });
    let list =
        [cached(format!("{root}/sized")), cached(format!("{root}/unsized")), cached(world.file("l", &large))];
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    for name in ["sized", "unsized", "l"] {
        assert_eq!(world.read(name).len(), large.len(), "{name}");
    }
    let stats = fetcher.stats();
    assert_eq!((counts(&fetcher), stats.cache_files, stats.cache_used), ((0, 0, 3, 0), 0, 0));
}

#[tokio::test]
async fn a_version_that_does_not_fit_beside_the_last_one_is_kept_by_the_next_fetch() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let (requests, content) = (AtomicUsize::new(0), "x".repeat(700 << 10));
    let root = serve(move |_, stream| {
        let version = if requests.fetch_add(1, Ordering::Relaxed) == 0 { "a" } else { "b" };
        respond(stream, "200 OK", &format!("ETag: \"{version}\"\r\n"), &content);
    });
    let list = [cached(format!("{root}/file"))];
    for counted in [(0, 1, 0, 0), (0, 1, 1, 0), (0, 2, 1, 0)] {
        world.fetch_by(fetcher.clone(), &list).await.unwrap();
        assert_eq!(counts(&fetcher), counted);
        assert_eq!(world.read("file").len(), 700 << 10);
    }
    assert_eq!(fetcher.stats().cache_used, 700 << 10);
}

#[tokio::test]
async fn the_least_recently_used_files_are_removed() {
    let world = World::new();
    let fetcher = world.cached_fetcher(100);
    let paths = ["a", "b", "c"].map(|name| world.file(name, name.repeat(40)));
    let fetch = |index: usize| {
        let (world, fetcher, uri) = (&world, fetcher.clone(), cached(&paths[index]));
        async move { world.fetch_by(fetcher, &[uri]).await.unwrap() }
    };
    for index in [0, 1, 0, 2] {
        fetch(index).await;
    }
    assert_eq!((counts(&fetcher), fetcher.stats().cache_used), ((1, 3, 0, 1), 80));
    fetch(0).await;
    assert_eq!(counts(&fetcher), (2, 3, 0, 1), "`b` was removed");
    fetch(1).await;
    assert_eq!((counts(&fetcher), world.in_cache("content").len()), ((2, 4, 0, 2), 2));
}

#[tokio::test]
async fn an_entry_is_of_one_user_and_group() {
    if !is_root() {
        return;
    }
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let secret = world.file("secret", "of nobody");
    chown(&secret, Some(world.uid), Some(world.gid)).unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o440)).unwrap();
    let list = [cached(&secret)];
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    assert_eq!(counts(&fetcher), (1, 1, 0, 0));
    let (sandbox, reserved) = (world.sandbox(), reserved());
    let request = world.request(&list, &sandbox, &reserved);
    let other = FetchRequest { uid: world.uid - 1, gid: world.gid - 1, ..request };
    let error = fetcher.fetch(other, drop, pending::<()>()).await.unwrap_err();
    let error = error_chain::describe(&error);
    assert!(error.ends_with("cannot open it: Permission denied (os error 13)"), "{error}");
    // By its group it may read the file, but what another user has received is not used.
    chown(world.sandbox(), Some(world.uid - 1), Some(world.gid)).unwrap();
    let member = FetchRequest { uid: world.uid - 1, ..request };
    fs::remove_file(world.inside("secret")).unwrap();
    fetcher.fetch(member, drop, pending::<()>()).await.unwrap();
    assert_eq!(counts(&fetcher), (1, 2, 0, 0));
    // Whoever may not read it any more does not get it.
    fs::set_permissions(&secret, Permissions::from_mode(0o400)).unwrap();
    let error = fetcher.fetch(member, drop, pending::<()>()).await.unwrap_err();
    assert!(error_chain::describe(&error).ends_with("Permission denied (os error 13)"), "{error}");
}

#[tokio::test]
async fn a_local_file_is_received_again_when_it_was_changed() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let path = world.file("x", "one");
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    let time = SystemTime::now() - Duration::from_secs(3600);
    let set_time = || fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
    set_time();
    for _ in 0..2 {
        world.fetch_by(fetcher.clone(), &[cached(&path)]).await.unwrap();
        assert_eq!((world.read("x"), world.mode("x")), (b"one".to_vec(), 0o755));
    }
    assert_eq!(counts(&fetcher), (1, 1, 0, 0));
    // With the same size and time of modification.
    fs::write(&path, "two").unwrap();
    set_time();
    world.fetch_by(fetcher.clone(), &[cached(&path)]).await.unwrap();
    assert_eq!((world.read("x"), counts(&fetcher)), (b"two".to_vec(), (1, 2, 0, 0)));
}

#[tokio::test]
async fn containers_get_copies() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let archive = world.file("a.tar.gz", gzip(&tar(&[Member::file("member", b"m")])));
    let plain = world.file("plain", "p");
    let list = [
        cached(&archive),
        cached(&plain),
        Uri { executable: true, output_file: Some("run".to_owned()), ..cached(&plain) },
    ];
    for _ in 0..2 {
        world.fetch_by(fetcher.clone(), &list).await.unwrap();
        assert_eq!(world.contents(), ["member", "plain", "run"]);
        assert_eq!(
            (world.read("member"), world.read("plain"), world.mode("run")),
            (b"m".into(), b"p".into(), 0o755)
        );
        let metadata = fs::metadata(world.inside("plain")).unwrap();
        assert_eq!((metadata.nlink(), metadata.uid(), metadata.gid()), (1, world.uid, world.gid));
        // This changes nothing of the cache.
        fs::write(world.inside("plain"), "changed").unwrap();
    }
    assert_eq!(counts(&fetcher), (4, 2, 0, 0));
    let own = nix::unistd::geteuid().as_raw();
    for name in world.in_cache("content") {
        let metadata = fs::metadata(world.cache().join("content").join(name)).unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o777), (own, 0o600));
    }
}

#[tokio::test]
async fn the_hash_of_cached_content_is_verified() {
    let world = World::new();
    let fetcher = world.cached_fetcher(MIB);
    let path = world.file("x", "content");
    let good = HEXLOWER.encode(&Sha256::digest(b"content"));
    let with = |hash: &str| [Uri { sha256: Some(hash.to_owned()), ..cached(&path) }];
    for _ in 0..2 {
        world.fetch_by(fetcher.clone(), &with(&good)).await.unwrap();
    }
    assert_eq!(counts(&fetcher), (1, 1, 0, 0));
    // The disk has changed it.
    let [name] = &world.in_cache("content")[..] else { panic!() };
    fs::write(world.cache().join("content").join(name), "cOntent").unwrap();
    let error = world.fetch_by(fetcher.clone(), &with(&good)).await.unwrap_err();
    let error = error_chain::describe(&error);
    assert!(error.ends_with(&format!("expected `{good}`")), "{error}");
    world.fetch_by(fetcher.clone(), &with(&good)).await.unwrap();
    assert_eq!((world.read("x"), counts(&fetcher)), (b"content".to_vec(), (2, 2, 0, 0)));
}

#[tokio::test]
async fn the_cache_survives_its_agent() {
    let world = World::new();
    let paths = ["a", "b", "c"].map(|name| world.file(name, name));
    let list = paths.each_ref().map(cached);
    let fetcher = world.cached_fetcher(MIB);
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    let refused = world.try_cached_fetcher(MIB).unwrap_err();
    assert!(matches!(refused, CacheError::Lock { .. }), "{refused:?}");
    assert!(refused.to_string().contains("`cache_dir` of `[fetch]`"), "{refused}");
    drop(fetcher);

    // What an agent leaves behind that dies, and damage.
    let (entries, content) = (world.in_cache("entries"), world.in_cache("content"));
    assert_eq!((entries.len(), content.len()), (3, 3));
    let at = |directory: &str, name: &str| world.cache().join(directory).join(name);
    fs::write(at("drafts", "7"), "part").unwrap();
    fs::write(at("content", &format!("{}-99", entries[0])), "replaced").unwrap();
    fs::write(at("entries", &entries[1]), "{").unwrap();
    let of_third = content.iter().find(|name| name.starts_with(&entries[2])).unwrap();
    fs::write(at("content", of_third), "another size").unwrap();
    symlink("/etc/passwd", at("entries", &"0".repeat(64))).unwrap();

    let fetcher = reopened(&world, MIB).await;
    assert_eq!((fetcher.stats().cache_files, fetcher.stats().cache_used), (1, 1));
    assert_eq!(world.in_cache("entries"), entries[..1]);
    assert_eq!((world.in_cache("content").len(), world.in_cache("drafts").len()), (1, 0));
    world.fetch_by(fetcher.clone(), &list).await.unwrap();
    assert_eq!(counts(&fetcher), (1, 2, 0, 0));
    drop(fetcher);

    // A smaller cache keeps what was used last.
    let fetcher = reopened(&world, 2).await;
    assert_eq!((fetcher.stats().cache_files, world.in_cache("content").len()), (2, 2));
}

/// Opens the cache when the jobs of the agent before have ended.
async fn reopened(world: &World, size: u64) -> Fetcher {
    let open = async {
        loop {
            match world.try_cached_fetcher(size) {
                Ok(fetcher) => return fetcher,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(TIMEOUT, open).await.expect("the cache stays locked")
}

#[tokio::test]
async fn a_directory_that_others_can_enter_is_no_cache() {
    let world = World::new();
    fs::create_dir(world.cache()).unwrap();
    fs::set_permissions(world.cache(), Permissions::from_mode(0o755)).unwrap();
    let refused = world.try_cached_fetcher(MIB).unwrap_err();
    assert!(matches!(refused, CacheError::NotPrivate { .. }), "{refused:?}");
}
