//! Setting and reverting: the right bytes, nothing else, all or nothing.
mod receipt;
mod refusal;
mod revert;
mod set;

const OTHER: &str = "app-mlx-generate-mac14-arm64@33";
