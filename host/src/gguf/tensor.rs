//! A tensor's description. One that exists has a shape whose size in elements and bytes fits.

use kernels_gpu::quant::Format;

use super::fault::Problem;

/// GGML's limit on dimensions.
pub const MAX_DIMS: usize = 4;

/// A tensor of a GGUF file: where it lies, what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    name: String,
    format: Format,
    /// GGML's ne; 1 beyond `n_dims`.
    dims: [u64; MAX_DIMS],
    n_dims: usize,
    n_elems: u64,
    n_bytes: u64,
    /// In the data section.
    offset: u64,
}

impl TensorInfo {
    /// A tensor at the start of the data section, if the shape is one that `format` can have.
    pub(super) fn new(name: String, format: Format, shape: &[u64]) -> Result<TensorInfo, Problem> {
        let n_dims = shape.len();
        if n_dims == 0 || n_dims > MAX_DIMS {
            return Err(Problem::DimensionCount { found: n_dims as u32, most: MAX_DIMS as u32 });
        }
        if let Some(index) = shape.iter().position(|&dim| dim == 0) {
            return Err(Problem::ZeroDimension { index });
        }
        let mut dims = [1; MAX_DIMS];
        dims[..n_dims].copy_from_slice(shape);

        let overflow = || Problem::SizeOverflow { dims: shape.to_vec() };
        let fits = |size: Option<u64>| size.filter(|&s| s <= i64::MAX as u64).ok_or_else(overflow);
        let n_elems = fits(shape.iter().try_fold(1u64, |product, &dim| product.checked_mul(dim)))?;
        let block = format.block_elems() as u64;
        if dims[0] % block != 0 {
            return Err(Problem::PartialBlock { found: dims[0], block, format: format.name() });
        }
        let n_bytes = fits((n_elems / block).checked_mul(format.block_bytes() as u64))?;
        Ok(TensorInfo { name, format, dims, n_dims, n_elems, n_bytes, offset: 0 })
    }

    /// The same tensor elsewhere in the data section.
    pub(super) fn at(self, offset: u64) -> TensorInfo {
        TensorInfo { offset, ..self }
    }

    /// The name, unique in its file.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The storage format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// 1 to 4 dimensions, each at least 1; the first is the row length (GGML's order).
    pub fn dims(&self) -> &[u64] {
        &self.dims[..self.n_dims]
    }

    /// All four dimensions, 1 beyond those of the file.
    pub fn dims4(&self) -> [u64; MAX_DIMS] {
        self.dims
    }

    /// Where the data begins in the data section; a multiple of the file's alignment.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Elements in a row: the first dimension, a multiple of the format's block.
    pub fn n_cols(&self) -> u64 {
        self.dims[0]
    }

    /// Rows of all matrices together: every dimension but the first.
    pub fn n_rows(&self) -> u64 {
        self.n_elems / self.dims[0]
    }

    /// Elements.
    pub fn n_elems(&self) -> u64 {
        self.n_elems
    }

    /// Bytes in the file.
    pub fn n_bytes(&self) -> u64 {
        self.n_bytes
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> u64 {
        self.n_bytes / self.n_rows()
    }
}

/// The format with a GGML type id, or why there is none.
pub(super) fn format_from_id(found: u32) -> Result<Format, Problem> {
    Format::from_ggml_id(found).ok_or_else(|| {
        let known = Format::ALL.map(Format::name).join(", ");
        match UNSUPPORTED.iter().find(|(id, _)| *id == found) {
            Some(&(_, name)) => Problem::UnsupportedTensorType { found, name, known },
            None => Problem::UnknownTensorType { found, known },
        }
    })
}

/// The types that GGML has, or once had, and that we don't read.
const UNSUPPORTED: [(u32, &str); 28] = [
    (4, "Q4_2"),
    (5, "Q4_3"),
    (9, "Q8_1"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (31, "Q4_0_4_4"),
    (32, "Q4_0_4_8"),
    (33, "Q4_0_8_8"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (36, "IQ4_NL_4_4"),
    (37, "IQ4_NL_4_8"),
    (38, "IQ4_NL_8_8"),
    (40, "NVFP4"),
    (41, "Q1_0"),
];
