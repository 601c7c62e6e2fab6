//! What LM Studio is, on disk, over HTTP and as processes; knows nothing of patching.

pub mod backends;
pub mod home;
pub mod lms;
pub mod runtimes;
pub mod workers;
