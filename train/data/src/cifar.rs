//! CIFAR-10 and CIFAR-100, from a Hugging Face parquet directory or the original binary batches.
//!
//! Images compressed as JPEG differ a little from the original pixels: say so beside a figure.

use std::fs::File;
use std::path::{Path, PathBuf};

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
use crate::decode::{BadImage, decode};
use crate::error::{in_range_if, one_line, unusable};
use crate::examples::{Examples, Split};
use crate::{DataKind, DataSet, Error};

/// Height and width of an image.
pub const SIDE: usize = 32;

/// Bytes of an image: three planes (red, green, blue), each by rows.
pub const PIXELS: usize = 3 * SIDE * SIDE;

/// The classes of CIFAR-10.
pub const CLASSES: usize = 10;

/// The shape of an image.
const SHAPE: [usize; 3] = [3, SIDE, SIDE];

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

/// `kind = "cifar100"`: a Hugging Face parquet directory or the original binary files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Cifar100Config {
    /// The directory.
    pub path: PathBuf,
    /// Which labels: the 100 fine ones or the 20 coarse ones.
    #[serde(default)]
    pub labels: Labels,
    /// Training images to use; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_train: Option<usize>,
    /// Test images to use; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_test: Option<usize>,
}

/// The labels of CIFAR-100.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Labels {
    /// 100 classes.
    #[default]
    Fine,
    /// Their 20 groups.
    Coarse,
}

/// What differs between the data sets.
struct Layout {
    name: &'static str,
    classes: usize,
    /// The column of the class.
    column: &'static str,
    /// Bytes before the pixels of a record, and the one that is the class.
    labels: usize,
    label: usize,
    /// The binary files of each split.
    train: Affixes,
    test: Affixes,
    /// Where the files may lie inside of the directory.
    inside: [&'static str; 2],
}

const TEN: Layout = Layout {
    name: "CIFAR-10",
    classes: CLASSES,
    column: "label",
    labels: 1,
    label: 0,
    train: ("data_batch_", ".bin"),
    test: ("test_batch", ".bin"),
    inside: ["plain_text", "cifar-10-batches-bin"],
};

const FINE: Layout = Layout {
    name: "CIFAR-100",
    classes: 100,
    column: "fine_label",
    labels: 2,
    label: 1,
    train: ("train", ".bin"),
    test: ("test", ".bin"),
    inside: ["cifar100", "cifar-100-binary"],
};

const COARSE: Layout = Layout { classes: 20, column: "coarse_label", label: 0, ..FINE };

impl Labels {
    fn layout(self) -> &'static Layout {
        match self {
            Self::Fine => &FINE,
            Self::Coarse => &COARSE,
        }
    }
}

fn check(limits: Limits) -> Result<(), Error> {
    for (key, limit) in [("limit_train", limits.train), ("limit_test", limits.test)] {
        in_range_if(key, limit, 1..=usize::MAX >> 1)?;
    }
    Ok(())
}

fn is_shape(input: Input) -> bool {
    matches!(input, Input::Pixels { channels: 3, height: SIDE, width: SIDE })
}

impl Cifar10Config {
    fn limits(&self) -> Limits {
        Limits { train: self.limit_train, test: self.limit_test }
    }
}

impl DataKind for Cifar10Config {
    fn check(&self) -> Result<(), Error> {
        check(self.limits())
    }

    fn load(&self) -> Result<Box<dyn DataSet>, Error> {
        self.check()?;
        Ok(Box::new(load10(&self.path, self.limits())?))
    }

    /// The first image of each split.
    fn load_little(&self) -> Result<Box<dyn DataSet>, Error> {
        Ok(Box::new(load10(&self.path, Limits { train: Some(1), test: Some(1) })?))
    }

    fn reads(&self, input: Input) -> bool {
        is_shape(input)
    }

    fn outputs(&self) -> Option<usize> {
        Some(CLASSES)
    }

    fn input(&self) -> Option<Input> {
        Some(crate::examples::input(&SHAPE))
    }
}

impl Cifar100Config {
    fn limits(&self) -> Limits {
        Limits { train: self.limit_train, test: self.limit_test }
    }
}

