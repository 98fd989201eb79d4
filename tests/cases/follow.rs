//! Cases of the kernel that makes a step's batch the next one's.

use super::{Case, Failure, Guarded, Noise};
use ironwarp::Device;
use kernels_gpu::follow::{BLOCK, Follow};
use kernels_gpu::gpu::U32x4;

struct NextStep {
    edge: &'static str,
    n_sequences: usize,
}

impl Case for NextStep {
    fn name(&self) -> String {
        format!("follow/{}", self.edge)
    }

    fn check(&self, device: &Device) -> Result<(), Failure> {
        let n = self.n_sequences;
        let mut noise = Noise::new(3);
        let mut numbers = |n: usize| (0..n).map(|_| noise.bits() >> 1).collect::<Vec<u32>>();
        let (chosen, tokens, positions, counters) =
            (numbers(n), numbers(n), numbers(n), numbers(n));
        let tile = |words: &[u32]| U32x4([words[0], words[1], words[2], words[3]]);
        let tiles: Vec<U32x4> = numbers(4 * n).chunks(4).map(tile).collect();
        let chosen_buffer = device.upload(&chosen)?;
        let tokens_out = Guarded::holding(device, &tokens)?;
        let positions_out = Guarded::holding(device, &positions)?;
        let tiles_out = Guarded::holding(device, &tiles)?;
        let counters_out = Guarded::holding(device, &counters)?;
        let kernel = Follow {
            chosen: chosen_buffer.view(),
            tokens: tokens_out.view_mut(),
            positions: positions_out.view_mut(),
            tiles: tiles_out.view_mut(),
            counters: counters_out.view_mut(),
            n_sequences: n as u32,
        };
        device.launch(kernel, n.div_ceil(BLOCK as usize))?;
        let one_more = |before: &[u32]| before.iter().map(|v| v + 1).collect::<Vec<u32>>();
        let agree = [
            ("tokens", tokens_out.read()? == chosen),
            ("positions", positions_out.read()? == one_more(&positions)),
            ("counters", counters_out.read()? == one_more(&counters)),
            (
                "tiles",
                tiles_out
                    .read()?
                    .iter()
                    .zip(&tiles)
                    .all(|(got, U32x4([a, b, c, d]))| got.0 == [*a, *b, *c, d + 1]),
            ),
        ];
        match agree.iter().find(|(_, agrees)| !agrees) {
            Some((what, _)) => Err(Failure(format!("{what} are not those of the next step"))),
            None => Ok(()),
        }
    }
}

pub fn cases(table: &mut Vec<Box<dyn Case>>) {
    let block = BLOCK as usize;
    for (edge, n_sequences) in [
        ("one", 1),
        ("one_below_block", block - 1),
        ("block", block),
        ("one_past_block", block + 1),
        ("blocks_and_rest", 3 * block + 7),
    ] {
        table.push(Box::new(NextStep { edge, n_sequences }));
    }
}
