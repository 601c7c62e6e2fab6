//! What `lmpatch bench` takes.

use std::path::PathBuf;

use clap::{Args, value_parser};

use crate::patch::settings::parse_size;

pub const HELP: &str = "\
Examples:
  lmpatch bench                          the loaded MLX model, as it is now
  lmpatch bench --sizes 512,2048,4096    set, load, measure each in turn; then
                                         restore what was there
  lmpatch bench --direct --model PATH --sizes 512,4096    without LM Studio

The verdict is the smallest size within the noise of the fastest (2 % or more).
A server that asks for an API token gets the one in $LM_API_TOKEN.";

#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// The model's key or identifier [default: the one MLX model that is loaded]; with --direct its directory
    #[arg(long, value_name = "MODEL", required_if_eq("direct", "true"))]
    pub model: Option<String>,

    /// Chunk sizes to compare, e.g. 512,1024,2048,4096,8192
    #[arg(long, value_name = "SIZES", value_delimiter = ',', value_parser = parse_size)]
    pub sizes: Vec<u64>,

    /// Use the backend's own Python and mlx-lm; LM Studio is not needed
    #[arg(long, requires = "sizes", conflicts_with_all = ["reload", "url"])]
    pub direct: bool,

    /// The Python of --direct instead of the backend's own
    #[arg(long, value_name = "PATH", requires = "direct")]
    pub python: Option<PathBuf>,

    /// Tokens per prompt [default: twice the largest of --sizes, or 4 times the current size; at least 8192]
    #[arg(long, value_name = "TOKENS", value_parser = value_parser!(u64).range(1..=10_000_000))]
    pub prompt_tokens: Option<u64>,

    /// A text to make the prompts of, instead of a generated one
    #[arg(long, value_name = "FILE")]
    pub prompt_file: Option<PathBuf>,

    /// Maximum runs per size
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = value_parser!(u32).range(1..=1000))]
    pub runs: u32,

    /// Stop after this long, with what is known by then
    #[arg(long, value_name = "MINUTES")]
    pub budget: Option<f64>,

    /// Where the server is [default: this machine, at the port in LM Studio's settings]
    #[arg(long, value_name = "http://HOST:PORT")]
    pub url: Option<String>,

    /// Run this command after each change instead of loading the model again through `lms`
    #[arg(long, value_name = "CMD", requires = "sizes")]
    pub reload: Option<String>,

    /// Give up on an engine that is silent this long
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,

    /// At the end, set the verdict's size instead of restoring the old one
    #[arg(long, requires = "sizes")]
    pub apply_best: bool,

    /// Also write FILE, as .json, .csv, .md or .svg; repeatable
    #[arg(long, value_name = "FILE")]
    pub output: Vec<PathBuf>,
}
