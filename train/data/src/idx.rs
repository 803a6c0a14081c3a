//! MNIST and its kin: the idx files of images and labels, packed with gzip or not.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use lipschitz_nn::graph::Input;
use lipschitz_nn::{At, kind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decode::MOST_PIXELS;
use crate::error::{in_range_if, unusable};
use crate::examples::{Examples, Split};
use crate::{DataKind, DataSet, Error, memory};

/// `kind = "idx"`: a directory with the idx files of MNIST, Fashion-MNIST or EMNIST.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IdxConfig {
    /// The directory, with images and labels to train on (`train-images…`, `train-labels…`) and to
    /// test on (`t10k-…` or `test-…`), as `.gz` or unpacked.
    pub path: PathBuf,
    /// Training images to use; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_train: Option<usize>,
    /// Test images to use; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_test: Option<usize>,
}

impl DataKind for IdxConfig {
    fn check(&self) -> Result<(), Error> {
        for (key, limit) in [("limit_train", self.limit_train), ("limit_test", self.limit_test)] {
            in_range_if(key, limit, 1..=usize::MAX >> 1)?;
        }
        Ok(())
    }

    fn load(&self) -> Result<Box<dyn DataSet>, Error> {
        self.check()?;
        Ok(Box::new(load(&self.path, [self.limit_train, self.limit_test])?))
    }

    fn reads(&self, input: Input) -> bool {
        matches!(input, Input::Pixels { .. })
    }
}

/// Reads a directory of idx files, at most so many images of each part.
///
/// # Errors
/// One line that names the file: missing, of another kind, cut short, or images and labels that are
/// not as many.
pub fn load(path: &Path, limits: [Option<usize>; 2]) -> Result<Examples, Error> {
    let [train_x, train_y, test_x, test_y] = names(path)?;
    let train = part(&train_x, &train_y, limits[0])?;
    let test = part(&test_x, &test_y, limits[1])?;
    if train.split.shape != test.split.shape {
        let of = |split: &Split| format!("{} × {}", split.shape[2], split.shape[1]);
        let (train, test) = (of(&train.split), of(&test.split));
        let what = format!("holds images of {test}, and {} of {train}", train_x.display());
        return Err(unusable(&test_x, what));
    }
    let outputs = train.classes.max(test.classes);
    if outputs < 2 {
        return Err(unusable(&train_y, "holds a single class; give labels of two or more"));
    }
    let name = path.display().to_string();
    Ok(Examples::new(name, [train.split, test.split], outputs, Vec::new()))
}

/// Whether a directory holds such files.
pub(crate) fn is_here(path: &Path) -> bool {
    names(path).is_ok()
}

/// Images and labels of both parts.
fn names(path: &Path) -> Result<[PathBuf; 4], Error> {
    if !path.exists() {
        return Err(Error::NoDirectory(path.to_path_buf()));
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).at(path)? {
        files.push(entry.at(path)?.path());
    }
    // Unpacked files come before their `.gz`.
    files.sort();
    let find = |parts: &[&str], what: &str, dims: &str| {
        let fits = |file: &&PathBuf| {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let of = |part: &&str| name.contains(&format!("{part}-{what}"));
            parts.iter().any(of) && name.contains(dims)
        };
        let mut found = files.iter().filter(fits);
        let first = found.next().ok_or_else(|| {
            let what =
                format!("holds no {}-{what}-{dims}-ubyte, packed with gzip or not", parts[0]);
            unusable(path, what)
        })?;
        let stem = |file: &Path| file.display().to_string().trim_end_matches(".gz").to_string();
        match found.find(|other| stem(other) != stem(first)) {
            Some(other) => {
                let what = format!("is there, and {}; keep those of one data set", other.display());
                Err(unusable(first, what))
            }
            None => Ok(first.clone()),
        }
    };
    let test = ["t10k", "test"];
    Ok([
        find(&["train"], "images", "idx3")?,
        find(&["train"], "labels", "idx1")?,
        find(&test, "images", "idx3")?,
        find(&test, "labels", "idx1")?,
    ])
}

struct Loaded {
    split: Split,
    /// One more than the largest label.
    classes: usize,
}

