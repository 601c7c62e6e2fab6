//! Any bytes: noise, and noise made of what the reader reacts to.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

pub fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    let noise = vec(any::<u8>(), 0..300);
    let word = select([SHORT, LONG].concat());
    let words = vec(word, 0..60).prop_map(|words| words.concat().into_bytes());
    let both =
        (words.clone(), noise.clone(), words.clone()).prop_map(|(a, b, c)| [a, b, c].concat());
    prop_oneof![noise, words, both]
}

const SHORT: &[&str] = &[
    "\"", "'", "\"\"\"", "'''", "\\", "\n", "\r", "\r\n", " ", "    ", "\t", "\x0c", "#", "(", ")",
    "[", "]", "{", "}", ":", ";", ",", "=", "==", ":=", "+=", "->", "*", "**", "/", ".", "...",
    "@", "def ", "class ", "lambda ", "async ", "if x: ", "else: ", "f(", ": int = ", "2048",
    "512", "2_048", "0x800", "0", "1.5", "None", "rb'", "f\"", "\u{feff}", "é", "\0", "2048):\n",
];

const LONG: &[&str] = &[
    "prefill_step_size",
    "chunk_size",
    "PROMPT_PROCESSING_CHUNK_SIZE",
    "CacheWrapper",
    "def f(prefill_step_size=",
    "class CacheWrapper:\n    def f(self, chunk_size=",
    "PROMPT_PROCESSING_CHUNK_SIZE = 512\n",
    "speculative_generate_step",
];
