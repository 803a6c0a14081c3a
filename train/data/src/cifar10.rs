//! CIFAR-10, from a Hugging Face parquet directory or the original binary batches.
//!
//! Pixels stay in memory as bytes and are given to networks as value / 255, in \[0, 1\], with
//! nothing subtracted and no other scale. So a Lipschitz constant and an attack radius speak of
//! pixels in \[0, 1\]; a network that wants another scale carries it as a layer, where the
//! certificate counts it.
//!
//! Images compressed as JPEG differ a little from the original pixels: say so beside a figure.

use std::fs::File;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use image::{ImageFormat, ImageReader};
use lipschitz_nn::graph::Input;
use lipschitz_nn::{At, kind};
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::caught::caught;
use crate::error::{in_range_if, one_line};
use crate::order::Shuffle;
use crate::{Batch, Batches, DataKind, DataSet, Error, Protocol, TrainingBatches, digest};

/// Height and width of an image.
pub const SIDE: usize = 32;

/// Bytes of an image: three planes (red, green, blue), each by rows.
pub const PIXELS: usize = 3 * SIDE * SIDE;

/// How many classes there are.
pub const CLASSES: usize = 10;

/// `kind = "cifar10"`: a Hugging Face parquet directory or the original binary batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cifar10Config {
    /// The directory.
    pub path: PathBuf,
    /// Training images to use; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_train: Option<usize>,
    /// Test images to use; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_test: Option<usize>,
}

impl DataKind for Cifar10Config {
    fn check(&self) -> Result<(), Error> {
        for (key, limit) in [("limit_train", self.limit_train), ("limit_test", self.limit_test)] {
            in_range_if(key, limit, 1..=usize::MAX >> 1)?;
        }
        Ok(())
    }

    fn load(&self) -> Result<Box<dyn DataSet>, Error> {
        self.check()?;
        let limits = Limits { train: self.limit_train, test: self.limit_test };
        Ok(Box::new(Cifar10::load(&self.path, limits)?))
    }

    /// The first image of each split.
    fn load_little(&self) -> Result<Box<dyn DataSet>, Error> {
        let little = Limits { train: Some(1), test: Some(1) };
        Ok(Box::new(Cifar10::load(&self.path, little)?))
    }

    fn reads(&self, input: Input) -> bool {
        reads(input)
    }

    fn outputs(&self) -> Option<usize> {
        Some(CLASSES)
    }
}

/// Whether a network with this input reads the images.
fn reads(input: Input) -> bool {
    matches!(input, Input::Pixels { channels: 3, height: SIDE, width: SIDE })
}

/// How many images to keep of each split, from its beginning; all unless told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// At most so many to train on.
    pub train: Option<usize>,
    /// At most so many to test on.
    pub test: Option<usize>,
}

/// The data set.
#[derive(Clone, Debug)]
pub struct Cifar10 {
    /// The directory, for messages.
    pub name: String,
    /// What is trained on.
    pub train: Split,
    /// What is tested on.
    pub test: Split,
    /// SHA-256, in hexadecimal, of the pixels and labels kept.
    pub digest: String,
}

/// Images with their classes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Split {
    /// `[images, 3, 32, 32]`, row-major.
    pub pixels: Vec<u8>,
    /// A class below [`CLASSES`] for each image.
    pub labels: Vec<u8>,
}

impl Cifar10 {
    /// Reads a directory that holds `train-*.parquet` and `test-*.parquet` (or `plain_text/` with
    /// these), or `data_batch_*.bin` and `test_batch.bin` (or `cifar-10-batches-bin/` with these).
    ///
    /// # Errors
    /// One line that names the file, and the row in it: missing, not parquet, a column that is not
    /// there, a image that is damaged or has another size, a class out of range, a binary batch
    /// that is cut short.
    pub fn load(path: &Path, limits: Limits) -> Result<Self, Error> {
        let mut places = vec![Directory::read(path)?];
        for inside in ["plain_text", "cifar-10-batches-bin"].map(|name| path.join(name)) {
            if inside.is_dir() {
                places.push(Directory::read(&inside)?);
            }
        }
        for place in &places {
            if let Some((train, test)) =
                place.both(("train-", ".parquet"), ("test-", ".parquet"))?
            {
                let (train, test) =
                    (read(&train, limits.train, parquet)?, read(&test, limits.test, parquet)?);
                return Ok(Self::new(path, train, test));
            }
            if let Some((train, test)) =
                place.both(("data_batch_", ".bin"), ("test_batch", ".bin"))?
            {
                let (train, test) =
                    (read(&train, limits.train, binary)?, read(&test, limits.test, binary)?);
                return Ok(Self::new(path, train, test));
            }
        }
        let what = "holds neither train-*.parquet and test-*.parquet nor data_batch_*.bin and \
                    test_batch.bin; give the directory of CIFAR-10";
        Err(unusable(path, what))
    }

