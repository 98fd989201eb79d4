//! Which tensor gets which format: llama.cpp's rules, by which published files are made.

use kernels_gpu::quant::Format;

use super::shape::Shape;

/// A mix of formats, named as its files are. The discriminant is `general.file_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, missing_docs)] // llama.cpp's own names
pub enum Mix {
    F32 = 0,
    F16 = 1,
    Q4_0 = 2,
    Q4_1 = 3,
    Q8_0 = 7,
    Q5_0 = 8,
    Q5_1 = 9,
    Q2_K = 10,
    Q3_K_M = 12,
    Q4_K_M = 15,
    Q5_K_M = 17,
    Q6_K = 18,
    BF16 = 32,
    /// Experts in MXFP4, all else in Q8_0.
    MXFP4 = 38,
}

/// What a tensor is to the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Norms, biases, sinks, the router, learned positions: F32 in every file.
    Plain,
    /// The embedding, where there is an output matrix besides.
    Embedding,
    /// The output matrix, or the embedding that serves as one.
    Output,
    /// attn_v, or the fused q, k and v.
    Value,
    /// attn_output.
    AttnOutput,
    /// ffn_down.
    Down,
    /// The experts' three matrices.
    Experts,
    /// Every other matrix.
    Matrix,
}

impl Mix {
    /// Every mix with its name.
    pub const ALL: [(&str, Mix); 14] = [
        ("f32", Mix::F32),
        ("f16", Mix::F16),
        ("bf16", Mix::BF16),
        ("q4_0", Mix::Q4_0),
        ("q4_1", Mix::Q4_1),
        ("q5_0", Mix::Q5_0),
        ("q5_1", Mix::Q5_1),
        ("q8_0", Mix::Q8_0),
        ("q2_k", Mix::Q2_K),
        ("q3_k_m", Mix::Q3_K_M),
        ("q4_k_m", Mix::Q4_K_M),
        ("q5_k_m", Mix::Q5_K_M),
        ("q6_k", Mix::Q6_K),
        ("mxfp4", Mix::MXFP4),
    ];

    /// The mix of that name.
    pub fn named(name: &str) -> Option<Mix> {
        Mix::ALL.iter().find(|(own, _)| *own == name).map(|&(_, mix)| mix)
    }

    /// The format of most matrices.
    fn base(self) -> Format {
        match self {
            Mix::F32 => Format::F32,
            Mix::F16 => Format::F16,
            Mix::BF16 => Format::BF16,
            Mix::Q4_0 => Format::Q4_0,
            Mix::Q4_1 => Format::Q4_1,
            Mix::Q5_0 => Format::Q5_0,
            Mix::Q5_1 => Format::Q5_1,
            Mix::Q8_0 | Mix::MXFP4 => Format::Q8_0,
            Mix::Q2_K => Format::Q2_K,
            Mix::Q3_K_M => Format::Q3_K,
            Mix::Q4_K_M => Format::Q4_K,
            Mix::Q5_K_M => Format::Q5_K,
            Mix::Q6_K => Format::Q6_K,
        }
    }

    /// The format of the tensor of that role, in layer `layer`, with rows of `n_cols`.
    pub(super) fn format(self, role: Role, layer: u32, n_cols: u64, shape: &Shape) -> Format {
        let base = self.base();
        if role == Role::Plain {
            return Format::F32;
        }
        if matches!(self, Mix::F32 | Mix::F16 | Mix::BF16) {
            return base;
        }
        let more = use_more_bits(layer, shape.n_layers);
        let n_layers = shape.n_layers;
        let wanted = match (role, self) {
            // The experts of gpt-oss were trained in MXFP4, and every published mix leaves them.
            (Role::Experts, _) => Format::MXFP4,
            (_, Mix::Q8_0 | Mix::MXFP4) => Format::Q8_0,
            (Role::Output, _) if n_cols.is_multiple_of(256) => Format::Q6_K,
            (Role::Output, _) => Format::Q8_0,
            (Role::Value, Mix::Q2_K) if shape.n_heads >= 4 * shape.n_kv_heads => Format::Q4_K,
            (Role::Value | Role::Down | Role::AttnOutput, Mix::Q2_K) => Format::Q3_K,
            (Role::Value, Mix::Q3_K_M) if layer < 2 => Format::Q5_K,
            (Role::Down, Mix::Q3_K_M) if layer < n_layers / 16 => Format::Q5_K,
            (Role::Value | Role::Down | Role::AttnOutput, Mix::Q3_K_M) => Format::Q4_K,
            (Role::Value | Role::Down, Mix::Q4_K_M | Mix::Q5_K_M) if more => Format::Q6_K,
            _ => base,
        };
        for_rows_of(n_cols, wanted)
    }
}

/// The eighth of the layers at either end, and every third between.
fn use_more_bits(layer: u32, n_layers: u32) -> bool {
    let eighth = n_layers / 8;
    layer < eighth || layer >= 7 * n_layers / 8 || (layer - eighth) % 3 == 2
}

/// The nearest format whose blocks fill rows of `n_cols`. llama.cpp puts IQ4_NL in the place of
/// Q2_K and Q3_K; Q4_0 has the same blocks, and is one that we read.
fn for_rows_of(n_cols: u64, wanted: Format) -> Format {
    let fits = |format: Format| n_cols.is_multiple_of(format.block_elems() as u64);
    if fits(wanted) {
        return wanted;
    }
    let smaller = match wanted {
        Format::Q2_K | Format::Q3_K => Format::Q4_0,
        Format::Q4_K => Format::Q5_0,
        Format::Q5_K => Format::Q5_1,
        Format::Q6_K => Format::Q8_0,
        _ => Format::F16,
    };
    if fits(smaller) { smaller } else { Format::F16 }
}
