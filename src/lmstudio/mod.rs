//! What LM Studio is: its files, its processes, its `lms` and its server; knows nothing of patching.

pub mod api;
pub mod backends;
pub mod home;
pub mod lms;
pub mod runtimes;
pub mod workers;
