//! A tensor of the file as a view of another: which of its elements stands where.
//!
//! Reshapes, transpositions, slices and expansions only move elements. A view says where each index
//! leads, so that what an exporter wrote in many steps is compared with what is wanted in one.

/// Where the elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    /// In what a node of the network makes.
    Node(usize),
    /// In a tensor of the file.
    Weight(usize),
}

/// A part of an index: so many steps, so many elements apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub size: usize,
    pub stride: usize,
}

/// An axis: its parts, the slowest first; none for an axis of size 1.
pub(super) type Axis = Vec<Step>;

/// Element (i, j, …) of the view is element `offset + Σ` of the base, the sum over the steps of the
/// axes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub base: Base,
    pub offset: usize,
    pub axes: Vec<Axis>,
}

/// Without steps of size 1, and with neighbours that are one step as one.
fn tidy(axis: Axis) -> Axis {
    let mut out: Axis = Vec::new();
    for step in axis.into_iter().filter(|step| step.size != 1) {
        match out.last_mut() {
            Some(last) if Some(last.stride) == step.stride.checked_mul(step.size) => {
                *last = Step { size: last.size.saturating_mul(step.size), stride: step.stride };
            }
            _ => out.push(step),
        }
    }
    out
}

pub(super) fn size(axis: &[Step]) -> usize {
    axis.iter().fold(1, |n, step| n.saturating_mul(step.size))
}

pub(super) fn product(shape: &[usize]) -> usize {
    shape.iter().fold(1, |n, d| n.saturating_mul(*d))
}

impl View {
    /// All of a tensor of this shape.
    pub(super) fn whole(base: Base, shape: &[usize]) -> Self {
        let mut stride = 1usize;
        let mut axes = Vec::new();
        for size in shape.iter().rev() {
            axes.push(tidy(vec![Step { size: *size, stride }]));
            stride = stride.saturating_mul(*size);
        }
        axes.reverse();
        Self { base, offset: 0, axes }
    }

    pub(super) fn shape(&self) -> Vec<usize> {
        self.axes.iter().map(|axis| size(axis)).collect()
    }

    pub(super) fn count(&self) -> usize {
        product(&self.shape())
    }

    /// The same view of another tensor of the same shape.
    pub(super) fn of(&self, node: usize) -> Self {
        Self { base: Base::Node(node), ..self.clone() }
    }

    fn with(&self, axes: Vec<Axis>) -> Self {
        Self { axes, ..self.clone() }
    }

    pub(super) fn transpose(&self, order: &[usize]) -> Option<Self> {
        let mut seen = vec![false; self.axes.len()];
        order.iter().for_each(|i| seen.iter_mut().skip(*i).take(1).for_each(|s| *s = true));
        if order.len() != self.axes.len() || seen.contains(&false) {
            return None;
        }
        Some(self.with(order.iter().filter_map(|i| self.axes.get(*i).cloned()).collect()))
    }

    /// The same elements in the same order.
    pub(super) fn reshape(&self, shape: &[usize]) -> Option<Self> {
        if product(shape) != self.count() || shape.contains(&0) {
            return None;
        }
        let mut left = tidy(self.axes.concat());
        left.reverse();
        let mut axes = Vec::new();
        for wanted in shape {
            let (mut axis, mut wanted) = (Vec::new(), *wanted);
            while wanted > 1 {
                let step = left.pop()?;
                if wanted.is_multiple_of(step.size) {
                    wanted /= step.size;
                    axis.push(step);
                } else if step.size.is_multiple_of(wanted) {
                    let inner = step.size / wanted;
                    axis.push(Step { size: wanted, stride: step.stride.checked_mul(inner)? });
                    left.push(Step { size: inner, stride: step.stride });
                    wanted = 1;
                } else {
                    return None;
                }
            }
            axes.push(tidy(axis));
        }
        Some(self.with(axes))
    }

    /// `count` places of an axis from `from` on.
    pub(super) fn slice(&self, axis: usize, from: usize, count: usize) -> Option<Self> {
        let steps = self.axes.get(axis)?;
        if count == 0 || from.checked_add(count)? > size(steps) {
            return None;
        }
        let (kept, offset) = cut(steps, from, count)?;
        let mut view = self.clone();
        view.offset = view.offset.checked_add(offset)?;
        *view.axes.get_mut(axis)? = tidy(kept);
        Some(view)
    }

    /// One place of an axis, which is gone then.
    pub(super) fn at(&self, axis: usize, place: usize) -> Option<Self> {
        let mut view = self.slice(axis, place, 1)?;
        view.axes.remove(axis);
        Some(view)
    }

    /// Axes of size 1 at these places of the result, in rising order.
    pub(super) fn unsqueeze(&self, places: &[usize]) -> Option<Self> {
        let mut axes = self.axes.clone();
        for place in places {
            if *place > axes.len() {
                return None;
            }
            axes.insert(*place, Vec::new());
        }
        Some(self.with(axes))
    }

