//! No import cycles between sibling modules.
//!
//! For every module, its child modules are compared: a child depends on another if any file of it names an item of the
//! other. Re-exports are followed to the module that defines the item. A module may use its ancestors, and use and
//! re-export its children; such dependencies are not counted. Tests are ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use syn::visit::{self, Visit};

use crate::workspace;

/// Path of a module from the root of its crate.
type ModulePath = Vec<String>;

/// The modules of a crate, by path.
type Modules = BTreeMap<ModulePath, Module>;

/// What a file defines and names.
#[derive(Default)]
struct Module {
    /// Names that its `use` declarations bring into scope, with the path of each.
    imports: BTreeMap<String, Vec<String>>,
    /// Paths of glob imports.
    globs: Vec<Vec<String>>,
    /// Absolute paths that it names.
    names: BTreeSet<Vec<String>>,
}

#[test]
fn modules_have_no_import_cycles() {
    let mut directories: Vec<String> = [
        "host/src",
        "host/core/src",
        "host/executor/src",
        "host/init/src",
        "plugin-api/src",
        "plugin-api/abi/src",
        "plugin-api/linux/src",
        "plugin-api/macros/src",
        "plugin-api/model/src",
    ]
    .map(Into::into)
    .into();
    let plugins = std::fs::read_dir(workspace::root().join("plugins")).expect("a directory");
    directories
        .extend(plugins.map(|plugin| {
            format!("plugins/{}/src", plugin.expect("an entry").file_name().to_string_lossy())
        }));
    for directory in &directories {
        let cycles = cycles(&read_modules(directory));
        assert!(cycles.is_empty(), "import cycles in {directory}:\n{}", cycles.join("\n"));
    }
}

fn read_modules(directory: &str) -> Modules {
    let root = workspace::root().join(directory);
    let sources = workspace::sources(directory).into_iter();
    let sources = sources.filter(|path| !path.ends_with("main.rs") && !path.ends_with("tests.rs"));
    sources.map(|path| read_module(&root, &path)).collect()
}

fn read_module(root: &Path, file: &Path) -> (ModulePath, Module) {
    let relative = file.strip_prefix(root).expect("a file of the crate").with_extension("");
    let mut path: ModulePath =
        relative.iter().map(|component| component.to_string_lossy().into_owned()).collect();
    path.pop_if(|last| *last == "mod" || *last == "lib");
    let source = syn::parse_file(&workspace::text(file)).expect("valid Rust");
    (path.clone(), parse_module(path, &source))
}

fn parse_module(path: ModulePath, source: &syn::File) -> Module {
    let mut children = Vec::new();
    for item in &source.items {
        if let syn::Item::Mod(module) = item {
            children.push(module.ident.to_string());
        }
    }
    let mut reader = Reader { path, children, module: Module::default() };
    reader.visit_file(source);
    reader.module
}

struct Reader {
    /// The current module, including inline modules.
    path: ModulePath,
    children: Vec<String>,
    module: Module,
}

impl Reader {
    /// The path from the root of the crate. `None` for other crates, and for names in scope, whose import is counted.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let supers = path.iter().take_while(|segment| *segment == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "self" => Some([&self.path, &path[1..]].concat()),
            "super" => {
                let base = &self.path[..self.path.len().checked_sub(supers)?];
                Some([base, &path[supers..]].concat())
            }
            first if self.children.iter().any(|child| child == first) => {
                Some([self.path.as_slice(), path].concat())
            }
            _ => None,
        }
    }

    fn add(&mut self, path: &[String]) {
        if let Some(path) = self.absolute(path) {
            self.module.names.insert(path);
        }
    }

    fn add_use(&mut self, tree: &syn::UseTree, prefix: &mut Vec<String>) {
        match tree {
            syn::UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.add_use(&path.tree, prefix);
                prefix.pop();
            }
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.add_use(tree, prefix));
            }
            syn::UseTree::Name(name) => self.add_import(&name.ident, &name.ident, prefix),
            syn::UseTree::Rename(rename) => self.add_import(&rename.ident, &rename.rename, prefix),
            syn::UseTree::Glob(_) => {
                if let Some(path) = self.absolute(prefix) {
                    self.module.names.insert(path.clone());
                    self.module.globs.push(path);
                }
            }
        }
    }

    fn add_import(&mut self, ident: &syn::Ident, name: &syn::Ident, prefix: &[String]) {
        let mut path = prefix.to_vec();
        // `use module::{self}` imports the module.
        if ident != "self" {
            path.push(ident.to_string());
        }
        let name = if name == "self" { path.last().cloned().unwrap_or_default() } else { name.to_string() };
        if let Some(path) = self.absolute(&path) {
            self.module.names.insert(path.clone());
            self.module.imports.insert(name, path);
        }
    }
}

impl<'ast> Visit<'ast> for Reader {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_test(&item.attrs) {
            self.add_use(&item.tree, &mut Vec::new());
        }
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if item.content.is_some() && !is_test(&item.attrs) {
            self.path.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.path.pop();
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        self.add(&segments);
        visit::visit_path(self, path);
    }

    /// The tokens of a macro call are not parsed, so paths are recognised by their first segment.
    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let tokens = call.tokens.to_string().replace(" :: ", "::").replace("$ crate", "crate");
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        for word in tokens.split(|c| !is_path(c)).filter(|word| word.contains("::")) {
            self.add(&word.split("::").map(str::to_owned).collect::<Vec<_>>());
        }
        self.visit_path(&call.path);
    }
}

fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        matches!(&attribute.meta, syn::Meta::List(list) if list.path.is_ident("cfg") && list.tokens.to_string() == "test")
    })
}

/// The modules that define what a path names: several if glob imports do not tell which.
fn definitions(modules: &Modules, path: &[String], depth: usize) -> Vec<ModulePath> {
    const MAX_REEXPORTS: usize = 16;
    let mut module = Vec::new();
    let mut rest = path;
    while let Some((next, tail)) = rest.split_first() {
        module.push(next.clone());
        if !modules.contains_key(&module) {
            module.pop();
            break;
        }
        rest = tail;
    }
    let Some((item, tail)) = rest.split_first().filter(|_| depth < MAX_REEXPORTS) else {
        return vec![module];
    };
    let Some(found) = modules.get(&module) else { return vec![module] };
    match found.imports.get(item) {
        Some(target) if target.as_slice() != path => {
            definitions(modules, &[target.as_slice(), tail].concat(), depth + 1)
        }
        _ => {
            let globs = found.globs.iter().map(|glob| [glob.as_slice(), rest].concat());
            let targets = globs.flat_map(|target| definitions(modules, &target, depth + 1));
            std::iter::once(module).chain(targets).collect()
        }
    }
}

/// Which child depends on which other, with a file as the reason for each; by parent module.
type Dependencies = BTreeMap<ModulePath, BTreeMap<String, BTreeMap<String, String>>>;

fn dependencies(modules: &Modules) -> Dependencies {
    let mut dependencies = Dependencies::new();
    for (from, module) in modules {
        for to in module.names.iter().flat_map(|name| definitions(modules, name, 0)) {
            let common = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            // Otherwise one contains the other.
            if let (Some(child), Some(other)) = (from.get(common), to.get(common)) {
                let children = dependencies.entry(from[..common].to_vec()).or_default();
                let reason = format!("{} uses {}", from.join("::"), to.join("::"));
                children.entry(child.clone()).or_default().entry(other.clone()).or_insert(reason);
            }
        }
    }
    dependencies
}

/// One line per cycle.
fn cycles(modules: &Modules) -> Vec<String> {
    let mut found = BTreeSet::new();
    for children in dependencies(modules).values() {
        for start in children.keys() {
            if let Some(mut cycle) = find_cycle(children, start) {
                let first = (0..cycle.len()).min_by_key(|&i| &cycle[i]).unwrap_or_default();
                cycle.rotate_left(first);
                let steps = cycle.iter().zip(cycle.iter().cycle().skip(1));
                let reasons: Vec<&str> = steps.map(|(from, to)| children[from][to].as_str()).collect();
                found.insert(reasons.join(", "));
            }
        }
    }
    found.into_iter().collect()
}

/// The shortest cycle through `start`.
fn find_cycle(graph: &BTreeMap<String, BTreeMap<String, String>>, start: &str) -> Option<Vec<String>> {
    let mut paths = vec![vec![start.to_owned()]];
    let mut seen = BTreeSet::new();
    while !paths.is_empty() {
        let mut longer = Vec::new();
        for path in paths {
            for next in graph.get(path.last()?).into_iter().flat_map(BTreeMap::keys) {
                if next == start {
                    return Some(path);
                }
                if seen.insert(next.clone()) {
                    longer.push([path.as_slice(), std::slice::from_ref(next)].concat());
                }
            }
        }
        paths = longer;
    }
    None
}

/// A crate of modules with the given sources.
fn crate_of(sources: &[(&str, &str)]) -> Modules {
    let parse = |(path, source): &(&str, &str)| {
        let path: ModulePath = path.split("::").filter(|name| !name.is_empty()).map(str::to_owned).collect();
        (path.clone(), parse_module(path, &syn::parse_file(source).expect("valid Rust")))
    };
    sources.iter().map(parse).collect()
}

#[test]
fn cycles_are_found_in_all_kinds_of_paths() {
    let root = ("", "mod a; mod b; pub use b::{B, inner as renamed}; pub use c::*; mod c;");
    for (a, b) in [
        ("use super::b::B;", "use super::a;"),
        ("use crate::{x::Y, b::{self, B}};", "fn f() { crate::a::g() }"),
        ("type B = super::B;", "struct S { a: super::a::A }"),
        ("use super::renamed;", "pub fn inner() { call!(super::a::f()) }"),
        ("mod inline { use super::super::b::B; }", "impl super::a::A for B {}"),
        ("fn f() -> Vec<crate::B> { vec![] }", "pub(in crate) use crate::a::A;"),
    ] {
        let found = cycles(&crate_of(&[root, ("a", a), ("b", b), ("c", "")]));
        assert_eq!(found, ["a uses b, b uses a"], "{a} / {b}");
    }
    let nested = [root, ("a", ""), ("a::x", "use crate::b::B;"), ("b", ""), ("b::y", "use crate::a::A;")];
    assert_eq!(cycles(&crate_of(&nested)), ["a::x uses b, b::y uses a"]);
}

#[test]
fn parents_tests_and_other_crates_are_no_cycles() {
    let root = ("", "mod a; mod b; struct Here; fn f() { a::g(); b::g() }");
    for (a, b) in [
        ("use super::b::B;", "use super::Here;"),
        ("use super::b::B;", "#[cfg(test)] mod tests { use super::super::a::A; }"),
        ("use super::b::B;", "use std::a; use a::A;"),
        ("use super::b::B; use self::A;", "// use super::a;"),
    ] {
        assert_eq!(cycles(&crate_of(&[root, ("a", a), ("b", b)])), [""; 0], "{a} / {b}");
    }
}
