//! The key-value cache: pages of 32 tokens, found through a table for each sequence.
//!
//! ```text
//! K page: [kv_head][head_dim / 8][slot 0..32][8]   eight lanes read 8 dims of eight keys in a row
//! V page: [kv_head][slot 0..32][head_dim]          neighbouring lanes read neighbouring dims
//! ```
//!
//! A page table's row may be shorter than the sequence: it is a ring, which a layer with a sliding
//! window needs no more of than the window and the tokens of one batch.

use crate::gpu::{self, Bf16, Element, F16, Global, SharedArray, U32x2, U32x4};

/// Tokens of a page.
pub const PAGE: u32 = 32;
/// Dims that are loaded at once: 16 bytes of f16. `head_dim` is a multiple of it.
pub const OCTET: u32 = 8;

/// A type that the cache can hold.
pub trait Cached: Element {
    /// Eight elements as they lie in memory.
    type Raw: Copy;
    /// Eight zeroes.
    const NONE: Self::Raw;
    /// Eight elements, from element `8 octet` on.
    fn load(elements: Global<Self>, octet: usize) -> Self::Raw;
    /// Keeps four elements, from element `4 quad` on, of a row in shared memory.
    fn share(row: SharedArray<U32x4>, quad: u32, elements: [Self; 4]);
    /// Eight elements of such a row, from element `8 octet` on.
    fn load_shared(row: SharedArray<U32x4>, octet: u32) -> Self::Raw;
}

/// `Cached::share` of elements of 16 bits.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn share_halves(row: SharedArray<U32x4>, quad: u32, bits: [u16; 4]) {
    let [a, b, c, d] = bits.map(u32::from);
    row.cast::<U32x2>().set(quad, U32x2([a | b << 16, c | d << 16]));
}

impl Cached for f32 {
    type Raw = [U32x4; 2];
    const NONE: [U32x4; 2] = [U32x4([0; 4]); 2];
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load(elements: Global<f32>, octet: usize) -> [U32x4; 2] {
        let words = elements.cast::<U32x4>();
        [words.whole(2 * octet), words.whole(2 * octet + 1)]
    }
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn share(row: SharedArray<U32x4>, quad: u32, elements: [f32; 4]) {
        row.set(quad, U32x4(elements.map(f32::to_bits)));
    }
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load_shared(row: SharedArray<U32x4>, octet: u32) -> [U32x4; 2] {
        [row.get(2 * octet), row.get(2 * octet + 1)]
    }
}

impl Cached for F16 {
    type Raw = U32x4;
    const NONE: U32x4 = U32x4([0; 4]);
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load(elements: Global<F16>, octet: usize) -> U32x4 {
        elements.cast::<U32x4>().whole(octet)
    }
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn share(row: SharedArray<U32x4>, quad: u32, elements: [F16; 4]) {
        share_halves(row, quad, elements.map(|element| element.0));
    }
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load_shared(row: SharedArray<U32x4>, octet: u32) -> U32x4 {
        row.get(octet)
    }
}

impl Cached for Bf16 {
    type Raw = U32x4;
    const NONE: U32x4 = U32x4([0; 4]);
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load(elements: Global<Bf16>, octet: usize) -> U32x4 {
        elements.cast::<U32x4>().whole(octet)
    }
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn share(row: SharedArray<U32x4>, quad: u32, elements: [Bf16; 4]) {
        share_halves(row, quad, elements.map(|element| element.0));
    }
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load_shared(row: SharedArray<U32x4>, octet: u32) -> U32x4 {
        row.get(octet)
    }
}

/// Shape of a layer's cache, for K and V alike.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Heads of K and V.
    pub n_kv_heads: u32,
    /// Dims of a head, a multiple of 8.
    pub head_dim: u32,
}

impl Shape {
    /// Elements of a page.
    #[inline(always)]
    pub fn page_elements(self) -> u32 {
        self.n_kv_heads * self.head_dim * PAGE
    }

    /// First element of a head within the pages.
    #[inline(always)]
    pub fn head(self, page: u32, kv_head: u32) -> usize {
        page as usize * self.page_elements() as usize + (kv_head * self.head_dim * PAGE) as usize
    }

    /// An element of K within its head's part of the page.
    #[inline(always)]
    pub fn k(self, slot: u32, dim: u32) -> u32 {
        (dim / OCTET * PAGE + slot) * OCTET + dim % OCTET
    }

    /// An element of V within its head's part of the page.
    #[inline(always)]
    pub fn v(self, slot: u32, dim: u32) -> u32 {
        slot * self.head_dim + dim
    }
}

/// Where chunk `chunk` (position / PAGE) of a sequence stands in its row of the page table.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn table_entry(sequence: u32, chunk: u32, pages_per_sequence: u32) -> usize {
    let mut place = chunk;
    if chunk >= pages_per_sequence {
        place -= gpu::div_u32(chunk, pages_per_sequence) * pages_per_sequence;
    }
    sequence as usize * pages_per_sequence as usize + place as usize
}