fn part(images: &Path, labels: &Path, limit: Option<usize>) -> Result<Loaded, Error> {
    let (count, sizes, pixels) = read(images, 3, limit)?;
    let (classified, _, classes) = read(labels, 1, limit)?;
    if count != classified {
        let what = format!("holds {count} images, and {} {classified} labels", labels.display());
        return Err(unusable(images, what));
    }
    let most = classes.iter().max().map_or(0, |most| usize::from(*most) + 1);
    let classes = classes.into_iter().map(u32::from).collect();
    let split = Split::images([1, sizes[1], sizes[2]], pixels, classes);
    Ok(Loaded { split, classes: most })
}

/// How many there are in an idx file of so many dimensions, and its sizes and bytes, of which the first
/// size is cut at `limit`.
fn read(path: &Path, dims: u8, limit: Option<usize>) -> Result<(u64, Vec<usize>, Vec<u8>), Error> {
    let mut start = [0; 2];
    let file = || File::open(path).at(path);
    let packed = file()?.read_exact(&mut start).is_ok() && start == [0x1f, 0x8b];
    let file = BufReader::new(file()?);
    let mut bytes: Box<dyn Read> =
        if packed { Box::new(GzDecoder::new(file)) } else { Box::new(file) };
    let damaged = |error: std::io::Error| {
        let what = match error.kind() {
            std::io::ErrorKind::UnexpectedEof => "is cut short; fetch it again".to_string(),
            _ => format!("cannot be unpacked ({error}); fetch it again"),
        };
        unusable(path, what)
    };
    let mut header = vec![0; 4 + 4 * usize::from(dims)];
    let whole = bytes.read_exact(&mut header);
    if whole.is_err() && !packed || header[..2] != [0, 0] || header[2] != 8 || header[3] != dims {
        whole.map_err(damaged)?;
        let what = match kind::at(path).filter(|_| !packed) {
            Some(known) => known.instead_of("an idx file"),
            None => format!("is no idx file of bytes in {dims} dimensions: it begins otherwise"),
        };
        return Err(unusable(path, what));
    }
    whole.map_err(damaged)?;
    let number = |b: &[u8]| b.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
    let mut sizes: Vec<u64> = header[4..].chunks(4).map(number).collect();
    let each = sizes[1..].iter().fold(1u64, |n, size| n.saturating_mul(*size));
    if sizes.contains(&0) {
        return Err(unusable(path, "holds nothing: one of its sizes is 0; fetch it again"));
    }
    if each > MOST_PIXELS {
        let what = format!("says images of {each} pixels; up to {MOST_PIXELS} are read");
        return Err(unusable(path, what));
    }
    let all = sizes[0];
    sizes[0] = all.min(limit.map_or(u64::MAX, |limit| limit as u64));
    let count = sizes[0].saturating_mul(each);
    if !packed {
        let length = std::fs::metadata(path).at(path)?.len();
        let wanted = all.saturating_mul(each).saturating_add(header.len() as u64);
        if length != wanted {
            let what = format!("says {wanted} bytes and has {length}; fetch it again");
            return Err(unusable(path, what));
        }
    }
    memory::check(count as f64, || path.display().to_string())?;
    let mut out = Vec::new();
    // As much as there is, so that no header makes memory be taken.
    bytes.by_ref().take(count).read_to_end(&mut out).map_err(damaged)?;
    if out.len() as u64 != count {
        return Err(damaged(std::io::ErrorKind::UnexpectedEof.into()));
    }
    // Behind the last byte a packed file has its checksum.
    if sizes[0] == all && bytes.read(&mut [0]).map_err(damaged)? > 0 {
        return Err(unusable(path, "holds more than its header says; fetch it again"));
    }
    Ok((all, sizes.into_iter().map(|size| size as usize).collect(), out))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::examples::{Targets, Values};

    fn idx(sizes: &[u32], bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![0, 0, 8, sizes.len() as u8];
        sizes.iter().for_each(|size| out.extend(size.to_be_bytes()));
        out.extend(bytes);
        out
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    const NAMES: [&str; 4] = [
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ];

    fn good() -> [Vec<u8>; 4] {
        [
            idx(&[3, 1, 2], &[1, 2, 3, 4, 5, 6]),
            idx(&[3], &[0, 4, 1]),
            idx(&[1, 1, 2], &[7, 8]),
            idx(&[1], &[3]),
        ]
    }

    fn place(files: &[Vec<u8>; 4], packed: bool) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in NAMES.iter().zip(files) {
            let end = if packed { ".gz" } else { "" };
            let bytes = if packed { gzip(bytes) } else { bytes.clone() };
            std::fs::write(directory.path().join(format!("{name}{end}")), bytes).unwrap();
        }
        directory
    }

    #[test]
    fn packed_and_unpacked_files_are_the_same_images() {
        let plain = load(place(&good(), false).path(), [None; 2]).unwrap();
        let packed = load(place(&good(), true).path(), [None; 2]).unwrap();
        assert_eq!((&plain.train, &plain.digest), (&packed.train, &packed.digest));
        assert_eq!((plain.outputs, &plain.train.shape[..]), (5, &[1, 1, 2][..]));
        assert_eq!(plain.train.values, Values::Bytes(vec![1, 2, 3, 4, 5, 6]));
        assert_eq!(plain.test.targets, Targets::Classes(vec![3]));
        let few = load(place(&good(), true).path(), [Some(2), Some(5)]).unwrap();
        assert_eq!((few.train.len(), few.test.len()), (2, 1));
    }

    #[test]
    fn damaged_files_are_named() {
        let said = |at: usize, bytes: Vec<u8>, packed: bool| {
            let mut files = good();
            files[at] = bytes;
            let place = place(&files, packed);
            let said = load(place.path(), [None; 2]).unwrap_err().to_string();
            assert!(said.contains(NAMES[at]) && !said.contains('\n'), "{said}");
            said
        };
        let [x, y, ..] = good();
        for packed in [false, true] {
            let wrong = said(0, y.clone(), packed);
            assert!(wrong.contains("in 3 dimensions") || wrong.contains("cut short"), "{wrong}");
            assert!(said(0, x[..x.len() - 1].to_vec(), packed).contains("fetch it again"));
            assert!(said(0, vec![9; 40], packed).contains("in 3 dimensions"));
            assert!(said(0, Vec::new(), packed).contains("cut short"));
            assert!(said(0, idx(&[0, 1, 2], &[]), packed).contains("one of its sizes is 0"));
            let bomb = idx(&[u32::MAX; 3], &[1; 100]);
            assert!(said(0, bomb, packed).contains("up to 16777216 are read"));
            let bomb = said(0, idx(&[u32::MAX, 4096, 4096], &[1; 100]), packed);
            assert!(bomb.contains("of memory") || bomb.contains("fetch it again"), "{bomb}");
        }
        assert!(said(0, idx(&[2, 1, 2], &[1; 4]), false).contains("holds 2 images"));
        assert!(said(0, b"<!DOCTYPE html><html></html>".to_vec(), false).contains("web page"));
        assert!(said(2, idx(&[1, 2, 1], &[1; 2]), false).contains("holds images of 1 × 2"));
        let place = place(&good(), true);
        let mut bytes = std::fs::read(place.path().join("train-labels-idx1-ubyte.gz")).unwrap();
        bytes.truncate(bytes.len() - 9);
        std::fs::write(place.path().join("train-labels-idx1-ubyte.gz"), bytes).unwrap();
        let said = load(place.path(), [None; 2]).unwrap_err().to_string();
        assert!(said.contains("cut short"), "{said}");
        let mut same = good();
        (same[1], same[3]) = (idx(&[3], &[0; 3]), idx(&[1], &[0]));
        let one = self::place(&same, false);
        let said = load(one.path(), [None; 2]).unwrap_err().to_string();
        assert!(said.contains("holds a single class"), "{said}");
        std::fs::remove_file(place.path().join("train-labels-idx1-ubyte.gz")).unwrap();
        let said = load(place.path(), [None; 2]).unwrap_err().to_string();
        assert!(said.contains("holds no train-labels-idx1-ubyte"), "{said}");
        let gone = load(&place.path().join("gone"), [None; 2]).unwrap_err().to_string();
        assert!(gone.contains("no such directory"), "{gone}");
    }
}
