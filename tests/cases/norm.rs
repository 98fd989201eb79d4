//! Cases of the row norms.

use super::rows::{GuardedRows, expect_weighed};
use super::{Case, Failure, Guarded, Noise};
use ironwarp::Device;
use kernels_gpu::fixed16::STRIP_COLS;
use kernels_gpu::gpu::Global;
use kernels_gpu::norm::{LayerNorm, MAX_COLS, RmsWeigh, WEIGH_BLOCK, weigh_splits};

const EPS: f64 = f32::EPSILON as f64;
const NORM_EPS: f32 = 1e-5;

struct Norm {
    edge: &'static str,
    /// LayerNorm has a bias.
    bias: bool,
    n_rows: usize,
    n_cols: usize,
    /// Added to every value of x.
    offset: f32,
}

impl Case for Norm {
    fn name(&self) -> String {
        format!("layer_norm/{}", self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let &Norm { n_rows, n_cols, .. } = self;
        let mut noise = Noise::new(1);
        let x: Vec<f32> = noise.units(n_rows * n_cols).iter().map(|v| v + self.offset).collect();
        let weight = noise.units(n_cols);
        let bias = noise.units(if self.bias { n_cols } else { 0 });

        let (x_buffer, weight_buffer) = (device.upload(&x)?, device.upload(&weight)?);
        let bias_buffer = device.upload(&bias)?;
        let out = GuardedRows::new(device, n_rows, n_cols)?;
        let kernel = LayerNorm {
            x: x_buffer.view(),
            weight: weight_buffer.view(),
            bias: if self.bias { bias_buffer.view() } else { Global::absent() },
            values: out.values.view_mut(),
            codes: out.codes.view_mut(),
            scales: out.scales.view_mut(),
            n_cols: n_cols as u32,
            eps: NORM_EPS,
        };
        device.launch(kernel, n_rows)?;

        let y: Vec<f64> = x.iter().map(|&v| v as f64).collect();
        let rows: Vec<RowReference> = y.chunks(n_cols).map(RowReference::of).collect();
        let parts = |i: usize| {
            let (row, col) = (&rows[i / n_cols], i % n_cols);
            let scaled = (y[i] - row.mean) * row.scale * weight[col] as f64;
            (row, weight[col] as f64, scaled, bias.get(col).map_or(0.0, |&b| b as f64))
        };
        let want: Vec<f64> = (0..n_rows * n_cols)
            .map(|i| {
                let (_, _, scaled, bias) = parts(i);
                scaled + bias
            })
            .collect();
        // Two of a lane's four columns, ten of the two butterflies, and one where a lane has two strips.
        let sum_roundings = 13.0;
        out.expect(&want, |i, w| {
            let (row, weight, scaled, _) = parts(i);
            // The sum of squares, half of which the root leaves; mean, products, and the inverse root's two units.
            let relative = (sum_roundings / 2.0 + 7.0) * EPS / 2.0;
            // The sum's roundings, the two of the mean, and the difference's: EPS / 2 of the largest each time.
            let of_mean = (sum_roundings + 3.0) * EPS / 2.0;
            relative * scaled.abs()
                + of_mean * row.largest * row.scale * weight.abs()
                // What the errors of the row's mean and of a strip's do to the variance comes back through the scale.
                + 2.0 * of_mean * row.largest * row.scale * scaled.abs()
                + EPS / 2.0 * w.abs()
        })
    }
}

/// A row's numbers in f64, from the definition.
struct RowReference {
    mean: f64,
    scale: f64,
    largest: f64,
}

impl RowReference {
    fn of(row: &[f64]) -> RowReference {
        let n = row.len() as f64;
        let mean = row.iter().sum::<f64>() / n;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
        RowReference {
            mean,
            scale: 1.0 / (variance + NORM_EPS as f64).sqrt(),
            largest: row.iter().fold(0.0, |m, v| v.abs().max(m)),
        }
    }
}

/// Rows on their way through an RMS norm.
struct Weigh {
    edge: &'static str,
    n_rows: usize,
    n_cols: usize,
    n_splits: usize,
}

impl Case for Weigh {
    fn name(&self) -> String {
        format!("rms_weigh/{}", self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let &Weigh { n_rows, n_cols, n_splits, .. } = self;
        let mut noise = Noise::new(3);
        let (x, weight) = (noise.units(n_rows * n_cols), noise.units(n_cols));
        let (x_buffer, weight_buffer) = (device.upload(&x)?, device.upload(&weight)?);
        let out = GuardedRows::new(device, n_rows, n_cols)?;
        let n_blocks = n_cols.div_ceil(64) * 2;
        let squares = Guarded::<f32>::new(device, n_rows * n_blocks)?;
        let kernel = RmsWeigh {
            x: x_buffer.view(),
            weight: weight_buffer.view(),
            values: out.values.view_mut(),
            codes: out.codes.view_mut(),
            scales: out.scales.view_mut(),
            squares: squares.view_mut(),
            n_cols: n_cols as u32,
        };
        device.launch(kernel, (n_rows, n_splits))?;

        expect_weighed(&x, &weight, &out, &squares.read()?)
    }
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    // A block's warps have a strip of 128 columns each, and up to two; a lane has four neighbours.
    let (strip, most) = (STRIP_COLS as usize, MAX_COLS as usize);
    for (edge, n_rows, n_cols) in [
        ("one_lane", 1, 4),
        ("small", 3, 36),
        ("one_lane_below_strip", 2, strip - 4),
        ("strip", 3, strip),
        ("one_lane_past_strip", 2, strip + 4),
        ("gpt2_xl", 1, 1600),
        ("strips_and_rest", 3, 3 * strip + 20),
        ("strip_a_warp", 2, most / 2),
        ("one_lane_past_strip_a_warp", 2, most / 2 + 4),
        ("longest", 2, most),
        ("one_lane_below_longest", 2, most - 4),
    ] {
        let bias = n_cols != strip;
        table.push(Box::new(Norm { edge, bias, n_rows, n_cols, offset: 0.0 }));
    }
    // A mean of a thousand deviations: the variance must not come from a difference of squares.
    table.push(Box::new(Norm {
        edge: "large_mean",
        bias: true,
        n_rows: 2,
        n_cols: 8 * strip + 96,
        offset: 600.0,
    }));
    let block = WEIGH_BLOCK as usize;
    for (edge, n_rows, n_cols, n_splits) in [
        ("one", 1, 1, 1),
        ("small", 3, 33, 1),
        ("one_below_block", 2, block - 1, 1),
        ("block", 3, block, 1),
        ("one_past_block", 2, block + 1, 2),
        ("more_splits_than_work", 2, block + 1, 5),
        ("blocks_and_rest", 3, 3 * block + 7, 2),
        ("gpt_oss", 1, 2880, weigh_splits(2880) as usize),
    ] {
        table.push(Box::new(Weigh { edge, n_rows, n_cols, n_splits }));
    }
}
