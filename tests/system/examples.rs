//! The chains in `examples/`, and the one that agents have unless they are told another one.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::fs;

use cofferdam::config::Isolation;
use cofferdam_core::model::Request;
use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id};

/// What root in a container of `untrusted.toml` tries, and what it sees.
const ATTEMPTS: &str = "\
    busybox grep -E '^(CapBnd|CapEff|NoNewPrivs|Seccomp):' /proc/self/status; \
    busybox hostname; ulimit -c; \
    busybox mknod /block b 7 0 || echo no device file; busybox head -c 1 /block || echo no device; \
    busybox mount -t tmpfs none /tmp || echo no mount; \
    busybox unshare -n true || echo no namespace; \
    busybox hostname other || echo no host name; \
    busybox dmesg >/dev/null || echo no kernel log; \
    busybox chroot / true && busybox chown 1000 /block && busybox su -s /bin/true nobody && echo ordinary";

#[test]
fn root_in_an_untrusted_container_has_what_docker_gives_it() {
    if is_root("the chain of examples/untrusted.toml") {
        attempt(include_str!("../../examples/untrusted.toml"), 1, "0");
    }
}

#[test]
fn root_has_what_docker_gives_it_unless_the_operator_chooses_otherwise() {
    if is_root("the shipped chain") {
        attempt(Isolation::Docker.text(), 0, "0");
    }
}

/// Runs the attempts with a chain, in which containers have `no_new_privs` and a limit for core files.
fn attempt(chain: &'static str, no_new_privs: u32, core: &str) {
    let mut world = World::new();
    world.chain = Some(chain);
    let daemon = Daemon::start(&world);
    let rootfs = world.rootfs();
    fs::create_dir_all(rootfs.join("etc")).unwrap();
    fs::create_dir_all(rootfs.join("tmp")).unwrap();
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n").unwrap();
    let mut request = Request::shell(id("web"), ATTEMPTS);
    request.rootfs = Some(rootfs);
    daemon.launch(&request).unwrap();
    let termination = daemon.wait(&id("web")).unwrap();
    let sandbox = world.config.work_dir.join("containers/web");
    let read = |file: &str| fs::read_to_string(sandbox.join(file)).unwrap();
    assert_eq!(
        read("stdout").split_whitespace().collect::<Vec<_>>().join(" "),
        format!(
            "CapEff: 00000000a80425fb CapBnd: 00000000a80425fb NoNewPrivs: {no_new_privs} Seccomp: 2 web {core} \
             no device no mount no namespace no host name no kernel log ordinary"
        ),
        "{}",
        read("stderr")
    );
    assert_eq!(termination.exit_status, Some(0));
    daemon.remove(&id("web")).unwrap();
    daemon.terminate();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
