//! Exports a plugin from its library: a note with the manifest, and one symbol.

use cofferdam_plugin_abi::{ABI_NAME, API_VERSION, ENCODING};
use cofferdam_plugin_model::{FEATURES, REQUEST_PARTS};

use crate::config::Schema;
use crate::note::Text;

/// The content of a manifest, collected by the export attributes.
pub struct Export {
    /// `isolator`, `logger` or `hook`.
    pub kind: &'static str,
    /// Name of the plugin.
    pub name: &'static str,
    /// Version of its package.
    pub version: &'static str,
    /// Description of its package.
    pub description: &'static str,
    /// Whether it is compiled with `panic = "unwind"`.
    pub unwinds: bool,
    /// The methods it implements.
    pub methods: &'static [&'static str],
    /// Whether it takes part in nested containers.
    pub nesting: bool,
    /// Whether it takes part in standalone containers.
    pub standalone: bool,
    /// Names of plugins that must be in the chain as well.
    pub requires: &'static [&'static str],
    /// Names of plugins that must not be in the chain as well.
    pub conflicts: &'static [&'static str],
    /// Names of plugins that, if in the chain, must come earlier.
    pub after: &'static [&'static str],
    /// Names of plugins that, if in the chain, must come later.
    pub before: &'static [&'static str],
    /// Features of the agent that it requires.
    pub features: &'static [&'static str],
    /// Parts of a launch request that it handles.
    pub handles: &'static [&'static str],
    /// Schema of its table in the configuration file.
    pub config: &'static Schema,
}

impl Export {
    /// The manifest as JSON.
    #[must_use]
    pub const fn manifest(&self) -> Text {
        assert!(
            is_name(self.name),
            "NAME must be `area/name` or `name`, in lower-case letters, digits, `-` and `_`"
        );
        assert!(
            are_known(self.features, FEATURES),
            "FEATURES contains a feature that this version of cofferdam-plugin-api does not know; see model::FEATURES"
        );
        assert!(
            are_known(self.handles, REQUEST_PARTS),
            "HANDLES contains a part that this version of cofferdam-plugin-api does not know; see model::REQUEST_PARTS"
        );
        let mut text = Text::new();
        text.raw("{");
        text.entry("kind", self.kind);
        text.entry("name", self.name);
        text.entry("version", self.version);
        text.entry("description", self.description);
        text.entry("api", API_VERSION);
        text.entry("abi", ABI_NAME);
        text.entry("encoding", ENCODING);
        text.entry("panic", if self.unwinds { "unwind" } else { "abort" });
        text.entries("methods", self.methods);
        text.flag("nesting", self.nesting);
        text.flag("standalone", self.standalone);
        text.entries("requires", self.requires);
        text.entries("conflicts", self.conflicts);
        text.entries("after", self.after);
        text.entries("before", self.before);
        text.entries("features", self.features);
        text.entries("handles", self.handles);
        text.raw("\"config\":");
        self.config.write(&mut text, "");
        text.raw("}");
        text
    }
}

/// Names of plugins are also names of directories and labels of metrics, so they are restricted.
const fn is_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let (mut i, mut slashes) = (0, 0);
    while i < bytes.len() {
        match bytes[i] {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {}
            b'/' if i > 0 && i + 1 < bytes.len() => slashes += 1,
            _ => return false,
        }
        i += 1;
    }
    !bytes.is_empty() && slashes <= 1
}

const fn are_known(names: &[&str], all: &[&str]) -> bool {
    let mut i = 0;
    while i < names.len() {
        let mut known = false;
        let mut j = 0;
        while j < all.len() {
            known |= equal(names[i].as_bytes(), all[j].as_bytes());
            j += 1;
        }
        if !known {
            return false;
        }
        i += 1;
    }
    true
}

const fn equal(left: &[u8], right: &[u8]) -> bool {
    let mut i = 0;
    while i < left.len() && i < right.len() && left[i] == right[i] {
        i += 1;
    }
    i == left.len() && i == right.len()
}

/// Expands to the static items of an isolator. Called by `#[isolator]`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_isolator {
    ($plugin:ty, [$($method:literal),*]) => {
        $crate::__export!(
            "isolator", $crate::Isolator, $plugin, [$($method),*],
            <$plugin as $crate::Isolator>::NESTING,
            <$plugin as $crate::Isolator>::STANDALONE,
            <$plugin as $crate::Isolator>::HANDLES,
            $crate::__private::new_isolator::<$plugin>,
            $crate::__private::no_logger,
            $crate::__private::no_hook
        );
    };
}

