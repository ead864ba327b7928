//! Programs in C that tests run in containers, and libraries that they preload.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// A static program, compiled when its source has changed.
///
/// # Panics
/// If it cannot be compiled.
pub fn compiled(name: &str, source: &str) -> &'static Path {
    compiled_with(&["-static"], name, source)
}

/// Likewise a shared library.
///
/// # Panics
/// If it cannot be compiled.
pub fn compiled_library(name: &str, source: &str) -> &'static Path {
    compiled_with(&["-shared", "-fPIC"], name, source)
}

fn compiled_with(options: &[&str], name: &str, source: &str) -> &'static Path {
    static PROGRAMS: Mutex<BTreeMap<String, &'static Path>> = Mutex::new(BTreeMap::new());
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(program) = programs.get(name) {
        return program;
    }
    let directory = crate::paths::build().join("programs");
    fs::create_dir_all(&directory).expect("a directory");
    let (program, kept) = (directory.join(name), directory.join(format!("{name}.c")));
    // A virtual machine is slow, and has the programs of its host.
    if !program.exists() || !fs::read_to_string(&kept).is_ok_and(|kept| kept == source) {
        compile(options, source, &program);
        fs::write(&kept, source).expect("a file");
    }
    programs.entry(name.to_owned()).or_insert(Box::leak(program.into_boxed_path()))
}

fn compile(options: &[&str], source: &str, program: &Path) {
    let directory = program.parent().expect("a directory");
    let temporary = |suffix| tempfile::Builder::new().suffix(suffix).tempfile_in(directory).expect("a file");
    // Other tests may be using the program of an earlier run.
    let (file, new) = (temporary(".c"), temporary(""));
    fs::write(file.path(), source).expect("a file");
    let mut command = Command::new("cc");
    let compiled = command.arg("-O2").args(options).arg("-o").arg(new.path()).arg(file.path()).output();
    let compiled = compiled.unwrap_or_else(|error| panic!("`cc`: {error} (Debian package gcc)"));
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    new.persist(program).expect("a file");
}
