//! Cases of the machine's own operations, each twice in a row, on whichever body runs them.

use super::{Case, Failure, Guarded, Noise, expect_close};
use half::{bf16, f16};
use ironwarp::Device;
use kernels_gpu::gpu::{Global, U32x4};
use kernels_gpu::probe::together::{self as together_probe, ProbeTogether};
use kernels_gpu::probe::{self, BLOCK, SUMS_BLOCK};

type Check = fn(&Device) -> Result<(), Failure>;

/// A check under a name.
struct Probe {
    name: &'static str,
    check: Check,
}

impl Case for Probe {
    fn name(&self) -> String {
        self.name.to_string()
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        (self.check)(device)
    }
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    super::gpu_products::cases(table);
    let probes: [(&str, Check); 13] = [
        ("probe_index/three_dimensions", index),
        ("probe_lanes/words", |device| lanes(device, u32::MAX)),
        ("probe_lanes/many_equal", |device| lanes(device, 7)),
        ("probe_sums/three_warps", sums),
        ("probe_floats/twice", floats),
        ("probe_bits/twice", bits),
        ("probe_atomic/blocks", atomic),
        ("probe_shared/every_type", shared),
        ("probe_copy/every_width", copy),
        ("probe_later/groups", later),
        ("probe_bits/halves_at_their_ends", halves_at_their_ends),
        ("probe_together/one_block", |device| together(device, 1)),
        ("probe_together/four_blocks", |device| together(device, 4)),
    ];
    for (name, check) in probes {
        table.push(Box::new(Probe { name, check }));
    }
}

/// Every word must be the expected one.
fn expect_rows(got: &[u32], want: &[Vec<u32>]) -> Result<(), Failure> {
    let n_threads = want[0].len();
    assert_eq!(got.len(), want.len() * n_threads);
    for (row, (got, want)) in got.chunks(n_threads).zip(want).enumerate() {
        if let Some(thread) = (0..n_threads).find(|&i| got[i] != want[i]) {
            let (got, want) = (got[thread], want[thread]);
            let message = format!("row {row}, thread {thread}: got {got:#x}, want {want:#x}");
            return Err(Failure(message));
        }
    }
    Ok(())
}

fn index(device: &Device) -> Result<(), Failure> {
    let [nx, ny, nz] = [3, 2, 4];
    let n_blocks = nx * ny * nz;
    let n = n_blocks * BLOCK as usize * probe::INDEX_ROWS;
    let out = Guarded::<u32>::new(device, n)?;
    device.launch(probe::ProbeIndex { out: out.view_mut() }, (nx, ny, nz))?;
    let mut want = Vec::new();
    for block in 0..n_blocks {
        for thread in 0..BLOCK as usize {
            let (x, y, z) = (block % nx, block / nx % ny, block / nx / ny);
            want.extend([thread, thread % 32, thread / 32, x, y, z, nx, ny].map(|v| v as u32));
        }
    }
    expect_rows(&out.read()?, &[want])
}

/// `f(the warp's words, lane)` for every thread.
fn by_warp(x: &[u32], f: impl Fn(&[u32], usize) -> u32) -> Vec<u32> {
    (0..x.len()).map(|i| f(&x[i / 32 * 32..][..32], i % 32)).collect()
}

fn xor(a: &[u32], b: &[u32]) -> Vec<u32> {
    a.iter().zip(b).map(|(a, b)| a ^ b).collect()
}

