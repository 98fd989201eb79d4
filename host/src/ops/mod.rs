//! Operations on device tensors: check shapes, choose the kernel, launch.

pub mod activation;
pub mod attention;
pub mod gated;
pub mod matmul;
pub mod moe;
pub mod norm;
pub mod normed;
pub mod sample;
pub mod weights;

use crate::error::{Error, Result};

/// Refuses a shape that is not what an operation needs.
pub(crate) fn expect_shape(
    op: &'static str,
    tensor: &str,
    found: usize,
    expected: usize,
    what: &'static str,
) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { op, tensor: tensor.to_owned(), what, found, expected })
}
