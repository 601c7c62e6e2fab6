//! Setting and reverting: the right bytes, nothing else, all or nothing.
mod receipt;
mod refusal;
mod revert;
mod set;

const OTHER: &str = "app-mlx-generate-mac14-arm64@33";
/// What is beside an edited engine here: no table and no `RECORD` knows these engines; `generate.py` is proven by
/// `RECORD`.
const RECEIPT: &str = "mlx_engine/cache_wrapper.py.lmpatch";
