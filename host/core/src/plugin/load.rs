//! The one place where foreign code enters the process.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::check_layout_compatibility;
use abi_stable::library::{AbiHeaderRef, IsLayoutChecked, LibHeader, ROOT_MODULE_LOADER_NAME_WITH_NUL};
use abi_stable::type_layout::TypeLayout;
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
pub(super) fn load(name: &str, path: &Path) -> Result<ModuleRef, LoadError> {
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
    match compare(<ModuleRef as StableAbi>::LAYOUT, theirs) {
        Ok(Age::Older) => {
            tracing::debug!(plugin = name, "built against an earlier minor version of the plugin API");
            Ok(())
        }
        Ok(Age::SameOrNewer) => Ok(()),
        Err(difference) => {
            tracing::debug!(plugin = name, "{difference}");
            Err(LoadError::Layout { name: name.to_owned(), api: cofferdam_plugin_abi::API_VERSION })
        }
    }
}

/// What a plugin is to this agent.
#[derive(Debug, PartialEq, Eq)]
enum Age {
    SameOrNewer,
    Older,
}

/// Finds one layout inside the other, or says why neither is.
fn compare(ours: &'static TypeLayout, theirs: &'static TypeLayout) -> Result<Age, String> {
    let Err(newer) = check_layout_compatibility(ours, theirs) else { return Ok(Age::SameOrNewer) };
    let Err(older) = check_layout_compatibility(theirs, ours) else { return Ok(Age::Older) };
    Err(format!("as a newer plugin: {newer}\nas an older plugin: {older}"))
}

/// The `x` of the glibc 2.x that this process runs with.
pub(super) fn glibc_minor() -> u32 {
    // SAFETY: the function has no preconditions and answers a static, NUL-terminated text.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    version.to_str().ok().and_then(|text| text.split('.').nth(1)?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One boundary as it was released, and as it may and may not become.
    macro_rules! release {
        ($name:ident { $($before:ident),* ; $last:ident ; $($after:ident: $answer:literal),* }) => {
            #[expect(
                non_local_definitions,
                dead_code,
                reason = "what abi_stable expands to; only the layout is looked at"
            )]
            mod $name {
                use abi_stable::std_types::RBox;
                use abi_stable::{StableAbi, sabi_trait};

                #[sabi_trait]
                pub trait Object {
                    $(fn $before(&self) -> u32;)*
                    #[sabi(last_prefix_field)]
                    fn $last(&self) -> u32;
                    $(fn $after(&self) -> u32 { $answer })*
                }

                #[repr(C)]
                #[derive(StableAbi)]
                #[sabi(kind(Prefix(prefix_ref = RootRef)))]
                pub struct Root {
                    pub make: extern "C" fn() -> Object_TO<'static, RBox<()>>,
                }

                pub fn layout() -> &'static abi_stable::type_layout::TypeLayout {
                    <RootRef as StableAbi>::LAYOUT
                }
            }
        };
    }

    release!(released { prepare; cleanup; });
    release!(appended { prepare; cleanup; shutdown: 0 });
    release!(inserted { prepare, isolate; cleanup; });
    release!(renamed { get_ready; cleanup; });

    #[test]
    fn an_older_plugin_is_as_welcome_as_a_newer_one() {
        assert_eq!(compare(released::layout(), released::layout()), Ok(Age::SameOrNewer));
        assert_eq!(compare(released::layout(), appended::layout()), Ok(Age::SameOrNewer));
        assert_eq!(compare(appended::layout(), released::layout()), Ok(Age::Older));
    }

    #[test]
    fn a_boundary_that_did_anything_but_grow_is_refused_in_both_directions() {
        for other in [inserted::layout(), renamed::layout()] {
            compare(released::layout(), other).unwrap_err();
            compare(other, released::layout()).unwrap_err();
        }
    }
}
