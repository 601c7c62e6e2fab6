//! What LM Studio is, on disk and over HTTP; knows nothing of patching.

pub mod backends;
pub mod home;
pub mod runtimes;
pub mod server;
