//! Test kernels for the machine itself: every operation of `gpu`, twice in a row, with what it gave
//! written out. No model uses them; both bodies of `gpu` must give what `tests/cases/gpu_ops.rs`
//! works out.

use crate::gpu::{self, Bf16, F16, Global, GlobalMut, SharedArray, U32x2, U32x4};

pub mod together;

/// Threads of a block, unless a kernel says otherwise: two warps.
pub const BLOCK: u32 = 64;

/// Writes row after row of a matrix, each thread its own column.
#[derive(Clone, Copy)]
struct Rows {
    out: GlobalMut<u32>,
    n_threads: u32,
    thread: u32,
}

impl Rows {
    /// Columns are the threads of all blocks along x.
    #[inline(always)]
    fn new(out: GlobalMut<u32>, block: u32) -> Rows {
        let n_threads = gpu::grid_x() * block;
        Rows { out, n_threads, thread: gpu::block_x() * block + gpu::thread_x() }
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn put(self, row: u32, v: u32) {
        self.out.set(row as usize * self.n_threads as usize + self.thread as usize, v);
    }

    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn put_two(self, row: u32, [first, second]: [u32; 2]) {
        self.put(row, first);
        self.put(row + 1, second);
    }
}

/// Rows that `probe_index` writes.
pub const INDEX_ROWS: usize = 8;

kernel! {
    /// Each thread's place in block and grid.
    pub fn probe_index = probe_index_body, block BLOCK, shared (), registers 24,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct ProbeIndex {
        /// [grid z, grid y, grid x, BLOCK, INDEX_ROWS]
        out: GlobalMut<u32>,
    }
}

#[inline(always)]
fn probe_index_body(a: ProbeIndex) {
    let row = gpu::block_z() * gpu::grid_y() + gpu::block_y();
    let block = row as usize * gpu::grid_x() as usize + gpu::block_x() as usize;
    let out = a.out.from((block * BLOCK as usize + gpu::thread_x() as usize) * INDEX_ROWS);
    out.set(0, gpu::thread_x());
    out.set(1, gpu::lane());
    out.set(2, gpu::warp());
    out.set(3, gpu::block_x());
    out.set(4, gpu::block_y());
    out.set(5, gpu::block_z());
    out.set(6, gpu::grid_x());
    out.set(7, gpu::grid_y());
}

/// Rows that `probe_lanes` writes.
pub const LANE_ROWS: usize = 20;

kernel! {
    /// The operations among the lanes of a warp that move or compare words.
    pub fn probe_lanes = probe_lanes_body, block BLOCK, shared (), registers 40,
        barriers 0, shuffles 8, matrix_ops 0;
    pub struct ProbeLanes {
        /// [threads]
        x: Global<u32>,
        /// [LANE_ROWS, threads]
        out: GlobalMut<u32>,
        needle: u32,
    }
}

#[inline(always)]
fn probe_lanes_body(a: ProbeLanes) {
    let rows = Rows::new(a.out, BLOCK);
    let v = a.x.get(rows.thread as usize);
    let float = f32::from_bits(v);
    let scattered = gpu::lane() * 7 + 3; // only its five low bits count

    let first = gpu::shuffle_xor_u32(v, 1);
    rows.put_two(0, [first, gpu::shuffle_xor_u32(first, 22)]);
    let first = gpu::shuffle_u32(v, 5);
    rows.put_two(2, [first, gpu::shuffle_u32(v ^ first, scattered)]);
    let first = gpu::shuffle_xor(float, 16);
    rows.put_two(4, [first.to_bits(), gpu::shuffle_xor(first, 3).to_bits()]);
    let first = gpu::shuffle(float, 31);
    rows.put_two(6, [first.to_bits(), gpu::shuffle(float, scattered).to_bits()]);

    rows.put_two(8, [gpu::warp_ballot(v & 1 == 1), gpu::warp_ballot(v & 2 == 2)]);
    rows.put_two(10, [gpu::warp_match(v & 3), gpu::warp_match(v >> 2 & 7)]);
    let any = gpu::warp_any(v == a.needle);
    rows.put_two(12, [any as u32, gpu::warp_any(v == !a.needle) as u32]);
    let first = gpu::warp_max_u32(v);
    rows.put_two(14, [first, gpu::warp_max_u32(v ^ first)]);
    let first = gpu::warp_min_u32(v);
    rows.put_two(16, [first, gpu::warp_min_u32(v ^ first)]);
    let first = gpu::warp_sum_u32(v);
    rows.put_two(18, [first, gpu::warp_sum_u32(v ^ first)]);
}

/// Threads of a block of `probe_sums`: three warps, which is no power of two.
pub const SUMS_BLOCK: u32 = 96;
const SUMS_WARPS: u32 = SUMS_BLOCK / gpu::WARP;
/// Rows that `probe_sums` writes.
pub const SUM_ROWS: usize = 6;

/// Shared memory of `probe_sums`.
#[repr(C, align(16))]
pub struct SumsShared {
    sums: [f32; SUMS_WARPS as usize],
    squares: [f32; SUMS_WARPS as usize],
}

kernel! {
    /// Sums and maxima of floats over warp and block.
    pub fn probe_sums = probe_sums_body, block SUMS_BLOCK, shared SumsShared, registers 32,
        barriers 2, shuffles 40, matrix_ops 0;
    pub struct ProbeSums {
        /// [threads]
        x: Global<f32>,
        /// [threads], with NaN
        y: Global<f32>,
        /// [SUM_ROWS, threads]
        out: GlobalMut<u32>,
    }
}

#[inline(always)]
fn probe_sums_body(a: ProbeSums) {
    let rows = Rows::new(a.out, SUMS_BLOCK);
    let (x, y) = (a.x.get(rows.thread as usize), a.y.get(rows.thread as usize));
    rows.put_two(0, [gpu::warp_sum(x), gpu::warp_sum(x * x)].map(f32::to_bits));
    rows.put_two(2, [gpu::warp_max(y), gpu::warp_max(-y)].map(f32::to_bits));
    let sum = gpu::block_sum(x, SUMS_WARPS, shared!(SumsShared, sums));
    let squares = gpu::block_sum(x * x, SUMS_WARPS, shared!(SumsShared, squares));
    rows.put_two(4, [sum, squares].map(f32::to_bits));
}

/// Rows that `probe_floats` writes.
pub const FLOAT_ROWS: usize = 20;

kernel! {
    /// Arithmetic on floats.
    pub fn probe_floats = probe_floats_body, block BLOCK, shared (), registers 40,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct ProbeFloats {
        /// [threads]
        x: Global<f32>,
        /// [threads]
        y: Global<f32>,
        /// [FLOAT_ROWS, threads]
        out: GlobalMut<u32>,
    }
}

#[inline(always)]
fn probe_floats_body(a: ProbeFloats) {
    let rows = Rows::new(a.out, BLOCK);
    let x = a.x.get(rows.thread as usize);
    let y = a.y.get(rows.thread as usize);
    let (above_zero, y_above_zero) = (x * x + 0.01, y * y + 0.01);
    rows.put_two(0, [gpu::round_i32(x) as u32, gpu::round_i32(y) as u32]);
    let first = gpu::fma(x, y, -x * y);
    rows.put_two(2, [first, gpu::fma(first, x, y)].map(f32::to_bits));
    rows.put_two(4, [gpu::exp2(x), gpu::exp2(y)].map(f32::to_bits));
    rows.put_two(6, [gpu::log2(above_zero), gpu::log2(y_above_zero)].map(f32::to_bits));
    rows.put_two(8, [gpu::exp(x), gpu::exp(y)].map(f32::to_bits));
    rows.put_two(10, [gpu::ln(above_zero), gpu::ln(y_above_zero)].map(f32::to_bits));
    rows.put_two(12, [gpu::sigmoid(x), gpu::sigmoid(y)].map(f32::to_bits));
    rows.put_two(14, [gpu::tanh(x), gpu::tanh(y)].map(f32::to_bits));
    let inverses = [gpu::reciprocal(above_zero), gpu::reciprocal(-y_above_zero)];
    rows.put_two(16, inverses.map(f32::to_bits));
    let of_roots = [gpu::inverse_sqrt(above_zero), gpu::inverse_sqrt(y_above_zero)];
    rows.put_two(18, of_roots.map(f32::to_bits));
}

/// Rows that `probe_bits` writes.
pub const BIT_ROWS: usize = 24;

kernel! {
    /// Conversions, and operations on parts of words.
    pub fn probe_bits = probe_bits_body, block BLOCK, shared (), registers 40,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct ProbeBits {
        /// [threads], two finite f16 in each word
        x: Global<u32>,
        /// [threads], two finite f16 in each word
        y: Global<u32>,
        /// [threads]
        floats: Global<f32>,
        /// [threads], four selectors of `permute_bytes` in each
        selectors: Global<u32>,
        /// [BIT_ROWS, threads]
        out: GlobalMut<u32>,
    }
}

#[inline(always)]
fn probe_bits_body(a: ProbeBits) {
    let rows = Rows::new(a.out, BLOCK);
    let thread = rows.thread as usize;
    let (x, y) = (a.x.get(thread), a.y.get(thread));
    let (float, selector) = (a.floats.get(thread), a.selectors.get(thread));
    let halves = [gpu::f16_to_f32(x as u16), gpu::f16_to_f32((x >> 16) as u16)];
    rows.put_two(0, halves.map(f32::to_bits));
    rows.put_two(2, [gpu::f32_to_f16(float), gpu::f32_to_f16(float * 0.001)].map(u32::from));
    rows.put_two(4, [gpu::sub_f16x2(x, y), gpu::sub_f16x2(y, x)]);
    rows.put_two(6, [gpu::div_u32(x, thread as u32 + 1), gpu::div_u32(y, x | 1)]);
    rows.put_two(8, [gpu::permute_bytes(x, y, selector), gpu::permute_bytes(y, x, selector)]);
    rows.put_two(10, gpu::bytes_to_f16(x));
    rows.put_two(12, gpu::bytes_to_f16(y));
    rows.put_two(14, gpu::bytes_to_bf16(x));
    rows.put_two(16, gpu::bytes_to_bf16(y));
    rows.put_two(18, [gpu::f32_to_f16x2(float, -0.001 * float), gpu::anew(x)]);
    rows.put_two(20, [gpu::f32_to_bf16x2(float, -0.001 * float), gpu::f32_to_bf16x2(1.0, float)]);
    rows.put_two(22, [gpu::quotient(x, y | 1), gpu::quotient(thread as u32, 7)]);
}

/// Products in a row of each matrix probe: columns of a are this many times the product's k.
pub const PRODUCTS: u32 = 2;

macro_rules! matrix_probe {
    ($(#[$doc:meta])* $name:ident, $args:ident, $body:ident, $word:ty) => {
        kernel! {
            $(#[$doc])*
            pub fn $name = $body, block 32, shared (), registers 40,
                barriers 0, shuffles 0, matrix_ops PRODUCTS;
            pub struct $args {
                /// [16, words of k], row-major
                a: Global<u32>,
                /// [8, words of k], by column
                b: Global<u32>,
                /// [16, 8]
                c: Global<$word>,
                /// [16, 8]
                out: GlobalMut<$word>,
            }
        }
    };
}

/// Four words of the rows g and g + 8 of a matrix with `stride` words a row, from word `at` on.
#[inline(always)]
pub(crate) fn a_words(a: Global<u32>, stride: u32, at: u32) -> [u32; 4] {
    let (g, t) = (gpu::lane() / 4, gpu::lane() % 4);
    let (top, bottom) = (g * stride + at + t, (g + 8) * stride + at + t);
    let word = |i: u32| a.get(i as usize);
    [word(top), word(bottom), word(top + 4), word(bottom + 4)]
}

/// Two words of column g, laid out as in `a_words`.
#[inline(always)]
pub(crate) fn b_words(b: Global<u32>, stride: u32, at: u32) -> [u32; 2] {
    let at = gpu::lane() / 4 * stride + at + gpu::lane() % 4;
    [b.get(at as usize), b.get(at as usize + 4)]
}

/// Where the lane's fragment of a [16, 8] matrix lies.
#[inline(always)]
pub(crate) fn c_places() -> [usize; 4] {
    let at = (gpu::lane() / 4 * 8 + gpu::lane() % 4 * 2) as usize;
    [at, at + 1, at + 64, at + 65]
}

matrix_probe!(
    /// `out = c + a b` in bytes, k = 32.
    probe_mma_s8, ProbeMmaS8, probe_mma_s8_body, i32
);

#[inline(always)]
fn probe_mma_s8_body(p: ProbeMmaS8) {
    let c = c_places().map(|at| p.c.get(at));
    let c = gpu::mma_s8(c, a_words(p.a, 16, 0), b_words(p.b, 16, 0));
    let c = gpu::mma_s8(c, a_words(p.a, 16, 8), b_words(p.b, 16, 8));
    let places = c_places();
    p.out.set(places[0], c[0]);
    p.out.set(places[1], c[1]);
    p.out.set(places[2], c[2]);
    p.out.set(places[3], c[3]);
}

matrix_probe!(
    /// `out = c + a b` in bytes, k = 16.
    probe_mma_s8_k16, ProbeMmaS8K16, probe_mma_s8_k16_body, i32
);

#[inline(always)]
fn probe_mma_s8_k16_body(p: ProbeMmaS8K16) {
    // The two products' words of a row lie side by side: each takes one half.
    let ([a0, a1, a2, a3], [b0, b1]) = (a_words(p.a, 8, 0), b_words(p.b, 8, 0));
    let c = c_places().map(|at| p.c.get(at));
    let c = gpu::mma_s8_k16(c, [a0, a1], b0);
    let c = gpu::mma_s8_k16(c, [a2, a3], b1);
    let places = c_places();
    p.out.set(places[0], c[0]);
    p.out.set(places[1], c[1]);
    p.out.set(places[2], c[2]);
    p.out.set(places[3], c[3]);
}

matrix_probe!(
    /// `out = c + a b` in f16, k = 16.
    probe_mma_f16, ProbeMmaF16, probe_mma_f16_body, f32
);

#[inline(always)]
fn probe_mma_f16_body(p: ProbeMmaF16) {
    let c = c_places().map(|at| p.c.get(at));
    let c = gpu::mma_f16(c, a_words(p.a, 16, 0), b_words(p.b, 16, 0));
    let c = gpu::mma_f16(c, a_words(p.a, 16, 8), b_words(p.b, 16, 8));
    let places = c_places();
    p.out.set(places[0], c[0]);
    p.out.set(places[1], c[1]);
    p.out.set(places[2], c[2]);
    p.out.set(places[3], c[3]);
}

matrix_probe!(
    /// `out = c + a b` in bf16, k = 16.
    probe_mma_bf16, ProbeMmaBf16, probe_mma_bf16_body, f32
);

#[inline(always)]
fn probe_mma_bf16_body(p: ProbeMmaBf16) {
    let c = c_places().map(|at| p.c.get(at));
    let c = gpu::mma_bf16(c, a_words(p.a, 16, 0), b_words(p.b, 16, 0));
    let c = gpu::mma_bf16(c, a_words(p.a, 16, 8), b_words(p.b, 16, 8));
    let places = c_places();
    p.out.set(places[0], c[0]);
    p.out.set(places[1], c[1]);
    p.out.set(places[2], c[2]);
    p.out.set(places[3], c[3]);
}

kernel! {
    /// Counts all threads in one counter, and in another that begins anew in their midst.
    pub fn probe_atomic = probe_atomic_body, block BLOCK, shared (), registers 24,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct ProbeAtomic {
        /// [2]
        counters: GlobalMut<u32>,
        /// [2, threads]: each counter as the thread found it
        out: GlobalMut<u32>,
        /// Where the second begins anew
        n: u32,
    }
}

#[inline(always)]
fn probe_atomic_body(a: ProbeAtomic) {
    let rows = Rows::new(a.out, BLOCK);
    let first = gpu::arrive(a.counters, 0, u32::MAX);
    rows.put_two(0, [first, gpu::arrive(a.counters, 1, a.n)]);
}

/// Shared memory of `probe_shared`: an array of each type that it can hold.
#[repr(C, align(16))]
pub struct EveryType {
    quads: [U32x4; BLOCK as usize],
    pairs: [U32x2; BLOCK as usize],
    longs: [u64; BLOCK as usize],
    words: [u32; BLOCK as usize],
    integers: [i32; BLOCK as usize],
    floats: [f32; BLOCK as usize],
    halves: [F16; BLOCK as usize],
    bfloats: [Bf16; BLOCK as usize],
    bytes: [u8; BLOCK as usize],
    signed: [i8; BLOCK as usize],
}

/// Rows that `probe_shared` writes.
pub const SHARED_ROWS: usize = 17;

kernel! {
    /// Every thread leaves a word's parts in shared memory as every type there is, and takes its
    /// neighbour's; then the same with what it took.
    pub fn probe_shared = probe_shared_body, block BLOCK, shared EveryType, registers 40,
        barriers 3, shuffles 0, matrix_ops 0;
    pub struct ProbeShared {
        /// [threads]
        x: Global<u32>,
        /// [SHARED_ROWS, threads]
        out: GlobalMut<u32>,
    }
}

#[inline(always)]
fn probe_shared_body(a: ProbeShared) {
    let rows = Rows::new(a.out, BLOCK);
    let v = a.x.get(rows.thread as usize);
    let neighbour = (gpu::thread_x() + 1) % BLOCK;
    store_every_type(gpu::thread_x(), v);
    gpu::sync_block(); // every thread's word is there
    let words: SharedArray<u32> = shared!(EveryType, words);
    let first = words.get(neighbour);
    rows.put(0, first);
    gpu::sync_block(); // all have read before the arrays are written again
    store_every_type(gpu::thread_x(), first);
    gpu::sync_block(); // the neighbours' words are there

    let quads: SharedArray<U32x4> = shared!(EveryType, quads);
    let U32x4(quad) = quads.get(neighbour);
    rows.put_two(1, [quad[0], quad[1]]);
    rows.put_two(3, [quad[2], quad[3]]);
    let pairs: SharedArray<U32x2> = shared!(EveryType, pairs);
    let U32x2(pair) = pairs.get(neighbour);
    rows.put_two(5, pair);
    let longs: SharedArray<u64> = shared!(EveryType, longs);
    let long = longs.get(neighbour);
    rows.put_two(7, [long as u32, (long >> 32) as u32]);
    let integers: SharedArray<i32> = shared!(EveryType, integers);
    let floats: SharedArray<f32> = shared!(EveryType, floats);
    rows.put_two(9, [integers.get(neighbour) as u32, floats.get(neighbour).to_bits()]);
    let halves: SharedArray<F16> = shared!(EveryType, halves);
    let bfloats: SharedArray<Bf16> = shared!(EveryType, bfloats);
    rows.put_two(11, [halves.get(neighbour).0 as u32, bfloats.get(neighbour).0 as u32]);
    let bytes: SharedArray<u8> = shared!(EveryType, bytes);
    let signed: SharedArray<i8> = shared!(EveryType, signed);
    rows.put_two(13, [bytes.get(neighbour) as u32, signed.get(neighbour) as i32 as u32]);
    // Four words as one, from the middle of the array.
    let U32x4(four) = words.from(BLOCK / 2).cast::<U32x4>().get(gpu::thread_x() % 8);
    rows.put_two(15, [four[0], four[3]]);
}

/// Keeps `v`, or a part of it, as each type at `at`.
#[inline(always)]
fn store_every_type(at: u32, v: u32) {
    let quads: SharedArray<U32x4> = shared!(EveryType, quads);
    quads.set(at, U32x4([v, !v, v ^ 0xff, v >> 7]));
    let pairs: SharedArray<U32x2> = shared!(EveryType, pairs);
    pairs.set(at, U32x2([!v, v]));
    let longs: SharedArray<u64> = shared!(EveryType, longs);
    longs.set(at, v as u64 | (!v as u64) << 32);
    let words: SharedArray<u32> = shared!(EveryType, words);
    words.set(at, v);
    let integers: SharedArray<i32> = shared!(EveryType, integers);
    integers.set(at, v as i32);
    let floats: SharedArray<f32> = shared!(EveryType, floats);
    floats.set(at, f32::from_bits(v));
    let halves: SharedArray<F16> = shared!(EveryType, halves);
    halves.set(at, F16(v as u16));
    let bfloats: SharedArray<Bf16> = shared!(EveryType, bfloats);
    bfloats.set(at, Bf16((v >> 16) as u16));
    let bytes: SharedArray<u8> = shared!(EveryType, bytes);
    bytes.set(at, v as u8);
    let signed: SharedArray<i8> = shared!(EveryType, signed);
    signed.set(at, (v >> 8) as i8);
}

kernel! {
    /// Copies in every width, from a part of a view on and through other types.
    pub fn probe_copy = probe_copy_body, block BLOCK, shared (), registers 40,
        barriers 0, shuffles 0, matrix_ops 0;
    pub struct ProbeCopy {
        /// [16 * threads]
        x: Global<u8>,
        /// [5, 16 * threads]
        out: GlobalMut<u8>,
        /// Left out
        absent: Global<f32>,
    }
}

#[inline(always)]
fn probe_copy_body(a: ProbeCopy) {
    let n_threads = gpu::grid_x() as usize * BLOCK as usize;
    let thread = gpu::block_x() as usize * BLOCK as usize + gpu::thread_x() as usize;
    let quads = a.x.cast::<U32x4>();
    a.out.cast().set(thread, quads.stream(thread));
    a.out.cast().set(n_threads + thread, quads.get(thread));
    let pairs = a.x.cast::<U32x2>().from(thread * 2);
    let out = a.out.from(2 * 16 * n_threads).cast::<U32x2>().from(thread * 2);
    out.set(0, pairs.get(0));
    out.set(1, pairs.get(1));
    let out = a.out.from((3 * n_threads + thread) * 16);
    let mut i = 0;
    while i < 16 {
        out.set(i, a.x.get(thread * 16 + i));
        i += 1;
    }
    // One row more for views that were left out, and for those that were not.
    let absent = a.absent.is_absent() as u32 + 2 * a.x.is_absent() as u32;
    a.out.from(4 * 16 * n_threads).cast::<U32x4>().set(thread, U32x4([absent; 4]));
}

/// Rows that `probe_later` writes.
pub const LATER_ROWS: usize = 4;

/// Shared memory of copies: [row][thread].
#[repr(C, align(16))]
struct Later {
    units: [U32x4; 2 * BLOCK as usize],
}

kernel! {
    /// Copies on their way into shared memory, in groups; a value that a register holds.
    pub fn probe_later = probe_later_body, block BLOCK, shared Later, registers 40,
        barriers 2, shuffles 0, matrix_ops 0;
    pub struct ProbeLater {
        /// [3, threads]
        x: Global<U32x4>,
        /// [LATER_ROWS, threads]
        out: GlobalMut<u32>,
    }
}

#[inline(always)]
fn probe_later_body(a: ProbeLater) {
    let rows = Rows::new(a.out, BLOCK);
    let (thread, n_threads) = (rows.thread as usize, rows.n_threads as usize);
    let units: SharedArray<U32x4> = shared!(Later, units);
    let own = gpu::thread_x();
    gpu::copy_later(a.x, thread, units, own);
    gpu::close_copies();
    gpu::copy_later(a.x, n_threads + thread, units, BLOCK + own);
    gpu::close_copies();
    gpu::wait_for_copies::<1>();
    gpu::sync_warp(); // the warp's first groups are there
    rows.put(0, units.get(own ^ 1).0[0]);
    gpu::sync_warp(); // and have been read
    gpu::copy_later(a.x, 2 * n_threads + thread, units, own);
    gpu::close_copies();
    gpu::wait_for_copies::<1>();
    gpu::sync_block(); // the second groups are there
    rows.put(1, units.get(BLOCK + BLOCK - 1 - own).0[1]);
    gpu::wait_for_copies::<0>();
    gpu::sync_block(); // all are there
    rows.put(2, units.get(BLOCK - 1 - own).0[2]);
    rows.put(3, gpu::held(0x0c06_0301) + thread as u32);
}
