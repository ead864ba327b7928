//! Imports images from files of this machine.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::thread;

use cofferdam_core::provisioner::document::{
    Configuration, Descriptor, Index, MAX_DOCUMENT, Manifest, Platform, media_type,
};
use cofferdam_core::provisioner::{Digest, Image, ImageName, Import, LocalImage, Store};
use serde::Deserialize;
use serde_json::json;

use super::add::{
    Found, Layer, add_documents, add_layer, diff_ids, finish, in_parallel, missing_layers, parse, verify,
};
use super::error::{ImageError, MAX_DOCUMENTS, MAX_INDEXES, Result, foreign};
use super::layout::Layout;
use super::metered::Metered;
use super::pack::pack;
use super::{Limits, Progress};
use crate::archive::decompress;

/// Layers that are unpacked at a time.
const MAX_THREADS: usize = 4;

/// Images of a source.
const MAX_IMAGES: usize = 1000;

/// Annotations with the name of an image: the whole, and its tag.
const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What is imported.
#[derive(Debug)]
pub(crate) struct Request {
    /// A file or a directory; `None` for standard input.
    pub(crate) source: Option<PathBuf>,
    /// What was found there, if that was opened before. The path of the source is the name of its only image then.
    pub(crate) found: Option<LocalImage>,
    pub(crate) format: Format,
    /// The name of the only image.
    pub(crate) name: Option<ImageName>,
    pub(crate) platform: Platform,
    pub(crate) limits: Limits,
}

/// Format of a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Told by its content
    #[default]
    Auto,
    /// An OCI image layout: a directory, or an archive of one
    Oci,
    /// An archive of `docker save`
    Docker,
    /// A root file system: a directory, or an archive of one
    Rootfs,
}