    /// Without the axes at these places, which must be of size 1.
    pub(super) fn squeeze(&self, places: &[usize]) -> Option<Self> {
        if places.iter().any(|p| self.axes.get(*p).is_none_or(|axis| !axis.is_empty())) {
            return None;
        }
        let kept = self.axes.iter().enumerate().filter(|(i, _)| !places.contains(i));
        Some(self.with(kept.map(|(_, axis)| axis.clone()).collect()))
    }

    /// Repeated along axes of size 1, as numpy broadcasts.
    pub(super) fn expand(&self, shape: &[usize]) -> Option<Self> {
        let rank = shape.len().max(self.axes.len());
        let new = rank - self.axes.len();
        let mut axes = Vec::new();
        for place in 0..rank {
            let own = place.checked_sub(new).and_then(|i| self.axes.get(i)).cloned();
            let own = own.unwrap_or_default();
            let wanted = place.checked_sub(rank - shape.len()).and_then(|i| shape.get(i));
            axes.push(match (size(&own), wanted.copied()) {
                // An axis that the shape lacks, or has with one element, stays as it is.
                (_, None | Some(1)) => own,
                (1, Some(wanted)) => vec![Step { size: wanted, stride: 0 }],
                (n, Some(wanted)) if n == wanted => own,
                _ => return None,
            });
        }
        Some(self.with(axes))
    }

    /// Where each element lies, in order.
    pub(super) fn places(&self) -> Vec<usize> {
        let mut out = vec![self.offset];
        for step in self.axes.iter().flatten() {
            let more = |at: usize| (0..step.size).map(move |i| at + i * step.stride);
            out = out.into_iter().flat_map(more).collect();
        }
        out
    }
}

/// A run of places of an axis, and where it begins.
fn cut(steps: &[Step], from: usize, count: usize) -> Option<(Axis, usize)> {
    let Some((first, rest)) = steps.split_first() else {
        return (from == 0 && count == 1).then(|| (Vec::new(), 0));
    };
    let inner = size(rest);
    let outer = from / inner;
    let offset = outer.checked_mul(first.stride)?;
    if from.is_multiple_of(inner) && count.is_multiple_of(inner) {
        let mut axis = vec![Step { size: count / inner, stride: first.stride }];
        axis.extend(rest);
        return Some((axis, offset));
    }
    // All of it within one step of the first part.
    let within = from % inner;
    if within + count > inner {
        return None;
    }
    let (axis, more) = cut(rest, within, count)?;
    Some((axis, offset.checked_add(more)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every chain of moves leads to the elements that the same moves of an array lead to.
    #[test]
    fn views_lead_to_the_elements_of_arrays() {
        let v = View::whole(Base::Node(0), &[2, 3, 4, 6]);
        assert_eq!(v.places(), (0..144).collect::<Vec<_>>());
        // [2, 3, 4, 2, 3] → [2, 2, 3, 4, 3] → [4, 3, 12].
        let w = v.reshape(&[2, 3, 4, 2, 3]).unwrap().transpose(&[0, 3, 1, 2, 4]).unwrap();
        let w = w.reshape(&[4, 3, 12]).unwrap();
        let mut places = Vec::new();
        for a in 0..2 {
            for d in 0..2 {
                for b in 0..3 {
                    for c in 0..4 {
                        for e in 0..3 {
                            places.push(((a * 3 + b) * 4 + c) * 6 + d * 3 + e);
                        }
                    }
                }
            }
        }
        assert_eq!(w.places(), places);
        let cut: Vec<usize> = (0..4)
            .flat_map(|i| (3..6).map(move |k| (i, k)))
            .map(|(i, k)| places[(i * 3 + 1) * 12 + k])
            .collect();
        assert_eq!(w.at(1, 1).unwrap().slice(1, 3, 3).unwrap().places(), cut);
        assert!(w.slice(2, 2, 2).is_none(), "two places over an edge are no run");
        assert!(w.slice(2, 11, 2).is_none());
        let back = w.reshape(&[2, 2, 3, 4, 3]).unwrap().transpose(&[0, 2, 3, 1, 4]).unwrap();
        assert_eq!(back.reshape(&[2, 3, 4, 6]).unwrap(), v);
        assert!(v.reshape(&[2, 3, 5]).is_none());
        assert!(v.transpose(&[0, 0, 1, 2]).is_none());
        let e = View::whole(Base::Weight(0), &[1, 2]).expand(&[3, 2]).unwrap();
        assert_eq!(e.places(), [0, 1, 0, 1, 0, 1]);
        assert!(View::whole(Base::Weight(0), &[3]).expand(&[2]).is_none());
    }
}
