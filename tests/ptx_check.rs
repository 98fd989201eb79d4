//! The build script's checks, each against a fault planted in good PTX or in a good ptxas log.

#[path = "../build/ptx_check.rs"]
mod ptx_check;

use std::collections::BTreeMap;

use kernels_gpu::{KernelSpec, ParamSpec};
use ptx_check::{Fault, KernelFault, Usage};

/// As the compiler writes it: a row sum with a barrier and a shuffle, and a plain copy.
const PTX: &str = "\
.version 8.0
.target sm_90a
.address_size 64

.extern .shared .align 128 .b8 dyn_smem[];
.global .align 4 .b8 table[4] = {1, 2, 3, 4};

\t// .globl\trow_sum
.visible .entry row_sum(
\t.param .u64 .ptr .align 1 row_sum_param_0,
\t.param .u64 .ptr .align 1 row_sum_param_1,
\t.param .u32 row_sum_param_2
)
{
\t.reg .pred \t%p<5>;
\t.reg .b32 \t%r<23>;

\tgriddepcontrol.wait;
\tld.param.b32 \t%r3, [row_sum_param_2];
\tshfl.sync.bfly.b32 \t%r7, %r21, 16, 31, -1;
$L__BB1_5: bar.sync \t0;
\tbar.warp.sync \t-1;
\t// begin inline asm
\tmma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%r1, %r2, %r3, %r4}, {%r5, %r6, %r7, %r8}, {%r9, %r10}, {%r1, %r2, %r3, %r4}; // { bar.sync 0;
\t// end inline asm
\tret;

}
\t// .globl\tcopy
.visible .entry copy(
\t.param .u64 .ptr .align 1 copy_param_0,
\t.param .f32 copy_param_1
)
{
\tgriddepcontrol.wait;
\tst.global.b32 \t[%rd8], %r8;
\tret;
}
";

const fn spec(name: &'static str, params: &'static [ParamSpec]) -> KernelSpec {
    KernelSpec {
        name,
        block_threads: 256,
        shared_bytes: 32,
        params,
        max_registers: 40,
        barriers: 0,
        shuffles: 0,
        matrix_ops: 0,
        min_blocks: 0,
        shared_percent: 0,
        together_on: None,
        gathers: false,
    }
}

const fn param(name: &'static str, bytes: u32) -> ParamSpec {
    ParamSpec { name, bytes }
}

const ROW_SUM: KernelSpec = KernelSpec {
    barriers: 1,
    shuffles: 1,
    matrix_ops: 1,
    min_blocks: 2,
    ..spec("row_sum", &[param("x", 8), param("out", 8), param("n_cols", 4)])
};
const COPY: KernelSpec = spec("copy", &[param("out", 8), param("value", 4)]);

fn check(ptx: &str) -> Vec<KernelFault> {
    ptx_check::check(ptx, &[&ROW_SUM, &COPY]).unwrap()
}

/// The faults of the good PTX after one replacement that must apply.
fn check_with(good: &str, planted: &str) -> Vec<KernelFault> {
    assert!(PTX.contains(good), "nothing to replace");
    check(&PTX.replacen(good, planted, 1))
}

fn fault(kernel: &str, fault: Fault) -> Vec<KernelFault> {
    vec![(kernel.to_string(), fault)]
}

#[test]
fn good_ptx_passes() {
    assert_eq!(check(PTX), vec![]);
}

#[test]
fn barrier_copied_into_both_arms() {
    for barrier in ["bar.sync 0;", "@%p3 bar.sync 0;", "barrier.sync.aligned 0;", "L2: bar.sync 1;"]
    {
        assert_eq!(
            check_with("\tbar.warp.sync \t-1;", barrier),
            fault("row_sum", Fault::Count { what: "barriers", declared: 1, found: 2 }),
            "{barrier}"
        );
    }
}

#[test]
fn barrier_lost() {
    assert_eq!(
        check_with("bar.sync \t0;", ""),
        fault("row_sum", Fault::Count { what: "barriers", declared: 1, found: 0 })
    );
}

#[test]
fn shuffle_in_a_kernel_without() {
    assert_eq!(
        check_with("\tst.global.b32", "\tshfl.sync.idx.b32 %r8, %r8, 0, 31, -1; st.global.b32"),
        fault("copy", Fault::Count { what: "shuffles", declared: 0, found: 1 })
    );
}

