//! Every kernel of ironwarp. The same source becomes PTX for the GPU and runs on the host's emulator.
//!
//! `kernel!` declares a kernel once: device entry, typed arguments and launch contract. `gpu` is all
//! that a kernel may ask of the machine. `ALL` lists every kernel.
#![cfg_attr(target_arch = "nvptx64", no_std)]
#![cfg_attr(
    target_arch = "nvptx64",
    feature(
        abi_ptx,
        abi_unadjusted,
        asm_experimental_arch,
        core_intrinsics,
        f16,
        link_llvm_intrinsics,
        stdarch_nvptx
    )
)]
#![cfg_attr(target_arch = "nvptx64", allow(internal_features, improper_ctypes))]

#[macro_use]
mod kernel;
#[macro_use]
pub mod gpu;
pub mod activation;
pub mod attention;
pub mod fixed16;
pub mod half_bits;
pub mod kv_cache;
pub mod matmul;
pub mod moe;
pub mod norm;
mod order;
pub mod peak;
pub mod probe;
pub mod quant;
pub mod rope;
pub mod sample;
pub mod softmax;
pub mod tile;
pub mod weights;

#[cfg(not(target_arch = "nvptx64"))]
pub use kernel::{ArgDescription, Kernel, KernelArg};
pub use kernel::{KernelSpec, ParamSpec};

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    gpu::trap()
}

/// Every kernel's declaration. The build script checks the PTX against it.
#[cfg(not(target_arch = "nvptx64"))]
pub fn all() -> Vec<&'static KernelSpec> {
    let mut specs = vec![
        activation::SiluGate::spec(),
        activation::SwigluOai::spec(),
        activation::GeluTanh::spec(),
        activation::GeluErf::spec(),
        activation::PackRows::spec(),
        matmul::full::MatmulF32::spec(),
        moe::MoeRoute::spec(),
        moe::MoeGroups::spec(),
        moe::few::MoeRouteFew::spec(),
        moe::MoeCombine::spec(),
        norm::RmsWeigh::spec(),
        norm::LayerNorm::spec(),
        peak::PeakS8::spec(),
        peak::PeakF16::spec(),
        probe::ProbeIndex::spec(),
        probe::ProbeLanes::spec(),
        probe::ProbeSums::spec(),
        probe::ProbeFloats::spec(),
        probe::ProbeBits::spec(),
        probe::ProbeMmaS8::spec(),
        probe::ProbeMmaS8K16::spec(),
        probe::ProbeMmaF16::spec(),
        probe::ProbeMmaBf16::spec(),
        probe::ProbeAtomic::spec(),
        probe::ProbeShared::spec(),
        probe::ProbeCopy::spec(),
        probe::ProbeLater::spec(),
        probe::together::ProbeTogether::spec(),
        sample::RowBest::spec(),
        sample::Argmax::spec(),
        sample::SampleBins::spec(),
        sample::Sample::spec(),
        weights::EmbedF32::spec(),
    ];
    macro_rules! format_kernels {
        (
            $format:ty, $ggml:ident, $repack:ident, $dequantize_f32:ident, $dequantize_f16:ident,
            $embed:ident, $x1:ident, $x4:ident, $x8:ident, $x16:ident, $gated:ident,
            $experts:ident
        ) => {
            specs.extend([
                weights::$repack::Repack::spec(),
                weights::$repack::DequantizeF32::spec(),
                weights::$repack::DequantizeF16::spec(),
                weights::$repack::Embed::spec(),
                matmul::plain::$x1::Matmul::spec(),
                matmul::plain::$x4::Matmul::spec(),
                matmul::plain::$x8::Matmul::spec(),
                matmul::plain::$x16::Matmul::spec(),
                matmul::gated::$gated::Gated::spec(),
                matmul::experts::$experts::Experts::spec(),
            ]);
        };
    }
    for_each_tile_format!(format_kernels);
    macro_rules! ring_kernels {
        ($format:ty, $ggml:ident, $x8_ring:ident, $ring:ident, $rows64:ident) => {
            specs.extend([
                matmul::plain::$x8_ring::Matmul::spec(),
                matmul::gated::$ring::Gated::spec(),
                matmul::rows64::$rows64::Matmul::spec(),
            ]);
        };
    }
    for_each_ring_format!(ring_kernels);
    macro_rules! alone_kernels {
        ($format:ty, $ggml:ident, $rows16:ident, $rows48:ident) => {
            specs.extend([
                matmul::alone::$rows16::Matmul::spec(),
                matmul::alone::$rows48::Matmul::spec(),
            ]);
        };
    }
    for_each_alone_format!(alone_kernels);
    macro_rules! normed_kernels {
        ($format:ty, $ggml:ident, $norm32:ident, $norm64:ident) => {
            specs.extend([
                matmul::normed::$norm32::Normed::spec(),
                matmul::normed::$norm64::Normed::spec(),
            ]);
        };
    }
    for_each_normed_format!(normed_kernels);
    macro_rules! wide_kernels {
        ($format:ty, $ggml:ident, $wide:ident) => {
            specs.push(matmul::plain::$wide::Matmul::spec());
        };
    }
    for_each_wide_format!(wide_kernels);
    specs.extend([
        rope::rope_kv_f32::RopeKv::spec(),
        rope::rope_kv_f16::RopeKv::spec(),
        rope::rope_kv_bf16::RopeKv::spec(),
        attention::AttentionCombine::spec(),
        softmax::SoftmaxF32::spec(),
    ]);
    macro_rules! attention_kernels {
        ($($cache:ident, $dims:literal, $attention:ident, $attention_blocks:literal, $attention_ahead:literal,
          $decode:ident, $decode_blocks:literal, $decode_ahead:literal;)*) => {$(
            specs.extend([
                attention::$attention::Attention::spec(),
                attention::decode::$decode::Decode::spec(),
            ]);
        )*};
    }
    attention::for_each_cache_and_size!(attention_kernels);
    specs
}
