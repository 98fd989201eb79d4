//! The test kernel of what blocks, and parts of a block, wait for each other with.

use crate::gpu::{self, Global, GlobalMut, SharedArray, U32x4};

/// Threads of a block: a warp that copies, and the others.
pub const TOGETHER_BLOCK: u32 = gpu::WARP + USERS;
/// Threads that use what is copied.
pub const USERS: u32 = 96;
/// Tiles that go through the ring, of a 16-byte unit for each user.
pub const TILES: u32 = 7;
/// Rows that `probe_together` writes.
pub const TOGETHER_ROWS: usize = 4;

const SLOTS: u32 = 2;
/// The users' barriers; 0 is the block's.
const FIRST: u32 = 1;
const SECOND: u32 = 2;

/// Shared memory of `probe_together`.
#[repr(C, align(16))]
pub struct Ring {
    slots: [U32x4; (SLOTS * USERS) as usize],
    words: [u32; USERS as usize],
    /// A slot's tile is there.
    full: [u64; SLOTS as usize],
    /// A slot's tile is used up.
    empty: [u64; SLOTS as usize],
}

kernel! {
    /// Tiles through a ring of slots; words among the users, and among the blocks.
    pub fn probe_together = probe_together_body, block TOGETHER_BLOCK, shared Ring, registers 40,
        barriers 8, shuffles 0, matrix_ops 0, together on sm_90a;
    pub struct ProbeTogether {
        /// [TILES, USERS]
        x: Global<U32x4>,
        /// [grid + 1], all 0
        counters: GlobalMut<u32>,
        /// [2, grid, USERS]
        between: GlobalMut<u32>,
        /// [TOGETHER_ROWS, grid, USERS]
        out: GlobalMut<u32>,
    }
}

#[inline(always)]
fn probe_together_body(a: ProbeTogether) {
    let full: SharedArray<u64> = shared!(Ring, full);
    let empty: SharedArray<u64> = shared!(Ring, empty);
    let words: SharedArray<u32> = shared!(Ring, words);
    if gpu::thread_x() == 0 {
        gpu::phase_init(full, 0, 1);
        gpu::phase_init(full, 1, 1);
        gpu::phase_init(empty, 0, USERS / gpu::WARP);
        gpu::phase_init(empty, 1, USERS / gpu::WARP);
        gpu::phases_are_made();
    }
    gpu::sync_block(); // the phase counters are there
    if gpu::warp() == 0 {
        if gpu::lane() == 0 {
            fill_slots(a.x);
        }
        return; // the block's barrier is behind
    }

    let (user, n_blocks, block) = (gpu::thread_x() - gpu::WARP, gpu::grid_x(), gpu::block_x());
    let rows = a.out.from((block * USERS + user) as usize);
    let row = n_blocks as usize * USERS as usize;
    let v = use_slots(user);
    words.set(user, v);
    gpu::sync_threads(FIRST, USERS); // every user's word is there
    let v = words.get((user + 32) % USERS);
    rows.set(0, v);
    gpu::sync_threads(FIRST, USERS); // all have read before the words are written again
    words.set(user, v ^ block);
    gpu::sync_threads(SECOND, USERS); // the new words are there
    let v = words.get((user + 64) % USERS);
    rows.set(row, v);

    // Each block waits for each other's counter, then all for one.
    let v = pass_on(a.between, user, v, || {
        if user == 0 {
            gpu::signal(a.counters, block as usize);
        }
        if user < n_blocks {
            gpu::wait_for_signals(a.counters, user as usize, 1);
        }
    });
    rows.set(2 * row, v);
    let v = pass_on(a.between.from(row), user, v, || {
        if user == 0 {
            gpu::signal(a.counters, n_blocks as usize);
            gpu::wait_for_signals(a.counters, n_blocks as usize, n_blocks);
        }
    });
    rows.set(3 * row, v);
}

/// Copies tile after tile into the slots that are used up.
#[inline(always)]
fn fill_slots(x: Global<U32x4>) {
    let full: SharedArray<u64> = shared!(Ring, full);
    let empty: SharedArray<u64> = shared!(Ring, empty);
    let slots: SharedArray<U32x4> = shared!(Ring, slots);
    let mut tile = 0;
    while tile < TILES {
        let (slot, round) = (tile % SLOTS, tile / SLOTS);
        gpu::phase_wait(empty, slot, (round + 1) % 2);
        gpu::phase_arrive_expecting(full, slot, USERS);
        let from = x.from((tile * USERS) as usize);
        gpu::copy_bulk(slots.from(slot * USERS), from, USERS, full, slot);
        tile += 1;
    }
}

/// What a user makes of its units of all tiles.
#[inline(always)]
fn use_slots(user: u32) -> u32 {
    let full: SharedArray<u64> = shared!(Ring, full);
    let empty: SharedArray<u64> = shared!(Ring, empty);
    let slots: SharedArray<U32x4> = shared!(Ring, slots);
    let (mut v, mut tile) = (0, 0);
    while tile < TILES {
        let (slot, round) = (tile % SLOTS, tile / SLOTS);
        gpu::phase_wait(full, slot, round % 2);
        v = after_tile(v, slots.get(slot * USERS + user));
        gpu::sync_warp(); // all lanes have read their units
        if gpu::lane() == 0 {
            gpu::phase_arrive(empty, slot);
        }
        tile += 1;
    }
    v
}

/// The word that a user has after a tile, from the one before.
#[inline(always)]
pub fn after_tile(v: u32, U32x4(unit): U32x4) -> u32 {
    (v.wrapping_mul(5) ^ unit[0]).wrapping_add(unit[1] ^ unit[2]).wrapping_sub(unit[3])
}

/// Leaves a word for the block before, and takes the one of the block behind.
#[inline(always)]
fn pass_on(between: GlobalMut<u32>, user: u32, v: u32, meet: impl Fn()) -> u32 {
    let (n_blocks, block) = (gpu::grid_x(), gpu::block_x());
    between.set((block * USERS + user) as usize, v);
    gpu::sync_threads(FIRST, USERS); // the block's words are there before it signals
    meet();
    gpu::sync_threads(SECOND, USERS); // all users know that the other blocks signalled
    let behind = if block + 1 < n_blocks { block + 1 } else { 0 };
    between.get((behind * USERS + user) as usize).wrapping_add(1)
}
