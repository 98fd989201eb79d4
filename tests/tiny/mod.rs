//! The tiny models of random weights, and what transformers computed from them in fp32.

#![allow(dead_code)] // every test binary uses a part of it

use std::path::{Path, PathBuf};

/// A file of the repository.
pub fn repository(file: &str) -> PathBuf {
    // The variable is set where cargo runs the test, and lets a carried binary find its data.
    let host = std::env::var("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    Path::new(&host).join("..").join(file)
}

/// The tiny models.
pub fn files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(repository("tests/data/tiny"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "gguf"))
        .collect();
    files.sort();
    assert!(files.len() >= 18, "{} reference models", files.len());
    files
}

/// Name of a model, without its folder and extension.
pub fn name(model: &Path) -> String {
    model.file_stem().unwrap().to_string_lossy().into_owned()
}

/// One array of the reference beside a model.
pub fn reference<T: npyz::Deserialize>(model: &Path, array: &str) -> Vec<T> {
    let path = reference_path(model, array);
    let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    npyz::NpyFile::new(bytes.as_slice()).unwrap().into_vec().unwrap()
}

/// Where that array is, if the model has it.
pub fn reference_path(model: &Path, array: &str) -> PathBuf {
    model.with_extension("").join(format!("{array}.npy"))
}

/// An array of token ids.
pub fn ids(model: &Path, array: &str) -> Vec<u32> {
    reference::<i32>(model, array).into_iter().map(|id| id as u32).collect()
}

/// `|got - want| / |want|`
pub fn relative_rms(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let error: f64 = got.iter().zip(want).map(|(&g, &w)| (g as f64 - w as f64).powi(2)).sum();
    let size: f64 = want.iter().map(|&w| (w as f64).powi(2)).sum();
    (error / size).sqrt()
}
