//! The emulator itself: every check is proved by a planted fault.

use kernels_gpu::gpu::emu::{self, Mode};
use kernels_gpu::gpu::{Global, GlobalMut};
use kernels_gpu::norm::RmsNormF32;

#[test]
fn rms_norm_runs() {
    let (n_rows, n_cols) = (3, 300);
    let x: Vec<f32> = (0..n_rows * n_cols).map(|i| (i % 17) as f32 - 8.0).collect();
    let weight: Vec<f32> = (0..n_cols).map(|i| 1.0 + i as f32 / 100.0).collect();
    let mut out = vec![f32::NAN; n_rows * n_cols];
    let kernel = RmsNormF32 {
        x: Global::new(x.as_ptr() as u64, x.len()),
        weight: Global::new(weight.as_ptr() as u64, weight.len()),
        out: GlobalMut::new(out.as_mut_ptr() as u64, out.len()),
        n_cols: n_cols as u32,
        eps: 1e-5,
    };
    // SAFETY: the three vectors outlive the launch.
    unsafe { emu::launch(kernel, [n_rows as u32, 1, 1], Mode::CHECKED) }.unwrap();
    for row in 0..n_rows {
        let x = &x[row * n_cols..][..n_cols];
        let mean = x.iter().map(|&v| (v as f64).powi(2)).sum::<f64>() / n_cols as f64;
        for col in 0..n_cols {
            let want = x[col] as f64 * weight[col] as f64 / (mean + 1e-5).sqrt();
            let got = out[row * n_cols + col] as f64;
            assert!((got - want).abs() <= 1e-6 * (1.0 + want.abs()), "{row},{col}: {got} {want}");
        }
    }
}
