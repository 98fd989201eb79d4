//! Cases of the matrix products, for every format, dense and grouped by expert.

use super::weights::{decode, random_blocks, upload};
use super::{Case, Failure, Guarded, Noise, expect_close};
use ironwarp::Device;
use ironwarp::ops::matmul::{Ahead, Packed, Product, Tokens, product};
use ironwarp::tensor::Rows;
use kernels_gpu::activation::PackRows;
use kernels_gpu::gpu::{Global, U32x4};
use kernels_gpu::quant::Format;

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
        let rows = upload_rows(device, &x, n_cols)?;
        let bias = noise.units(n_rows * n_experts);
        let residual = noise.units(n_slots * n_rows);
        let (bias_buffer, residual_buffer) = (device.upload(&bias)?, device.upload(&residual)?);
        let out = Guarded::<f32>::new(device, n_slots * n_rows)?;

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
        let tokens = match self.grouped {
            None => Tokens::All(n_tokens),
            Some(_) => Tokens::Grouped {
                groups: groups_buffer.view(),
                n_groups: groups.len(),
                group_size,
                slots: slots_buffer.view(),
                slots_per_row: top_k,
            },
        };
        product(
            device,
            Product {
                weights: &weights,
                x: &rows,
                bias: self.bias.then_some(&bias_buffer),
                residual: self.residual.then(|| residual_buffer.view()),
                out: out.view_mut(),
                out_stride: n_rows,
                tokens,
                packed: Packed::None,
                ahead: Ahead(Some(&weights)),
            },
        )?;

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
                // Fixed point keeps each activation to half a code of its block of 32.
                let rounding: f64 = w
                    .chunks(32)
                    .zip(x.chunks(32))
                    .map(|(w, x)| {
                        let largest = x.iter().fold(0f32, |m, v| m.max(v.abs())) as f64;
                        w.iter().map(|w| w.abs() as f64).sum::<f64>() * largest / 32512.0 / 2.0
                    })
                    .sum();
                let rounding = if format == Format::F32 { 0.0 } else { rounding };
                if self.bias {
                    sum += bias[expert * n_rows + row] as f64;
                    size += bias[expert * n_rows + row].abs() as f64;
                }
                if self.residual {
                    sum += residual[slot * n_rows + row] as f64;
                    size += residual[slot * n_rows + row].abs() as f64;
                }
                want.push(sum);
                // And f32 sums: one rounding a block of 32 and a warp, two in the scales.
                let roundings = n_cols as f64 / 32.0 + 12.0;
                allowed.push(rounding + roundings * f32::EPSILON as f64 * size);
            }
        }
        expect_close(&out.read()?, &want, |i, _| allowed[i])
    }
}

/// A token's sums have the same bits whatever else is in the batch.
struct Invariant(Format);

impl Case for Invariant {
    fn name(&self) -> String {
        format!("matmul/{}/batch_invariant", self.0.name())
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let (n_rows, n_cols, n_tokens) = (35, 512, 37);
        let mut noise = Noise::new(6);
        let bytes = random_blocks(&mut noise, self.0, n_rows, n_cols);
        let weights = upload(device, self.0, &bytes, (n_rows, n_cols, 1))?;
        let x = noise.units(n_tokens * n_cols);
        let run = |x: &[f32]| -> Result<Vec<f32>, Failure> {
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
                ahead: Ahead::NONE,
            };
            product(device, p)?;
            Ok(out.read()?)
        };
        let together = run(&x)?;
        for token in [0, 3, 4, 15, 16, 31, 32, 36] {
            let alone = run(&x[token * n_cols..][..n_cols])?;
            if alone != together[token * n_rows..][..n_rows] {
                return Err(Failure(format!("token {token} has other bits alone")));
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
            expert(shape("experts_small_groups", 18, 2, 7), 4),
            expert(shape("experts_large_groups", 33, 3, 41), 16),
        ];
        table.extend(all.into_iter().map(|case| Box::new(case) as Box<dyn Case>));
        table.push(Box::new(Invariant(format)));
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
        }));
    }
}
