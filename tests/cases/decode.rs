//! Cases of attention in one launch: to the bit what rope, attention and the last fold do one after
//! another, which have cases of their own; and the cache and the counters as they must be left.

use super::cache::{Heads, PAGE, PageTable, Stored};
use super::rows::GuardedRows;
use super::{Case, Failure, Guarded, Noise};
use ironwarp::{Buffer, Device, Result};
use kernels_gpu::attention::decode::{self, is_for};
use kernels_gpu::attention::{self, AttentionCombine, SPLIT, combine_blocks, row_chunks};
use kernels_gpu::gpu::{Bf16, F16, Global, U32x2, U32x4};
use kernels_gpu::rope::{head_blocks, rope_kv_bf16, rope_kv_f16, rope_kv_f32};
use std::marker::PhantomData;

struct Decode<E> {
    edge: String,
    heads: Heads,
    group: usize,
    window: usize,
    sinks: bool,
    /// The page table holds no more than the window.
    ring: bool,
    /// 0: the kernels get no table.
    rot_dim: usize,
    adjacent: bool,
    /// Of each sequence's token.
    positions: Vec<usize>,
    /// Tokens are not of the sequences of their own numbers, but the other way round.
    reversed: bool,
    cache: PhantomData<fn() -> E>,
}

/// What launches read.
struct Inputs {
    qkv: Vec<f32>,
    cos_sin: Buffer<f32>,
    positions: Buffer<u32>,
    sequences: Buffer<u32>,
    tiles: Buffer<U32x4>,
    pages: Buffer<u32>,
    sinks: Buffer<f32>,
    table: PageTable,
}

/// What they write.
struct Outputs<E: Stored> {
    qkv: Guarded<f32>,
    k_cache: Guarded<E>,
    v_cache: Guarded<E>,
    partial_out: Guarded<f32>,
    partial_ml: Guarded<U32x2>,
    arrivals: Guarded<u32>,
    rows: GuardedRows,
    n_splits: usize,
    block_splits: usize,
}

trait Kernels: Stored {
    /// Rope and attention, up to the last fold.
    fn apart(case: &Decode<Self>, device: &Device, i: &Inputs, o: &Outputs<Self>) -> Result<()>;
    /// Everything in one launch.
    fn at_once(case: &Decode<Self>, device: &Device, i: &Inputs, o: &Outputs<Self>) -> Result<()>;
}

