//! How a process ended, in the words of Mesos.

use std::fmt;

/// The raw status of wait(2) of a process that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WaitStatus(pub(crate) i32);

impl WaitStatus {
    /// Whether it exited with status 0.
    pub(crate) fn is_success(self) -> bool {
        self.0 == 0
    }

    /// What a shell reports: the exit status, or 128 and the signal.
    pub(crate) fn code(self) -> i32 {
        match self.signal() {
            0 => (self.0 >> 8) & 0xff,
            signal => 128 + signal,
        }
    }

    fn signal(self) -> i32 {
        self.0 & 0x7f
    }
}

impl fmt::Display for WaitStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.signal() {
            0 => write!(formatter, "exited with status {}", self.code()),
            signal => {
                write!(formatter, "terminated with signal {}", SignalName(signal))?;
                formatter.write_str(if self.0 & 0x80 == 0 { "" } else { " (core dumped)" })
            }
        }
    }
}

/// A signal as strsignal(3) describes it.
struct SignalName(i32);

/// Descriptions of the signals from 1 on.
const NAMES: [&str; 31] = [
    "Hangup",
    "Interrupt",
    "Quit",
    "Illegal instruction",
    "Trace/breakpoint trap",
    "Aborted",
    "Bus error",
    "Floating point exception",
    "Killed",
    "User defined signal 1",
    "Segmentation fault",
    "User defined signal 2",
    "Broken pipe",
    "Alarm clock",
    "Terminated",
    "Stack fault",
    "Child exited",
    "Continued",
    "Stopped (signal)",
    "Stopped",
    "Stopped (tty input)",
    "Stopped (tty output)",
    "Urgent I/O condition",
    "CPU time limit exceeded",
    "File size limit exceeded",
    "Virtual timer expired",
    "Profiling timer expired",
    "Window changed",
    "I/O possible",
    "Power failure",
    "Bad system call",
];

/// The first real-time signal that programs use; glibc has the two before it.
const FIRST_REAL_TIME: i32 = 34;

impl fmt::Display for SignalName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = usize::try_from(self.0 - 1).ok().and_then(|index| NAMES.get(index));
        match (name, self.0 - FIRST_REAL_TIME) {
            (Some(name), _) => formatter.write_str(name),
            (None, number @ 0..) => write!(formatter, "Real-time signal {number}"),
            (None, _) => write!(formatter, "Unknown signal {}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::WaitStatus;

    #[test]
    fn statuses_are_described_as_in_mesos() {
        for (raw, text) in [
            (0, "exited with status 0"),
            (3 << 8, "exited with status 3"),
            (9, "terminated with signal Killed"),
            (15, "terminated with signal Terminated"),
            (11 | 0x80, "terminated with signal Segmentation fault (core dumped)"),
            (36, "terminated with signal Real-time signal 2"),
            (32, "terminated with signal Unknown signal 32"),
        ] {
            assert_eq!(WaitStatus(raw).to_string(), text);
        }
        assert_eq!(WaitStatus(7 << 8).code(), 7);
        assert_eq!(WaitStatus(9).code(), 137);
    }
}
