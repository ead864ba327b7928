//! One layer: downloaded by one thread and unpacked by another, which verifies it.

use std::io::Read;
use std::thread;

use cofferdam_core::provisioner::{Digest, Import, PartialBlob};

use super::error::{PullError, Result};
use super::repository::Repository;
use super::spool::Spool;
use crate::image::add::{Layer, add_layer};
use crate::image::error::ImageError;
use crate::image::layer::Unpacked;
use crate::image::stop::Stop;
use crate::image::{Limits, Progress};

const BUFFER: usize = 256 << 10;

/// Bytes after which a connection counts as one that works.
const MIN_PROGRESS: u64 = 16 << 10;

/// Connections for a layer. Otherwise, a server that closes each of them would keep this busy forever.
const MAX_CONNECTIONS: u32 = 1000;

/// Pulls a layer into the store, and continues what an earlier pull has begun.
pub(super) fn pull(
    import: &Import,
    repository: &Repository<'_>,
    number: usize,
    layer: &Layer,
    limits: &Limits,
    stop: &Stop,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<()> {
    let Some((size, digest)) = layer.blob else { return Ok(()) };
    let partial = import.download(&digest, || progress(Progress::Waiting { layer: layer.diff_id }));
    let partial = partial.map_err(ImageError::from)?;
    if import.has_layer(&layer.diff_id).map_err(ImageError::from)? {
        partial.remove().map_err(ImageError::from)?;
        progress(Progress::Present { layer: layer.diff_id });
        return Ok(());
    }
    let transfer = Transfer { import, repository, number, layer, size, digest, limits, stop, progress };
    let resumed = partial.len().map_err(ImageError::from)?;
    let unpacked = match transfer.run(&partial) {
        // What was there may have been damaged, as it was never verified.
        Err(Failure::Unpack(error)) if resumed > 0 && !error.is_local() => {
            partial.clear().map_err(ImageError::from)?;
            transfer.run(&partial)
        }
        outcome => outcome,
    };
    let unpacked = match unpacked {
        Ok(unpacked) => unpacked,
        Err(Failure::Download(error)) => {
            // What is there takes the space that is needed.
            if matches!(&error, PullError::Image(error) if error.is_local()) {
                partial.remove().map_err(ImageError::from)?;
            }
            return Err(error);
        }
        Err(Failure::Unpack(error)) => {
            partial.remove().map_err(ImageError::from)?;
            return Err(error.into());
        }
    };
    partial.remove().map_err(ImageError::from)?;
    progress(Progress::Unpacked { layer: layer.diff_id, files: unpacked.members, bytes: unpacked.bytes });
    Ok(())
}

/// A layer that is pulled.
struct Transfer<'a> {
    import: &'a Import,
    repository: &'a Repository<'a>,
    number: usize,
    layer: &'a Layer,
    size: u64,
    digest: Digest,
    limits: &'a Limits,
    stop: &'a Stop,
    progress: &'a (dyn Fn(Progress) + Sync),
}

/// Which of the two threads has failed.
enum Failure {
    Download(PullError),
    Unpack(ImageError),
}

impl Transfer<'_> {
    fn run(&self, partial: &PartialBlob) -> std::result::Result<Unpacked, Failure> {
        let of_store = |error| Failure::Download(ImageError::from(error).into());
        let mut length = partial.len().map_err(of_store)?;
        if length > self.size {
            partial.clear().map_err(of_store)?;
            length = 0;
        }
        let spool = Spool::new(partial, length);
        let (downloaded, added) = thread::scope(|scope| {
            let download = || {
                let ending = spool.ending();
                self.download(&spool).inspect(|()| ending.complete())
            };
            let downloading = thread::Builder::new().name("download".into()).spawn_scoped(scope, download);
            let downloading = downloading.map_err(|source| ImageError::Thread { source })?;
            let added = add_layer(self.import, spool.reader(), self.number, Some(self.layer), self.limits);
            if added.is_err() {
                spool.abandon();
            }
            let panicked =
                |_| Err(ImageError::Thread { source: std::io::Error::other("it panicked") }.into());
            Ok((downloading.join().unwrap_or_else(panicked), added))
        })
        .map_err(|error: ImageError| Failure::Download(error.into()))?;
        downloaded.map_err(Failure::Download)?;
        added.map(|(_, unpacked)| unpacked).map_err(Failure::Unpack)
    }

    /// Downloads what is missing, with as many connections as it takes while they make progress.
    fn download(&self, spool: &Spool<'_>) -> Result<()> {
        let what = format!("layer {} (`{}`)", self.number, self.digest);
        let mut failures = 0;
        for _ in 0..MAX_CONNECTIONS {
            let start = spool.length();
            match start {
                0 => self.report(0),
                received => {
                    let (layer, size) = (self.layer.diff_id, self.size);
                    (self.progress)(Progress::Resumed { layer, received, size });
                }
            }
            let outcome = self.receive(spool, &what);
            if spool.is_abandoned() {
                return Ok(());
            }
            if self.stop.is_set() {
                return Err(PullError::Stopped);
            }
            let Err(error) = outcome else { return Ok(()) };
            failures = match spool.length() - start {
                0..MIN_PROGRESS => failures + 1,
                _ => 1,
            };
            self.stop.wait(self.repository.pause(error, failures)?);
        }
        Err(PullError::Short { what, received: spool.length(), size: self.size })
    }

    /// Receives what one connection has to give.
    fn receive(&self, spool: &Spool<'_>, what: &str) -> Result<()> {
        let position = spool.length();
        if position == self.size {
            return Ok(());
        }
        let (mut body, begin) = self.repository.blob(&self.digest, position, what)?;
        let mut skip = position - begin;
        let mut buffer = vec![0; BUFFER];
        while !spool.is_abandoned() && !self.stop.is_set() {
            let count = body.read(&mut buffer).map_err(|error| self.repository.interrupted(what, error))?;
            if count == 0 {
                let received = spool.length();
                return match received == self.size {
                    true => Ok(()),
                    false => Err(PullError::Short { what: what.to_owned(), received, size: self.size }),
                };
            }
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(count);
            skip -= skipped as u64;
            let bytes = &buffer[skipped..count];
            if spool.length() + bytes.len() as u64 > self.size {
                return Err(PullError::TooLong { what: what.to_owned(), limit: self.size });
            }
            spool.push(bytes).map_err(ImageError::from)?;
            self.report(spool.length());
        }
        Ok(())
    }

    fn report(&self, received: u64) {
        let (layer, size) = (self.layer.diff_id, self.size);
        (self.progress)(Progress::Received { layer, received, size });
    }
}
