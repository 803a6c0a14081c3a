//! Training images that are moved, mirrored and covered at random: a function of seed, step and
//! place in the batch alone, so that a resumed run sees what an uninterrupted one would have seen.

use candle_core::{DType, Device, Tensor};
use lipschitz_nn::random::{below, keyed};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Batch, Error, TrainingBatches};

/// How training images are changed at random. Each keeps its class, so choose what does not change
/// it: a mirrored digit is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    /// Mirror one in two, left to right.
    pub flip: bool,
    /// Pixels that an image is moved by at most, in both directions; what comes in is black.
    pub crop: usize,
    /// Side of a square that is black, wherever its middle lies.
    pub cutout: usize,
}

/// The most pixels of a move or a square.
pub const MAX_SHIFT: usize = 4096;

impl Augmentation {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The changes of the batch of a step.
    fn draw(self, seed: u64, step: u64, count: usize, [height, width]: [usize; 2]) -> Vec<Change> {
        let mut rng = keyed(seed, "augment", step);
        let mut one = || {
            let mut number = |n: usize| below(&mut rng, n);
            // All are drawn, so that one key changes nothing about the others.
            let (mirror, down, right) =
                (number(2) == 1, number(2 * self.crop + 1), number(2 * self.crop + 1));
            let middle = [number(height), number(width)];
            let crop = self.crop as isize;
            Change {
                mirror: self.flip && mirror,
                moved: [down as isize - crop, right as isize - crop],
                middle,
                side: self.cutout,
            }
        };
        (0..count).map(|_| one()).collect()
    }
}

/// What becomes of one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Change {
    mirror: bool,
    /// Down and to the right.
    moved: [isize; 2],
    /// Of the square.
    middle: [usize; 2],
    side: usize,
}

impl Change {
    /// A plane of pixels, changed.
    fn plane(&self, from: &[f32], to: &mut [f32], [height, width]: [usize; 2]) {
        let covered = |at: usize, middle: usize| {
            let first = middle as isize - (self.side / 2) as isize;
            (first..first + self.side as isize).contains(&(at as isize))
        };
        for (y, row) in to.chunks_mut(width).enumerate() {
            for (x, pixel) in row.iter_mut().enumerate() {
                let source = |at: usize, moved: isize, size: usize| {
                    usize::try_from(at as isize - moved).ok().filter(|at| *at < size)
                };
                let place = source(y, self.moved[0], height).zip(source(x, self.moved[1], width));
                let hidden = covered(y, self.middle[0]) && covered(x, self.middle[1]);
                *pixel = match place.filter(|_| !hidden) {
                    Some((y, x)) => {
                        let x = if self.mirror { width - 1 - x } else { x };
                        from.get(y * width + x).copied().unwrap_or_default()
                    }
                    None => 0.0,
                };
            }
        }
    }
}

/// Training batches of images, each changed at random.
pub struct Augmented<'a> {
    /// The batches.
    pub batches: Box<dyn TrainingBatches + 'a>,
    /// What is done to them.
    pub augmentation: Augmentation,
    /// Decides it, with the step.
    pub seed: u64,
}

impl TrainingBatches for Augmented<'_> {
    fn batch(&mut self, step: u64, batch_size: usize, device: &Device) -> Result<Batch, Error> {
        let (x, y) = self.batches.batch(step, batch_size, device)?;
        let (count, _, height, width) = x.dims4()?;
        let sizes = [height, width];
        let changes = self.augmentation.draw(self.seed, step, count, sizes);
        let from = x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut to = vec![0f32; from.len()];
        let (image, plane) = ((from.len() / count.max(1)).max(1), (height * width).max(1));
        to.par_chunks_mut(image).zip(from.par_chunks(image)).zip(&changes).for_each(
            |((to, from), change)| {
                for (to, from) in to.chunks_mut(plane).zip(from.chunks(plane)) {
                    change.plane(from, to, sizes);
                }
            },
        );
        Ok((Tensor::from_vec(to, x.dims(), device)?, y))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images of 5 × 6 whose pixels are numbered from 1, in each of two channels.
    struct Numbered;

    impl TrainingBatches for Numbered {
        fn batch(&mut self, _: u64, count: usize, device: &Device) -> Result<Batch, Error> {
            let one = (1..=60).map(|i| i as f32);
            let x: Vec<f32> = (0..count).flat_map(|_| one.clone()).collect();
            let y = Tensor::zeros(count, DType::U32, device)?;
            Ok((Tensor::from_vec(x, (count, 2, 5, 6), device)?, y))
        }
    }

    fn batch(augmentation: Augmentation, seed: u64, step: u64) -> Vec<Vec<f32>> {
        let mut all = Augmented { batches: Box::new(Numbered), augmentation, seed };
        let (x, _) = all.batch(step, 64, &Device::Cpu).unwrap();
        x.reshape((64, 60)).unwrap().to_vec2().unwrap()
    }

    fn plain() -> Vec<f32> {
        (1..=60).map(|i| i as f32).collect()
    }

    #[test]
    fn half_of_the_images_are_mirrored_and_no_pixel_is_lost() {
        let flip = Augmentation { flip: true, ..Augmentation::default() };
        let images = batch(flip, 1, 2);
        let mirrored: Vec<f32> = plain()
            .chunks(6)
            .flat_map(|row| row.iter().rev().copied().collect::<Vec<_>>())
            .collect();
        let count = images.iter().filter(|image| **image == mirrored).count();
        assert_eq!(images.iter().filter(|image| **image == plain()).count() + count, 64);
        assert!((16..=48).contains(&count), "{count}");
        assert_eq!(images, batch(flip, 1, 2), "the same step");
        assert_ne!(images, batch(flip, 1, 3), "another step");
        assert_ne!(images, batch(flip, 2, 2), "another seed");
    }

    #[test]
    fn moved_images_keep_their_neighbours_and_get_black_edges() {
        let crop = Augmentation { crop: 2, ..Augmentation::default() };
        let mut seen = std::collections::BTreeSet::new();
        for image in batch(crop, 3, 0) {
            let at = image[..30].iter().position(|p| *p > 0.0).unwrap();
            let first = image[at];
            // Where the first pixel that is seen comes from, and where it lies.
            let (from, to) = (first as isize - 1, at as isize);
            let moved = (to / 6 - from / 6, to % 6 - from % 6);
            seen.insert(moved);
            for (i, pixel) in image.iter().enumerate() {
                let (y, x) = ((i % 30 / 6) as isize - moved.0, (i % 6) as isize - moved.1);
                let inside = (0..5).contains(&y) && (0..6).contains(&x);
                let wanted =
                    if inside { (30 * (i as isize / 30) + 6 * y + x + 1) as f32 } else { 0.0 };
                assert_eq!(*pixel, wanted, "{moved:?} {i}");
            }
        }
        assert!(seen.len() > 15 && seen.iter().all(|(y, x)| y.abs() <= 2 && x.abs() <= 2));
    }

    #[test]
    fn squares_are_black_in_all_channels_and_in_sight() {
        let cutout = Augmentation { cutout: 3, ..Augmentation::default() };
        for image in batch(cutout, 4, 9) {
            let black: Vec<usize> = (0..30).filter(|i| image[*i] == 0.0).collect();
            assert!((4..=9).contains(&black.len()), "{black:?}");
            for i in 0..30 {
                assert_eq!(image[i] == 0.0, image[i + 30] == 0.0);
                assert!(image[i] == 0.0 || image[i] == (i + 1) as f32);
            }
        }
        assert!(batch(Augmentation::default(), 4, 9).iter().all(|image| *image == plain()));
    }
}
