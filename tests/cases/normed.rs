//! Cases of the products that do a layer norm themselves.

use super::matmul::{NORM_EPS, upload_rows};
use super::weights::{random_blocks, upload};
use super::{Case, Failure, Guarded, Noise};
use ironwarp::Device;
use ironwarp::model::weights::{Linear, Norm};
use ironwarp::ops::matmul::{Overlap, Packed, Product, Tokens, product};
use ironwarp::ops::norm::layer_norm;
use ironwarp::ops::normed::{NormedProduct, Out, normed_product, norms_itself};
use ironwarp::tensor::Rows;
use kernels_gpu::matmul::normed::MAX_COLS;
use kernels_gpu::quant::Format;
use kernels_gpu::tile::TILE_ROWS;

/// Such a product, against the norm and the product in launches of their own, which have cases: to the bit, with all the
/// blocks that the library may choose.
#[derive(Clone, Copy)]
struct Normed {
    format: Format,
    edge: &'static str,
    n_rows: usize,
    n_cols: usize,
    /// Of the matrix and of the norm.
    bias: bool,
    /// Added to every value of x.
    offset: f32,
}

impl Case for Normed {
    fn name(&self) -> String {
        format!("normed/{}/{}", self.format.name(), self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let Normed { format, n_rows, n_cols, .. } = *self;
        let mut noise = Noise::new(21);
        let bytes = random_blocks(&mut noise, format, n_rows, n_cols);
        let weight = upload(device, format, &bytes, (n_rows, n_cols, 1))?;
        let mut vector = |n: usize| device.upload(&noise.units(n));
        let bias = if self.bias { Some(vector(n_rows)?) } else { None };
        let linear = Linear { weight, bias };
        let norm_bias = if self.bias { Some(vector(n_cols)?) } else { None };
        let norm = Norm { weight: vector(n_cols)?, bias: norm_bias };
        let mut x: Vec<f32> = noise.units(n_cols).iter().map(|v| v + self.offset).collect();
        x.iter_mut().step_by(13).for_each(|v| *v *= 40.0); // outliers, as real activations have
        let stream = device.upload(&x)?;

        let normed = upload_rows(device, &vec![f32::NAN; n_cols], n_cols)?;
        layer_norm(device, NORM_EPS, &norm, &stream, &normed, 1)?;
        let want_packed = Rows::new(device, 1, n_rows)?;
        let want = device.alloc::<f32>(n_rows)?;
        for packed in [Packed::None, Packed::Gelu(&want_packed)] {
            let p = Product {
                weights: &linear.weight,
                x: &normed,
                bias: linear.bias.as_ref(),
                residual: None,
                out: want.view_mut(),
                out_stride: n_rows,
                tokens: Tokens::All(1),
                packed,
                overlap: Overlap::Alone,
                rows_at_once: n_rows,
            };
            product(device, p)?;
        }
        let (want, want_packed) = (want.read()?, bits_of(&want_packed)?);

        for tiles in [1, 2, 3, 8] {
            let rows_at_once = tiles * TILE_ROWS as usize * device.n_multiprocessors();
            let of_tiles = |what| Failure(format!("{what} with {tiles} tiles for a block"));
            if !norms_itself(device, (format, n_cols), rows_at_once) {
                return Err(of_tiles("no such product"));
            }
            let run = |out: Out<'_>| {
                let p = NormedProduct {
                    linear: &linear,
                    x: &stream,
                    norm: &norm,
                    eps: NORM_EPS,
                    out,
                    overlap: Overlap::Alone,
                    rows_at_once,
                };
                normed_product(device, p)
            };
            let out = Guarded::<f32>::new(device, n_rows)?;
            run(Out::Columns(out.view_mut()))?;
            if out.read()? != want {
                return Err(of_tiles("other bits"));
            }
            let packed = Rows::new(device, 1, n_rows)?;
            run(Out::Gelu(&packed))?;
            if bits_of(&packed)? != want_packed {
                return Err(of_tiles("other bits behind GELU"));
            }
        }
        let too_many = 9 * TILE_ROWS as usize * device.n_multiprocessors();
        if norms_itself(device, (format, n_cols), too_many) {
            return Err(Failure("a product with three blocks for a multiprocessor".into()));
        }
        Ok(())
    }
}

/// Values, codes and scale records of packed rows.
fn bits_of(rows: &Rows) -> Result<[Vec<u32>; 3], Failure> {
    let values = rows.values.read()?.iter().map(|v| v.to_bits()).collect();
    let codes = rows.codes.read()?.into_iter().map(u32::from).collect();
    let scales = rows.scales.read()?.iter().flat_map(|quad| quad.0).collect();
    Ok([values, codes, scales])
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    let formats = [
        Format::Q4_0,
        Format::Q4_1,
        Format::Q5_0,
        Format::Q5_1,
        Format::Q8_0,
        Format::F16,
        Format::BF16,
    ];
    for format in formats {
        let all = [
            // Less than a part, and less than a tile.
            ("one_block", 5, 32, false, 0.0),
            // More blocks of 32 columns than a warp of any block stores at once, and an odd number of them.
            ("gpt2_xl", 150, 1600, true, 0.0),
            ("odd_blocks", 97, 1120, true, 0.0),
            ("longest", 64, MAX_COLS as usize, true, 0.0),
            // A mean that a variance of squares alone would drown in.
            ("offset", 33, 768, true, 1000.0),
        ];
        for (edge, n_rows, n_cols, bias, offset) in all {
            table.push(Box::new(Normed { format, edge, n_rows, n_cols, bias, offset }));
        }
    }
    for format in [Format::F16, Format::BF16] {
        let edge = "odd_quads";
        let (n_rows, n_cols) = (21, 76);
        table.push(Box::new(Normed { format, edge, n_rows, n_cols, bias: true, offset: 0.0 }));
    }
}
