//! Everything that lmpatch does, mostly through its binary as a user would meet it.
#![allow(dead_code, reason = "support has more than is used on every machine")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a test fails by panicking"
)]
#![allow(
    clippy::too_many_lines,
    clippy::needless_pass_by_value,
    clippy::cloned_ref_to_slice_refs,
    clippy::format_collect,
    clippy::type_complexity,
    reason = "a test is a story, and its helpers are called with literals"
)]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "says how much was tested, and what was skipped"
)]

mod support;

mod advice;
mod against_cpython;
mod against_faults;
mod against_mlx;
mod agent;
mod bench;
mod check;
mod cli;
mod contention;
mod disk;
mod effect;
mod find;
mod hostile_access;
mod hostile_files;
mod hostile_names;
mod hostile_originals;
mod originals;
mod patch;
mod properties;
mod race;
mod readme;
mod reload;
mod report;
mod shell;
mod sites;
mod wheels;
