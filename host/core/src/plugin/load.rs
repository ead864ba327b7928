//! Loads plugin libraries with dlopen(3). This is the only module that loads code into the process.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::{Path, PathBuf};

use abi_stable::StableAbi;
use abi_stable::abi_stability::abi_checking::check_layout_compatibility;
use abi_stable::library::{AbiHeaderRef, IsLayoutChecked, LibHeader, ROOT_MODULE_LOADER_NAME_WITH_NUL};
use abi_stable::type_layout::TypeLayout;
use cofferdam_linux::mounts::is_noexec;
use cofferdam_plugin_abi::ModuleRef;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use parking_lot::Mutex;

/// The libraries of this process, by the hash of their content. As none is ever unloaded, a process that creates one agent after
/// the other would otherwise have a copy of each plugin in memory for each of them.
static LOADED: Mutex<BTreeMap<String, ModuleRef>> = Mutex::new(BTreeMap::new());

/// Why a plugin that passed preflight could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The dynamic loader failed.
    #[error("the dynamic loader cannot load plugin `{name}` (`{path}`): {reason}")]
    Open {
        /// The plugin.
        name: String,
        /// The private copy.
        path: PathBuf,
        /// Message of the dynamic loader.
        reason: String,
    },
    /// Nothing can be executed from the file system of its private copy.
    #[error(
        "the private copy `{path}` of plugin `{name}` cannot be loaded, as its file system is mounted `noexec`; mount \
         that of `work_dir` without this option, or choose another `work_dir`"
    )]
    NoExec {
        /// The plugin.
        name: String,
        /// The private copy.
        path: PathBuf,
    },
    /// It was built with an incompatible version of abi_stable.
    #[error("plugin `{name}` was built with an incompatible abi_stable; rebuild it against plugin API {api}")]
    Header {
        /// The plugin.
        name: String,
        /// The plugin API version of this agent.
        api: &'static str,
    },
    /// Neither of the two ABI layouts contains the other.
    #[error(
        "the ABI of plugin `{name}` is not compatible with plugin API {api} of this agent; rebuild it (the \
         difference is logged at level debug)"
    )]
    Layout {
        /// The plugin.
        name: String,
        /// The plugin API version of this agent.
        api: &'static str,
    },
    /// The function that returns its root module failed.
    #[error("plugin `{name}` failed to initialize: {reason}")]
    Root {
        /// The plugin.
        name: String,
        /// Why.
        reason: String,
    },
}

/// What is known of the layout of a plugin's ABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Nothing: it has to be compared, which takes half a millisecond.
    Unknown,
    /// The same plugin file was found compatible by the same program before.
    Compatible,
}

/// Loads a private copy, whose content has that hash, and returns its root module. The library is never unloaded; the same content
/// is loaded once.
///
/// # Errors
/// [`LoadError`].
pub(super) fn load(name: &str, path: &Path, sha256: &str, layout: Layout) -> Result<ModuleRef, LoadError> {
    if let Some(module) = LOADED.lock().get(sha256) {
        return Ok(*module);
    }
    // Not locked meanwhile: others are loaded in parallel.
    let module = open(name, path, layout)?;
    LOADED.lock().insert(sha256.to_owned(), module);
    Ok(module)
}

fn open(name: &str, path: &Path, layout: Layout) -> Result<ModuleRef, LoadError> {
    let open_error = |error: libloading::Error| {
        let (name, path) = (name.to_owned(), path.to_owned());
        // The message of the loader does not say it.
        if is_noexec(&path).unwrap_or(false) {
            return LoadError::NoExec { name, path };
        }
        // The error of libloading names only the function that failed; its source is the message of the loader.
        let reason = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        LoadError::Open { name, path, reason }
    };
    // SAFETY: this runs the library's constructors. By configuring the plugin, the operator trusts its code with the
    // agent's privileges. Preflight has checked what can be checked without running it.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(open_error)?;
    // SAFETY: the export macro defines this symbol as a static `LibHeader`, which begins with an
    // `AbiHeader`; `AbiHeaderRef` is a transparent reference to one, and `upgrade` checks its magic text
    // before anything else is read.
    let header = unsafe { library.get::<AbiHeaderRef>(ROOT_MODULE_LOADER_NAME_WITH_NUL.as_bytes()) }
        .map(|symbol| *symbol)
        .map_err(open_error)?;
    // Never unloaded: abi_stable and the callers keep `'static` references into it.
    std::mem::forget(library);

    let header = header.upgrade().map_err(|error| {
        tracing::debug!(plugin = name, "{error}");
        LoadError::Header { name: name.to_owned(), api: cofferdam_plugin_abi::API_VERSION }
    })?;
    if layout == Layout::Unknown {
        check_layout(name, header)?;
    }
    // SAFETY: `check_layout` has established that one layout contains the other, now or earlier for the same bytes. The
    // accessors of prefix types and trait objects check at run time that a field exists before they read it.
    unsafe { header.unchecked_layout::<ModuleRef>() }
        .map_err(|error| LoadError::Root { name: name.to_owned(), reason: error.to_string() })
}

