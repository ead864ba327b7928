//! Writes the output of a container to that of this program. A thread does it, as either may not be read.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::sync::{Notify, oneshot};

use crate::cli::failure::Failure;
use cofferdam_core::switchboard::{Output, OutputStream};

/// Parts of output that wait to be written.
const WAITING: usize = 4;

pub(super) struct Writer {
    sender: mpsc::Sender<Output>,
    permit: Option<OwnedPermit<Output>>,
    result: oneshot::Receiver<io::Result<()>>,
    broken: Arc<Notify>,
}

impl Writer {
    pub(super) fn start() -> Result<Self, Failure> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let (finished, result) = oneshot::channel();
        let broken = Arc::new(Notify::new());
        let notify = Arc::clone(&broken);
        let write = move || {
            let written = write_all(receiver);
            if written.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
                notify.notify_one();
            }
            drop(finished.send(written));
        };
        let spawned = std::thread::Builder::new().name("output".to_owned()).spawn(write);
        spawned.map_err(|source| Failure::system("cannot start a thread", source))?;
        Ok(Self { sender, permit: None, result, broken })
    }

    /// Waits until more can be written. Returns at once if nothing can be written any more.
    pub(super) async fn ready(&mut self) {
        if self.permit.is_none() {
            self.permit = self.sender.clone().reserve_owned().await.ok();
        }
    }

    /// Whether more can be written now.
    pub(super) const fn is_ready(&self) -> bool {
        self.permit.is_some()
    }

    /// Writes, after [`Writer::ready`].
    pub(super) fn write(&mut self, output: Output) {
        if let Some(permit) = self.permit.take() {
            permit.send(output);
        }
    }

    /// Notified when a reader of this program's output has closed it.
    pub(super) fn broken(&self) -> Arc<Notify> {
        Arc::clone(&self.broken)
    }

    /// Waits until everything is written.
    pub(super) async fn finish(self) -> Result<(), Failure> {
        let Self { sender, permit, result, .. } = self;
        drop((sender, permit));
        match result.await {
            // The reader has closed the pipe; the container got SIGPIPE.
            Ok(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            Ok(written) => Ok(written?),
            Err(_) => Err(Failure::message("the thread that writes output panicked; this is a bug")),
        }
    }
}

fn write_all(mut receiver: mpsc::Receiver<Output>) -> io::Result<()> {
    while let Some(Output { stream, data }) = receiver.blocking_recv() {
        // Without a buffer: prompts have no line feed.
        match stream {
            OutputStream::Stdout => write_to(io::stdout().as_fd(), &data)?,
            OutputStream::Stderr => write_to(io::stderr().as_fd(), &data)?,
        }
    }
    Ok(())
}

fn write_to(sink: BorrowedFd<'_>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        match rustix::io::write(sink, data) {
            Ok(written) => data = data.get(written..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            // Somebody who shares it has made it so.
            Err(Errno::AGAIN) => match poll(&mut [PollFd::new(&sink, PollFlags::OUT)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            },
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}
