//! BART and its kin, of which the encoder is read: Marian, mBART, Pegasus, M2M-100.

use lipschitz_nn::Error;
use lipschitz_nn::graph::Input;

use super::decoder::as_the_library;
use super::encoder::{Layers, Names, Norms, mixer};
use crate::activation::NamedActivation;
use crate::config::ConfigReader;
use crate::expression::TensorExpr;
use crate::mapping::Mapping;
use crate::model_dir::ModelDir;
use crate::net::Net;

/// The ε of all norms: the library takes the default of its layer norms.
const EPS: f64 = 1e-5;

/// Positions of an encoder.
#[derive(Clone, Copy, PartialEq)]
enum Positions {
    /// Learned, from the third row of the table on.
    Learned,
    /// Angles, in a table that may be stored.
    Angles,
    /// Angles from behind the id of padding on, in no file.
    Computed,
}

/// What sets a family apart.
struct Kin {
    /// What its classes begin with.
    class: &'static str,
    positions: Positions,
    /// A norm of the embedding.
    embedding_norm: bool,
    norms: Norms,
    /// A norm behind the layers.
    last_norm: bool,
}

impl Kin {
    fn of(family: &str) -> Self {
        let bart = Self {
            class: "Bart",
            positions: Positions::Learned,
            embedding_norm: true,
            norms: Norms::After,
            last_norm: false,
        };
        let before = |class, positions, embedding_norm| Self {
            class,
            positions,
            embedding_norm,
            norms: Norms::Before,
            last_norm: true,
        };
        match family {
            "m2m_100" => before("M2M100", Positions::Computed, false),
            "marian" => Self {
                class: "Marian",
                positions: Positions::Angles,
                embedding_norm: false,
                ..bart
            },
            "mbart" => before("MBart", Positions::Learned, true),
            "pegasus" => before("Pegasus", Positions::Angles, false),
            _ => bart,
        }
    }

    /// Fails on a class that has no encoder, and on one whose output is not known.
    fn class(&self, config: &ConfigReader) -> Result<(), Error> {
        match config.architecture()? {
            None => Ok(()),
            Some(name) => match name.strip_prefix(self.class) {
                Some("Model" | "MTModel" | "ForConditionalGeneration") => Ok(()),
                _ => Err(config.no_class(name)),
            },
        }
    }

    /// Options of the program that these families come from, which the library does not read.
    fn former(&self, config: &ConfigReader) -> Result<(), Error> {
        config.assume("normalize_before", &(self.norms == Norms::Before).into())?;
        config.assume("normalize_embedding", &self.embedding_norm.into())?;
        config.assume("add_final_layer_norm", &self.last_norm.into())?;
        let learned = self.positions == Positions::Learned;
        config.assume("static_position_embeddings", &(!learned).into())?;
        if learned {
            config.assume("extra_pos_embeddings", &OFFSET.into())?;
        } else {
            config.ignore(&["extra_pos_embeddings"]);
        }
        Ok(())
    }

    /// The table of positions.
    fn table(
        &self,
        model: &ModelDir,
        root: &str,
        [context, dim]: [usize; 2],
    ) -> Result<TensorExpr, Error> {
        let name = format!("{root}embed_positions.weight");
        Ok(match self.positions {
            Positions::Learned => {
                TensorExpr::new(name, &[context + OFFSET, dim]).rows(OFFSET, context)
            }
            Positions::Angles if model.files.get(&name).is_some() => {
                TensorExpr::new(name, &[context, dim])
            }
            Positions::Angles => {
                model.config.check_rows("max_position_embeddings", context)?;
                TensorExpr::numbers(angles(context, dim), &[context, dim])
            }
            Positions::Computed => {
                if dim < 4 {
                    let what = format!("is {dim}: angles of positions want a width of 4 or more");
                    return Err(model.config.wrong("d_model", what));
                }
                model.config.check_rows("max_position_embeddings", context)?;
                let from = model.config.count("pad_token_id")? + 1;
                let numbers = angles_in_halves(from, context, dim);
                TensorExpr::numbers(numbers, &[context, dim])
            }
        })
    }
}

/// Rows of a table of learned positions that no position reads.
const OFFSET: usize = 2;

