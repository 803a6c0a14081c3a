//! Arrays that go back to a pool when they are dropped.

use std::ops::{Deref, DerefMut};
use std::sync::{MutexGuard, PoisonError};

use super::pool::Pool;
use super::real::Real;

/// An array that goes back to its pool. It starts with arbitrary numbers: the caller writes every
/// element.
pub(crate) struct Buffer<T: Real>(Vec<T>);

fn pool<T: Real>() -> MutexGuard<'static, Pool<T>> {
    T::pool().lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Real> Buffer<T> {
    pub(crate) fn take(len: usize) -> Self {
        // The lock is gone before a new array is cleared.
        let found = pool::<T>().take(len);
        Self(found.unwrap_or_else(|| vec![T::of(0.0); len]))
    }

    /// The array, which does not go back.
    pub(crate) fn into_vec(mut self) -> Vec<T> {
        let data = std::mem::take(&mut self.0);
        pool::<T>().forget(data.len());
        data
    }
}

impl<T: Real> Drop for Buffer<T> {
    fn drop(&mut self) {
        pool().put(std::mem::take(&mut self.0));
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
