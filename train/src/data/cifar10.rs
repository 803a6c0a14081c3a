//! CIFAR-10: a Hugging Face parquet directory, or the original binary batches. Pixels are value/255, in [0, 1].

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use candle_core::{Device, Tensor};
use lipschitz_nn::Error;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use rayon::prelude::*;

const PIXELS: usize = 3 * 32 * 32;

/// Pictures `[3, 32, 32]` with their class.
pub struct Images {
    pixels: Vec<u8>,
    labels: Vec<u8>,
}

/// Both splits.
pub struct Cifar10 {
    /// 50,000 pictures, or fewer if limited.
    pub train: Images,
    /// 10,000 pictures, or fewer if limited.
    pub test: Images,
    /// SHA-256 of pixels and labels of what was loaded.
    pub digest: String,
}

impl Images {
    /// How many.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Pixels f32 `[n, 3, 32, 32]` in [0, 1] and classes u32 `[n]`.
    ///
    /// # Errors
    /// Candle's own.
    pub fn batch(&self, indices: &[usize], device: &Device) -> Result<(Tensor, Tensor)> {
        let pixels = |i: &usize| self.pixels[i * PIXELS..(i + 1) * PIXELS].iter().map(|p| f32::from(*p) / 255.0);
        let x: Vec<f32> = indices.iter().flat_map(pixels).collect();
        let y: Vec<u32> = indices.iter().map(|i| u32::from(self.labels[*i])).collect();
        let x = Tensor::from_vec(x, (indices.len(), 3, 32, 32), device)?;
        Ok((x, Tensor::from_vec(y, indices.len(), device)?))
    }
}

impl Cifar10 {
    /// Loads both splits, at most the first `limit` pictures of each.
    ///
    /// # Errors
    /// One line that names the file that is missing or damaged.
    pub fn load(dir: &Path, limit_train: Option<usize>, limit_test: Option<usize>) -> Result<Self> {
        if !dir.is_dir() {
            bail!("{}: no such directory; give the one that holds CIFAR-10", dir.display())
        }
        let (train, test) = (split(dir, "train", limit_train)?, split(dir, "test", limit_test)?);
        let digest = super::digest([&train.pixels[..], &train.labels, &test.pixels, &test.labels]);
        Ok(Self { train, test, digest })
    }
}

fn split(dir: &Path, name: &str, limit: Option<usize>) -> Result<Images> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut images = Images { pixels: Vec::new(), labels: Vec::new() };
    let starts = |file: &Path, start: &str, end: &str| {
        file.file_name().and_then(|n| n.to_str()).is_some_and(|n| n.starts_with(start) && n.ends_with(end))
    };
    let batch = if name == "train" { "data_batch_" } else { "test_batch" };
    for sub in ["plain_text", "", "data", "cifar-10-batches-bin"] {
        let files = list(&dir.join(sub));
        for file in files.iter().filter(|f| starts(f, name, ".parquet")) {
            parquet_file(file, limit, &mut images).with_context(|| file.display().to_string())?;
        }
        for file in files.iter().filter(|f| starts(f, batch, ".bin")) {
            binary_file(file, limit, &mut images)?;
        }
        if !images.is_empty() {
            return Ok(images);
        }
    }
    bail!("{}: holds neither {name}-*.parquet nor {batch}*.bin; give the directory of CIFAR-10", dir.display())
}

/// The files of a directory by name; none if there is no such directory.
fn list(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path()).collect();
    files.sort();
    files
}

fn binary_file(file: &Path, limit: usize, images: &mut Images) -> Result<()> {
    let data = std::fs::read(file).map_err(|e| Error::io(file, &e))?;
    if data.is_empty() || data.len() % (1 + PIXELS) != 0 {
        bail!("{}: has {} bytes, not a multiple of {}; it may be truncated", file.display(), data.len(), 1 + PIXELS)
    }
    for record in data.chunks(1 + PIXELS).take(limit.saturating_sub(images.len())) {
        images.labels.push(label(file, i64::from(record[0]))?);
        images.pixels.extend(&record[1..]);
    }
    Ok(())
}

