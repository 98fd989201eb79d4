//! Finds a rustc that can compile for the GPU, and makes PTX with it.
//!
//! One rustc call for `core` (kept for the next time), one per image: no cargo inside of cargo, so
//! no lock to fight over, no registry to reach and no flags to inherit. `core` comes from the
//! library source beside the compiler, so that the target need not be installed.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names the compiler to use for the kernels.
pub const COMPILER_VARIABLE: &str = "IRONWARP_NVPTX_RUSTC";

const TARGET: &str = "nvptx64-nvidia-cuda";
const EDITION: &str = "2024";

/// Flags of everything that is compiled for the GPU. JumpThreading copies a barrier into both arms
/// of a branch (rust-lang/rust#137086), which hangs or corrupts a kernel.
const COMMON: &[&str] = &[
    "--edition",
    EDITION,
    "--target",
    TARGET,
    "-Copt-level=3",
    "-Cpanic=abort",
    "-Zmir-enable-passes=-JumpThreading",
];

/// The symbols that `core` may ask of it do not occur in kernels: 128-bit and software-float
/// arithmetic. But rustc wants a crate of this name.
const COMPILER_BUILTINS: &str =
    "#![feature(compiler_builtins)]\n#![compiler_builtins]\n#![no_std]\n";

/// An image to compile: a card generation and the PTX version that it is written in.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// `-Ctarget-cpu`, and ptxas's `-arch`.
    pub arch: &'static str,
    /// `-Ctarget-feature`. A driver rejects PTX of a version above its own.
    pub ptx: &'static str,
}

/// A compiler, and `core` as it compiled it.
pub struct Compiler {
    rustc: PathBuf,
    /// The first line of `rustc -V`.
    pub version: String,
    core: PathBuf,
}

impl Compiler {
    /// The first compiler that can serve: `IRONWARP_NVPTX_RUSTC`, the one that builds the host, the
    /// system's. An error tells what was tried and what to install.
    pub fn find(out: &Path) -> Result<Compiler, String> {
        let mut tried = String::new();
        for candidate in candidates() {
            match serves(&candidate) {
                Ok((rustc, version, source)) => {
                    let core = compile_core(out, &rustc, &version, &source)?;
                    return Ok(Compiler { rustc, version, core });
                }
                Err(why) => tried.push_str(&format!("  {}: {why}\n", candidate.display())),
            }
        }
        Err(format!(
            "no Rust compiler for the GPU was found. The kernels need a rustc that has the source \
             of its `core` library beside it. Tried:\n\
             {tried}\
             Do one of these, and build again:\n\
             \x20 rustup component add rust-src            (rustup)\n\
             \x20 apt-get install rustc-web rust-web-src   (Debian 12, as root)\n\
             \x20 set {COMPILER_VARIABLE} to the path of such a rustc, 1.95 or newer"
        ))
    }

    /// The PTX of the crate whose root is `lib`. What the compiler warned of comes second.
    pub fn ptx(&self, out: &Path, lib: &Path, image: Image) -> Result<(String, String), String> {
        let file = out.join(format!("{}.s", image.arch));
        let mut command = self.rustc(["--crate-name", "kernels_gpu", "--crate-type", "cdylib"]);
        command.arg(lib).args(["--emit=asm", "-Zno-link", "-Clto=fat", "-Ccodegen-units=1"]);
        command.arg(format!("-Ctarget-cpu={}", image.arch));
        command.arg(format!("-Ctarget-feature=+{}", image.ptx));
        command.args(["--cfg", image.arch]);
        command.arg("--extern").arg(prefixed("core=", &self.core.join("libcore.rlib")));
        command.arg(prefixed("-Lcrate=", &self.core));
        command.arg("-o").arg(&file);
        let warnings = run(&mut command)?;
        let ptx = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        Ok((ptx, real_diagnostics(&warnings)))
    }

    fn rustc<const N: usize>(&self, args: [&str; N]) -> Command {
        gpu_rustc(&self.rustc, args)
    }
}

fn candidates() -> Vec<PathBuf> {
    if let Some(named) = env::var_os(COMPILER_VARIABLE) {
        return vec![named.into()];
    }
    let host = env::var_os("RUSTC").map(PathBuf::from);
    let mut all: Vec<PathBuf> = host.into_iter().collect();
    all.push("/usr/bin/rustc".into());
    all.dedup();
    all
}

