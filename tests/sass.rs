//! The machine code of every kernel, held to the kernel's declaration: what the build's checks of the
//! PTX can't see is what ptxas makes of it. Needs the cubins that the build leaves where it finds
//! ptxas, and nvdisasm beside that; without them nothing is checked.
//!
//! What holds, and why:
//! - barriers and matrix instructions are those declared, not one more or less: ptxas neither copies
//!   nor merges them;
//! - shuffles are at least those declared. Where ptxas can't see that a warp is together, it puts a
//!   second copy of a shuffle behind a `WARPSYNC` out of line, so there are at most as many more as
//!   there are `WARPSYNC`s, but for loops that it writes out (`WRITTEN_OUT`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use kernels_gpu::KernelSpec;
use rayon::prelude::*;

/// The build's folder: a report, and below `ptxas` a cubin for each kernel and image.
const BUILD: &str = env!("OUT_DIR");

/// Kernels whose shuffles are not those declared, and why that is right.
const OTHER_SHUFFLES: [(&str, &str); 2] = [
    ("probe_sums", "takes the same sums twice over: a shuffle of the same registers is done once"),
    ("probe_atomic", "atomics of a warp on one address are added up by shuffles first"),
];

/// Shuffles more than declared that ptxas makes by writing a loop out, by the start of the kernels'
/// names, and which.
const WRITTEN_OUT: [(&str, u32, &str); 1] =
    [("experts_", 14, "the loop over a token's experts, with two shuffles, up to eight times")];

/// Instructions of a kernel that all lanes of a warp take part in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    barriers: u32,
    shuffles: u32,
    matrix_ops: u32,
    warp_syncs: u32,
}

impl Counts {
    /// Counts the instructions of a listing: those are lines with an address, `/*0010*/`, maybe a
    /// predicate, `@!P0`, and the name.
    fn of(listing: &str) -> Counts {
        let mut counts = Counts::default();
        for line in listing.lines() {
            let Some((_, code)) = line.split_once("*/") else { continue };
            let mut words = code.split_whitespace();
            let name = match words.next() {
                Some(word) if word.starts_with('@') => words.next(),
                word => word,
            };
            let name = name.unwrap_or_default();
            let is = |prefix: &str| u32::from(name.starts_with(prefix));
            counts.barriers += is("BAR.SYNC") + is("BAR.RED");
            counts.shuffles += is("SHFL.");
            counts.matrix_ops += is("IMMA.") + is("HMMA.");
            counts.warp_syncs += is("WARPSYNC");
        }
        counts
    }

    /// What is not as declared.
    fn faults(self, spec: &KernelSpec) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault = |what: &str, declared: String, found: u32| {
            faults.push(format!("{}: {found} {what}, declared {declared}", spec.name));
        };
        if self.barriers != spec.barriers {
            fault("barriers", spec.barriers.to_string(), self.barriers);
        }
        if self.matrix_ops != spec.matrix_ops {
            fault("matrix instructions", spec.matrix_ops.to_string(), self.matrix_ops);
        }
        let least = spec.shuffles;
        let written_out = WRITTEN_OUT.iter().find(|(start, ..)| spec.name.starts_with(start));
        let most = spec.shuffles + self.warp_syncs + written_out.map_or(0, |(_, more, _)| *more);
        let excepted = OTHER_SHUFFLES.iter().any(|(name, _)| *name == spec.name);
        if !(least..=most).contains(&self.shuffles) && !excepted {
            fault("shuffles", format!("{least}, and {} WARPSYNCs", self.warp_syncs), self.shuffles);
        }
        faults
    }
}

/// The disassembler beside the build's assembler.
fn disassembler() -> Option<PathBuf> {
    let report = std::fs::read_to_string(Path::new(BUILD).join("ptx-report.txt")).ok()?;
    let line = report.lines().find(|line| line.starts_with("ptxas "))?;
    let assembler = line.split_once('(')?.1.strip_suffix(')')?;
    let beside = Path::new(assembler).with_file_name("nvdisasm");
    beside.exists().then_some(beside)
}

#[test]
fn machine_code_is_what_the_kernels_declare() {
    let Some(disassembler) = disassembler() else {
        eprintln!("no ptxas, or no nvdisasm beside it: nothing was checked");
        return;
    };
    let specs = kernels_gpu::all();
    let jobs: Vec<_> = ["sm_80", "sm_90a"]
        .iter()
        .flat_map(|arch| specs.iter().map(move |spec| (arch, spec)))
        .filter(|(arch, spec)| spec.is_in(arch))
        .collect();
    let faults: Vec<String> = jobs
        .par_iter()
        .flat_map(|(arch, spec)| {
            let cubin = format!("{BUILD}/ptxas/{arch}/{}.cubin", spec.name);
            let output = Command::new(&disassembler).args(["-c", &cubin]).output().unwrap();
            assert!(
                output.status.success(),
                "{cubin}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            let counts = Counts::of(&String::from_utf8_lossy(&output.stdout));
            counts
                .faults(spec)
                .into_iter()
                .map(|fault| format!("{arch} {fault}"))
                .collect::<Vec<_>>()
        })
        .collect();
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

const LISTING: &str = "
	.headerflags	@\"EF_CUDA_TEXT_MODE_MERCURY\"
.text.k:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0020*/                   SHFL.BFLY PT, R3, R0, 0x10, 0x1f ;
        /*0030*/               @P1 SHFL.IDX PT, R3, R0, R2, 0x1f ;
        /*0040*/                   WARPSYNC.COLLECTIVE R4, `(.L_x_1) ;
        /*0050*/                   IMMA.16832.S8.S8 R4, R4.ROW, R8.COL, R4 ;
        /*0060*/                   BSYNC B0 ;
";

#[test]
fn instructions_are_counted_by_name() {
    let counts = Counts { barriers: 1, shuffles: 2, matrix_ops: 1, warp_syncs: 1 };
    assert_eq!(Counts::of(LISTING), counts);
}

#[test]
fn other_numbers_than_declared_are_faults() {
    let specs: BTreeMap<&str, &KernelSpec> =
        kernels_gpu::all().into_iter().map(|spec| (spec.name, spec)).collect();
    let spec = specs["softmax_f32"];
    let right = Counts {
        barriers: spec.barriers,
        shuffles: spec.shuffles,
        matrix_ops: spec.matrix_ops,
        warp_syncs: 0,
    };
    assert!(right.faults(spec).is_empty());
    let copied = Counts { shuffles: spec.shuffles + 3, warp_syncs: 3, ..right };
    assert!(copied.faults(spec).is_empty());
    for wrong in [
        Counts { barriers: spec.barriers - 1, ..right },
        Counts { barriers: spec.barriers + 1, ..right },
        Counts { shuffles: spec.shuffles - 1, ..right },
        Counts { shuffles: spec.shuffles + 4, warp_syncs: 3, ..right },
        Counts { matrix_ops: 1, ..right },
    ] {
        assert_eq!(wrong.faults(spec).len(), 1, "{wrong:?}");
    }
}
