//! Standard streams and terminals that clients attach to.

use cofferdam_core::agent::Agent;
use cofferdam_core::model::{ContainerClass, Ended, Request};
use cofferdam_core::switchboard::{AttachError, AttachedOutput, Attachment, Output, OutputStream};
use cofferdam_plugin_model::Tty;
use cofferdam_tests::world::{World, id, launch_error, with_agent};
use cofferdam_tests::{is_root, text, wait_for_text};

/// A container that a client is about to attach to, in a root file system.
fn attached(world: &World, name: &str, line: &str) -> Request {
    let mut request = Request::shell(id(name), line);
    request.rootfs = Some(world.rootfs());
    request.attached = true;
    request
}

fn with_terminal(request: Request) -> Request {
    Request { tty: Some(Tty { columns: 100, rows: 30 }), ..request }
}

async fn launch(agent: &Agent, request: Request) -> Attachment {
    let id = request.id.clone();
    agent.launch(request).await.expect("it is launched");
    agent.attach_first(&id).expect("a switchboard")
}

/// Everything up to the end: standard output, and standard error.
async fn rest(output: &mut AttachedOutput) -> (String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    while let Some(Output { stream, data }) = output.next().await.expect("a connection") {
        match stream {
            OutputStream::Stdout => out.extend(data),
            OutputStream::Stderr => err.extend(data),
        }
    }
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (text(out), text(err))
}

