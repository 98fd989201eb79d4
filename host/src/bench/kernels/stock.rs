//! What benches are made of: random matrices, rows and logits on the device, with what the host knows
//! of them.

use super::check::Estimate;
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::model::weights::Linear;
use crate::ops::norm::weigh;
use crate::ops::weights::{matrix_words, repack};
use crate::synth::blocks::{Random, Spread, blocks};
use crate::tensor::{Matrix, Rows};
use kernels_gpu::activation::PackRows;
use kernels_gpu::fixed16;
use kernels_gpu::quant::{self, Format};
use kernels_gpu::tile::TILE_ROWS;

/// Bytes that the copies of an input take together, at least: several times the cache of a card.
const ROTATION_BYTES: u64 = 256 << 20;
/// Copies where they are small. Where more bytes would be needed, what was read last has left the cache
/// when the next batch begins, by what is copied between the two.
pub(super) const MAX_COPIES: usize = 256;
/// Bytes of random blocks that are made for a matrix, whose rows repeat them.
const SLAB_BYTES: usize = 16 << 20;
/// Epsilon of every norm.
pub(super) const NORM_EPS: f32 = 1e-5;

/// Makes inputs. Of what is only looked at, not run, nothing is filled in.
pub(super) struct Stock {
    pub device: Device,
    pub is_filled: bool,
    random: Random,
}

/// Rows of a matrix as a file has them.
pub(super) struct Slab {
    pub format: Format,
    n_cols: usize,
    n_rows: usize,
    bytes: Vec<u8>,
}

/// Copies of a matrix, or of an expert's after another, and of its bias.
pub(super) struct Matrices {
    pub linears: Vec<Linear>,
    pub slab: Slab,
    /// [experts, rows], or empty
    bias: Vec<f32>,
}

/// Rows that a product multiplies.
pub(super) struct Input {
    pub rows: Rows,
    /// As the product takes them
    values: Vec<f32>,
    /// Of each row, what its RMS norm's scale is; empty where there is no norm.
    factors: Vec<f64>,
}

impl Stock {
    pub fn new(device: &Device, is_filled: bool) -> Stock {
        Stock { device: device.clone(), is_filled, random: Random(0x1705) }
    }

    /// Copies of something that a launch reads so many bytes of: at least two.
    pub fn n_copies(&self, bytes: u64) -> usize {
        self.n_copies_of(bytes, 2)
    }

    /// Copies of something of which launches read so many bytes before they come back to the first.
    pub fn n_copies_of(&self, bytes: u64, least: usize) -> usize {
        match (self.is_filled, self.device.is_emulator()) {
            (false, _) => 1,
            (true, true) => least,
            (true, false) => {
                (ROTATION_BYTES.div_ceil(bytes.max(1)) as usize).clamp(least, MAX_COPIES)
            }
        }
    }

    /// Numbers in -1..1.
    pub fn units(&mut self, n: usize) -> Vec<f32> {
        match self.is_filled {
            true => (0..n).map(|_| self.random.within(-1.0, 1.0)).collect(),
            false => vec![0.0; n],
        }
    }

    /// Numbers below `below`.
    pub fn below(&mut self, n: usize, below: usize) -> Vec<u32> {
        let most = (below - 1) as f32;
        self.units(n).iter().map(|v| ((v + 1.0) / 2.0 * most) as u32).collect()
    }

    fn slab(&mut self, format: Format, n_rows: usize, n_cols: usize) -> Slab {
        let row_bytes = n_cols / format.block_elems() * format.block_bytes();
        let tile = TILE_ROWS as usize;
        let n_rows = n_rows.min((SLAB_BYTES / row_bytes / tile).max(1) * tile);
        let n_blocks = if self.is_filled { n_rows * n_cols / format.block_elems() } else { 0 };
        let spread = Spread { mean: 0.0, sigma: 1.0 / (n_cols as f32).sqrt() };
        let bytes = blocks(format, spread, n_blocks, &mut self.random);
        Slab { format, n_cols, n_rows, bytes }
    }

