//! Cases of repacking, dequantisation and embedding rows, for every format.

use super::rows::{expect_codes, expect_squares, expect_weighed_values};
use super::{Case, Failure, Guarded, Noise};
use ironwarp::Device;
use ironwarp::ops::matmul::Packed;
use ironwarp::ops::weights::{dequantize, embed, matrix_words, repack};
use ironwarp::tensor::{Matrix, Rows};
use kernels_gpu::quant::{self, Format};
use kernels_gpu::tile::TILE_ROWS;

/// Random blocks of a tensor: encoded noise, so that every scale is a sane number.
pub fn random_blocks(noise: &mut Noise, format: Format, n_rows: usize, n_cols: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..n_rows {
        let magnitude = 0.1 + noise.unit().abs();
        let row: Vec<f32> = noise.units(n_cols).into_iter().map(|v| v * magnitude).collect();
        quant::encode_row(format, &row, &mut bytes);
    }
    bytes
}

/// The tensor in f32, by the definition.
pub fn decode(format: Format, bytes: &[u8], n_rows: usize, n_cols: usize) -> Vec<f32> {
    let mut values = vec![0.0; n_rows * n_cols];
    let row_bytes = bytes.len() / n_rows;
    for (row, bytes) in values.chunks_mut(n_cols).zip(bytes.chunks(row_bytes)) {
        quant::decode_row(format, bytes, row);
    }
    values
}

/// Uploads a tensor and repacks it as the loader does.
pub fn upload(
    device: &Device,
    format: Format,
    bytes: &[u8],
    (n_rows, n_cols, n_experts): (usize, usize, usize),
) -> Result<Matrix, Failure> {
    let expert_words = matrix_words(format, n_rows, n_cols);
    let words = device.alloc::<u32>(expert_words * n_experts)?;
    let expert_bytes = bytes.len() / n_experts;
    for (expert, bytes) in bytes.chunks(expert_bytes).enumerate() {
        let to = words.view_mut().from(expert * expert_words);
        if format == Format::F32 {
            device.copy_in(to.cast(), bytes)?;
        } else {
            let raw = device.upload(bytes)?;
            repack(device, format, raw.view(), to, n_rows, n_cols)?;
        }
    }
    Ok(Matrix { name: format!("{format:?}"), format, n_rows, n_cols, n_experts, words })
}

struct Exact {
    format: Format,
    edge: &'static str,
    n_rows: usize,
    n_cols: usize,
}

impl Case for Exact {
    fn name(&self) -> String {
        format!("weights/{}/{}", self.format.name(), self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let Exact { format, n_rows, n_cols, .. } = *self;
        let mut noise = Noise::new(3);
        let bytes = random_blocks(&mut noise, format, n_rows, n_cols);
        let want = decode(format, &bytes, n_rows, n_cols);
        let matrix = upload(device, format, &bytes, (n_rows, n_cols, 1))?;

        let got = dequantize(device, &matrix)?.read()?;
        expect_same_bits("dequantize", &got, &want)?;

        let ids: Vec<u32> = (0..5).map(|i| (i * 7 + 3) % n_rows as u32).collect();
        let ids_buffer = device.upload(&ids)?;
        let out = device.upload(&vec![1.5f32; ids.len() * n_cols])?;
        let rows = ids.iter().flat_map(|&id| &want[id as usize * n_cols..][..n_cols]);
        let rows: Vec<f32> = rows.copied().collect();
        embed(device, &matrix, ids_buffer.view(), &out, ids.len(), false, Packed::None)?;
        expect_same_bits("embed", &out.read()?, &rows)?;
        // Added, and as an RMS norm takes it.
        let packed = Rows::with_rms(device, ids.len(), n_cols, 1e-5)?;
        let weight = noise.units(n_cols);
        let weights = device.upload(&weight)?;
        let norm = Packed::for_norm(&weights, &packed);
        embed(device, &matrix, ids_buffer.view(), &out, ids.len(), true, norm)?;
        let doubled: Vec<f32> = rows.iter().map(|v| v + v).collect();
        expect_same_bits("embed, added", &out.read()?, &doubled)?;
        let values = packed.values.read()?;
        expect_weighed_values(&doubled, &weight, &values)?;
        expect_codes(&packed.codes.read()?, &packed.scales.read()?, &values, n_cols)?;
        let rms = packed.rms.as_ref().ok_or(Failure("rows without an RMS scale".into()))?;
        expect_squares(&doubled, n_cols, &rms.squares.read()?)
    }
}

fn expect_same_bits(what: &str, got: &[f32], want: &[f32]) -> Result<(), Failure> {
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        if g.to_bits() != w.to_bits() {
            return Err(Failure(format!("{what}: element {i}: got {g:e}, want {w:e}")));
        }
    }
    if got.len() == want.len() { Ok(()) } else { Err(Failure(format!("{what}: length"))) }
}

/// Records are as many words as the blocks they came from, and guard words behind them survive.
struct Guard(Format);

impl Case for Guard {
    fn name(&self) -> String {
        format!("weights/{}/guard", self.0.name())
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let (n_rows, n_cols) = (2 * TILE_ROWS as usize, 256);
        let bytes = random_blocks(&mut Noise::new(4), self.0, n_rows, n_cols);
        if matrix_words(self.0, n_rows, n_cols) * 4 != bytes.len() {
            return Err(Failure("records and blocks differ in size".into()));
        }
        if self.0 == Format::F32 {
            return Ok(());
        }
        let raw = device.upload(&bytes)?;
        let words = Guarded::<u32>::new(device, bytes.len() / 4)?;
        repack(device, self.0, raw.view(), words.view_mut(), n_rows, n_cols)?;
        words.read().map(drop)
    }
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    let tile = TILE_ROWS as usize;
    for format in Format::ALL {
        let block = format.block_elems().max(32);
        for (edge, n_rows, n_cols) in [
            ("one_block", 1, block),
            ("below_tile", tile - 1, 3 * block),
            ("tiles_and_rest", 2 * tile + 5, 5 * block),
        ] {
            table.push(Box::new(Exact { format, edge, n_rows, n_cols }));
        }
        table.push(Box::new(Guard(format)));
    }
    for format in [Format::F16, Format::BF16, Format::F32] {
        table.push(Box::new(Exact { format, edge: "odd_columns", n_rows: 17, n_cols: 77 }));
    }
}
