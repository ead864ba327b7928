//! Redirects: each target is resolved and checked.

use super::*;

/// A server that redirects from `/to/HOST/REST` to `//HOST/REST`, where `/then/` of the rest stands for `/to/`.
fn serve_redirects(listener: TcpListener) {
    serve_on(listener, move |path, stream| match path.strip_prefix("/to/") {
        Some(target) => {
            let target = target.replace("/then/", "/to/");
            respond(stream, "307 Temporary Redirect", &format!("Location: //{target}\r\n"), "");
        }
        None => respond(stream, "200 OK", "", "content"),
    });
}

/// With the addresses of a network namespace of its own.
#[tokio::test]
#[ignore = "started by another test"]
async fn distances() {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    serve_redirects(listener);
    let world = World::new();
    let fetch = async |from: &str, to: &str, hosts: &[&str]| {
        let hosts = hosts.iter().map(ToString::to_string).collect();
        let limits = FetchLimits { hosts, ..FetchLimits::default() };
        let uris = [named(format!("http://{from}/to/{to}/file"), "file")];
        let fetched = world.fetch_by(world.fetcher().limited(limits), &uris).await;
        fetched.map_err(|error| error_chain::describe(&error))
    };
    let [public, private, local, name, mapped] =
        ["203.0.113.1", "10.0.0.1", "127.0.0.1", "localhost", "[::ffff:127.0.0.1]"]
            .map(|host| format!("{host}:{port}"));
    let through_public = |to: &str| format!("{public}/then/{to}");
    for (from, to) in [
        (&local, &private),
        (&local, &public),
        (&private, &public),
        (&public, &through_public(&public)),
        (&name, &name),
    ] {
        fetch(from, to, &[]).await.unwrap_or_else(|error| panic!("{from} to {to}: {error}"));
    }
    for (from, to) in [
        (&public, &private),
        (&public, &local),
        (&private, &local),
        (&private, &name),
        (&public, &mapped),
        (&public, &through_public(&name)),
        (&local, &through_public(&local)),
    ] {
        let error = fetch(from, to, &[]).await.expect_err(to);
        assert!(error.contains("which is at an address of"), "{from} to {to}: {error}");
    }
    // Unless the operator has listed the host.
    fetch(&public, &private, &["203.0.113.1", "10.0.0.1"]).await.unwrap();
    fetch(&public, &name, &["203.0.113.1", "localhost"]).await.unwrap();
    for hosts in [&["10.0.0.1"][..], &["203.0.113.1"], &["*.example.com"]] {
        let error = fetch(&public, &private, hosts).await.unwrap_err();
        assert!(error.contains("is not among `hosts` of `[fetch]`"), "{error}");
    }
}

#[test]
fn redirects_lead_nowhere_closer_than_the_server() {
    if !is_root() {
        eprintln!("skipped: requires root");
        return;
    }
    let script = "ip link set lo up && ip address add 203.0.113.1/32 dev lo && ip address add 10.0.0.1/32 dev lo && \
                  exec \"$0\" --ignored --exact --nocapture fetch::tests::redirects::distances";
    let program = std::env::current_exe().unwrap();
    let status = Command::new("unshare").args(["-n", "sh", "-c", script]).arg(program).status().unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test]
async fn each_redirect_is_checked() {
    let world = World::new();
    let root = serve(|path, stream| {
        let to = |location: &str| match path.rsplit_once('/').unwrap().1 {
            "none" => String::new(),
            _ => format!("Location: {location}\r\n"),
        };
        let location = match path.rsplit_once('/').unwrap().1 {
            "file" => "file:///etc/passwd",
            "ftp" => "ftp://host/x",
            "malformed" => "http://a b/",
            "relative" => "../found?x#y",
            "secret" => "http://user:secret@127.0.0.1:1/x?secret",
            "none" => "",
            _ => return respond(stream, "200 OK", "", path),
        };
        respond(stream, "302 Found", &to(location), "");
    });
    for (path, reason) in [
        ("file", "redirects to `file:///etc/passwd`, which is neither `http` nor `https`"),
        ("ftp", "redirects to `ftp://host/x`, which is neither"),
        ("none", "`Location` that is missing"),
        ("malformed", "not a valid URL"),
        ("secret", "the server redirects to `http://127.0.0.1:1/x?…`: cannot download it"),
    ] {
        let error = world.fetch_error(&[uri(format!("{root}/a/{path}"))]).await;
        assert!(error.contains(reason) && !error.contains("secret@"), "{path}: {error}");
    }
    world.fetch(&[named(format!("{root}/a/b/relative"), "x")]).await.unwrap();
    assert_eq!(fs::read_to_string(world.inside("x")).unwrap(), "/a/found?x");

    let limited = |limits| world.fetcher().limited(limits);
    let none = FetchLimits { redirects: 0, ..FetchLimits::default() };
    let error = world.fetch_by(limited(none), &[uri(format!("{root}/a/relative"))]).await.unwrap_err();
    assert!(error_chain::describe(&error).contains("`max_redirects` of `[fetch]` is 0"), "{error:?}");
    let small = FetchLimits { bytes: 4, ..FetchLimits::default() };
    let error = world.fetch_by(limited(small), &[uri(format!("{root}/longer"))]).await.unwrap_err();
    assert!(error_chain::describe(&error).contains("the server sends 7 bytes"), "{error:?}");
}
