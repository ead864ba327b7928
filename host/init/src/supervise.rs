//! A setup process that stays as the parent of its command, because neither a cgroup nor a pid namespace holds the
//! command's descendants together: it forwards signals, reaps, kills what is left, and ends as the command did.

use crate::sys::{self, O_RDONLY, Pid, SIGCHLD, SIGKILL};

/// Forwards signals and reaps until the command has ended, then kills its descendants. Returns the status to exit with;
/// if the command was killed by a signal, this process kills itself by the same one, so that its parent sees it.
pub(crate) fn supervise(command: Pid) -> u8 {
    sys::release_unused_stack();
    let status = loop {
        match sys::next_signal() {
            SIGCHLD => {
                if let Some(status) = reap_all(command) {
                    break status;
                }
            }
            // The command is a child that has not been reaped, so its pid cannot have been reused.
            signal => sys::send_signal(command, signal),
        }
    };
    kill_descendants();
    match status & 0x7f {
        0 => (status >> 8) as u8,
        signal => {
            sys::raise(signal);
            // Nobody else would try again.
            sys::raise(signal);
            128 + signal as u8
        }
    }
}

/// Reaps all children that have ended. Returns the wait status of the command if it is among them.
fn reap_all(command: Pid) -> Option<i32> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = sys::reap(false) {
        if pid == command {
            ended = Some(status);
        }
    }
    ended
}

/// Kills and reaps until no child is left. Grandchildren become children when their parents end, because the caller is
/// a subreaper.
pub(crate) fn kill_descendants() {
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

#[cfg(test)]
mod tests {
    use super::numbers;

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
