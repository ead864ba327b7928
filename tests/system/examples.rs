//! The chains in `examples/`, and the one that agents have unless they are told another one.

#![expect(clippy::unwrap_used, reason = "a test fails where its expectations do")]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cofferdam::config::Isolation;
use cofferdam_core::model::{Request, Resources, Secret, Volume, VolumeSource};
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
fn attempt(chain: &str, no_new_privs: u32, core: &str) {
    let mut world = World::new();
    world.chain = Some(chain.to_owned());
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

/// Uses the cache, the token and `sudo`'s system calls, and then fills the disk.
const JOB: &str = "\
    echo $TOKEN | busybox rev > /cache/token; \
    busybox su -s /bin/sh web -c 'echo unprivileged; busybox id -u'; \
    busybox mount -t tmpfs none /mnt 2>/dev/null || echo no mount; \
    cd $MESOS_SANDBOX; while dd if=/dev/zero of=file$((n=n+1)) bs=1M count=4 2>/dev/null; do :; done";

#[test]
fn a_job_has_a_cache_and_secrets_and_cannot_fill_the_disk() {
    if !is_root("the chain of examples/ci.toml") {
        return;
    }
    let mut world = World::new();
    let (cache, secrets) = (world.directory().join("cache"), world.directory().join("secrets"));
    fs::create_dir(&cache).unwrap();
    fs::create_dir(&secrets).unwrap();
    fs::set_permissions(&secrets, Permissions::from_mode(0o700)).unwrap();
    fs::write(secrets.join("token"), "hunter2").unwrap();
    let chain = include_str!("../../examples/ci.toml")
        .replace("/var/cache/ci", &cache.display().to_string())
        .replace("/etc/cofferdam/ci-secrets", &secrets.display().to_string());
    world.chain = Some(chain);
    let daemon = Daemon::start(&world);

    let mut request = Request::shell(id("job"), JOB);
    request.rootfs = Some(world.rootfs());
    request.resources = Resources::default().with("disk", 16.0);
    request.command.secrets =
        [("TOKEN".to_owned(), Secret::Reference { name: "token".into(), key: None })].into();
    let source = |path: &Path| VolumeSource::HostPath { path: path.to_owned(), propagation: None };
    let volume = |path| Volume { container_path: "/cache".into(), read_only: false, source: source(path) };
    request.volumes = vec![volume(&cache)];
    daemon.launch(&request).unwrap();
    let termination = daemon.wait(&id("job")).unwrap();
    let message = termination.message.unwrap_or_default();
    assert!(message.contains("disk limit of 16.0 MiB exceeded"), "{message}");
    assert_eq!(fs::read_to_string(cache.join("token")).unwrap(), "2retnuh\n");
    let output = fs::read_to_string(world.config.work_dir.join("containers/job/stdout")).unwrap();
    assert_eq!(output, "unprivileged\n1234\nno mount\n");
    daemon.remove(&id("job")).unwrap();

    request.volumes = vec![volume(&secrets)];
    let error = format!("{:?}", daemon.launch(&request).unwrap_err());
    assert!(error.contains("`allowed_paths`"), "{error}");
    daemon.terminate();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
