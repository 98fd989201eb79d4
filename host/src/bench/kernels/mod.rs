//! Kernels one by one at the sizes of real models, through the library's own operations.
//!
//! A bench is checked before it is timed: some of its outputs against their definition in f64. Then as
//! many copies of what it reads as fill several times a card's cache take turns in a batch of launches,
//! which is recorded, and replayed between two marks of the device's clock.

mod attention;
mod check;
mod experts;
mod normed;
mod peaks;
mod products;
mod rows;
mod stock;
mod table;

use super::{HeadStart, Spread};
use crate::device::{Device, TracedLaunch};
use crate::error::{Error, Result};
use check::{Point, verify};
use kernels_gpu::quant::Format;
pub use peaks::{Peaks, Unit};
use std::time::Duration;
use stock::{MAX_COPIES, Stock};

/// Timed batches of launches, and those before them that are not.
const RUNS: usize = 15;
const FIRST_RUNS: usize = 2;
/// The same on the emulator.
const EMULATOR_RUNS: usize = 3;
/// Seconds that a batch takes at least, where so many launches can be recorded.
const BATCH_SECONDS: f64 = 1.5e-3;
/// Most launches of a batch: as many as there can be copies.
const MAX_LAUNCHES: usize = MAX_COPIES;
/// Pieces of a head start in which the host starts a batch.
const PIECES: usize = 8;

/// What one launch of a bench must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Bytes that it must read or write, each once: weights, keys and values, and activations.
    pub bytes: u64,
    /// Multiplications and additions of its products, two for each weight and token; 0 where there is
    /// no product.
    pub operations: u64,
    /// Which products of the tensor cores these come from, and how many multiplications and additions
    /// they are there; none where there is no product, and where it is in full precision.
    pub tensor: Option<(Unit, u64)>,
}

impl Work {
    /// Of a stage without products.
    fn of_bytes(bytes: u64) -> Work {
        Work { bytes, operations: 0, tensor: None }
    }

    /// Of products with weights in a format. Activations have 16 bits: two pieces, each multiplied.
    fn of_products(bytes: u64, operations: u64, format: Format) -> Work {
        let tensor = match format {
            Format::F32 => None,
            Format::F16 | Format::BF16 => Some((Unit::Halves, 2 * operations)),
            _ => Some((Unit::Bytes, 2 * operations)),
        };
        Work { bytes, operations, tensor }
    }
}

/// A bench of the table.
pub struct Bench {
    name: String,
    kernels: Vec<&'static str>,
    make: Make,
}

/// Makes a bench's inputs.
type Make = Box<dyn Fn(&mut Stock) -> Result<Box<dyn Subject>>>;

/// A bench's inputs on the device, and how they are used.
trait Subject {
    /// Copies of what is read.
    fn n_copies(&self) -> usize;
    /// Launches the operation with inputs number `copy`.
    fn launch(&self, device: &Device, copy: usize) -> Result<()>;
    /// Outputs of the first launch, which had inputs number 0, beside what they must be.
    fn points(&self) -> Result<Vec<Point>>;
    /// What a launch does.
    fn work(&self) -> Work;
}

/// What was measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Name of the bench: kernels, `/`, and shape.
    pub name: String,
    /// Kernels of one operation, in the order of their launches.
    pub kernels: Vec<&'static str>,
    /// What one operation must do.
    pub work: Work,
    /// Copies of the inputs that take turns.
    pub copies: usize,
    /// Operations of a timed batch.
    pub batch: usize,
    /// Outputs that were checked.
    pub checked: usize,
    /// Seconds of one operation: those of batches, by the number of their operations.
    pub time: Spread,
}

impl Row {
    /// Bytes a second.
    pub fn byte_rate(&self) -> f64 {
        self.work.bytes as f64 / self.time.median().max(1e-12)
    }

    /// Operations a second; none where there is no product.
    pub fn operation_rate(&self) -> Option<f64> {
        let operations = self.work.operations as f64;
        (operations > 0.0).then(|| operations / self.time.median().max(1e-12))
    }

    /// Share of the rate at which the tensor cores multiply what the products are made of.
    pub fn share_of_peak(&self, peaks: &Peaks) -> Option<f64> {
        let (unit, operations) = self.work.tensor?;
        Some(operations as f64 / self.time.median().max(1e-12) / peaks.of(unit))
    }
}

/// Every bench, named after the kernels that this device gets. On the emulator models are small, so that
/// all of them can be run.
///
/// # Errors
/// When the device has too little memory.
pub fn table(device: &Device) -> Result<Vec<Bench>> {
    let mut benches = Vec::new();
    for (shape, make) in table::entries(device) {
        let subject = make(&mut Stock::new(device, false))?;
        let launches = device.plan(|| subject.launch(device, 0))?;
        let kernels = names(&launches);
        let mut distinct = kernels.clone();
        distinct.dedup();
        let name = format!("{}/{shape}", distinct.join("+"));
        benches.push(Bench { name, kernels, make });
    }
    Ok(benches)
}

