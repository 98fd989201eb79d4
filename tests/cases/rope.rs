//! Cases of the rotary embedding with the cache write.

use super::cache::{Heads, PageTable, Stored};
use super::{Case, Failure, Guarded, Noise, expect_close};
use ironwarp::{Device, Result};
use kernels_gpu::Kernel;
use kernels_gpu::gpu::{Bf16, F16, Global, GlobalMut};
use kernels_gpu::rope::{head_blocks, rope_kv_bf16, rope_kv_f16, rope_kv_f32};
use std::marker::PhantomData;

/// Unit roundoff of f32.
const EPS: f64 = f32::EPSILON as f64 / 2.0;

struct Rope<E> {
    edge: &'static str,
    n_heads: usize,
    heads: Heads,
    /// 0: the kernel gets no table.
    rot_dim: usize,
    adjacent: bool,
    /// (sequence, position) of each token.
    tokens: Vec<(u32, u32)>,
    n_sequences: usize,
    pages_per_sequence: usize,
    cache: PhantomData<fn() -> E>,
}

/// The views that the kernels of every cache type take.
struct Views<E: Stored> {
    qkv: GlobalMut<f32>,
    k_cache: GlobalMut<E>,
    v_cache: GlobalMut<E>,
    cos_sin: Global<f32>,
    positions: Global<u32>,
    sequences: Global<u32>,
    pages: Global<u32>,
}

trait Launch: Stored {
    fn launch(case: &Rope<Self>, device: &Device, views: Views<Self>) -> Result<()>;
}

macro_rules! launch {
    ($($cache:ty, $kernel:ident;)*) => {$(
        impl Launch for $cache {
            fn launch(case: &Rope<$cache>, device: &Device, v: Views<$cache>) -> Result<()> {
                let grid = head_blocks(case.n_heads as u32, case.heads.n_kv_heads as u32);
                let kernel = $kernel::RopeKv {
                    qkv: v.qkv,
                    k_cache: v.k_cache,
                    v_cache: v.v_cache,
                    cos_sin: v.cos_sin,
                    positions: v.positions,
                    sequences: v.sequences,
                    pages: v.pages,
                    row_stride: case.row_stride() as u32,
                    q_cols: case.q_cols() as u32,
                    kv_cols: case.kv_cols() as u32,
                    n_heads: case.n_heads as u32,
                    n_kv_heads: case.heads.n_kv_heads as u32,
                    head_dim: case.heads.head_dim as u32,
                    rot_dim: case.rot_dim as u32,
                    adjacent: case.adjacent as u32,
                    pages_per_sequence: case.pages_per_sequence as u32,
                };
                assert_eq!($kernel::RopeKv::spec().name, stringify!($kernel));
                device.launch(kernel, (case.tokens.len(), grid as usize))
            }
        }
    )*};
}
launch! { f32, rope_kv_f32; F16, rope_kv_f16; Bf16, rope_kv_bf16; }

impl<E: Launch> Rope<E> {
    // Columns between the parts and behind them belong to nobody.
    fn q_cols(&self) -> usize {
        self.n_heads * self.heads.head_dim + 8
    }
    fn kv_cols(&self) -> usize {
        self.heads.n_kv_heads * self.heads.head_dim + 16
    }
    fn row_stride(&self) -> usize {
        self.q_cols() + 2 * self.kv_cols() + 4
    }

    /// One head of one token, turned; and the sum of what each element's products weigh.
    fn turned(&self, x: &[f32], position: u32, cos_sin: &[f32]) -> Vec<(f64, f64)> {
        let mut out: Vec<(f64, f64)> = x.iter().map(|&v| (v as f64, 0.0)).collect();
        for i in 0..self.rot_dim / 2 {
            let (first, second) =
                if self.adjacent { (2 * i, 2 * i + 1) } else { (i, i + self.rot_dim / 2) };
            let at = (position as usize * self.rot_dim / 2 + i) * 2;
            let (cos, sin) = (cos_sin[at] as f64, cos_sin[at + 1] as f64);
            let (x, y) = (x[first] as f64, x[second] as f64);
            out[first] = (x * cos - y * sin, (x * cos).abs() + (y * sin).abs());
            out[second] = (y * cos + x * sin, (y * cos).abs() + (x * sin).abs());
        }
        out
    }
}

