//! GPT-OSS, GPT-2 and Llama inference on NVIDIA GPUs, every kernel written in Rust.

pub mod error;

pub use error::{Error, Result};
