//! Any bytes as a RECORD: no panic, nothing made up, and bad rows hide no good one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lmpatch::patch::original::parse_record;

const PATH: &str = "mlx_lm/generate.py";
const ROW: &[u8] = b"\nmlx_lm/generate.py,sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU,0\n";

fuzz_target!(|bytes: &[u8]| {
    let found = parse_record(bytes, PATH);
    assert!(found.is_empty() || bytes.windows(PATH.len()).any(|window| window == PATH.as_bytes()));
    let planted = [ROW, bytes, ROW].concat();
    let [first, others @ .., last] = &parse_record(&planted, PATH)[..] else { panic!("a good row was lost") };
    assert_eq!((first, first.1.size), (last, 0));
    assert_eq!(others, found);
});
