//! Credentials for servers.

use std::num::NonZeroUsize;
use std::sync::Arc;

use cofferdam_core::blocking::WorkPool;
use cofferdam_core::config::FetchCacheConfig;
use parking_lot::Mutex;

use super::server::{Request, serve_requests};
use super::*;

const SECRET: &str = "c2VjcmV0";

/// A server for those who know the secret. Returns what others have presented as well.
fn serve_secret(redirect: Option<String>) -> (String, Arc<Mutex<Vec<Option<String>>>>) {
    let presented = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&presented);
    let root = serve_requests(move |request: &Request, stream| {
        let authorization = request.header("authorization").map(str::to_owned);
        let expected = format!("Basic {}", data_encoding::BASE64.encode(format!("me:{SECRET}").as_bytes()));
        let is_known = authorization.as_ref() == Some(&expected);
        seen.lock().push(authorization);
        match &redirect {
            _ if !is_known => respond(stream, "401 Unauthorized", "", "no"),
            Some(to) => respond(stream, "302 Found", &format!("Location: {to}\r\n"), ""),
            None => respond(stream, "200 OK", "ETag: \"a\"\r\n", "content"),
        }
    });
    (root, presented)
}

impl World {
    fn netrc(&self, content: &str, mode: u32) -> PathBuf {
        let path = self.outside("netrc");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }
}

#[tokio::test]
async fn a_server_gets_its_credentials_also_for_the_cache() {
    let world = World::new();
    let (root, _) = serve_secret(None);
    let netrc = world.netrc(&format!("machine {root} login me password {SECRET}"), 0o600);
    let cache = FetchCacheConfig { directory: world.outside("cache"), size: 1 << 20 };
    let pool = WorkPool::start(1, NonZeroUsize::MIN).unwrap();
    let fetcher = world.fetcher().with_credentials(Some(&netrc)).cached(&cache, pool).unwrap();
    let list =
        [named(format!("{root}/x"), "plain"), Uri { cache: true, ..named(format!("{root}/x"), "cached") }];
    for _ in 0..2 {
        world.fetch_by(fetcher.clone(), &list).await.unwrap();
        for name in ["plain", "cached"] {
            assert_eq!(fs::read(world.inside(name)).unwrap(), b"content", "{name}");
        }
    }
    // The container's user cannot read the file, and files of this machine need none.
    if is_root() {
        let error = world.fetch_by(fetcher, &[uri(netrc.to_str().unwrap())]).await.unwrap_err();
        assert!(error_chain::describe(&error).contains("Permission denied"), "{error:?}");
    }
    let error = world.fetch_by(world.fetcher(), &list).await.unwrap_err();
    assert!(error_chain::describe(&error).contains("401 Unauthorized"), "{error:?}");
}

#[tokio::test]
async fn no_other_server_gets_them() {
    let world = World::new();
    let (other, presented) = serve_secret(None);
    let (root, _) = serve_secret(Some(format!("{other}/y")));
    let netrc = world.netrc(&format!("machine {root} login me password {SECRET}"), 0o600);
    let fetcher = world.fetcher().with_credentials(Some(&netrc));
    for uris in [[uri(format!("{root}/x"))], [uri(format!("{other}/x"))]] {
        let error = world.fetch_by(fetcher.clone(), &uris).await.unwrap_err();
        let shown = error_chain::describe(&error);
        assert!(shown.contains("401 Unauthorized") && !shown.contains(SECRET), "{shown}");
    }
    assert_eq!(*presented.lock(), [None, None]);
    // For `https` only.
    let secure = root.replace("http://", "");
    let netrc = world.netrc(&format!("machine {secure} login me password {SECRET}"), 0o600);
    let fetcher = world.fetcher().with_credentials(Some(&netrc));
    let error = world.fetch_by(fetcher, &[uri(format!("{root}/x"))]).await.unwrap_err();
    assert!(error_chain::describe(&error).contains("401 Unauthorized"), "{error:?}");
}

#[tokio::test]
async fn a_file_that_others_can_read_is_refused() {
    let world = World::new();
    let (root, presented) = serve_secret(None);
    let netrc = world.netrc(&format!("machine {root} login me password {SECRET}"), 0o644);
    let fetcher = world.fetcher().with_credentials(Some(&netrc));
    let error = world.fetch_by(fetcher.clone(), &[uri(format!("{root}/x"))]).await.unwrap_err();
    let shown = error_chain::describe(&error);
    assert!(shown.contains("`credentials` of `[fetch]`") && shown.contains("chmod 600"), "{shown}");
    assert!(!shown.contains(SECRET), "{shown}");
    // Files of this machine need none.
    world.fetch_by(fetcher, &[uri(world.file("good", "g"))]).await.unwrap();
    assert!(presented.lock().is_empty());
}