/// Expands to the static items of a logger. Called by `#[logger]`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_logger {
    ($plugin:ty, [$($method:literal),*]) => {
        $crate::__export!(
            "logger", $crate::Logger, $plugin, [$($method),*],
            true,
            true,
            &[],
            $crate::__private::no_isolator,
            $crate::__private::new_logger::<$plugin>,
            $crate::__private::no_hook
        );
    };
}

/// Expands to the static items of a hook. Called by `#[hook]`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export_hook {
    ($plugin:ty, [$($method:literal),*]) => {
        $crate::__export!(
            "hook", $crate::Hook, $plugin, [$($method),*],
            true,
            true,
            &[],
            $crate::__private::no_isolator,
            $crate::__private::no_logger,
            $crate::__private::new_hook::<$plugin>
        );
    };
}

/// Expands to the note and the exported symbol.
///
/// The symbol is the one that `#[export_root_module]` of abi_stable exports. That attribute is not used because plugins
/// would have to depend on abi_stable.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($kind:literal, $trait:path, $plugin:ty, [$($method:literal),*], $nesting:expr, $standalone:expr,
     $handles:expr, $new_isolator:expr, $new_logger:expr, $new_hook:expr) => {
        #[allow(unsafe_code, reason = "the agent finds a plugin by the section and the symbol of these items")]
        const _: () = {
            use $crate::__private as private;

            const MANIFEST: private::Text = private::Export {
                kind: $kind,
                name: <$plugin as $trait>::NAME,
                version: ::core::env!("CARGO_PKG_VERSION"),
                description: ::core::env!("CARGO_PKG_DESCRIPTION"),
                unwinds: ::core::cfg!(panic = "unwind"),
                methods: &[$($method),*],
                nesting: $nesting,
                standalone: $standalone,
                requires: <$plugin as $trait>::REQUIRES,
                conflicts: <$plugin as $trait>::CONFLICTS,
                after: <$plugin as $trait>::AFTER,
                before: <$plugin as $trait>::BEFORE,
                features: <$plugin as $trait>::FEATURES,
                handles: $handles,
                config: <<$plugin as $trait>::Config as $crate::PluginConfig>::SCHEMA,
            }
            .manifest();

            #[used]
            #[unsafe(link_section = ".note.cofferdam.plugin")]
            static NOTE: private::Note<{ private::note_len(&MANIFEST) }> = private::Note::new(&MANIFEST);

            fn module() -> private::ModuleRef {
                private::PrefixTypeTrait::leak_into_prefix(private::Module {
                    new_isolator: $new_isolator,
                    new_logger: $new_logger,
                    new_hook: $new_hook,
                })
            }

            extern "C" fn load() -> private::RootModuleResult {
                private::__call_root_module_loader(module)
            }

            #[unsafe(no_mangle)]
            // SAFETY: the type parameter is the type of the module that `load` returns.
            static _1as_0lib_1header_0root_bmodule_bloader: private::LibHeader = unsafe {
                private::LibHeader::from_constructor::<private::ModuleRef>(
                    load,
                    private::CheckTypeLayout::Yes,
                )
            };
        };
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_features_can_be_required() {
        assert!(are_known(&[], FEATURES) && are_known(FEATURES, FEATURES));
        for unknown in ["", "launch", "launch.secomp", "launch.seccomp.v2"] {
            assert!(!are_known(&["service.state", unknown], FEATURES), "{unknown}");
        }
    }

    #[test]
    fn the_manifest_contains_order_features_and_methods() {
        let export = Export {
            kind: "isolator",
            name: "test/plugin",
            version: "1.0.0",
            description: "",
            unwinds: true,
            methods: &["removed"],
            nesting: false,
            standalone: true,
            requires: &[],
            conflicts: &[],
            after: &["a"],
            before: &["b"],
            features: &["launch.seccomp"],
            handles: &["seccomp"],
            config: &Schema::Boolean,
        };
        let text = export.manifest();
        let manifest: cofferdam_plugin_model::Manifest = serde_json::from_slice(text.as_bytes()).unwrap();
        assert_eq!((manifest.after, manifest.before), (vec!["a".to_owned()], vec!["b".to_owned()]));
        assert_eq!(
            (manifest.features, manifest.handles),
            (vec!["launch.seccomp".into()], vec!["seccomp".into()])
        );
        assert!(manifest.methods.contains(cofferdam_plugin_model::Method::Removed));
    }
}
