//! NVIDIA's assembler, where there is one: it proves that the PTX assembles, and tells what each
//! kernel uses. Nothing that it makes is shipped; the driver compiles the PTX on the user's card.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::ptx_check::{self, Usage};

/// An assembler that knows the images' PTX.
pub struct Ptxas {
    /// The program.
    pub path: PathBuf,
    /// Its release, such as `13.5`.
    pub release: String,
}

impl Ptxas {
    /// `$PTXAS`, then `PATH`, `/usr/local/cuda/bin` and the PyPI package `nvidia-cuda-nvcc`, installed
    /// for Python or in `tools` (scripts/setup.sh). None is no error, except where `$PTXAS` names one
    /// that can't be used.
    pub fn find(tools: &Path) -> Result<Option<Ptxas>, String> {
        if let Some(named) = env::var_os("PTXAS") {
            return match probe(Path::new(&named)) {
                Some(ptxas) => Ok(Some(ptxas)),
                None => Err(format!("PTXAS={named:?} is not a ptxas of CUDA 12.1 or newer")),
            };
        }
        let path = env::var_os("PATH").unwrap_or_default();
        let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
        folders.push("/usr/local/cuda/bin".into());
        folders.extend(package_folders(&[tools.join("nvidia")]));
        let found = folders.iter().find_map(|folder| probe(&folder.join("ptxas")));
        Ok(found.or_else(|| {
            // Python is asked only where it must be: that takes longer than all the rest.
            package_folders(&python_roots()).iter().find_map(|f| probe(&f.join("ptxas")))
        }))
    }

    /// What each entry of the PTX uses. Entries are assembled one by one, and those whose text is as
    /// it was the last time are not assembled again.
    pub fn usages(
        &self,
        out: &Path,
        arch: &str,
        ptx: &str,
    ) -> Result<BTreeMap<String, Usage>, String> {
        let cache = out.join("ptxas").join(arch);
        fs::create_dir_all(&cache).map_err(|e| format!("{}: {e}", cache.display()))?;
        let entries = ptx_check::one_by_one(ptx)?;
        let (next, logs) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some((name, text)) = entries.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        let log = self.assemble(&cache, arch, name, text);
                        logs.lock().unwrap_or_else(|e| e.into_inner()).push(log);
                    }
                });
            }
        });
        let logs = logs.into_inner().unwrap_or_else(|e| e.into_inner());
        let logs: Vec<String> = logs.into_iter().collect::<Result<_, _>>()?;
        keep_only(&cache, &entries.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>());
        Ok(ptx_check::usages(&logs.concat()))
    }

    fn assemble(&self, cache: &Path, arch: &str, name: &str, text: &str) -> Result<String, String> {
        let mut hash = DefaultHasher::new();
        (text, arch, &self.path, &self.release).hash(&mut hash);
        let stamp = format!("// {:016x}\n", hash.finish());
        let file = cache.join(format!("{name}.log"));
        if let Ok(log) = fs::read_to_string(&file)
            && log.starts_with(&stamp)
        {
            return Ok(log);
        }
        let source = cache.join(format!("{name}.ptx"));
        let object = cache.join(format!("{name}.cubin"));
        fs::write(&source, text).map_err(|e| format!("{}: {e}", source.display()))?;
        let mut command = Command::new(&self.path);
        command.arg(format!("-arch={arch}")).arg("-v").arg(&source).arg("-o").arg(&object);
        let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(format!("ptxas does not assemble {name} for {arch}:\n{log}{command:?}"));
        }
        let log = stamp + &log;
        fs::write(&file, &log).map_err(|e| format!("{}: {e}", file.display()))?;
        Ok(log)
    }
}

/// Removes what is left of kernels that no longer exist.
fn keep_only(cache: &Path, names: &[&str]) {
    for file in fs::read_dir(cache).into_iter().flatten().flatten() {
        let stem = file.path().file_stem().map(|s| s.to_string_lossy().into_owned());
        if !stem.is_some_and(|stem| names.contains(&stem.as_str())) {
            // A leftover does no harm: the folder is a cache.
            let _ = fs::remove_file(file.path());
        }
    }
}

/// The assembler at `path`, if it is one of CUDA 12.1 (PTX 8.1, sm_90a) or newer.
fn probe(path: &Path) -> Option<Ptxas> {
    let output = Command::new(path).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let release = text.split_once("release ")?.1.split(',').next()?.to_string();
    let (major, minor) = release.split_once('.')?;
    let version: (u32, u32) = (major.parse().ok()?, minor.parse().ok()?);
    (version >= (12, 1)).then(|| Ptxas { path: path.to_path_buf(), release })
}

/// Where NVIDIA's Python packages are installed.
fn python_roots() -> Vec<PathBuf> {
    let ask = "import nvidia; print('\\n'.join(nvidia.__path__))";
    let Ok(output) = Command::new("python3").args(["-c", ask]).output() else {
        return Vec::new();
    };
    String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect()
}

/// The folders of programs in NVIDIA's Python packages, the newest first.
fn package_folders(roots: &[PathBuf]) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = roots
        .iter()
        .flat_map(|root| fs::read_dir(root).into_iter().flatten().flatten())
        .map(|package| package.path().join("bin"))
        .filter(|bin| bin.is_dir())
        .collect();
    folders.sort();
    folders.reverse();
    folders
}
