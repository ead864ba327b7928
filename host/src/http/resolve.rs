//! Name resolution that refuses addresses.
//!
//! Connections are used again, so what a host was resolved to is that of all of its connections: a server is as far away as
//! the farthest address that it has had, and what was refused once stays refused.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
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
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Found {
    /// Of the farthest address. That of the closest one would let a server redirect into a network that it is not in.
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

    fn inspect(&self, addresses: &[SocketAddr]) -> Found {
        let reaches = || addresses.iter().map(|address| Reach::of(address.ip()));
        Found { reach: reaches().max(), refused: refused(reaches().min(), self.nearest) }
    }
}

/// An address that is too close, and what it is redirected from.
pub(super) fn refused(reach: Option<Reach>, nearest: Option<Reach>) -> Option<(Reach, Reach)> {
    reach.zip(nearest).filter(|(reach, nearest)| reach < nearest)
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
            let mut found = self.found.lock();
            found.add(self.inspect(&addresses));
            if found.refused.is_some() {
                return Err(ureq::Error::HostNotFound);
            }
        }
        Ok(addresses)
    }
}

impl Found {
    fn add(&mut self, other: Self) {
        self.reach = self.reach.max(other.reach);
        self.refused = self.refused.or(other.refused);
    }
}

/// What a [`Checked`] has found.
#[derive(Debug, Clone)]
pub(super) struct Resolved(Arc<Mutex<Found>>);

impl Resolved {
    pub(super) fn get(&self) -> Found {
        *self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closest_address_is_checked_and_the_farthest_may_redirect() {
        let inspect = |nearest, addresses: &[&str]| {
            let addresses: Vec<SocketAddr> =
                addresses.iter().map(|address| format!("{address}:80").parse().unwrap()).collect();
            let found = Checked::new(Authority::from_static("host"), nearest).inspect(&addresses);
            (found.reach, found.refused)
        };
        let both = ["10.0.0.1", "8.8.8.8"];
        assert_eq!(inspect(None, &both), (Some(Reach::Public), None));
        let refused = Some((Reach::Private, Reach::Public));
        assert_eq!(inspect(Some(Reach::Public), &both), (Some(Reach::Public), refused));
        assert_eq!(inspect(Some(Reach::Private), &["10.0.0.1"]), (Some(Reach::Private), None));
    }

    #[test]
    fn a_host_that_is_resolved_again_does_not_get_closer() {
        let mut found = Found { reach: Some(Reach::Public), refused: None };
        found.add(Found { reach: Some(Reach::Private), refused: None });
        assert_eq!((found.reach, found.refused), (Some(Reach::Public), None));
        let refused = Some((Reach::Local, Reach::Public));
        found.add(Found { reach: None, refused });
        found.add(Found { reach: Some(Reach::Public), refused: None });
        assert_eq!(found.refused, refused);
    }
}
