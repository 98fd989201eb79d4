//! Loops over register arrays: written out for the device, a loop on the host.

/// Runs a block for `i` = 0, 1, ... below `n` <= 8, or 16, written out on the device: a register array needs
/// constant indices, and LLVM leaves a loop of this size rolled.
#[cfg(target_arch = "nvptx64")]
macro_rules! unroll {
    // Literal bounds are written out as they are: nested loops would multiply the dead copies.
    ($i:ident < 2, $body:block) => {
        unroll!(@ all $i, $body, 0 1)
    };
    ($i:ident < 4, $body:block) => {
        unroll!(@ all $i, $body, 0 1 2 3)
    };
    ($i:ident < 8, $body:block) => {
        unroll!(@ all $i, $body, 0 1 2 3 4 5 6 7)
    };
    ($i:ident < 16, $body:block) => {
        unroll!(@ all $i, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($i:ident < $n:expr, $body:block) => {{
        const { assert!($n <= 8) };
        unroll!(@ $i, $n, $body, 0 1 2 3 4 5 6 7);
    }};
    (@ all $i:ident, $body:block, $($at:literal)*) => {$({
        let $i: usize = $at;
        $body
    })*};
    (@ $i:ident, $n:expr, $body:block, $($at:literal)*) => {$(
        if $at < $n {
            let $i: usize = $at;
            $body
        }
    )*};
}

/// As the device's, in a loop.
#[cfg(not(target_arch = "nvptx64"))]
macro_rules! unroll {
    ($i:ident < $n:expr, $body:block) => {{
        let mut at = 0;
        while at < $n {
            let $i: usize = at;
            $body
            at += 1;
        }
    }};
}