macro_rules! kernels {
    ($($cache:ty, $rope:ident,
       $(($size:pat, $attention:ident, $decode:ident)),*;)*) => {$(
        impl Kernels for $cache {
            fn apart(
                case: &Decode<$cache>,
                device: &Device,
                i: &Inputs,
                o: &Outputs<$cache>,
            ) -> Result<()> {
                let rope = $rope::RopeKv {
                    qkv: o.qkv.view_mut(),
                    k_cache: o.k_cache.view_mut(),
                    v_cache: o.v_cache.view_mut(),
                    cos_sin: case.cos_sin(i),
                    positions: i.positions.view(),
                    sequences: i.sequences.view(),
                    pages: i.pages.view(),
                    row_stride: case.row_stride() as u32,
                    q_cols: case.q_cols() as u32,
                    kv_cols: case.kv_cols() as u32,
                    n_heads: case.n_heads() as u32,
                    n_kv_heads: case.heads.n_kv_heads as u32,
                    head_dim: case.heads.head_dim as u32,
                    rot_dim: case.rot_dim as u32,
                    adjacent: case.adjacent as u32,
                    pages_per_sequence: i.table.pages_per_sequence as u32,
                };
                let heads = head_blocks(case.n_heads() as u32, case.heads.n_kv_heads as u32);
                device.launch(rope, (case.positions.len(), heads as usize))?;
                match case.heads.head_dim {
                    $($size => device.launch(
                        attention::$attention::Attention {
                            qkv: view(&o.qkv),
                            k_cache: view(&o.k_cache),
                            v_cache: view(&o.v_cache),
                            positions: i.positions.view(),
                            tiles: i.tiles.view(),
                            pages: i.pages.view(),
                            partial_out: o.partial_out.view_mut(),
                            partial_ml: o.partial_ml.view_mut(),
                            row_stride: case.row_stride() as u32,
                            n_kv_heads: case.heads.n_kv_heads as u32,
                            group: case.group as u32,
                            head_dim: case.heads.head_dim as u32,
                            pages_per_sequence: i.table.pages_per_sequence as u32,
                            n_splits: o.n_splits as u32,
                            window: case.window as u32,
                            scale: case.scale(),
                        },
                        case.grid(o),
                    ),)*
                }
            }

            fn at_once(
                case: &Decode<$cache>,
                device: &Device,
                i: &Inputs,
                o: &Outputs<$cache>,
            ) -> Result<()> {
                match case.heads.head_dim {
                    $($size => device.launch(
                        decode::$decode::Decode {
                            qkv: view(&o.qkv),
                            k_cache: view(&o.k_cache),
                            v_cache: view(&o.v_cache),
                            new_keys: o.k_cache.view_mut(),
                            new_values: o.v_cache.view_mut(),
                            cos_sin: case.cos_sin(i),
                            tiles: i.tiles.view(),
                            pages: i.pages.view(),
                            sinks: case.sinks(i),
                            partial_out: o.partial_out.view_mut(),
                            partial_ml: o.partial_ml.view_mut(),
                            arrivals: o.arrivals.view_mut(),
                            values: o.rows.values.view_mut(),
                            codes: o.rows.codes.view_mut(),
                            scales: o.rows.scales.view_mut(),
                            row_stride: case.row_stride() as u32,
                            q_cols: case.q_cols() as u32,
                            kv_cols: case.kv_cols() as u32,
                            n_kv_heads: case.heads.n_kv_heads as u32,
                            group: case.group as u32,
                            head_dim: case.heads.head_dim as u32,
                            rot_dim: case.rot_dim as u32,
                            adjacent: case.adjacent as u32,
                            pages_per_sequence: i.table.pages_per_sequence as u32,
                            n_splits: o.n_splits as u32,
                            block_splits: o.block_splits as u32,
                            window: case.window as u32,
                            scale: case.scale(),
                        },
                        case.grid(o),
                    ),)*
                }
            }
        }
    )*};
}
kernels! {
    f32, rope_kv_f32, (0..=64, attention_f32_d64, decode_f32_d64),
        (65..=128, attention_f32_d128, decode_f32_d128),
        (_, attention_f32_d256, decode_f32_d256);
    F16, rope_kv_f16, (0..=64, attention_f16_d64, decode_f16_d64),
        (65..=128, attention_f16_d128, decode_f16_d128),
        (_, attention_f16_d256, decode_f16_d256);
    Bf16, rope_kv_bf16, (0..=64, attention_bf16_d64, decode_bf16_d64),
        (65..=128, attention_bf16_d128, decode_bf16_d128),
        (_, attention_bf16_d256, decode_bf16_d256);
}

/// A view to read from what another launch wrote.
fn view<T: kernels_gpu::gpu::Plain>(buffer: &Guarded<T>) -> Global<T> {
    let view = buffer.view_mut();
    Global::new(view.address(), view.len())
}