/// The sines of position · 10⁴^(-2i/dim), then the cosines (Vaswani et al., *Attention is all you
/// need*, section 3.5, with the two apart), as numbers of 32 bits.
fn angles(rows: usize, dim: usize) -> Vec<f64> {
    let frequency = |j: usize| 10_000f64.powf(-((2 * j) as f64) / dim as f64);
    let row = |position: usize| {
        let angle = move |j: usize| position as f64 * frequency(j);
        let sines = (0..dim.div_ceil(2)).map(move |j| angle(j).sin());
        sines.chain((0..dim / 2).map(move |j| angle(j).cos()))
    };
    (0..rows).flat_map(row).map(|x| f64::from(x as f32)).collect()
}

/// The same with frequencies from 1 to 10⁻⁴, both included, and a zero where the width is odd. The
/// library computes the angles in 32 bits, which tells at far positions.
fn angles_in_halves(from: usize, rows: usize, dim: usize) -> Vec<f64> {
    let half = dim / 2;
    let step = (10_000f64.ln() / (half - 1) as f64) as f32;
    let row = |position: usize| {
        let angle = move |j: usize| position as f32 * (j as f32 * -step).exp();
        let sines = (0..half).map(move |j| angle(j).sin());
        let cosines = (0..half).map(move |j| angle(j).cos());
        sines.chain(cosines).chain(std::iter::repeat_n(0.0, dim % 2))
    };
    (from..from + rows).flat_map(row).map(f64::from).collect()
}

pub(crate) fn bart(model: &ModelDir) -> Result<Mapping, Error> {
    as_the_library(model)?;
    let &ModelDir { config, files, family, .. } = model;
    let kin = Kin::of(family);
    kin.class(config)?;
    kin.former(config)?;
    let dim = config.size("d_model")?;
    let heads = config.heads("encoder_attention_heads", dim)?;
    let (vocabulary, context) =
        (config.size("vocab_size")?, config.size("max_position_embeddings")?);
    let count = config.layers("encoder_layers", files.len())?;
    config.only("is_decoder", false)?;
    // Of the decoder, of training, and of search.
    config.ignore(&[
        "add_bias_logits",
        "bad_words_ids",
        "decoder_attention_heads",
        "decoder_ffn_dim",
        "decoder_layerdrop",
        "decoder_layers",
        "decoder_vocab_size",
        "early_stopping",
        "encoder_layerdrop",
        "force_bos_token_to_be_generated",
        "init_std",
        "is_encoder_decoder",
        "length_penalty",
        "no_repeat_ngram_size",
        "num_beam_groups",
    ]);
    let shared = family != "marian" || config.flag("share_encoder_decoder_embeddings")?;
    let scale = if config.flag("scale_embedding")? { (dim as f64).sqrt() } else { 1.0 };
    let tied = config.flag("tie_word_embeddings")? && shared;

    let outer = files.prefix("model.");
    let root = format!("{outer}encoder.");
    let shape = [vocabulary, dim];
    let common = format!("{outer}shared.weight");
    let tie = model.tie(
        tied,
        TensorExpr::new(&common, &shape),
        TensorExpr::new(format!("{root}embed_tokens.weight"), &shape),
    )?;
    let table = tie.second.clone();
    let mut net = Net::default();
    net.embedding(if scale == 1.0 { table } else { table.times(scale) }, vocabulary, dim);
    net.positions(kin.table(model, &root, [context, dim])?, context, dim);
    if kin.embedding_norm {
        net.layer_norm("embedding_norm", &format!("{root}layernorm_embedding"), dim, EPS);
    }
    let layers = Layers {
        mixer: mixer(dim, heads),
        hidden: config.size("encoder_ffn_dim")?,
        eps: EPS,
        phi: NamedActivation::read(config, "activation_function")?,
        norms: kin.norms,
        names: Names::BART,
    };
    let layers = layers.all(&mut net.weights, (0..count).map(|i| format!("{root}layers.{i}")));
    net.push(layers);
    if kin.last_norm {
        net.layer_norm("norm", &format!("{root}layer_norm"), dim, EPS);
    }
    let why = "the encoder does not read it";
    let mapping = net.mapping(Input::tokens(context))?;
    Ok(mapping
        .note("the encoder alone; no token is padding")
        .aside(format!("{outer}decoder.*"), why)
        .aside("lm_head.weight", why)
        .aside("final_logits_bias", why)
        .aside(common, "the encoder has an embedding of its own")
        .aside("encoder.version", "a number of a version")
        .aside("encoder.embed_positions.weights", "angles that follow from the config")
        .tied(tie))
}