    fn new(path: &Path, train: Split, test: Split) -> Self {
        let digest = digest([&*train.pixels, &train.labels, &test.pixels, &test.labels]);
        Self { name: path.display().to_string(), train, test, digest }
    }
}

impl DataSet for Cifar10 {
    fn name(&self) -> &str {
        &self.name
    }

    fn outputs(&self) -> usize {
        CLASSES
    }

    fn digest(&self) -> &str {
        &self.digest
    }

    fn check(&self, input: Input) -> Result<(), Error> {
        if reads(input) { Ok(()) } else { Err(Error::misfit(input)) }
    }

    fn training(
        &self,
        seed: u64,
        _context: Option<usize>,
    ) -> Result<Box<dyn TrainingBatches + '_>, Error> {
        let (images, shuffle) = (&self.train, Shuffle::new(seed, self.train.len()));
        Ok(Box::new(Epochs { images, shuffle }))
    }

    fn held_out_len(&self) -> usize {
        self.test.len()
    }

    fn held_out(
        &self,
        protocol: Protocol,
        batch_size: usize,
        _context: Option<usize>,
        device: &Device,
    ) -> Result<Batches<'_>, Error> {
        match protocol {
            Protocol::Full => Ok(Box::new(self.test.batches(batch_size, device))),
            Protocol::Paper => Err(Error::PaperReadsText),
        }
    }
}

/// Shuffled epochs of images.
struct Epochs<'a> {
    images: &'a Split,
    shuffle: Shuffle,
}

impl TrainingBatches for Epochs<'_> {
    fn batch(&mut self, step: u64, batch_size: usize, device: &Device) -> Result<Batch, Error> {
        self.images.batch(&self.shuffle.batch(step, batch_size), device)
    }
}

impl Split {
    /// How many images there are.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Images by their numbers, as `(pixels, classes)`: f32 `[b, 3, 32, 32]` in \[0, 1\] and u32
    /// `[b]`. For shuffled epochs take the numbers from
    /// [`Shuffle::batch`](super::order::Shuffle::batch).
    ///
    /// # Errors
    /// One line that names a number out of range; candle's error if the device refuses.
    pub fn batch(&self, images: &[usize], device: &Device) -> Result<Batch, Error> {
        if let Some(image) = images.iter().find(|image| **image >= self.len()) {
            let what = format!("there is no image {image}: the split has {}", self.len());
            return Err(lipschitz_nn::Error::Input(what).into());
        }
        let mut pixels = vec![0f32; images.len() * PIXELS];
        pixels.par_chunks_mut(PIXELS).zip(images).for_each(|(out, i)| {
            for (out, byte) in out.iter_mut().zip(&self.pixels[i * PIXELS..(i + 1) * PIXELS]) {
                *out = f32::from(*byte) / 255.0;
            }
        });
        let labels: Vec<u32> = images.iter().map(|i| u32::from(self.labels[*i])).collect();
        let pixels = Tensor::from_vec(pixels, (images.len(), 3, SIDE, SIDE), device)?;
        Ok((pixels, Tensor::from_vec(labels, images.len(), device)?))
    }

    /// All images once, in order, in batches like [`Split::batch`]'s; the last one may be smaller.
    pub fn batches(
        &self,
        batch_size: usize,
        device: &Device,
    ) -> impl Iterator<Item = Result<Batch, Error>> + use<'_> {
        let (size, device) = (batch_size.max(1), device.clone());
        (0..self.len()).step_by(size).map(move |start| {
            let images: Vec<usize> = (start..self.len().min(start + size)).collect();
            self.batch(&images, &device)
        })
    }
}

/// The files of a directory, sorted.
struct Directory {
    path: PathBuf,
    files: Vec<PathBuf>,
}