/// Words drawn from 0..=`largest`.
fn lanes(device: &Device, largest: u32) -> Result<(), Failure> {
    let n_blocks = 3;
    let mut noise = Noise::new(11);
    let draw = |noise: &mut Noise| {
        if largest == u32::MAX { noise.bits() } else { noise.bits() % (largest + 1) }
    };
    let x: Vec<u32> = (0..n_blocks * BLOCK as usize).map(|_| draw(&mut noise)).collect();
    let needle = x[70]; // in warp 2, and wherever it is again
    let buffer = device.upload(&x)?;
    let out = Guarded::<u32>::new(device, probe::LANE_ROWS * x.len())?;
    let kernel = probe::ProbeLanes { x: buffer.view(), out: out.view_mut(), needle };
    device.launch(kernel, n_blocks)?;

    let scattered = |lane: usize| (lane * 7 + 3) % 32;
    let ballot = |bit: fn(&u32) -> bool| {
        by_warp(&x, |w, _| (0..32).map(|lane| (bit(&w[lane]) as u32) << lane).sum())
    };
    let equal = |part: fn(u32) -> u32| {
        by_warp(&x, |w, me| {
            (0..32).map(|lane| ((part(w[lane]) == part(w[me])) as u32) << lane).sum()
        })
    };
    let any = |v: u32| by_warp(&x, |w, _| w.contains(&v) as u32);
    let most = |x: &[u32]| by_warp(x, |w, _| *w.iter().max().unwrap());
    let least = |x: &[u32]| by_warp(x, |w, _| *w.iter().min().unwrap());
    let sum = |x: &[u32]| by_warp(x, |w, _| w.iter().fold(0, |sum: u32, v| sum.wrapping_add(*v)));
    let from_five = by_warp(&x, |w, _| w[5]);
    let want = [
        by_warp(&x, |w, lane| w[lane ^ 1]),
        by_warp(&x, |w, lane| w[lane ^ 22 ^ 1]),
        from_five.clone(),
        by_warp(&xor(&x, &from_five), |w, lane| w[scattered(lane)]),
        by_warp(&x, |w, lane| w[lane ^ 16]),
        by_warp(&x, |w, lane| w[lane ^ 3 ^ 16]),
        by_warp(&x, |w, _| w[31]),
        by_warp(&x, |w, lane| w[scattered(lane)]),
        ballot(|v| v & 1 != 0),
        ballot(|v| v & 2 != 0),
        equal(|v| v % 4),
        equal(|v| v / 4 % 8),
        any(needle),
        any(!needle),
        most(&x),
        most(&xor(&x, &most(&x))),
        least(&x),
        least(&xor(&x, &least(&x))),
        sum(&x),
        sum(&xor(&x, &sum(&x))),
    ];
    expect_rows(&out.read()?, &want)
}

fn sums(device: &Device) -> Result<(), Failure> {
    let n_blocks = 2;
    let n = n_blocks * SUMS_BLOCK as usize;
    let mut noise = Noise::new(12);
    let x = noise.units(n);
    let mut y = noise.units(n);
    (y[3], y[40], y[41]) = (f32::NAN, f32::NAN, f32::NAN);
    y[64..96].fill(f32::NAN); // a warp that has nothing else
    let (x_buffer, y_buffer) = (device.upload(&x)?, device.upload(&y)?);
    let out = Guarded::<u32>::new(device, probe::SUM_ROWS * n)?;
    let kernel = probe::ProbeSums { x: x_buffer.view(), y: y_buffer.view(), out: out.view_mut() };
    device.launch(kernel, n_blocks)?;

    let got: Vec<f32> = out.read()?.into_iter().map(f32::from_bits).collect();
    let row = |i: usize| &got[i * n..][..n];
    // Five additions deep in a warp, five more over the block, each with half an epsilon.
    for (at, group, depth, power) in [(0, 32, 5, 1), (1, 32, 5, 2), (4, 96, 10, 1), (5, 96, 10, 2)]
    {
        let over = |f: &dyn Fn(f64) -> f64, i: usize| -> f64 {
            x[i / group * group..][..group].iter().map(|&v| f((v as f64).powi(power))).sum()
        };
        let want: Vec<f64> = (0..n).map(|i| over(&|v| v, i)).collect();
        // One rounding more for the square.
        expect_close(row(at), &want, |i, _| {
            (depth + power) as f64 * f32::EPSILON as f64 / 2.0 * over(&f64::abs, i)
        })?;
        let same = |(i, v): (usize, &f32)| v.to_bits() == row(at)[i / group * group].to_bits();
        if !row(at).iter().enumerate().all(same) {
            return Err(Failure(format!("row {at}: lanes got different sums")));
        }
    }
    let most = |values: &[f32], i: usize| {
        let numbers = values[i / 32 * 32..][..32].iter().filter(|v| !v.is_nan());
        numbers.copied().reduce(|a, b| if a < b { b } else { a })
    };
    let negative: Vec<f32> = y.iter().map(|v| -v).collect();
    for (at, values) in [(2, &y), (3, &negative)] {
        for (i, &got) in row(at).iter().enumerate() {
            let right = match most(values, i) {
                Some(most) => got == most,
                None => got.is_nan(),
            };
            if !right {
                let want = most(values, i);
                return Err(Failure(format!("row {at}, thread {i}: got {got}, want {want:?}")));
            }
        }
    }
    Ok(())
}

