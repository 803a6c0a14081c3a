//! Tensors `x` and `y` of one file: inputs of any shape, with classes or with numbers to predict.

use std::path::{Path, PathBuf};

use candle_core::{DType, Tensor};
use lipschitz_nn::graph::Input;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::unusable;
use crate::examples::{Examples, Split, Targets, Values};
use crate::held_out::{self, TENTH};
use crate::{DataKind, DataSet, Error, Predicts, memory};

/// `kind = "tensors"`: a `.safetensors` or `.npz` file with `x` and `y`.
///
/// `x` is `[n, channels, height, width]` or `[n, height, width]` for images, and of any other shape
/// for vectors. Bytes are read as the number of f32 next to value / 255, other numbers as they are,
/// and in training rounded to f32; those of images lie in \[0, 1\]. `y` holds whole numbers, `[n]`,
/// for classes; or floating-point numbers, `[n]` or `[n, outputs]`, to be predicted with the least
/// mean squared error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TensorsConfig {
    /// The file.
    pub path: PathBuf,
    /// A file that is held out as a whole, in place of a share of `path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_path: Option<PathBuf>,
    /// The share that is held out, of each class; a tenth without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub val_fraction: Option<f64>,
    /// How many classes there are; one more than the largest in `y` without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
}

/// The most classes of a data set.
const MAX_CLASSES: i64 = 1 << 20;

impl TensorsConfig {
    /// A file of which a tenth is held out.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), val_path: None, val_fraction: None, classes: None }
    }

    /// The held-out part for a model that was trained on data of this digest; all of `path` if that is
    /// not what it was trained on.
    pub(crate) fn held_out(
        &self,
        path: &Path,
        outputs: usize,
        trained: Option<&str>,
    ) -> Result<Examples, Error> {
        let part = held_out::part(path, &self.path, self.val_path.as_deref());
        let (from, beside) = part.paths(path, self.val_path.as_deref());
        let held_out =
            (beside.and_then(|path| read(path).ok()), self.val_fraction.unwrap_or(TENTH));
        let all = read(from)?;
        let name = from.display().to_string();
        let outputs = match &all.targets {
            Targets::Classes(classes) => {
                // A model may have more outputs than there are classes.
                check_classes(from, classes, outputs)?;
                outputs
            }
            Targets::Numbers { width, .. } => *width,
        };
        let parts = held_out::unseen(&name, all, &part, held_out, trained)?;
        Ok(Examples::new(name, parts, outputs, Vec::new()))
    }
}

impl DataKind for TensorsConfig {
    fn check(&self) -> Result<(), Error> {
        held_out::check(&self.path, self.val_path.as_deref(), self.val_fraction)
    }

    fn load(&self) -> Result<Box<dyn DataSet>, Error> {
        Ok(Box::new(load(self)?))
    }

    fn reads(&self, input: Input) -> bool {
        !matches!(input, Input::Tokens { .. })
    }
}

/// Reads a file of tensors, and another one that is held out if there is one.
///
/// # Errors
/// One line that names the file and the tensor: missing, of a type that is not read, not as many
/// inputs as targets, NaN or infinity, pixels outside of \[0, 1\], a single class, a class that is
/// below 0 or out of the range that the config gives.
pub fn load(config: &TensorsConfig) -> Result<Examples, Error> {
    config.check()?;
    let (path, name) = (&config.path, config.path.display().to_string());
    let all = read(path)?;
    let held =
        config.val_path.as_ref().map(|path| Ok::<_, Error>((path, read(path)?))).transpose()?;
    if let Some((path, held)) = &held {
        fit(path, held, &all)?;
    }
    let outputs = match &all.targets {
        Targets::Numbers { width, .. } => match config.classes {
            Some(classes) => {
                let (said, found) = (classes.to_string(), "numbers to predict".to_string());
                return Err(Error::Contradiction { name, key: "classes", said, found });
            }
            None => *width,
        },
        Targets::Classes(classes) => {
            let most = classes.iter().max().map_or(0, |most| *most as usize + 1);
            let outputs = config.classes.unwrap_or(most);
            check_classes(path, classes, outputs)?;
            if let Some((path, Split { targets: Targets::Classes(classes), .. })) = &held {
                check_classes(path, classes, outputs)?;
            }
            if classes.iter().all(|class| *class == classes[0]) {
                return Err(unusable(path, "`y` holds a single class; give two or more"));
            }
            outputs
        }
    };
    let parts = match held {
        Some((_, held)) => [all, held],
        None => held_out::split(&name, &all, config.val_fraction.unwrap_or(TENTH))?,
    };
    Ok(Examples::new(name, parts, outputs, Vec::new()))
}

