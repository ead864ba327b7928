//! What another container can do to a directory that it shares, all the time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// A thread that exchanges two names of a directory until it is dropped.
pub struct Exchange {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Exchange {
    pub fn start(directory: &Path, names: [&str; 2]) -> Self {
        let [a, b] = names.map(|name| directory.join(name));
        let done = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&done);
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                match renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE) {
                    // One of them is being replaced.
                    Ok(()) | Err(Errno::NOENT) => {}
                    Err(errno) => panic!("{errno}"),
                }
            }
        });
        Self { done, thread: Some(thread) }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        let outcome = self.thread.take().map(JoinHandle::join);
        if let (Some(Err(panic)), false) = (outcome, thread::panicking()) {
            std::panic::resume_unwind(panic);
        }
    }
}
