//! A folder of images: a folder of each class, with PNG and JPEG files of one size.

use std::path::{Path, PathBuf};

use lipschitz_nn::graph::Input;
use lipschitz_nn::{At, kind};
use rayon::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decode::{Planes, decode, size};
use crate::error::unusable;
use crate::examples::{Examples, Split, input};
use crate::held_out::{self, TENTH};
use crate::{DataKind, DataSet, Error, memory};

/// `kind = "images"`: a folder with a folder of each class, of PNG and JPEG files.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ImagesConfig {
    /// The folder. Each folder in it is a class; the classes are numbered by name.
    pub path: PathBuf,
    /// A folder of the same classes that is held out as a whole, in place of a share of `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_path: Option<PathBuf>,
    /// The share of each class that is held out; a tenth without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
    /// Channels, height and width that the images must have; as they are without it. Grey images
    /// have one channel, and three where others of the folder are in colour, or where this says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shape: Option<[usize; 3]>,
    /// How many classes there must be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
}

impl ImagesConfig {
    /// A folder of which a tenth is held out.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), val_path: None, val_fraction: None, shape: None, classes: None }
    }

    /// The held-out part for a model that was trained on these classes and on data of this digest; all
    /// of `path` if that is not what it was trained on.
    pub(crate) fn held_out(
        &self,
        path: &Path,
        (classes, shape): (&[String], [usize; 3]),
        trained: Option<&str>,
    ) -> Result<Examples, Error> {
        let part = held_out::part(path, &self.path, self.val_path.as_deref());
        let (from, beside) = part.paths(path, self.val_path.as_deref());
        let list = |path: &Path| {
            let folder = Folder::list(path)?;
            if classes.is_empty() { Ok(folder) } else { folder.renumbered(classes) }
        };
        let beside = beside.and_then(|path| list(path).ok()?.read(Some(shape)).ok());
        let held_out = (beside, self.val_fraction.unwrap_or(TENTH));
        let folder = list(from)?;
        let reads = |[_, height, width]: [usize; 3], channels| input(&[channels, height, width]);
        let all = folder.read(Some(shape)).map_err(|error| match error {
            Error::Contradiction { .. } => {
                Error::misfit_of(reads(shape, shape[0]), reads(shape, 3))
            }
            error => error,
        })?;
        let name = from.display().to_string();
        let parts = held_out::unseen(&name, all, &part, held_out, trained)?;
        Ok(Examples::new(name, parts, folder.classes.len(), folder.classes))
    }
}

impl DataKind for ImagesConfig {
    fn check(&self) -> Result<(), Error> {
        held_out::check(&self.path, self.val_path.as_deref(), self.val_fraction)
    }

    fn load(&self) -> Result<Box<dyn DataSet>, Error> {
        Ok(Box::new(load(self)?))
    }

    fn reads(&self, input: Input) -> bool {
        matches!(input, Input::Pixels { .. })
    }

    /// Where the shape is said, too: a network needs both.
    fn outputs(&self) -> Option<usize> {
        self.shape.and(self.classes)
    }

    fn input(&self) -> Option<Input> {
        self.shape.map(|shape| input(&shape))
    }
}

/// Reads a folder of images, and another one that is held out if there is one.
///
/// # Errors
/// One line that names the folder or the file: missing, a single class, an empty one, a file that is
/// no PNG or JPEG, is damaged, has another size than the first; or more pixels than memory holds.
pub fn load(config: &ImagesConfig) -> Result<Examples, Error> {
    config.check()?;
    let folder = Folder::list(&config.path)?;
    let name = config.path.display().to_string();
    let count = folder.classes.len();
    if let Some(wanted) = config.classes.filter(|wanted| *wanted != count) {
        let (said, found) = (wanted.to_string(), format!("{count} classes"));
        return Err(Error::Contradiction { name, key: "classes", said, found });
    }
    if count < 2 {
        return Err(unusable(&config.path, "holds a single class; give a folder of each of two"));
    }
    let all = folder.read(config.shape)?;
    let parts = match &config.val_path {
        None => held_out::split(&name, &all, config.val_fraction.unwrap_or(TENTH))?,
        Some(path) => {
            let shape = [all.shape[0], all.shape[1], all.shape[2]];
            let held = Folder::list(path)?.renumbered(&folder.classes)?.read(Some(shape))?;
            [all, held]
        }
    };
    Ok(Examples::new(name, parts, count, folder.classes))
}

/// Whether a directory holds a folder with an image in it.
pub(crate) fn is_here(path: &Path) -> bool {
    let folders = entries(path).into_iter().flatten().filter(|path| path.is_dir());
    folders.take(1000).any(|folder| entries(&folder).into_iter().flatten().any(|f| is_image(&f)))
}