/// Whether a held-out file is like the one that is trained on.
fn fit(path: &Path, held: &Split, all: &Split) -> Result<(), Error> {
    if held.shape != all.shape {
        let what =
            format!("`x` holds inputs of {:?}, and is trained on {:?}", held.shape, all.shape);
        return Err(unusable(path, what));
    }
    match (&held.targets, &all.targets) {
        (Targets::Classes(_), Targets::Classes(_)) => Ok(()),
        (Targets::Numbers { width: a, .. }, Targets::Numbers { width: b, .. }) if a == b => Ok(()),
        _ => Err(unusable(path, "`y` is not like that of the training data")),
    }
}

fn check_classes(path: &Path, classes: &[u32], outputs: usize) -> Result<(), Error> {
    match classes.iter().enumerate().find(|(_, class)| **class as usize >= outputs) {
        Some((i, class)) => {
            let what = format!("`y`: element {i} is class {class}, which is not in 0..{outputs}");
            Err(unusable(path, what))
        }
        None => Ok(()),
    }
}

/// Whether a data set predicts what is needed.
///
/// # Errors
/// [`Error::OtherTargets`].
pub fn predicts(data: &dyn DataSet, wanted: Predicts) -> Result<(), Error> {
    let word = |predicts| match predicts {
        Predicts::Classes => "classes",
        Predicts::Numbers => "numbers",
    };
    if data.predicts() == wanted {
        return Ok(());
    }
    let (name, holds) = (data.name().to_string(), word(data.predicts()));
    Err(Error::OtherTargets { name, holds, wanted: word(wanted) })
}

/// All inputs and targets of a file.
fn read(path: &Path) -> Result<Split, Error> {
    let length = std::fs::metadata(path).map_or(0, |file| file.len());
    // The file's bytes, and the numbers.
    memory::check(2.0 * length as f64, || path.display().to_string())?;
    let [x, y] = lipschitz_import::tensors(path, ["x", "y"])?;
    let of = |name: &str, what: String| unusable(path, format!("`{name}` {what}"));
    let shape = x.dims().to_vec();
    let n = match *shape {
        [] => {
            return Err(of(
                "x",
                "is a single number; its first size is the number of inputs".into(),
            ));
        }
        [n, ..] if y.dims().first() == Some(&n) => n,
        [n, ..] => {
            let what = format!("holds {n} inputs, and `y` is of shape {:?}", y.dims());
            return Err(of("x", what));
        }
    };
    if x.elem_count() == 0 || y.elem_count() == 0 {
        return Err(of(
            "x",
            format!("is empty: its shape is {shape:?}, that of `y` {:?}", y.dims()),
        ));
    }
    let one = match *shape {
        [_] => vec![1],
        [_, height, width] => vec![1, height, width],
        [_, channels, height, width] => vec![channels, height, width],
        [_, ref rest @ ..] => vec![rest.iter().product()],
        [] => Vec::new(),
    };
    let values = if x.dtype() == DType::U8 {
        Values::Bytes(x.flatten_all()?.to_vec1()?)
    } else {
        let narrow = matches!(x.dtype(), DType::F32 | DType::F16 | DType::BF16);
        let values = if narrow { Values::Floats(floats(&x)?) } else { numbers(path, &x)? };
        let image = one.len() == 3;
        let size = (x.elem_count() / n).max(1);
        let wrong = |at: usize, v: f64| {
            if !(v as f32).is_finite() {
                let input = at / size;
                return Some(format!("holds {v} in input {input}; give finite numbers in f32"));
            }
            (image && !(0.0..=1.0).contains(&v)).then(|| {
                format!(
                    "holds {v} in images, whose pixels lie in [0, 1]; scale them, or give vectors [n, m]"
                )
            })
        };
        let found = match &values {
            Values::Floats(all) => {
                all.iter().enumerate().find_map(|(at, v)| wrong(at, f64::from(*v)))
            }
            Values::Doubles(all) => all.iter().enumerate().find_map(|(at, v)| wrong(at, *v)),
            Values::Bytes(_) => None,
        };
        if let Some(what) = found {
            return Err(of("x", what));
        }
        values
    };
    Ok(Split { shape: one, values, targets: targets(path, &y)? })
}