impl<E: Kernels> Decode<E> {
    fn n_heads(&self) -> usize {
        self.heads.n_kv_heads * self.group
    }
    fn n_cols(&self) -> usize {
        self.n_heads() * self.heads.head_dim
    }
    // Columns between the parts and behind them belong to nobody.
    fn q_cols(&self) -> usize {
        self.n_cols() + 8
    }
    fn kv_cols(&self) -> usize {
        self.heads.n_kv_heads * self.heads.head_dim + 16
    }
    fn row_stride(&self) -> usize {
        self.q_cols() + 2 * self.kv_cols() + 4
    }
    fn scale(&self) -> f32 {
        1.0 / (self.heads.head_dim as f32).sqrt()
    }
    fn first_key(&self, position: usize) -> usize {
        if self.window == 0 { 0 } else { (position + 1).saturating_sub(self.window) }
    }
    fn cos_sin(&self, inputs: &Inputs) -> Global<f32> {
        if self.rot_dim == 0 { Global::absent() } else { inputs.cos_sin.view() }
    }
    fn sinks(&self, inputs: &Inputs) -> Global<f32> {
        if self.sinks { inputs.sinks.view() } else { Global::absent() }
    }
    fn grid(&self, outputs: &Outputs<E>) -> (usize, usize, usize) {
        let chunks = row_chunks(self.group as u32, self.heads.head_dim as u32) as usize;
        let blocks = self.heads.n_kv_heads * chunks;
        (self.positions.len(), blocks, outputs.n_splits.div_ceil(outputs.block_splits))
    }

    /// Splits that the tokens meet, never the one that would fold them in one block.
    fn n_splits(&self) -> usize {
        let split = |position: usize| position / SPLIT as usize;
        let of = |&position: &usize| split(position) - split(self.first_key(position)) + 1;
        self.positions.iter().map(of).max().unwrap_or(1).max(2)
    }

    fn sequence_of(&self, token: usize) -> usize {
        if self.reversed { self.positions.len() - 1 - token } else { token }
    }

    fn inputs(&self, device: &Device) -> Result<Inputs> {
        let mut noise = Noise::new(23);
        // Scores of a few units, so that the largest one moves and weights differ.
        let qkv = noise.units(self.positions.len() * self.row_stride());
        let n_positions = 1 + self.positions.iter().max().unwrap_or(&0);
        let needed = |&position: &usize| {
            let first = if self.ring { self.first_key(position) / PAGE } else { 0 };
            position / PAGE + 1 - first
        };
        let pages_per_sequence = self.positions.iter().map(needed).max().unwrap_or(1);
        let n = self.positions.len();
        let table = PageTable::shuffled(n, pages_per_sequence, 29);
        let sequences: Vec<u32> = (0..n).map(|token| self.sequence_of(token) as u32).collect();
        let tile =
            |token: usize| U32x4([token as u32, 1, sequences[token], self.positions[token] as u32]);
        Ok(Inputs {
            qkv: qkv.iter().map(|v| 3.0 * v).collect(),
            // Any numbers will do for a cosine and a sine, and a wrong index can't hide.
            cos_sin: device.upload(&noise.units(n_positions * self.rot_dim.max(1)))?,
            positions: device
                .upload(&self.positions.iter().map(|&p| p as u32).collect::<Vec<_>>())?,
            sequences: device.upload(&sequences)?,
            tiles: device.upload(&(0..n).map(tile).collect::<Vec<_>>())?,
            pages: device.upload(&table.pages)?,
            sinks: device
                .upload(&noise.units(self.n_heads()).iter().map(|v| 4.0 * v).collect::<Vec<_>>())?,
            table,
        })
    }

    /// Room for a way of doing it; what no token of the step sees is NaN, its own key and value too.
    fn outputs(
        &self,
        device: &Device,
        inputs: &Inputs,
        (n_splits, block_splits): (usize, usize),
    ) -> Result<Outputs<E>> {
        let mut noise = Noise::new(31);
        let (heads, table) = (self.heads, &inputs.table);
        let mut k = vec![E::of(f32::NAN); heads.elements(table)];
        let mut v = k.clone();
        for (token, &position) in self.positions.iter().enumerate() {
            let sequence = self.sequence_of(token);
            for p in self.first_key(position)..position {
                for head in 0..heads.n_kv_heads {
                    for dim in 0..heads.head_dim {
                        let [key, value] = [noise.unit(), noise.unit()].map(E::of);
                        k[heads.k(table, sequence, p, head, dim)] = key;
                        v[heads.v(table, sequence, p, head, dim)] = value;
                    }
                }
            }
        }
        let n_partials = self.positions.len() * self.n_heads() * n_splits;
        let nan = f32::NAN.to_bits();
        let blocks = self.positions.len() * self.n_heads();
        Ok(Outputs {
            qkv: Guarded::holding(device, &inputs.qkv)?,
            k_cache: Guarded::holding(device, &k)?,
            v_cache: Guarded::holding(device, &v)?,
            partial_out: Guarded::holding(device, &vec![f32::NAN; n_partials * heads.head_dim])?,
            partial_ml: Guarded::holding(device, &vec![U32x2([nan; 2]); n_partials])?,
            arrivals: Guarded::holding(device, &vec![0; blocks])?,
            rows: GuardedRows::new(device, self.positions.len(), self.n_cols())?,
            n_splits,
            block_splits,
        })
    }

