//! User, groups and capabilities of a process that is about to execute a program of the container.

use crate::plan::read::{Capabilities, User};
use crate::sys::{self, CapabilitySets, Errno};

pub(crate) fn narrow_bounding_set(wanted: u64) -> Result<(), Errno> {
    for capability in 0..u64::BITS {
        match sys::in_bounding_set(capability) {
            Ok(true) if wanted >> capability & 1 == 0 => sys::drop_from_bounding_set(capability)?,
            Ok(_) => {}
            // The first number that the kernel does not know is the end.
            Err(_) => break,
        }
    }
    Ok(())
}

pub(crate) fn become_user(user: User<'_>) -> Result<(), Errno> {
    sys::set_groups(user.groups.bytes())?;
    sys::set_group(user.gid)?;
    sys::set_user(user.uid)
}

/// Sets the wanted capabilities. In any case clears the inheritable set unless it is wanted: an inherited set would
/// become permitted by executing a file with inheritable capabilities (CVE-2022-24769).
pub(crate) fn set_capabilities(wanted: Option<Capabilities>) -> Result<(), Errno> {
    sys::clear_ambient_set()?;
    let Some(wanted) = wanted else {
        return sys::set_capabilities(CapabilitySets { inheritable: 0, ..sys::capabilities()? });
    };
    let Capabilities { effective, permitted, inheritable, ambient, .. } = wanted;
    sys::set_capabilities(CapabilitySets { effective, permitted, inheritable })?;
    for capability in (0..u64::BITS).filter(|capability| ambient >> capability & 1 == 1) {
        sys::raise_in_ambient_set(capability)?;
    }
    Ok(())
}
