//! How the time grows: with the size of a file, with the number of backends, and not with the rest of site-packages.
#![allow(
    dead_code,
    unused_imports,
    clippy::unwrap_used,
    clippy::panic,
    clippy::needless_pass_by_value,
    clippy::print_stderr,
    reason = "a benchmark fails by panicking, and uses a part of what tests share"
)]

use divan::Bencher;
use divan::counter::{BytesCount, ItemsCount};
use lmpatch::lock::Lock;
use lmpatch::patch::backend::{Edit, Goal, State, Surveyed};
use lmpatch::patch::settings::SETTINGS;
use lmpatch::patch::{self, Applied, Outcome, sites};
use tempfile::TempDir;

#[path = "../it/support/mod.rs"]
mod support;

use support::home::{BackendDir, engine_since_2026, real_size_generate};

const BACKENDS: [usize; 4] = [1, 10, 100, 1000];
const SIZES: [u64; 2] = [4096, 8192];

fn main() {
    divan::main();
}

/// `mlx_lm/generate.py` as it is, and several of it in one.
#[divan::bench(args = [1, 10, 100])]
fn locate(bencher: Bencher<'_, '_>, times: usize) {
    let source = real_size_generate().repeat(times);
    let sites = sites::locate(&SETTINGS[1], source.as_bytes()).unwrap();
    assert_eq!(sites.len(), 5 * times);
    bencher
        .counter(BytesCount::of_str(&source))
        .bench(|| sites::locate(&SETTINGS[1], source.as_bytes()));
}

#[divan::bench(args = BACKENDS, max_time = 5)]
fn check(bencher: Bencher<'_, '_>, backends: usize) {
    let home = Home::new(backends);
    bencher
        .counter(ItemsCount::new(backends))
        .bench(|| home.check(backends));
}

#[divan::bench(args = BACKENDS, max_time = 5)]
fn plan(bencher: Bencher<'_, '_>, backends: usize) {
    let home = Home::new(backends);
    let (found, _) = patch::survey(home.root.path(), &[]).unwrap();
    bencher.counter(ItemsCount::new(backends)).bench(|| {
        let edits = |backend: &Surveyed| backend.edits(Goal::Size(4096)).unwrap();
        let changes = found.iter().flat_map(edits);
        assert_eq!(changes.filter(Edit::is_change).count(), 2 * backends);
    });
}

#[divan::bench(args = BACKENDS, sample_size = 1, max_time = 10)]
fn set(bencher: Bencher<'_, '_>, backends: usize) {
    let home = Home::new(backends);
    home.set(SIZES[0], backends);
    let mut sizes = SIZES.iter().rev().cycle();
    bencher
        .counter(ItemsCount::new(backends))
        .with_inputs(|| *sizes.next().unwrap())
        .bench_local_values(|size| home.set(size, backends));
}

/// What else is in `site-packages`: so many files of one other package, or so many other packages.
///
/// The files here are no known release, so the names in `site-packages` are listed for a `RECORD`, and nothing below.
const OTHERS: [Others; 4] = [
    Others::Files(10),
    Others::Files(10_000),
    Others::Packages(10),
    Others::Packages(10_000),
];

#[derive(Debug, Clone, Copy)]
enum Others {
    Files(usize),
    Packages(usize),
}

#[divan::bench(args = OTHERS, max_time = 5)]
fn check_beside(bencher: Bencher<'_, '_>, others: Others) {
    let home = Home::new(1);
    home.add(others);
    bencher.bench(|| home.check(1));
}

#[divan::bench(args = OTHERS, sample_size = 1, max_time = 5)]
fn set_beside(bencher: Bencher<'_, '_>, others: Others) {
    let home = Home::new(1);
    home.add(others);
    home.set(SIZES[0], 1);
    let mut sizes = SIZES.iter().rev().cycle();
    bencher
        .with_inputs(|| *sizes.next().unwrap())
        .bench_local_values(|size| home.set(size, 1));
}

/// An LM Studio home on the disk that the build is on: a sync on tmpfs would cost nothing.
struct Home {
    root: TempDir,
}

impl Home {
    fn new(backends: usize) -> Self {
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (engine, generate) = (engine_since_2026("2048"), real_size_generate());
        for number in 0..backends {
            BackendDir::new(root.path(), &backend_name(number))
                .with_engine(&engine)
                .with_generate(&generate)
                .with_record(&generate)
                .with_bytecode("mlx_lm", "generate");
        }
        Self { root }
    }

    fn add(&self, others: Others) {
        let backend = BackendDir::new(self.root.path(), &backend_name(0));
        let (count, start, end) = match others {
            Others::Files(count) => (count, "other/part_", ".py"),
            Others::Packages(count) => (count, "other_", "/__init__.py"),
        };
        (0..count).fold(backend, |it, n| {
            it.write(&format!("{start}{n}{end}"), "x = 1\n")
        });
    }

    fn check(&self, backends: usize) {
        let (found, _) = patch::survey(self.root.path(), &[]).unwrap();
        let understood =
            |backend: &&Surveyed| matches!(backend.state(), State::Stock | State::Patched);
        assert_eq!(found.iter().filter(understood).count(), backends);
    }

    fn set(&self, size: u64, backends: usize) {
        let lock = Lock::try_take(self.root.path()).unwrap().unwrap();
        let (found, _) = patch::survey(self.root.path(), &[]).unwrap();
        let applied = patch::apply(&lock, &found, Goal::Size(size));
        let is_set = |done: &&Applied| {
            let chunk = done.after.chunk_and_stock().map(|(chunk, _)| chunk);
            done.outcome == Outcome::Changed && chunk == Some(size)
        };
        assert_eq!(applied.iter().filter(is_set).count(), backends);
    }
}

fn backend_name(number: usize) -> String {
    format!("app-mlx-generate-mac14-arm64@{number}")
}