/// Accepts a plugin whose layout contains that of the agent (a newer plugin) or is contained in it (an older plugin).
/// The check of abi_stable itself accepts newer plugins only.
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

/// Age of a plugin's ABI, compared with that of the agent.
#[derive(Debug, PartialEq, Eq)]
enum Age {
    SameOrNewer,
    Older,
}

/// Compares two layouts. Fails with the differences if neither contains the other.
fn compare(ours: &'static TypeLayout, theirs: &'static TypeLayout) -> Result<Age, String> {
    let Err(newer) = check_layout_compatibility(ours, theirs) else { return Ok(Age::SameOrNewer) };
    let Err(older) = check_layout_compatibility(theirs, ours) else { return Ok(Age::Older) };
    Err(format!("as a newer plugin: {newer}\nas an older plugin: {older}"))
}

/// The minor version of the glibc of this process: the `x` of 2.x.
pub(super) fn glibc_minor() -> u32 {
    // SAFETY: the function has no preconditions and returns a static, NUL-terminated string.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    version.to_str().ok().and_then(|text| text.split('.').nth(1)?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module with an ABI: a trait with these methods, and the root module that creates it.
    macro_rules! release {
        ($name:ident { $($before:ident),* ; $last:ident ; $($after:ident: $answer:literal),* }) => {
            #[expect(
                non_local_definitions,
                dead_code,
                reason = "expansion of abi_stable, of which only the layout is used"
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
    fn older_and_newer_plugins_are_compatible() {
        assert_eq!(compare(released::layout(), released::layout()), Ok(Age::SameOrNewer));
        assert_eq!(compare(released::layout(), appended::layout()), Ok(Age::SameOrNewer));
        assert_eq!(compare(appended::layout(), released::layout()), Ok(Age::Older));
    }

    /// A root module with these functions, of which the first ones are those of its first release.
    macro_rules! root {
        ($name:ident { $($before:ident),* ; $last:ident ; $($after:ident),* }) => {
            #[expect(
                dead_code,
                reason = "expansion of abi_stable, of which only the layout is used"
            )]
            mod $name {
                use abi_stable::StableAbi;

                #[repr(C)]
                #[derive(StableAbi)]
                #[sabi(kind(Prefix(prefix_ref = RootRef)))]
                #[sabi(missing_field(option))]
                pub struct Root {
                    $(pub $before: extern "C" fn() -> u32,)*
                    #[sabi(last_prefix_field)]
                    pub $last: extern "C" fn() -> u32,
                    $(pub $after: extern "C" fn() -> u32,)*
                }

                pub fn layout() -> &'static abi_stable::type_layout::TypeLayout {
                    <RootRef as StableAbi>::LAYOUT
                }
            }
        };
    }

    root!(two_kinds { new_isolator; new_logger; });
    root!(three_kinds { new_isolator; new_logger; new_hook });
    root!(other_kinds { new_isolator; new_logger; new_resolver });

    #[test]
    fn plugins_of_before_and_after_another_kind_are_compatible() {
        assert_eq!(compare(three_kinds::layout(), two_kinds::layout()), Ok(Age::Older));
        assert_eq!(compare(two_kinds::layout(), three_kinds::layout()), Ok(Age::SameOrNewer));
        compare(three_kinds::layout(), other_kinds::layout()).unwrap_err();
    }

    #[test]
    fn layouts_with_an_inserted_or_renamed_method_are_incompatible() {
        for other in [inserted::layout(), renamed::layout()] {
            compare(released::layout(), other).unwrap_err();
            compare(other, released::layout()).unwrap_err();
        }
    }
}