impl DataKind for Cifar100Config {
    fn check(&self) -> Result<(), Error> {
        check(self.limits())
    }

    fn load(&self) -> Result<Box<dyn DataSet>, Error> {
        self.check()?;
        Ok(Box::new(load100(&self.path, self.labels, self.limits())?))
    }

    /// The first image of each split.
    fn load_little(&self) -> Result<Box<dyn DataSet>, Error> {
        let little = Limits { train: Some(1), test: Some(1) };
        Ok(Box::new(load100(&self.path, self.labels, little)?))
    }

    fn reads(&self, input: Input) -> bool {
        is_shape(input)
    }

    fn outputs(&self) -> Option<usize> {
        Some(self.labels.layout().classes)
    }

    fn input(&self) -> Option<Input> {
        Some(crate::examples::input(&SHAPE))
    }
}

/// How many images to keep of each split, from its beginning; all unless told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// At most so many to train on.
    pub train: Option<usize>,
    /// At most so many to test on.
    pub test: Option<usize>,
}

/// Reads a directory that holds `train-*.parquet` and `test-*.parquet` (or `plain_text/` with
/// these), or `data_batch_*.bin` and `test_batch.bin` (or `cifar-10-batches-bin/` with these).
///
/// # Errors
/// One line that names the file, and the row in it: missing, not parquet, a column that is not
/// there, a image that is damaged or has another size, a class out of range, a binary batch
/// that is cut short.
pub fn load10(path: &Path, limits: Limits) -> Result<Examples, Error> {
    load(path, limits, &TEN)
}

/// Reads a directory that holds `train-*.parquet` and `test-*.parquet` (or `cifar100/` with these),
/// or `train.bin` and `test.bin` (or `cifar-100-binary/` with these).
///
/// # Errors
/// As [`load10`].
pub fn load100(path: &Path, labels: Labels, limits: Limits) -> Result<Examples, Error> {
    load(path, limits, labels.layout())
}

/// Whether a directory holds files under the names of these data sets.
pub(crate) fn is_here(path: &Path) -> bool {
    let layouts = [&TEN, &FINE];
    let inside = layouts.iter().flat_map(|l| l.inside).map(|name| path.join(name));
    inside.chain([path.to_path_buf()]).any(|place| {
        let Ok(place) = Directory::read(&place) else { return false };
        [PARQUET_TRAIN, PARQUET_TEST, TEN.train, TEN.test, FINE.train, FINE.test]
            .iter()
            .any(|affixes| !place.named(*affixes).is_empty())
    })
}

const PARQUET_TRAIN: Affixes = ("train-", ".parquet");
const PARQUET_TEST: Affixes = ("test-", ".parquet");

