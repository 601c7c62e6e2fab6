//! Work on independent things several at a time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;

/// So few are done before a thread for them would have started to pay.
const FEW: usize = 4;

/// What the work is mostly for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Load {
    /// Reading files that were read before: as many workers as pay for their start.
    Processor,
    /// Waiting for a disk, which takes many requests as one.
    Disk,
}

impl Load {
    /// How many threads work beside this one.
    fn helpers(self, items: usize) -> usize {
        match self {
            _ if items <= FEW => 0,
            Self::Processor => (items / FEW).min(8) - 1,
            Self::Disk => items.min(16) - 1,
        }
    }
}

/// What `work` makes of each item, in the order of the items.
pub fn map<T: Send, R: Send>(load: Load, items: Vec<T>, work: impl Fn(T) -> R + Sync) -> Vec<R> {
    let helpers = load.helpers(items.len());
    let queue = Mutex::new(items.into_iter().enumerate());
    let results = Mutex::new(Vec::new());
    let drain = || {
        while let Some((index, item)) = next(&queue) {
            let result = work(item);
            lock(&results).push((index, result));
        }
    };
    thread::scope(|scope| {
        for _ in 0..helpers {
            // A system that has no thread to spare leaves the work to those that there are, at least to this one.
            let _ = thread::Builder::new().spawn_scoped(scope, drain);
        }
        drain();
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The next one, with the queue free again for the others.
fn next<T>(queue: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    lock(queue).next()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::{Load, map};

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<u64> = (0..500).rev().collect();
        let doubled: Vec<u64> = items.iter().map(|item| item * 2).collect();
        for load in [Load::Processor, Load::Disk] {
            assert_eq!(map(load, items.clone(), |item| item * 2), doubled);
            assert!(map(load, Vec::<u64>::new(), |item| item).is_empty());
        }
    }
}
