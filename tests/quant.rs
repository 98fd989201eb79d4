//! The block formats: decoding bit for bit as GGML does, the drawings, and how near encoding comes.

use kernels_gpu::for_each_quant;
use kernels_gpu::quant::mxfp4::half_scale;
use kernels_gpu::quant::{Format, decode_row, encode_row};

/// Its layout is described in `data/make_quant_goldens.py`, which wrote it.
const GOLDENS: &[u8] = include_bytes!("data/quant_goldens.bin");

// The tests that every format has, from the table itself: none can be forgotten.
macro_rules! per_format {
    ($($name:ident = $id:literal, $block:path;)*) => {$(
        #[allow(non_snake_case)] // GGML's own names
        mod $name {
            use super::Format;

            #[test]
            fn decodes_the_goldens() {
                super::decodes_the_goldens(Format::$name);
            }
            #[test]
            fn comes_back_within_its_bits() {
                super::comes_back_within_its_bits(Format::$name);
            }
            #[test]
            fn keeps_zeros_and_constants() {
                super::keeps_zeros_and_constants(Format::$name);
            }
            #[test]
            fn encodes_whatever_it_is_given() {
                super::encodes_whatever_it_is_given(Format::$name);
            }
        }
    )*};
}
for_each_quant!(per_format);

/// Reads the goldens from the front.
struct Reader(&'static [u8]);

impl Reader {
    fn bytes(&mut self, n: usize) -> &'static [u8] {
        let (front, rest) = self.0.split_at(n);
        self.0 = rest;
        front
    }

    fn word(&mut self) -> usize {
        u32::from_le_bytes(self.bytes(4).try_into().unwrap()) as usize
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        let bytes = self.bytes(4 * n).chunks_exact(4);
        bytes.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }
}

struct Golden {
    id: usize,
    block_bytes: usize,
    block_elems: usize,
    bytes: &'static [u8],
    weights: Vec<f32>,
}

/// What the file says of decoding, and a reader at what it says of encoding.
fn goldens() -> (Vec<Golden>, Reader) {
    let mut reader = Reader(GOLDENS);
    assert_eq!(reader.bytes(4), b"QGLD");
    let formats = (0..reader.word()).map(|_| {
        let (id, block_bytes) = (reader.word(), reader.word());
        let (block_elems, n_blocks) = (reader.word(), reader.word());
        let bytes = reader.bytes(n_blocks * block_bytes);
        let weights = reader.floats(n_blocks * block_elems);
        Golden { id, block_bytes, block_elems, bytes, weights }
    });
    (formats.collect(), reader)
}

fn decoded(format: Format, bytes: &[u8]) -> Vec<f32> {
    let n_blocks = bytes.len() / format.block_bytes();
    let mut out = vec![f32::NAN; n_blocks * format.block_elems()];
    decode_row(format, bytes, &mut out);
    out
}

fn encoded(format: Format, x: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_row(format, x, &mut bytes);
    bytes
}

#[test]
fn the_table_is_the_goldens() {
    let (goldens, _) = goldens();
    let theirs: Vec<_> = goldens.iter().map(|g| (g.id, g.block_bytes, g.block_elems)).collect();
    let mut sorted = theirs.clone();
    sorted.sort();
    let ours = Format::ALL.map(|f| (f as usize, f.block_bytes(), f.block_elems()));
    assert_eq!(ours[..], sorted);
    for format in Format::ALL {
        assert_eq!(Format::from_ggml_id(format as u32), Some(format));
    }
    assert_eq!(Format::from_ggml_id(4), None); // Q4_2, long gone
}

fn decodes_the_goldens(format: Format) {
    let (goldens, _) = goldens();
    let golden = goldens.iter().find(|g| g.id == format as usize).unwrap();
    assert!(golden.weights.len() >= 160);
    for (i, (got, want)) in decoded(format, golden.bytes).iter().zip(&golden.weights).enumerate() {
        let (block, at) = (i / format.block_elems(), i % format.block_elems());
        assert_eq!(got.to_bits(), want.to_bits(), "block {block}, weight {at}: {got:e}, {want:e}");
    }
}

