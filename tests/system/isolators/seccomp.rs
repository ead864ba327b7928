//! `linux/seccomp`.

use std::fs;
use std::sync::Arc;

use cofferdam_core::config::PluginConfig;
use cofferdam_core::model::{ContainerClass, Request, SeccompRequest};
use cofferdam_tests::is_root;
use cofferdam_tests::world::{World, id, run};
use serde_json::{Value as Json, json};

use super::{FOURTEEN, Fixture, across_restart, isolator, value, world_with};

const EPERM: &str = "1";
const ENOSYS: &str = "38";
const ENOTTY: &str = "25";

/// `linux/seccomp` after `linux/capabilities` with Docker's capabilities.
fn confined(table: Json) -> Vec<PluginConfig> {
    let capabilities = json!({ "bounding_capabilities": FOURTEEN });
    vec![isolator("linux/capabilities", capabilities), isolator("linux/seccomp", table)]
}

/// Lines that make calls, and what each prints.
fn script(calls: &[(&str, &str)]) -> (String, String) {
    let lines: Vec<String> =
        calls.iter().map(|(call, _)| format!("echo \"{call}: $(probe {call})\"")).collect();
    let expected: Vec<String> = calls.iter().map(|(call, result)| format!("{call}: {result}\n")).collect();
    (lines.join("; "), expected.concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_default_profile_denies_what_containers_do_not_need() {
    if !is_root("seccomp filters") {
        return;
    }
    let fixture = Fixture::start(confined(json!({}))).await;
    let (line, expected) = script(&[
        // getpid, mount, unshare, keyctl, userfaultfd, io_uring_setup, kexec_load, clone3.
        ("call 39", "ok"),
        ("call 165", EPERM),
        ("call 272 0x10000000", EPERM),
        ("call 250 0 0", EPERM),
        ("call 323", EPERM),
        ("call 425 1", EPERM),
        ("call 246", EPERM),
        ("call 435", ENOSYS),
        // clone with a new user namespace; socket of AF_INET, AF_VSOCK, and AF_VSOCK with bits that the kernel ignores.
        ("call 56 0x10000011", EPERM),
        ("call 41 2 1", "ok"),
        ("call 41 40 1", EPERM),
        ("call 41 0x100000028 1", EPERM),
        // personality: query, and addresses without randomisation.
        ("call 135 0xffffffff", "ok"),
        ("call 135 0x40000", EPERM),
        // ioctl: TCGETS of what is no terminal; FS_IOC_FSSETXATTR, also with bits that the kernel ignores; file_setattr.
        ("call 16 0 0x5401", ENOTTY),
        ("call 16 0 0x401c5820", EPERM),
        ("call 16 0 0x1401c5820", EPERM),
        ("call 469 0 0 0 32", EPERM),
        // One that does not exist yet.
        ("call 1000", ENOSYS),
    ]);
    for user in ["root", "web"] {
        assert_eq!(fixture.run(fixture.request("web", user, &line)).await, expected, "{user}");
    }
}

/// The same calls have other numbers in the other two modes of the processor.
#[tokio::test(flavor = "multi_thread")]
async fn no_other_architecture_evades_the_filter() {
    if !is_root("seccomp filters") {
        return;
    }
    let fixture = Fixture::start(confined(json!({}))).await;
    let (line, expected) = script(&[
        // i386: getpid, mount, umount2, unshare, keyctl, clone3, socket of AF_VSOCK directly and by socketcall.
        ("call32 20", "ok"),
        ("call32 21", EPERM),
        ("call32 52", EPERM),
        ("call32 310 0x10000000", EPERM),
        ("call32 288", EPERM),
        ("call32 435", ENOSYS),
        ("call32 120 0x10000011", EPERM),
        ("call32 359 40 1", EPERM),
        ("call32 102 1 0", EPERM),
        // ioctl: TCGETS, FS_IOC_FSSETXATTR.
        ("call32 54 0 0x5401", ENOTTY),
        ("call32 54 0 0x401c5820", EPERM),
        // The number of mount on x86-64 is one of i386 that is allowed, and the reverse.
        ("call32 165", "14"),
        ("call 20 1 0 0", "ok"),
        // x32: getpid, mount, unshare, and execve by the number that only x32 has.
        ("callx32 39", ENOSYS),
        ("callx32 165", ENOSYS),
        ("callx32 272 0x10000000", ENOSYS),
        ("callx32 520", ENOSYS),
    ]);
    let output = fixture.run(fixture.request("web", "root", &line)).await;
    // Kernels without i386 kill processes that use its interrupt.
    if !output.contains("call32 20: ok") {
        eprintln!("SKIPPED i386: {output}");
        return;
    }
    assert_eq!(output, expected);
}

/// What the filter denies even to root with all capabilities, the kernel would not.
#[tokio::test(flavor = "multi_thread")]
async fn files_cannot_be_given_to_another_project_but_without_a_filter() {
    if !is_root("seccomp filters") {
        return;
    }
    let fixture = Fixture::start(vec![isolator("linux/seccomp", json!({}))]).await;
    // Its own file, with attributes at an address that is none.
    let line = "touch file; probe call 16 0 0x401c5820 1 < file";
    let request = || fixture.request("web", "root", &format!("cd $MESOS_SANDBOX; {line}"));
    assert_eq!(fixture.run(request()).await, format!("{EPERM}\n"));
    let mut unconfined = request();
    unconfined.linux.seccomp = Some(SeccompRequest { profile: None, unconfined: true });
    let output = fixture.run(unconfined).await;
    // EFAULT; a file system without attributes does not look at them.
    assert!(["14\n", "25\n", "95\n"].contains(&output.as_str()), "{output}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_follow_the_capabilities_of_the_container() {
    if !is_root("seccomp filters") {
        return;
    }
    // unshare without flags, and a chroot to nowhere.
    let line = "probe call 272 0; probe call 161 0";
    let fixture = Fixture::start(vec![isolator("linux/seccomp", json!({}))]).await;
    assert_eq!(fixture.run(fixture.request("web", "root", line)).await, "ok\n14\n");
    let fixture = Fixture::start(confined(json!({}))).await;
    assert_eq!(fixture.run(fixture.request("web", "root", line)).await, "1\n14\n");
    let mut request = fixture.request("web", "root", line);
    request.linux.bounding_capabilities = Some([].into());
    assert_eq!(fixture.run(request).await, "1\n1\n");
}

const PROFILE: &str = r#"{
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [
        { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 },
        { "names": ["kexec_load"], "action": "SCMP_ACT_KILL_PROCESS" },
        { "names": ["alarm"], "action": "SCMP_ACT_ERRNO", "args": [{ "index": 0, "value": 5, "op": "SCMP_CMP_GT" }] }
    ]
}"#;

fn with_profile() -> Arc<World> {
    world_with(|directory| {
        fs::write(directory.join("custom.json"), PROFILE).unwrap();
        fs::write(directory.join("broken.json"), PROFILE.replace("kexec_load", "kexec_lode")).unwrap();
        vec![isolator("linux/seccomp", json!({ "config_dir": directory }))]
    })
}

impl Fixture {
    fn with_profile(&self, name: &str, user: &str, line: &str) -> Request {
        let mut request = self.request("web", user, line);
        request.linux.seccomp = Some(SeccompRequest { profile: Some(name.to_owned()), unconfined: false });
        request
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_profile_of_the_operator_is_enforced() {
    if !is_root("seccomp filters") {
        return;
    }
    let world = with_profile();
    let fixture = Fixture { agent: world.start().await.unwrap(), world };
    // A call that kills ends with SIGSYS: 128 + 31. Without i386 in the profile, its calls do too.
    let line = "busybox mkdir /tmp/x 2>&1; probe call 37 5; probe call 37 6; \
                probe call 246; echo $?; probe call32 20; echo $?";
    let expected = "mkdir: can't create directory '/tmp/x': No space left on device\nok\n1\n159\n159\n";
    for user in ["root", "web"] {
        assert_eq!(fixture.run(fixture.with_profile("custom.json", user, line)).await, expected, "{user}");
    }
    let message = fixture.error(fixture.with_profile("broken.json", "web", "true")).await;
    for part in ["`linux/seccomp`", "`broken.json`", "`syscalls[1].names[0]`", "`kexec_lode`", "line 5"] {
        assert!(message.contains(part), "{message}");
    }
    let mut unconfined = fixture.request("web", "root", "probe status Seccomp; probe call 272 0");
    unconfined.linux.seccomp = Some(SeccompRequest { profile: None, unconfined: true });
    assert_eq!(fixture.run(unconfined).await, "Seccomp:\t0\nok\n");
}

#[test]
fn nested_and_debug_containers_have_filters_also_with_a_later_agent() {
    if !is_root("seccomp filters") {
        return;
    }
    across_restart(
        &with_profile(),
        async |fixture| {
            let mut pod = fixture.with_profile("custom.json", "root", "true");
            pod.id = id("pod");
            fixture.launch(pod).await;
        },
        async |fixture| {
            let line = "probe status Seccomp; probe call 246; echo $?";
            let nested = fixture.request("pod.nested", "web", line);
            assert_eq!(run(&fixture.agent, nested).await, "Seccomp:\t2\n1\n0\n");
            let mut debug = Request::shell(id("pod.debug"), line);
            debug.class = ContainerClass::Debug;
            let output = run(&fixture.agent, debug).await;
            assert_eq!((value(&output, "Seccomp"), output.ends_with("159\n")), ("2", true), "{output}");
            fixture.destroy("pod").await;
        },
    );
}

/// The whole set-up after the filter is installed, and what shells do.
#[tokio::test(flavor = "multi_thread")]
async fn programs_work_under_the_default_profile() {
    if !is_root("seccomp filters") {
        return;
    }
    let isolators = [confined(json!({})), vec![isolator("linux/nnp", json!({}))]].concat();
    let fixture = Fixture::start(isolators).await;
    let line = "cd $MESOS_SANDBOX && echo a > a && busybox ln -s a b && cat b | grep a && (sleep 0 & wait) && \
                ls -l | wc -l && ps | wc -l >&2; busybox chown 1 a; busybox nc -l -p 7 -w 1 & kill $!; id -u";
    assert_eq!(fixture.run(fixture.request("web", "root", line)).await, "a\n5\n0\n");
}
