//! Cases of the row softmax.

use super::{Case, Failure, Guarded, Noise, expect_close};
use ironwarp::Device;
use kernels_gpu::softmax::{BLOCK, SoftmaxF32};

struct Softmax {
    edge: &'static str,
    n_rows: usize,
    n_cols: usize,
    /// Largest input, of either sign.
    size: f32,
    in_place: bool,
}

impl Case for Softmax {
    fn name(&self) -> String {
        format!("softmax_f32/{}", self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let (n_rows, n_cols) = (self.n_rows, self.n_cols);
        let x: Vec<f32> =
            Noise::new(9).units(n_rows * n_cols).iter().map(|v| v * self.size).collect();
        let x_buffer = device.upload(&x)?;
        let out = if self.in_place {
            Guarded::holding(device, &x)?
        } else {
            Guarded::new(device, n_rows * n_cols)?
        };
        let in_place = kernels_gpu::gpu::Global::new(out.view_mut().address(), x.len());
        let kernel = SoftmaxF32 {
            x: if self.in_place { in_place } else { x_buffer.view() },
            out: out.view_mut(),
            n_cols: n_cols as u32,
        };
        device.launch(kernel, n_rows)?;
        let mut want = Vec::new();
        for row in x.chunks(n_cols) {
            let largest = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v as f64));
            let sum: f64 = row.iter().map(|&v| (v as f64 - largest).exp()).sum();
            want.extend(row.iter().map(|&v| (v as f64 - largest).exp() / sum));
        }
        // An exponential is off by 2^-22 and three roundings of its argument, which is below twice
        // the size; the sum has one too, and a chain of roundings; two more in the division.
        let eps = f32::EPSILON as f64 / 2.0;
        let exp = 2f64.powi(-22) + 3.0 * eps * (2.0 * self.size as f64);
        let chain = (n_cols as f64 / BLOCK as f64).ceil() + 10.0;
        let relative = 2.0 * exp + (chain + 3.0) * eps;
        expect_close(&out.read()?, &want, |_, w| relative * w + f32::MIN_POSITIVE as f64)
    }
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    let block = BLOCK as usize;
    for (edge, n_rows, n_cols, size, in_place) in [
        ("one", 2, 1, 3.0, false),
        ("one_below_block", 3, block - 1, 3.0, false),
        ("block", 2, block, 3.0, true),
        ("one_past_block", 2, block + 1, 3.0, false),
        ("blocks_and_rest", 5, 3 * block + 7, 3.0, false),
        // e^x itself would be infinite.
        ("large", 3, block + 5, 300.0, false),
    ] {
        table.push(Box::new(Softmax { edge, n_rows, n_cols, size, in_place }));
    }
}