#[test]
fn legacy_formats_encode_as_ggml_does() {
    let (_, mut reader) = goldens();
    let n = reader.word();
    let x = reader.floats(n);
    for _ in 0..reader.word() {
        let format = Format::from_ggml_id(reader.word() as u32).unwrap();
        let want = reader.bytes(x.len() / format.block_elems() * format.block_bytes());
        let got = encoded(format, &x);
        let pairs = got.chunks(format.block_bytes()).zip(want.chunks(format.block_bytes()));
        for (block, (got, want)) in pairs.enumerate() {
            assert_eq!(got, want, "{} block {block}", format.name());
        }
    }
    assert!(reader.0.is_empty());
}

/// Seeded noise, uniform in [-1, 1).
fn uniform(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Relative RMS error that a format may have on `n` values of uniform noise in [-1, 1), whose RMS
/// is 1 / sqrt(3). Independent errors, so that their squares add.
///
/// A grid of step s costs s / sqrt(12). With codes of b bits:
/// - symmetric, s = 2 / 2^b; the half step at the end that has no code (1 value in 2^(b+1), squared
///   error 7/12 s^2 and not 1/12) costs more: s^2 / 12 * (1 + 3 / 2^b) in all
/// - affine, s = 2 / (2^b - 1)
/// - a part's scale in units of 1/u of the largest is off by at most 1/(2u), so 1 / (2u sqrt(3))
/// - a minimum of at most 1 in such units: 1 / (2u sqrt(3)) of 1, so 1 / (2u) of the noise
/// - a float with f bits of fraction: s = 2^-f in an octave from 1 to 2, whose mean square is 7/3;
///   an f16 scale likewise; an f16 minimum of at most 1 has s = 2^-11
///
/// The mean over n values strays by 2 / sqrt(n), three standard deviations.
fn error_bound(format: Format, n: usize) -> f64 {
    let codes = |bits: i32| 2f64.powi(bits);
    let symmetric = |bits| (1.0 + 3.0 / codes(bits)).sqrt() / codes(bits);
    let affine = |bits| 1.0 / (codes(bits) - 1.0);
    let part_scale = |units: f64| 0.5 / units / 3f64.sqrt();
    let part_min = |units: f64| 0.5 / units;
    let float = |fraction_bits: i32| 2f64.powi(-fraction_bits) / 28f64.sqrt();
    let f16_min = 2f64.powi(-12);
    let (codes, scale, min) = match format {
        Format::F32 => (0.0, 0.0, 0.0),
        Format::F16 => (float(10), 0.0, 0.0),
        Format::BF16 => (float(7), 0.0, 0.0),
        Format::Q4_0 => (symmetric(4), float(10), 0.0),
        Format::Q4_1 => (affine(4), float(10), f16_min),
        Format::Q5_0 => (symmetric(5), float(10), 0.0),
        Format::Q5_1 => (affine(5), float(10), f16_min),
        // Codes to +-127, none missing.
        Format::Q8_0 => (1.0 / 254.0, float(10), 0.0),
        Format::Q2_K => (affine(2), part_scale(15.0), part_min(15.0)),
        Format::Q3_K => (symmetric(3), part_scale(32.0), 0.0),
        Format::Q4_K => (affine(4), part_scale(63.0), part_min(63.0)),
        Format::Q5_K => (affine(5), part_scale(63.0), part_min(63.0)),
        Format::Q6_K => (symmetric(6), part_scale(128.0), 0.0),
        // Steps of 1/8 below one half and 1/4 above it, at the worse of the two powers of two.
        Format::MXFP4 => {
            ((3.0 * (0.125f64.powi(2) + 0.25f64.powi(2)) / 2.0 / 12.0).sqrt(), 0.0, 0.0)
        }
    };
    (codes.powi(2) + scale.powi(2) + min.powi(2)).sqrt() * (1.0 + 2.0 / (n as f64).sqrt())
}

fn comes_back_within_its_bits(format: Format) {
    let x = uniform(64 * 256, 3 + format as u64);
    let (error, bound) = (relative_error(format, &x), error_bound(format, x.len()));
    assert!(error <= bound, "relative RMS error {error:.3e}, bound {bound:.3e}");
    // The bound means something: what it counts is there.
    assert!(error >= 0.6 * bound, "relative RMS error {error:.3e} makes {bound:.3e} no bound");
}

fn keeps_zeros_and_constants(format: Format) {
    for value in [0.0, 0.75, -0.75, 96.0] {
        let back = decoded(format, &encoded(format, &[value; 256]));
        for (i, back) in back.iter().enumerate() {
            // One product of an f16: half a unit of its last place, on either side.
            let allowed = 2f32.powi(-10) * value.abs();
            assert!((back - value).abs() <= allowed, "weight {i}: {back}, not {value}");
        }
    }
}

fn encodes_whatever_it_is_given(format: Format) {
    let smallest = f32::from_bits(1);
    // 1e-40 / 127 has no finite inverse.
    for value in [f32::MAX, f32::MIN, f32::INFINITY, f32::NAN, smallest, -smallest, 1e-40, -1e-40] {
        let mut x = uniform(512, 11);
        x[..256].fill(value);
        x[300] = value;
        let blocks = 512 / format.block_elems();
        assert_eq!(encoded(format, &x).len(), blocks * format.block_bytes());
    }
}

/// Parts at levels of their own, with spreads of their own: a swapped scale or minimum shows.
#[test]
fn parts_keep_their_own_scales() {
    for (format, part_elems, bits, units) in
        [(Format::Q2_K, 16, 2, 15.0), (Format::Q4_K, 32, 4, 63.0), (Format::Q5_K, 32, 5, 63.0)]
    {
        // Part p falls evenly from -p/10 by p + 1 hundredths, the last part lowest and widest.
        let n_parts = 256 / part_elems;
        let spread = |p: usize| 0.01 * (p + 1) as f32;
        let x: Vec<f32> = (0..256)
            .map(|i| (i / part_elems, (i % part_elems) as f32 / (part_elems - 1) as f32))
            .map(|(p, along)| -0.1 * p as f32 - spread(p) * along)
            .collect();
        let back = decoded(format, &encoded(format, &x));
        // A step, its widest part's share of rounding, and that of the lowest part's minimum.
        let widest = spread(n_parts - 1);
        let lowest = 0.1 * (n_parts - 1) as f32 + widest;
        for (i, (x, back)) in x.iter().zip(&back).enumerate() {
            let step = spread(i / part_elems) / (2f32.powi(bits) - 1.0);
            let allowed = step + widest / (2.0 * units) + lowest / (2.0 * units);
            let off = (back - x).abs();
            assert!(off <= allowed, "{} {i}: off by {off}, not {allowed}", format.name());
        }
    }
}

/// As above for the formats without a minimum, whose parts' scales have signs.
#[test]
fn parts_keep_their_own_signs() {
    for (format, bits, units) in [(Format::Q3_K, 3, 32.0), (Format::Q6_K, 6, 128.0)] {
        // Part p runs evenly from one end to the other of +-(p + 1), peak up and peak down in turn.
        let x: Vec<f32> = (0..256)
            .map(|i| {
                let (p, along) = (i / 16, (i % 16) as f32 / 7.5 - 1.0);
                (p + 1) as f32 * if p % 2 == 0 { along } else { -along } * (0.9 + 0.1 * along)
            })
            .collect();
        let back = decoded(format, &encoded(format, &x));
        for (i, (x, back)) in x.iter().zip(&back).enumerate() {
            let peak = (i / 16 + 1) as f32;
            // One step, for where the end has no code, and half a unit of the widest part.
            let allowed = peak / 2f32.powi(bits - 1) + 16.0 / (2.0 * units);
            let off = (back - x).abs();
            assert!(off <= allowed, "{} {i}: off by {off}, not {allowed}", format.name());
        }
    }
}

fn relative_error(format: Format, x: &[f32]) -> f64 {
    let back = decoded(format, &encoded(format, x));
    let (mut noise, mut signal) = (0.0, 0.0);
    for (x, back) in x.iter().zip(&back) {
        noise += (*x as f64 - *back as f64).powi(2);
        signal += (*x as f64).powi(2);
    }
    (noise / signal).sqrt()
}

/// No part can begin above 0, so that the steps of one from 1 to 2 must reach from 0 to 2.
#[test]
fn positive_parts_start_at_zero() {
    let x: Vec<f32> = uniform(4096, 5).iter().map(|x| 1.5 + 0.5 * x).collect();
    for (format, bits, units) in
        [(Format::Q2_K, 2, 15.0), (Format::Q4_K, 4, 63.0), (Format::Q5_K, 5, 63.0)]
    {
        // x^2 is 7/3 in the mean; the rest as in `error_bound`.
        let codes = 2.0 / (2f64.powi(bits) - 1.0) / 12f64.sqrt() / (7f64 / 3.0).sqrt();
        let scale = 0.5 / units / 3f64.sqrt();
        let bound = (codes.powi(2) + scale.powi(2)).sqrt() * (1.0 + 2.0 / 64.0);
        let error = relative_error(format, &x);
        assert!(error <= bound, "{}: {error:.3e}, bound {bound:.3e}", format.name());
    }
}

/// On bell-shaped noise the fitted scales of a K format win back more than their coarse storage
/// costs against the plain range of its legacy sibling: a twentieth at least, where a step fitted
/// without its minimum would win 3 % for five bits.
#[test]
fn fitting_beats_the_range() {
    let x = uniform(4 * 16384, 9);
    let x: Vec<f32> = x.chunks_exact(4).map(|x| x.iter().sum()).collect();
    for (fitted, plain) in [(Format::Q4_K, Format::Q4_1), (Format::Q5_K, Format::Q5_1)] {
        let (fitted_error, plain_error) = (relative_error(fitted, &x), relative_error(plain, &x));
        let share = fitted_error / plain_error;
        assert!(share < 0.95, "{} has {share:.3} of {}'s", fitted.name(), plain.name());
    }
}

#[test]
#[should_panic(expected = "Q4_0: 17 bytes are not the blocks of 32 weights")]
fn a_row_of_too_few_bytes_is_refused() {
    decode_row(Format::Q4_0, &[0; 17], &mut [0.0; 32]);
}

#[test]
#[should_panic(expected = "Q4_K: 144 bytes are not the blocks of 257 weights")]
fn a_row_of_part_of_a_block_is_refused() {
    decode_row(Format::Q4_K, &[0; 144], &mut [0.0; 257]);
}

#[test]
#[should_panic(expected = "Q8_0: 33 weights are not whole blocks")]
fn encoding_part_of_a_block_is_refused() {
    encode_row(Format::Q8_0, &[0.0; 33], &mut Vec::new());
}

#[test]
fn mxfp4_scales_reach_both_ends() {
    let want = [(0, -128), (1, -127), (2, -126), (127, -1), (128, 0), (254, 126), (255, 127)];
    for (exponent, power) in want {
        assert_eq!(half_scale(exponent) as f64, 2f64.powi(power), "{exponent}");
    }
}

/// A block of zero bytes with `bytes` written at their places decodes to `weight(i)` everywhere.
fn draws(format: Format, bytes: &[(usize, u8)], weight: impl Fn(usize) -> f32) {
    let mut block = vec![0; format.block_bytes()];
    for &(at, byte) in bytes {
        block[at] = byte;
    }
    for (i, got) in decoded(format, &block).into_iter().enumerate() {
        assert_eq!(got, weight(i), "{} weight {i}", format.name());
    }
}

#[test]
fn drawing_of_the_floats() {
    draws(Format::F32, &[(2, 0xc0), (3, 0xbf)], |_| -1.5);
    draws(Format::F16, &[(1, 0xbe)], |_| -1.5);
    draws(Format::BF16, &[(0, 0xc0), (1, 0xbf)], |_| -1.5);
}

#[test]
fn drawing_of_q4_0() {
    let bytes = [(1, 0x40), (2, 0x1f), (17, 0x9a)]; // scale 2
    draws(Format::Q4_0, &bytes, |i| match i {
        0 => 14.0,
        16 => -14.0,
        15 => 4.0,
        31 => 2.0,
        _ => -16.0,
    });
}

#[test]
fn drawing_of_q4_1() {
    let bytes = [(1, 0x40), (3, 0xbc), (4, 0x1f), (19, 0x32)]; // scale 2, min -1
    draws(Format::Q4_1, &bytes, |i| match i {
        0 => 29.0,
        16 => 1.0,
        15 => 3.0,
        31 => 5.0,
        _ => -1.0,
    });
}

#[test]
fn drawing_of_q5_0() {
    // Scale 2; high bits of codes 0, 9 and 31.
    let bytes = [(1, 0x40), (2, 0x01), (3, 0x02), (5, 0x80), (6, 0x1f), (21, 0x32)];
    draws(Format::Q5_0, &bytes, |i| match i {
        0 => 30.0,
        9 => 0.0,
        15 => -28.0,
        16 => -30.0,
        31 => 6.0,
        _ => -32.0,
    });
}

#[test]
fn drawing_of_q5_1() {
    // Scale 2, min -1; high bits of codes 0, 9 and 31.
    let bytes = [(1, 0x40), (3, 0xbc), (4, 0x01), (5, 0x02), (7, 0x80), (8, 0x1f), (23, 0x32)];
    draws(Format::Q5_1, &bytes, |i| match i {
        0 => 61.0,
        9 => 31.0,
        15 => 3.0,
        16 => 1.0,
        31 => 37.0,
        _ => -1.0,
    });
}

#[test]
fn drawing_of_q8_0() {
    let bytes = [(1, 0x38), (2, 0x81), (3, 0x80), (33, 0x7f)]; // scale 1/2
    draws(Format::Q8_0, &bytes, |i| match i {
        0 => -63.5,
        1 => -64.0,
        31 => 63.5,
        _ => 0.0,
    });
}

#[test]
fn drawing_of_q2_k() {
    // Part 0: s 1; part 7: s 2, m 3; part 10: s 1; part 15: s 15. Scale 2, min_scale 1.
    let parts = [(0, 0x01), (7, 0x32), (10, 0x01), (15, 0x0f), (81, 0x40), (83, 0x3c)];
    // Codes: 0 is 3, 127 is 1, 160 is 3, 255 is 2.
    let codes = [(16, 0x03), (47, 0x40), (48, 0x0c), (79, 0x80)];
    draws(Format::Q2_K, &[&parts[..], &codes].concat(), |i| match i {
        0 | 160 => 6.0,
        127 => 1.0,
        112..127 => -3.0,
        255 => 60.0,
        _ => 0.0,
    });
}

#[test]
fn drawing_of_q3_k() {
    // s: part 0 is 17, part 8 is 2, part 12 is 48, part 15 is 5, the others 0. Scale 1.
    let parts = [(96, 0x21), (103, 0x50), (104, 0xc1), (109, 0x3c)];
    // Codes: 0 is 7, 224 is 4, 255 is 2, the others 0.
    let codes = [(0, 0x81), (32, 0x03), (95, 0x80)];
    draws(Format::Q3_K, &[&parts[..], &codes].concat(), |i| match i {
        0 => -45.0,
        1..16 => 60.0,
        128..144 => 120.0,
        192..208 => -64.0,
        224 => 0.0,
        255 => 54.0,
        240..255 => 108.0,
        _ => 128.0,
    });
}

/// Scale 2, min_scale 1; s: part 0 is 3, part 4 is 16, part 7 is 1; m: part 3 is 5, part 7 is 50.
const K_PARTS: [(usize, u8); 5] = [(1, 0x40), (3, 0x3c), (4, 0x43), (11, 0xc5), (15, 0x21)];

#[test]
fn drawing_of_q4_k() {
    // Codes: 0 is 1, 32 is 2 (in a part of scale 0), 128 is 3, 255 is 15.
    let codes = [(16, 0x21), (80, 0x03), (143, 0xf0)];
    draws(Format::Q4_K, &[&K_PARTS[..], &codes].concat(), |i| match i {
        0 => 6.0,
        96..128 => -5.0,
        128 => 96.0,
        255 => -20.0,
        224..255 => -50.0,
        _ => 0.0,
    });
}

#[test]
fn drawing_of_q5_k() {
    // Codes: 0 is 17, 32 is 2 (in a part of scale 0), 128 is 19, 255 is 31.
    let codes = [(16, 0x11), (47, 0x80), (48, 0x21), (112, 0x03), (175, 0xf0)];
    draws(Format::Q5_K, &[&K_PARTS[..], &codes].concat(), |i| match i {
        0 => 102.0,
        96..128 => -5.0,
        128 => 608.0,
        255 => 12.0,
        224..255 => -50.0,
        _ => 0.0,
    });
}

#[test]
fn drawing_of_q6_k() {
    // s: part 0 is 2, part 4 is -2, part 15 is -128. Scale 1/2.
    let parts = [(192, 0x02), (196, 0xfe), (207, 0x80), (209, 0x38)];
    // Codes: 0 is 63, 64 is 17, 255 is 34, the others 0.
    let codes = [(0, 0x1f), (127, 0x20), (128, 0x13), (191, 0x80)];
    draws(Format::Q6_K, &[&parts[..], &codes].concat(), |i| match i {
        0 => 31.0,
        1..16 => -32.0,
        64 => 15.0,
        65..80 => 32.0,
        255 => -128.0,
        240..255 => 2048.0,
        _ => 0.0,
    });
}

#[test]
fn drawing_of_mxfp4() {
    let bytes = [(0, 129), (1, 0xf7), (16, 0x91)]; // half scale 2
    draws(Format::MXFP4, &bytes, |i| match i {
        0 => 24.0,
        15 => 2.0,
        16 => -24.0,
        31 => -2.0,
        _ => 0.0,
    });
}