fn floats(device: &Device) -> Result<(), Failure> {
    let n_blocks = 8;
    let n = n_blocks * BLOCK as usize;
    let mut noise = Noise::new(13);
    let mut x: Vec<f32> = noise.units(n).into_iter().map(|v| 8.0 * v).collect();
    let mut y: Vec<f32> = noise.units(n).into_iter().map(|v| 20.0 * v).collect();
    // Ties of the rounding, and what has no fraction.
    let ties = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.0, 7.0, -3.0, 0.49999997];
    x[..ties.len()].copy_from_slice(&ties);
    y[1..ties.len() + 1].copy_from_slice(&ties);
    let (x_buffer, y_buffer) = (device.upload(&x)?, device.upload(&y)?);
    let out = Guarded::<u32>::new(device, probe::FLOAT_ROWS * n)?;
    let kernel = probe::ProbeFloats { x: x_buffer.view(), y: y_buffer.view(), out: out.view_mut() };
    device.launch(kernel, n_blocks)?;

    let got = out.read()?;
    let row = |i: usize| -> Vec<f32> {
        got[i * n..][..n].iter().map(|&bits| f32::from_bits(bits)).collect()
    };
    let epsilon = f32::EPSILON as f64; // 2^-23
    for (second, v) in [&x, &y].into_iter().enumerate() {
        let wide: Vec<f64> = v.iter().map(|&v| v as f64).collect();
        let map = |f: fn(f64) -> f64| -> Vec<f64> { wide.iter().map(|&v| f(v)).collect() };
        // What the kernel gives to functions of numbers above zero.
        let above: Vec<f64> = v.iter().map(|&v| (v * v + 0.01) as f64).collect();
        let of_above = |f: fn(f64) -> f64| -> Vec<f64> { above.iter().map(|&v| f(v)).collect() };

        let rounded: Vec<u32> = wide.iter().map(|v| v.round_ties_even() as i32 as u32).collect();
        expect_rows(&got[second * n..][..n], &[rounded])?;
        let close = |at: usize, want: &[f64], tolerance: &dyn Fn(usize, f64) -> f64| {
            expect_close(&row(at + second), want, tolerance)
                .map_err(|Failure(message)| Failure(format!("row {}: {message}", at + second)))
        };
        // The machine's base-2 exponential: 2^-22 of the result.
        close(4, &map(f64::exp2), &|_, w| 2.0 * epsilon * w)?;
        // Its logarithm: 2^-22 for arguments from 0.5 to 2, else of the result.
        close(6, &of_above(f64::log2), &|_, w| 2.0 * epsilon * w.abs().max(1.0))?;
        // exp2's, and half an epsilon from rounding its argument x log2 e and that constant.
        let exp_error = |x: f64| 2.0 * epsilon + x.abs() * epsilon;
        close(8, &map(f64::exp), &|i, w| exp_error(wide[i]) * w)?;
        close(10, &of_above(f64::ln), &|_, w| 4.0 * epsilon * w.abs().max(1.0))?;
        // s (1 - s) of the exponential's error, and two roundings.
        let sigmoid = |v: f64| 1.0 / (1.0 + (-v).exp());
        close(12, &map(|v| 1.0 / (1.0 + (-v).exp())), &|i, w| {
            w * ((1.0 - sigmoid(wide[i])) * exp_error(wide[i]) + 2.0 * epsilon)
        })?;
        close(14, &map(f64::tanh), &|_, _| 4.0 * epsilon)?;
        let sign = if second == 0 { 1.0 } else { -1.0 };
        let inverses: Vec<f64> = above.iter().map(|v| sign / v).collect();
        close(16, &inverses, &|_, w| epsilon * w.abs())?;
        close(18, &of_above(|v| 1.0 / v.sqrt()), &|_, w| 2.0 * epsilon * w)?;
    }
    // The product's rounding, which only one rounding of the whole can see, exactly.
    let first: Vec<f32> = (0..n).map(|i| fma(x[i], y[i], -x[i] * y[i])).collect();
    let second = (0..n).map(|i| fma(first[i], x[i], y[i]).to_bits()).collect();
    let want = [first.iter().map(|v| v.to_bits()).collect(), second];
    expect_rows(&got[2 * n..][..2 * n], &want)
}

