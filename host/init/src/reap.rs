//! Init while the task runs: it forwards signals, reaps, and writes the task's exit status.

use crate::failure;
use crate::report::STATUS;
use crate::sys::{self, Fd, O_RDONLY, Pid, SIGCHLD, SIGKILL};

/// Forwards signals and reaps until the task has ended. Returns the status to exit with.
pub(crate) fn supervise(task: Pid, kill_remaining: bool) -> u8 {
    sys::release_unused_stack();
    let status = loop {
        match sys::next_signal() {
            SIGCHLD => {
                if let Some(status) = reap_all(task) {
                    break status;
                }
            }
            // The task is a child that has not been reaped, so its pid cannot have been reused.
            signal => sys::send_signal(task, signal),
        }
    };
    // A task that failed before its exec has written the status itself.
    if sys::stat(Fd(STATUS)).is_ok_and(|file| file.size == 0) {
        failure::ended(status);
    }
    if kill_remaining {
        kill_descendants();
    }
    exit_status(status)
}

/// Reaps all children that have ended. Returns the wait status of the task if it is among them.
fn reap_all(task: Pid) -> Option<i32> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = sys::reap(false) {
        if pid == task {
            ended = Some(status);
        }
    }
    ended
}

/// Kills and reaps until no child is left. Grandchildren become children when their parents end, because init is a
/// subreaper.
fn kill_descendants() {
    let Ok(children) = sys::open(c"/proc/thread-self/children", O_RDONLY) else { return };
    let mut buffer = [0; 1024];
    loop {
        let length = sys::read_at_start(children, &mut buffer).unwrap_or(0);
        for pid in numbers(buffer.get(..length).unwrap_or_default(), length == buffer.len()) {
            sys::send_signal(Pid::new(pid), SIGKILL);
        }
        // Fails if there is no child.
        if sys::reap(true).is_err() {
            return;
        }
        let _ = reap_all(Pid::new(0));
    }
}

/// The numbers in a text, without the last one if the text is `truncated`, because digits may be missing.
fn numbers(text: &[u8], truncated: bool) -> impl Iterator<Item = i32> {
    let end = if truncated { text.iter().rposition(|byte| *byte == b' ').unwrap_or(0) } else { text.len() };
    text.get(..end).unwrap_or_default().split(|byte| *byte == b' ').filter_map(|digits| {
        let number = digits.iter().try_fold(0_i32, |number, digit| {
            let digit = digit.checked_sub(b'0').filter(|digit| *digit <= 9)?;
            number.checked_mul(10)?.checked_add(digit.into())
        })?;
        (number > 1).then_some(number)
    })
}

/// The exit status that a shell would report.
fn exit_status(status: i32) -> u8 {
    match status & 0x7f {
        0 => (status >> 8) as u8,
        signal => 128 + signal as u8,
    }
}

#[cfg(test)]
mod tests {
    use super::{exit_status, numbers};

    #[test]
    fn exit_statuses_are_those_of_a_shell() {
        assert_eq!(exit_status(0), 0);
        assert_eq!(exit_status(7 << 8), 7);
        assert_eq!(exit_status(9), 137);
        assert_eq!(exit_status(11 | 0x80), 139); // with a core dump
    }

    #[test]
    fn pids_are_read_and_truncated_ones_are_not() {
        let read = |text: &[u8], truncated| numbers(text, truncated).collect::<Vec<_>>();
        assert_eq!(read(b"12 345 ", false), [12, 345]);
        assert_eq!(read(b"12 345", true), [12]);
        assert_eq!(read(b"", false), [0_i32; 0]);
        // For kill(2), 0 and -1 mean groups of processes, and 1 is never a child.
        assert_eq!(read(b"0 1 -1 x 99999999999 2", false), [2]);
    }
}