impl<E: Launch> Case for Rope<E> {
    fn name(&self) -> String {
        format!("rope_kv_{}/{}", E::NAME, self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let mut noise = Noise::new(3);
        let (heads, head_dim) = (self.heads, self.heads.head_dim);
        let n_tokens = self.tokens.len();
        let qkv = noise.units(n_tokens * self.row_stride());
        let n_positions = 1 + self.tokens.iter().map(|t| t.1).max().unwrap_or(0) as usize;
        // Any numbers will do for a cosine and a sine, and a wrong index can't hide.
        let cos_sin = noise.units(n_positions * self.rot_dim);
        let table = PageTable::shuffled(self.n_sequences, self.pages_per_sequence, 5);
        let poison = vec![E::of(f32::NAN); heads.elements(&table)];

        let rows = Guarded::holding(device, &qkv)?;
        let k_cache = Guarded::holding(device, &poison)?;
        let v_cache = Guarded::holding(device, &poison)?;
        let cos_sin_buffer = device.upload(&cos_sin)?;
        let (sequences, positions): (Vec<u32>, Vec<u32>) = self.tokens.iter().copied().unzip();
        let (sequences, positions) = (device.upload(&sequences)?, device.upload(&positions)?);
        let pages = device.upload(&table.pages)?;
        let views = Views {
            qkv: rows.view_mut(),
            k_cache: k_cache.view_mut(),
            v_cache: v_cache.view_mut(),
            cos_sin: if self.rot_dim == 0 { Global::absent() } else { cos_sin_buffer.view() },
            positions: positions.view(),
            sequences: sequences.view(),
            pages: pages.view(),
        };
        E::launch(self, device, views)?;

        let (k_got, v_got) = (k_cache.read()?, v_cache.read()?);
        let mut rows_want: Vec<f64> = qkv.iter().map(|&v| v as f64).collect();
        let mut rows_weight = vec![0.0; rows_want.len()];
        let mut k_left = poison.clone();
        let mut v_left = poison;
        for (token, &(sequence, position)) in self.tokens.iter().enumerate() {
            let at = token * self.row_stride();
            for head in 0..self.n_heads {
                let at = at + head * head_dim;
                let turned = self.turned(&qkv[at..at + head_dim], position, &cos_sin);
                for (dim, (value, weight)) in turned.into_iter().enumerate() {
                    (rows_want[at + dim], rows_weight[at + dim]) = (value, weight);
                }
            }
            for head in 0..heads.n_kv_heads {
                let k_at = at + self.q_cols() + head * head_dim;
                let v_at = k_at + self.kv_cols();
                let turned = self.turned(&qkv[k_at..k_at + head_dim], position, &cos_sin);
                for dim in 0..head_dim {
                    let place = (sequence as usize, position as usize, head, dim);
                    let k_at = heads.k(&table, place.0, place.1, head, dim);
                    let (want, weight) = turned[dim];
                    // Two roundings of the rotation, one of the cache; below its normal range the
                    // f16 cache is off by half of its smallest number.
                    let allowed = 2.0 * EPS * weight + E::ROUNDING * want.abs() + 2f64.powi(-25);
                    let got = k_got[k_at].value() as f64;
                    let close = (got - want).abs() <= allowed;
                    if !close {
                        return Err(Failure(format!("k at {place:?}: {got}, want {want}")));
                    }
                    k_left[k_at] = k_got[k_at];
                    v_left[heads.v(&table, place.0, place.1, head, dim)] = E::of(qkv[v_at + dim]);
                }
            }
        }
        // The values are exact roundings, and nothing else in the caches has changed.
        for (name, got, want) in [("k", &k_got, &k_left), ("v", &v_got, &v_left)] {
            let same = |(&a, &b): (&E, &E)| a == b || (a.value().is_nan() && b.value().is_nan());
            if let Some(at) = got.iter().zip(want).position(|pair| !same(pair)) {
                let (got, want) = (got[at].value(), want[at].value());
                return Err(Failure(format!("{name} cache, element {at}: {got}, want {want}")));
            }
        }
        expect_close(&rows.read()?, &rows_want, |i, _| 2.0 * EPS * rows_weight[i])
    }
}

fn push<E: Launch>(table: &mut Vec<Box<dyn Case>>) {
    let two_sequences = vec![(1, 0), (1, 31), (0, 32), (0, 5), (1, 65), (0, 70)];
    let mut add = |edge, n_heads, n_kv_heads, head_dim, rot_dim, adjacent, pages_per_sequence| {
        table.push(Box::new(Rope::<E> {
            edge,
            n_heads,
            heads: Heads { n_kv_heads, head_dim },
            rot_dim,
            adjacent,
            tokens: two_sequences.clone(),
            n_sequences: 2,
            pages_per_sequence,
            cache: PhantomData,
        }))
    };
    add("halves", 4, 2, 64, 64, false, 3);
    add("adjacent", 4, 2, 64, 64, true, 3);
    add("partly", 3, 1, 80, 20, false, 3);
    add("partly_adjacent", 3, 3, 24, 10, true, 3);
    add("without", 2, 2, 16, 0, false, 3);
    add("more_pairs_than_lanes", 1, 1, 136, 136, false, 3);
    // Positions 65 and 70 come back to the pages of 0 and 5, to other slots.
    add("ring", 2, 1, 16, 16, false, 2);
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    push::<f32>(table);
    push::<F16>(table);
    push::<Bf16>(table);
}
