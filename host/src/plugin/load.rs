//! The one place where foreign code enters the process.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::check_layout_compatibility;
use abi_stable::library::{AbiHeaderRef, IsLayoutChecked, LibHeader, ROOT_MODULE_LOADER_NAME_WITH_NUL};
use cofferdam_plugin_abi::ModuleRef;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// Why a plugin that looked right could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The system's loader refused it.
    #[error("the system's loader refuses plugin `{name}` (`{path}`): {reason}")]
    Open {
        /// The plugin.
        name: String,
        /// The private copy.
        path: PathBuf,
        /// The loader's words.
        reason: String,
    },
    /// It is built with another boundary library.
    #[error("plugin `{name}` was built with an incompatible abi_stable; rebuild it against plugin API {api}")]
    Header {
        /// The plugin.
        name: String,
        /// Ours.
        api: &'static str,
    },
    /// Its idea of the boundary is not ours, in either direction.
    #[error(
        "plugin `{name}` disagrees with this agent about the plugin API {api}; rebuild it (what differs is \
         in the agent's log at level debug)"
    )]
    Layout {
        /// The plugin.
        name: String,
        /// Ours.
        api: &'static str,
    },
    /// Its first function failed.
    #[error("plugin `{name}` could not set itself up: {reason}")]
    Root {
        /// The plugin.
        name: String,
        /// Why.
        reason: String,
    },
}

/// Loads a private copy and answers what it exports. The library stays for the life of the process.
///
/// # Errors
/// [`LoadError`] says who refused.
pub fn load(name: &str, path: &Path) -> Result<ModuleRef, LoadError> {
    let open_error = |error: libloading::Error| LoadError::Open {
        name: name.to_owned(),
        path: path.to_owned(),
        // libloading says only which function failed; the loader's own words are its source.
        reason: std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string),
    };
    // SAFETY: this runs the library's constructors. They are the plugin author's, whom the operator trusts
    // with the agent's rights by naming the plugin; what can be checked without running it has been.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(open_error)?;
    // SAFETY: the export macro defines this symbol as a static `LibHeader`, which begins with an
    // `AbiHeader`; `AbiHeaderRef` is a transparent reference to one, and `upgrade` checks its magic text
    // before anything else is read.
    let header = unsafe { library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()) }
        .map(|symbol| *symbol)
        .map_err(open_error)?;
    // References into it are everywhere from now on, and abi_stable keeps some for ever.
    std::mem::forget(library);

    let header = header.upgrade().map_err(|error| {
        tracing::debug!(plugin = name, "{error}");
        LoadError::Header { name: name.to_owned(), api: cofferdam_plugin_abi::API_VERSION }
    })?;
    check_layout(name, header)?;
    // SAFETY: `check_layout` found one side's layout inside the other's, and every access past the end of
    // the smaller one is tested at run time by the accessors of prefix types and trait objects.
    unsafe { header.unchecked_layout::<ModuleRef>() }
        .map_err(|error| LoadError::Root { name: name.to_owned(), reason: error.to_string() })
}

/// Accepts a plugin whose layout contains ours (a newer one) or is contained in ours (an older one). The
/// stock check asks only the first question, and so refuses every older plugin.
fn check_layout(name: &str, header: &'static LibHeader) -> Result<(), LoadError> {
    let IsLayoutChecked::Yes(theirs) = header.root_mod_consts().layout() else {
        tracing::debug!(plugin = name, "the library was exported without its layout");
        return Err(LoadError::Layout { name: name.to_owned(), api: cofferdam_plugin_abi::API_VERSION });
    };
    let ours = <ModuleRef as StableAbi>::LAYOUT;
    let Err(newer) = check_layout_compatibility(ours, theirs) else { return Ok(()) };
    let Err(older) = check_layout_compatibility(theirs, ours) else {
        tracing::debug!(plugin = name, "built against an earlier minor version of the plugin API");
        return Ok(());
    };
    tracing::debug!(plugin = name, "as a newer plugin: {newer}\nas an older plugin: {older}");
    Err(LoadError::Layout { name: name.to_owned(), api: cofferdam_plugin_abi::API_VERSION })
}

/// The `x` of the glibc 2.x that this process runs with.
pub fn glibc_minor() -> u32 {
    // SAFETY: the function has no preconditions and answers a static, NUL-terminated text.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    version.to_str().ok().and_then(|text| text.split('.').nth(1)?.parse().ok()).unwrap_or(0)
}
