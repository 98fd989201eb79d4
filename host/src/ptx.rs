//! The kernels as the build made them: PTX for two generations of cards, in the binary. Each kernel
//! is a module of its own, so that the driver compiles only those that a model uses.

use std::ffi::CStr;
use std::fmt;
use std::str::FromStr;

/// One of the generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// Every card since Ampere (compute capability 8.0).
    Sm80,
    /// Hopper (compute capability 9.0) alone, with what only it can do.
    Sm90a,
}

impl Image {
    /// Both.
    pub const ALL: [Image; 2] = [Image::Sm80, Image::Sm90a];

    /// The architecture's name.
    pub const fn name(self) -> &'static str {
        match self {
            Image::Sm80 => "sm_80",
            Image::Sm90a => "sm_90a",
        }
    }

    /// The compute capability that it needs, in words.
    pub const fn needs(self) -> &'static str {
        match self {
            Image::Sm80 => "8.0 or newer",
            Image::Sm90a => "9.0 exactly",
        }
    }

    /// Whether a card of this compute capability can run the image.
    pub fn runs_on(self, capability: (u32, u32)) -> bool {
        match self {
            Image::Sm80 => capability >= (8, 0),
            Image::Sm90a => capability == (9, 0),
        }
    }

    /// Each kernel's PTX, in the order of `kernels_gpu::all`; empty where the image does not have it.
    pub fn kernels(self) -> impl Iterator<Item = &'static CStr> {
        let mut rest = match self {
            Image::Sm80 => SM_80,
            Image::Sm90a => SM_90A,
        };
        std::iter::from_fn(move || {
            let kernel = CStr::from_bytes_until_nul(rest).ok()?;
            rest = &rest[kernel.count_bytes() + 1..];
            Some(kernel)
        })
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which image to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PtxChoice {
    /// The best that the card can run.
    #[default]
    Auto,
    /// This one.
    Only(Image),
}

impl PtxChoice {
    /// The image for a card of this compute capability, if the card can run it.
    pub fn image(self, capability: (u32, u32)) -> Option<Image> {
        let mut images = match self {
            PtxChoice::Auto => [Image::Sm90a, Image::Sm80],
            PtxChoice::Only(image) => [image; 2],
        }
        .into_iter();
        images.find(|image| image.runs_on(capability))
    }
}

impl FromStr for PtxChoice {
    type Err = String;

    /// From `auto`, `sm_80` or `sm_90a`.
    fn from_str(text: &str) -> Result<PtxChoice, String> {
        match text {
            "auto" => Ok(PtxChoice::Auto),
            "sm_80" => Ok(PtxChoice::Only(Image::Sm80)),
            "sm_90a" => Ok(PtxChoice::Only(Image::Sm90a)),
            _ => Err(format!("`{text}` is none of auto, sm_80, sm_90a")),
        }
    }
}

const SM_80: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sm_80.ptx"));
const SM_90A: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sm_90a.ptx"));

/// What every kernel uses: registers, shared memory, counts, as the build found it.
pub const REPORT: &str = include_str!(concat!(env!("OUT_DIR"), "/ptx-report.txt"));

#[cfg(test)]
mod tests {
    use super::{Image, PtxChoice};

    #[test]
    fn each_kernel_is_a_module_for_its_card_with_its_bounds() {
        for image in Image::ALL {
            assert_eq!(image.kernels().count(), kernels_gpu::all().len());
            for (ptx, spec) in image.kernels().zip(kernels_gpu::all()) {
                let text = ptx.to_str().unwrap();
                assert_eq!(text.is_empty(), !spec.is_in(image.name()), "{}", spec.name);
                if text.is_empty() {
                    continue;
                }
                assert!(text.contains(&format!(".target {image}\n")), "{}", spec.name);
                assert_eq!(text.matches(".entry").count(), 1, "{}", spec.name);
                let (_, entry) = text.split_once(&format!(".entry {}(", spec.name)).unwrap();
                let (head, _) = entry.split_once('{').unwrap();
                let bounds = format!("\n.maxntid {}, 1, 1", spec.block_threads);
                assert!(head.contains(&bounds), "{}: {head}", spec.name);
            }
        }
    }

    #[test]
    fn hopper_alone_gets_its_image() {
        let [sm_80, sm_90a] = Image::ALL;
        for (capability, auto) in [
            ((7, 5), None),
            ((8, 0), Some(sm_80)),
            ((8, 9), Some(sm_80)),
            ((9, 0), Some(sm_90a)),
            ((10, 0), Some(sm_80)),
            ((12, 0), Some(sm_80)),
        ] {
            assert_eq!(PtxChoice::Auto.image(capability), auto, "{capability:?}");
        }
        assert_eq!("sm_80".parse::<PtxChoice>().unwrap().image((9, 0)), Some(sm_80));
        assert_eq!("sm_90a".parse::<PtxChoice>().unwrap().image((9, 0)), Some(sm_90a));
        assert_eq!("sm_90a".parse::<PtxChoice>().unwrap().image((10, 0)), None);
        assert!("sm_90".parse::<PtxChoice>().is_err());
    }
}