/// The real compiler behind `candidate` (rustup's is a proxy), its version and the root of `core`.
fn serves(candidate: &Path) -> Result<(PathBuf, String, PathBuf), String> {
    // With the host compiler's libraries before its own it would name the host's sysroot.
    let ask = |args: &[&str]| {
        run_for_output(Command::new(candidate).args(args).env_remove("LD_LIBRARY_PATH"))
    };
    let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?.trim());
    let version = ask(&["-V"])?.trim().to_string();
    let source = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if !source.exists() {
        return Err(format!("{version} has no library source at {}", source.display()));
    }
    if minor_version(&version).is_none_or(|minor| minor < 95) {
        return Err(format!("{version} is too old: 1.95 is needed"));
    }
    let rustc = sysroot.join("bin").join(format!("rustc{}", env::consts::EXE_SUFFIX));
    Ok((if rustc.exists() { rustc } else { candidate.to_path_buf() }, version, source))
}

/// 96 from `rustc 1.96.0 (ac68faa20 2026-05-25)`; major versions above 1 count as new enough.
fn minor_version(version: &str) -> Option<u32> {
    let mut numbers = version.split_whitespace().nth(1)?.split('.');
    let major: u32 = numbers.next()?.parse().ok()?;
    let minor: u32 = numbers.next()?.parse().ok()?;
    Some(if major > 1 { u32::MAX } else { minor })
}

/// `core` as bitcode, for link-time optimisation, in a folder named for the compiler and the flags.
fn compile_core(out: &Path, rustc: &Path, version: &str, source: &Path) -> Result<PathBuf, String> {
    let mut hash = DefaultHasher::new();
    (rustc, version, source, COMMON).hash(&mut hash);
    let dir = out.join(format!("core-{:016x}", hash.finish()));
    let done = dir.join("libcompiler_builtins.rlib");
    if done.exists() {
        return Ok(dir);
    }
    fs::create_dir_all(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
    let mut core = gpu_rustc(rustc, ["--crate-name", "core", "--crate-type", "rlib"]);
    core.arg(source).args(["-Clinker-plugin-lto", "-Zforce-unstable-if-unmarked"]);
    core.args(["--cap-lints", "allow", "--out-dir"]).arg(&dir);
    run(&mut core)?;

    let builtins = dir.join("compiler_builtins.rs");
    fs::write(&builtins, COMPILER_BUILTINS).map_err(|e| format!("{}: {e}", builtins.display()))?;
    let mut command = gpu_rustc(rustc, ["--crate-name", "compiler_builtins"]);
    command.args(["--crate-type", "rlib", "-Clinker-plugin-lto", "--cap-lints", "allow"]);
    command.arg("--extern").arg(prefixed("core=", &dir.join("libcore.rlib")));
    command.arg(&builtins).arg("-o").arg(&done);
    run(&mut command)?;
    Ok(dir)
}

fn gpu_rustc<const N: usize>(rustc: &Path, args: [&str; N]) -> Command {
    let mut command = Command::new(rustc);
    command.args(args).args(COMMON);
    // What the outer cargo says to its own compiler is not meant for this one.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        if ["CARGO", "RUSTC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"].iter().any(|p| name.starts_with(p)) {
            command.env_remove(&*name);
        }
    }
    // The host compiler's own libraries; another compiler must not load them.
    command.env_remove("LD_LIBRARY_PATH");
    command.env("RUSTC_BOOTSTRAP", "1");
    command
}

fn prefixed(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(prefix);
    text.push(path);
    text
}

/// Runs a compiler; what it wrote to stderr is the result, or the error.
fn run(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|e| format!("{program}: {e}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    if output.status.success() {
        return Ok(stderr);
    }
    let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
    Err(format!("{}\n{program} {}", real_diagnostics(&stderr), args.join(" ")))
}

fn run_for_output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| e.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_string());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The diagnostics about the kernels, without those that the unstable target always brings.
fn real_diagnostics(stderr: &str) -> String {
    let noise = |block: &str| {
        block.trim().is_empty()
            || block.contains("unstable feature specified for `-Ctarget-feature`")
            || (block.contains("warning") && block.contains("emitted"))
    };
    stderr.split("\n\n").filter(|block| !noise(block)).collect::<Vec<_>>().join("\n\n")
}