impl Directory {
    fn read(path: &Path) -> Result<Self, Error> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(path).at(path)? {
            files.push(entry.at(path)?.path());
        }
        files.sort();
        Ok(Self { path: path.to_path_buf(), files })
    }

    /// The files of both splits, each with a name of this beginning and end; none if there are
    /// none of either.
    fn both(&self, train: Affixes, test: Affixes) -> Result<Option<SplitFiles<'_>>, Error> {
        let (training, testing) = (self.named(train), self.named(test));
        let lacks = |has: Affixes, lacks: Affixes| {
            let what = format!("has {} but lacks {}; fetch both", pattern(has), pattern(lacks));
            Err(unusable(&self.path, what))
        };
        match (training.is_empty(), testing.is_empty()) {
            (true, true) => Ok(None),
            (false, false) => Ok(Some((training, testing))),
            (true, false) => lacks(test, train),
            (false, true) => lacks(train, test),
        }
    }

    fn named(&self, (start, end): Affixes) -> Vec<&Path> {
        let fits = |file: &&Path| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with(start) && name.ends_with(end)
        };
        self.files.iter().map(PathBuf::as_path).filter(fits).collect()
    }
}

/// The files of the training and of the test split.
type SplitFiles<'a> = (Vec<&'a Path>, Vec<&'a Path>);

/// Beginning and end of the names of files.
type Affixes = (&'static str, &'static str);

/// `data_batch_*.bin`; of the original test set there is one file.
fn pattern((start, end): Affixes) -> String {
    if start == "test_batch" { format!("{start}{end}") } else { format!("{start}*{end}") }
}

/// An error about what a file or directory holds.
fn unusable(path: &Path, what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    lipschitz_nn::Error::file(path, what).into()
}