fn names(launches: &[TracedLaunch]) -> Vec<&'static str> {
    launches.iter().map(|launch| launch.spec.name).collect()
}

impl Bench {
    /// Kernels, `/`, and shape, such as `matmul_q8_0_x4/gpt-oss-20b qkv 5120x2880 b1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Checks the kernels' results, and then measures them.
    ///
    /// # Errors
    /// When a result is wrong, another kernel than those of the name was launched, the device has too
    /// little memory, or a launch fails.
    pub fn measure(&self, device: &Device) -> Result<Row> {
        let subject = (self.make)(&mut Stock::new(device, true))?;
        let launches = device.trace(|| subject.launch(device, 0))?;
        if names(&launches) != self.kernels {
            return Err(Error::OtherKernels { bench: self.name.clone(), found: names(&launches) });
        }
        let points = subject.points()?;
        verify(&self.name, &points)?;
        let (batch, time) = time(device, &*subject)?;
        Ok(Row {
            name: self.name.clone(),
            kernels: self.kernels.clone(),
            work: subject.work(),
            copies: subject.n_copies(),
            batch,
            checked: points.len(),
            time,
        })
    }
}

/// Operations of a batch, and seconds of one operation.
fn time(device: &Device, subject: &dyn Subject) -> Result<(usize, Spread)> {
    let n_copies = subject.n_copies().max(1);
    let launch = |n: usize| (0..n).try_for_each(|i| subject.launch(device, i % n_copies));
    let head_start = HeadStart::new(device)?;
    let once = between_marks(device, &head_start, || launch(n_copies))?;
    if device.is_emulator() {
        let mut times = vec![once];
        for _ in 1..EMULATOR_RUNS {
            times.push(between_marks(device, &head_start, || launch(n_copies))?);
        }
        return Ok((n_copies, per_operation(&times, n_copies)));
    }
    let enough = (BATCH_SECONDS / once.as_secs_f64().max(1e-9)).ceil() as usize;
    // Each copy as often as the others.
    let batch = n_copies * enough.clamp(1, (MAX_LAUNCHES / n_copies).max(1));
    let recording = device.record(|| launch(batch))?;
    let replay = || match &recording {
        // SAFETY: the subject, which is borrowed here, owns every buffer of its launches.
        Some(recording) => unsafe { device.replay(recording) },
        None => launch(batch),
    };
    let mut times = Vec::with_capacity(FIRST_RUNS + RUNS);
    for _ in 0..FIRST_RUNS + RUNS {
        times.push(between_marks(device, &head_start, replay)?);
    }
    Ok((batch, per_operation(&times[FIRST_RUNS..], batch)))
}

/// The device's time for `work`, which the host starts while the device is busy with something else.
fn between_marks(
    device: &Device,
    head_start: &HeadStart,
    work: impl FnOnce() -> Result<()>,
) -> Result<Duration> {
    head_start.give(device, PIECES)?;
    let start = device.mark()?;
    work()?;
    let end = device.mark()?;
    device.elapsed(&start, &end)
}

fn per_operation(times: &[Duration], batch: usize) -> Spread {
    Spread::of(times.iter().map(|time| time.as_secs_f64() / batch as f64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kernels_gpu::gpu::emu::Mode;

    /// What no kernel has written is refused: so every bench looks at its outputs.
    #[test]
    fn results_that_are_missing_are_refused() {
        let device = Device::emulator(Mode::FAST);
        for bench in table(&device).unwrap() {
            let subject = (bench.make)(&mut Stock::new(&device, true)).unwrap();
            let found = verify(bench.name(), &subject.points().unwrap());
            assert!(matches!(found, Err(Error::WrongResult { .. })), "{}", bench.name());
        }
    }

    /// What a check lets pass is far below what it looks at.
    #[test]
    fn tolerances_are_small() {
        let device = Device::emulator(Mode::FAST);
        let size = |values: Vec<f64>| values.iter().map(|v| v * v).sum::<f64>().sqrt();
        for bench in table(&device).unwrap() {
            if bench.kernels.contains(&"sample") {
                continue; // a token may be anywhere in its own weight
            }
            let subject = (bench.make)(&mut Stock::new(&device, true)).unwrap();
            let points = subject.points().unwrap();
            let errors = size(points.iter().map(|point| point.expected.error).collect());
            let values = size(points.iter().map(|point| point.expected.value).collect());
            let share = errors / values;
            assert!(share < 0.01, "{}: {share}", bench.name());
        }
    }

    /// A bench whose kernels aren't those of its name is refused.
    #[test]
    fn a_name_that_lies_is_refused() {
        let device = Device::emulator(Mode::FAST);
        let mut bench = table(&device).unwrap().remove(0);
        bench.kernels = vec!["argmax"];
        let found = bench.measure(&device);
        assert!(matches!(found, Err(Error::OtherKernels { .. })), "{found:?}");
    }
}
