//! Planted faults: each check of the emulator finds the mistake that it is for, names the kernel,
//! block, thread and line, ends the launch, and leaves the OS thread fit for the next one.

#[path = "emulator/copies.rs"]
mod copies;
#[path = "emulator/launches.rs"]
mod launches;
#[path = "emulator/memory.rs"]
mod memory;
#[path = "emulator/overlap.rs"]
mod overlap;
#[path = "emulator/phases.rs"]
mod phases;
#[path = "emulator/planted.rs"]
mod planted;
#[path = "emulator/races.rs"]
mod races;
#[path = "emulator/stage.rs"]
mod stage;
#[path = "emulator/together.rs"]
mod together;
#[path = "emulator/waiting.rs"]
mod waiting;