/// `a b + c` rounded once: the product is exact in f64, and so is the sum here or else its error is
/// far below half a step of f32.
fn fma(a: f32, b: f32, c: f32) -> f32 {
    (a as f64 * b as f64 + c as f64) as f32
}

/// Two finite halves in each word.
fn finite_halves(noise: &mut Noise, n: usize) -> Vec<u32> {
    let mut half = || loop {
        let bits = noise.bits() as u16;
        if f16::from_bits(bits).is_finite() {
            return bits as u32;
        }
    };
    (0..n).map(|_| half() | half() << 16).collect()
}

fn bits(device: &Device) -> Result<(), Failure> {
    let n = 8 * BLOCK as usize;
    let mut noise = Noise::new(14);
    let (x, y) = (finite_halves(&mut noise, n), finite_halves(&mut noise, n));
    let floats: Vec<f32> = (0..n).map(|_| noise.unit() * 70_000.0).collect();
    check_bits(device, &x, &y, &floats)
}

/// Subnormal halves, the largest, ties between two, and zeroes.
fn halves_at_their_ends(device: &Device) -> Result<(), Failure> {
    let ends = [0x0000, 0x8000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff, 0xfbff];
    let n = BLOCK as usize;
    let x: Vec<u32> = (0..n).map(|i| ends[i % 8] | ends[i / 8] << 16).collect();
    let y: Vec<u32> = (0..n).map(|i| ends[(i + 3) % 8] | ends[(i / 8 + 5) % 8] << 16).collect();
    // Halfway between two subnormals, two normals, and the largest and what would be next.
    let near = [2f32.powi(-25), 1.0 + 2f32.powi(-11), 65_520.0, 65_519.996, 3.0 * 2f32.powi(-25)];
    let floats: Vec<f32> =
        (0..n).map(|i| near[i % 5] * if i / 5 % 2 == 0 { 1.0 } else { -1.0 }).collect();
    check_bits(device, &x, &y, &floats)
}

fn check_bits(device: &Device, x: &[u32], y: &[u32], floats: &[f32]) -> Result<(), Failure> {
    let n = x.len();
    let mut noise = Noise::new(15);
    let selectors: Vec<u32> = (0..n).map(|_| noise.bits() & 0x7777_7777).collect();
    let (x_buffer, y_buffer) = (device.upload(x)?, device.upload(y)?);
    let (float_buffer, selector_buffer) = (device.upload(floats)?, device.upload(&selectors)?);
    let out = Guarded::<u32>::new(device, probe::BIT_ROWS * n)?;
    let kernel = probe::ProbeBits {
        x: x_buffer.view(),
        y: y_buffer.view(),
        floats: float_buffer.view(),
        selectors: selector_buffer.view(),
        out: out.view_mut(),
    };
    device.launch(kernel, n / BLOCK as usize)?;

    let rows = |f: &dyn Fn(usize) -> u32| -> Vec<u32> { (0..n).map(f).collect() };
    let half = |word: u32, i: u32| f16::from_bits((word >> (16 * i)) as u16);
    let difference = |a: u32, b: u32| {
        // Exact in f64, so that it is rounded once.
        let of = |i| f16::from_f64(half(a, i).to_f64() - half(b, i).to_f64()).to_bits() as u32;
        of(0) | of(1) << 16
    };
    let pick = |low: u32, high: u32, selector: u32| {
        let bytes = [low.to_le_bytes(), high.to_le_bytes()].concat();
        u32::from_le_bytes(std::array::from_fn(|i| bytes[(selector >> (4 * i) & 7) as usize]))
    };
    let byte = |word: u32, i: usize| word.to_le_bytes()[i] as i8 as f32;
    let halves = |word: u32, i: usize| {
        let of = |i: usize| f16::from_f32(byte(word, i)).to_bits() as u32;
        of(i) | of(i + 1) << 16
    };
    let bfloats = |word: u32, i: usize| {
        let of = |i: usize| bf16::from_f32(byte(word, i)).to_bits() as u32;
        of(i) | of(i + 1) << 16
    };
    let two_bfloats = |low: f32, high: f32| {
        bf16::from_f32(low).to_bits() as u32 | (bf16::from_f32(high).to_bits() as u32) << 16
    };
    let want = [
        rows(&|i| half(x[i], 0).to_f32().to_bits()),
        rows(&|i| half(x[i], 1).to_f32().to_bits()),
        rows(&|i| f16::from_f32(floats[i]).to_bits() as u32),
        rows(&|i| f16::from_f32(floats[i] * 0.001).to_bits() as u32),
        rows(&|i| difference(x[i], y[i])),
        rows(&|i| difference(y[i], x[i])),
        rows(&|i| x[i] / (i as u32 + 1)),
        rows(&|i| y[i] / (x[i] | 1)),
        rows(&|i| pick(x[i], y[i], selectors[i])),
        rows(&|i| pick(y[i], x[i], selectors[i])),
        rows(&|i| halves(x[i], 0)),
        rows(&|i| halves(x[i], 2)),
        rows(&|i| halves(y[i], 0)),
        rows(&|i| halves(y[i], 2)),
        rows(&|i| bfloats(x[i], 0)),
        rows(&|i| bfloats(x[i], 2)),
        rows(&|i| bfloats(y[i], 0)),
        rows(&|i| bfloats(y[i], 2)),
        rows(&|i| {
            let [low, high] = [floats[i], -0.001 * floats[i]].map(|v| f16::from_f32(v).to_bits());
            low as u32 | (high as u32) << 16
        }),
        x.to_vec(),
        rows(&|i| two_bfloats(floats[i], -0.001 * floats[i])),
        rows(&|i| two_bfloats(1.0, floats[i])),
        rows(&|i| x[i] / (y[i] | 1)),
        rows(&|i| i as u32 / 7),
    ];
    expect_rows(&out.read()?, &want)
}

