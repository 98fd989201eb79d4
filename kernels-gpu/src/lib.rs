//! Every kernel of ironwarp. The same source becomes PTX for the GPU and runs on the host's emulator.
#![cfg_attr(target_arch = "nvptx64", no_std)]

pub mod quant;
