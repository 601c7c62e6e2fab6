//! What LM Studio is, on disk, over HTTP and as processes; knows nothing of patching.

pub mod backends;
pub mod chat;
pub mod home;
pub mod process;
pub mod runtimes;
pub mod server;
pub mod sse;
