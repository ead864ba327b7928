//! Links the program statically with glibc, in every profile: it runs in root file systems that have no libc.
//!
//! `-C target-feature=+crt-static` would be a flag of the whole workspace, whose plugins cannot have it. Instead the
//! linker gets `-static`, and finds each system library that rustc names in a directory in which it is the static one.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The libraries that rustc links a program of std with.
const LIBRARIES: [&str; 7] = ["gcc_s", "c", "m", "rt", "pthread", "util", "dl"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if let Err(error) = link_statically() {
        println!("cargo::error={error}");
    }
}

fn link_statically() -> Result<(), String> {
    let out = env::var_os("OUT_DIR").map(PathBuf::from).ok_or("cargo has not set OUT_DIR")?;
    let directory = out.join("static");
    fs::create_dir_all(&directory)
        .map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    // One group, as glibc and the unwinder need each other.
    let archives = ["libc.a", "libm.a", "libgcc.a", "libgcc_eh.a"].map(static_library);
    let archives = archives.into_iter().collect::<Result<Vec<_>, _>>()?.join(" ");
    for library in LIBRARIES {
        let path = directory.join(format!("lib{library}.a"));
        write(&path, &format!("GROUP ( {archives} )\n"))?;
    }
    println!("cargo::rustc-link-arg-bins=-L{}", directory.display());
    println!("cargo::rustc-link-arg-bins=-no-pie");
    println!("cargo::rustc-link-arg-bins=-static");
    Ok(())
}

/// The path of a static library of the C compiler.
fn static_library(name: &str) -> Result<String, String> {
    let output = Command::new("cc")
        .arg(format!("-print-file-name={name}"))
        .output()
        .map_err(|error| format!("cannot run the C compiler `cc`: {error}"))?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if Path::new(&path).is_absolute() {
        Ok(path)
    } else {
        Err(format!("the C compiler has no {name}; install the static C library (Debian: libc6-dev)"))
    }
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))
}
