//! `linux/capabilities`.

use std::collections::BTreeSet;
use std::path::Path;

use cofferdam_core::model::{ContainerClass, Request};
use cofferdam_linux::capability;
use cofferdam_tests::world::{id, run};
use cofferdam_tests::{is_root, text};
use rustix::fs::{XattrFlags, setxattr};
use serde_json::json;

use super::{Fixture, across_restart, isolator, value, world};

const STATUS: &str = "probe status CapInh CapPrm CapEff CapBnd CapAmb";

/// Inheritable, permitted, effective, bounding and ambient set of `/proc/self/status`.
fn sets(status: &str) -> [u64; 5] {
    ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]
        .map(|name| u64::from_str_radix(value(status, name), 16).unwrap_or_else(|_| panic!("{status}")))
}

fn names(names: &[&str]) -> Option<BTreeSet<String>> {
    Some(names.iter().map(|&name| name.to_owned()).collect())
}

fn bits(names: &[&str]) -> u64 {
    names.iter().map(|name| 1 << capability::number(name).unwrap()).sum()
}

impl Fixture {
    fn with_sets(&self, user: &str, effective: Option<&[&str]>, bounding: Option<&[&str]>) -> Request {
        let mut request = self.request("web", user, STATUS);
        request.linux.effective_capabilities = effective.and_then(names);
        request.linux.bounding_capabilities = bounding.and_then(names);
        request
    }
}

/// File capabilities of a copy of the probe, in the format of the kernel.
fn set_file_capabilities(file: &Path, effective: bool, permitted: u64, inheritable: u64) {
    let halves = |set: u64| [set as u32, (set >> 32) as u32];
    let ([p0, p1], [i0, i1]) = (halves(permitted), halves(inheritable));
    let words = [0x0200_0000 | u32::from(effective), p0, i0, p1, i1];
    let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    setxattr(file, "security.capability", &value, XattrFlags::empty()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_has_what_is_requested_or_configured() {
    if !is_root("capabilities") {
        return;
    }
    let config =
        json!({ "effective_capabilities": ["CHOWN"], "bounding_capabilities": ["CHOWN", "KILL", "NET_RAW"] });
    let fixture = Fixture::start(vec![isolator("linux/capabilities", config)]).await;
    let (chown, kill) = (bits(&["CHOWN"]), bits(&["CHOWN", "KILL"]));
    let all = bits(&["CHOWN", "KILL", "NET_RAW"]);
    // An ordinary user keeps its own as ambient capabilities. Root gets all of the bounding set when it executes a file.
    for (user, effective, bounding, expected) in [
        ("web", None, None, [chown, chown, chown, all, chown]),
        ("root", None, None, [0, all, all, all, 0]),
        ("web", Some(&["CHOWN", "KILL"][..]), None, [kill, kill, kill, all, kill]),
        ("root", None, Some(&["CHOWN"][..]), [0, chown, chown, chown, 0]),
        ("web", Some(&[][..]), Some(&[][..]), [0; 5]),
        ("root", Some(&[][..]), Some(&[][..]), [0; 5]),
    ] {
        let status = fixture.run(fixture.with_sets(user, effective, bounding)).await;
        assert_eq!(sets(&status), expected, "{user}, {effective:?}, {bounding:?}");
    }
    let message = fixture.error(fixture.with_sets("root", Some(&["SYS_ADMIN"]), None)).await;
    assert!(message.contains("`linux/capabilities`") && message.contains("`SYS_ADMIN`"), "{message}");
    let message = fixture.error(fixture.with_sets("web", None, Some(&["MKNOD"]))).await;
    assert!(message.contains("`MKNOD` in its bounding set"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_bounding_can_be_obtained_from_a_file() {
    if !is_root("capabilities") {
        return;
    }
    let config = json!({ "effective_capabilities": [], "bounding_capabilities": ["CHOWN", "NET_RAW"] });
    let fixture = Fixture::start(vec![isolator("linux/capabilities", config)]).await;
    let bin = fixture.world.rootfs().join("bin");
    for (name, effective) in [("within", true), ("beyond", false)] {
        std::fs::copy(bin.join("probe"), bin.join(name)).unwrap();
        set_file_capabilities(&bin.join(name), effective, bits(&["NET_RAW", "SYS_ADMIN"]), bits(&["CHOWN"]));
    }
    set_file_capabilities(&bin.join("within"), true, bits(&["NET_RAW"]), 0);
    let raw = bits(&["NET_RAW"]);
    let run = |line: &'static str| fixture.run(fixture.request("web", "web", line));
    let status = run("within status CapInh CapPrm CapEff CapBnd CapAmb").await;
    assert_eq!(sets(&status)[1..3], [raw, raw], "{status}");
    // Nothing becomes permitted by the inheritable set of the file.
    let status = run("beyond status CapInh CapPrm CapEff CapBnd CapAmb").await;
    assert_eq!(sets(&status)[..3], [0, raw, 0], "{status}");
    let status = run(STATUS).await;
    assert_eq!(sets(&status)[..3], [0; 3], "{status}");
}

/// Changing owners, raw sockets and nodes of devices each need one capability.
#[tokio::test(flavor = "multi_thread")]
async fn what_needs_a_capability_fails_without_it() {
    if !is_root("capabilities") {
        return;
    }
    let fixture = Fixture::start(vec![isolator("linux/capabilities", json!({}))]).await;
    let attempts = format!(
        "cd /; touch file && busybox chown 5 file && echo chown; busybox mknod node c 1 3 && echo mknod; \
         probe call {} 2 3 1; busybox mount -t tmpfs none /mnt && echo mount",
        libc::SYS_socket
    );
    let attempt = |user: &'static str, effective: Option<&[&str]>| {
        let mut request = fixture.request("web", user, &attempts);
        request.linux.effective_capabilities = effective.and_then(names);
        fixture.run(request)
    };
    assert_eq!(attempt("root", None).await, "chown\nmknod\nok\nmount\n");
    assert_eq!(attempt("root", Some(&["CHOWN"])).await, "chown\n1\n");
    assert_eq!(attempt("root", Some(&["MKNOD", "NET_RAW"])).await, "mknod\nok\n");
    assert_eq!(attempt("root", Some(&[])).await, "1\n");
}

#[test]
fn nested_and_debug_containers_are_restricted_also_by_a_later_agent() {
    if !is_root("capabilities") {
        return;
    }
    let config = json!({ "bounding_capabilities": ["CHOWN", "KILL", "NET_RAW", "SYS_CHROOT"] });
    let chown = bits(&["CHOWN"]);
    across_restart(
        &world(vec![isolator("linux/capabilities", config)]),
        async |fixture| {
            let mut pod = fixture.request("pod", "root", STATUS);
            pod.linux.bounding_capabilities = names(&["CHOWN"]);
            fixture.launch(pod).await;
        },
        async |fixture| {
            let mut debug = Request::shell(id("pod.debug"), STATUS);
            debug.class = ContainerClass::Debug;
            assert_eq!(sets(&run(&fixture.agent, debug).await), [0, chown, chown, chown, 0]);
            let nested = fixture.request("pod.nested", "root", STATUS);
            let nested = sets(&run(&fixture.agent, nested).await);
            assert_eq!(nested[3], bits(&["CHOWN", "KILL", "NET_RAW", "SYS_CHROOT"]));
            let status = text(&fixture.agent.inspect(&id("pod")).unwrap().logs.stdout.unwrap());
            assert_eq!(sets(&status)[3], chown);
            fixture.destroy("pod").await;
        },
    );
}
