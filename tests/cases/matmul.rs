//! Cases of the matrix products, for every format, dense and grouped by expert.

use super::activation::Op;
use super::rows::{expect_codes, expect_squares, expect_weighed_values};
use super::weights::{decode, random_blocks, upload};
use super::{Case, Failure, Guarded, Noise, expect_close};
use ironwarp::Device;
use ironwarp::ops::matmul::{Overlap, Packed, Product, Tokens, product};
use ironwarp::tensor::Rows;
use kernels_gpu::activation::PackRows;
use kernels_gpu::gpu::{Global, U32x4};
use kernels_gpu::norm::RmsWeigh;
use kernels_gpu::quant::Format;
use kernels_gpu::tile::TILE_ROWS;

/// Most that a product can be off by because fixed point keeps each activation to half a code of its
/// block of 32.
pub fn fixed_point_error(w: &[f32], x: &[f32]) -> f64 {
    let of_block = |(w, x): (&[f32], &[f32])| {
        let largest = x.iter().fold(0f32, |m, v| m.max(v.abs())) as f64;
        w.iter().map(|w| w.abs() as f64).sum::<f64>() * largest / 32512.0 / 2.0
    };
    w.chunks(32).zip(x.chunks(32)).map(of_block).sum()
}

/// A product at one shape.
#[derive(Clone)]
struct MatMul {
    format: Format,
    edge: &'static str,
    n_rows: usize,
    n_cols: usize,
    n_tokens: usize,
    /// Experts and group size.
    grouped: Option<(usize, usize)>,
    bias: bool,
    residual: bool,
    /// What the input still lacks, and what the result is packed for.
    fused: Fused,
}

/// What stands around a product in the same launch.
#[derive(Clone, Copy, PartialEq)]
enum Fused {
    Nothing,
    /// The input's RMS scale is still to come.
    Scale,
    /// The input's RMS scale is still to come, and the result goes to another norm.
    Norms,
    /// GELU of the result.
    Gelu,
}

/// Epsilon of the norms.
pub const NORM_EPS: f32 = 1e-5;

/// As an RMS norm leaves them: rows of `x` times `weight`, complete but for their scale.
pub fn weighed_rows(
    device: &Device,
    x: &[f32],
    weight: &[f32],
) -> Result<(Rows, Vec<f32>), Failure> {
    let n_cols = weight.len();
    let n_rows = x.len() / n_cols;
    let rows = Rows::with_rms(device, n_rows, n_cols, NORM_EPS)?;
    let (source, weight_buffer) = (device.upload(x)?, device.upload(weight)?);
    let rms = rows.rms.as_ref().ok_or(Failure("rows without room for squares".into()))?;
    let kernel = RmsWeigh {
        x: source.view(),
        weight: weight_buffer.view(),
        values: rows.values.view_mut(),
        codes: rows.codes.view_mut(),
        scales: rows.scales.view_mut(),
        squares: rms.squares.view_mut(),
        n_cols: n_cols as u32,
    };
    device.launch(kernel, (n_rows, 1))?;
    let values = rows.values.read()?;
    Ok((rows, values))
}

/// `1 / sqrt(mean(x^2) + eps)` of each row.
pub fn rms_scales(x: &[f32], n_cols: usize) -> Vec<f64> {
    let scale = |row: &[f32]| {
        let squares: f64 = row.iter().map(|&v| (v as f64).powi(2)).sum();
        1.0 / (squares / n_cols as f64 + NORM_EPS as f64).sqrt()
    };
    x.chunks(n_cols).map(scale).collect()
}

/// Uploads f32 rows in both their forms.
pub fn upload_rows(device: &Device, x: &[f32], n_cols: usize) -> Result<Rows, Failure> {
    let n_rows = x.len() / n_cols;
    let rows = Rows::new(device, n_rows, n_cols)?;
    let source = device.upload(x)?;
    let kernel = PackRows {
        x: source.view(),
        values: rows.values.view_mut(),
        codes: rows.codes.view_mut(),
        scales: rows.scales.view_mut(),
        n_cols: n_cols as u32,
        in_stride: n_cols as u32,
    };
    device.launch(kernel, n_rows)?;
    Ok(rows)
}