    /// So many copies of a matrix of `[columns, rows, experts]`.
    pub fn matrices(
        &mut self,
        (name, format): (&str, Format),
        [n_cols, n_rows, n_experts]: [usize; 3],
        has_bias: bool,
        n_copies: usize,
    ) -> Result<Matrices> {
        let slab = self.slab(format, n_experts * padded(n_rows), n_cols);
        let bias = self.units(if has_bias { n_experts * n_rows } else { 0 });
        let staging = self.device.upload(&slab.bytes)?;
        let device = &self.device;
        let expert_words = matrix_words(format, n_rows, n_cols);
        let mut linears = Vec::with_capacity(n_copies);
        for _ in 0..n_copies {
            let words = device.alloc::<u32>(expert_words * n_experts)?;
            let weight = Matrix { name: name.to_owned(), format, n_rows, n_cols, n_experts, words };
            if self.is_filled {
                (0..n_experts).try_for_each(|expert| slab.fill(&staging, &weight, expert))?;
            }
            let bias = if has_bias { Some(device.upload(&bias)?) } else { None };
            linears.push(Linear { weight, bias });
        }
        device.synchronize()?; // what reads the staging buffer is done
        Ok(Matrices { linears, slab, bias })
    }

    /// `n` rows that come as they are.
    pub fn plain(&mut self, n: usize, n_cols: usize) -> Result<Input> {
        let rows = Rows::new(&self.device, n, n_cols)?;
        let values = self.units(n * n_cols);
        if self.is_filled && n > 0 {
            let x = self.device.upload(&values)?;
            let kernel = PackRows {
                x: x.view(),
                values: rows.values.view_mut(),
                codes: rows.codes.view_mut(),
                scales: rows.scales.view_mut(),
                n_cols: n_cols as u32,
                in_stride: n_cols as u32,
            };
            self.device.launch(kernel, n)?;
            self.device.synchronize()?;
        }
        Ok(Input { rows, values, factors: Vec::new() })
    }

    /// `n` rows that come from an RMS norm.
    pub fn normed(&mut self, n: usize, n_cols: usize) -> Result<Input> {
        let (x, weight) = (self.units(n * n_cols), self.units(n_cols));
        let rows = Rows::with_rms(&self.device, n, n_cols, NORM_EPS)?;
        if let (true, Some(rms)) = (self.is_filled, &rows.rms) {
            let (source, weight) = (self.device.upload(&x)?, self.device.upload(&weight)?);
            weigh(&self.device, source.view(), weight.view(), (&rows, rms), n)?;
            self.device.synchronize()?;
        }
        let weighed = x.iter().zip(weight.iter().cycle()).map(|(x, weight)| x * weight);
        Ok(Input { rows, values: weighed.collect(), factors: rms_factors(&x, n_cols) })
    }

    /// Rows that a product makes for itself, so that they are nowhere on the device.
    pub fn made_inside(&self, values: Vec<f32>, n_cols: usize) -> Result<Input> {
        Ok(Input { rows: Rows::new(&self.device, 0, n_cols)?, values, factors: Vec::new() })
    }

    /// Uploads the same data so many times.
    pub fn copies<T: kernels_gpu::gpu::Plain>(
        &self,
        n: usize,
        data: &[T],
    ) -> Result<Vec<Buffer<T>>> {
        (0..n).map(|_| self.device.upload(data)).collect()
    }
}

/// Rows as whole tiles.
fn padded(n_rows: usize) -> usize {
    n_rows.next_multiple_of(TILE_ROWS as usize)
}

/// `1 / sqrt(mean(x^2) + eps)` of each row.
pub(super) fn rms_factors(x: &[f32], n_cols: usize) -> Vec<f64> {
    let factor = |row: &[f32]| {
        let squares: f64 = row.iter().map(|&v| (v as f64).powi(2)).sum();
        1.0 / (squares / n_cols as f64 + NORM_EPS as f64).sqrt()
    };
    x.chunks(n_cols).map(factor).collect()
}

impl Slab {
    fn row_bytes(&self) -> usize {
        self.n_cols / self.format.block_elems() * self.format.block_bytes()
    }

    /// Row `row` of the slab for a matrix's row.
    fn at(&self, expert: usize, n_rows: usize, row: usize) -> usize {
        (expert * padded(n_rows) + row) % self.n_rows
    }

