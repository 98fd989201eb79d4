//! In which order warps and lanes get their turns.

/// In which order the threads of a block get their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Warp 0 lane 0 first; a warp runs until it waits for the others.
    Forward,
    /// The last block, warp and lane first.
    Reversed,
    /// Drawn from this seed, anew for every turn; a warp may be interrupted anywhere.
    Shuffled(u64),
}

/// The order of turns of one block.
pub(super) struct Turns {
    order: Order,
    state: u64,
    /// Lane after the one that ran last, in the order's own direction.
    cursor: u32,
}

impl Turns {
    /// The turns of the block with this linear index.
    pub(super) fn new(order: Order, block: u64) -> Turns {
        let seed = if let Order::Shuffled(seed) = order { seed } else { 0 };
        let state = (seed ^ block.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Turns { order, state, cursor: 0 }
    }

    fn random(&mut self, below: u32) -> u32 {
        self.state = self.state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        ((self.state >> 33) % below as u64) as u32
    }

    /// Begins a round over `n_warps` warps: which comes first, and which way it goes.
    pub(super) fn begin_round(&mut self, n_warps: u32) -> Round {
        match self.order {
            Order::Forward => Round { n_warps, first: 0, backwards: false },
            Order::Reversed => Round { n_warps, first: n_warps - 1, backwards: true },
            Order::Shuffled(_) => {
                let backwards = self.random(2) == 1;
                Round { n_warps, first: self.random(n_warps), backwards }
            }
        }
    }

    /// Begins the turns of a warp: how many lanes may run before the next warp does.
    pub(super) fn begin_warp(&mut self) -> u32 {
        self.cursor = 0;
        match self.order {
            Order::Forward | Order::Reversed => u32::MAX,
            Order::Shuffled(_) => 1 + self.random(100),
        }
    }

    /// One of the `ready` lanes, of which there must be one.
    #[inline(always)]
    pub(super) fn lane(&mut self, ready: u32) -> u32 {
        let from =
            |cursor: u32, ready: u32| (cursor + ready.rotate_right(cursor).trailing_zeros()) % 32;
        match self.order {
            Order::Forward => {
                let lane = from(self.cursor, ready);
                self.cursor = (lane + 1) % 32;
                lane
            }
            Order::Reversed => {
                let lane = from(self.cursor, ready.reverse_bits());
                self.cursor = (lane + 1) % 32;
                31 - lane
            }
            Order::Shuffled(_) => {
                let start = self.random(32);
                from(start, ready)
            }
        }
    }
}

/// The warps of one round, or the blocks.
#[derive(Clone, Copy)]
pub(super) struct Round {
    n_warps: u32,
    first: u32,
    backwards: bool,
}

impl Round {
    pub(super) fn at(self, at: u32) -> u32 {
        let step = if self.backwards { self.n_warps - at } else { at };
        (self.first + step) % self.n_warps
    }
}
