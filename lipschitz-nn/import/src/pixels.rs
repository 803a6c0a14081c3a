//! What is done to pixels before a model reads them, as the file beside it says: numbers of 0…255
//! are multiplied, and of each channel a mean is subtracted and the rest divided.

use std::path::Path;

use lipschitz_nn::Error;

use crate::config::ConfigReader;
use crate::expression::TensorExpr;

/// Steps that leave the numbers of an image as they are, or are not part of the model: the graph
/// reads images of its own size.
const NOT_OURS: &[&str] = &[
    "do_resize",
    "do_center_crop",
    "do_convert_rgb",
    "do_pad",
    "do_reduce_labels",
    "do_thumbnail",
];

/// Processors of images that do what their options say and nothing else by default: they rescale and
/// normalise. Others turn channels round, for example.
const PROCESSORS: &[&str] = &[
    "BitImageProcessor",
    "CLIPFeatureExtractor",
    "CLIPImageProcessor",
    "ChineseCLIPFeatureExtractor",
    "ChineseCLIPImageProcessor",
    "ConvNextImageProcessor",
    "DeiTFeatureExtractor",
    "DeiTImageProcessor",
    "SiglipImageProcessor",
    "ViTFeatureExtractor",
    "ViTImageProcessor",
];

/// `(255·rescale·u − mean)/std` of a pixel u in \[0, 1\], for each channel.
pub(crate) struct Normalisation {
    /// Factor on a pixel in \[0, 1\].
    pub scale: f64,
    /// Means and deviations of the channels; none subtracts nothing and divides by 1.
    pub channels: Option<(Vec<f64>, Vec<f64>)>,
    /// An error about an option.
    config: ConfigReader,
}

impl Normalisation {
    /// As the files beside a model say; none if they say nothing.
    ///
    /// # Errors
    /// [`Error::File`] if a step is unknown, or a number is missing.
    pub(crate) fn beside(directory: &Path) -> Result<Option<Self>, Error> {
        let open = |name: &str| {
            let path = directory.join(name);
            path.exists().then(|| ConfigReader::open(&path)).transpose()
        };
        // The library looks into the second first.
        let alone = open("preprocessor_config.json")?.map(Self::read).transpose()?;
        let joint = open("processor_config.json")?;
        let joint = joint.map(|config| config.inside("image_processor")).transpose()?.flatten();
        match (joint.map(Self::read).transpose()?, alone) {
            (Some(joint), Some(alone))
                if joint.scale != alone.scale || joint.channels != alone.channels =>
            {
                let what =
                    "does to pixels what preprocessor_config.json beside it does not; keep one";
                Err(joint.config.wrong("image_mean", what))
            }
            (joint, alone) => Ok(joint.or(alone)),
        }
    }

    fn read(config: ConfigReader) -> Result<Self, Error> {
        for key in ["image_processor_type", "feature_extractor_type"] {
            let Some(class) = config.text_if(key)? else { continue };
            let plain = ["Fast", "Pil"].iter().find_map(|end| class.strip_suffix(end));
            if !PROCESSORS.contains(&plain.unwrap_or(class)) {
                return Err(config.unsupported(key, format!("`{class}`")));
            }
        }
        for key in config.keys().filter(|key| key.starts_with("do_")) {
            let known = NOT_OURS.contains(&key) || ["do_rescale", "do_normalize"].contains(&key);
            if !known && config.flag(key)? {
                return Err(config.wrong(key, "is true, and what it does to pixels is not known"));
            }
        }
        let scale = if config.flag_or("do_rescale", true)? {
            255.0 * config.number_or("rescale_factor", 1.0 / 255.0)?
        } else {
            255.0
        };
        let channels = if config.flag_or("do_normalize", true)? {
            let [mean, std] = ["image_mean", "image_std"].map(|key| match config.numbers(key) {
                Ok(Some(numbers)) => Ok(numbers),
                Ok(None) => Err(config.wrong(key, "is missing, and images are normalised")),
                Err(e) => Err(e),
            });
            let (mean, std) = (mean?, std?);
            if let Some(bad) = std.iter().find(|std| **std <= 0.0) {
                return Err(config.wrong("image_std", format!("has {bad}, wanted above 0")));
            }
            Some((mean, std))
        } else {
            None
        };
        Ok(Self { scale, channels, config })
    }

    /// Means and deviations of pixels in \[0, 1\], as an object of options names them.
    pub(crate) fn of_means(config: ConfigReader) -> Result<Option<Self>, Error> {
        match (config.numbers("mean")?, config.numbers("std")?) {
            (Some(mean), Some(std)) if std.iter().all(|std| *std > 0.0) => {
                Ok(Some(Self { scale: 1.0, channels: Some((mean, std)), config }))
            }
            (None, None) => Ok(None),
            _ => Err(config.wrong("std", "is not a list of numbers above 0, beside `mean`")),
        }
    }

    /// What the map of a patch takes off each of its numbers and multiplies it by.
    fn of_patch(&self, channels: usize, patch: usize) -> Result<(Vec<f64>, Vec<f64>), Error> {
        let (mean, std) = match &self.channels {
            Some((mean, std)) => (mean.clone(), std.clone()),
            None => (vec![0.0; channels], vec![1.0; channels]),
        };
        for (key, numbers) in [("image_mean", &mean), ("image_std", &std)] {
            if numbers.len() != channels {
                let what = format!("has {} numbers for {channels} channels", numbers.len());
                return Err(self.config.wrong(key, what));
            }
        }
        let each = |of: Vec<f64>| -> Vec<f64> {
            of.into_iter().flat_map(|x| std::iter::repeat_n(x, patch * patch)).collect()
        };
        let factors = std.iter().map(|std| self.scale / std).collect();
        let offsets = mean.iter().zip(&std).map(|(mean, std)| -mean / std).collect();
        Ok((each(factors), each(offsets)))
    }

    /// `W x + b` of a patch of normalised numbers, as a map of its pixels in \[0, 1\]: the matrix
    /// `W·diag(scale/std)` and the bias `b − W·mean/std`.
    pub(crate) fn fold(
        &self,
        matrix: TensorExpr,
        bias: Option<TensorExpr>,
        channels: usize,
        patch: usize,
    ) -> Result<(TensorExpr, TensorExpr), Error> {
        let (factors, offsets) = self.of_patch(channels, patch)?;
        let shift = matrix.clone().dot(offsets);
        let shift = match bias {
            Some(bias) => bias.add_row(shift),
            None => shift,
        };
        Ok((matrix.scale_columns(factors), shift))
    }

    pub(crate) fn note(&self) -> String {
        let scaled = match self.scale {
            1.0 => "pixels in [0, 1]".to_string(),
            scale => format!("{scale} times pixels in [0, 1]"),
        };
        match &self.channels {
            Some((mean, std)) => format!(
                "the input is pixels in [0, 1]: the model's own is {scaled}, less {mean:?}, over \
                 {std:?}, which the map of the patches computes"
            ),
            None => format!("the input is pixels in [0, 1]: the model's own is {scaled}"),
        }
    }
}

/// The note of an image model whose input is not pixels in \[0, 1\]: no file beside it says how
/// images are normalised, so its input is the numbers that the network itself reads.
pub const NORMALISED: &str = "the input is the numbers that the model reads, not pixels: no file beside the model says how \
     images are normalised";
