//! Holds the compiled PTX to the kernels' declarations, and puts the launch bounds into it.
//!
//! Works on text alone: `build.rs` calls it on what the compiler made, `tests/ptx_check.rs` on
//! planted faults. A check reports every fault it finds, not the first.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use kernels_gpu::KernelSpec;

/// One way in which a kernel's PTX or machine code differs from its declaration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A kernel that is declared, but not an entry of the PTX.
    NoEntry,
    /// An entry of the PTX that no kernel declares.
    Undeclared,
    /// Two declarations or two entries with one name.
    Twice,
    /// The entry's parameters are not the declared ones; sizes in bytes.
    Params { declared: Vec<u32>, found: Vec<u32> },
    /// Another number of instructions of a kind than declared.
    Count { what: &'static str, declared: u32, found: u32 },
    /// Nothing in it waits for the launch before it, although launches overlap in this image.
    NoWait,
    /// A call that was not inlined; what the callee is called.
    Call(String),
    /// Variables in local memory: an array that was not kept in registers.
    LocalMemory,
    /// ptxas gave the thread a stack frame or spilled registers; sizes in bytes.
    Spill { stack: u32, stores: u32, loads: u32 },
    /// ptxas used more registers than declared.
    Registers { declared: u32, found: u32 },
    /// ptxas said nothing about the kernel.
    NotAssembled,
    /// A complaint of ptxas about the kernel's speed.
    Complaint(String),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NoEntry => write!(f, "declared, but not an entry of the PTX"),
            Fault::Undeclared => write!(f, "an entry of the PTX that `kernels_gpu::all` lacks"),
            Fault::Twice => write!(f, "there are two of this name"),
            Fault::Params { declared, found } => {
                write!(f, "parameters of {declared:?} bytes declared, {found:?} found")
            }
            Fault::Count { what, declared, found } => {
                write!(f, "{declared} {what} declared, {found} found")
            }
            Fault::NoWait => write!(f, "never waits for the launch before it"),
            Fault::Call(callee) => write!(
                f,
                "calls `{callee}`: inline it; a panic means a slice index, a division or an unwrap \
                 that the compiler could not prove"
            ),
            Fault::LocalMemory => write!(
                f,
                "an array in local memory: index it by constants, in a fully unrolled loop"
            ),
            Fault::Spill { stack, stores, loads } => write!(
                f,
                "{stack} bytes of stack frame, {stores} of spill stores, {loads} of spill loads"
            ),
            Fault::Registers { declared, found } => {
                write!(f, "at most {declared} registers declared, {found} used")
            }
            Fault::NotAssembled => write!(f, "ptxas did not report on it"),
            Fault::Complaint(text) => write!(f, "ptxas: {text}"),
        }
    }
}

/// A fault, and the kernel that has it.
pub type KernelFault = (String, Fault);

/// A kernel's entry as it stands in the PTX. Ranges are byte ranges of the text.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The entry's name.
    pub name: String,
    /// Bytes of each parameter, in order.
    pub params: Vec<u32>,
    /// The whole entry, from `.visible` to the closing brace.
    pub whole: Range<usize>,
    /// Just behind the parameter list: where the launch bounds go.
    pub bounds: usize,
    /// The instructions, between the braces.
    pub body: Range<usize>,
}

/// What a kernel's instructions contain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// Barriers of the block; `bar.warp.sync` is none.
    pub barriers: u32,
    /// Arrivals and waits at barriers of the cluster.
    pub cluster_barriers: u32,
    /// `shfl.sync`.
    pub shuffles: u32,
    /// `mma.sync`, `wgmma.mma_async`.
    pub matrix_ops: u32,
    /// `griddepcontrol.wait`.
    pub waits: u32,
    /// Callees of `call`.
    pub calls: Vec<String>,
    /// Whether there are variables in local memory.
    pub local_memory: bool,
}