/// Imports all images of a source, and returns them.
pub(crate) fn import(
    store: &Store,
    request: &Request,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Image>> {
    let failed = |source| ImageError::Source { path: request.source.clone(), source };
    // Whoever writes to standard input may take any time, and others may want to remove images meanwhile.
    let source = match (&request.found, &request.source) {
        (Some(found), _) => match found.directory() {
            Some(path) => Source::Directory(path),
            None => Source::File(seekable(store, found.file().map_err(failed)?, request, progress)?),
        },
        (None, Some(path)) if path.is_dir() => Source::Directory(path.clone()),
        (None, Some(path)) => {
            Source::File(seekable(store, File::open(path).map_err(failed)?, request, progress)?)
        }
        (None, None) => {
            let stream = Metered::new(io::stdin().lock(), None, None, progress);
            Source::File(spool(store, stream, request)?)
        }
    };
    let import = store.import()?;
    match find_layout(source, request).map_err(failed)? {
        Contents::Layout(layout) => import_layout(&import, &layout, request, progress),
        Contents::Directory(path) => import_directory(&import, &path, request, progress),
        Contents::Archive(file) => {
            let mut file = file;
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
            let size = file.metadata().map_err(failed)?.len();
            import_layer(&import, Metered::new(file, None, Some(size), progress), request, progress)
        }
    }
}

/// An image in a file or directory of this machine that a container is launched from.
#[derive(Debug)]
pub(crate) struct LocalRequest {
    /// Its absolute path, which is the name of the image.
    pub(crate) path: PathBuf,
    /// Directories that what the path leads to has to be in, if only these are permitted.
    pub(crate) permitted: Option<Vec<PathBuf>>,
    /// Whether a file is read again that was not changed since it was imported.
    pub(crate) is_forced: bool,
}

/// Imports the image in a file or directory, unless the store has it from this version of the file.
pub(crate) fn import_local(
    store: &Store,
    request: &LocalRequest,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Image> {
    let found = LocalImage::open(&request.path, request.permitted.as_deref())?;
    import_found(store, request, found, progress)
        .map_err(|source| ImageError::At { path: request.path.clone(), source: Box::new(source) })
}

fn import_found(
    store: &Store,
    LocalRequest { path, is_forced, .. }: &LocalRequest,
    found: LocalImage,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Image> {
    let platform = Platform::host();
    let name = path.to_str().ok_or(ImageError::Unnamed)?;
    if !is_forced
        && found.stamp().is_some()
        && store.stamp_of(name)?.as_ref() == found.stamp()
        && let Ok(image) = store.find(name)
        && platform.runs(&image.platform)
    {
        return Ok(image);
    }
    let request = Request {
        source: Some(path.clone()),
        found: Some(found),
        format: Format::Auto,
        name: None,
        platform,
        limits: Limits::default(),
    };
    import(store, &request, progress)?.into_iter().next().ok_or(ImageError::Empty)
}

enum Source {
    Directory(PathBuf),
    /// An archive without compression.
    File(File),
}

/// What a source consists of.
enum Contents {
    Layout(Layout),
    /// A root file system.
    Directory(PathBuf),
    /// The archive of one.
    Archive(File),
}

fn find_layout(source: Source, request: &Request) -> io::Result<Contents> {
    let is_image = |layout: &Layout| layout.has("oci-layout") || layout.has("manifest.json");
    match (source, request.format) {
        (Source::Directory(path), Format::Rootfs) => Ok(Contents::Directory(path)),
        (Source::File(file), Format::Rootfs) => Ok(Contents::Archive(file)),
        (Source::Directory(path), format) => {
            let layout = Layout::directory(&path)?;
            match format != Format::Auto || layout.has("oci-layout") && layout.has("index.json") {
                true => Ok(Contents::Layout(layout)),
                false => Ok(Contents::Directory(path)),
            }
        }
        (Source::File(file), format) => match Layout::archive(file.try_clone()?)? {
            Some(layout) if format != Format::Auto || is_image(&layout) => Ok(Contents::Layout(layout)),
            None if format != Format::Auto => {
                Err(io::Error::other("it has too many files for an archive of images"))
            }
            _ => Ok(Contents::Archive(file)),
        },
    }
}

/// The archive without compression: the file itself, or a temporary copy.
fn seekable(
    store: &Store,
    mut file: File,
    request: &Request,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<File> {
    let failed = |source| ImageError::Source { path: request.source.clone(), source };
    let mut first = [0; 4];
    let count = (&mut file).take(4).read(&mut first).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    let is_regular = found.is_file();
    let is_compressed =
        first[..count].starts_with(&[0x1f, 0x8b]) || first[..count] == [0x28, 0xb5, 0x2f, 0xfd];
    if is_regular && !is_compressed {
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        return Ok(file);
    }
    let size = is_regular.then_some(found.len());
    spool(store, Metered::new(first[..count].chain(file), None, size, progress), request)
}

/// Copies a stream to a temporary file, decompressed.
fn spool(store: &Store, stream: impl Read, request: &Request) -> Result<File> {
    let failed = |source| ImageError::Source { path: request.source.clone(), source };
    let mut file = store.temporary_file()?;
    let limit = request.limits.bytes;
    let mut stream = decompress(stream).map_err(failed)?.take(limit.saturating_add(1));
    let copied = io::copy(&mut stream, &mut file).map_err(failed)?;
    if copied > limit {
        return Err(ImageError::TooLarge { limit });
    }
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    Ok(file)
}

/// Checks what the documents of all images of a source take in memory.
fn check_documents(images: &[Found]) -> Result<()> {
    let sizes = images.iter().map(|image| image.manifest.len() + image.config.len());
    match sizes.sum::<usize>() > MAX_DOCUMENTS {
        true => Err(ImageError::Documents),
        false => Ok(()),
    }
}

fn import_layout(
    import: &Import,
    layout: &Layout,
    request: &Request,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Image>> {
    let path = || request.source.clone();
    let mut found = match request.format {
        Format::Oci if !layout.has("index.json") => return Err(ImageError::NoIndex { path: path() }),
        Format::Docker if !layout.has("manifest.json") => {
            return Err(ImageError::NoManifest { path: path() });
        }
        Format::Docker => docker_images(layout)?,
        _ if layout.has("index.json") => oci_images(layout, &request.platform)?,
        _ => docker_images(layout)?,
    };
    if request.found.is_some() {
        return match &found[..] {
            [] => Err(ImageError::Empty),
            [only] => {
                check_platform(only, &request.platform)?;
                Ok(vec![add(import, layout, only, request, progress)?])
            }
            several => Err(ImageError::SeveralLocal { count: several.len() }),
        };
    }
    match (&request.name, &mut found[..]) {
        (_, []) => return Err(ImageError::Empty),
        (None, images) if images.iter().any(|image| image.names.is_empty()) => {
            return Err(ImageError::Unnamed);
        }
        (None, _) => {}
        (Some(name), [only]) => only.names = vec![name.clone()],
        (Some(_), several) => return Err(ImageError::Several { count: several.len() }),
    }
    let mut images = Vec::new();
    for image in &found {
        images.push(add(import, layout, image, request, progress)?);
    }
    Ok(images)
}

/// Checks that programs of an image run on a platform, before anything of it is in the store.
fn check_platform(image: &Found, platform: &Platform) -> Result<()> {
    let Configuration { os, architecture, .. } = parse("configuration", &image.config)?;
    let found = format!("{os}/{architecture}");
    match platform.runs(&found) {
        true => Ok(()),
        false => Err(ImageError::Platform { wanted: platform.clone(), found: foreign(&found) }),
    }
}

/// The images of an OCI layout.
fn oci_images(layout: &Layout, platform: &Platform) -> Result<Vec<Found>> {
    let index: Index = parse("index.json", &document(layout, "index.json")?)?;
    let mut images: Vec<Found> = Vec::new();
    for descriptor in index.manifests.iter().take(MAX_IMAGES) {
        let names = oci_names(descriptor)?;
        let manifest = select(layout, descriptor, platform)?;
        // A layout has an entry for each name.
        match images.iter_mut().find(|image| image.manifest == manifest) {
            Some(known) => known.names.extend(names),
            None => {
                images.push(Found { names, ..oci_image(layout, manifest)? });
                check_documents(&images)?;
            }
        }
    }
    Ok(images)
}

fn oci_names(descriptor: &Descriptor) -> Result<Vec<ImageName>> {
    let annotation = |key: &str| descriptor.annotations.get(key);
    // A tag alone is no name.
    let whole = annotation(NAME).or_else(|| annotation(REF_NAME).filter(|name| name.contains(['/', ':'])));
    Ok(whole.map(|name| name.parse()).transpose()?.into_iter().collect())
}

/// The manifest that a descriptor refers to, perhaps through indexes.
fn select(layout: &Layout, descriptor: &Descriptor, platform: &Platform) -> Result<Vec<u8>> {
    let mut descriptor = descriptor.clone();
    for _ in 0..MAX_INDEXES {
        let file = blob_file(&descriptor);
        let bytes = document(layout, &file)?;
        verify(&file, &bytes, &descriptor)?;
        // Some documents have no type, and an index has no other key in common.
        let is_index = descriptor.is_index() || parse::<Index>(&file, &bytes).is_ok();
        if !is_index {
            return Ok(bytes);
        }
        let index: Index = parse(&file, &bytes)?;
        descriptor = platform
            .choose(&index)
            .cloned()
            .ok_or_else(|| ImageError::platform(platform, index.platforms()))?;
    }
    Err(ImageError::Indexes)
}

fn oci_image(layout: &Layout, manifest: Vec<u8>) -> Result<Found> {
    let parsed: Manifest = parse("manifest", &manifest)?;
    let file = blob_file(&parsed.config);
    let config = document(layout, &file)?;
    verify(&file, &config, &parsed.config)?;
    let diff_ids = diff_ids(&file, &config, parsed.layers.len())?;
    let layers = parsed.layers.iter().zip(diff_ids).map(|(layer, diff_id)| Layer {
        file: blob_file(layer),
        blob: Some((layer.size, layer.digest)),
        diff_id,
    });
    Ok(Found { names: Vec::new(), index: None, layers: layers.collect(), manifest, config })
}

/// An image in an archive of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// The images of an archive of `docker save`, which have no manifests.
fn docker_images(layout: &Layout) -> Result<Vec<Found>> {
    let saved: Vec<SavedImage> = parse("manifest.json", &document(layout, "manifest.json")?)?;
    let mut images = Vec::new();
    for SavedImage { config: file, repo_tags, layers: files } in saved.into_iter().take(MAX_IMAGES) {
        let config = document(layout, &file)?;
        let diff_ids = diff_ids(&file, &config, files.len())?;
        let names = repo_tags
            .unwrap_or_default()
            .iter()
            .map(|name| name.parse())
            .collect::<std::result::Result<_, _>>()?;
        let manifest = manifest(&config, &diff_ids)?;
        let layers =
            files.into_iter().zip(diff_ids).map(|(file, diff_id)| Layer { file, blob: None, diff_id });
        images.push(Found { names, index: None, manifest, config, layers: layers.collect() });
        check_documents(&images)?;
    }
    Ok(images)
}

/// A manifest for an image that has none. Sizes of layers are not known, nor needed.
fn manifest(config: &[u8], diff_ids: &[Digest]) -> Result<Vec<u8>> {
    let descriptor = |kind: &str, digest, size: u64| Descriptor {
        media_type: kind.to_owned(),
        digest,
        size,
        platform: None,
        annotations: Default::default(),
    };
    let manifest = Manifest {
        schema_version: 2,
        media_type: media_type::OCI_MANIFEST.to_owned(),
        config: descriptor(media_type::OCI_CONFIG, Digest::of(config), config.len() as u64),
        layers: diff_ids.iter().map(|diff_id| descriptor(media_type::OCI_LAYER, *diff_id, 0)).collect(),
    };
    let file = || "manifest".to_owned();
    serde_json::to_vec(&manifest).map_err(|source| ImageError::Malformed { file: file(), source })
}

/// Adds an image and its names.
fn add(
    import: &Import,
    layout: &Layout,
    image: &Found,
    request: &Request,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Image> {
    let missing = missing_layers(import, image, progress)?;
    let threads = thread::available_parallelism().map_or(1, usize::from).min(MAX_THREADS);
    in_parallel(threads, &missing, |(number, layer), _| -> Result<()> {
        let failed = |source| ImageError::File { file: layer.file.clone(), source };
        let (stream, size) = layout.open(&layer.file).map_err(failed)?;
        let stream = Metered::new(stream, Some(layer.diff_id), Some(size), progress);
        let (diff_id, unpacked) = add_layer(import, stream, *number, Some(layer), &request.limits)?;
        progress(Progress::Unpacked { layer: diff_id, files: unpacked.members, bytes: unpacked.bytes });
        Ok(())
    })?;
    match &request.found {
        Some(found) => finish_local(import, image, request, found),
        None => finish(import, image),
    }
}

/// As [`finish`], for an image whose name is the path of its source.
fn finish_local(import: &Import, image: &Found, request: &Request, found: &LocalImage) -> Result<Image> {
    let path = request.source.as_deref().and_then(Path::to_str).ok_or(ImageError::Unnamed)?;
    let manifest = add_documents(import, image)?;
    Ok(import.add_path(path, manifest, found.stamp().cloned())?)
}

/// Imports the archive of a root file system.
fn import_layer(
    import: &Import,
    stream: impl Read,
    request: &Request,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Image>> {
    if request.name.is_none() && request.found.is_none() {
        return Err(ImageError::Unnamed);
    }
    let (diff_id, unpacked) = add_layer(import, stream, 1, None, &request.limits)?;
    progress(Progress::Unpacked { layer: diff_id, files: unpacked.members, bytes: unpacked.bytes });
    let Platform { architecture, os, .. } = &request.platform;
    let config = json!({
        "architecture": architecture, "os": os, "config": {},
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let config = config.to_string().into_bytes();
    let manifest = manifest(&config, &[diff_id])?;
    let names = request.name.iter().cloned().collect();
    let image = Found { names, index: None, manifest, config, layers: Vec::new() };
    let image = match &request.found {
        Some(found) => finish_local(import, &image, request, found),
        None => finish(import, &image),
    };
    Ok(vec![image?])
}

/// Imports a directory: packs it on one thread and unpacks it on another.
fn import_directory(
    import: &Import,
    path: &Path,
    request: &Request,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Image>> {
    let failed = |source| ImageError::Source { path: request.source.clone(), source };
    let (reader, writer) = io::pipe().map_err(failed)?;
    thread::scope(|scope| {
        let packing = move || pack(path, io::BufWriter::with_capacity(64 << 10, writer));
        let packing = thread::Builder::new()
            .name("pack".into())
            .spawn_scoped(scope, packing)
            .map_err(|source| ImageError::Thread { source })?;
        let packed = Packed { reader, packing: Some(packing) };
        import_layer(import, Metered::new(packed, None, None, progress), request, progress)
    })
}

/// What another thread packs. Its error is one of reading, so that nothing incomplete is added.
struct Packed<'scope> {
    reader: io::PipeReader,
    packing: Option<thread::ScopedJoinHandle<'scope, io::Result<()>>>,
}

impl Read for Packed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        if count == 0
            && !buffer.is_empty()
            && let Some(packing) = self.packing.take()
        {
            packing.join().unwrap_or_else(|_| Err(io::Error::other("the thread that packs it panicked")))?;
        }
        Ok(count)
    }
}

fn blob_file(descriptor: &Descriptor) -> String {
    format!("blobs/sha256/{}", descriptor.digest.hex())
}

fn document(layout: &Layout, file: &str) -> Result<Vec<u8>> {
    layout.read(file, MAX_DOCUMENT).map_err(|source| ImageError::File { file: file.to_owned(), source })
}
