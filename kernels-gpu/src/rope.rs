//! Rotary position embedding of q and k, and the write of k and v into the cache.

use crate::gpu::{self, Bf16, Element, F16, Global, GlobalMut, U32x2};
use crate::kv_cache::{PAGE, Shape, table_entry};

/// Threads of a block.
pub const BLOCK: u32 = 128;
/// Heads of a block: a warp each.
pub const BLOCK_HEADS: u32 = BLOCK / gpu::WARP;

/// Blocks along y: every head of q, k and v has a warp.
pub const fn head_blocks(n_heads: u32, n_kv_heads: u32) -> u32 {
    (n_heads + 2 * n_kv_heads).div_ceil(BLOCK_HEADS)
}

/// What the kernels of every cache type take.
#[derive(Clone, Copy)]
struct Arguments<E: Element> {
    qkv: GlobalMut<f32>,
    k_cache: GlobalMut<E>,
    v_cache: GlobalMut<E>,
    cos_sin: Global<f32>,
    positions: Global<u32>,
    sequences: Global<u32>,
    pages: Global<u32>,
    row_stride: u32,
    q_cols: u32,
    kv_cols: u32,
    n_heads: u32,
    n_kv_heads: u32,
    head_dim: u32,
    rot_dim: u32,
    adjacent: u32,
    pages_per_sequence: u32,
}

/// The two elements of pair `i`.
#[inline(always)]
fn pair(i: u32, rot_dim: u32, adjacent: bool) -> (u32, u32) {
    if adjacent { (2 * i, 2 * i + 1) } else { (i, i + rot_dim / 2) }
}

/// Turns a pair by an angle whose cosine and sine are given.
#[inline(always)]
fn turn(x: f32, y: f32, U32x2([cos, sin]): U32x2) -> (f32, f32) {
    let (cos, sin) = (f32::from_bits(cos), f32::from_bits(sin));
    (gpu::fma(x, cos, -(y * sin)), gpu::fma(y, cos, x * sin))
}

#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn rope_kv<E: Element>(a: Arguments<E>) {
    let (token, lane) = (gpu::block_x(), gpu::lane());
    let head = gpu::block_y() * BLOCK_HEADS + gpu::warp();
    let n_qk = a.n_heads + a.n_kv_heads;
    if head >= n_qk + a.n_kv_heads {
        gpu::wait_for_previous();
        return; // a whole warp leaves; there is no block barrier below
    }
    let row = a.qkv.from(token as usize * a.row_stride as usize);
    let position = a.positions.get(token as usize);
    let rot_dim = if a.cos_sin.is_absent() { 0 } else { a.rot_dim };
    let n_pairs = rot_dim / 2;
    let angles = a.cos_sin.cast::<U32x2>();
    let angle = |i: u32| angles.get(position as usize * n_pairs as usize + i as usize);
    // What no launch writes comes while the launch before is still at work.
    let first_angle = if lane < n_pairs { angle(lane) } else { U32x2([0; 2]) };
    let angles = |i: u32| if i < gpu::WARP { first_angle } else { angle(i) };

    if head < a.n_heads {
        gpu::wait_for_previous();
        let q = row.from((head * a.head_dim) as usize);
        let mut i = lane;
        while i < n_pairs {
            let (x_at, y_at) = pair(i, rot_dim, a.adjacent != 0);
            let (x, y) = turn(q.get(x_at as usize), q.get(y_at as usize), angles(i));
            q.set(x_at as usize, x);
            q.set(y_at as usize, y);
            i += gpu::WARP;
        }
        return;
    }

    let shape = Shape { n_kv_heads: a.n_kv_heads, head_dim: a.head_dim };
    let sequence = a.sequences.get(token as usize);
    let page = a.pages.get(table_entry(sequence, position / PAGE, a.pages_per_sequence));
    let slot = position % PAGE;
    gpu::wait_for_previous();
    if head < n_qk {
        let kv_head = head - a.n_heads;
        let k = row.from((a.q_cols + kv_head * a.head_dim) as usize);
        let cache = a.k_cache.from(shape.head(page, kv_head));
        let store = |dim: u32, v: f32| cache.set(shape.k(slot, dim) as usize, E::from_f32(v));
        let mut i = lane;
        while i < n_pairs {
            let (x_at, y_at) = pair(i, rot_dim, a.adjacent != 0);
            let (x, y) = turn(k.get(x_at as usize), k.get(y_at as usize), angles(i));
            store(x_at, x);
            store(y_at, y);
            i += gpu::WARP;
        }
        let mut dim = rot_dim + lane;
        while dim < a.head_dim {
            store(dim, k.get(dim as usize));
            dim += gpu::WARP;
        }
    } else {
        let kv_head = head - n_qk;
        let v = row.from((a.q_cols + a.kv_cols + kv_head * a.head_dim) as usize);
        let cache = a.v_cache.from(shape.head(page, kv_head));
        let mut dim = lane;
        while dim < a.head_dim {
            cache.set(shape.v(slot, dim) as usize, E::from_f32(v.get(dim as usize)));
            dim += gpu::WARP;
        }
    }
}

