//! A terminal at which a program runs, as at the keyboard of a user.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use cofferdam_linux::process::children_of;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::daemon::TIMEOUT;

/// A program at a terminal.
pub struct Terminal {
    keyboard: File,
    /// Keeps the terminal open when the program has ended.
    screen: OwnedFd,
    child: Child,
    /// What is shown, after what was waited for.
    shown: Vec<u8>,
}

impl Terminal {
    /// Runs a program at a new terminal of 24 rows and 80 columns, which is its controlling terminal.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn run(program: &Path, arguments: &[&str], environment: &[(&str, &Path)]) -> Self {
        Self::of_size((24, 80), program, arguments, environment)
    }

    /// Runs a command at a new terminal of 24 rows and 80 columns, with its arguments and variables.
    ///
    /// # Panics
    /// If it cannot be started, or one of these is no text.
    pub fn of_command(command: &Command) -> Self {
        let arguments: Vec<&str> =
            command.get_args().map(|argument| argument.to_str().expect("text")).collect();
        let variable = |(name, value): (&OsStr, Option<&OsStr>)| {
            Some((name.to_str().expect("text").to_owned(), PathBuf::from(value?)))
        };
        let environment: Vec<(String, PathBuf)> = command.get_envs().filter_map(variable).collect();
        let environment: Vec<(&str, &Path)> =
            environment.iter().map(|(name, value)| (name.as_str(), value.as_path())).collect();
        Self::run(command.get_program().as_ref(), &arguments, &environment)
    }

    /// Runs a program at a new terminal of so many rows and columns.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn of_size(
        (rows, columns): (u16, u16),
        program: &Path,
        arguments: &[&str],
        environment: &[(&str, &Path)],
    ) -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC);
        let keyboard = keyboard.expect("a terminal");
        grantpt(&keyboard).and_then(|()| unlockpt(&keyboard)).expect("the terminal can be used");
        let name = ptsname(&keyboard, Vec::new()).expect("the terminal has a name");
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let screen = rustix::fs::open(&*name, flags, Mode::empty()).expect("the terminal exists");
        // Before the program asks for it.
        set_size(&keyboard, rows, columns);
        let side = || Stdio::from(screen.try_clone().expect("a descriptor"));
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--fork", "--wait"]).arg(program).args(arguments);
        command.envs(environment.iter().copied()).env("TERM", "xterm");
        let child = command.stdin(side()).stdout(side()).stderr(side()).spawn();
        let child = child.expect("setsid (package util-linux) starts");
        Self { keyboard: keyboard.into(), screen, child, shown: Vec::new() }
    }

    /// Types something.
    ///
    /// # Panics
    /// If the terminal has gone.
    pub fn type_keys(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("the terminal is there");
    }

    /// Waits until the text is shown, after what was waited for before. Returns what is shown up to its end.
    ///
    /// # Panics
    /// If it is not shown.
    pub fn wait_for(&mut self, text: &str) -> String {
        let begin = Instant::now();
        // Nothing before it begins the text.
        let mut searched = 0;
        loop {
            let rest = &self.shown[searched..];
            if let Some(position) = rest.windows(text.len()).position(|window| window == text.as_bytes()) {
                let rest = self.shown.split_off(searched + position + text.len());
                let shown = std::mem::replace(&mut self.shown, rest);
                return String::from_utf8_lossy(&shown).into_owned();
            }
            searched = (self.shown.len() + 1).saturating_sub(text.len()).max(searched);
            let mut ready = [PollFd::new(&self.keyboard, PollFlags::IN)];
            // Of all of it: a program may redraw its screen again and again.
            let left = TIMEOUT.saturating_sub(begin.elapsed());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: 0 };
            let found = poll(&mut ready, Some(&timeout)).expect("the terminal can be polled");
            assert!(found > 0, "`{text}` is not in: {:?}", String::from_utf8_lossy(&self.shown));
            let mut buffer = [0; 4096];
            let read = self.keyboard.read(&mut buffer).expect("the terminal is there");
            self.shown.extend(&buffer[..read]);
        }
    }

    /// Changes the size of the window.
    ///
    /// # Panics
    /// If the terminal has gone.
    pub fn resize(&self, rows: u16, columns: u16) {
        set_size(&self.keyboard, rows, columns);
    }

    /// Whether keys are passed on as they are typed, instead of lines.
    ///
    /// # Panics
    /// If the terminal has gone.
    pub fn is_raw(&self) -> bool {
        let mode = tcgetattr(self.screen.as_fd()).expect("the terminal is there");
        !mode.local_modes.contains(LocalModes::ICANON)
    }

    /// The pid of the program.
    ///
    /// # Panics
    /// If it has ended.
    pub fn pid(&self) -> i32 {
        let setsid = i32::try_from(self.child.id()).expect("a pid");
        let children = children_of(setsid).expect("setsid is running");
        *children.first().expect("the program is running")
    }

    /// Takes the terminal away, as when its window is closed, and waits until the program has ended.
    ///
    /// # Errors
    /// Those of wait(2).
    pub fn hang_up(self) -> io::Result<ExitStatus> {
        let Self { keyboard, mut child, .. } = self;
        drop(keyboard);
        child.wait()
    }

    /// Waits until the program has ended.
    ///
    /// # Errors
    /// Those of wait(2).
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

fn set_size(keyboard: impl AsFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(keyboard, size).expect("the terminal is there");
}
