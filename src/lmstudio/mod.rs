//! What LM Studio is: its files, its processes and its `lms`; knows nothing of patching.

pub mod backends;
pub mod home;
pub mod lms;
pub mod runtimes;
pub mod workers;
