//! Name resolution that refuses addresses.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use ureq::config::Config;
use ureq::http::uri::{Authority, Uri};
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::NextTimeout;

use super::redirect::Reach;

/// Resolves the host of one URL, and refuses it if an address is closer than allowed. What is connected to are the
/// addresses that were checked.
#[derive(Debug)]
pub(super) struct Checked {
    authority: Authority,
    nearest: Option<Reach>,
    found: Arc<Mutex<Found>>,
}

/// What a host was resolved to.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Of the closest address.
    pub(super) reach: Option<Reach>,
    pub(super) refused: Option<(Reach, Reach)>,
}

impl Checked {
    /// Accepts addresses of this host that are not closer than `nearest`.
    pub(super) fn new(authority: Authority, nearest: Option<Reach>) -> Self {
        Self { authority, nearest, found: Arc::default() }
    }

    /// What the host will be resolved to.
    pub(super) fn result(&self) -> Resolved {
        Resolved(Arc::clone(&self.found))
    }

    /// The address that is too close, and what it is redirected from.
    pub(super) fn refused(&self, reach: Option<Reach>) -> Option<(Reach, Reach)> {
        reach.zip(self.nearest).filter(|(reach, nearest)| reach < nearest)
    }
}

impl Resolver for Checked {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let addresses = DefaultResolver::default().resolve(uri, config, timeout)?;
        // Otherwise it is that of a proxy.
        if uri.authority() == Some(&self.authority) {
            let reach = addresses.iter().map(|address| Reach::of(address.ip())).min();
            let mut found = self.found.lock();
            found.reach = reach;
            found.refused = self.refused(reach);
            if found.refused.is_some() {
                return Err(ureq::Error::HostNotFound);
            }
        }
        Ok(addresses)
    }
}

/// What a [`Checked`] has found.
pub(super) struct Resolved(Arc<Mutex<Found>>);

impl Resolved {
    pub(super) fn get(&self) -> MutexGuard<'_, Found> {
        self.0.lock()
    }
}
