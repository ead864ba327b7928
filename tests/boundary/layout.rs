//! The boundary has not changed since its release.
//!
//! `abi_stable` compares two layouts when a plugin is loaded, but nothing compares the current layout with the released
//! one when the boundary is edited. The committed file does: names, types and order of everything that crosses it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use abi_stable::StableAbi;
use abi_stable::type_layout::{TLData, TLFunction, TypeLayout};
use cofferdam_plugin_abi::{
    API_VERSION, Answer, Call, Failure, HookBox, HostBox, IsolatorBox, LoggerBox, ModuleRef,
};

/// The package whose types are frozen; those of `abi_stable` are by its exact version.
const PACKAGE: &str = "cofferdam-plugin-abi";

#[test]
fn the_layout_is_the_released_one() {
    let mut found = BTreeMap::new();
    for root in [
        <ModuleRef as StableAbi>::LAYOUT,
        <Call<'static> as StableAbi>::LAYOUT,
        <Answer as StableAbi>::LAYOUT,
        <Failure as StableAbi>::LAYOUT,
        <HostBox as StableAbi>::LAYOUT,
        <IsolatorBox as StableAbi>::LAYOUT,
        <LoggerBox as StableAbi>::LAYOUT,
        <HookBox as StableAbi>::LAYOUT,
    ] {
        describe(root, &mut found, 0);
    }
    let today: String = found.into_values().collect();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("boundary/abi.txt");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&golden, &today).unwrap();
    }
    let released = std::fs::read_to_string(&golden).unwrap();
    assert!(
        today == released,
        "the boundary is not what {} says, with which released plugins were built.\n\
         If that was not intended, revert the change.\n\
         An addition (a method with a default body at the end of a trait, a function at the end of \
         `Module`): raise the minor version of `{PACKAGE}` (now {API_VERSION}), note it in CHANGELOG.md, \
         and run this test once with BLESS=1.\n\
         Anything else is a new major version, which no existing plugin survives.\n\n{}",
        golden.display(),
        difference(&released, &today),
    );
}

/// Describes a type as the loader's check sees it, and each type of this workspace that it contains.
fn describe(layout: &'static TypeLayout, found: &mut BTreeMap<String, String>, depth: usize) {
    let name = format!("{}::{}", layout.mod_path(), name_of(layout));
    // Limited because types of `abi_stable` are recursive. No type of this workspace is nested more deeply.
    if depth > 8 || found.contains_key(&name) {
        return;
    }
    let fields: Vec<_> = layout.get_fields().into_iter().flat_map(|fields| fields.iter()).collect();
    if layout.package().as_str() == PACKAGE {
        let mut text = format!("{name}: {} bytes, aligned to {}", layout.size(), layout.alignment());
        if let TLData::PrefixType(prefix) = layout.data() {
            // Every plugin has these methods; the presence of later ones is checked at run time.
            let _ = write!(text, ", always the first {}", prefix.first_suffix_field);
        }
        text.push('\n');
        for field in &fields {
            let mut functions = field.function_range().iter().map(|function| signature(&function));
            let is = functions.next().unwrap_or_else(|| name_of(field.layout()));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "    {}: {is}", field.name());
        }
        text.push('\n');
        found.insert(name, text);
    }
    for field in fields.iter().copied().chain(layout.phantom_fields().iter()) {
        describe(field.layout(), found, depth + 1);
    }
}

/// The name of a type with its parts, where they are not part of the name: `RVec` has the type of its elements only
/// in its fields.
fn name_of(layout: &'static TypeLayout) -> String {
    let name = layout.full_type().to_string();
    let is_ours = layout.package().as_str() == PACKAGE;
    let fields = layout.get_fields().into_iter().flat_map(|fields| fields.iter());
    let parts: BTreeSet<String> = fields
        .chain(layout.phantom_fields().iter())
        .filter(|_| !is_ours && name.starts_with('R'))
        .map(|field| field.layout().full_type().to_string())
        .collect();
    if parts.is_empty() { name } else { format!("{name} of {parts:?}").replace('"', "") }
}

fn signature(function: &TLFunction) -> String {
    let parameters: Vec<String> =
        function.param_type_layouts.iter().map(|parameter| name_of(parameter())).collect();
    let answer = function.return_type_layout().map_or_else(|| "()".into(), |layout| name_of(layout()));
    format!("fn({}) -> {answer}", parameters.join(", "))
}

/// The lines that only one side has.
fn difference(released: &str, today: &str) -> String {
    let only = |mark: char, of: &str, not: &str| -> String {
        of.lines()
            .filter(|line| !not.lines().any(|other| other == *line))
            .map(|line| format!("{mark} {line}\n"))
            .collect()
    };
    let lines = only('-', released, today) + &only('+', today, released);
    if lines.is_empty() { "the same lines in another order".into() } else { lines }
}