fn targets(path: &Path, y: &Tensor) -> Result<Targets, Error> {
    let of = |what: String| unusable(path, format!("`y` {what}"));
    if y.dtype().is_float() {
        let width = match *y.dims() {
            [_] => 1,
            [_, width] => width,
            ref shape => return Err(of(format!("is of shape {shape:?}, not [n] or [n, outputs]"))),
        };
        let values = floats(y)?;
        return match values.iter().position(|v| !v.is_finite()) {
            Some(at) => {
                let (row, v) = (at / width, values[at]);
                Err(of(format!("holds {v} in element {row}; give finite numbers in f32")))
            }
            None => Ok(Targets::Numbers { width, values }),
        };
    }
    let flat = match *y.dims() {
        [_] | [_, 1] => y.flatten_all()?,
        ref shape => {
            return Err(of(format!(
                "holds whole numbers of shape {shape:?}; classes have shape [n]"
            )));
        }
    };
    let classes = flat.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    let one = |(i, class): (usize, &i64)| {
        u32::try_from(*class).ok().filter(|_| *class < MAX_CLASSES).ok_or_else(|| {
            of(format!("element {i} is class {class}; classes are from 0 to {}", MAX_CLASSES - 1))
        })
    };
    Ok(Targets::Classes(classes.iter().enumerate().map(one).collect::<Result<_, _>>()?))
}

/// All numbers, none of them rounded.
fn numbers(path: &Path, x: &Tensor) -> Result<Values, Error> {
    /// f64 holds all whole numbers up to here.
    const WHOLE: u64 = 1 << 53;
    // Twice in 8 bytes each, beside the file.
    memory::check(16.0 * x.elem_count() as f64, || path.display().to_string())?;
    if matches!(x.dtype(), DType::I64) {
        let all = x.flatten_all()?.to_vec1::<i64>()?;
        if let Some(v) = all.iter().find(|v| v.unsigned_abs() > WHOLE) {
            return Err(unusable(path, format!("`x` holds {v}, which f64 would round; scale it")));
        }
    }
    let values: Vec<f64> = x.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    Ok(match values.iter().all(|v| f64::from(*v as f32) == *v) {
        true => Values::Floats(values.into_iter().map(|v| v as f32).collect()),
        false => Values::Doubles(values),
    })
}

fn floats(x: &Tensor) -> Result<Vec<f32>, Error> {
    Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}

