//! A paged cache as the tests build it: logical keys and values, and their places by the drawing in
//! kv_cache.rs.

use super::Noise;
use kernels_gpu::gpu::{Bf16, F16};
use kernels_gpu::kv_cache::Cached;

/// Tokens of a page, as the drawing says.
pub const PAGE: usize = 32;

/// A cache element as the tests see it: conversions by `half`, not by the kernels' own.
pub trait Stored: Cached + PartialEq {
    const NAME: &'static str;
    /// Largest relative error of rounding to it.
    const ROUNDING: f64;
    fn of(v: f32) -> Self;
    fn value(self) -> f32;
}

impl Stored for f32 {
    const NAME: &'static str = "f32";
    const ROUNDING: f64 = 0.0;
    fn of(v: f32) -> f32 {
        v
    }
    fn value(self) -> f32 {
        self
    }
}

impl Stored for F16 {
    const NAME: &'static str = "f16";
    const ROUNDING: f64 = 1.0 / 2048.0;
    fn of(v: f32) -> F16 {
        F16(half::f16::from_f32(v).to_bits())
    }
    fn value(self) -> f32 {
        half::f16::from_bits(self.0).to_f32()
    }
}

impl Stored for Bf16 {
    const NAME: &'static str = "bf16";
    const ROUNDING: f64 = 1.0 / 256.0;
    fn of(v: f32) -> Bf16 {
        Bf16(half::bf16::from_f32(v).to_bits())
    }
    fn value(self) -> f32 {
        half::bf16::from_bits(self.0).to_f32()
    }
}

/// Pages of each sequence: shuffled and never neighbours by rule.
pub struct PageTable {
    /// [n_sequences, pages_per_sequence]
    pub pages: Vec<u32>,
    pub pages_per_sequence: usize,
    /// Pages that the buffers must have: some belong to nobody.
    pub n_pages: usize,
}

impl PageTable {
    pub fn shuffled(n_sequences: usize, pages_per_sequence: usize, seed: u64) -> PageTable {
        let n_pages = n_sequences * pages_per_sequence + 2;
        let mut all: Vec<u32> = (0..n_pages as u32).collect();
        let mut noise = Noise::new(seed);
        for i in (1..all.len()).rev() {
            all.swap(i, noise.bits() as usize % (i + 1));
        }
        all.truncate(n_sequences * pages_per_sequence);
        PageTable { pages: all, pages_per_sequence, n_pages }
    }

    /// Page and slot of a position; the table's row is a ring.
    fn place(&self, sequence: usize, position: usize) -> (usize, usize) {
        let turn = position / PAGE % self.pages_per_sequence;
        let page = self.pages[sequence * self.pages_per_sequence + turn];
        (page as usize, position % PAGE)
    }
}

/// Heads of K and V.
#[derive(Clone, Copy)]
pub struct Heads {
    pub n_kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Elements of the pages of a layer.
    pub fn elements(self, table: &PageTable) -> usize {
        table.n_pages * self.n_kv_heads * self.head_dim * PAGE
    }

    /// Index of an element of K.
    pub fn k(
        self,
        table: &PageTable,
        seq: usize,
        position: usize,
        head: usize,
        dim: usize,
    ) -> usize {
        let (page, slot) = table.place(seq, position);
        let octet = (page * self.n_kv_heads + head) * (self.head_dim / 8) + dim / 8;
        (octet * PAGE + slot) * 8 + dim % 8
    }

    /// Index of an element of V.
    pub fn v(
        self,
        table: &PageTable,
        seq: usize,
        position: usize,
        head: usize,
        dim: usize,
    ) -> usize {
        let (page, slot) = table.place(seq, position);
        ((page * self.n_kv_heads + head) * PAGE + slot) * self.head_dim + dim
    }
}