/// A file that the parquet library does not read.
#[derive(Debug, thiserror::Error)]
#[error("cannot be read as parquet ({said}); fetch it again")]
struct Unreadable {
    said: String,
    /// None where the library panicked.
    #[source]
    error: Option<ParquetError>,
}

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
enum BadImage {
    #[error("its image is damaged: {}", one_line(.0))]
    Decode(#[from] image::ImageError),
    #[error("its image is damaged: {}", one_line(.0))]
    Read(#[from] std::io::Error),
    /// The library panicked.
    #[error("{0}")]
    Panic(String),
    #[error("its image is damaged: the JPEG is cut short")]
    CutShort,
    #[error("its image is neither JPEG nor PNG")]
    Format,
    #[error("its image is {0} × {1}, not {SIDE} × {SIDE}")]
    Size(u32, u32),
}

/// Which row an image belongs to.
#[derive(Debug, thiserror::Error)]
#[error("row {row}: {error}; fetch the file again or leave the row out")]
struct BadRow {
    row: usize,
    #[source]
    error: BadImage,
}

/// The images of several files, at most `limit`; `one` reads a file.
fn read(
    files: &[&Path],
    limit: Option<usize>,
    one: fn(&Path, usize) -> Result<Split, Error>,
) -> Result<Split, Error> {
    let limit = limit.unwrap_or(usize::MAX);
    let mut all = Split::default();
    for file in files {
        if all.len() < limit {
            let split = one(file, limit - all.len())?;
            all.pixels.extend(split.pixels);
            all.labels.extend(split.labels);
        }
    }
    match files.first() {
        Some(file) if all.is_empty() && limit > 0 => {
            Err(unusable(file, "holds no images; fetch it again"))
        }
        _ => Ok(all),
    }
}

/// An original batch: for each image its class and its pixels.
fn binary(path: &Path, limit: usize) -> Result<Split, Error> {
    let bytes = std::fs::read(path).at(path)?;
    let records = bytes.chunks_exact(1 + PIXELS);
    let over = records.remainder().len();
    if over > 0 {
        let what = format!(
            "is cut short: after {} images of {} bytes there are {over} bytes more; fetch it again",
            bytes.len() / (1 + PIXELS),
            1 + PIXELS
        );
        return Err(unusable(path, what));
    }
    let mut split = Split::default();
    for (row, record) in records.take(limit).enumerate() {
        split.labels.push(class(path, row, i64::from(record[0]))?);
        split.pixels.extend(&record[1..]);
    }
    Ok(split)
}

/// A parquet file with the columns `img` (a group with `bytes`) and `label`.
fn parquet(path: &Path, limit: usize) -> Result<Split, Error> {
    let file = File::open(path).at(path)?;
    if let Some(known) = kind::at(path).filter(|known| **known != kind::PARQUET) {
        return Err(unusable(path, known.instead_of("a Parquet file")));
    }
    let rows = || {
        SerializedFileReader::new(file)?
            .get_row_iter(None)?
            .take(limit)
            .collect::<Result<Vec<Row>, ParquetError>>()
    };
    let rows = match caught(rows) {
        Ok(Ok(rows)) => rows,
        Ok(Err(error)) => {
            let (said, error) = (one_line(&error), Some(error));
            return Err(unusable(path, Unreadable { said, error }));
        }
        Err(said) => return Err(unusable(path, Unreadable { said, error: None })),
    };
    let rows = rows.into_iter().enumerate().map(|(number, row)| record(path, number, row));
    let rows: Vec<(ByteArray, u8)> = rows.collect::<Result<_, _>>()?;
    let decoded = rows.par_iter().enumerate().map(|(row, (bytes, _))| {
        let planes = caught(|| planes(bytes.data())).unwrap_or_else(|e| Err(BadImage::Panic(e)));
        planes.map_err(|error| unusable(path, BadRow { row, error }))
    });
    let pixels: Vec<Vec<u8>> = decoded.collect::<Result<_, _>>()?;
    Ok(Split {
        pixels: pixels.concat(),
        labels: rows.into_iter().map(|(_, label)| label).collect(),
    })
}

/// The compressed image and the class of a row.
fn record(path: &Path, number: usize, row: Row) -> Result<(ByteArray, u8), Error> {
    let wrong = |name: &str, what: &str| {
        Err(unusable(path, format!("row {number}: column `{name}` {what}")))
    };
    let columns = row.into_columns();
    let label = match column(path, columns.clone(), "label", "")? {
        Field::Long(label) => label,
        Field::Int(label) => i64::from(label),
        Field::Null => return wrong("label", "is empty; leave the row out"),
        other => return wrong("label", &format!("holds {}, not whole numbers", holds(&other))),
    };
    let label = class(path, number, label)?;
    let image = match column(path, columns, "img", "")? {
        Field::Group(group) => column(path, group.into_columns(), "bytes", "column `img` ")?,
        other => {
            let what = format!("holds {}, not a group with `bytes` in it", holds(&other));
            return wrong("img", &what);
        }
    };
    match image {
        Field::Bytes(bytes) => Ok((bytes, label)),
        Field::Null => wrong(
            "img",
            "has no bytes (a link to a file is not followed); give files with the images in",
        ),
        other => wrong("img", &format!("has {} as `bytes`", holds(&other))),
    }
}

/// A column by its name; `inside` says what it is looked for in.
fn column(
    path: &Path,
    columns: Vec<(String, Field)>,
    name: &str,
    inside: &str,
) -> Result<Field, Error> {
    let there = columns.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let found = columns.into_iter().find(|(there, _)| there == name).map(|(_, field)| field);
    found.ok_or_else(|| {
        let what = format!(
            "{inside}has no column `{name}`, only {there}; give CIFAR-10 with `img` and `label`"
        );
        unusable(path, what)
    })
}

/// What a field holds, in words.
fn holds(field: &Field) -> &'static str {
    match field {
        Field::Null => "nothing",
        Field::Group(_) => "groups",
        Field::ListInternal(_) => "lists",
        Field::Str(_) => "text",
        Field::Bytes(_) => "bytes",
        Field::Float(_) | Field::Double(_) | Field::Float16(_) => "floating-point numbers",
        _ => "another type",
    }
}

fn class(path: &Path, row: usize, label: i64) -> Result<u8, Error> {
    let class = u8::try_from(label).ok().filter(|class| usize::from(*class) < CLASSES);
    class.ok_or_else(|| {
        let what = format!("row {row}: class {label} is not in 0..{CLASSES}; is this CIFAR-10?");
        unusable(path, what)
    })
}

/// The three planes of a JPEG or PNG of 32 × 32.
fn planes(bytes: &[u8]) -> Result<Vec<u8>, BadImage> {
    let reader = || ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    let format = reader()?.format();
    if !matches!(format, Some(ImageFormat::Jpeg | ImageFormat::Png)) {
        return Err(BadImage::Format);
    }
    // The decoder fills what is missing of a JPEG with grey, so look for the end marker.
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    if format == Some(ImageFormat::Jpeg) && !bytes[..end].ends_with(&[0xff, 0xd9]) {
        return Err(BadImage::CutShort);
    }
    let (width, height) = reader()?.into_dimensions()?;
    if (width as usize, height as usize) != (SIDE, SIDE) {
        return Err(BadImage::Size(width, height));
    }
    let image = reader()?.decode()?.into_rgb8();
    Ok((0..3).flat_map(|channel| image.as_raw().iter().skip(channel).step_by(3)).copied().collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use image::{DynamicImage, RgbImage};
    use parquet::data_type::{ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;

    const SCHEMA: &str =
        "message m { optional group img { optional binary bytes; } optional int64 label; }";

    fn image(shade: u8, side: u32, format: ImageFormat) -> Vec<u8> {
        let pixel = |x: u32, y: u32| image::Rgb([shade, x as u8, y as u8]);
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(RgbImage::from_fn(side, side, pixel))
            .write_to(&mut bytes, format)
            .unwrap();
        bytes.into_inner()
    }

    fn png(shade: u8) -> Vec<u8> {
        image(shade, 32, ImageFormat::Png)
    }

    fn write_parquet(path: &Path, schema: &str, rows: &[(Vec<u8>, i64)]) {
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let nested = schema.get_fields()[0].is_group();
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer =
            SerializedFileWriter::new(File::create(path).unwrap(), schema, properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        let images: Vec<ByteArray> = rows.iter().map(|(bytes, _)| bytes.clone().into()).collect();
        let labels: Vec<i64> = rows.iter().map(|(_, label)| *label).collect();
        let mut column = group.next_column().unwrap().unwrap();
        let levels = vec![if nested { 2 } else { 1 }; rows.len()];
        column.typed::<ByteArrayType>().write_batch(&images, Some(&levels), None).unwrap();
        column.close().unwrap();
        let mut column = group.next_column().unwrap().unwrap();
        column.typed::<Int64Type>().write_batch(&labels, Some(&vec![1; rows.len()]), None).unwrap();
        column.close().unwrap();
        group.close().unwrap();
        writer.close().unwrap();
    }

    fn directory(rows: &[(Vec<u8>, i64)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        write_parquet(&directory.path().join("train-00000-of-00001.parquet"), SCHEMA, rows);
        write_parquet(
            &directory.path().join("test-00000-of-00001.parquet"),
            SCHEMA,
            &[(png(9), 9)],
        );
        directory
    }

    fn refusal(path: &Path) -> String {
        let error = format!("{:#}", Cifar10::load(path, Limits::default()).unwrap_err());
        assert!(error.starts_with(&path.display().to_string()) && !error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn parquet_and_binary_batches_of_the_same_images_are_the_same_data() {
        let rows: Vec<_> = (0..5).map(|i| (png(40 * i), i64::from(i))).collect();
        let from_parquet = Cifar10::load(directory(&rows).path(), Limits::default()).unwrap();
        let original = tempfile::tempdir().unwrap();
        let record = |label: u8, shade: u8| {
            let plane = |value: fn(u8, u8, u8) -> u8| {
                (0..32)
                    .flat_map(move |y| (0..32).map(move |x| value(shade, x, y)))
                    .collect::<Vec<u8>>()
            };
            [vec![label], plane(|s, _, _| s), plane(|_, x, _| x), plane(|_, _, y| y)].concat()
        };
        let batch =
            |from: u8, to: u8| (from..to).flat_map(|i| record(i, 40 * i)).collect::<Vec<u8>>();
        std::fs::write(original.path().join("data_batch_1.bin"), batch(0, 3)).unwrap();
        std::fs::write(original.path().join("data_batch_2.bin"), batch(3, 5)).unwrap();
        std::fs::write(original.path().join("test_batch.bin"), record(9, 9)).unwrap();
        let from_binary = Cifar10::load(original.path(), Limits::default()).unwrap();
        assert_eq!(from_parquet.train, from_binary.train);
        assert_eq!(from_parquet.test, from_binary.test);
        assert_eq!(from_parquet.digest, from_binary.digest);
        let few = Cifar10::load(original.path(), Limits { train: Some(4), test: Some(0) }).unwrap();
        assert_eq!((few.train.len(), few.test.len()), (4, 0));
        assert_eq!(few.train.labels, [0, 1, 2, 3]);
        assert_ne!(few.digest, from_binary.digest);
    }

    #[test]
    fn batches_are_pixels_over_255_with_their_classes() {
        let rows: Vec<_> = (0..5).map(|i| (png(40 * i), i64::from(i))).collect();
        let data = Cifar10::load(directory(&rows).path(), Limits::default()).unwrap().train;
        let (pixels, labels) = data.batch(&[3, 0], &Device::Cpu).unwrap();
        assert_eq!(
            (pixels.dims(), labels.to_vec1::<u32>().unwrap()),
            ([2, 3, 32, 32].as_slice(), vec![3, 0])
        );
        let at = |c: usize, y: usize, x: usize| {
            pixels.get(0).and_then(|p| p.get(c)?.get(y)?.get(x)?.to_scalar::<f32>()).unwrap()
        };
        assert_eq!(
            (at(0, 1, 2), at(1, 1, 2), at(2, 1, 2)),
            (120.0 / 255.0, 2.0 / 255.0, 1.0 / 255.0)
        );
        let all: Vec<u32> = data
            .batches(2, &Device::Cpu)
            .flat_map(|b| b.unwrap().1.to_vec1::<u32>().unwrap())
            .collect();
        assert_eq!(all, [0, 1, 2, 3, 4]);
        assert!(data.batch(&[5], &Device::Cpu).unwrap_err().to_string().contains("no image 5"));
    }

    #[test]
    fn damaged_images_and_rows_are_named() {
        let jpeg = image(100, 32, ImageFormat::Jpeg);
        let mut wrong_png = png(1);
        let middle = wrong_png.len() / 2;
        wrong_png[middle] ^= 0x55;
        for (bytes, label, says) in [
            (
                jpeg[..jpeg.len() / 2].to_vec(),
                1,
                "row 1: its image is damaged: the JPEG is cut short",
            ),
            ([&jpeg[..4], &[0xff, 0xd9]].concat(), 1, "row 1: its image is damaged"),
            (wrong_png, 1, "row 1: its image is damaged"),
            (png(1)[..60].to_vec(), 1, "row 1: its image is damaged"),
            (Vec::new(), 1, "row 1: its image is neither JPEG nor PNG"),
            (b"GIF89a and more".to_vec(), 1, "row 1: its image is neither JPEG nor PNG"),
            (image(1, 28, ImageFormat::Png), 1, "row 1: its image is 28 × 28, not 32 × 32"),
            (png(1), 10, "row 1: class 10 is not in 0..10"),
            (png(1), -1, "row 1: class -1 is not in 0..10"),
        ] {
            let error = refusal(directory(&[(jpeg.clone(), 0), (bytes, label)]).path());
            assert!(error.contains(says) && error.contains("train-00000"), "{error}");
        }
    }

    #[test]
    fn missing_columns_and_files_are_named() {
        let with = |schema: &str| {
            let directory = directory(&[(png(1), 1)]);
            write_parquet(
                &directory.path().join("train-00000-of-00001.parquet"),
                schema,
                &[(png(1), 1)],
            );
            refusal(directory.path())
        };
        let image = with(
            "message m { optional group image { optional binary bytes; } optional int64 label; }",
        );
        assert!(image.contains("no column `img`, only `image`, `label`"), "{image}");
        let fine = with(
            "message m \
             { optional group img { optional binary bytes; } optional int64 fine_label; }",
        );
        assert!(fine.contains("no column `label`"), "{fine}");
        let file = with(
            "message m { optional group img { optional binary data; } optional int64 label; }",
        );
        assert!(file.contains("column `img` has no column `bytes`, only `data`"), "{file}");
        let flat = with("message m { optional binary img; optional int64 label; }");
        assert!(flat.contains("holds bytes, not a group"), "{flat}");

        let empty = tempfile::tempdir().unwrap();
        assert!(refusal(empty.path()).contains("holds neither"));
        assert!(refusal(&empty.path().join("nowhere")).contains("no such file"));
        std::fs::write(empty.path().join("data_batch_1.bin"), vec![0; 2 * (1 + PIXELS) - 1])
            .unwrap();
        assert!(refusal(empty.path()).contains("lacks test_batch.bin"));
        std::fs::write(empty.path().join("test_batch.bin"), [0; 1 + PIXELS]).unwrap();
        assert!(refusal(empty.path()).contains("cut short: after 1 images"));
        std::fs::write(empty.path().join("data_batch_1.bin"), "").unwrap();
        assert!(refusal(empty.path()).contains("holds no images"));
    }

    #[test]
    fn no_damage_to_a_parquet_file_is_a_panic() {
        let place = directory(&[(png(1), 1), (image(2, 32, ImageFormat::Jpeg), 2)]);
        let path = place.path().join("train-00000-of-00001.parquet");
        let whole = std::fs::read(&path).unwrap();
        for at in 0..whole.len() {
            for mask in [0xff, 0x01, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= mask;
                std::fs::write(&path, &bytes).unwrap();
                if let Err(e) = Cifar10::load(place.path(), Limits::default()) {
                    assert!(!e.to_string().contains('\n'), "{e}");
                }
            }
        }
        for length in (0..whole.len()).step_by(7) {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(Cifar10::load(place.path(), Limits::default()).is_err());
        }
    }
}
