//! The nodes and tensors of a file as they are written.

use std::collections::BTreeSet;

use candle_core::Tensor;
use prost::Message;
use prost::bytes::Bytes;

use crate::formats::onnx::{
    Attribute, CONTEXT, Dimension, Entry, Graph, Model, Node, OperatorSet, RawTensor, Shape,
    TensorType, Type, Value, fresh, kind,
};

/// The version of the standard operators, and that of the format which has it.
const OPSET: i64 = 17;
const VERSION: i64 = 8;

const FLOAT: i32 = 1;
const INT: i32 = 7;

/// What an option is.
#[derive(Clone)]
pub(super) enum Ints {
    One(i64),
    Many(Vec<i64>),
    Float(f64),
}

#[derive(Default)]
pub(super) struct Writer {
    nodes: Vec<Node>,
    tensors: Vec<RawTensor>,
    names: BTreeSet<String>,
}

impl Writer {
    fn fresh(&mut self, wanted: &str) -> String {
        fresh(&mut self.names, wanted)
    }

    /// A node with one output, whose name is given.
    pub(super) fn node(&mut self, op: &str, reads: &[&str], options: &[(&str, Ints)]) -> String {
        self.nodes(op, reads, options, 1).pop().unwrap_or_default()
    }

    fn nodes(
        &mut self,
        op: &str,
        reads: &[&str],
        options: &[(&str, Ints)],
        outputs: usize,
    ) -> Vec<String> {
        let name = format!("{}_{}", op.to_lowercase(), self.nodes.len());
        let out: Vec<String> = match outputs {
            1 => vec![self.fresh(&name)],
            n => (0..n).map(|i| self.fresh(&format!("{name}_{i}"))).collect(),
        };
        let attribute = options.iter().map(|(name, value)| {
            let whole = Attribute { name: (*name).to_string(), ..Attribute::default() };
            match value {
                Ints::One(i) => Attribute { i: *i, r#type: kind::INT, ..whole },
                Ints::Many(ints) => Attribute { ints: ints.clone(), r#type: kind::INTS, ..whole },
                Ints::Float(f) => Attribute { f: *f as f32, r#type: kind::FLOAT, ..whole },
            }
        });
        self.nodes.push(Node {
            input: reads.iter().map(|r| (*r).to_string()).collect(),
            output: out.clone(),
            name,
            op_type: op.to_string(),
            attribute: attribute.collect(),
            domain: String::new(),
        });
        out
    }

    fn raw(&mut self, name: &str, dims: &[usize], data_type: i32, bytes: Vec<u8>) -> String {
        let name = self.fresh(name);
        self.tensors.push(RawTensor {
            dims: dims.iter().map(|n| *n as i64).collect(),
            data_type,
            name: name.clone(),
            raw_data: Some(Bytes::from(bytes)),
            ..RawTensor::default()
        });
        name
    }

    /// A tensor of f32.
    pub(super) fn tensor(&mut self, name: &str, tensor: &Tensor) -> candle_core::Result<String> {
        let data = tensor.flatten_all()?.to_vec1::<f32>()?;
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Ok(self.raw(name, tensor.dims(), FLOAT, bytes))
    }

    pub(super) fn number(&mut self, x: f64) -> String {
        self.raw("constant", &[], FLOAT, (x as f32).to_le_bytes().to_vec())
    }

    /// A list of whole numbers.
    pub(super) fn ints(&mut self, numbers: &[i64]) -> String {
        let bytes = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.raw("numbers", &[numbers.len()], INT, bytes)
    }

    /// One whole number, no list.
    pub(super) fn index(&mut self, n: i64) -> String {
        self.raw("number", &[], INT, n.to_le_bytes().to_vec())
    }

    pub(super) fn reshape(&mut self, x: &str, shape: &[i64]) -> String {
        let shape = self.ints(shape);
        self.node("Reshape", &[x, &shape], &[])
    }

    pub(super) fn transpose(&mut self, x: &str, order: &[i64]) -> String {
        self.node("Transpose", &[x], &[("perm", Ints::Many(order.to_vec()))])
    }

    /// Places of an axis from one to before another.
    pub(super) fn slice(&mut self, x: &str, axis: i64, from: i64, to: i64) -> String {
        let [from, to, axis] = [from, to, axis].map(|n| self.ints(&[n]));
        self.node("Slice", &[x, &from, &to, &axis], &[])
    }

    /// The first places of an axis, as many as a list of one number says.
    pub(super) fn first(&mut self, x: &str, axis: i64, count: &str) -> String {
        let [from, axis] = [0, axis].map(|n| self.ints(&[n]));
        self.node("Slice", &[x, &from, count, &axis], &[])
    }

    /// Equal parts of an axis.
    pub(super) fn split(&mut self, x: &str, axis: i64, count: usize) -> Vec<String> {
        if count == 1 {
            return vec![x.to_string()];
        }
        self.nodes("Split", &[x], &[("axis", Ints::One(axis))], count)
    }

    /// The file.
    pub(super) fn finish(
        mut self,
        (input, sizes, whole): (&str, &[String], bool),
        last: &str,
        made: &[String],
        context: Option<usize>,
    ) -> Vec<u8> {
        self.nodes.push(Node {
            input: vec![last.to_string()],
            output: vec!["output".into()],
            name: "output".into(),
            op_type: "Identity".into(),
            ..Node::default()
        });
        let value = |name: &str, element: i32, sizes: &[String]| {
            let dim = sizes.iter().map(|size| match size.parse() {
                Ok(n) => Dimension { value: Some(n), parameter: String::new() },
                Err(_) => Dimension { value: None, parameter: size.clone() },
            });
            let shape = Some(Shape { dim: dim.collect() });
            let tensor = Some(TensorType { element, shape });
            Value { name: name.into(), r#type: Some(Type { tensor }) }
        };
        let graph = Graph {
            node: self.nodes,
            name: "network".into(),
            initializer: self.tensors,
            input: vec![value(input, if whole { INT } else { FLOAT }, sizes)],
            output: vec![value("output", FLOAT, made)],
            sparse_initializer: Vec::new(),
        };
        let context = context.map(|n| Entry { key: CONTEXT.into(), value: n.to_string() });
        let model = Model {
            ir_version: VERSION,
            producer: env!("CARGO_PKG_NAME").into(),
            graph: Some(graph),
            opset_import: vec![OperatorSet { domain: String::new(), version: OPSET }],
            metadata: context.into_iter().collect(),
            functions: Vec::new(),
        };
        model.encode_to_vec()
    }
}
