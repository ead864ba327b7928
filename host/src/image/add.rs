//! Adds an image to the store whose documents and layers were found.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::thread;

use cofferdam_core::provisioner::document::{Configuration, Descriptor, MAX_LAYERS};
use cofferdam_core::provisioner::{Digest, HashReader, Image, ImageName, Import};
use parking_lot::Mutex;

use super::error::{ImageError, Result};
use super::layer::{self, LayerError, Unpacked};
use super::stop::Stop;
use super::{Limits, Progress};
use crate::archive::decompress;

/// An image that was found.
pub(super) struct Found {
    pub(super) names: Vec<ImageName>,
    /// The index of a registry that the manifest was chosen from.
    pub(super) index: Option<Digest>,
    pub(super) manifest: Vec<u8>,
    pub(super) config: Vec<u8>,
    pub(super) layers: Vec<Layer>,
}

/// A layer of it.
pub(super) struct Layer {
    /// Name of the file.
    pub(super) file: String,
    /// Size and digest of the file, if they are known.
    pub(super) blob: Option<(u64, Digest)>,
    pub(super) diff_id: Digest,
}

/// The digests of the layers of an image that this version can run.
pub(super) fn diff_ids(file: &str, config: &[u8], layers: usize) -> Result<Vec<Digest>> {
    let configuration: Configuration = parse(file, config)?;
    let digests = configuration.rootfs.diff_ids;
    if digests.len() != layers {
        return Err(ImageError::Layers { layers, digests: digests.len() });
    }
    if layers > MAX_LAYERS {
        return Err(ImageError::TooManyLayers);
    }
    match configuration.os.as_str() {
        "linux" | "" => Ok(digests),
        other => Err(ImageError::OperatingSystem { os: other.to_owned() }),
    }
}

/// The layers of an image that the store does not have, each once, with their numbers.
pub(super) fn missing_layers<'f>(
    import: &Import,
    image: &'f Found,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<(usize, &'f Layer)>> {
    let mut seen = BTreeSet::new();
    let mut missing = Vec::new();
    for (index, layer) in image.layers.iter().enumerate().filter(|(_, layer)| seen.insert(layer.diff_id)) {
        match import.has_layer(&layer.diff_id)? {
            true => progress(Progress::Present { layer: layer.diff_id }),
            false => missing.push((index + 1, layer)),
        }
    }
    Ok(missing)
}

/// Unpacks, verifies and adds a layer.
pub(super) fn add_layer(
    import: &Import,
    stream: impl Read,
    number: usize,
    expected: Option<&Layer>,
    limits: &Limits,
) -> Result<(Digest, Unpacked)> {
    let damaged = |source| ImageError::Layer { number, source: LayerError::Archive { source } };
    let staged = import.stage_layer()?;
    let mut blob = HashReader::new(stream);
    let limit = limits.archive_bytes();
    let stream = decompress(&mut blob).map_err(damaged)?.take(limit.saturating_add(1));
    let mut archive = HashReader::new(stream);
    let unpacked = layer::unpack(&mut archive, &staged.root(), limits);
    let (diff_id, length) = archive.finish();
    let unpacked = match length > limit {
        true => Err(LayerError::TooLong { limit }),
        false => unpacked,
    };
    let unpacked = unpacked.map_err(|source| ImageError::Layer { number, source })?;
    io::copy(&mut blob, &mut io::sink()).map_err(damaged)?;
    let (digest, actual) = blob.finish();
    if let Some(layer) = expected {
        if let Some((size, expected)) = layer.blob
            && (size, expected) != (actual, digest)
        {
            let file = layer.file.clone();
            return Err(ImageError::Mismatch { file, actual, digest, size, expected });
        }
        if layer.diff_id != diff_id {
            return Err(ImageError::DiffId { number, actual: diff_id, expected: layer.diff_id });
        }
    }
    import.add_layer(staged, &diff_id, unpacked.bytes)?;
    Ok((diff_id, unpacked))
}

/// Adds the documents of an image whose layers are there. Returns the digest of its manifest.
pub(super) fn add_documents(import: &Import, image: &Found) -> Result<Digest> {
    import.add_blob(&image.config)?;
    Ok(import.add_blob(&image.manifest)?)
}

/// Adds the documents of an image whose layers are there, and its names.
pub(super) fn finish(import: &Import, image: &Found) -> Result<Image> {
    let manifest = add_documents(import, image)?;
    let mut added = None;
    let mut names = Vec::new();
    for name in &image.names {
        let image = import.add_name(name, manifest, image.index)?;
        names.extend(image.names.iter().cloned());
        added = Some(image);
    }
    added.map(|image| Image { names, ..image }).ok_or(ImageError::Unnamed)
}

/// Works on several layers at a time, until one fails. The others are told.
pub(super) fn in_parallel<T: Sync, E: Send>(
    threads: usize,
    items: &[T],
    work: impl Fn(&T, &Stop) -> std::result::Result<(), E> + Sync,
) -> std::result::Result<(), E> {
    let threads = threads.min(items.len());
    let next = Mutex::new(items.iter());
    let failure = Mutex::new(None);
    let stop = Stop::default();
    let take = || {
        loop {
            let item = match stop.is_set() {
                true => None,
                false => next.lock().next(),
            };
            let Some(item) = item else { return };
            if let Err(error) = work(item, &stop) {
                // The first one: those that stop have none of their own.
                failure.lock().get_or_insert(error);
                stop.set();
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            // Without another thread, this one does it all.
            drop(thread::Builder::new().name("layer".into()).spawn_scoped(scope, take));
        }
        take();
    });
    failure.into_inner().map_or(Ok(()), Err)
}

/// Parses a document.
pub(super) fn parse<T: serde::de::DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| ImageError::Malformed { file: file.to_owned(), source })
}

/// Checks size and digest of a document.
pub(super) fn verify(file: &str, bytes: &[u8], expected: &Descriptor) -> Result<()> {
    let (actual, digest) = (bytes.len() as u64, Digest::of(bytes));
    match (actual, digest) == (expected.size, expected.digest) {
        true => Ok(()),
        false => Err(ImageError::Mismatch {
            file: file.to_owned(),
            actual,
            digest,
            size: expected.size,
            expected: expected.digest,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::Duration;

    use cofferdam_core::provisioner::Store;
    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    #[test]
    fn work_on_other_layers_stops_when_one_fails() {
        let done = in_parallel(2, &[true, false], |fails, stop| match fails {
            true => Err("failed"),
            false if stop.wait(Duration::from_secs(600)) => Err("stopped"),
            false => Ok(()),
        });
        assert_eq!(done, Err("failed"));
    }

    #[test]
    fn an_archive_is_not_read_far_beyond_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let import = Store::at(directory.path().join("store")).import().unwrap();
        let limits = Limits { bytes: 100, files: 1 };
        let add = |zeros: usize| {
            let mut blob = GzEncoder::new(Vec::new(), Compression::fast());
            blob.write_all(&vec![0; zeros]).unwrap();
            add_layer(&import, &blob.finish().unwrap()[..], 1, None, &limits)
        };
        let limit = limits.archive_bytes();
        add(limit as usize).unwrap();
        let error = add(limit as usize + 1).unwrap_err();
        assert!(matches!(error, ImageError::Layer { source: LayerError::TooLong { .. }, .. }), "{error:?}");
    }
}
