//! The architecture graph: a network as a piece of data.
//!
//! A graph is an input and a sequence of named nodes. Every interpreter reads the same graph:
//! [`crate::Model`] runs it, training takes its parameters and their geometry from it, a
//! certificate is proven from it, a checkpoint stores it. A new layer kind is a new [`Op`]; the
//! compiler then names each interpreter that lacks an arm.

mod attention;
mod builder;
mod check;
mod constants;
mod function;
mod id;
mod image;
mod input;
mod op;
mod outline;
mod parameter;
mod shape;
mod site;

pub use attention::{Alibi, Attention, NormKind, Pairing, PositionBias, Rotary, Span};
pub use builder::{Branches, Builder};
pub use function::Function;
pub use id::NodeId;
pub use image::{Convolution, Pool, Pooling};
pub use input::Input;
pub use op::{Node, Op, join};
pub use outline::Outline;
pub use parameter::{Axis, Geometry, HeadBlocks, Init, Parameter};
pub use shape::Shape;
pub use site::{Site, Stage};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Error, strict};

/// The format version of a serialised graph.
pub const FORMAT: u32 = 1;

/// A network: what goes in, and the nodes it passes through. Every graph there is fits together:
/// names, shapes and constants are checked when it is made, read or deserialised.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Document", into = "Document")]
#[schemars(with = "Document")]
pub struct Graph {
    input: Input,
    nodes: Vec<Node>,
    output: Shape,
}

/// A network: what goes in, and the nodes it passes through.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Graph")]
struct Document {
    /// Format version, [`FORMAT`].
    format: u32,
    /// What the network reads.
    input: Input,
    /// The nodes, first to last.
    nodes: Vec<Node>,
}

impl TryFrom<Document> for Graph {
    type Error = Error;

    fn try_from(Document { format, input, nodes }: Document) -> Result<Self, Error> {
        if format != FORMAT {
            let what = format!("has format {format}, this version reads {FORMAT}");
            return Err(Error::graph("", what));
        }
        Self::new(input, nodes)
    }
}

impl From<Graph> for Document {
    fn from(Graph { input, nodes, .. }: Graph) -> Self {
        Self { format: FORMAT, input, nodes }
    }
}

impl Graph {
    /// A graph that fits together.
    ///
    /// # Errors
    /// [`Error::Graph`] names the first node whose shapes, names or constants do not fit.
    pub fn new(input: Input, nodes: Vec<Node>) -> Result<Self, Error> {
        let output = check::check(input, &nodes)?;
        Ok(Self { input, nodes, output })
    }

