//! The kernels as the build made them: PTX for two generations of cards, in the binary.

use std::ffi::CStr;

/// Which of the images a card gets.
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

    /// The architecture's name, as `--ptx` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Image::Sm80 => "sm_80",
            Image::Sm90a => "sm_90a",
        }
    }

    /// The PTX, as the driver wants it.
    pub const fn text(self) -> &'static CStr {
        match self {
            Image::Sm80 => SM_80,
            Image::Sm90a => SM_90A,
        }
    }
}

const SM_80: &CStr = terminated(include_bytes!(concat!(env!("OUT_DIR"), "/sm_80.ptx")));
const SM_90A: &CStr = terminated(include_bytes!(concat!(env!("OUT_DIR"), "/sm_90a.ptx")));

/// The build script ends each image with its only zero byte.
const fn terminated(image: &'static [u8]) -> &'static CStr {
    assert!(matches!(image.last(), Some(0)), "a PTX image must end with a zero byte");
    // SAFETY: it ends with a zero byte, and PTX is text: the build script refuses another zero.
    unsafe { CStr::from_bytes_with_nul_unchecked(image) }
}

/// What every kernel uses: registers, shared memory, counts, as the build found it.
pub const REPORT: &str = include_str!(concat!(env!("OUT_DIR"), "/ptx-report.txt"));

#[cfg(test)]
mod tests {
    use super::Image;

    #[test]
    fn each_image_is_for_its_card_and_holds_every_kernel() {
        for image in Image::ALL {
            let text = image.text().to_str().unwrap();
            assert!(text.trim_end().ends_with('}'), "{image:?} is cut short at a zero byte");
            assert!(text.contains(&format!(".target {}\n", image.name())), "{image:?}");
            for spec in kernels_gpu::all() {
                let bounds = format!(".maxntid {}, 1, 1", spec.block_threads);
                let entry = format!(".entry {}(", spec.name);
                let from =
                    text.find(&entry).unwrap_or_else(|| panic!("{} lacks {entry}", spec.name));
                let head = text[from..].split('{').next().unwrap();
                assert!(head.contains(&bounds), "{image:?}: {head}");
            }
        }
    }
}