/// The PTX with every comment blanked, so that byte positions stay.
fn without_comments(ptx: &str) -> String {
    let mut bytes = ptx.as_bytes().to_vec();
    let mut at = 0;
    while at + 1 < bytes.len() {
        let close: &[u8] = match &bytes[at..at + 2] {
            b"//" => b"\n",
            b"/*" => b"*/",
            _ => {
                at += 1;
                continue;
            }
        };
        let rest = &bytes[at + 2..];
        let end = rest.windows(close.len()).position(|w| w == close).unwrap_or(rest.len());
        let end = (at + 2 + end + close.len()).min(bytes.len());
        for byte in &mut bytes[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end;
    }
    // Only whole comments became spaces, and a comment ends at an ASCII byte.
    String::from_utf8(bytes).expect("a comment blanked from `/` to an ASCII byte leaves UTF-8")
}

/// Every entry of a PTX text, in its order.
pub fn entries(ptx: &str) -> Result<Vec<Entry>, String> {
    let text = without_comments(ptx);
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(at) = text[from..].find(".entry").map(|at| from + at) {
        let bad = |what: &str| format!("PTX entry at byte {at}: {what}");
        let name_at = at + ".entry".len();
        let head = text[name_at..].find(['(', '{']).ok_or_else(|| bad("no body"))? + name_at;
        let name = text[name_at..head].trim().to_string();
        let (params, bounds) = if text.as_bytes()[head] == b'(' {
            let close = text[head..].find(')').ok_or_else(|| bad("no `)`"))? + head;
            (parameters(&text[head + 1..close]).map_err(|e| bad(&e))?, close + 1)
        } else {
            (Vec::new(), head)
        };
        let open = text[bounds..].find('{').ok_or_else(|| bad("no `{`"))? + bounds;
        let close = closing_brace(&text, open).ok_or_else(|| bad("no `}`"))?;
        // `.visible`, `.weak` or nothing stands before `.entry` on its line.
        let start = text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        found.push(Entry { name, params, whole: start..close + 1, bounds, body: open + 1..close });
        from = close + 1;
    }
    Ok(found)
}

fn closing_brace(text: &str, open: usize) -> Option<usize> {
    let mut depth = 0usize;
    for (at, byte) in text.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return Some(at),
            b'}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Sizes of the parameters in a list such as `.param .u64 .ptr .align 1 a, .param .b8 b[16]`.
fn parameters(list: &str) -> Result<Vec<u32>, String> {
    list.split(',').map(str::trim).filter(|p| !p.is_empty()).map(parameter_bytes).collect()
}

fn parameter_bytes(param: &str) -> Result<u32, String> {
    let bad = || format!("parameter `{param}` not understood");
    let bits: u32 = param
        .split_whitespace()
        .find_map(|word| word.strip_prefix(['.'])?.strip_prefix(['u', 's', 'b', 'f'])?.parse().ok())
        .ok_or_else(bad)?;
    let elements: u32 = match param.split_once('[') {
        None => 1,
        Some((_, rest)) => {
            rest.split(']').next().and_then(|n| n.trim().parse().ok()).ok_or_else(bad)?
        }
    };
    Ok(bits / 8 * elements)
}

/// What the instructions between an entry's braces contain.
pub fn contents(body: &str) -> Contents {
    let text = without_comments(body);
    let mut all = Contents { local_memory: text.contains("__local_depot"), ..Contents::default() };
    // Operand lists in braces break into pieces too, but no operand starts like an opcode.
    for piece in text.split([';', '{', '}', '\n']) {
        let mut words = piece.split_whitespace().skip_while(|w| w.ends_with(':')).peekable();
        words.next_if(|w| w.starts_with('@'));
        let Some(opcode) = words.next() else { continue };
        let is = |prefix: &str| opcode.starts_with(prefix);
        if is("barrier.cluster.") {
            all.cluster_barriers += 1;
        } else if (is("bar.") || is("barrier.")) && !is("bar.warp.") {
            all.barriers += 1;
        } else if opcode == "griddepcontrol.wait" {
            all.waits += 1;
        } else if is("shfl.sync.") {
            all.shuffles += 1;
        } else if is("mma.sync.") || is("wgmma.mma_async.") {
            all.matrix_ops += 1;
        } else if opcode == "call" || is("call.") {
            all.calls.push(callee(&text, piece));
        } else if opcode == ".local" {
            all.local_memory = true;
        }
    }
    all
}

/// The callee of the call that starts in `piece`, a part of `text`: `call (ret), NAME, (args)`.
/// The operands may stand on the lines below.
fn callee(text: &str, piece: &str) -> String {
    let start = piece.as_ptr() as usize - text.as_ptr() as usize;
    let call = text[start..].split(';').next().unwrap_or(piece);
    let operands = call.split_once("call").map_or(call, |(_, rest)| rest);
    let operands = operands.split_once(char::is_whitespace).map_or("", |(_, rest)| rest).trim();
    let name = match operands.strip_prefix('(') {
        Some(rest) => rest.split_once(')').map_or("", |(_, rest)| rest),
        None => operands,
    };
    name.trim_start_matches([',', ' ', '\t', '\n']).split([',', '\n']).next().unwrap_or("").into()
}

/// Arrivals and waits at the cluster's barrier in `gpu::Gather`, where there are clusters.
const GATHER_BARRIERS: u32 = 2;

/// Every difference between a PTX text and the kernels that it should hold.
pub fn check(ptx: &str, specs: &[&KernelSpec]) -> Result<Vec<KernelFault>, String> {
    let mut faults = Vec::new();
    let mut by_name: BTreeMap<&str, &KernelSpec> = BTreeMap::new();
    for spec in specs {
        if by_name.insert(spec.name, spec).is_some() {
            faults.push((spec.name.to_string(), Fault::Twice));
        }
    }
    let entries = entries(ptx)?;
    let launches_overlap = ptx.contains(".target sm_90a");
    for (i, entry) in entries.iter().enumerate() {
        let mut fault = |fault| faults.push((entry.name.clone(), fault));
        if entries[..i].iter().any(|e| e.name == entry.name) {
            fault(Fault::Twice);
        }
        let Some(spec) = by_name.get(entry.name.as_str()) else {
            fault(Fault::Undeclared);
            continue;
        };
        let declared: Vec<u32> = spec.params.iter().map(|p| p.bytes).collect();
        if declared != entry.params {
            fault(Fault::Params { declared, found: entry.params.clone() });
        }
        let found = contents(&ptx[entry.body.clone()]);
        for (what, declared, found) in [
            ("barriers", spec.barriers, found.barriers),
            (
                "cluster barriers",
                if spec.gathers && launches_overlap { GATHER_BARRIERS } else { 0 },
                found.cluster_barriers,
            ),
            ("shuffles", spec.shuffles, found.shuffles),
            ("matrix instructions", spec.matrix_ops, found.matrix_ops),
        ] {
            if declared != found {
                fault(Fault::Count { what, declared, found });
            }
        }
        if launches_overlap && found.waits == 0 {
            fault(Fault::NoWait);
        }
        for callee in found.calls {
            fault(Fault::Call(callee));
        }
        if found.local_memory {
            fault(Fault::LocalMemory);
        }
    }
    for spec in specs {
        if !entries.iter().any(|e| e.name == spec.name) {
            faults.push((spec.name.to_string(), Fault::NoEntry));
        }
    }
    Ok(faults)
}

/// The PTX with each kernel's launch bounds behind its parameter list: rustc has no way to say them,
/// and without them ptxas must assume 1024 threads a block.
pub fn stamp_bounds(ptx: &str, specs: &[&KernelSpec]) -> Result<String, String> {
    let mut stamped = String::with_capacity(ptx.len() + 64 * specs.len());
    let mut copied = 0;
    for entry in entries(ptx)? {
        let Some(spec) = specs.iter().find(|s| s.name == entry.name) else { continue };
        stamped.push_str(&ptx[copied..entry.bounds]);
        copied = entry.bounds;
        stamped.push_str(&format!("\n.maxntid {}, 1, 1", spec.block_threads));
        if spec.min_blocks > 0 {
            stamped.push_str(&format!("\n.minnctapersm {}", spec.min_blocks));
        }
    }
    stamped.push_str(&ptx[copied..]);
    Ok(stamped)
}

/// Each entry with its name, as a PTX text of its own: all that is outside of entries, and it.
/// ptxas then sees again only the kernels whose text has changed.
pub fn one_by_one(ptx: &str) -> Result<Vec<(String, String)>, String> {
    let entries = entries(ptx)?;
    let mut common = String::new();
    let mut copied = 0;
    for entry in &entries {
        common.push_str(&ptx[copied..entry.whole.start]);
        copied = entry.whole.end;
    }
    common.push_str(&ptx[copied..]);
    Ok(entries.into_iter().map(|e| (e.name, format!("{common}\n{}\n", &ptx[e.whole]))).collect())
}

/// What ptxas says about one kernel (`ptxas -v`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of static shared memory.
    pub shared_bytes: u32,
    /// Bytes of a thread's stack frame.
    pub stack: u32,
    /// Bytes of spill stores.
    pub spill_stores: u32,
    /// Bytes of spill loads.
    pub spill_loads: u32,
    /// Warnings about the kernel's speed.
    pub complaints: Vec<String>,
}

/// The usage of each kernel in a log of `ptxas -v`.
pub fn usages(log: &str) -> BTreeMap<String, Usage> {
    let mut all: BTreeMap<String, Usage> = BTreeMap::new();
    let mut complaints = Vec::new();
    let mut current = None;
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default();
            all.entry(name.to_string()).or_default();
            current = Some(name.to_string());
        } else if line.contains("Performance Loss") {
            complaints.push(line.trim().to_string());
        } else if let Some(usage) = current.as_ref().and_then(|name| all.get_mut(name)) {
            let number = |label: &str| number_before(line, label);
            if let Some(stack) = number(" bytes stack frame") {
                usage.stack = stack;
                usage.spill_stores = number(" bytes spill stores").unwrap_or(0);
                usage.spill_loads = number(" bytes spill loads").unwrap_or(0);
            } else if let Some(registers) = number(" registers") {
                usage.registers = registers;
                usage.shared_bytes = number(" bytes smem").unwrap_or(0);
            }
        }
    }
    // A complaint names its function somewhere in the line, before or after the function's own part.
    for complaint in complaints {
        for (name, usage) in &mut all {
            if complaint.contains(&format!("'{name}'")) {
                usage.complaints.push(complaint.clone());
            }
        }
    }
    all
}

fn number_before(line: &str, label: &str) -> Option<u32> {
    let before = &line[..line.find(label)?];
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// Every kernel that ptxas could not keep within its declaration.
pub fn check_usage(usages: &BTreeMap<String, Usage>, specs: &[&KernelSpec]) -> Vec<KernelFault> {
    let mut faults = Vec::new();
    for spec in specs {
        let mut fault = |fault| faults.push((spec.name.to_string(), fault));
        let Some(usage) = usages.get(spec.name).filter(|u| u.registers > 0) else {
            fault(Fault::NotAssembled);
            continue;
        };
        let Usage { registers, stack, spill_stores: stores, spill_loads: loads, .. } = *usage;
        if stack + stores + loads > 0 {
            fault(Fault::Spill { stack, stores, loads });
        }
        if registers > spec.max_registers {
            fault(Fault::Registers { declared: spec.max_registers, found: registers });
        }
        for complaint in &usage.complaints {
            fault(Fault::Complaint(complaint.clone()));
        }
    }
    faults
}
