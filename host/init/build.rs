//! Compiles the program for `IMAGE`: the library and `main.rs`, without std or libc, as a static executable of a few
//! pages.
//!
//! It is not a target of the workspace, because it needs flags that no other target may have, in every profile.

use std::env;
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, exit};

fn main() {
    println!("cargo::rerun-if-changed=src");
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_IMAGE").is_none() {
        return;
    }
    let out = PathBuf::from(variable("OUT_DIR"));
    let library = out.join("libcofferdam_init.rlib");

    compile(Path::new("src/lib.rs"), &library, |rustc| {
        rustc.args(["--crate-name=cofferdam_init", "--crate-type=rlib"]);
    });
    compile(Path::new("src/main.rs"), &out.join("cofferdam-init"), |rustc| {
        rustc.args(["--crate-name=cofferdam_init_bin", "--crate-type=bin", "-Clto=fat", "-Cstrip=symbols"]);
        rustc.arg(format!("--extern=cofferdam_init={}", library.display()));
        // One segment for code and constants; no start-up files, unwind tables or relocations. Every page counts:
        // it is mapped once per container.
        for argument in [
            "-nostartfiles",
            "-nostdlib",
            "-static",
            "-no-pie",
            "-Wl,-z,noseparate-code",
            "-Wl,-z,norelro",
            "-Wl,--build-id=none",
            "-Wl,--gc-sections",
            "-Wl,--no-eh-frame-hdr",
        ] {
            rustc.arg(format!("-Clink-arg={argument}"));
        }
    });
    println!("cargo::rustc-env=COFFERDAM_INIT_BUILD={}", build_id(&out.join("cofferdam-init")));
}

/// A number that other content has not, but by chance, as 12 hexadecimal digits.
fn build_id(program: &Path) -> String {
    let content = std::fs::read(program).unwrap_or_else(|error| {
        println!("cargo::error=cannot read {}: {error}", program.display());
        exit(1)
    });
    let mut hasher = DefaultHasher::new();
    hasher.write(&content);
    format!("{:012x}", hasher.finish() >> 16)
}

fn compile(source: &Path, output: &Path, details: impl FnOnce(&mut Command)) {
    let mut rustc = Command::new(variable("RUSTC"));
    rustc.arg(source).arg("-o").arg(output);
    rustc.arg(format!("--target={}", variable("TARGET")));
    rustc.args([
        "--edition=2024",
        "-Cpanic=abort",
        "-Copt-level=s",
        "-Ccodegen-units=1",
        "-Crelocation-model=static",
        "-Cforce-unwind-tables=no",
        "--cap-lints=warn",
    ]);
    details(&mut rustc);
    let status = rustc.status();
    if !status.as_ref().is_ok_and(std::process::ExitStatus::success) {
        println!(
            "cargo::error=cannot compile {} for the image of cofferdam-init: {status:?}",
            source.display()
        );
        exit(1);
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| {
        println!("cargo::error=cargo has not set {name}");
        exit(1)
    })
}