/// The classes of a folder and the files of each.
struct Folder {
    path: PathBuf,
    classes: Vec<String>,
    /// Each with its class.
    files: Vec<(PathBuf, u32)>,
}

/// What a directory holds, sorted, without hidden files and those that file managers leave.
fn entries(path: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).at(path)? {
        let entry = entry.at(path)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with('.') && !["Thumbs.db", "desktop.ini"].contains(&&*name) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

fn is_image(path: &Path) -> bool {
    let end = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ["png", "jpg", "jpeg"].contains(&end.as_str()) && path.is_file()
}

/// The largest file that is read as an image, in bytes.
const LARGEST: u64 = 1 << 28;

impl Folder {
    fn list(path: &Path) -> Result<Self, Error> {
        if !path.exists() {
            return Err(Error::NoDirectory(path.to_path_buf()));
        }
        let (mut classes, mut files) = (Vec::new(), Vec::new());
        for folder in entries(path)? {
            if is_image(&folder) {
                return Err(unusable(&folder, "lies in no class; put it in a folder of its class"));
            }
            if !folder.is_dir() {
                continue;
            }
            let class = classes.len() as u32;
            let before = files.len();
            for file in entries(&folder)? {
                if file.is_dir() {
                    let what = format!(
                        "lies in the folder of a class; give the folder above the classes, such as {}, \
                         and another one that is held out",
                        folder.display()
                    );
                    return Err(unusable(&file, what));
                }
                if !is_image(&file) {
                    let what =
                        "is called neither .png nor .jpg, and lies among images; take it out";
                    return Err(unusable(&file, what));
                }
                files.push((file, class));
            }
            if files.len() == before {
                return Err(unusable(&folder, "holds no images; take the folder out or fill it"));
            }
            let name = folder.file_name().unwrap_or_default();
            classes.push(name.to_string_lossy().into_owned());
        }
        if classes.is_empty() {
            return Err(unusable(path, "holds no folders; give one with a folder of each class"));
        }
        Ok(Self { path: path.to_path_buf(), classes, files })
    }

    /// The same files under the numbers that these classes have in another folder.
    fn renumbered(self, classes: &[String]) -> Result<Self, Error> {
        let number = |name: &String| {
            classes.iter().position(|class| class == name).ok_or_else(|| {
                let known = classes.iter().take(20).map(String::as_str).collect::<Vec<_>>();
                let known = known.join(", ");
                let what = format!("is no class of the training data, which has {known}");
                unusable(&self.path.join(name), what)
            })
        };
        let numbers = self.classes.iter().map(number).collect::<Result<Vec<_>, Error>>()?;
        let new = |(file, class): &(PathBuf, u32)| {
            (file.clone(), numbers.get(*class as usize).map_or(*class, |n| *n as u32))
        };
        let files = self.files.iter().map(new).collect();
        Ok(Self { path: self.path, classes: classes.to_vec(), files })
    }

    /// All images, of this shape or that of the first.
    fn read(&self, shape: Option<[usize; 3]>) -> Result<Split, Error> {
        let name = || self.path.display().to_string();
        let Some((first, _)) = self.files.first() else { return Err(Error::EmptySplit) };
        let sizes = match shape {
            Some([_, height, width]) => [height, width],
            None => size(&bytes(first)?).map_err(|error| unusable(first, error))?,
        };
        let pixels = sizes.iter().fold(1.0, |n, size| n * *size as f64);
        // Each image, and all of them in one piece, in colour.
        let need = 6.0 * pixels * self.files.len() as f64;
        memory::check(need, || format!("{}: {} images", name(), self.files.len()))?;
        let one = |(file, _): &(PathBuf, u32)| -> Result<Planes, Error> {
            decode(&bytes(file)?, sizes).map_err(|error| match (shape, error) {
                (None, error @ crate::decode::BadImage::Size { .. }) => {
                    let like =
                        format!("{error}, as {} is; give images of one size", first.display());
                    unusable(file, like)
                }
                (_, error) => unusable(file, error),
            })
        };
        let mut images = self.files.par_iter().map(one).collect::<Result<Vec<_>, Error>>()?;
        // Grey ones have one channel, others three.
        let most = if images.iter().any(|image| image.channels > 1) { 3 } else { 1 };
        let channels = shape.map_or(most, |[channels, ..]| channels);
        if channels != most && channels != 3 {
            let (said, found) = (format!("{:?}", shape.unwrap_or_default()), "3 channels".into());
            return Err(Error::Contradiction { name: name(), key: "shape", said, found });
        }
        if channels == 3 {
            images = images.into_iter().map(Planes::coloured).collect();
        }
        let pixels = images.iter().flat_map(|image| &image.pixels).copied().collect();
        let classes = self.files.iter().map(|(_, class)| *class).collect();
        Ok(Split::images([channels, sizes[0], sizes[1]], pixels, classes))
    }
}

fn bytes(file: &Path) -> Result<Vec<u8>, Error> {
    let length = std::fs::metadata(file).at(file)?.len();
    if length > LARGEST {
        let what = format!("has {}; images of up to 256 MiB are read", memory::size(length as f64));
        return Err(unusable(file, what));
    }
    kind::no_device(file)?;
    Ok(std::fs::read(file).at(file)?)
}

#[cfg(test)]
mod tests {
    use image::{DynamicImage, GrayImage, Luma, LumaA, Rgb, RgbImage};

    use super::*;
    use crate::Protocol;
    use crate::examples::{Targets, Values};

    /// A folder of so many grey images of two classes, each of one shade.
    fn folder(count: u8) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for i in 0..count {
            let class = ["cats", "dogs"][usize::from(i % 2)];
            std::fs::create_dir_all(directory.path().join(class)).unwrap();
            grey(&directory.path().join(class).join(format!("{i:03}.png")), 3, 2, i);
        }
        directory
    }

    fn grey(path: &Path, width: u32, height: u32, shade: u8) {
        GrayImage::from_pixel(width, height, Luma([shade])).save(path).unwrap();
    }

    fn of(path: &Path) -> Result<Examples, Error> {
        load(&ImagesConfig::new(path))
    }

    fn refusal(path: &Path) -> String {
        let said = of(path).unwrap_err().to_string();
        assert!(!said.contains('\n'), "{said}");
        said
    }

    #[test]
    fn sizes_and_classes_come_from_the_folder() {
        let place = folder(20);
        let data = of(place.path()).unwrap();
        assert_eq!((data.outputs, &data.classes[..]), (2, &["cats".into(), "dogs".into()][..]));
        assert_eq!((data.train.len(), data.test.len()), (18, 2));
        assert_eq!(data.input(), Some(Input::Pixels { channels: 1, height: 2, width: 3 }));
        let Values::Bytes(pixels) = &data.train.values else { panic!() };
        let Targets::Classes(classes) = &data.train.targets else { panic!() };
        for (image, class) in pixels.chunks(6).zip(classes) {
            assert!(image.iter().all(|p| *p == image[0]) && u32::from(image[0] % 2) == *class);
        }
        // Another folder is held out, whatever the order of its classes.
        let other = tempfile::tempdir().unwrap();
        std::fs::create_dir(other.path().join("dogs")).unwrap();
        grey(&other.path().join("dogs/a.PNG"), 3, 2, 7);
        let val_path = Some(other.path().to_path_buf());
        let config = ImagesConfig { val_path, ..ImagesConfig::new(place.path()) };
        let data = load(&config).unwrap();
        assert_eq!((data.train.len(), &data.test.targets), (20, &Targets::Classes(vec![1])));
        let both = ImagesConfig { val_fraction: Some(0.5), ..config.clone() };
        assert!(load(&both).unwrap_err().to_string().contains("one of data.val_path"));
        // For a trained model: what its run held out, and everything elsewhere.
        let shape = [1, 2, 3];
        let held = config.held_out(place.path(), (&data.classes, shape), None).unwrap();
        assert_eq!(held.test, data.test);
        let plain = ImagesConfig::new(place.path());
        let held = plain.held_out(place.path(), (&data.classes, shape), None).unwrap();
        assert_eq!(held.test, of(place.path()).unwrap().test);
        let digest = Some(of(place.path()).unwrap().digest);
        let copied = plain.held_out(folder(20).path(), (&data.classes, shape), digest.as_deref());
        assert_eq!(copied.unwrap().test, held.test);
        let elsewhere = folder(6);
        let held = plain.held_out(elsewhere.path(), (&data.classes, shape), None).unwrap();
        assert_eq!(
            (
                held.test.len(),
                held.held_out(Protocol::Full, 4, None, &candle_core::Device::Cpu).unwrap().count()
            ),
            (6, 2)
        );
        std::fs::rename(elsewhere.path().join("cats"), elsewhere.path().join("birds")).unwrap();
        let said =
            plain.held_out(elsewhere.path(), (&data.classes, shape), None).unwrap_err().to_string();
        assert!(
            said.contains("birds: is no class of the training data, which has cats, dogs"),
            "{said}"
        );
    }

    #[test]
    fn grey_images_among_colours_have_three_equal_channels() {
        let place = folder(6);
        RgbImage::from_pixel(3, 2, Rgb([9, 8, 7])).save(place.path().join("cats/z.png")).unwrap();
        let jpeg = place.path().join("dogs/z.jpeg");
        RgbImage::from_pixel(3, 2, Rgb([90, 90, 90])).save(jpeg).unwrap();
        let config = ImagesConfig { val_fraction: Some(0.3), ..ImagesConfig::new(place.path()) };
        let data = load(&config).unwrap();
        assert_eq!(data.train.shape, [3, 2, 3]);
        let Values::Bytes(pixels) = &data.train.values else { panic!() };
        assert!(pixels.chunks(18).any(|image| image[..6] == image[6..12]));
        let said = load(&ImagesConfig { shape: Some([1, 2, 3]), ..config.clone() }).unwrap_err();
        let said = said.to_string();
        assert!(said.contains("data.shape is [1, 2, 3], and the data has 3 channels"), "{said}");
        let said = load(&ImagesConfig { classes: Some(3), ..config }).unwrap_err().to_string();
        assert!(said.contains("data.classes is 3, and the data has 2 classes"), "{said}");
        let grey = ImagesConfig { shape: Some([3, 2, 3]), ..ImagesConfig::new(folder(4).path()) };
        assert!(load(&grey).is_err(), "the folder is gone");
        let place = folder(4);
        let grey = ImagesConfig { shape: Some([3, 2, 3]), ..ImagesConfig::new(place.path()) };
        assert_eq!(load(&grey).unwrap().train.shape, [3, 2, 3]);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let empty = tempfile::tempdir().unwrap();
        assert!(refusal(&empty.path().join("no")).contains("no: no such directory"));
        assert!(refusal(empty.path()).contains("holds no folders"));
        let one = tempfile::tempdir().unwrap();
        std::fs::create_dir(one.path().join("only")).unwrap();
        assert!(refusal(one.path()).contains("only: holds no images"));
        grey(&one.path().join("only/a.png"), 3, 2, 1);
        assert!(refusal(one.path()).contains("holds a single class"));

        let with = |name: &str, write: &dyn Fn(&Path)| {
            let place = folder(6);
            let file = place.path().join(name);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            write(&file);
            let said = refusal(place.path());
            assert!(said.contains(&file.display().to_string()), "{said}");
            said
        };
        let png = |image: DynamicImage| {
            let mut bytes = std::io::Cursor::new(Vec::new());
            image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
            bytes.into_inner()
        };
        let noise = |x: u32, y: u32| Luma([(x * 37 + y * 101) as u8]);
        let whole = png(GrayImage::from_fn(3, 2, noise).into());
        let write = |bytes: Vec<u8>| move |path: &Path| std::fs::write(path, &bytes).unwrap();
        let cut = whole[..whole.len() / 2 + 8].to_vec();
        assert!(with("cats/z.png", &write(cut)).contains("its image is damaged"));
        assert!(with("cats/z.png", &write(whole[..9].to_vec())).contains("its image is"));
        assert!(with("cats/z.png", &write(Vec::new())).contains("neither JPEG nor PNG"));
        let larger = with("cats/z.png", &|path| grey(path, 4, 2, 0));
        assert!(larger.contains("its image is 4 × 2, not 3 × 2, as"), "{larger}");
        assert!(with("cats/notes.txt", &write(vec![b'a'])).contains("neither .png nor .jpg"));
        assert!(with("a.png", &|path| grey(path, 3, 2, 0)).contains("lies in no class"));
        let nested = with("cats/more", &|path| std::fs::create_dir(path).unwrap());
        assert!(nested.contains("lies in the folder of a class"), "{nested}");
        let clear = image::GrayAlphaImage::from_pixel(3, 2, LumaA([3, 99]));
        assert!(with("cats/z.png", &write(png(clear.into()))).contains("transparent"));
        let deep = image::ImageBuffer::<Luma<u16>, Vec<u16>>::from_pixel(3, 2, Luma([999]));
        assert!(with("cats/z.png", &write(png(deep.into()))).contains("16 bits"));
    }

    /// A header alone decides; nothing of what it claims is taken.
    #[test]
    fn a_bomb_is_refused_by_its_header() {
        let place = folder(6);
        let mut bytes = std::fs::read(place.path().join("cats/000.png")).unwrap();
        bytes[16..24].copy_from_slice(&[0, 0, 0xff, 0xff, 0, 0, 0xff, 0xff]);
        let sum = crc(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&sum.to_be_bytes());
        for name in ["000.png", "002.png"] {
            let place = folder(6);
            std::fs::write(place.path().join("cats").join(name), &bytes).unwrap();
            let said = refusal(place.path());
            assert!(said.contains("65535 × 65535; up to 16777216 pixels"), "{said}");
        }
    }

    /// The checksum of a PNG's chunk.
    fn crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |sum, byte| {
            (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
                (sum >> 1) ^ (0xedb8_8320 & (sum & 1).wrapping_neg())
            })
        })
    }

    #[test]
    fn a_class_of_one_image_cannot_be_split() {
        let place = folder(3);
        let said = refusal(place.path());
        assert!(said.contains("class 1 has a single example"), "{said}");
    }
}