impl Case for MatMul {
    fn name(&self) -> String {
        format!("matmul/{}/{}", self.format.name(), self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let MatMul { format, n_rows, n_cols, n_tokens, .. } = *self;
        let (n_experts, group_size) = self.grouped.unwrap_or((1, 0));
        let top_k = if self.grouped.is_some() { 2 } else { 1 };
        let n_slots = n_tokens * top_k;
        let mut noise = Noise::new(5);
        let bytes = random_blocks(&mut noise, format, n_rows * n_experts, n_cols);
        let w = decode(format, &bytes, n_rows * n_experts, n_cols);
        let weights = upload(device, format, &bytes, (n_rows, n_cols, n_experts))?;
        let mut x = noise.units(n_tokens * n_cols);
        x.iter_mut().step_by(13).for_each(|v| *v *= 40.0); // outliers, as real activations have
        let norms = matches!(self.fused, Fused::Scale | Fused::Norms);
        // What the product multiplies, and what its sums must then be multiplied by.
        let (rows, x, factors) = if norms {
            let (rows, weighed) = weighed_rows(device, &x, &noise.units(n_cols))?;
            (rows, weighed, rms_scales(&x, n_cols))
        } else {
            (upload_rows(device, &x, n_cols)?, x, vec![1.0; n_tokens])
        };
        let norm_weight = noise.units(n_rows);
        let norm_buffer = device.upload(&norm_weight)?;
        let packed = Rows::with_rms(device, n_slots, n_rows, NORM_EPS)?;
        let bias = noise.units(n_rows * n_experts);
        let residual = noise.units(n_slots * n_rows);
        let (bias_buffer, residual_buffer) = (device.upload(&bias)?, device.upload(&residual)?);

        // Slot s belongs to expert s % n_experts here: every expert gets some, unevenly grouped.
        let expert_of = |slot: usize| (slot * 5 + slot / 3) % n_experts;
        let mut slots: Vec<u32> = (0..n_slots as u32).collect();
        slots.sort_by_key(|&s| expert_of(s as usize));
        let mut groups = Vec::new();
        for expert in 0..n_experts {
            let start = slots.iter().position(|&s| expert_of(s as usize) == expert);
            let Some(start) = start else { continue };
            let count = slots.iter().filter(|&&s| expert_of(s as usize) == expert).count();
            for first in (0..count).step_by(group_size.max(1)) {
                let n = (count - first).min(group_size.max(1));
                groups.push(U32x4([expert as u32, (start + first) as u32, n as u32, 0]));
            }
        }
        groups.push(U32x4([0; 4])); // an unused group writes nothing
        let (groups_buffer, slots_buffer) = (device.upload(&groups)?, device.upload(&slots)?);
        let tokens = |are_shared| match self.grouped {
            None => Tokens::All(n_tokens),
            Some(_) => Tokens::Grouped {
                groups: groups_buffer.view(),
                n_groups: groups.len(),
                group_size,
                are_shared,
                slots: slots_buffer.view(),
                slots_per_row: top_k,
            },
        };
        let run = |rows_at_once: usize, are_shared: bool| -> Result<Vec<f32>, Failure> {
            let out = Guarded::<f32>::new(device, n_slots * n_rows)?;
            let p = Product {
                weights: &weights,
                x: &rows,
                bias: self.bias.then_some(&bias_buffer),
                residual: self.residual.then(|| residual_buffer.view()),
                out: out.view_mut(),
                out_stride: n_rows,
                tokens: tokens(are_shared),
                packed: match self.fused {
                    Fused::Nothing | Fused::Scale => Packed::None,
                    Fused::Norms => Packed::for_norm(&norm_buffer, &packed),
                    Fused::Gelu => Packed::Gelu(&packed),
                },
                overlap: Overlap::Alone,
                rows_at_once,
            };
            product(device, p)?;
            out.read()
        };

        let mut want = Vec::new();
        let mut allowed = Vec::new();
        for slot in 0..n_slots {
            let expert = if self.grouped.is_some() { expert_of(slot) } else { 0 };
            let x = &x[slot / top_k * n_cols..][..n_cols];
            for row in 0..n_rows {
                let w = &w[(expert * n_rows + row) * n_cols..][..n_cols];
                let terms = || w.iter().zip(x).map(|(&w, &x)| w as f64 * x as f64);
                let mut sum = terms().sum::<f64>();
                let mut size = terms().map(f64::abs).sum::<f64>();
                let rounding = if format == Format::F32 { 0.0 } else { fixed_point_error(w, x) };
                let factor = factors[slot / top_k];
                sum *= factor;
                size *= factor;
                let rounding = rounding * factor;
                if self.bias {
                    sum += bias[expert * n_rows + row] as f64;
                    size += bias[expert * n_rows + row].abs() as f64;
                }
                if self.residual {
                    sum += residual[slot * n_rows + row] as f64;
                    size += residual[slot * n_rows + row].abs() as f64;
                }
                want.push(sum);
                // And f32 sums: one rounding a block of 32 and a warp, two in the scales; half of
                // those in the RMS scale's sum of squares, and its division, root and inverse.
                let of_scale = if norms { n_cols as f64 / 2048.0 + 8.0 } else { 0.0 };
                let roundings = n_cols as f64 / 32.0 + 12.0 + of_scale;
                allowed.push(rounding + roundings * f32::EPSILON as f64 * size);
            }
        }
        let got = run(n_rows, true)?;
        expect_close(&got, &want, |i, _| allowed[i])?;
        for rows_at_once in self.other_rows_at_once(device) {
            if run(rows_at_once, true)? != got {
                return Err(Failure(format!("other bits with {rows_at_once} rows at once")));
            }
        }
        if self.grouped.is_some() && run(n_rows, false)? != got {
            return Err(Failure("other bits where most groups have one token".into()));
        }
        match self.fused {
            Fused::Nothing | Fused::Scale => Ok(()),
            Fused::Norms => expect_norm(&packed, &got, &norm_weight),
            Fused::Gelu => expect_gelu(&packed, &got),
        }
    }
}

/// Rows at once that make a product of one token, which nothing packs, take blocks of one, two and three tiles.
fn rows_of_widths(device: &Device) -> [usize; 3] {
    [1, 2, 3].map(|tiles| tiles * TILE_ROWS as usize * device.n_multiprocessors())
}

impl MatMul {
    /// Rows at once by which the library chooses among all the kernels that may take this product.
    fn other_rows_at_once(&self, device: &Device) -> Vec<usize> {
        match (self.grouped, self.n_tokens) {
            (None, 1) if matches!(self.fused, Fused::Nothing | Fused::Scale) => {
                rows_of_widths(device).to_vec()
            }
            // Of a few, narrow blocks and wide ones; of more, all tokens in a block or half of them.
            (None, 2..=16) => vec![1, 1 << 20],
            _ => Vec::new(),
        }
    }
}

/// GELU in its tanh form of each value, and how far the kernel's may be from it.
fn expect_gelu(packed: &Rows, x: &[f32]) -> Result<(), Failure> {
    let op = Op::GeluTanh;
    let parts: Vec<(f64, f64)> = x.iter().map(|&x| op.reference(x as f64, 0.0)).collect();
    let want: Vec<f64> = parts.iter().map(|part| part.0).collect();
    let values = packed.values.read()?;
    expect_close(&values, &want, |i, _| parts[i].1)?;
    expect_codes(&packed.codes.read()?, &packed.scales.read()?, &values, packed.n_cols)
}

/// What goes to the next norm's products.
fn expect_norm(packed: &Rows, x: &[f32], weight: &[f32]) -> Result<(), Failure> {
    let values = packed.values.read()?;
    expect_weighed_values(x, weight, &values)?;
    expect_codes(&packed.codes.read()?, &packed.scales.read()?, &values, packed.n_cols)?;
    let Some(rms) = &packed.rms else { return Err(Failure("no sums of squares".into())) };
    expect_squares(x, packed.n_cols, &rms.squares.read()?)
}

/// A token's sums have the same bits whatever else is in the batch.
struct Invariant(Format);

impl Case for Invariant {
    fn name(&self) -> String {
        format!("matmul/{}/batch_invariant", self.0.name())
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        // More parts than shares, and not a round number of them.
        let (n_rows, n_cols, n_tokens) = (35, 1280, 37);
        let mut noise = Noise::new(6);
        let bytes = random_blocks(&mut noise, self.0, n_rows, n_cols);
        let weights = upload(device, self.0, &bytes, (n_rows, n_cols, 1))?;
        let x = noise.units(n_tokens * n_cols);
        let run = |x: &[f32], rows_at_once: usize| -> Result<Vec<f32>, Failure> {
            let rows = upload_rows(device, x, n_cols)?;
            let n = x.len() / n_cols;
            let out = device.alloc::<f32>(n * n_rows)?;
            let p = Product {
                weights: &weights,
                x: &rows,
                bias: None,
                residual: None::<Global<f32>>,
                out: out.view_mut(),
                out_stride: n_rows,
                tokens: Tokens::All(n),
                packed: Packed::None,
                overlap: Overlap::Alone,
                rows_at_once,
            };
            product(device, p)?;
            Ok(out.read()?)
        };
        let together = run(&x, n_rows)?;
        // One token, one column of tokens and two, and four of them, full and not.
        for (first, n) in
            [(0, 1), (15, 1), (16, 1), (36, 1), (3, 2), (30, 4), (11, 5), (4, 8), (20, 13)]
        {
            for rows_at_once in rows_of_widths(device) {
                let few = run(&x[first * n_cols..][..n * n_cols], rows_at_once)?;
                if few != together[first * n_rows..][..n * n_rows] {
                    let which = format!("{n} tokens from {first} on, {rows_at_once} rows at once,");
                    return Err(Failure(format!("{which} have other bits by themselves")));
                }
                if n > 1 {
                    break; // widths are for one token
                }
            }
        }
        Ok(())
    }
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    for format in Format::ALL {
        let block = format.block_elems().max(32);
        let base = MatMul {
            format,
            edge: "one_block",
            n_rows: 16,
            n_cols: block,
            n_tokens: 1,
            grouped: None,
            bias: false,
            residual: false,
            fused: Fused::Nothing,
        };
        let shape = |edge, n_rows, blocks: usize, n_tokens| MatMul {
            edge,
            n_rows,
            n_cols: blocks * block,
            n_tokens,
            ..base.clone()
        };
        let with_all = |case: MatMul| MatMul { bias: true, residual: true, ..case };
        let expert = |case: MatMul, group| MatMul { grouped: Some((3, group)), bias: true, ..case };
        let all = [
            base.clone(),
            shape("one_row", 1, 2, 1),
            shape("below_tile", 15, 3, 3),
            with_all(shape("past_tile", 17, 3, 4)),
            with_all(shape("past_column", 33, 5, 5)),
            shape("past_32_tokens", 19, 3, 33),
            // More than a warp has under way at once, and not a round number of what it multiplies at once.
            shape("long_rows", 17, 4608 / block, 1),
            with_all(MatMul { fused: Fused::Scale, ..shape("alone", 99, 5, 1) }),
            shape("long_rows_few_tokens", 17, 4608 / block, 3),
            // More blocks than a lane has squares of under way, by two for some lanes.
            with_all(MatMul {
                fused: Fused::Scale,
                ..shape("long_rows_scaled", 17, 5376 / block, 1)
            }),
            with_all(MatMul {
                fused: Fused::Scale,
                ..shape("long_rows_scaled_few", 17, 5376 / block, 3)
            }),
            with_all(MatMul { fused: Fused::Norms, ..shape("norms", 65, 4, 3) }),
            with_all(MatMul { fused: Fused::Norms, ..shape("norms_many_tokens", 40, 3, 18) }),
            // Of 13 tokens 7 and 6 in a block, or all of them.
            with_all(MatMul { fused: Fused::Norms, ..shape("two_halves", 40, 5, 13) }),
            with_all(MatMul { fused: Fused::Gelu, ..shape("gelu", 96, 2, 2) }),
            // Groups of 4 and 5 tokens; of 8 and 1.
            expert(shape("experts_small_groups", 18, 2, 7), 8),
            expert(shape("experts_full_groups", 35, 3, 13), 8),
            expert(shape("experts_large_groups", 33, 3, 41), 16),
            // More parts than a warp has on their way, and more than a block's 64 rows.
            expert(shape("experts_long_rows", 70, 1280 / block, 13), 8),
        ];
        table.extend(all.into_iter().map(|case| Box::new(case) as Box<dyn Case>));
        table.push(Box::new(Invariant(format)));
        if format == Format::F32 {
            continue; // its products are never fused
        }
        super::gated::cases(format, table);
    }
    for format in [Format::F16, Format::BF16, Format::F32] {
        table.push(Box::new(MatMul {
            format,
            edge: "odd_columns",
            n_rows: 21,
            n_cols: 75,
            n_tokens: 2,
            grouped: None,
            bias: true,
            residual: false,
            fused: Fused::Nothing,
        }));
    }
}
