//! A guarded output of activation rows, checked against the layout as fixed16.rs draws it.

use super::{Failure, Guarded, expect_close};
use ironwarp::{Device, Result};
use kernels_gpu::fixed16::{MAX_CODE, SMALLEST_BLOCK};
use kernels_gpu::gpu::U32x4;

/// Values, codes and scales of `n_rows` rows, with guards behind each.
pub struct GuardedRows {
    pub values: Guarded<f32>,
    pub codes: Guarded<u8>,
    pub scales: Guarded<U32x4>,
    n_cols: usize,
}

impl GuardedRows {
    pub fn new(device: &Device, n_rows: usize, n_cols: usize) -> Result<GuardedRows> {
        let n_tiles = n_cols.div_ceil(64);
        Ok(GuardedRows {
            values: Guarded::new(device, n_rows * n_cols)?,
            codes: Guarded::new(device, n_rows * n_tiles * 128)?,
            scales: Guarded::new(device, n_rows * n_tiles * 2)?,
            n_cols,
        })
    }

    /// Checks the values against the reference, and codes, scales and sums against the values.
    pub fn expect(
        &self,
        want: &[f64],
        tolerance: impl Fn(usize, f64) -> f64,
    ) -> Result<(), Failure> {
        let values = self.values.read()?;
        expect_close(&values, want, tolerance)?;
        self.expect_codes_of(&values)
    }

    /// Checks codes, scales and sums against the values that they stand for.
    pub fn expect_codes_of(&self, values: &[f32]) -> Result<(), Failure> {
        expect_codes(&self.codes.read()?, &self.scales.read()?, values, self.n_cols)
    }
}

/// Checks codes, scales and sums of rows of `n_cols` columns against the values that they stand for.
pub fn expect_codes(
    codes: &[u8],
    scales: &[U32x4],
    values: &[f32],
    n_cols: usize,
) -> Result<(), Failure> {
    let n_tiles = n_cols.div_ceil(64);
    for row in 0..values.len() / n_cols {
        let value = |col: usize| match col < n_cols {
            true => values[row * n_cols + col] as f64,
            false => 0.0,
        };
        for tile in 0..n_tiles {
            let bytes = &codes[(row * n_tiles + tile) * 128..][..128];
            let integers = tile_codes(bytes);
            for block in 0..2 {
                let first = 64 * tile + 32 * block;
                let place = format!("row {row}, columns from {first}");
                let at = (row * n_tiles + tile) * 2;
                let (pairs, halves) = (scales[at].0, scales[at + 1].0);
                let record =
                    [pairs[block], halves[2 * block], halves[2 * block + 1], pairs[2 + block]];
                let block_values: Vec<f64> = (first..first + 32).map(value).collect();
                check_block(&integers[32 * block..][..32], record, &block_values)
                    .map_err(|what| Failure(format!("{place}: {what}")))?;
            }
        }
    }
    Ok(())
}

/// The integers of 64 columns, from the bytes in their order: piece, t, block, half, byte.
fn tile_codes(bytes: &[u8]) -> [i64; 64] {
    let mut codes = [0; 64];
    let mut bytes = bytes.iter();
    for weight in [256, 1] {
        for t in 0..4 {
            for block in 0..2 {
                for half in 0..2 {
                    for j in 0..4 {
                        let byte = *bytes.next().expect("128 bytes") as i8;
                        codes[32 * block + 16 * half + 4 * t + j] += weight * byte as i64;
                    }
                }
            }
        }
    }
    codes
}

fn check_block(codes: &[i64], record: [u32; 4], values: &[f64]) -> Result<(), String> {
    let [scale, half0, half1, both] = record;
    let scale = f32::from_bits(scale) as f64;
    let largest = values.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let want_scale = largest / MAX_CODE as f64;
    if largest < SMALLEST_BLOCK as f64 {
        let is_nothing = scale <= 2.0 * want_scale && codes.iter().all(|&code| code == 0);
        return if is_nothing {
            Ok(())
        } else {
            Err(format!("{codes:?} of {scale:e} for nothing"))
        };
    }
    if (scale - want_scale).abs() > f32::EPSILON as f64 * want_scale {
        return Err(format!("scale {scale}, want {want_scale}"));
    }
    for (i, (&code, &value)) in codes.iter().zip(values).enumerate() {
        // Half a code of rounding; the scale is off by an ulp, as is the inverse, by the half of one more
        // for its factor, and the product by another half.
        let allowed = scale * 0.5 + 3.0 * f32::EPSILON as f64 * value.abs();
        if (code as f64 * scale - value).abs() > allowed {
            return Err(format!("column {i}: code {code} of {scale:e} for {value:e}"));
        }
    }
    let sums = [codes[..16].iter().sum(), codes[16..].iter().sum(), codes.iter().sum::<i64>()];
    let got = [half0, half1, both].map(|v| v as i32 as i64);
    if got == sums { Ok(()) } else { Err(format!("sums {got:?}, want {sums:?}")) }
}

/// Checks what goes to the next RMS norm's products against the rows that it comes from: [rows,
/// columns of `weight`].
pub fn expect_weighed(
    x: &[f32],
    weight: &[f32],
    packed: &GuardedRows,
    squares: &[f32],
) -> Result<(), Failure> {
    let values = packed.values.read()?;
    expect_weighed_values(x, weight, &values)?;
    packed.expect_codes_of(&values)?;
    expect_squares(x, weight.len(), squares)
}

/// Checks rows times the weights of a norm: one rounding.
pub fn expect_weighed_values(x: &[f32], weight: &[f32], values: &[f32]) -> Result<(), Failure> {
    let product = |(i, &x): (usize, &f32)| x as f64 * weight[i % weight.len()] as f64;
    let want: Vec<f64> = x.iter().enumerate().map(product).collect();
    expect_close(values, &want, |_, w| f32::EPSILON as f64 / 2.0 * w.abs())
}

/// Checks the sums of squares over each 32 columns of rows of `n_cols`.
pub fn expect_squares(x: &[f32], n_cols: usize, squares: &[f32]) -> Result<(), Failure> {
    let n_blocks = n_cols.div_ceil(64) * 2;
    let want: Vec<f64> = (0..x.len() / n_cols * n_blocks)
        .map(|i| {
            let (row, first) = (i / n_blocks, i % n_blocks * 32);
            let end = n_cols.min(first + 32);
            (first.min(end)..end).map(|col| (x[row * n_cols + col] as f64).powi(2)).sum()
        })
        .collect();
    // A rounding of the square and five of the butterfly, all terms positive.
    expect_close(squares, &want, |_, w| 6.0 * f32::EPSILON as f64 / 2.0 * w)
}