    /// Puts an expert's rows on the device, as a loader does, from the slab at `staging`.
    fn fill(&self, staging: &Buffer<u8>, to: &Matrix, expert: usize) -> Result<()> {
        let (device, n_cols) = (staging.device(), self.n_cols);
        let first_word = expert * matrix_words(self.format, to.n_rows, n_cols);
        let mut row = 0;
        while row < to.n_rows {
            let start = self.at(expert, to.n_rows, row);
            let n = (to.n_rows - row).min(self.n_rows - start);
            let words =
                to.words.view_mut().from(first_word + matrix_words(self.format, row, n_cols));
            let first = start * self.row_bytes();
            if self.format == Format::F32 {
                let bytes = &self.bytes[first..][..n * self.row_bytes()];
                device.copy_in(words.cast(), bytes)?;
            } else {
                repack(device, self.format, staging.view().from(first), words, n, n_cols)?;
            }
            row += n;
        }
        Ok(())
    }
}

impl Matrices {
    /// A row's weights.
    pub fn row(&self, expert: usize, row: usize) -> Vec<f32> {
        let at = self.slab.at(expert, self.linears[0].weight.n_rows, row);
        let row_bytes = self.slab.row_bytes();
        let mut weights = vec![0.0; self.slab.n_cols];
        let bytes = &self.slab.bytes[at * row_bytes..][..row_bytes];
        quant::decode_row(self.slab.format, bytes, &mut weights);
        weights
    }

    /// A row's bias; 0 where there is none.
    pub fn bias_of(&self, expert: usize, row: usize) -> f64 {
        let at = expert * self.linears[0].weight.n_rows + row;
        self.bias.get(at).map_or(0.0, |&bias| bias as f64)
    }

    /// Bytes of one expert's matrix, as it lies on the device, with its bias.
    pub fn expert_bytes(&self) -> u64 {
        let Matrix { n_rows, n_experts, ref words, .. } = self.linears[0].weight;
        let bias = if self.bias.is_empty() { 0 } else { 4 * n_rows };
        (4 * words.len() / n_experts + bias) as u64
    }
}

/// Bytes of a matrix as it lies on the device, without a bias.
pub(super) fn matrix_bytes(format: Format, n_rows: usize, n_cols: usize) -> u64 {
    4 * matrix_words(format, n_rows, n_cols) as u64
}

/// Bytes of `n` rows as products read them: codes, scales and, from an RMS norm, sums of squares; of
/// products in full precision the rows themselves in the codes' place.
pub(super) fn input_bytes(n: usize, n_cols: usize, is_normed: bool, format: Format) -> u64 {
    let cols = n_cols as u32;
    let n_scales = fixed16::row_scales(cols) as usize;
    let codes = match format {
        Format::F32 => 4 * n_cols,
        _ => fixed16::row_code_bytes(cols) as usize + 16 * n_scales,
    };
    (n * (codes + if is_normed { 4 * n_scales } else { 0 })) as u64
}

/// Bytes of `n` rows as kernels leave them for products: values, codes and scales.
pub(super) fn packed_bytes(n: usize, n_cols: usize, is_normed: bool) -> u64 {
    4 * (n * n_cols) as u64 + input_bytes(n, n_cols, is_normed, Format::Q8_0)
}

impl Input {
    /// What the product multiplies.
    pub fn row(&self, row: usize) -> &[f32] {
        &self.values[row * self.rows.n_cols..][..self.rows.n_cols]
    }

    /// What its result is then multiplied by.
    pub fn factor(&self, row: usize) -> f64 {
        self.factors.get(row).copied().unwrap_or(1.0)
    }

    pub fn is_normed(&self) -> bool {
        self.rows.rms.is_some()
    }
}

/// Part of a row of f32 on the device.
pub(super) fn read_row(buffer: &Buffer<f32>, row: usize, n_cols: usize) -> Result<Vec<f32>> {
    let mut values = vec![0.0; n_cols];
    buffer.read_into(row * n_cols, &mut values)?;
    Ok(values)
}

/// Estimates beside what was found, at some places of a row.
pub(super) fn points_of_row(
    what: &str,
    found: &[f32],
    places: &[usize],
    expected: impl Fn(usize) -> Estimate,
) -> Vec<super::check::Point> {
    let point = |&place: &usize| super::check::Point {
        element: format!("{what}, column {place}"),
        found: found[place] as f64,
        expected: expected(place),
    };
    places.iter().map(point).collect()
}
