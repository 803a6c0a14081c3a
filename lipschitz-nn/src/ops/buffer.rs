//! Memory that one step leaves for the next: the large arrays of a network have the same sizes at
//! every step, and clearing fresh pages for them costs a tenth of it.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use super::real::Real;

/// An array that goes back to its pool. Starts with whatever is there: whoever takes one writes
/// every element.
pub(super) struct Buffer<T: Real>(Vec<T>);

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
}

impl<T: Real> Buffer<T> {
    pub(super) fn take(len: usize) -> Self {
        let mut pool = T::pool().lock().unwrap_or_else(PoisonError::into_inner);
        pool.used += len;
        pool.most = pool.most.max(pool.used);
        let found = pool.free.iter().position(|free| free.len() == len);
        let found = found.map(|i| pool.free.swap_remove(i));
        // Together never more than was in use at once.
        let (room, mut kept) =
            (pool.most - pool.used, pool.free.iter().map(Vec::len).sum::<usize>());
        while kept > room {
            kept -= pool.free.remove(0).len();
        }
        drop(pool);
        Self(found.unwrap_or_else(|| vec![T::of(0.0); len]))
    }
}

impl<T: Real> Buffer<T> {
    /// The array, which does not go back.
    pub(super) fn into_vec(mut self) -> Vec<T> {
        let data = std::mem::take(&mut self.0);
        T::pool().lock().unwrap_or_else(PoisonError::into_inner).used -= data.len();
        data
    }
}

impl<T: Real> Drop for Buffer<T> {
    fn drop(&mut self) {
        let mut pool = T::pool().lock().unwrap_or_else(PoisonError::into_inner);
        pool.used -= self.0.len();
        if !self.0.is_empty() {
            pool.free.push(std::mem::take(&mut self.0));
        }
    }
}

impl<T: Real> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<T: Real> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}
