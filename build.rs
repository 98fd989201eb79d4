//! Compiles `kernels-gpu` to PTX for every image, holds the PTX to the kernels' declarations and
//! leaves it in `OUT_DIR` for the library to embed, with a report of what each kernel uses.
//! The role that Rust-CUDA gives `cuda_builder`.

#[path = "build/compiler.rs"]
mod compiler;
#[path = "build/ptx_check.rs"]
mod ptx_check;
#[path = "build/ptxas.rs"]
mod ptxas;

use std::collections::BTreeMap;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use compiler::{Compiler, Image};
use kernels_gpu::KernelSpec;
use ptx_check::Usage;
use ptxas::Ptxas;

/// The images, as `host/src/ptx.rs` embeds them.
const IMAGES: [Image; 2] = [
    // Ampere and everything newer: the driver compiles it for the card. PTX 7.4 brought the L2
    // hints of loads.
    Image { arch: "sm_80", ptx: "ptx74" },
    // Hopper alone, with TMA, wgmma and what blocks of a cluster send each other. PTX 8.1 is the first that has all
    // of it, CUDA 12.1 reads it.
    Image { arch: "sm_90a", ptx: "ptx81" },
];

fn main() {
    if let Err(message) = build() {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Result<(), String> {
    for path in ["../kernels-gpu/src", "../build.rs", "../build"] {
        println!("cargo::rerun-if-changed={path}");
    }
    for variable in [compiler::COMPILER_VARIABLE, "PTXAS"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let folder = |name| env::var_os(name).map(PathBuf::from).ok_or(format!("{name} is not set"));
    let out = folder("OUT_DIR")?;
    let root = folder("CARGO_MANIFEST_DIR")?.join("..");
    let root = root.canonicalize().map_err(|e| format!("{}: {e}", root.display()))?;
    let lib = root.join("kernels-gpu/src/lib.rs");
    let specs = kernels_gpu::all();

    let compiler = Compiler::find(&out)?;
    let ptxas = Ptxas::find(&root.join(".tools"))?;
    let made = thread::scope(|scope| {
        let one = |image| {
            let (compiler, ptxas, specs, out, lib) =
                (&compiler, ptxas.as_ref(), &specs, &out, &lib);
            scope.spawn(move || make(compiler, ptxas, specs, out, lib, image))
        };
        IMAGES.map(one).map(|thread| thread.join().unwrap_or_else(|_| Err("panicked".into())))
    });

    let (mut faults, mut images) = (String::new(), Vec::new());
    for (image, made) in IMAGES.iter().zip(made) {
        let made = made?;
        for (kernel, fault) in &made.faults {
            // Writing to a String can't fail.
            let _ = writeln!(faults, "{kernel} ({}): {fault}", image.arch);
        }
        images.push(made);
    }
    for line in images[0].warnings.lines() {
        println!("cargo::warning={line}");
    }
    let report = report(&compiler, ptxas.as_ref(), &specs, &images);
    let file = out.join("ptx-report.txt");
    fs::write(&file, report).map_err(|e| format!("{}: {e}", file.display()))?;
    if faults.is_empty() {
        Ok(())
    } else {
        Err(format!("the kernels' PTX is not what they declare:\n{faults}"))
    }
}

/// An image as it was made and judged.
struct Made {
    warnings: String,
    faults: Vec<ptx_check::KernelFault>,
    usages: BTreeMap<String, Usage>,
}

fn make(
    compiler: &Compiler,
    ptxas: Option<&Ptxas>,
    specs: &[&KernelSpec],
    out: &Path,
    lib: &Path,
    image: Image,
) -> Result<Made, String> {
    let (ptx, warnings) = compiler.ptx(out, lib, image)?;
    let all = specs;
    let specs: Vec<_> = all.iter().copied().filter(|spec| spec.is_in(image.arch)).collect();
    let specs = &specs[..];
    let mut faults = ptx_check::check(&ptx, specs)?;
    let ptx = ptx_check::stamp_bounds(&ptx, specs)?;
    let mut modules: BTreeMap<String, String> = ptx_check::one_by_one(&ptx)?.into_iter().collect();
    // C strings in the order of the declarations, empty where the image does not have the kernel; one
    // that is missing is among the faults.
    let text: String =
        all.iter().map(|spec| modules.remove(spec.name).unwrap_or_default() + "\0").collect();
    let file = out.join(format!("{}.ptx", image.arch));
    fs::write(&file, text).map_err(|e| format!("{}: {e}", file.display()))?;
    let usages = match ptxas {
        Some(ptxas) => ptxas.usages(out, image.arch, &ptx)?,
        None => BTreeMap::new(),
    };
    if ptxas.is_some() {
        faults.extend(ptx_check::check_usage(&usages, specs));
    }
    Ok(Made { warnings, faults, usages })
}

/// What each kernel uses, as a table.
fn report(
    compiler: &Compiler,
    ptxas: Option<&Ptxas>,
    specs: &[&KernelSpec],
    images: &[Made],
) -> String {
    let assembler = match ptxas {
        Some(ptxas) => format!("ptxas {} ({})", ptxas.release, ptxas.path.display()),
        None => "no ptxas: registers unknown".to_string(),
    };
    let mut text = format!("{}\n{assembler}\n\n", compiler.version);
    let mut row = |name: &str, cells: [&str; 8]| {
        let cells: String = cells.iter().map(|cell| format!("{cell:>10}")).collect();
        // Writing to a String can't fail.
        let _ = writeln!(text, "{name:<44}{cells}");
    };
    let [a, b] = IMAGES.map(|image| format!("reg {}", image.arch.trim_start_matches("sm_")));
    row("kernel", ["block", "shared", "barriers", "shuffles", "matrix", &a, &b, "reg max"]);
    for spec in specs {
        let registers = |image: usize| {
            let usage = images[image].usages.get(spec.name);
            usage.map_or("-".to_string(), |u| u.registers.to_string())
        };
        let number = |n: u32| n.to_string();
        row(
            spec.name,
            [
                &number(spec.block_threads),
                &number(spec.shared_bytes),
                &number(spec.barriers),
                &number(spec.shuffles),
                &number(spec.matrix_ops),
                &registers(0),
                &registers(1),
                &number(spec.max_registers),
            ],
        );
    }
    text
}
