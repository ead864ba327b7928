//! The terminal of a container: opened in its root, so that programs in it find the device under its name.

use crate::failure::Failure;
use crate::plan::read::{Terminal, User};
use crate::report::Step;
use crate::sys::{self, Errno, Fd, O_DIRECTORY, O_PATH};

/// Opens a terminal as the standard streams of this process, which is in the container's root, and sends its other side
/// to the I/O switchboard.
///
/// The root may be that of another container, in which anything may be at the path. So it is resolved within the root,
/// and what is opened must be the kernel's multiplexer; the other side is not opened by its name.
pub(crate) fn open(terminal: Terminal, user: Option<User<'_>>) -> Result<(), Failure<'static>> {
    const PATH: &core::ffi::CStr = c"/dev/ptmx";
    let failed = |errno| Failure::of(Step::Terminal, errno, PATH);
    let root = sys::open(c"/", O_PATH | O_DIRECTORY).map_err(failed)?;
    let master = sys::open_terminal(root, PATH).map_err(failed)?;
    sys::close(root);
    let peer = sys::open_terminal_peer(master).map_err(failed)?;
    if let Some(user) = user {
        const SAME_GROUP: u32 = u32::MAX;
        match sys::change_owner(peer, user.uid, SAME_GROUP) {
            // Without privileges, the user is this process's.
            Ok(()) | Err(Errno::PERM) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    if (terminal.rows, terminal.columns) != (0, 0) {
        sys::set_terminal_size(peer, terminal.rows, terminal.columns).map_err(failed)?;
    }
    let switchboard = Fd(terminal.descriptor.cast_signed());
    sys::send(switchboard, &[0], Some(master)).map_err(failed)?;
    sys::close(switchboard);
    sys::close(master);
    for stream in 0..3 {
        sys::duplicate_to(peer, stream, false).map_err(failed)?;
    }
    sys::close(peer);
    Ok(())
}