macro_rules! entries {
    ($($cache:ident, $name:ident;)*) => {$(
        /// For a cache of this type.
        pub mod $name {
            use super::*;

            kernel! {
                /// Rotates q in place, rotates k into the cache, copies v into the cache; grid
                /// (tokens, `head_blocks(n_heads, n_kv_heads)`), a warp per head.
                pub fn $name = run, block BLOCK, shared (), registers 40,
                    barriers 0, shuffles 0, matrix_ops 0, waits later;
                pub struct RopeKv {
                    /// [n_tokens, row_stride]: q at column 0, k at `q_cols`, v at `q_cols + kv_cols`
                    qkv: GlobalMut<f32>,
                    /// K pages: [n_pages, n_kv_heads, head_dim / 8, PAGE, 8]
                    k_cache: GlobalMut<$cache>,
                    /// V pages: [n_pages, n_kv_heads, PAGE, head_dim]
                    v_cache: GlobalMut<$cache>,
                    /// [n_positions, rot_dim / 2, 2]; absent: nothing is rotated
                    cos_sin: Global<f32>,
                    /// [n_tokens]
                    positions: Global<u32>,
                    /// [n_tokens]: row of the page table
                    sequences: Global<u32>,
                    /// [n_sequences, pages_per_sequence]; a ring
                    pages: Global<u32>,
                    row_stride: u32,
                    q_cols: u32,
                    kv_cols: u32,
                    n_heads: u32,
                    n_kv_heads: u32,
                    head_dim: u32,
                    /// Dims that turn, the first of the head; even
                    rot_dim: u32,
                    /// 0: pairs (i, i + rot_dim / 2); 1: pairs (2i, 2i + 1)
                    adjacent: u32,
                    pages_per_sequence: u32,
                }
            }

            #[inline(always)]
            fn run(a: RopeKv) {
                rope_kv(Arguments {
                    qkv: a.qkv,
                    k_cache: a.k_cache,
                    v_cache: a.v_cache,
                    cos_sin: a.cos_sin,
                    positions: a.positions,
                    sequences: a.sequences,
                    pages: a.pages,
                    row_stride: a.row_stride,
                    q_cols: a.q_cols,
                    kv_cols: a.kv_cols,
                    n_heads: a.n_heads,
                    n_kv_heads: a.n_kv_heads,
                    head_dim: a.head_dim,
                    rot_dim: a.rot_dim,
                    adjacent: a.adjacent,
                    pages_per_sequence: a.pages_per_sequence,
                })
            }
        }
    )*};
}
entries! {
    f32, rope_kv_f32;
    F16, rope_kv_f16;
    Bf16, rope_kv_bf16;
}