fn atomic(device: &Device) -> Result<(), Failure> {
    let n_blocks = 5;
    let n_threads = n_blocks * BLOCK;
    let round = 2 * BLOCK + 7;
    let counters = Guarded::holding(device, &[3u32, 10])?;
    let out = Guarded::<u32>::new(device, 2 * n_threads as usize)?;
    let (counters_view, out_view) = (counters.view_mut(), out.view_mut());
    let kernel = probe::ProbeAtomic { counters: counters_view, out: out_view, n: round };
    device.launch(kernel, n_blocks as usize)?;
    expect_rows(&counters.read()?, &[vec![3 + n_threads, (10 + n_threads) % round]])?;
    let got = out.read()?;
    // Each thread found what another left: the counters never stood still or went back.
    for (found, start, round) in
        [(&got[..n_threads as usize], 3, u32::MAX), (&got[n_threads as usize..], 10, round)]
    {
        let mut found = found.to_vec();
        let mut want: Vec<u32> = (start..start + n_threads).map(|count| count % round).collect();
        found.sort_unstable();
        want.sort_unstable();
        expect_rows(&found, &[want])?;
    }
    Ok(())
}

fn shared(device: &Device) -> Result<(), Failure> {
    let n_blocks = 2;
    let block = BLOCK as usize;
    let mut noise = Noise::new(16);
    let x: Vec<u32> = (0..n_blocks * block).map(|_| noise.bits()).collect();
    let buffer = device.upload(&x)?;
    let out = Guarded::<u32>::new(device, probe::SHARED_ROWS * x.len())?;
    device.launch(probe::ProbeShared { x: buffer.view(), out: out.view_mut() }, n_blocks)?;

    // Word of the thread `ahead` places further in the same block.
    let ahead = |i: usize, ahead: usize| x[i / block * block + (i + ahead) % block];
    let rows =
        |f: &dyn Fn(u32) -> u32| -> Vec<u32> { (0..x.len()).map(|i| f(ahead(i, 2))).collect() };
    // Words from the middle on, which by then have moved one place.
    let middle = |i: usize, word: usize| {
        let at = block / 2 + 4 * (i % block % 8) + word;
        x[i / block * block + (at + 1) % block]
    };
    let want = [
        (0..x.len()).map(|i| ahead(i, 1)).collect(),
        rows(&|v| v),
        rows(&|v| !v),
        rows(&|v| v ^ 0xff),
        rows(&|v| v >> 7),
        rows(&|v| !v),
        rows(&|v| v),
        rows(&|v| v),
        rows(&|v| !v),
        rows(&|v| v),
        rows(&|v| v),
        rows(&|v| v & 0xffff),
        rows(&|v| v >> 16),
        rows(&|v| v & 0xff),
        rows(&|v| (v >> 8) as i8 as i32 as u32),
        (0..x.len()).map(|i| middle(i, 0)).collect(),
        (0..x.len()).map(|i| middle(i, 3)).collect(),
    ];
    expect_rows(&out.read()?, &want)
}