    fn combine(&self, device: &Device, i: &Inputs, o: &Outputs<E>) -> Result<()> {
        let combine = AttentionCombine {
            partial_out: view(&o.partial_out),
            partial_ml: view(&o.partial_ml),
            positions: i.positions.view(),
            sinks: self.sinks(i),
            values: o.rows.values.view_mut(),
            codes: o.rows.codes.view_mut(),
            scales: o.rows.scales.view_mut(),
            n_heads: self.n_heads() as u32,
            head_dim: self.heads.head_dim as u32,
            n_splits: o.n_splits as u32,
            window: self.window as u32,
        };
        let blocks = combine_blocks(self.n_cols() as u32) as usize;
        device.launch(combine, (self.positions.len(), blocks))
    }
}

/// Everything that must be the same, as bits.
fn left<E: Stored>(o: &Outputs<E>) -> Result<[(&'static str, Vec<u32>); 5], Failure> {
    let cache = |cache: &Guarded<E>| -> Result<Vec<u32>, Failure> {
        Ok(cache.read()?.iter().map(|&e| e.value().to_bits()).collect())
    };
    o.partial_out.read()?;
    o.partial_ml.read()?;
    Ok([
        ("values", o.rows.values.read()?.iter().map(|v| v.to_bits()).collect()),
        ("codes", o.rows.codes.read()?.iter().map(|&code| code as u32).collect()),
        ("scales", o.rows.scales.read()?.iter().flat_map(|scales| scales.0).collect()),
        ("keys", cache(&o.k_cache)?),
        ("cached values", cache(&o.v_cache)?),
    ])
}

impl<E: Kernels> Case for Decode<E> {
    fn name(&self) -> String {
        let d = self.heads.head_dim.next_power_of_two().max(64);
        format!("decode_{}_d{d}/{}", E::NAME, self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        assert!(is_for(self.n_heads() as u32, self.heads.head_dim as u32, self.rot_dim as u32));
        let inputs = self.inputs(device)?;
        let apart = self.outputs(device, &inputs, (1, 1))?;
        E::apart(self, device, &inputs, &apart)?;
        self.combine(device, &inputs, &apart)?;
        let want = left(&apart)?;
        if want[0].1.iter().any(|&bits| f32::from_bits(bits).is_nan()) {
            return Err(Failure("the launches apart give NaN".to_owned()));
        }

        let all = self.n_splits();
        for cut in [(1, u32::MAX as usize), (all, 1), (all + 1, 1), (all, 2), (all + 2, 2)] {
            let at_once = self.outputs(device, &inputs, cut)?;
            E::at_once(self, device, &inputs, &at_once)?;
            for ((what, got), (_, want)) in left(&at_once)?.iter().zip(&want) {
                if let Some(at) = (0..want.len()).find(|&i| got[i] != want[i]) {
                    let [got, want] = [got[at], want[at]].map(|v| (v, f32::from_bits(v)));
                    let how = format!("splits {cut:?}, {what}, element {at}");
                    return Err(Failure(format!("{how}: {got:x?}, apart {want:x?}")));
                }
            }
            if at_once.qkv.read()? != inputs.qkv {
                return Err(Failure(format!("splits {cut:?}: q, k and v were changed")));
            }
            if at_once.arrivals.read()?.iter().any(|&count| count != 0) {
                return Err(Failure(format!("splits {cut:?}: a counter was left")));
            }
        }
        Ok(())
    }
}

/// A case with one sequence, which the tables below vary.
fn case<E>(edge: impl Into<String>, position: usize) -> Decode<E> {
    Decode {
        edge: edge.into(),
        heads: Heads { n_kv_heads: 2, head_dim: 32 },
        group: 2,
        window: 0,
        sinks: true,
        ring: false,
        rot_dim: 32,
        adjacent: false,
        positions: vec![position],
        reversed: false,
        cache: PhantomData,
    }
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    for context in [1, 2, 32, 33, 34, 256, 257, 600] {
        table.push(Box::new(case::<F16>(format!("context_{context}"), context - 1)));
    }
    // As many splits as a lane folds for itself, and one more; as many as a warp folds at once, one more, one more than
    // twice as many; and many.
    for (edge, head_dim, splits) in [
        ("splits_4", 64, 4),
        ("splits_5", 64, 5),
        ("splits_4_d160", 160, 4),
        ("splits_8", 64, 8),
        ("splits_9", 64, 9),
        ("splits_17", 64, 17),
        ("splits_33", 64, 33),
        ("splits_17_d96", 96, 17),
    ] {
        let heads = Heads { n_kv_heads: 1, head_dim };
        let base = case::<F16>(edge, (splits - 1) * SPLIT as usize);
        table.push(Box::new(Decode { heads, ..base }));
    }
    for (edge, position, window, ring) in [
        ("window_one_below", 126, 128, false),
        ("window_full", 127, 128, false),
        ("window_one_past", 128, 128, false),
        ("window_over_a_split", 300, 128, true),
        ("window_of_all_chunks", 510, 225, false),
        ("window_of_more_chunks", 510, 226, true),
        ("window_of_one", 30, 1, true),
        ("window_of_one_at_a_split", 256, 1, true),
        ("window_small", 33, 3, true),
        ("window_of_splits", 900, 700, true),
    ] {
        table.push(Box::new(Decode { window, ring, ..case::<F16>(edge, position) }));
    }
    for group in [1, 3, 8, 12, 16] {
        let heads = Heads { n_kv_heads: 2, head_dim: 32 };
        let grouped = case::<F16>(format!("group_{group}"), 290);
        table.push(Box::new(Decode { group, heads, ..grouped }));
    }
    table.push(Box::new(Decode { sinks: false, ..case::<F16>("without_sinks", 262) }));
    table.push(Box::new(Decode { adjacent: true, ..case::<F16>("adjacent_pairs", 40) }));
    table.push(Box::new(Decode { rot_dim: 0, ..case::<F16>("not_turned", 40) }));
    for (edge, rot_dim, adjacent) in [("turned_in_part", 24, false), ("adjacent_in_part", 24, true)]
    {
        table.push(Box::new(Decode { rot_dim, adjacent, ..case::<F16>(edge, 40) }));
    }
    for (edge, window, ring, reversed) in [
        ("sequences", 0, false, false),
        ("sequences_reversed", 0, false, true),
        ("sequences_window", 30, false, false),
        ("sequences_ring", 30, true, true),
    ] {
        let positions = vec![42, 0, 270, 600];
        let base = case::<F16>(edge, 0);
        table.push(Box::new(Decode { window, ring, positions, reversed, ..base }));
    }
    by_head_dim::<f32>(table);
    by_head_dim::<F16>(table);
    by_head_dim::<Bf16>(table);
}

/// Every kernel: head dims that fill their class and that don't.
fn by_head_dim<E: Kernels>(table: &mut Vec<Box<dyn Case>>) {
    for head_dim in [32, 64, 96, 128, 160, 256] {
        let heads = Heads { n_kv_heads: 2, head_dim };
        let base = case::<E>(format!("head_dim_{head_dim}"), 261);
        table.push(Box::new(Decode { heads, rot_dim: head_dim, ..base }));
    }
}
