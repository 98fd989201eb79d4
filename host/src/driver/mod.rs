//! The CUDA driver, found when the program runs: a program that was built without CUDA starts
//! without CUDA, and says what is missing when a GPU is asked for.
//!
//! Two ways lead into the driver. `cust` calls its functions by name; `symbols` leads those to the
//! library. What `cust` lacks, or whose failures it can't tell apart, is in [`Api`]: there a
//! function returns the driver's code as a number, since drivers know more codes than `cust`.

mod symbols;

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::path::Path;
use std::sync::OnceLock;

use cust::sys;
use libloading::Library;

/// The code of success.
pub const SUCCESS: i32 = 0;
/// The code of a failed allocation.
pub const OUT_OF_MEMORY: i32 = 2;
/// The code of a machine without a GPU.
const NO_DEVICE: i32 = 100;

/// The oldest driver that the program can use, as `cuDriverGetVersion` counts: CUDA 12.1, the first
/// with PTX 8.1.
const OLDEST: i32 = 12_010;

/// Where the driver's library may be: wherever the system looks; in WSL; on NixOS.
const LIBRARIES: [&str; 3] =
    ["libcuda.so.1", "/usr/lib/wsl/lib/libcuda.so.1", "/run/opengl-driver/lib/libcuda.so.1"];

/// Why there is no driver to use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// No library was found.
    #[error(
        "no NVIDIA driver was found ({reason}): install NVIDIA's driver, or use `--device cpu`"
    )]
    Missing {
        /// What the system's loader said.
        reason: String,
    },
    /// The driver is of an older CUDA version than the program needs.
    #[error(
        "the NVIDIA driver is too old: it supports CUDA {}, and {} or newer is needed",
        version_text(*.found), version_text(*.needed)
    )]
    TooOld {
        /// The driver's version, as `cuDriverGetVersion` counts.
        found: i32,
        /// The oldest that will do.
        needed: i32,
    },
    /// The library is no driver, or not a whole one.
    #[error("the library found as NVIDIA's driver has no function {function}")]
    Incomplete {
        /// The function.
        function: &'static str,
    },
    /// The driver did not start.
    #[error("the NVIDIA driver did not start: {name} (code {code})")]
    Start {
        /// The driver's code.
        code: i32,
        /// Its name.
        name: String,
    },
    /// There is a driver, but no GPU.
    #[error("the NVIDIA driver found no GPU: use `--device cpu`")]
    NoDevice,
}

/// `12.4` from 12040.
fn version_text(version: i32) -> String {
    format!("{}.{}", version / 1000, version % 1000 / 10)
}

