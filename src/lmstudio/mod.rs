//! What LM Studio is on disk; knows nothing of patching.

pub mod backends;
pub mod home;
pub mod runtimes;
