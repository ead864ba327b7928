//! The memory of a program: that of all processes in its cgroup, with that of its daemons.

use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use cofferdam_linux::cgroup::Cgroup;

use super::Place;
use crate::Outcome;
use crate::fleet::rollup;

/// How often it is looked at: the kernel keeps a peak for each process, but none for all together without the files in its
/// caches.
const PERIOD: Duration = Duration::from_millis(20);

/// The most that the processes of a program had at the same time while a command ran, in MiB.
pub fn peak(place: &Place, command: &Command) -> Outcome<f64> {
    let (running, ended) = mpsc::channel::<()>();
    let sample = move || {
        let mut peak = 0.0_f64;
        while ended.recv_timeout(PERIOD) == Err(RecvTimeoutError::Timeout) {
            peak = peak.max(used(place.cgroup()));
        }
        peak
    };
    thread::scope(|scope| {
        let sampling = scope.spawn(sample);
        let run = place.run(place.joined(command));
        drop(running);
        let peak = sampling.join().map_err(|_| "a thread panicked")?;
        run.map(|_| peak / 1024.0)
    })
}

/// The memory of all processes, with their shares of pages that several have, in kB. One that is ending has none.
fn used(cgroup: &Cgroup) -> f64 {
    let processes = cgroup.all_procs().unwrap_or_default();
    processes.into_iter().filter_map(|pid| rollup(pid, "Pss").ok()).sum()
}