fn load(path: &Path, limits: Limits, layout: &Layout) -> Result<Examples, Error> {
    let mut places = vec![Directory::read(path)?];
    for inside in layout.inside.map(|name| path.join(name)) {
        if inside.is_dir() {
            places.push(Directory::read(&inside)?);
        }
    }
    for place in &places {
        let found = |train, test, one| -> Result<Option<Examples>, Error> {
            let Some((train, test)) = place.both(train, test)? else { return Ok(None) };
            let parts =
                [read(&train, limits.train, layout, one)?, read(&test, limits.test, layout, one)?];
            let name = path.display().to_string();
            Ok(Some(Examples::new(name, parts, layout.classes, Vec::new())))
        };
        if let Some(examples) = found(PARQUET_TRAIN, PARQUET_TEST, parquet)? {
            return Ok(examples);
        }
        if let Some(examples) = found(layout.train, layout.test, binary)? {
            return Ok(examples);
        }
    }
    let what = format!(
        "holds neither train-*.parquet and test-*.parquet nor {} and {}; give the directory of {}",
        pattern(layout.train),
        pattern(layout.test),
        layout.name
    );
    Err(unusable(path, what))
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

/// `data_batch_*.bin`; of the other binary files there is one each.
fn pattern((start, end): Affixes) -> String {
    if end == ".bin" && !start.ends_with('_') {
        format!("{start}{end}")
    } else {
        format!("{start}*{end}")
    }
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
    layout: &Layout,
    one: fn(&Path, usize, &Layout) -> Result<Records, Error>,
) -> Result<Split, Error> {
    let limit = limit.unwrap_or(usize::MAX);
    let (mut pixels, mut classes) = (Vec::new(), Vec::new());
    for file in files {
        if classes.len() < limit {
            let (more, labels) = one(file, limit - classes.len(), layout)?;
            pixels.extend(more);
            classes.extend(labels);
        }
    }
    match files.first() {
        Some(file) if classes.is_empty() && limit > 0 => {
            Err(unusable(file, "holds no images; fetch it again"))
        }
        _ => Ok(Split::images(SHAPE, pixels, classes)),
    }
}

/// Pixels of images and their classes.
type Records = (Vec<u8>, Vec<u32>);

/// An original batch: for each image its labels and its pixels.
fn binary(path: &Path, limit: usize, layout: &Layout) -> Result<Records, Error> {
    kind::no_device(path)?;
    let bytes = std::fs::read(path).at(path)?;
    let size = layout.labels + PIXELS;
    let records = bytes.chunks_exact(size);
    let over = records.remainder().len();
    if over > 0 {
        let what = format!(
            "is cut short: after {} images of {size} bytes there are {over} bytes more; fetch it \
             again",
            bytes.len() / size
        );
        return Err(unusable(path, what));
    }
    let (mut pixels, mut classes) = (Vec::new(), Vec::new());
    for (row, record) in records.take(limit).enumerate() {
        classes.push(class(path, row, i64::from(record[layout.label]), layout)?);
        pixels.extend(&record[layout.labels..]);
    }
    Ok((pixels, classes))
}

/// A parquet file with the columns `img` (a group with `bytes`) and `label`, or another label.
fn parquet(path: &Path, limit: usize, layout: &Layout) -> Result<Records, Error> {
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
    let rows = rows.into_iter().enumerate().map(|(number, row)| record(path, number, row, layout));
    let rows: Vec<(ByteArray, u32)> = rows.collect::<Result<_, _>>()?;
    let decoded = rows.par_iter().enumerate().map(|(row, (bytes, _))| {
        let planes = decode(bytes.data(), [SIDE, SIDE]).map(|planes| planes.coloured().pixels);
        planes.map_err(|error| unusable(path, BadRow { row, error }))
    });
    let pixels: Vec<Vec<u8>> = decoded.collect::<Result<_, _>>()?;
    Ok((pixels.concat(), rows.into_iter().map(|(_, label)| label).collect()))
}

/// The compressed image and the class of a row.
fn record(
    path: &Path,
    number: usize,
    row: Row,
    layout: &Layout,
) -> Result<(ByteArray, u32), Error> {
    let wrong = |name: &str, what: &str| {
        Err(unusable(path, format!("row {number}: column `{name}` {what}")))
    };
    let columns = row.into_columns();
    let label = match column(path, columns.clone(), layout, layout.column, "")? {
        Field::Long(label) => label,
        Field::Int(label) => i64::from(label),
        Field::Null => return wrong(layout.column, "is empty; leave the row out"),
        other => {
            let what = format!("holds {}, not whole numbers", holds(&other));
            return wrong(layout.column, &what);
        }
    };
    let label = class(path, number, label, layout)?;
    let image = match column(path, columns, layout, "img", "")? {
        Field::Group(group) => {
            column(path, group.into_columns(), layout, "bytes", "column `img` ")?
        }
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
    layout: &Layout,
    name: &str,
    inside: &str,
) -> Result<Field, Error> {
    let there = columns.iter().map(|(name, _)| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let found = columns.into_iter().find(|(there, _)| there == name).map(|(_, field)| field);
    found.ok_or_else(|| {
        let what = format!(
            "{inside}has no column `{name}`, only {there}; give {} with `img` and `{}`",
            layout.name, layout.column
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

fn class(path: &Path, row: usize, label: i64, layout: &Layout) -> Result<u32, Error> {
    let class = u32::try_from(label).ok().filter(|class| (*class as usize) < layout.classes);
    class.ok_or_else(|| {
        let Layout { name, classes, .. } = layout;
        let what = format!("row {row}: class {label} is not in 0..{classes}; is this {name}?");
        unusable(path, what)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::sync::Arc;

    use candle_core::Device;
    use image::{DynamicImage, ImageFormat, RgbImage};
    use parquet::data_type::{ByteArrayType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;

    use super::*;
    use crate::examples::Targets;

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
        let error = format!("{:#}", load10(path, Limits::default()).unwrap_err());
        assert!(error.starts_with(&path.display().to_string()) && !error.contains('\n'), "{error}");
        error
    }

    #[test]
    fn parquet_and_binary_batches_of_the_same_images_are_the_same_data() {
        let rows: Vec<_> = (0..5).map(|i| (png(40 * i), i64::from(i))).collect();
        let from_parquet = load10(directory(&rows).path(), Limits::default()).unwrap();
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
        let from_binary = load10(original.path(), Limits::default()).unwrap();
        assert_eq!(from_parquet.train, from_binary.train);
        assert_eq!(from_parquet.test, from_binary.test);
        assert_eq!(from_parquet.digest, from_binary.digest);
        let few = load10(original.path(), Limits { train: Some(4), test: Some(0) }).unwrap();
        assert_eq!((few.train.len(), few.test.len()), (4, 0));
        assert_eq!(few.train.targets, Targets::Classes(vec![0, 1, 2, 3]));
        assert_ne!(few.digest, from_binary.digest);
    }

    #[test]
    fn batches_are_pixels_over_255_with_their_classes() {
        let rows: Vec<_> = (0..5).map(|i| (png(40 * i), i64::from(i))).collect();
        let data = load10(directory(&rows).path(), Limits::default()).unwrap().train;
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
        assert!(data.batch(&[5], &Device::Cpu).unwrap_err().to_string().contains("no example 5"));
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
                if let Err(e) = load10(place.path(), Limits::default()) {
                    assert!(!e.to_string().contains('\n'), "{e}");
                }
            }
        }
        for length in (0..whole.len()).step_by(7) {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(load10(place.path(), Limits::default()).is_err());
        }
    }

    #[test]
    fn cifar_100_has_two_kinds_of_labels_in_both_formats() {
        let original = tempfile::tempdir().unwrap();
        let record = |coarse: u8, fine: u8| [vec![coarse, fine], vec![7; PIXELS]].concat();
        let train = [record(3, 40), record(19, 99)].concat();
        std::fs::write(original.path().join("train.bin"), &train).unwrap();
        std::fs::write(original.path().join("test.bin"), record(0, 5)).unwrap();
        let of = |labels| load100(original.path(), labels, Limits::default()).unwrap();
        let (fine, coarse) = (of(Labels::Fine), of(Labels::Coarse));
        assert_eq!((fine.outputs, coarse.outputs), (100, 20));
        assert_eq!(fine.train.targets, Targets::Classes(vec![40, 99]));
        assert_eq!(coarse.train.targets, Targets::Classes(vec![3, 19]));
        let parquet = tempfile::tempdir().unwrap();
        let schema = "message m \
             { optional group img { optional binary bytes; } optional int64 fine_label; }";
        for name in ["train-0.parquet", "test-0.parquet"] {
            write_parquet(&parquet.path().join(name), schema, &[(png(1), 99), (png(2), 3)]);
        }
        let load = |labels| load100(parquet.path(), labels, Limits::default());
        let split = load(Labels::Fine).unwrap().train;
        assert_eq!(split.targets, Targets::Classes(vec![99, 3]));
        let said = load(Labels::Coarse).unwrap_err().to_string();
        assert!(said.contains("no column `coarse_label`") && said.contains("CIFAR-100"), "{said}");
        std::fs::write(original.path().join("test.bin"), record(20, 100)).unwrap();
        let said = |labels| {
            let error = load100(original.path(), labels, Limits::default()).unwrap_err();
            error.to_string()
        };
        assert!(said(Labels::Fine).contains("class 100 is not in 0..100"));
        assert!(said(Labels::Coarse).contains("class 20 is not in 0..20"));
    }
}
