//! What the subcommands that run a model share: the file, the device, and how it is loaded.

use anyhow::{Context, bail};
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressStyle};
use ironwarp::model::{self, KvType};
use ironwarp::ptx::PtxChoice;
use ironwarp::{Device, Gguf, Model, Options};
use kernels_gpu::gpu::emu::Mode;
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceChoice {
    /// The GPU if there is one, else the CPU.
    Auto,
    /// The GPU.
    Cuda,
    /// The same kernels on the emulator.
    Cpu,
}

/// Element type of the cache of keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KvChoice {
    /// f16, or f32 for a file in F32.
    Auto,
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
    /// Full precision.
    F32,
}

/// The device.
#[derive(clap::Args)]
pub struct DeviceArgs {
    /// Where to run
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
    /// Which kernel image a GPU gets: auto, sm_80 or sm_90a
    #[arg(long, default_value = "auto")]
    ptx: PtxChoice,
    /// CPU threads [default: all cores]
    #[arg(long)]
    threads: Option<usize>,
}

/// The model, its device and its set-up.
#[derive(clap::Args)]
pub struct ModelArgs {
    /// A GGUF file [default: the small model in the box]
    pub model: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Tokens of context [default: the model's, at most 4096]
    #[arg(long)]
    pub ctx: Option<usize>,
    /// Element type of the cache
    #[arg(long, value_enum, default_value = "auto")]
    pub kv_type: KvChoice,
    /// Round YaRN's correction range as llama.cpp does
    #[arg(long)]
    pub yarn_truncate: bool,
}

/// Context where none is asked for: a cache for 131072 tokens would surprise.
const DEFAULT_CONTEXT: usize = 4096;

/// The model in the box: a small gpt-oss that writes simple stories (docs/box-model.md).
static BOX_MODEL: &[u8] = include_bytes!("../../../assets/box-model.gguf");

impl DeviceArgs {
    /// Opens it.
    pub fn open(&self) -> anyhow::Result<Device> {
        if let Some(threads) = self.threads {
            if threads == 0 {
                bail!("--threads 0: at least one is needed");
            }
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build_global().context("starting the threads")?;
        }
        let emulator = || Device::emulator(Mode::FAST);
        match self.device {
            DeviceChoice::Cpu => Ok(emulator()),
            DeviceChoice::Cuda => Ok(Device::cuda(0, self.ptx)?),
            DeviceChoice::Auto => Ok(Device::cuda(0, self.ptx).unwrap_or_else(|_| emulator())),
        }
    }
}

impl ModelArgs {
    /// Opens the file, or the model in the box.
    pub fn open_gguf(&self) -> anyhow::Result<Gguf> {
        match &self.model {
            Some(path) => Ok(Gguf::open(path)?),
            None => Ok(Gguf::parse(BOX_MODEL, "the model in the box")?),
        }
    }

    /// Opens the device.
    pub fn open_device(&self) -> anyhow::Result<Device> {
        self.device.open()
    }

    /// Loads the model, with a progress bar on a terminal.
    pub fn load(&self, device: &Device, gguf: &Gguf, options: Options) -> anyhow::Result<Model> {
        let config = model::Config::read(gguf)?;
        let kv_type = match self.kv_type {
            KvChoice::Auto => None,
            KvChoice::F16 => Some(KvType::F16),
            KvChoice::Bf16 => Some(KvType::Bf16),
            KvChoice::F32 => Some(KvType::F32),
        };
        let usual = options.context.unwrap_or(config.max_context.min(DEFAULT_CONTEXT));
        let context = self.ctx.unwrap_or(usual);
        let options = Options {
            context: Some(context),
            kv_type,
            yarn_truncate: self.yarn_truncate,
            ..options
        };
        model::check_memory(device, gguf, &options)?;
        let bar = if stderr().is_terminal() {
            let style = ProgressStyle::with_template("loading {bar:40} {bytes}/{total_bytes}")?;
            ProgressBar::new(gguf.file_bytes()).with_style(style)
        } else {
            ProgressBar::hidden()
        };
        let model = Model::load(device, gguf, &options, &mut |done| bar.set_position(done))?;
        bar.finish_and_clear();
        Ok(model)
    }
}
