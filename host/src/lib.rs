//! GPT-OSS, GPT-2 and Llama inference on NVIDIA GPUs, every kernel written in Rust.

pub mod bench;
pub mod chat;
pub mod device;
pub mod driver;
pub mod error;
pub mod generate;
pub mod gguf;

pub mod model;
pub mod ops;
pub mod perplexity;
pub mod ptx;
pub mod synth;
pub mod tensor;
pub mod tokenizer;

pub use device::{Buffer, Device};
pub use error::{Error, Result};
pub use gguf::Gguf;

pub use model::{Model, Options};
pub use tokenizer::Tokenizer;