#[test]
fn matrix_instructions_of_both_kinds_count() {
    assert_eq!(
        check_with(
            "\tst.global.b32",
            "\tmma.sync.aligned.m8n8k4 {%r1}, {%r2};
             wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f0,\n%f1}, %rd1, %rd2, 1;
             wgmma.commit_group.sync.aligned;
             st.global.b32"
        ),
        fault("copy", Fault::Count { what: "matrix instructions", declared: 0, found: 2 })
    );
}

#[test]
fn arrivals_and_waits_of_a_cluster_are_those_that_bring_its_blocks_together() {
    let there = "\tbarrier.cluster.arrive.relaxed;\n\tbarrier.cluster.wait;\n\tst.global.b32";
    let ptx = PTX.replacen("\tst.global.b32", there, 1);
    let what = "cluster barriers";
    assert_eq!(check(&ptx), fault("copy", Fault::Count { what, declared: 0, found: 2 }));

    let gathers = KernelSpec { gathers: true, ..COPY };
    let check = |ptx: &str| ptx_check::check(ptx, &[&ROW_SUM, &gathers]).unwrap();
    assert_eq!(check(&ptx), vec![]);
    assert_eq!(check(PTX), fault("copy", Fault::Count { what, declared: 2, found: 0 }));
    // Cards of the other image have no clusters.
    assert_eq!(check(&PTX.replace(".target sm_90a", ".target sm_80")), vec![]);
}

#[test]
fn a_kernel_that_never_waits_for_the_launch_before() {
    let bare = "{\n\tst.global.b32";
    let waiting = "{\n\tgriddepcontrol.wait;\n\tst.global.b32";
    assert_eq!(check_with(waiting, bare), fault("copy", Fault::NoWait));
    // Where launches don't overlap nothing needs to wait.
    let sm_80 = PTX.replace(".target sm_90a", ".target sm_80");
    assert_eq!(check(&sm_80.replace("\tgriddepcontrol.wait;\n", "")), vec![]);
}

#[test]
fn several_faults_are_reported_together() {
    let ptx = PTX.replace("bar.sync \t0;", "").replace("shfl.sync", "vote.sync");
    let ptx = ptx.replace(".param .f32 copy_param_1", ".param .u64 copy_param_1");
    assert_eq!(
        check(&ptx),
        [
            fault("row_sum", Fault::Count { what: "barriers", declared: 1, found: 0 }),
            fault("row_sum", Fault::Count { what: "shuffles", declared: 1, found: 0 }),
            fault("copy", Fault::Params { declared: vec![8, 4], found: vec![8, 8] }),
        ]
        .concat()
    );
}

#[test]
fn parameter_missing() {
    assert_eq!(
        check_with(",\n\t.param .u32 row_sum_param_2", ""),
        fault("row_sum", Fault::Params { declared: vec![8, 8, 4], found: vec![8, 8] })
    );
}

#[test]
fn parameter_that_is_a_struct_counts_all_its_bytes() {
    assert_eq!(
        check_with(".param .f32 copy_param_1", ".param .align 8 .b8 copy_param_1[24]"),
        fault("copy", Fault::Params { declared: vec![8, 4], found: vec![8, 24] })
    );
}

#[test]
fn entry_that_nobody_declares() {
    let extra = format!("{PTX}.visible .entry stray()\n{{\n\tret;\n}}\n");
    assert_eq!(check(&extra), fault("stray", Fault::Undeclared));
    let no_list = format!("{PTX}.visible .entry stray\n{{\n\tret;\n}}\n");
    assert_eq!(check(&no_list), fault("stray", Fault::Undeclared));
}

#[test]
fn kernel_without_entry() {
    let only_copy = &PTX[PTX.find("\t// .globl\tcopy").unwrap()..];
    assert_eq!(check(only_copy), fault("row_sum", Fault::NoEntry));
}

#[test]
fn kernel_declared_twice() {
    let faults = ptx_check::check(PTX, &[&ROW_SUM, &COPY, &COPY]).unwrap();
    assert_eq!(faults, fault("copy", Fault::Twice));
}

#[test]
fn call_left_in_a_kernel() {
    let faults = check_with(
        "\tst.global.b32",
        "\t{\n.param .b32 retval0;\ncall.uni (retval0), \n_RNvNtCs_4core9panicking, \n(\nparam0\n);\n}
         call.uni puts, (param0);\n call trap_it;\nst.global.b32",
    );
    let callees = ["_RNvNtCs_4core9panicking", "puts", "trap_it"];
    let expected: Vec<_> =
        callees.into_iter().flat_map(|c| fault("copy", Fault::Call(c.into()))).collect();
    assert_eq!(faults, expected);
}

