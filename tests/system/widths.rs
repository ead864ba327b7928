//! What commands print at terminals of 80 and of 200 columns, and in pipes: it fits, what is cut has a sign, and there are colours
//! at terminals only.

use std::fs;
use std::path::Path;
use std::process::Command;

use cofferdam_tests::daemon::Daemon;
use cofferdam_tests::terminal::Terminal;
use cofferdam_tests::world::World;
use cofferdam_tests::{is_root, paths};

use crate::terminals::Site;

/// Printed after the output of a command.
const END: &str = "--end--";

/// Columns of the widest name of a fact, or of the widest indentation.
const NAMES: usize = 45;

/// How a command uses the width of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Every line fits.
    Table,
    /// Texts are wrapped between words; a word that is longer than a line is whole, so that it can be copied.
    Text,
}
use Kind::{Table, Text};

/// A text of so many characters.
fn long(begin: &str, length: usize) -> String {
    let filler = "0123456789".chars().cycle();
    begin.chars().chain(filler).take(length).collect()
}

/// What a command shows at a terminal, line by line, with control sequences.
fn at_terminal(socket: &Path, columns: u16, arguments: &[&str], more: &[(&str, &Path)]) -> Vec<String> {
    let program = paths::program();
    let line = format!(r#""$0" "$@"; printf '%s' '{END}'"#);
    let command = ["-c", &line, program.to_str().expect("text")];
    let arguments = [&command, arguments].concat();
    let environment = [&[("COFFERDAM_SOCKET", socket)], more].concat();
    let mut terminal = Terminal::of_size((50, columns), Path::new("sh"), &arguments, &environment);
    let shown = terminal.wait_for(END);
    terminal.wait().expect("it ends");
    let shown = shown.strip_suffix(END).expect("it was waited for");
    shown.split_terminator("\r\n").map(str::to_owned).collect()
}

/// The same in a pipe.
fn in_pipe(socket: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(paths::program());
    let output = command.args(arguments).env("COFFERDAM_SOCKET", socket).output().expect("it starts");
    String::from_utf8(output.stdout).expect("text")
}

/// A line as it is read: without the sequences that select colours.
fn plain(line: &str) -> String {
    let mut pieces = line.split("\u{1b}[");
    let first = pieces.next().unwrap_or_default().to_owned();
    pieces.fold(first, |line, piece| {
        let (parameters, rest) = piece.split_once('m').expect("the end of a sequence");
        assert!(parameters.chars().all(|c| c.is_ascii_digit() || c == ';'), "{piece:?}");
        line + rest
    })
}

/// Checks that a line is not wrapped by a terminal.
#[track_caller]
fn assert_fits(line: &str, columns: u16, kind: Kind, arguments: &[&str]) {
    let width = line.chars().count();
    if width <= usize::from(columns) {
        return;
    }
    let word = line.split(' ').next_back().unwrap_or_default().chars().count();
    assert!(
        kind == Text && width - word <= NAMES,
        "`{}` at {columns} columns, a line of {width}: {line}",
        arguments.join(" ")
    );
}

/// Checks what a command shows at terminals and in a pipe. With `expected`, a text that is in it, nothing is cut without a sign.
#[track_caller]
fn check(socket: &Path, kind: Kind, arguments: &[&str], expected: &str) {
    let piped = in_pipe(socket, arguments);
    assert!(!piped.contains('\u{1b}'), "{arguments:?} in a pipe: {piped:?}");
    for columns in [80, 200] {
        // The variable may be set for the tests; an empty one is none.
        let coloured = at_terminal(socket, columns, arguments, &[("NO_COLOR", Path::new(""))]);
        let without = at_terminal(socket, columns, arguments, &[("NO_COLOR", Path::new("1"))]);
        assert!(!without.is_empty() && !without.concat().contains('\u{1b}'), "{without:?}");
        let lines: Vec<String> = coloured.iter().map(|line| plain(line)).collect();
        lines.iter().chain(&without).for_each(|line| assert_fits(line, columns, kind, arguments));
        if kind == Table {
            assert!(coloured[0].contains("\u{1b}[1m"), "headings are strong: {coloured:?}");
            let whole = lines.iter().any(|line| line.contains(expected));
            assert!(whole || lines.concat().contains('…'), "{arguments:?} is cut without a sign: {lines:#?}");
            assert_eq!(lines.len(), piped.lines().count(), "{arguments:?}: {lines:#?}\n{piped}");
        }
    }
    // In pipes and files, nothing is cut.
    assert!(piped.contains(expected), "{arguments:?}: {piped}");
    assert!(kind == Text || !piped.contains('…'), "{arguments:?}: {piped}");
}

#[test]
fn what_commands_print_fits_their_terminal() {
    if !is_root("a root file system") {
        return;
    }
    let mut world = World::shipped();
    world.config.executors.launcher_dir = Some(paths::build());
    let daemon = Daemon::start(&world);
    let site = Site::with(world, daemon);
    let run = |arguments: &[&str]| {
        let output = site.piped(arguments, b"");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let (running, ended) = (long("running-", 120), long("ended-", 120));
    let (image, task) = (format!("{}:1", long("registry.example/team/image-", 100)), long("task-", 150));
    let argument = "an argument ".repeat(40);
    let launch = ["run", "-d", "--rootfs", &site.rootfs, "--cpus", "0.5", "--memory", "64m", "--name"];
    run(&[&launch[..], &[&running, "--", "sleep", "1000000"]].concat());
    run(&[&launch[..], &[&ended, "--", "sh", "-c", "exit 3", &argument]].concat());
    let waited = site.piped(&["wait", &ended], b"");
    assert_eq!(waited.status.code(), Some(3), "{}", String::from_utf8_lossy(&waited.stderr));
    let root = site.work_dir().join("root");
    fs::create_dir(&root).expect("a directory");
    run(&["image", "import", "--name", &image, root.to_str().expect("text")]);
    let (plugins, config) = (paths::build().display().to_string(), site.config());

    let commands: &[(Kind, &[&str], &str)] = &[
        (Table, &["ps", "-a"], &ended),
        (Table, &["ls", "-a"], &running),
        (Table, &["stats", "--no-wait"], &running),
        (Table, &["image", "ls"], &image),
        (Table, &["images"], &image),
        (Table, &["plugin", "ls"], "filesystem/linux"),
        (Table, &["plugin", "ls", "--plugin-dir", &plugins], "network/cni"),
        (Text, &["events", "--since", "1h", "--until", "0s"], &ended),
        (Text, &["inspect", &running], &running),
        (Text, &["inspect", &ended], &argument[..100]),
        (Text, &["image", "inspect", &image], &image),
        (Text, &["plugin", "inspect", "cgroups/cpu", "--plugin-dir", &plugins], "cgroups/cpu"),
        (Text, &["check", "--config", &config], "filesystem/linux"),
        (Text, &["doctor", "--config", &config], "configuration"),
        (Text, &["info"], "kernel"),
        (Text, &["version"], "cofferdam"),
    ];
    commands.iter().for_each(|(kind, arguments, expected)| check(site.socket(), *kind, arguments, expected));
    // After the others, as the container of a task is removed when it has ended.
    run(&["task", "run", "--name", &task, "--shell", "true"]);
    check(site.socket(), Table, &["task", "ps", "-a"], &task);

    for columns in [80, 200] {
        let size = (10, columns);
        let environment: [(&str, &Path); 1] = [("COFFERDAM_SOCKET", site.socket())];
        let mut top = Terminal::of_size(size, &paths::program(), &["top"], &environment);
        let shown = top.wait_for("q quit");
        for line in shown.split("\r\n") {
            // Other sequences than those for colours are at the beginning, and at the end of a line.
            let line = line.rsplit("\u{1b}[H").next().unwrap_or_default().replace("\u{1b}[K", "");
            assert_fits(&plain(&line), columns, Table, &["top"]);
        }
        assert!(shown.contains("running-") && (columns == 200 || shown.contains('…')), "{shown:?}");
        top.type_keys("q");
        assert!(top.wait().expect("it ends").success());
    }

    run(&["rm", "--force", &running, &ended]);
}