/// Reads until the output contains a text.
async fn read_until(output: &mut AttachedOutput, wanted: &str) -> String {
    let mut read = String::new();
    while !read.contains(wanted) {
        let Some(next) = output.next().await.expect("a connection") else {
            panic!("`{wanted}` is not in: {read}")
        };
        read.push_str(&String::from_utf8_lossy(&next.data));
    }
    read
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_reads_what_a_client_writes_until_it_ends_the_input() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut request = attached(&world, "web", "cat; echo end >&2; exit 5");
    request.interactive = true;
    request.command.user = Some("web".into());
    let Attachment { mut output, mut input } = launch(&agent, request).await;
    input.write(b"one ").await.unwrap();
    assert_eq!(read_until(&mut output, "one ").await, "one ");
    let long = "x".repeat(300_000);
    let write = async {
        input.write(long.as_bytes()).await.unwrap();
        input.end().await.unwrap();
    };
    let (_, (out, err)) = tokio::join!(write, rest(&mut output));
    assert_eq!((out.len(), err.as_str()), (long.len(), "end\n"));
    let termination = agent.wait(&id("web")).await.unwrap();
    assert_eq!(termination.ended(), Some(Ended::Exited(5)));
    let logs = agent.inspect(&id("web")).unwrap().logs;
    assert_eq!(text(&logs.stdout.unwrap()).len(), long.len() + 4);
    assert_eq!(text(&logs.stderr.unwrap()), "end\n");
    assert!(matches!(agent.attach(&id("web")), Err(AttachError::NotRunning { .. })));
    agent.remove(&id("web")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_of_a_short_command_is_missed() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    for round in 0..5 {
        let name = format!("web-{round}");
        let request = attached(&world, &name, "echo hello; echo problem >/dev/stderr; cat");
        agent.launch(request).await.unwrap();
        // It has ended before the client comes.
        let termination = agent.wait(&id(&name)).await.unwrap();
        assert_eq!(termination.ended(), Some(Ended::Exited(0)), "its input is empty");
        let mut attachment = agent.attach_first(&id(&name)).unwrap();
        assert_eq!(rest(&mut attachment.output).await, ("hello\n".into(), "problem\n".into()));
        agent.remove(&id(&name)).await.unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_prevents_neither_the_end_nor_the_log() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let line = "trap 'kill -9 $!' TERM; echo up; yes & wait; wait; echo last >&2";
    let mut request = attached(&world, "web", line);
    request.command.value = Some(line.replace("yes", "busybox yes"));
    let attachment = launch(&agent, request).await;
    // The pipe, the ring and the socket fill up, and then the container waits.
    let logs = agent.inspect(&id("web")).unwrap().logs;
    wait_for_text(logs.stdout.as_ref().unwrap(), "y\ny\n");
    assert!(agent.kill(&id("web"), nix::libc::SIGTERM).await.unwrap());
    let termination = agent.wait(&id("web")).await.unwrap();
    assert_eq!(termination.ended(), Some(Ended::Exited(0)), "{termination:?}");
    assert_eq!(text(logs.stderr.as_ref().unwrap()), "last\n");
    // The client gets what was written before, although the container has been removed.
    let written = text(logs.stdout.as_ref().unwrap());
    agent.remove(&id("web")).await.unwrap();
    let Attachment { mut output, input: _input } = attachment;
    assert_eq!(rest(&mut output).await, (written, "last\n".into()));
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_is_one_for_programs_in_the_container() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let line = "busybox tty; busybox stty size; id -u; read word; echo $word; busybox stty size; \
                trap 'echo interrupted; exit 7' INT; echo ready; while :; do sleep 0.1; done";
    let mut request = with_terminal(attached(&world, "web", line));
    request.command.user = Some("web".into());
    let Attachment { mut output, mut input } = launch(&agent, request).await;
    let begin = read_until(&mut output, "1234\r\n").await;
    assert_eq!(begin, "/dev/pts/0\r\n30 100\r\n1234\r\n");
    input.resize(25, 81).await.unwrap();
    input.write(b"word\r").await.unwrap();
    // The terminal echoes.
    assert_eq!(read_until(&mut output, "ready\r\n").await, "word\r\nword\r\n25 81\r\nready\r\n");
    // As typed by Ctrl-C: the command has it as its controlling terminal.
    input.write(b"\x03").await.unwrap();
    let (end, _) = rest(&mut output).await;
    assert_eq!(end, "^Cinterrupted\r\n");
    assert_eq!(agent.wait(&id("web")).await.unwrap().ended(), Some(Ended::Exited(7)));
    assert!(text(&agent.inspect(&id("web")).unwrap().logs.stdout.unwrap()).ends_with("interrupted\r\n"));
    agent.remove(&id("web")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn several_clients_see_the_same_and_may_go_away() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let line = "while read word; do echo got $word; done";
    let Attachment { mut output, mut input } =
        launch(&agent, Request { interactive: true, ..attached(&world, "web", line) }).await;
    input.write(b"a\n").await.unwrap();
    read_until(&mut output, "got a\n").await;
    let mut second = agent.attach(&id("web")).unwrap();
    second.input.write(b"b\n").await.unwrap();
    assert_eq!(read_until(&mut second.output, "got b\n").await, "got b\n");
    assert_eq!(read_until(&mut output, "got b\n").await, "got b\n");
    drop((output, input));
    second.input.write(b"c\n").await.unwrap();
    assert_eq!(read_until(&mut second.output, "got c\n").await, "got c\n");
    // Not even the last one that goes away ends the input.
    drop(second);
    let mut third = agent.attach(&id("web")).unwrap();
    third.input.write(b"d\n").await.unwrap();
    assert_eq!(read_until(&mut third.output, "got d\n").await, "got d\n");
    third.input.end().await.unwrap();
    assert_eq!(agent.wait(&id("web")).await.unwrap().ended(), Some(Ended::Exited(0)));
    agent.remove(&id("web")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[test]
fn a_terminal_outlives_the_agent() {
    if !is_root("a root file system") {
        return;
    }
    let world = World::shipped();
    with_agent(&world, async |agent: Agent| {
        let request = with_terminal(attached(&world, "web", "while read word; do echo got $word; done"));
        let mut attachment = launch(&agent, request).await;
        attachment.input.write(b"a\n").await.unwrap();
        read_until(&mut attachment.output, "got a\r\n").await;
        agent.shutdown().await;
    });
    with_agent(&world, async |agent: Agent| {
        let mut attachment = agent.attach(&id("web")).unwrap();
        attachment.input.write(b"b\n").await.unwrap();
        read_until(&mut attachment.output, "got b\r\n").await;
        // As typed by Ctrl-D at the beginning of a line.
        attachment.input.write(b"\x04").await.unwrap();
        assert_eq!(agent.wait(&id("web")).await.unwrap().ended(), Some(Ended::Exited(0)));
        assert!(text(&agent.inspect(&id("web")).unwrap().logs.stdout.unwrap()).contains("got a"));
        agent.remove(&id("web")).await.unwrap();
        assert_eq!(world.leftovers(), Vec::<String>::new());
        agent.shutdown().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_debug_container_has_a_terminal_in_its_parent() {
    if !is_root("nested containers") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let mut parent = Request::shell(id("pod"), "echo up; sleep 1000");
    parent.rootfs = Some(world.rootfs());
    agent.launch(parent).await.unwrap();
    wait_for_text(&agent.inspect(&id("pod")).unwrap().logs.stdout.unwrap(), "up");
    assert!(matches!(agent.attach(&id("pod")), Err(AttachError::NotAttachable { .. })));
    let mut probe =
        with_terminal(attached(&world, "pod.probe", "busybox tty; ls /dev/pts; busybox stty size"));
    probe.class = ContainerClass::Debug;
    probe.rootfs = None;
    let mut attachment = launch(&agent, probe).await;
    let (out, _) = rest(&mut attachment.output).await;
    assert_eq!(out.split_whitespace().collect::<Vec<_>>(), ["/dev/pts/0", "0", "ptmx", "30", "100"]);
    agent.wait(&id("pod.probe")).await.unwrap();
    agent.destroy(&id("pod")).await.unwrap();
    agent.remove(&id("pod")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_parent_has_put_in_place_of_the_terminal_device_is_not_opened() {
    if !is_root("nested containers") {
        return;
    }
    let world = World::privileged();
    let agent = world.start().await.unwrap();
    let replacements = [
        ("fifo", "busybox mkfifo /dev/ptmx"),
        ("zero", "busybox ln -s zero /dev/ptmx"),
        ("magic", "busybox ln -s /proc/1/fd/1 /dev/ptmx"),
        ("directory", "busybox mkdir /dev/ptmx"),
        ("missing", "true"),
    ];
    for (name, replace) in replacements {
        let line = format!("busybox rm /dev/ptmx && {replace} && echo up; sleep 1000");
        let mut parent = Request::shell(id(name), line);
        parent.rootfs = Some(world.rootfs());
        agent.launch(parent).await.unwrap();
        wait_for_text(&agent.inspect(&id(name)).unwrap().logs.stdout.unwrap(), "up");
        let mut probe = with_terminal(attached(&world, &format!("{name}.probe"), "true"));
        probe.class = ContainerClass::Debug;
        probe.rootfs = None;
        let message = launch_error(&agent, probe).await;
        assert!(message.contains("/dev/ptmx"), "{name}: {message}");
        agent.destroy(&id(name)).await.unwrap();
        agent.remove(&id(name)).await.unwrap();
        assert_eq!(world.leftovers(), Vec::<String>::new());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plain_process_has_a_terminal_and_input_too() {
    let world = World::posix();
    let agent = world.start().await.unwrap();
    let mut request = with_terminal(Request::shell(id("web"), "tty >/dev/null && stty size; sleep 0"));
    request.attached = true;
    let mut attachment = launch(&agent, request).await;
    assert_eq!(rest(&mut attachment.output).await.0, "30 100\r\n");
    assert_eq!(agent.wait(&id("web")).await.unwrap().ended(), Some(Ended::Exited(0)));
    agent.remove(&id("web")).await.unwrap();

    let mut request = Request::shell(id("cat"), "cat");
    (request.attached, request.interactive) = (true, true);
    let Attachment { mut output, mut input } = launch(&agent, request).await;
    input.write(b"hello").await.unwrap();
    input.end().await.unwrap();
    assert_eq!(rest(&mut output).await.0, "hello");
    agent.wait(&id("cat")).await.unwrap();
    agent.remove(&id("cat")).await.unwrap();
    assert_eq!(world.leftovers(), Vec::<String>::new());
}

/// The streams of a container end with its processes, not with those of others that have opened them.
#[tokio::test(flavor = "multi_thread")]
async fn a_parent_that_opens_the_streams_of_a_debug_container_does_not_delay_its_end() {
    if !is_root("nested containers") {
        return;
    }
    let world = World::shipped();
    let agent = world.start().await.unwrap();
    let wait_for = |file: &str| format!("while [ ! -s {file} ]; do sleep 0.01; done");
    for has_terminal in [false, true] {
        let line = format!("{}; exec 3>/proc/$(cat /pid)/fd/1; echo x >/held; sleep 1000", wait_for("/pid"));
        let mut parent = Request::shell(id("pod"), line);
        parent.rootfs = Some(world.rootfs());
        agent.launch(parent).await.unwrap();
        let line = format!("rm -f /held; echo $$ >/pid; {}; echo last", wait_for("/held"));
        let name = if has_terminal { "pod.terminal" } else { "pod.pipes" };
        let mut probe = attached(&world, name, &line);
        if has_terminal {
            probe = with_terminal(probe);
        }
        (probe.class, probe.rootfs) = (ContainerClass::Debug, None);
        let mut attachment = launch(&agent, probe).await;
        let (out, _) = rest(&mut attachment.output).await;
        assert_eq!(out.trim_end(), "last", "its switchboard was not killed");
        agent.wait(&id(name)).await.unwrap();
        agent.destroy(&id("pod")).await.unwrap();
        agent.remove(&id("pod")).await.unwrap();
    }
    assert_eq!(world.leftovers(), Vec::<String>::new());
}
