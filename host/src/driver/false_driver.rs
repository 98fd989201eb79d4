//! A CUDA driver without a card, for the tests of the loader and of the device layer, which compile
//! it as a library of its own. Device memory is host memory. Work is put off as long as it may be,
//! so that whoever touches memory too early gets caught. The environment of its compilation decides
//! how it behaves.

#![allow(non_snake_case, clippy::missing_safety_doc)]

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::{Mutex, MutexGuard};

const fn setting(text: Option<&str>, default: i32) -> i32 {
    match text {
        Some(text) => match i32::from_str_radix(text, 10) {
            Ok(number) => number,
            Err(_) => panic!("a setting is no number"),
        },
        None => default,
    }
}
const VERSION: i32 = setting(option_env!("FALSE_VERSION"), 12_040);
const INIT: i32 = setting(option_env!("FALSE_INIT"), 0);
const N_DEVICES: i32 = setting(option_env!("FALSE_DEVICES"), 1);
const CAPABILITY: i32 = setting(option_env!("FALSE_CAPABILITY"), 90);
/// What retaining the context returns.
const RETAIN: i32 = setting(option_env!("FALSE_RETAIN"), 0);
/// Bytes of shared memory that a block may have.
const SHARED: i32 = setting(option_env!("FALSE_SHARED"), 232_448);
/// A kernel that does not compile.
const REFUSED: Option<&str> = option_env!("FALSE_REFUSED");

const MEMORY: usize = 1 << 30;
/// A launch of so many blocks faults.
const FAULTY_GRID: u32 = 666;

#[derive(Clone)]
enum Work {
    Copy {
        to: usize,
        from: usize,
        bytes: usize,
    },
    Fill {
        to: usize,
        bytes: usize,
        value: u8,
    },
    /// Writes grid, block, shared bytes and `n` as f32 to `to`.
    Kernel {
        to: usize,
        numbers: [u32; 6],
    },
    Graph(usize),
    Fault,
}

#[derive(Default)]
struct State {
    work: Vec<Work>,
    done: usize,
    recording: Option<Vec<Work>>,
    graphs: Vec<Vec<Work>>,
    /// Positions in `work`.
    events: Vec<usize>,
    /// Names and numbers of parameters.
    kernels: Vec<(String, usize)>,
    allocated: HashMap<u64, (Vec<u8>, usize)>,
    contexts: i32,
    fault: i32,
}

static STATE: Mutex<Option<State>> = Mutex::new(None);