    /// Parses a graph; a key that means nothing is refused.
    ///
    /// # Errors
    /// [`Error::Graph`] if the text is not a graph of this format, or does not fit together.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        strict::from_str(text).map_err(|e| Error::graph("", format!("cannot be read: {e}")))
    }

    /// What the network reads.
    pub fn input(&self) -> Input {
        self.input
    }

    /// The nodes, first to last.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The shape of one output.
    pub fn output(&self) -> Shape {
        self.output
    }

    /// The parameters in the order of the forward pass, with name, shape, geometry and
    /// initialisation.
    pub fn parameters(&self) -> Vec<Parameter> {
        parameter::parameters(&self.nodes)
    }

    /// Numbers in one output: of a token, or of all.
    pub fn outputs(&self) -> usize {
        match self.output {
            Shape::Ids => 0,
            Shape::Tokens(n) | Shape::Vector(n) => n,
            Shape::Image(c, h, w) => c * h * w,
        }
    }

    /// The same network on sequences behind this many zero vectors.
    ///
    /// # Errors
    /// [`Error::Graph`] if it reads no tokens, or names the node that does not keep the zeros.
    pub fn behind_zeros(&self, count: usize) -> Result<Self, Error> {
        match self.input {
            Input::Tokens { context, separator, .. } => Self::new(
                Input::Tokens { context, separator, zero_prefix: count },
                self.nodes.clone(),
            ),
            _ => Err(Error::graph("input", "reads no tokens, so that zeros cannot go before")),
        }
    }

    /// The path of the first attention that reads tokens behind a token's own, if there is one.
    pub fn looks_ahead(&self) -> Option<String> {
        fn first(nodes: &[Node], prefix: &str) -> Option<String> {
            nodes.iter().find_map(|node| {
                let path = node.path(prefix);
                match &node.op {
                    Op::Attention(a) => (!a.causal).then_some(path),
                    op => op.body().and_then(|body| first(body, &path)),
                }
            })
        }
        first(&self.nodes, "")
    }

    /// The place among the outermost nodes of the linear map that a network ends in, but for scales behind it.
    #[must_use]
    pub fn head(&self) -> Option<usize> {
        let end = self.nodes.iter().rposition(|node| !matches!(node.op, Op::Scale { .. }))?;
        matches!(self.nodes[end].op, Op::Linear { .. }).then_some(end)
    }

    /// How many tokens the graph knows, for token input.
    pub fn vocabulary(&self) -> Option<usize> {
        match self.nodes.first()?.op {
            Op::Embedding { vocabulary, .. } => Some(vocabulary),
            _ => None,
        }
    }

    /// The longest sequence the graph reads, for token input.
    pub fn context(&self) -> Option<usize> {
        match self.input {
            Input::Tokens { context, .. } => Some(context),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vectors(op: Op) -> Result<Graph, String> {
        Graph::new(Input::Vector { dim: 4 }, vec![Node::new("node", op)]).map_err(|e| e.to_string())
    }

    fn linear(name: &str, outputs: usize) -> Node {
        Node::new(name, Op::Linear { inputs: 4, outputs, bias: false })
    }

    /// Sequences of unlike lengths are not added, and a table has a row for each token.
    #[test]
    fn tokens_of_an_image_are_counted() {
        let of = |nodes: Vec<Node>| {
            let pixels = Input::Pixels { channels: 1, height: 4, width: 4 };
            Graph::new(pixels, nodes).map(|_| ()).map_err(|e| e.to_string())
        };
        let node = |op: Op| Node::new("", op);
        let map = |inputs| Node::new("map", Op::Linear { inputs, outputs: 3, bias: false });
        let branch = |size: usize, token: bool| {
            let mut body = vec![node(Op::Patches { size }), map(size * size)];
            body.extend(token.then(|| Node::new("class", Op::ClassToken { dim: 3 })));
            Node::new(format!("branch{size}"), Op::Sequential { body })
        };
        let both = |branches: Vec<Node>| vec![node(Op::Parallel { branches }), node(Op::MeanPool)];
        let said = of(both(vec![branch(4, false), branch(2, false)])).unwrap_err();
        assert!(said.contains("adds [1, 3] to [4, 3]"), "{said}");
        let one = |token| {
            let name = if token { "one" } else { "two" };
            let Op::Sequential { body } = branch(2, token).op else { unreachable!() };
            Node::new(name, Op::Sequential { body })
        };
        assert_eq!(of(both(vec![one(false), branch(2, false)])), Ok(()));
        assert!(of(both(vec![one(true), branch(2, false)])).is_err());
        let class = Node::new("class", Op::ClassToken { dim: 4 });
        let residual = |body| Op::Residual { skip: 1.0, branch: 1.0, body };
        let said = of(vec![node(Op::Patches { size: 2 }), node(residual(vec![class.clone()]))]);
        assert!(said.unwrap_err().contains("adds [4, 4] to [5, 4]"));
        let rows = |length| Node::new("positions", Op::Positions { length, dim: 4 });
        let behind = |length| of(vec![node(Op::Patches { size: 2 }), class.clone(), rows(length)]);
        assert_eq!(behind(5), Ok(()));
        assert!(behind(4).unwrap_err().contains("has 4 positions for 5 tokens"));
        // The zeros in front have positions, too.
        let zeros = |length| {
            let input = Input::Tokens { context: 4, separator: None, zero_prefix: 2 };
            let embedding = Node::new("embedding", Op::Embedding { vocabulary: 3, dim: 4 });
            Graph::new(input, vec![embedding, rows(length)]).map(|_| ()).map_err(|e| e.to_string())
        };
        assert_eq!(zeros(6), Ok(()));
        assert!(zeros(5).unwrap_err().contains("has 5 positions for a context of 6 tokens"));
    }

    /// What would change the zeros, or read them, is named.
    #[test]
    fn a_prefix_of_zeros_stays_zero() {
        let body = |nodes: Vec<Node>| {
            let embedding = Node::new("embedding", Op::Embedding { vocabulary: 3, dim: 4 });
            let nodes = std::iter::once(embedding).chain(nodes).collect();
            let found = Graph::new(Input::tokens(4), nodes).unwrap().behind_zeros(2);
            found.map(|_| ()).map_err(|e| e.to_string())
        };
        let seen = Attention { causal: true, ..Attention::new(4, 2, 2) };
        let attention = |a: &Attention| Node::new("attention", Op::Attention(a.clone()));
        let biased = Node::new("biased", Op::Linear { inputs: 4, outputs: 4, bias: true });
        let open = |function| Node::new("phi", Op::Activation { function, scale: 1.0 });
        let fine = [
            vec![attention(&seen), biased.clone()],
            vec![open(Function::Silu), attention(&seen), Node::new("", Op::LastToken)],
            vec![biased.clone()],
        ];
        for nodes in fine {
            assert_eq!(body(nodes.clone()), Ok(()), "{nodes:?}");
        }
        let positions = Node::new("positions", Op::Positions { length: 9, dim: 4 });
        let inside = Op::Residual { skip: 1.0, branch: 1.0, body: vec![biased.clone()] };
        for (nodes, named) in [
            (vec![biased.clone(), attention(&seen)], "biased"),
            (vec![Node::new("around", inside), attention(&seen)], "around.biased"),
            (vec![open(Function::Sigmoid), attention(&seen)], "phi"),
            (vec![positions, attention(&seen)], "positions"),
            (vec![attention(&Attention { causal: false, ..seen.clone() })], "attention"),
            (
                vec![
                    Node::new("own", Op::Attention(Attention { bias: true, ..seen.clone() })),
                    attention(&seen),
                ],
                "own",
            ),
            (vec![attention(&seen), Node::new("mean", Op::MeanPool)], "mean"),
        ] {
            let said = body(nodes).unwrap_err();
            assert!(said.contains(named) && said.contains("the prefix"), "{said}");
        }
        let separated = Input::Tokens { context: 4, separator: Some(1), zero_prefix: 2 };
        let embedding = Node::new("embedding", Op::Embedding { vocabulary: 3, dim: 4 });
        let said = Graph::new(separated, vec![embedding]).unwrap_err().to_string();
        assert!(said.contains("separator"), "{said}");
        assert!(vectors(Op::Scale { factor: 2.0 }).unwrap().behind_zeros(1).is_err());
    }

    #[test]
    fn nodes_that_cannot_be_are_named() {
        let attention = |a: Attention| {
            let nodes = vec![
                Node::new("embedding", Op::Embedding { vocabulary: 3, dim: 4 }),
                Node::new("node", Op::Attention(a)),
            ];
            Graph::new(Input::tokens(4), nodes).map_err(|e| e.to_string())
        };
        let two = Attention::new(4, 2, 2);
        let activation = |function| vectors(Op::Activation { function, scale: 1.0 });
        let parallel = |branches| vectors(Op::Parallel { branches });
        let slopes = |slopes| attention(Attention { alibi: Some(Alibi { slopes }), ..two.clone() });
        let nan = f64::NAN;
        for (found, what) in [
            (parallel(vec![]), "no branches"),
            (parallel(vec![linear("a", 3), linear("b", 4)]), "adds [3] to [4]"),
            (parallel(vec![linear("a", 4), linear("a", 4)]), "two weights"),
            (parallel(vec![linear("a", 4), linear("b.c", 4)]), "dot"),
            (vectors(Op::Normalise { eps: 0.0 }), "eps"),
            (vectors(Op::Normalise { eps: 1e-16 }), "eps"),
            (vectors(Op::RmsNorm { dim: 4, eps: 1e-60, gain: false }), "eps of at least 1e-30"),
            (
                vectors(Op::LayerNorm { dim: 4, eps: 1e-320, bias: false, gain: false }),
                "eps of at least 1e-30",
            ),
            (vectors(Op::Normalise { eps: nan }), "eps"),
            (vectors(Op::LastToken), "wants tokens"),
            (activation(Function::LeakyRelu { slope: f64::INFINITY }), "slope"),
            (activation(Function::Elu { alpha: nan }), "alpha"),
            (
                vectors(Op::GatedMlp {
                    dim: 4,
                    hidden: 3,
                    function: Function::Elu { alpha: nan },
                    bias: false,
                }),
                "alpha",
            ),
            (slopes(vec![0.5]), "1 slopes for 2 heads"),
            (slopes(vec![0.5, nan]), "slope"),
            (attention(Attention { query_key_shift: true, ..two.clone() }), "query_key_shift"),
            (
                attention(Attention { query_key_norm: Some(1e-31), ..two.clone() }),
                "query_key_norm of at least",
            ),
        ] {
            let said = found.unwrap_err();
            assert!(said.contains("node") && said.contains(what), "{said}, not {what}");
        }
        let deep = (0..40).fold(linear("a", 4), |inner, i| {
            Node::new(format!("n{i}"), Op::Parallel { branches: vec![inner] })
        });
        assert!(parallel(vec![deep]).unwrap_err().contains("nested deeper"));
    }

    /// What was written before a key existed reads as it did, and what is written is read back.
    #[test]
    fn what_is_not_said_is_as_it_was() {
        let text = "{\"format\": 1, \"input\": {\"kind\": \"tokens\", \"context\": 4}, \"nodes\": [
            {\"name\": \"e\", \"op\": \"embedding\", \"vocabulary\": 3, \"dim\": 4},
            {\"name\": \"r\", \"op\": \"rms_norm\", \"dim\": 4, \"eps\": 0.5},
            {\"name\": \"n\", \"op\": \"layer_norm\", \"dim\": 4, \"eps\": 0.5, \"bias\": true},
            {\"name\": \"a\", \"op\": \"attention\", \"dim\": 4, \"heads\": 2, \"key_value_heads\": 2,
             \"head_dim\": 2, \"logit_scale\": 0.5, \"output_scale\": 1.0, \"causal\": true,
             \"rotary\": null, \"bias\": false, \"output_bias\": false, \"query_key_norm\": 0.1}]}";
        let graph = Graph::from_json(text).unwrap();
        let names: Vec<String> = graph.parameters().into_iter().map(|p| p.name).collect();
        let wanted = [
            "e.weight",
            "r.weight",
            "n.weight",
            "n.bias",
            "a.query.weight",
            "a.query_norm.weight",
            "a.key.weight",
            "a.key_norm.weight",
            "a.value.weight",
            "a.output.weight",
        ];
        assert_eq!(names, wanted);
        let Op::Attention(a) = &graph.nodes()[3].op else { panic!() };
        let plain =
            Attention { logit_scale: 0.5, query_key_norm: Some(0.1), ..Attention::new(4, 2, 2) };
        assert_eq!(*a, plain);
        for function in Function::ALL {
            let phi = Node::new("", Op::Activation { function, scale: 1.0 });
            let branches = vec![linear("a", 4), Node::new("b", Op::Sequential { body: vec![phi] })];
            let graph = vectors(Op::Parallel { branches }).unwrap();
            let text = serde_json::to_string(&graph).unwrap();
            assert_eq!(Graph::from_json(&text).unwrap(), graph, "{text}");
        }
        let branch = "{\"op\": \"flatten\", \"axis\": 1}";
        let text = format!(
            "{{\"format\": 1, \"input\": {{\"kind\": \"vector\", \"dim\": 2}}, \"nodes\": \
             [{{\"op\": \"parallel\", \"branches\": [{branch}]}}]}}"
        );
        let said = Graph::from_json(&text).unwrap_err().to_string();
        assert!(said.contains("nodes[0].branches[0].axis"), "{said}");
    }

    /// In a residual every branch starts at zero, as a single one does; outside of one, none.
    #[test]
    fn where_branches_start() {
        let branch = |name: &str| {
            let body = vec![linear("up", 4), linear("down", 4)];
            Node::new(name, Op::Sequential { body })
        };
        let sum = Op::Parallel { branches: vec![branch("a"), branch("b")] };
        let zeros = |op: Op| -> Vec<String> {
            let start = vec![Node::new("node", op), Node::new("", Op::Scale { factor: 2.0 })];
            let graph = Graph::new(Input::Vector { dim: 4 }, start).unwrap();
            let zero = |p: Parameter| (p.init == Init::Zero).then_some(p.name);
            graph.parameters().into_iter().filter_map(zero).collect()
        };
        let body = vec![linear("first", 4), Node::new("sum", sum.clone())];
        let residual = |skip| Op::Residual { skip, branch: 1.0, body: body.clone() };
        assert_eq!(zeros(residual(1.0)), ["node.sum.a.down.weight", "node.sum.b.down.weight"]);
        assert!(zeros(residual(0.0)).is_empty());
        assert!(zeros(sum).is_empty());
    }

    /// Each branch reads what the node reads, and the next node reads every branch.
    #[test]
    fn branches_are_drawn_side_by_side() {
        let branches = vec![
            Node::new("b", Op::Sequential { body: vec![linear("x", 4), linear("y", 4)] }),
            linear("c", 4),
        ];
        let nodes =
            vec![linear("a", 4), Node::new("sum", Op::Parallel { branches }), linear("head", 4)];
        let graph = Graph::new(Input::Vector { dim: 4 }, nodes).unwrap();
        let dot = graph.to_dot(&|_| None);
        let edges: Vec<&str> = dot
            .lines()
            .filter_map(|line| line.trim().strip_suffix(';'))
            .filter(|l| l.contains("->"))
            .collect();
        // a is 1, the frame 2, the sequence 3, x 4, y 5, c 6, head 7.
        assert_eq!(edges, ["n0 -> n1", "n1 -> n4", "n4 -> n5", "n1 -> n6", "n5 -> n7", "n6 -> n7"]);
    }
}
