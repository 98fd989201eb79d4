//! Cases of the row norms.

use super::{Case, Failure, Guarded, Noise, expect_close};
use ironwarp::Device;
use kernels_gpu::norm::{BLOCK, RmsNormF32};

struct RmsNorm {
    edge: &'static str,
    n_rows: usize,
    n_cols: usize,
}

impl Case for RmsNorm {
    fn name(&self) -> String {
        format!("rms_norm_f32/{}", self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let (n_rows, n_cols) = (self.n_rows, self.n_cols);
        let mut noise = Noise::new(1);
        let x = noise.units(n_rows * n_cols);
        let weight = noise.units(n_cols);
        let (x_buffer, weight_buffer) = (device.upload(&x)?, device.upload(&weight)?);
        let out = Guarded::<f32>::new(device, n_rows * n_cols)?;
        let kernel = RmsNormF32 {
            x: x_buffer.view(),
            weight: weight_buffer.view(),
            out: out.view_mut(),
            n_cols: n_cols as u32,
            eps: 1e-5,
        };
        device.launch(kernel, n_rows)?;
        let want: Vec<f64> = (0..n_rows * n_cols)
            .map(|i| {
                let row = &x[i / n_cols * n_cols..][..n_cols];
                let mean = row.iter().map(|&v| (v as f64).powi(2)).sum::<f64>() / n_cols as f64;
                x[i] as f64 * weight[i % n_cols] as f64 / (mean + 1e-5).sqrt()
            })
            .collect();
        // The sum of squares has n_cols / BLOCK + 8 roundings a thread, half of which the root
        // leaves; three more in the products.
        let roundings = (n_cols as f64 / BLOCK as f64 + 8.0) / 2.0 + 4.0;
        expect_close(&out.read()?, &want, |_, w| roundings * f32::EPSILON as f64 * w.abs())
    }
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    let block = BLOCK as usize;
    for (edge, n_rows, n_cols) in [
        ("one", 1, 1),
        ("one_below_block", 2, block - 1),
        ("block", 3, block),
        ("one_past_block", 2, block + 1),
        ("blocks_and_rest", 5, 3 * block + 7),
    ] {
        table.push(Box::new(RmsNorm { edge, n_rows, n_cols }));
    }
}
