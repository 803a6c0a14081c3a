//! Memory that one training step leaves for the next: the large arrays of a network have the same
//! sizes at every step, and clearing fresh pages for them costs a tenth of it.

use std::sync::Mutex;

/// What is not in use, and how much is and was, in elements.
pub struct Pool<T> {
    free: Vec<Vec<T>>,
    used: usize,
    most: usize,
}

impl<T> Pool<T> {
    pub(super) const fn new() -> Mutex<Self> {
        Mutex::new(Self { free: Vec::new(), used: 0, most: 0 })
    }

    /// A free array of this length, if there is one; counts as in use either way.
    pub(super) fn take(&mut self, len: usize) -> Option<Vec<T>> {
        self.used += len;
        self.most = self.most.max(self.used);
        let found = self.free.iter().position(|free| free.len() == len);
        let found = found.map(|i| self.free.swap_remove(i));
        // Together never more than was in use at once.
        let room = self.most - self.used;
        let mut kept = self.free.iter().map(Vec::len).sum::<usize>();
        while kept > room {
            kept -= self.free.remove(0).len();
        }
        found
    }

    /// Takes an array back.
    pub(super) fn put(&mut self, array: Vec<T>) {
        self.used -= array.len();
        if !array.is_empty() {
            self.free.push(array);
        }
    }

    /// An array of this length does not come back.
    pub(super) fn forget(&mut self, len: usize) {
        self.used -= len;
    }
}