fn copy(device: &Device) -> Result<(), Failure> {
    let n_blocks = 3;
    let n_threads = n_blocks * BLOCK as usize;
    let mut noise = Noise::new(17);
    let x: Vec<u8> = (0..16 * n_threads).map(|_| noise.bits() as u8).collect();
    let buffer = device.upload(&x)?;
    let out = Guarded::<u8>::new(device, 5 * x.len())?;
    let kernel =
        probe::ProbeCopy { x: buffer.view(), out: out.view_mut(), absent: Global::absent() };
    device.launch(kernel, n_blocks)?;
    let got = out.read()?;
    let (copies, absent) = got.split_at(4 * x.len());
    if let Some(at) = copies.chunks(x.len()).position(|copy| copy != x) {
        return Err(Failure(format!("copy {at} differs")));
    }
    let words = absent.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap()));
    expect_rows(&words.collect::<Vec<u32>>(), &[vec![1; 4 * n_threads]])
}

fn later(device: &Device) -> Result<(), Failure> {
    let (n_blocks, block) = (3, BLOCK as usize);
    let n_threads = n_blocks * block;
    let mut noise = Noise::new(19);
    let units: Vec<U32x4> =
        (0..3 * n_threads).map(|_| U32x4([(); 4].map(|()| noise.bits()))).collect();
    let x = device.upload(&units)?;
    let out = Guarded::<u32>::new(device, probe::LATER_ROWS * n_threads)?;
    device.launch(probe::ProbeLater { x: x.view(), out: out.view_mut() }, n_blocks)?;
    // As the kernel copies them: the thread's units of three rows, read by its neighbour and across the block.
    let row = |of: &dyn Fn(usize) -> u32| (0..n_threads).map(of).collect::<Vec<u32>>();
    let unit = |row: usize, thread: usize, word: usize| units[row * n_threads + thread].0[word];
    let across = |thread: usize| thread / block * block + block - 1 - thread % block;
    let want = [
        row(&|thread| unit(0, thread ^ 1, 0)),
        row(&|thread| unit(1, across(thread), 1)),
        row(&|thread| unit(2, across(thread), 2)),
        row(&|thread| thread as u32 + 0x0c06_0301),
    ];
    expect_rows(&out.read()?, &want)
}

/// Nothing to do where the device's image does not have the kernel.
fn together(device: &Device, n_blocks: usize) -> Result<(), Failure> {
    if !device.has::<ProbeTogether>() {
        return Ok(());
    }
    let (users, n_tiles) = (together_probe::USERS as usize, together_probe::TILES as usize);
    let mut noise = Noise::new(18);
    let units: Vec<U32x4> =
        (0..n_tiles * users).map(|_| U32x4([(); 4].map(|()| noise.bits()))).collect();
    let x = device.upload(&units)?;
    let counters = Guarded::holding(device, &vec![0u32; n_blocks + 1])?;
    let between = Guarded::<u32>::new(device, 2 * n_blocks * users)?;
    let out = Guarded::<u32>::new(device, together_probe::TOGETHER_ROWS * n_blocks * users)?;
    let kernel = ProbeTogether {
        x: x.view(),
        counters: counters.view_mut(),
        between: between.view_mut(),
        out: out.view_mut(),
    };
    device.launch(kernel, n_blocks)?;

    let of_user = |user: usize| {
        let tiles = units.iter().skip(user).step_by(users);
        tiles.fold(0, |v, &unit| together_probe::after_tile(v, unit))
    };
    // What a user of a block makes of the word that came from `ahead` users and blocks further on.
    let row = |f: &dyn Fn(usize, usize) -> u32| -> Vec<u32> {
        (0..n_blocks * users).map(|i| f(i / users, i % users)).collect()
    };
    let first = |user: usize| of_user((user + 32) % users);
    let second = |block: usize, user: usize| first((user + 64) % users) ^ block as u32;
    let behind = |block: usize, n: usize| (block + n) % n_blocks;
    let want = [
        row(&|_, user| first(user)),
        row(&second),
        row(&|block, user| second(behind(block, 1), user).wrapping_add(1)),
        row(&|block, user| second(behind(block, 2), user).wrapping_add(2)),
    ];
    expect_rows(&out.read()?, &want)?;
    let mut signals = vec![1; n_blocks];
    signals.push(n_blocks as u32);
    expect_rows(&counters.read()?, &[signals])
}
