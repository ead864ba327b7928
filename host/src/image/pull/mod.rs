//! Pulls an image from a registry.
//!
//! ```text
//! pull ──▶ repository   requests to one repository, with retries
//!   │         ├──▶ login         answers the challenge of a registry ──▶ challenge
//!   │         └──▶ credentials   from files and helpers ──▶ helper
//!   └────▶ layer        a layer: downloaded by one thread, unpacked by another ──▶ spool
//! ```
//!
//! A registry and whatever it sends are not trusted: documents and layers are what their digests say, or the image is refused,
//! and each of them has a bound. Only for the meaning of a tag there is nothing to verify.

mod challenge;
mod credentials;
mod error;
mod helper;
mod layer;
mod login;
mod repository;
mod secret;
mod spool;

use std::collections::BTreeSet;
use std::path::PathBuf;

use cofferdam_core::config::RegistryConfig;
use cofferdam_core::provisioner::document::{Configuration, Index, MAX_LAYERS, Manifest, Platform};
use cofferdam_core::provisioner::{Digest, Image, ImageName, Import, Store};

use self::credentials::Credentials;
use self::error::Result;
use self::repository::{Document, Repository};
use super::add::{Found, Layer, diff_ids, finish, in_parallel, missing_layers, parse};
use super::error::{ImageError, MAX_INDEXES};
use super::stop::Stop;
use super::{Limits, Progress};
use crate::http::{Client, Rules};

pub(crate) use error::PullError;

/// Layers that are downloaded at a time.
const MAX_THREADS: usize = 4;

/// Bytes that a server has to send within the timeout of a read, unless what it sends ends.
const MIN_BYTES: u64 = 16 << 10;

/// Redirects of a server that are followed.
const MAX_REDIRECTS: u64 = 10;

/// The default registry has another name than its images.
const DEFAULT_REGISTRY: (&str, &str) = ("docker.io", "registry-1.docker.io");

/// What is pulled.
#[derive(Debug)]
pub(crate) struct PullRequest {
    pub(crate) name: ImageName,
    pub(crate) platform: Platform,
    pub(crate) limits: Limits,
    pub(crate) registry: RegistryConfig,
    /// Files with credentials, of which the first that exists is used.
    pub(crate) credentials: Vec<PathBuf>,
    /// Credentials that are used instead, in the format of these files.
    pub(crate) own_credentials: Option<String>,
}

/// Pulls an image, unless the store has what its name stands for in the registry. Layers that the store has are not pulled
/// again, and one that somebody else is pulling is waited for.
pub(crate) fn pull(
    store: &Store,
    request: &PullRequest,
    progress: &(dyn Fn(Progress) + Sync),
) -> std::result::Result<Image, PullError> {
    let PullRequest { name, registry, .. } = request;
    if name.digest.is_some()
        && let Some(image) = find_current(store, request, name.digest)?
    {
        return Ok(present(image, progress));
    }
    let credentials = match &request.own_credentials {
        Some(text) => Credentials::of_request(text)?,
        None => Credentials::read(&request.credentials)?,
    };
    let client = Client::new(Rules {
        stall: registry.stall,
        min_bytes: MIN_BYTES,
        redirects: MAX_REDIRECTS,
        hosts: registry.redirect_hosts.clone(),
        only_hosts: false,
        hosts_setting: "`redirect_hosts` of `[registry]`",
    });
    let mut hosts = registry.mirrors.get(&name.registry).cloned().unwrap_or_default();
    let own = match name.registry == DEFAULT_REGISTRY.0 {
        true => DEFAULT_REGISTRY.1,
        false => &name.registry,
    };
    hosts.push(own.to_owned());
    let mut hosts = hosts.into_iter().peekable();
    while let Some(host) = hosts.next() {
        let scheme = if registry.insecure.contains(&host) { "http" } else { "https" };
        let repository = Repository::new(&client, &credentials, scheme, &host, &name.repository, progress);
        let pulled = Pull { store, request, repository: &repository, progress }.run();
        match pulled {
            Err(error) if error.is_of_registry() && hosts.peek().is_some() => {
                let error = PullError::From { name: name.familiar(), host, source: error.into() };
                progress(Progress::NextRegistry { reason: cofferdam_core::error_chain::describe(&error) });
            }
            Err(source) => {
                return Err(PullError::From { name: name.familiar(), host, source: source.into() });
            }
            Ok(image) => return Ok(image),
        }
    }
    Err(PullError::NoRegistry)
}

/// The image of the store that a name stands for, if it is complete and for the platform, and was pulled by this digest.
fn find_current(store: &Store, request: &PullRequest, digest: Option<Digest>) -> Result<Option<Image>> {
    let Platform { os, architecture, variant } = &request.platform;
    let Some((image, index)) = store.current(&request.name).map_err(ImageError::from)? else {
        return Ok(None);
    };
    let is_same = digest.is_some() && [Some(image.manifest), index].contains(&digest);
    let is_platform = variant.is_none() && image.platform == format!("{os}/{architecture}");
    Ok((is_same && is_platform).then_some(image))
}

fn present(image: Image, progress: &dyn Fn(Progress)) -> Image {
    let layers: BTreeSet<&Digest> = image.layers.iter().collect();
    progress(Progress::Found { layers: layers.len(), bytes: 0 });
    image.layers.iter().for_each(|layer| progress(Progress::Present { layer: *layer }));
    image
}