/// Whether a path is a file that may hold tensors.
pub(crate) fn is_here(path: &Path) -> bool {
    path.is_file()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn cpu<T: candle_core::WithDType>(values: &[T], shape: &[usize]) -> Tensor {
        Tensor::from_slice(values, shape, &Device::Cpu).unwrap()
    }

    fn file(x: &Tensor, y: &Tensor) -> tempfile::NamedTempFile {
        let file = tempfile::Builder::new().suffix(".safetensors").tempfile().unwrap();
        let tensors = [("x", x.clone()), ("y", y.clone())];
        lipschitz_nn::checkpoint::save_tensors(file.path(), tensors.into_iter(), None).unwrap();
        file
    }

    fn classes(values: &[i64]) -> Tensor {
        cpu(values, &[values.len()])
    }

    fn refusal(x: &Tensor, y: &Tensor) -> String {
        let file = file(x, y);
        let said = load(&TensorsConfig::new(file.path())).unwrap_err().to_string();
        assert!(said.starts_with(&file.path().display().to_string()), "{said}");
        assert!(!said.contains('\n'), "{said}");
        said
    }

    #[test]
    fn shapes_and_types_decide_what_is_read() {
        let y = classes(&[0, 2, 0, 2]);
        for (shape, wanted) in [
            (&[4][..], Input::Vector { dim: 1 }),
            (&[4, 6], Input::Vector { dim: 6 }),
            (&[4, 2, 3], Input::Pixels { channels: 1, height: 2, width: 3 }),
            (&[4, 3, 2, 1], Input::Pixels { channels: 3, height: 2, width: 1 }),
            (&[4, 2, 1, 3, 2], Input::Vector { dim: 12 }),
        ] {
            let count: usize = shape.iter().product();
            let x = cpu(&vec![0.5f32; count], shape);
            let file = file(&x, &y);
            let data = load(&TensorsConfig::new(file.path())).unwrap();
            assert_eq!((data.input(), data.outputs), (Some(wanted), 3));
            assert_eq!((data.train.len(), data.test.len()), (2, 2));
        }
        let bytes = file(&cpu(&[255u8, 0, 51, 1], &[4, 1]), &y);
        let data = load(&TensorsConfig::new(bytes.path())).unwrap();
        assert!(matches!(data.train.values, Values::Bytes(_)));
        // Numbers of any size are no classes.
        let x = cpu(&[1f64, -2.0, 3.0, 4.0], &[4, 1]);
        let numbers = file(&x, &cpu(&[0f32, 1.0, 0.0, 1.0, 5.0, 6.0, 7.0, 8.0], &[4, 2]));
        let data = load(&TensorsConfig::new(numbers.path())).unwrap();
        assert_eq!((data.predicts(), data.outputs), (Predicts::Numbers, 2));
        assert_eq!((data.train.len(), data.test.len()), (3, 1));
        predicts(&data, Predicts::Numbers).unwrap();
        let said = predicts(&data, Predicts::Classes).unwrap_err().to_string();
        assert!(said.contains("holds numbers to predict, and classes are needed"), "{said}");
    }

    #[test]
    fn proofs_read_numbers_that_training_rounds() {
        let y = classes(&[0, 1, 0, 1]);
        let held = |x: &Tensor| {
            let file = file(x, &y);
            let data = load(&TensorsConfig::new(file.path())).unwrap();
            let (x, _) = data.test.batch(&[0, 1], &Device::Cpu).unwrap();
            let (step, _) = data.training(1, None).unwrap().batch(0, 2, &Device::Cpu).unwrap();
            assert_eq!(step.dtype(), DType::F32);
            (x.dtype(), x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap())
        };
        let sharp: [f64; 4] = [1_000_000.03, 0.3, 0.1, 1e-300];
        let (kind, values): (_, Vec<f64>) = held(&cpu(&sharp, &[4, 1]));
        assert_eq!(kind, DType::F64);
        assert!(values.iter().all(|x| sharp.contains(x)), "{values:?}");
        let whole = [(1i64 << 24) + 1, 5, (1 << 30) + 1, -3];
        let (kind, values) = held(&cpu(&whole, &[4, 1]));
        assert_eq!(kind, DType::F64);
        assert!(values.iter().all(|x| whole.contains(&(*x as i64))), "{values:?}");
        assert_eq!(held(&cpu(&[0.5f64, 0.25, -3.0, 1.0], &[4, 1])).0, DType::F32);
    }

    #[test]
    fn an_archive_of_numpy_is_read_too() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("d.npz");
        let npy = |kind: &str, shape: &str, bytes: &[u8]| {
            let header =
                format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
            let header = format!("{header:<117}\n");
            let size = (header.len() as u16).to_le_bytes();
            [&b"\x93NUMPY\x01\0"[..], &size, header.as_bytes(), bytes].concat()
        };
        let mut archive = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        let stored = zip::write::SimpleFileOptions::default();
        let x: Vec<u8> = (0..8).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let y: Vec<u8> = [0i32, 1, 1, 0].iter().flat_map(|i| i.to_le_bytes()).collect();
        for (name, bytes) in [("x", npy("<f4", "(4, 2)", &x)), ("y", npy("<i4", "(4,)", &y))] {
            archive.start_file(format!("{name}.npy"), stored).unwrap();
            std::io::Write::write_all(&mut archive, &bytes).unwrap();
        }
        archive.finish().unwrap();
        let data = load(&TensorsConfig::new(&path)).unwrap();
        assert_eq!((data.train.shape.clone(), data.outputs), (vec![2], 2));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let said = load(&TensorsConfig::new(&path)).unwrap_err().to_string();
        assert!(said.contains("d.npz") && !said.contains('\n'), "{said}");
    }

    #[test]
    fn a_file_of_its_own_is_held_out() {
        let (x, y) = (cpu(&[0f32, 1.0, 2.0, 3.0], &[4, 1]), classes(&[0, 1, 0, 1]));
        let train = file(&x, &y);
        let with = |x: &Tensor, y: &Tensor| {
            let held = file(x, y);
            let val_path = Some(held.path().to_path_buf());
            load(&TensorsConfig { val_path, ..TensorsConfig::new(train.path()) })
        };
        let data = with(&cpu(&[5f32], &[1, 1]), &classes(&[1])).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (4, 1));
        let said = |x: &Tensor, y: &Tensor| with(x, y).unwrap_err().to_string();
        let one = cpu(&[5f32], &[1, 1]);
        assert!(said(&cpu(&[5f32, 6.0], &[1, 2]), &classes(&[1])).contains("inputs of [2]"));
        assert!(said(&one, &classes(&[2])).contains("class 2, which is not in 0..2"));
        assert!(said(&one, &cpu(&[0.5f32], &[1])).contains("not like that of the training data"));
        let held = TensorsConfig::new(train.path());
        assert_eq!(held.held_out(train.path(), 2, None).unwrap().test.len(), 2);
        let other = file(&one, &classes(&[3]));
        let said = held.held_out(other.path(), 3, None).unwrap_err().to_string();
        assert!(said.contains("class 3, which is not in 0..3"), "{said}");
        assert_eq!(held.held_out(other.path(), 4, None).unwrap().test.len(), 1);

        // What a model was trained on is known by what it is, under any name and with its file beside it.
        let trained = load(&held).unwrap();
        let copy = file(&x, &y);
        let of = |config: &TensorsConfig, path: &Path, digest: &str| {
            config.held_out(path, 2, Some(digest)).map(|data| data.test)
        };
        assert_eq!(of(&held, train.path(), &trained.digest).unwrap(), trained.test);
        assert_eq!(of(&held, copy.path(), &trained.digest).unwrap(), trained.test);
        assert_eq!(of(&held, copy.path(), "another").unwrap().len(), 4);
        let said = of(&held, train.path(), "another").unwrap_err().to_string();
        assert!(said.contains("trained on any more"), "{said}");
        let beside = file(&one, &classes(&[1]));
        let val_path = Some(beside.path().to_path_buf());
        let two = TensorsConfig { val_path, ..TensorsConfig::new(train.path()) };
        let trained = load(&two).unwrap();
        assert_eq!(of(&two, copy.path(), &trained.digest).unwrap(), trained.test);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let x = cpu(&[0f32, 1.0, 2.0, 3.0], &[4, 1]);
        let y = classes(&[0, 1, 0, 1]);
        for (x, y, wanted) in [
            (&x, classes(&[0, 1, 0]), "`x` holds 4 inputs, and `y` is of shape [3]"),
            (&x, classes(&[0, -1, 0, 1]), "`y` element 1 is class -1"),
            (&x, classes(&[0, 1 << 40, 0, 1]), "classes are from 0 to"),
            (&x, classes(&[7; 4]), "`y` holds a single class"),
            (&x, classes(&[0, 0, 0, 1]), "class 1 has a single example"),
            (&x, cpu(&[0f32, f32::NAN, 1.0, 2.0], &[4]), "`y` holds NaN in element 1"),
            (&x, cpu(&[0i64; 8], &[4, 2]), "classes have shape [n]"),
            (&x, cpu(&[0f32; 8], &[4, 1, 2]), "not [n] or [n, outputs]"),
            (
                &cpu(&[0f32, f32::INFINITY, 1.0, 2.0], &[4, 1]),
                y.clone(),
                "`x` holds inf in input 1",
            ),
            (&cpu(&[0f64, 1e300, 1.0, 2.0], &[4, 1]), y.clone(), "finite numbers in f32"),
            (&cpu(&[0i64, 1, 2, (1 << 53) + 1], &[4, 1]), y.clone(), "which f64 would round"),
            (&cpu(&[0f32, 2.0, 1.0, 0.5], &[4, 1, 1]), y.clone(), "`x` holds 2 in images"),
            (&cpu(&[0f32; 0], &[0, 3]), classes(&[]), "`x` is empty"),
            (&cpu(&[0f32; 0], &[4, 0]), y.clone(), "`x` is empty"),
            (&cpu(&[0f32], &[]), y.clone(), "is a single number"),
        ] {
            let said = refusal(x, &y);
            assert!(said.contains(wanted), "{wanted}: {said}");
        }
        let file = file(&x, &y);
        let of = |config: TensorsConfig| load(&config).unwrap_err().to_string();
        let few = TensorsConfig { classes: Some(1), ..TensorsConfig::new(file.path()) };
        assert!(of(few).contains("element 1 is class 1, which is not in 0..1"));
        let more = TensorsConfig { classes: Some(9), ..TensorsConfig::new(file.path()) };
        assert_eq!(load(&more).unwrap().outputs, 9);
        let missing = of(TensorsConfig::new("no/such.npz"));
        assert!(missing.contains("no/such.npz: no such file"), "{missing}");
        let only = tempfile::NamedTempFile::new().unwrap();
        let tensors = [("inputs", x.clone())];
        lipschitz_nn::checkpoint::save_tensors(only.path(), tensors.into_iter(), None).unwrap();
        let said = of(TensorsConfig::new(only.path()));
        assert!(said.contains("holds no `x`, only `inputs`"), "{said}");
        std::fs::write(only.path(), "<!DOCTYPE html><html></html>").unwrap();
        assert!(of(TensorsConfig::new(only.path())).contains("web page"));
    }
}