fn label(file: &Path, label: i64) -> Result<u8> {
    u8::try_from(label).ok().filter(|l| *l < 10).ok_or_else(|| anyhow!("{}: has class {label}, outside 0…9", file.display()))
}

fn parquet_file(file: &Path, limit: usize, images: &mut Images) -> Result<()> {
    let reader = SerializedFileReader::new(File::open(file).map_err(|e| Error::io(file, &e))?)
        .map_err(|e| anyhow!("is not a whole parquet file: {e}"))?;
    let mut encoded = Vec::new();
    for row in reader.get_row_iter(None)?.take(limit.saturating_sub(images.len())) {
        let (bytes, class) = columns(&row.map_err(|e| anyhow!("cannot be read: {e}"))?)?;
        images.labels.push(label(file, class)?);
        encoded.push(bytes);
    }
    let decoded: Vec<Vec<u8>> = encoded.par_iter().enumerate().map(|(i, bytes)| decode(i, bytes)).collect::<Result<_>>()?;
    decoded.iter().for_each(|pixels| images.pixels.extend(pixels));
    Ok(())
}

/// The encoded picture and the class of a row.
fn columns(row: &Row) -> Result<(Vec<u8>, i64)> {
    let (mut picture, mut class) = (None, None);
    for (name, field) in row.get_column_iter() {
        match (name.as_str(), field) {
            ("img" | "image", Field::Group(group)) => {
                picture = group.get_column_iter().find_map(|(name, field)| match field {
                    Field::Bytes(bytes) if name == "bytes" => Some(bytes.data().to_vec()),
                    _ => None,
                });
            }
            ("label", Field::Long(x)) => class = Some(*x),
            ("label", Field::Int(x)) => class = Some(i64::from(*x)),
            _ => {}
        }
    }
    match (picture, class) {
        (Some(picture), Some(class)) => Ok((picture, class)),
        (None, _) => bail!("has no column img.bytes"),
        (_, None) => bail!("has no integer column label"),
    }
}

/// Red, green, then blue.
fn decode(index: usize, bytes: &[u8]) -> Result<Vec<u8>> {
    let picture = image::load_from_memory(bytes).map_err(|e| anyhow!("picture {index} is damaged: {e}"))?.to_rgb8();
    if picture.dimensions() != (32, 32) {
        bail!("picture {index} is {:?}, not 32 × 32", picture.dimensions())
    }
    let raw = picture.into_raw();
    Ok((0..3).flat_map(|c| raw.iter().skip(c).step_by(3).copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_pictures_are_read() {
        let Some(dir) = crate::data::shared("cifar10") else { return };
        let data = Cifar10::load(&dir, Some(200), Some(100)).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (200, 100));
        let (x, y) = data.test.batch(&[0, 99], &Device::Cpu).unwrap();
        assert_eq!((x.dims(), y.dims()), (&[2, 3, 32, 32][..], &[2][..]));
        let mean = x.mean_all().unwrap().to_scalar::<f32>().unwrap();
        assert!((0.2..0.8).contains(&mean), "{mean}");
        // The first test picture of CIFAR-10 is a cat.
        assert_eq!(y.to_vec1::<u32>().unwrap()[0], 3);
    }

    #[test]
    fn binary_batches_are_read_and_truncation_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = vec![7u8];
        record.extend((0..PIXELS).map(|i| (i / 1024) as u8 * 100));
        std::fs::write(dir.path().join("data_batch_1.bin"), record.repeat(3)).unwrap();
        std::fs::write(dir.path().join("test_batch.bin"), &record).unwrap();
        let data = Cifar10::load(dir.path(), None, None).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (3, 1));
        let (x, y) = data.test.batch(&[0], &Device::Cpu).unwrap();
        assert_eq!(y.to_vec1::<u32>().unwrap(), [7]);
        let blue = x.get(0).unwrap().get(2).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(blue.iter().all(|p| (p - 200.0 / 255.0).abs() < 1e-6));
        std::fs::write(dir.path().join("test_batch.bin"), &record[..100]).unwrap();
        assert!(Cifar10::load(dir.path(), None, None).err().unwrap().to_string().contains("truncated"));
    }
}
