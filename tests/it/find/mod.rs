//! Which home, which backends, which runtimes.
mod backends;
mod home;
mod links;
