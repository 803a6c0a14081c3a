//! A network whose weights stay what they were when their digest was taken.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

use candle_core::{DType, Tensor};
use lipschitz_nn::Graph;
use lipschitz_nn::checkpoint::Origin;
use sha2::{Digest, Sha256};

use crate::Error;
use crate::source::{Rounding, Source};

/// A source that is read more than once, and gives the same numbers each time or fails: whoever
/// changes a file between its digest and its norms proves nothing of another network.
pub(crate) struct Pinned<'a> {
    source: &'a dyn Source,
    /// `name type shape digest`, by name.
    lines: BTreeMap<String, String>,
    digest: String,
    /// The weights read last.
    last: RefCell<VecDeque<(String, Tensor)>>,
}

/// The most elements of the weights read last.
const KEPT: usize = 1 << 26;

impl<'a> Pinned<'a> {
    /// Reads every weight once.
    ///
    /// # Errors
    /// [`Error::Network`] if a tensor cannot be read, or holds NaN or infinity.
    pub(crate) fn new(source: &'a dyn Source) -> Result<Self, Error> {
        let (mut lines, mut hash) = (BTreeMap::new(), Sha256::new());
        for name in source.names() {
            let line = line(&name, &source.tensor(&name)?)?;
            hash.update(&line);
            lines.insert(name, line);
        }
        Ok(Self { source, lines, digest: hex::encode(hash.finalize()), last: RefCell::default() })
    }

    /// SHA-256 over the lines `name type shape digest` of all weights, in the order of their names.
    /// Each digest is over the values as little-endian bytes of their type.
    pub(crate) fn digest(&self) -> &str {
        &self.digest
    }

    /// What a digest says of a weight: its name, type and shape, and the digest of its values.
    #[cfg(feature = "cli")]
    pub(crate) fn line(&self, name: &str) -> Option<&str> {
        self.lines.get(name).map(String::as_str)
    }
}

impl Source for Pinned<'_> {
    fn graph(&self) -> &Graph {
        self.source.graph()
    }

    fn names(&self) -> Vec<String> {
        self.source.names()
    }

    fn tensor(&self, name: &str) -> Result<Tensor, Error> {
        let mut last = self.last.borrow_mut();
        if let Some((_, weight)) = last.iter().find(|(known, _)| known == name) {
            return Ok(weight.clone());
        }
        let weight = self.source.tensor(name)?;
        if self.lines.get(name) == Some(&line(name, &weight)?) {
            last.push_back((name.to_string(), weight.clone()));
            while last.iter().map(|(_, weight)| weight.elem_count()).sum::<usize>() > KEPT {
                last.pop_front();
            }
            return Ok(weight);
        }
        let what = "has changed since its digest was taken; start again when nothing writes to it";
        Err(lipschitz_nn::Error::weight(name, what).into())
    }

    fn rounding(&self) -> Option<Rounding> {
        self.source.rounding()
    }

    fn origin(&self) -> Option<&Origin> {
        self.source.origin()
    }
}

/// What a digest says of a weight.
fn line(name: &str, weight: &Tensor) -> Result<String, Error> {
    let shape = weight.dims().to_vec();
    let flat = weight.flatten_all()?;
    let mut hash = Sha256::new();
    let mut finite = true;
    for from in (0..flat.elem_count()).step_by(PART) {
        let part = flat.narrow(0, from, PART.min(flat.elem_count() - from))?;
        let hash = &mut hash;
        finite &= match flat.dtype() {
            DType::BF16 => {
                add(hash, &part.to_vec1()?, half::bf16::is_finite, half::bf16::to_le_bytes)
            }
            DType::F16 => add(hash, &part.to_vec1()?, half::f16::is_finite, half::f16::to_le_bytes),
            DType::F32 => add(hash, &part.to_vec1()?, f32::is_finite, f32::to_le_bytes),
            _ => {
                let part = part.to_dtype(DType::F64)?.to_vec1()?;
                add(hash, &part, f64::is_finite, f64::to_le_bytes)
            }
        };
    }
    if !finite {
        lipschitz_nn::check_finite(name, weight)?;
        return Err(Error::Unknown(format!("the weight `{name}`")));
    }
    let digest = hex::encode(hash.finalize());
    Ok(format!("{name} {:?} {shape:?} {digest}\n", weight.dtype()))
}

/// Elements that are looked at together: they stay in cache.
const PART: usize = 1 << 14;

/// Adds values to a digest; whether all are finite.
fn add<T: Copy, const N: usize>(
    hash: &mut Sha256,
    values: &[T],
    finite: impl Fn(T) -> bool,
    bytes: impl Fn(T) -> [u8; N],
) -> bool {
    let bytes: Vec<u8> = values.iter().flat_map(|x| bytes(*x)).collect();
    hash.update(&bytes);
    values.iter().all(|x| finite(*x))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use candle_core::Device;
    use lipschitz_nn::graph::{Input, Node, Op};

    use super::*;
    use crate::certificate::{Formula, certify};
    use crate::spectral::Method;
    use crate::verify::verify;

    /// A network that becomes another one after so many reads.
    struct Swapped {
        graph: Graph,
        left: Cell<usize>,
    }

    impl Source for Swapped {
        fn graph(&self) -> &Graph {
            &self.graph
        }

        fn names(&self) -> Vec<String> {
            vec!["layer.weight".into()]
        }

        fn tensor(&self, _: &str) -> Result<Tensor, Error> {
            let left = self.left.get();
            self.left.set(left.saturating_sub(1));
            let size = if left == 0 { 1.0 } else { 5.0 };
            Ok(Tensor::full(size, (2, 2), &Device::Cpu)?)
        }
    }

    #[test]
    fn weights_that_change_prove_nothing() {
        let op = Op::Linear { inputs: 2, outputs: 2, bias: false };
        let graph = Graph::new(Input::Vector { dim: 2 }, vec![Node::new("layer", op)]).unwrap();
        let after = |reads| Swapped { graph: graph.clone(), left: Cell::new(reads) };
        let made = |source: &Swapped| certify(source, Method::Proven, Formula::Sound, None);
        let (small, large) = (made(&after(0)).unwrap(), made(&after(usize::MAX)).unwrap());
        verify(&large, &after(usize::MAX)).unwrap();
        // The digest of the large one, and the norms of the small one.
        let forged = serde_json::to_value(&small).map(|mut forged| {
            forged["weights_sha256"] = large.weights_sha256.clone().into();
            serde_json::from_value(forged).unwrap()
        });
        let forged = forged.unwrap();
        for reads in 0..6 {
            assert!(verify(&forged, &after(reads)).is_err(), "after {reads} reads");
        }
        let error = made(&after(1)).unwrap_err().to_string();
        assert!(error.contains("has changed"), "{error}");
    }
}