/// A pull from one registry.
struct Pull<'a> {
    store: &'a Store,
    request: &'a PullRequest,
    repository: &'a Repository<'a>,
    progress: &'a (dyn Fn(Progress) + Sync),
}

impl Pull<'_> {
    fn run(&self) -> Result<Image> {
        let Self { store, request, repository, progress } = *self;
        // A registry counts requests for manifests, but not those for their digests.
        if let Some(tag) = &request.name.tag
            && store.current(&request.name).map_err(ImageError::from)?.is_some()
            && let Some(image) = find_current(store, request, repository.digest_of(tag))?
        {
            return Ok(present(image, progress));
        }
        let found = self.find()?;
        let import = store.import().map_err(ImageError::from)?;
        let missing = missing_layers(&import, &found, progress)?;
        let sizes = missing.iter().filter_map(|(_, layer)| layer.blob).map(|(size, _)| size);
        let layers: BTreeSet<Digest> = found.layers.iter().map(|layer| layer.diff_id).collect();
        progress(Progress::Found { layers: layers.len(), bytes: sizes.fold(0, u64::saturating_add) });
        // Whoever has added a layer may have been killed before this.
        let is_missing = |layer: &Layer| missing.iter().any(|(_, missing)| missing.diff_id == layer.diff_id);
        for (_, blob) in found.layers.iter().filter(|layer| !is_missing(layer)).filter_map(|layer| layer.blob)
        {
            import.discard_download(&blob).map_err(ImageError::from)?;
        }
        in_parallel(MAX_THREADS, &missing, |(number, layer), stop| {
            self.layer(&import, *number, layer, stop)
        })?;
        Ok(finish(&import, &found)?)
    }

    fn layer(&self, import: &Import, number: usize, layer: &Layer, stop: &Stop) -> Result<()> {
        layer::pull(import, self.repository, number, layer, &self.request.limits, stop, self.progress)
    }

    /// Finds the manifest for the platform, perhaps through indexes, and its configuration.
    fn find(&self) -> Result<Found> {
        let PullRequest { name, platform, limits, .. } = self.request;
        let (index, manifest) = self.find_manifest()?;
        let parsed: Manifest = parse("manifest", &manifest)?;
        if parsed.layers.len() > MAX_LAYERS {
            return Err(ImageError::TooManyLayers.into());
        }
        let config = self.repository.document(Document::Blob(&parsed.config))?;
        let diff_ids = diff_ids("configuration", &config, parsed.layers.len())?;
        let configuration: Configuration = parse("configuration", &config)?;
        let architecture = configuration.architecture;
        if !architecture.is_empty() && architecture != platform.architecture {
            let found = Platform { architecture, os: configuration.os, variant: None };
            return Err(ImageError::platform(platform, [&found]).into());
        }
        if parsed.layers.iter().any(|layer| layer.size > limits.bytes) {
            return Err(ImageError::TooLarge { limit: limits.bytes }.into());
        }
        let layers = parsed.layers.iter().zip(diff_ids).map(|(layer, diff_id)| Layer {
            file: layer.digest.to_string(),
            blob: Some((layer.size, layer.digest)),
            diff_id,
        });
        Ok(Found { names: vec![name.clone()], index, layers: layers.collect(), manifest, config })
    }

    /// The index that the name stands for, if it is one, and the manifest.
    fn find_manifest(&self) -> Result<(Option<Digest>, Vec<u8>)> {
        let PullRequest { name, platform, .. } = self.request;
        let mut bytes = match (name.digest, &name.tag) {
            (Some(digest), _) => self.repository.document(Document::Pinned(digest))?,
            (None, tag) => self.repository.document(Document::Tag(tag.as_deref().unwrap_or_default()))?,
        };
        let mut outermost = None;
        for _ in 0..=MAX_INDEXES {
            let Some(index) = as_index(&bytes)? else { return Ok((outermost, bytes)) };
            outermost = outermost.or_else(|| Some(Digest::of(&bytes)));
            let chosen =
                platform.choose(&index).ok_or_else(|| ImageError::platform(platform, index.platforms()))?;
            bytes = self.repository.document(Document::Manifest(chosen))?;
        }
        Err(ImageError::Indexes.into())
    }
}

/// The index that a document is, if it is no manifest. One that could be taken for both is refused, so that everybody runs the
/// same.
fn as_index(bytes: &[u8]) -> Result<Option<Index>> {
    let document: serde_json::Map<String, serde_json::Value> = parse("manifest", bytes)?;
    let has = |key: &str| document.get(key).is_some_and(|value| !value.is_null());
    match (has("manifests"), has("layers") || has("config") || has("fsLayers")) {
        (true, true) => Err(PullError::Ambiguous),
        (true, false) => Ok(Some(parse("index", bytes)?)),
        _ if has("fsLayers") => Err(PullError::Schema1),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn manifests_and_indexes_are_told_apart() {
        let index = |text: &str| as_index(text.as_bytes());
        assert!(matches!(index(r#"{"manifests": []}"#), Ok(Some(_))));
        assert!(matches!(index(r#"{"config": {}, "layers": [], "manifests": null}"#), Ok(None)));
        assert!(matches!(index(r#"{"manifests": [], "layers": []}"#), Err(PullError::Ambiguous)));
        assert!(matches!(index(r#"{"schemaVersion": 1, "fsLayers": []}"#), Err(PullError::Schema1)));
        assert!(matches!(index("[]"), Err(PullError::Image(ImageError::Malformed { .. }))));
    }
}
