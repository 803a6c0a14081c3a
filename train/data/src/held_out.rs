//! The part of examples that is held out: by its share, or a file or directory of its own.

use std::path::{Path, PathBuf};

use crate::Error;
use crate::examples::{Split, Targets, digest};
use crate::order::permutation;

/// The share that is held out unless a config says another.
pub(crate) const TENTH: f64 = 0.1;

/// Whether a config names one of the two, another path than it trains on, and a share above 0 and below 1.
pub(crate) fn check(trained: &Path, path: Option<&Path>, share: Option<f64>) -> Result<(), Error> {
    match (path, share) {
        (Some(_), Some(_)) => Err(Error::TwoHeldOut),
        (Some(path), None) if same(path, trained) => {
            Err(Error::HeldOutIsTrained(path.to_path_buf()))
        }
        (None, Some(share)) if !(share > 0.0 && share < 1.0) => Err(Error::HeldOut(share)),
        _ => Ok(()),
    }
}

/// What lies at a path, to a trained model.
pub(crate) enum Part {
    /// What it was trained on, beside which its run held out all of this path.
    File(PathBuf),
    /// What it was trained on, of which its run held out a share.
    Share,
    /// Anything, such as a copy of what it was trained on.
    Other,
}

/// See [`Part`]; `trained` and `held_out` are the paths of the run's config.
pub(crate) fn part(path: &Path, trained: &Path, held_out: Option<&Path>) -> Part {
    match (same(path, trained), held_out) {
        (true, Some(held_out)) => Part::File(held_out.to_path_buf()),
        (true, None) => Part::Share,
        (false, _) => Part::Other,
    }
}

fn same(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

impl Part {
    /// What is read for a model that is given `path`, and what may have been held out beside it where
    /// that is a copy of what it was trained on.
    pub(crate) fn paths<'a>(
        &'a self,
        path: &'a Path,
        held_out: Option<&'a Path>,
    ) -> (&'a Path, Option<&'a Path>) {
        match self {
            Self::File(own) => (own, None),
            Self::Share => (path, None),
            Self::Other => (path, held_out),
        }
    }
}

/// What a trained model has not seen of examples, behind what it has: all of them, unless their digest,
/// or their path where none is known, says that it was trained on them. Then it is what its run held
/// out: `held_out`, or this share.
///
/// # Errors
/// [`Error::Changed`] if something else lies where that was which it was trained on, and those of
/// [`split`].
pub(crate) fn unseen(
    name: &str,
    all: Split,
    part: &Part,
    (held_out, share): (Option<Split>, f64),
    trained: Option<&str>,
) -> Result<[Split; 2], Error> {
    let nothing = all.choose(&[]);
    match (part, trained) {
        (Part::File(_), _) | (Part::Other, None) => Ok([nothing, all]),
        (Part::Share, None) => split(name, &all, share),
        (Part::Share | Part::Other, Some(trained)) => {
            let parts = match held_out {
                Some(held_out) => Ok([all.clone(), held_out]),
                None => split(name, &all, share),
            };
            match parts {
                Ok(parts) if digest([&parts[0], &parts[1]]) == trained => Ok(parts),
                _ if matches!(part, Part::Share) => Err(Error::Changed(name.to_string())),
                _ => Ok([nothing, all]),
            }
        }
    }
}

/// Splits examples: of each class this share, and at least one, is held out. Which ones is drawn
/// once and for all, whatever the seed of a run, so that runs are compared on the same ones.
///
/// # Errors
/// A class with a single example, or one of numbers alone.
pub(crate) fn split(name: &str, all: &Split, share: f64) -> Result<[Split; 2], Error> {
    let groups: Vec<Vec<usize>> = match &all.targets {
        Targets::Classes(classes) => {
            let count = classes.iter().max().map_or(0, |most| *most as usize + 1);
            let mut groups = vec![Vec::new(); count];
            classes.iter().enumerate().for_each(|(i, class)| groups[*class as usize].push(i));
            groups
        }
        Targets::Numbers { .. } => vec![(0..all.len()).collect()],
    };
    let (mut kept, mut held) = (Vec::new(), Vec::new());
    for (number, group) in groups.iter().enumerate().filter(|(_, group)| !group.is_empty()) {
        if group.len() < 2 {
            let what = match all.targets {
                Targets::Classes(_) => format!("class {number} has a single example"),
                Targets::Numbers { .. } => "there is a single example".to_string(),
            };
            return Err(Error::SingleExample { name: name.to_string(), what });
        }
        // A little more than the product in floating point, which may be just below a half.
        let count = (group.len() as f64 * share + 1e-6).round() as usize;
        let order = permutation(0, number as u64, group.len());
        let (first, rest) = order.split_at(count.clamp(1, group.len() - 1));
        held.extend(first.iter().map(|i| group[*i]));
        kept.extend(rest.iter().map(|i| group[*i]));
    }
    kept.sort_unstable();
    held.sort_unstable();
    Ok([all.choose(&kept), all.choose(&held)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examples::Values;

    fn numbered(classes: Vec<u32>) -> Split {
        let values = Values::Floats((0..classes.len()).map(|i| i as f32).collect());
        Split { shape: vec![1], values, targets: Targets::Classes(classes) }
    }

    #[test]
    fn of_each_class_a_share_is_held_out_and_nothing_is_lost() {
        let all = numbered((0..100).map(|i| u32::from(i >= 30)).collect());
        let [kept, held] = split("d", &all, 0.1).unwrap();
        let of = |split: &Split, class| match &split.targets {
            Targets::Classes(all) => all.iter().filter(|c| **c == class).count(),
            Targets::Numbers { .. } => 0,
        };
        assert_eq!([of(&held, 0), of(&held, 1), of(&kept, 0), of(&kept, 1)], [3, 7, 27, 63]);
        let (Values::Floats(mut values), Values::Floats(more)) = (kept.values, held.values) else {
            panic!()
        };
        // Those held out are no block at one end.
        assert!(more.windows(2).any(|pair| pair[1] - pair[0] > 1.5), "{more:?}");
        values.extend(more);
        values.sort_by(f32::total_cmp);
        assert_eq!(values, (0..100).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(split("d", &all, 0.1).unwrap(), split("d", &all, 0.1).unwrap());
    }

    #[test]
    fn small_classes_keep_one_example_on_each_side() {
        for share in [0.01, 0.5, 0.99] {
            let [kept, held] = split("d", &numbered(vec![0, 0, 1, 1]), share).unwrap();
            assert_eq!((kept.len(), held.len()), (2, 2), "{share}");
        }
        let said = split("d", &numbered(vec![0, 0, 2]), 0.5).unwrap_err().to_string();
        assert!(said.starts_with("d: class 2 has a single example"), "{said}");
    }
}
