//! The order of the data: a pure function of seed and position, never of earlier draws.

use lipschitz_nn::random::{below, keyed};

/// The order of `n` items in one epoch: a Fisher–Yates shuffle drawn from `(seed, epoch)`.
pub fn permutation(seed: u64, epoch: u64, n: usize) -> Vec<usize> {
    let mut rng = keyed(seed, "epoch", epoch);
    let mut order: Vec<usize> = (0..n).collect();
    for last in (1..n).rev() {
        order.swap(last, below(&mut rng, last + 1));
    }
    order
}

/// Shuffled epochs put one behind the other and cut into batches: every item comes once per epoch,
/// no remainder is dropped, and a batch may end one epoch and begin the next. Keeps the epoch last
/// used, only for speed.
#[derive(Clone, Debug)]
pub struct Shuffle {
    seed: u64,
    items: usize,
    epoch: Option<(u64, Vec<usize>)>,
}

impl Shuffle {
    /// The order of `items` items under a seed.
    pub fn new(seed: u64, items: usize) -> Self {
        Self { seed, items, epoch: None }
    }

    /// The items of the batch of `step` (from 0): a function of seed, step and size alone. Empty if
    /// there are no items.
    pub fn batch(&mut self, step: u64, batch_size: usize) -> Vec<usize> {
        if self.items == 0 {
            return Vec::new();
        }
        let (items, first) = (self.items as u128, u128::from(step) * batch_size as u128);
        let at = |k: u128| ((k / items) as u64, (k % items) as usize);
        (first..first + batch_size as u128)
            .map(at)
            .map(|(epoch, place)| self.order(epoch)[place])
            .collect()
    }

    fn order(&mut self, epoch: u64) -> &[usize] {
        let kept = self.epoch.take().filter(|(of, _)| *of == epoch);
        let order =
            kept.map_or_else(|| permutation(self.seed, epoch, self.items), |(_, order)| order);
        &self.epoch.insert((epoch, order)).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permutation_holds_everything_once_and_every_order_comes() {
        let mut seen = std::collections::BTreeMap::new();
        for epoch in 0..6000 {
            *seen.entry(permutation(5, epoch, 3)).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 6);
        assert!(seen.values().all(|c| (880..1120).contains(c)), "{seen:?}");
        assert!(permutation(5, 0, 0).is_empty());
    }

    #[test]
    fn batches_are_epochs_cut_up_and_can_be_asked_for_in_any_order() {
        let forwards: Vec<_> = (0..9).map(|step| Shuffle::new(4, 10).batch(step, 4)).collect();
        let mut one = Shuffle::new(4, 10);
        let backwards: Vec<_> = (0..9).rev().map(|step| one.batch(step, 4)).collect();
        assert!(forwards.iter().eq(backwards.iter().rev()));
        let drawn = forwards.concat();
        for (epoch, order) in drawn.chunks_exact(10).enumerate() {
            assert_eq!(order, permutation(4, epoch as u64, 10));
        }
        assert!(Shuffle::new(4, 0).batch(3, 2).is_empty());
        assert_eq!(one.batch(0, 25).len(), 25, "a batch larger than the data set");
    }
}