struct Locked(MutexGuard<'static, Option<State>>);

fn state() -> Locked {
    let mut state = STATE.lock().unwrap();
    state.get_or_insert_with(State::default);
    Locked(state)
}

impl Locked {
    fn get(&mut self) -> &mut State {
        self.0.as_mut().unwrap()
    }
}

impl State {
    fn add(&mut self, work: Work) -> i32 {
        match &mut self.recording {
            Some(recorded) => recorded.push(work),
            None => self.work.push(work),
        }
        self.fault
    }

    fn run_to(&mut self, end: usize) -> i32 {
        while self.done < end {
            let work = self.work[self.done].clone();
            self.run(work);
            self.done += 1;
        }
        self.fault
    }

    fn run(&mut self, work: Work) {
        if self.fault != 0 {
            return;
        }
        unsafe {
            match work {
                Work::Copy { to, from, bytes } => {
                    (from as *const u8).copy_to(to as *mut u8, bytes);
                }
                Work::Fill { to, bytes, value } => (to as *mut u8).write_bytes(value, bytes),
                Work::Kernel { to, numbers } => {
                    (to as *mut [f32; 6]).write_unaligned(numbers.map(|n| n as f32));
                }
                Work::Graph(graph) => {
                    for work in self.graphs[graph].clone() {
                        self.run(work);
                    }
                }
                Work::Fault => self.fault = 700,
            }
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn cuInit(_flags: u32) -> i32 {
    *STATE.lock().unwrap() = None;
    INIT
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDriverGetVersion(version: *mut i32) -> i32 {
    unsafe { *version = VERSION };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorName(code: i32, name: *mut *const c_char) -> i32 {
    let text = match code {
        2 => c"CUDA_ERROR_OUT_OF_MEMORY".as_ptr(),
        46 => c"CUDA_ERROR_DEVICE_UNAVAILABLE".as_ptr(),
        218 => c"CUDA_ERROR_INVALID_PTX".as_ptr(),
        700 => c"CUDA_ERROR_ILLEGAL_ADDRESS".as_ptr(),
        _ => std::ptr::null(),
    };
    unsafe { *name = text };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGetErrorString(_code: i32, text: *mut *const c_char) -> i32 {
    unsafe { *text = std::ptr::null() };
    1
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetCount(n: *mut i32) -> i32 {
    unsafe { *n = N_DEVICES };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGet(device: *mut i32, ordinal: i32) -> i32 {
    unsafe { *device = ordinal };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, _bytes: i32, _device: i32) -> i32 {
    unsafe { c"False Card".as_ptr().copy_to(name, 11) };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: i32) -> i32 {
    unsafe { *bytes = MEMORY };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDeviceGetAttribute(value: *mut i32, attribute: i32, _device: i32) -> i32 {
    let known = match attribute {
        13 => 1_980_000,
        16 => 132,
        36 => 2_619_000,
        37 => 5120,
        38 => 52_428_800,
        75 => CAPABILITY / 10,
        76 => CAPABILITY % 10,
        81 => 233_472,
        97 => SHARED,
        _ => return 1,
    };
    unsafe { *value = known };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut usize, _device: i32) -> i32 {
    unsafe { *context = 0xC0 };
    state().get().contexts += 1;
    RETAIN
}
#[unsafe(no_mangle)]
extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: i32) -> i32 {
    let mut state = state();
    state.get().contexts -= 1;
    if state.get().contexts == 0 && !state.get().allocated.is_empty() {
        std::process::abort(); // whatever is still there was leaked
    }
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuCtxSetCurrent(context: usize) -> i32 {
    if context == 0xC0 { 0 } else { 201 }
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamCreateWithPriority(stream: *mut usize, _flags: u32, _at: i32) -> i32 {
    unsafe { *stream = 0x57 };
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(_stream: usize) -> i32 {
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: usize) -> i32 {
    let mut state = state();
    let state = state.get();
    if stream != 0x57 {
        return 400;
    }
    if state.recording.is_some() {
        return 900;
    }
    state.run_to(state.work.len())
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventCreate(event: *mut usize, _flags: u32) -> i32 {
    let mut state = state();
    state.get().events.push(0);
    unsafe { *event = state.get().events.len() };
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(_event: usize) -> i32 {
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: usize, _stream: usize) -> i32 {
    let mut state = state();
    let state = state.get();
    state.events[event - 1] = state.work.len();
    state.fault
}
#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: usize) -> i32 {
    let mut state = state();
    let end = state.get().events[event - 1];
    state.get().run_to(end)
}
/// A quarter of a millisecond for each piece of work.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuEventElapsedTime(ms: *mut f32, from: usize, to: usize) -> i32 {
    let mut state = state();
    let events = &state.get().events;
    unsafe { *ms = (events[to - 1] - events[from - 1]) as f32 / 4.0 };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> i32 {
    let used: usize = state().get().allocated.values().map(|(_, bytes)| bytes).sum();
    unsafe { (*free, *total) = (MEMORY - used, MEMORY) };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, bytes: usize) -> i32 {
    let mut state = state();
    let used: usize = state.get().allocated.values().map(|(_, bytes)| bytes).sum();
    if used + bytes > MEMORY {
        return 2;
    }
    let memory = vec![0xA5; bytes];
    unsafe { *address = memory.as_ptr() as u64 };
    state.get().allocated.insert(memory.as_ptr() as u64, (memory, bytes));
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuMemFree_v2(address: u64) -> i32 {
    let mut state = state();
    let state = state.get();
    state.run_to(state.work.len());
    if state.allocated.remove(&address).is_some() { 0 } else { 1 }
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuMemAllocHost_v2(address: *mut u64, bytes: usize) -> i32 {
    let memory = vec![0x5A; bytes];
    unsafe { *address = memory.as_ptr() as u64 };
    state().get().allocated.insert(memory.as_ptr() as u64, (memory, 0));
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuMemFreeHost(address: u64) -> i32 {
    if state().get().allocated.remove(&address).is_some() { 0 } else { 1 }
}
#[unsafe(no_mangle)]
extern "C" fn cuMemsetD8Async(to: usize, value: u8, bytes: usize, _stream: usize) -> i32 {
    state().get().add(Work::Fill { to, bytes, value })
}
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyHtoDAsync_v2(to: usize, from: usize, bytes: usize, _stream: usize) -> i32 {
    state().get().add(Work::Copy { to, from, bytes })
}
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoHAsync_v2(to: usize, from: usize, bytes: usize, _stream: usize) -> i32 {
    state().get().add(Work::Copy { to, from, bytes })
}
#[unsafe(no_mangle)]
extern "C" fn cuMemcpyDtoDAsync_v2(to: usize, from: usize, bytes: usize, _stream: usize) -> i32 {
    state().get().add(Work::Copy { to, from, bytes })
}
/// The log's buffer comes first among the options, its size second.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut usize,
    ptx: *const c_char,
    n_options: u32,
    options: *const i32,
    values: *const *mut c_void,
) -> i32 {
    let text = unsafe { CStr::from_ptr(ptx) }.to_str().unwrap();
    let name = text.split(".entry ").nth(1).and_then(|t| t.split('(').next()).unwrap_or("");
    let mut state = state();
    if REFUSED == Some(name) {
        let options = unsafe { std::slice::from_raw_parts(options, n_options as usize) };
        assert_eq!(options, [5, 6]);
        let log = b"ptxas fatal : planted\n\0";
        unsafe {
            assert!(*values.add(1) as usize >= log.len());
            log.as_ptr().copy_to((*values).cast(), log.len());
        }
        return 218;
    }
    let head = text.split(".entry ").nth(1).and_then(|t| t.split(')').next()).unwrap_or("");
    let n_params = head.matches(".param").count();
    state.get().kernels.push((name.to_string(), n_params));
    unsafe { *module = state.get().kernels.len() };
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuModuleUnload(_module: usize) -> i32 {
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuModuleGetFunction(
    function: *mut usize,
    module: usize,
    name: *const c_char,
) -> i32 {
    let name = unsafe { CStr::from_ptr(name) }.to_str().unwrap();
    if state().get().kernels[module - 1].0 != name {
        return 500;
    }
    unsafe { *function = module };
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuFuncSetAttribute(_function: usize, attribute: i32, value: i32) -> i32 {
    let is_right = match attribute {
        8 => value <= SHARED,
        9 => (0..=100).contains(&value),
        _ => false,
    };
    if is_right { 0 } else { 1 }
}
/// Takes the first and the last parameter: where to write, and `n`. The null function has two.
#[unsafe(no_mangle)]
unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: u32,
    grid_y: u32,
    grid_z: u32,
    block_x: u32,
    block_y: u32,
    block_z: u32,
    shared: u32,
    stream: usize,
    params: *const *const c_void,
    extra: usize,
) -> i32 {
    let mut state = state();
    if (block_y, block_z, stream, extra) != (1, 1, 0x57, 0) || function > state.get().kernels.len()
    {
        return 1;
    }
    if grid_x == FAULTY_GRID {
        return state.get().add(Work::Fault);
    }
    let n_params = function.checked_sub(1).map_or(2, |at| state.get().kernels[at].1);
    let (to, n) = unsafe {
        let last = *params.add(n_params - 1);
        ((*params).cast::<usize>().read_unaligned(), last.cast::<u32>().read_unaligned())
    };
    let numbers = [grid_x, grid_y, grid_z, block_x, shared, n];
    state.get().add(Work::Kernel { to, numbers })
}
#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(_stream: usize, _mode: i32) -> i32 {
    state().get().recording = Some(Vec::new());
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuStreamEndCapture(_stream: usize, graph: *mut usize) -> i32 {
    let mut state = state();
    let state = state.get();
    let Some(recorded) = state.recording.take() else { return 901 };
    state.graphs.push(recorded);
    unsafe { *graph = state.graphs.len() };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphGetNodes(graph: usize, nodes: usize, n_nodes: *mut usize) -> i32 {
    assert_eq!(nodes, 0);
    unsafe { *n_nodes = state().get().graphs[graph - 1].len() };
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn cuGraphInstantiateWithFlags(exec: *mut usize, graph: usize, _: u64) -> i32 {
    unsafe { *exec = graph };
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuGraphUpload(_exec: usize, _stream: usize) -> i32 {
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(exec: usize, _stream: usize) -> i32 {
    state().get().add(Work::Graph(exec - 1))
}
#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(_graph: usize) -> i32 {
    0
}
#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(_exec: usize) -> i32 {
    0
}
