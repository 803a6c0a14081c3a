//! Label placement: no label covers another, nor, if possible, a point or a line.

use crate::scene::Style;

/// A box: left, top, right, bottom, in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Area(pub f32, pub f32, pub f32, pub f32);

impl Area {
    /// The area of the intersection of two boxes.
    fn overlap(self, other: Self) -> f32 {
        let width = self.2.min(other.2) - self.0.max(other.0);
        let height = self.3.min(other.3) - self.1.max(other.1);
        if width > 0.0 && height > 0.0 { width * height } else { 0.0 }
    }

    fn holds(self, other: Self) -> bool {
        other.0 >= self.0 && other.1 >= self.1 && other.2 <= self.2 && other.3 <= self.3
    }
}

/// A label that has been placed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Placed {
    /// The left end of its base line.
    pub at: (f32, f32),
    /// A line from the text to its point, if the two are far apart.
    pub leader: Option<[(f32, f32); 2]>,
}

/// Places labels one after another.
pub(crate) struct Labels {
    bounds: Area,
    /// Areas that no label may cover.
    taken: Vec<Area>,
    /// Areas that a label should not cover.
    avoided: Vec<Area>,
}

/// Distances from the point to try, in pixels; beyond [`NEAR`] a line connects the label with it.
const DISTANCES: [f32; 6] = [9.0, 14.0, 22.0, 34.0, 50.0, 75.0];
const NEAR: f32 = 15.0;

impl Labels {
    /// Labels inside `bounds`.
    pub(crate) fn new(bounds: Area) -> Self {
        Self { bounds, taken: Vec::new(), avoided: Vec::new() }
    }

    /// Keeps labels away from a marker.
    pub(crate) fn avoid(&mut self, (x, y): (f32, f32), radius: f32) {
        self.avoided.push(Area(x - radius, y - radius, x + radius, y + radius));
    }

    /// Keeps labels away from a line.
    pub(crate) fn avoid_line(&mut self, a: (f32, f32), b: (f32, f32)) {
        const STEP: f32 = 6.0;
        let count = ((b.0 - a.0).hypot(b.1 - a.1) / STEP).ceil().clamp(1.0, 400.0);
        for i in 0..=count as usize {
            let t = i as f32 / count;
            self.avoid((a.0 + t * (b.0 - a.0), a.1 + t * (b.1 - a.1)), 1.5);
        }
    }

    /// Places a label beside one of the points, with a preference for earlier ones; none if every
    /// position would cover another label.
    pub(crate) fn place(
        &mut self,
        text: &str,
        points: &[(f32, f32)],
        style: Style,
    ) -> Option<Placed> {
        let (width, up, down) = (style.width(text), style.above(), style.below());
        let mut best: Option<(f32, Placed, Area)> = None;
        for (rank, point) in points.iter().enumerate() {
            for distance in DISTANCES {
                for direction in 0..12 {
                    let angle = direction as f32 * std::f32::consts::TAU / 12.0;
                    let (dx, dy) = (angle.cos(), -angle.sin());
                    // The side of the text that faces the point is at this distance.
                    let x = point.0 + dx * distance + (dx - 1.0) * width / 2.0;
                    let y = point.1 + dy * distance + (up - down) / 2.0 + dy * (up + down) / 2.0;
                    let area = Area(x - 2.0, y - up - 1.0, x + width + 2.0, y + down + 1.0);
                    if !self.bounds.holds(area) || self.taken.iter().any(|t| t.overlap(area) > 0.0)
                    {
                        continue;
                    }
                    let covered: f32 = self.avoided.iter().map(|a| a.overlap(area)).sum();
                    let cost = 3.0 * covered
                        + distance
                        + 2.0 * rank as f32
                        + if dx > 0.0 { 0.0 } else { 1.0 };
                    if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                        let near = (point.0.clamp(area.0, area.2), point.1.clamp(area.1, area.3));
                        let leader = (distance > NEAR).then_some([near, *point]);
                        best = Some((cost, Placed { at: (x, y), leader }, area));
                    }
                }
            }
        }
        let (_, placed, area) = best?;
        self.taken.push(area);
        Some(placed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_lies_on_another_or_outside() {
        let bounds = Area(0.0, 0.0, 400.0, 300.0);
        let mut labels = Labels::new(bounds);
        let style = Style::new(13.0);
        let mut placed = 0;
        for i in 0..40u32 {
            let point = ((i * 37 % 400) as f32, (i * 53 % 300) as f32);
            labels.avoid(point, 5.0);
            placed += usize::from(labels.place("a label", &[point], style).is_some());
        }
        assert!(placed > 25, "{placed}");
        for (i, a) in labels.taken.iter().enumerate() {
            assert!(bounds.holds(*a));
            assert!(labels.taken[..i].iter().all(|b| a.overlap(*b) == 0.0));
        }
    }

    #[test]
    fn a_free_side_is_found() {
        let mut labels = Labels::new(Area(0.0, 0.0, 400.0, 300.0));
        labels.avoid_line((200.0, 150.0), (400.0, 150.0));
        let placed = labels.place("here", &[(200.0, 150.0)], Style::new(13.0)).unwrap();
        assert!(
            placed.leader.is_none() && (placed.at.0 < 190.0 || (placed.at.1 - 150.0).abs() > 9.0),
            "{placed:?}"
        );
    }
}