macro_rules! api {
    ($($(#[$doc:meta])* $field:ident = $symbol:literal ($($arg:ty),*);)*) => {
        /// Functions of the driver, each returning its code.
        #[allow(missing_docs)] // each is the driver's function that it is named for
        #[derive(Clone, Copy, Debug)]
        pub struct Api {
            $($(#[$doc])* pub $field: unsafe extern "C" fn($($arg),*) -> i32,)*
        }

        impl Api {
            fn find(library: &Library) -> Result<Api, DriverError> {
                Ok(Api { $($field: {
                    // SAFETY: the driver's function of this name has this signature.
                    let symbol = unsafe { library.get($symbol.as_bytes()) };
                    *symbol.map_err(|_| DriverError::Incomplete { function: $symbol })?
                },)* })
            }
        }
    };
}

api! {
    init = "cuInit"(c_uint);
    driver_version = "cuDriverGetVersion"(*mut i32);
    error_name = "cuGetErrorName"(i32, *mut *const c_char);
    error_text = "cuGetErrorString"(i32, *mut *const c_char);
    device_count = "cuDeviceGetCount"(*mut i32);
    device_attribute = "cuDeviceGetAttribute"(*mut i32, i32, sys::CUdevice);
    context_retain = "cuDevicePrimaryCtxRetain"(*mut sys::CUcontext, sys::CUdevice);
    context_release = "cuDevicePrimaryCtxRelease_v2"(sys::CUdevice);
    context_set_current = "cuCtxSetCurrent"(sys::CUcontext);
    module_load = "cuModuleLoadDataEx"(
        *mut sys::CUmodule, *const c_void, c_uint, *mut i32, *mut *mut c_void
    );
    module_unload = "cuModuleUnload"(sys::CUmodule);
    module_function = "cuModuleGetFunction"(*mut sys::CUfunction, sys::CUmodule, *const c_char);
    function_attribute = "cuFuncGetAttribute"(*mut i32, i32, sys::CUfunction);
    function_set_attribute = "cuFuncSetAttribute"(sys::CUfunction, i32, i32);
    launch = "cuLaunchKernel"(
        sys::CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, sys::CUstream,
        *mut *mut c_void, *mut *mut c_void
    );
    memory_info = "cuMemGetInfo_v2"(*mut usize, *mut usize);
    memory_alloc = "cuMemAlloc_v2"(*mut sys::CUdeviceptr, usize);
    memory_free = "cuMemFree_v2"(sys::CUdeviceptr);
    host_alloc = "cuMemAllocHost_v2"(*mut *mut c_void, usize);
    host_free = "cuMemFreeHost"(*mut c_void);
    set_bytes = "cuMemsetD8Async"(sys::CUdeviceptr, u8, usize, sys::CUstream);
    copy_to_device = "cuMemcpyHtoDAsync_v2"(
        sys::CUdeviceptr, *const c_void, usize, sys::CUstream
    );
    copy_to_host = "cuMemcpyDtoHAsync_v2"(*mut c_void, sys::CUdeviceptr, usize, sys::CUstream);
    copy_on_device = "cuMemcpyDtoDAsync_v2"(
        sys::CUdeviceptr, sys::CUdeviceptr, usize, sys::CUstream
    );
    stream_synchronize = "cuStreamSynchronize"(sys::CUstream);
    event_synchronize = "cuEventSynchronize"(sys::CUevent);
    capture_begin = "cuStreamBeginCapture_v2"(sys::CUstream, i32);
    capture_end = "cuStreamEndCapture"(sys::CUstream, *mut sys::CUgraph);
    graph_instantiate = "cuGraphInstantiateWithFlags"(
        *mut sys::CUgraphExec, sys::CUgraph, u64
    );
    graph_upload = "cuGraphUpload"(sys::CUgraphExec, sys::CUstream);
    graph_launch = "cuGraphLaunch"(sys::CUgraphExec, sys::CUstream);
    graph_nodes = "cuGraphGetNodes"(sys::CUgraph, *mut sys::CUgraphNode, *mut usize);
    graph_destroy = "cuGraphDestroy"(sys::CUgraph);
    graph_exec_destroy = "cuGraphExecDestroy"(sys::CUgraphExec);
    proc_address = "cuGetProcAddress_v2"(
        *const c_char, *mut *mut c_void, i32, u64, *mut i32
    );
}

/// `CUlaunchAttribute`: a kind and its value.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LaunchAttribute {
    /// `CUlaunchAttributeID`.
    pub id: i32,
    /// Unused.
    pub pad: [u8; 4],
    /// The value's bytes.
    pub value: [u64; 8],
}

impl LaunchAttribute {
    /// None.
    pub const NONE: LaunchAttribute = LaunchAttribute { id: 0, pad: [0; 4], value: [0; 8] };

    /// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`, allowed.
    pub const OVERLAP: LaunchAttribute =
        LaunchAttribute { id: 6, value: [1, 0, 0, 0, 0, 0, 0, 0], ..Self::NONE };

    /// `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`: three words.
    pub fn cluster([x, y, z]: [u32; 3]) -> LaunchAttribute {
        let first = u64::from(x) | u64::from(y) << 32;
        LaunchAttribute { id: 4, value: [first, z.into(), 0, 0, 0, 0, 0, 0], ..Self::NONE }
    }
}

/// `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    /// Blocks.
    pub grid: [c_uint; 3],
    /// Threads of a block.
    pub block: [c_uint; 3],
    /// Bytes of dynamic shared memory.
    pub shared_bytes: c_uint,
    /// The stream.
    pub stream: sys::CUstream,
    /// `n_attributes` attributes.
    pub attributes: *const LaunchAttribute,
    /// Number of attributes.
    pub n_attributes: c_uint,
}

/// `cuLaunchKernelEx`.
pub type LaunchEx = unsafe extern "C" fn(
    *const LaunchConfig,
    sys::CUfunction,
    *mut *mut c_void,
    *mut *mut c_void,
) -> i32;

/// `cuTensorMapEncodeTiled`: map, data type, rank, address, sizes, strides in bytes, box, element
/// strides, interleave, swizzle, L2 promotion, fill.
pub type EncodeTiled = unsafe extern "C" fn(
    *mut c_void,
    i32,
    c_uint,
    *mut c_void,
    *const u64,
    *const u64,
    *const c_uint,
    *const c_uint,
    i32,
    i32,
    i32,
    i32,
) -> i32;

/// The driver, loaded and started.
#[derive(Debug)]
pub struct Driver {
    /// The CUDA version that it supports, as `cuDriverGetVersion` counts.
    version: i32,
    /// GPUs.
    n_devices: u32,
    /// Its functions.
    pub api: Api,
    /// Launches with attributes: clusters and programmatic dependent launch.
    pub launch_ex: Option<LaunchEx>,
    /// Makes the descriptor of a tensor for the TMA.
    pub encode_tiled: Option<EncodeTiled>,
    /// Keeps the functions where they are.
    _library: Library,
}

impl Driver {
    /// The CUDA version that the driver supports, such as `12.4`.
    pub fn version(&self) -> String {
        version_text(self.version)
    }

    /// GPUs that the driver sees.
    pub fn n_devices(&self) -> u32 {
        self.n_devices
    }

    /// A code's name and meaning, such as `CUDA_ERROR_INVALID_VALUE, invalid argument`.
    pub fn explain(&self, code: i32) -> String {
        explain(&self.api, code)
    }

    fn start(library: Library) -> Result<Driver, DriverError> {
        let api = Api::find(&library)?;
        let mut version = 0;
        // SAFETY: writes the version; may be called before `cuInit`.
        let code = unsafe { (api.driver_version)(&mut version) };
        check(&api, code)?;
        if version < OLDEST {
            return Err(DriverError::TooOld { found: version, needed: OLDEST });
        }
        // SAFETY: the flags must be 0.
        check(&api, unsafe { (api.init)(0) })?;
        let mut n_devices = 0;
        // SAFETY: writes the count.
        check(&api, unsafe { (api.device_count)(&mut n_devices) })?;
        let n_devices = match u32::try_from(n_devices) {
            Ok(0) | Err(_) => return Err(DriverError::NoDevice),
            Ok(n) => n,
        };
        symbols::fill(&library);
        let launch_ex = newer(&api, c"cuLaunchKernelEx");
        let encode_tiled = newer(&api, c"cuTensorMapEncodeTiled");
        Ok(Driver {
            version,
            n_devices,
            api,
            // SAFETY: the driver's function of this name has this signature.
            launch_ex: launch_ex
                .map(|f| unsafe { std::mem::transmute::<*mut c_void, LaunchEx>(f) }),
            encode_tiled: encode_tiled
                // SAFETY: as above.
                .map(|f| unsafe { std::mem::transmute::<*mut c_void, EncodeTiled>(f) }),
            _library: library,
        })
    }
}

/// A function of the oldest driver's that this one may lack.
fn newer(api: &Api, name: &CStr) -> Option<*mut c_void> {
    let (mut function, mut status) = (std::ptr::null_mut(), 0);
    // SAFETY: `name` is a C string, the others are written.
    let code = unsafe { (api.proc_address)(name.as_ptr(), &mut function, OLDEST, 0, &mut status) };
    (code == SUCCESS && !function.is_null()).then_some(function)
}

fn check(api: &Api, code: i32) -> Result<(), DriverError> {
    match code {
        SUCCESS => Ok(()),
        NO_DEVICE => Err(DriverError::NoDevice),
        code => Err(DriverError::Start { code, name: explain(api, code) }),
    }
}

fn explain(api: &Api, code: i32) -> String {
    let text = |function: unsafe extern "C" fn(i32, *mut *const c_char) -> i32| {
        let mut text = std::ptr::null();
        // SAFETY: writes a pointer to a string that stays, or null.
        unsafe {
            function(code, &mut text);
            (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
        }
    };
    match (text(api.error_name), text(api.error_text)) {
        (Some(name), Some(meaning)) => format!("{name}, {meaning}"),
        (Some(name), None) => name,
        _ => format!("unknown error {code}"),
    }
}

static DRIVER: OnceLock<Result<Driver, DriverError>> = OnceLock::new();

/// The driver. The first call looks for it and starts it, later ones give the same.
///
/// # Errors
/// When there is no driver, it is too old, or it finds no GPU.
pub fn load() -> Result<&'static Driver, DriverError> {
    DRIVER
        .get_or_init(|| Driver::start(open(LIBRARIES.iter().map(Path::new))?))
        .as_ref()
        .map_err(Clone::clone)
}

/// The first library that can be opened; the first one's error otherwise, since it is the usual one.
fn open<'a>(paths: impl Iterator<Item = &'a Path>) -> Result<Library, DriverError> {
    let mut reason = None;
    for path in paths {
        // SAFETY: what the library does when it is loaded is the driver's own affair.
        match unsafe { Library::new(path) } {
            Ok(library) => return Ok(library),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                reason.get_or_insert(cause.unwrap_or_else(|| error.to_string()));
            }
        }
    }
    Err(DriverError::Missing { reason: reason.unwrap_or_default() })
}

#[cfg(test)]
pub(crate) mod tests;
