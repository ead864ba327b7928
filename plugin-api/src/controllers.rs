//! The cgroups that one isolator manages.

use crate::cgroup::{Cgroup, CgroupError, CgroupVersion};
use crate::model::Cgroups;
use crate::{ContainerRef, Error, NewContainer, Prepared, Result};

/// The cgroup controllers that an isolator manages for its containers.
///
/// A nested container may share the cgroups of its parent. They are limited, measured and removed with the parent, so
/// there is nothing to do for such a container, and each method says what it does then.
///
/// ```
/// use cofferdam_plugin_api::prelude::*;
///
/// const PIDS: Controllers = Controllers::new("pids");
///
/// struct Pids;
///
/// impl Isolator for Pids {
///     const NAME: &'static str = "example/pids";
///     const NESTING: bool = true;
///     type Config = ();
///
///     fn create(_: (), _: Host) -> Result<Self> {
///         Ok(Self)
///     }
///
///     fn prepare(&self, container: &NewContainer) -> Result<Prepared> {
///         let Some(cgroups) = PIDS.create(container)? else { return Ok(Prepared::new()) };
///         cgroups.main().write("pids.max", 100)?;
///         Ok(Prepared::new().cgroups(&cgroups))
///     }
///
///     fn usage(&self, container: &ContainerRef) -> Result<Usage> {
///         let Some(cgroups) = PIDS.find(container)? else { return Ok(Usage::default()) };
///         let processes: u32 = cgroups.main().read_as("pids.current")?;
///         Ok(Usage::default().with("processes", processes))
///     }
///
///     fn cleanup(&self, container: &ContainerRef) -> Result<()> {
///         PIDS.remove(container)
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Controllers {
    main: &'static str,
    optional: &'static [&'static str],
    delegated: bool,
}

impl Controllers {
    /// The controller `main`, which the host must have.
    #[must_use]
    pub const fn new(main: &'static str) -> Self {
        Self { main, optional: &[], delegated: false }
    }

    /// With further controllers, which are used if the host has them: `cpuacct`, which exists on v1 only.
    #[must_use]
    pub const fn with_optional(self, optional: &'static [&'static str]) -> Self {
        Self { optional, ..self }
    }

    /// On v2, has the container's user own the directory of the cgroup, so that it can create cgroups below it, as many as the
    /// agent permits. The interface files stay those of the agent, so it cannot change limits; only for controllers whose
    /// limits hold for the cgroups below too.
    ///
    /// Not on v1, where the kernel has no limit for their number. Each takes memory of the kernel, and the machine has no more
    /// than 65,535 of some controllers.
    #[must_use]
    pub const fn delegated(self) -> Self {
        Self { delegated: true, ..self }
    }

    /// Name of the main one.
    #[must_use]
    pub const fn main(self) -> &'static str {
        self.main
    }

    /// All of them, the main one first.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        std::iter::once(self.main).chain(self.optional.iter().copied())
    }

    /// In `prepare`: creates the container's cgroups, for its user if they are [delegated](Controllers::delegated). `None` if it shares those of its parent.
    ///
    /// # Errors
    /// [`CgroupError::NoController`], [`CgroupError::Refused`] or [`CgroupError::Enable`].
    pub fn create(self, container: &NewContainer) -> Result<Option<OwnCgroups>> {
        if container.shares_cgroups() {
            return Ok(None);
        }
        let cgroups = self.look_up(&container.cgroups)?;
        for cgroup in cgroups.iter() {
            cgroup.create()?;
            if self.delegated && container.uid != 0 && cgroup.version() == CgroupVersion::V2 {
                cgroup.delegate(container.uid, container.gid)?;
            }
        }
        Ok(Some(cgroups))
    }

    /// The container's cgroups. `None` if it shares those of its parent.
    ///
    /// # Errors
    /// [`CgroupError::NoController`], or if the agent's message cannot be decoded.
    pub fn find(self, container: &ContainerRef) -> Result<Option<OwnCgroups>> {
        let names: Vec<&str> = self.names().collect();
        let (cgroups, shares_cgroups) = container.cgroups_of(&names)?;
        if shares_cgroups {
            return Ok(None);
        }
        Ok(Some(self.look_up(&cgroups)?))
    }

    /// In `update`: the container's cgroups.
    ///
    /// # Errors
    /// If it shares those of its parent, whose limits an update must not change; and those of [`Controllers::find`].
    pub fn require(self, container: &ContainerRef) -> Result<OwnCgroups> {
        self.find(container)?.ok_or_else(|| {
            Error::new(format!(
                "container `{}` shares the control groups of its parent: update the parent instead",
                container.id()
            ))
        })
    }

    /// In `cleanup`: removes the container's cgroups. They need not exist, and neither need the controllers: the agent may
    /// have been configured differently before. Does nothing if it shares those of its parent.
    ///
    /// # Errors
    /// [`CgroupError::Refused`]; marked as retryable if a cgroup is in use.
    pub fn remove(self, container: &ContainerRef) -> Result<()> {
        let details = container.details()?;
        if details.shares_cgroups {
            return Ok(());
        }
        self.names()
            .filter_map(|name| Cgroup::find(&details.cgroups, name))
            .try_for_each(|cgroup| cgroup.remove())
    }

    fn look_up(self, cgroups: &Cgroups) -> Result<OwnCgroups, CgroupError> {
        Ok(OwnCgroups {
            main: Cgroup::of(cgroups, self.main)?,
            optional: self.optional.iter().filter_map(|name| Cgroup::find(cgroups, name)).collect(),
        })
    }
}

/// The cgroups of a container that does not share those of its parent.
#[derive(Debug, Clone)]
pub struct OwnCgroups {
    main: Cgroup,
    optional: Vec<Cgroup>,
}

impl OwnCgroups {
    /// That of the main controller.
    #[must_use]
    pub fn main(&self) -> &Cgroup {
        &self.main
    }

    /// That of another controller, if the host has it.
    #[must_use]
    pub fn optional(&self, controller: &str) -> Option<&Cgroup> {
        self.optional.iter().find(|cgroup| cgroup.controller() == controller)
    }

    fn iter(&self) -> impl Iterator<Item = &Cgroup> {
        std::iter::once(&self.main).chain(&self.optional)
    }
}

impl Prepared {
    /// Has the container's processes in these cgroups. On v2 they always are in the container's cgroup.
    #[must_use]
    pub fn cgroups(mut self, cgroups: &OwnCgroups) -> Self {
        let requested = &mut self.launch().cgroups;
        for cgroup in cgroups.iter().filter(|cgroup| cgroup.version() == CgroupVersion::V1) {
            // Controllers that are mounted together have one directory.
            if !requested.iter().any(|directory| directory == cgroup.directory()) {
                requested.push(cgroup.directory().to_owned());
            }
        }
        self
    }
}