#[test]
fn array_in_local_memory() {
    assert_eq!(
        check_with(
            "\tst.global.b32",
            "\t.local .align 4 .b8 \t__local_depot0[64];\n\tst.global.b32"
        ),
        fault("copy", Fault::LocalMemory)
    );
}

#[test]
fn ptx_cut_short_is_an_error_and_not_an_empty_list() {
    let cut = &PTX[..PTX.len() - 3];
    assert!(ptx_check::check(cut, &[&ROW_SUM, &COPY]).unwrap_err().contains("no `}`"));
}

#[test]
fn bounds_stand_between_parameters_and_body() {
    let stamped = ptx_check::stamp_bounds(PTX, &[&ROW_SUM, &COPY]).unwrap();
    assert!(stamped.contains("row_sum_param_2\n)\n.maxntid 256, 1, 1\n.minnctapersm 2\n{"));
    assert!(stamped.contains("copy_param_1\n)\n.maxntid 256, 1, 1\n{"));
    let plain = stamped.replace("\n.maxntid 256, 1, 1", "").replace("\n.minnctapersm 2", "");
    assert_eq!(plain, PTX);
}

#[test]
fn entries_alone_keep_what_they_share() {
    let texts = ptx_check::one_by_one(PTX).unwrap();
    let names: Vec<&str> = texts.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["row_sum", "copy"]);
    for (name, text) in &texts {
        assert!(text.starts_with(".version 8.0\n.target sm_90a\n"));
        assert!(text.contains("dyn_smem") && text.contains("table[4] = {1, 2, 3, 4}"));
        let inside = ptx_check::entries(text).unwrap();
        assert_eq!(inside.iter().map(|e| &e.name).collect::<Vec<_>>(), [name]);
    }
}

/// As `ptxas -v` of CUDA 13 writes it.
const LOG: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'row_sum' for 'sm_90a'
ptxas info    : Function properties for row_sum
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 1024 bytes smem
ptxas info    : Compile time = 3.406 ms
ptxas info    : Compiling entry function 'copy' for 'sm_90a'
ptxas info    : Function properties for copy
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
";

/// The faults of the good log after one replacement that must apply.
fn usage_with(good: &str, planted: &str) -> Vec<KernelFault> {
    assert!(LOG.contains(good), "nothing to replace");
    let usages = ptx_check::usages(&LOG.replacen(good, planted, 1));
    ptx_check::check_usage(&usages, &[&ROW_SUM, &COPY])
}

#[test]
fn good_log_passes_and_tells_the_usage() {
    assert_eq!(usage_with("12", "12"), vec![]);
    let row_sum = Usage { registers: 40, shared_bytes: 1024, ..Usage::default() };
    let copy = Usage { registers: 12, ..Usage::default() };
    let expected = BTreeMap::from([("row_sum".to_string(), row_sum), ("copy".to_string(), copy)]);
    assert_eq!(ptx_check::usages(LOG), expected);
}

#[test]
fn one_register_too_many() {
    assert_eq!(
        usage_with("40 registers", "41 registers"),
        fault("row_sum", Fault::Registers { declared: 40, found: 41 })
    );
}

#[test]
fn spill_or_stack_frame() {
    assert_eq!(
        usage_with("0 bytes spill stores, 0 bytes spill", "8 bytes spill stores, 16 bytes spill"),
        fault("row_sum", Fault::Spill { stack: 0, stores: 8, loads: 16 })
    );
    assert_eq!(
        usage_with("0 bytes stack", "1040 bytes stack"),
        fault("row_sum", Fault::Spill { stack: 1040, stores: 0, loads: 0 })
    );
}

#[test]
fn kernel_missing_in_the_log() {
    assert_eq!(
        usage_with("function 'copy'", "function 'other'"),
        fault("copy", Fault::NotAssembled)
    );
    assert_eq!(usage_with("Used 12 registers", ""), fault("copy", Fault::NotAssembled));
}

#[test]
fn serialised_tensor_cores() {
    let complaint = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions \
                     are serialized due to insufficient register resources for the function 'copy'";
    assert_eq!(
        usage_with("ptxas info    : 0 bytes gmem", complaint),
        fault("copy", Fault::Complaint(complaint.to_string()))
    );
}
