//! The archives that the training script of Newhouse et al. (2025) writes: `numpy.savez_compressed`
//! of Python objects, the run's config as `args` and each checkpoint's matrices, as nested lists of
//! floats, as `weights_checkpoint_0` and so on.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use crate::config::ConfigReader;
use crate::formats::files::Files;
use crate::formats::kind::Kind;
use crate::formats::pickle::{Id, Machine, Object};
use crate::formats::source::Source;
use crate::formats::{archive, npy};
use lipschitz_nn::Error;

/// The config and the last checkpoint's matrices, as `arr_0` and so on, if this is such an archive.
pub(crate) fn open(path: &Path) -> Result<Option<(ConfigReader, Files)>, Error> {
    let source = Source::open(path)?;
    if Kind::of(&source)? != Kind::Zip {
        return Ok(None);
    }
    let names: BTreeSet<String> =
        archive::members(&source)?.into_iter().map(|member| member.name).collect();
    let member = |i: usize| format!("weights_checkpoint_{i}.npy");
    if !names.contains("args.npy") || !names.contains(&member(0)) {
        return Ok(None);
    }
    let mut last = 0;
    while names.contains(&member(last + 1)) {
        last += 1;
    }
    let config =
        object(&source, "args.npy", |machine, id| match machine.plain(id, &mut (1 << 20)) {
            Some(Value::Object(options)) => Ok(ConfigReader::of(path, "args.".into(), options)),
            _ => Err("is no dictionary of options".into()),
        })?;
    let tensors = object(&source, &member(last), |machine, id| {
        let Object::Dict(pairs) = &machine.memory[id] else {
            return Err("is no dictionary of matrices".into());
        };
        let one = |(key, rows): &(Id, Id)| {
            let number = machine.number(*key).ok_or("has a key that is no number")?;
            let matrix = matrix(machine, *rows)
                .ok_or(format!("has the matrix {number}, which is no list of rows"))?;
            Ok::<_, String>((format!("arr_{number}"), matrix))
        };
        pairs.iter().map(one).collect::<Result<Vec<_>, _>>()
    })?;
    Ok(Some((config, Files::of_tensors(tensors))))
}

/// What numpy writes for an array of one object.
fn known(name: &str) -> bool {
    matches!(
        name,
        "numpy.core.multiarray._reconstruct"
            | "numpy._core.multiarray._reconstruct"
            | "numpy.ndarray"
            | "numpy.dtype"
    )
}

/// Reads the Python object that a member holds.
fn object<T>(
    source: &Source,
    name: &str,
    read: impl FnOnce(&Machine, Id) -> Result<T, String>,
) -> Result<T, Error> {
    let wrong = |what: String| source.wrong(format!("`{name}`: {what}"));
    let bytes = archive::unpack(source, name)?;
    let code =
        npy::pickled(&bytes).ok_or_else(|| wrong("is no array of a Python object".into()))?;
    let (machine, top) = Machine::run(code, known, 4 * code.len()).map_err(wrong)?;
    // The state of an array: version, shape, type, order, and its objects in a list.
    let only = || {
        let [_, _, _, _, objects] = *machine.tuple(*machine.states.get(&top)?)? else {
            return None;
        };
        match &machine.memory[objects] {
            Object::List(items) if items.len() == 1 => Some(items[0]),
            _ => None,
        }
    };
    let id = only().ok_or_else(|| wrong("is no array of one object".into()))?;
    read(&machine, id).map_err(wrong)
}

/// A list of rows of one length; in f32, in which the script trains, unless that would round a
/// weight.
fn matrix(machine: &Machine, id: Id) -> Option<Tensor> {
    let Object::List(rows) = &machine.memory[id] else { return None };
    let row =
        |id: &Id| if let Object::Floats(row) = &machine.memory[*id] { Some(row) } else { None };
    let columns = row(rows.first()?)?.len();
    let mut data = Vec::with_capacity(rows.len() * columns);
    for id in rows {
        let row = row(id)?;
        if row.len() != columns {
            return None;
        }
        data.extend(row);
    }
    let exact = data.iter().all(|x: &f64| f64::from(*x as f32) == *x);
    let matrix = Tensor::from_vec(data, (rows.len(), columns), &Device::Cpu).ok()?;
    if exact { matrix.to_dtype(DType::F32).ok() } else { Some(matrix) }
}
