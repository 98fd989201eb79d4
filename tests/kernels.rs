//! Every case of the table. On the checked emulator with the threads run forward, reversed and
//! shuffled: what one order hides, another shows. With `IRONWARP_DEVICE=cuda` on the GPU.

mod cases;
mod machine;

use cases::Case;
use ironwarp::Device;
use kernels_gpu::gpu::emu::{Mode, Order};
use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let args = Arguments::from_args();
    let trials = cases::all().into_iter().map(|case| {
        let name = case.name();
        Trial::test(name, move || run(case.as_ref()))
    });
    libtest_mimic::run(&args, trials.collect()).exit();
}

fn run(case: &dyn Case) -> Result<(), Failed> {
    if machine::is_cuda() {
        let done = case.check(&machine::device(Mode::CHECKED));
        return done.map_err(|failure| Failed::from(failure.0));
    }
    for order in [Order::Forward, Order::Reversed, Order::Shuffled(7)] {
        let device = Device::emulator(Mode { checks: true, order });
        case.check(&device).map_err(|failure| format!("{order:?}: {}", failure.0))?;
    }
    Ok(())
}
