//! JPEG and PNG as planes of bytes. What a header says is looked at before anything is decoded.

use std::io::Cursor;

use image::{ColorType, DynamicImage, ImageFormat, ImageReader, Limits};

use crate::caught::caught;
use crate::error::one_line;

/// The most pixels of an image that is read.
pub(crate) const MOST_PIXELS: u64 = 1 << 24;

/// An image that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BadImage {
    #[error("its image is damaged: {}", one_line(.0))]
    Decode(#[from] image::ImageError),
    #[error("its image is damaged: {}", one_line(.0))]
    Read(#[from] std::io::Error),
    /// The library panicked.
    #[error("its image is damaged: {0}")]
    Panic(String),
    #[error("its image is damaged: the JPEG is cut short, or something stands behind its end")]
    CutShort,
    #[error("its image is neither JPEG nor PNG")]
    Format,
    #[error("its image is {} × {}, not {} × {}", .found[1], .found[0], .wanted[1], .wanted[0])]
    Size { found: [usize; 2], wanted: [usize; 2] },
    #[error("its image is {0} × {1}; up to {MOST_PIXELS} pixels are read")]
    Large(u32, u32),
    #[error("its image has transparent parts; put it on a background")]
    Transparent,
    #[error("its image has {0}; save it with 8 bits for each channel")]
    Depth(&'static str),
}

/// One image: planes one after the other, each by rows.
#[derive(Debug, PartialEq)]
pub(crate) struct Planes {
    /// 1 for grey, 3 for red, green and blue.
    pub(crate) channels: usize,
    pub(crate) pixels: Vec<u8>,
}

impl Planes {
    /// The same image in three channels.
    pub(crate) fn coloured(self) -> Self {
        match self.channels {
            1 => Self { channels: 3, pixels: self.pixels.repeat(3) },
            _ => self,
        }
    }
}

/// Height and width of an image, from its header.
pub(crate) fn size(bytes: &[u8]) -> Result<[usize; 2], BadImage> {
    let header = || -> Result<_, BadImage> {
        let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
        // The decoder fills what is missing of a JPEG with grey, so look for the end marker.
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        match reader.format() {
            Some(ImageFormat::Jpeg) if !bytes[..end].ends_with(&[0xff, 0xd9]) => {
                Err(BadImage::CutShort)
            }
            Some(ImageFormat::Jpeg | ImageFormat::Png) => Ok(reader.into_dimensions()?),
            _ => Err(BadImage::Format),
        }
    };
    let (width, height) = caught(header).unwrap_or_else(|said| Err(BadImage::Panic(said)))?;
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        return Err(BadImage::Large(width, height));
    }
    Ok([height as usize, width as usize])
}

/// An image of this height and width.
pub(crate) fn decode(bytes: &[u8], wanted: [usize; 2]) -> Result<Planes, BadImage> {
    let found = size(bytes)?;
    if found != wanted {
        return Err(BadImage::Size { found, wanted });
    }
    caught(|| planes(bytes)).unwrap_or_else(|said| Err(BadImage::Panic(said)))
}

fn planes(bytes: &[u8]) -> Result<Planes, BadImage> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let mut limits = Limits::default();
    // Decoded pixels, of up to four channels of two bytes, and what decoding itself takes.
    limits.max_alloc = Some(16 * MOST_PIXELS);
    reader.limits(limits);
    let image = reader.decode()?;
    // The alpha channel comes last.
    let opaque = |channels: usize| {
        let mut alpha = image.as_bytes().iter().skip(channels - 1).step_by(channels);
        if alpha.all(|a| *a == u8::MAX) { Ok(()) } else { Err(BadImage::Transparent) }
    };
    match image.color() {
        ColorType::La8 => opaque(2)?,
        ColorType::Rgba8 => opaque(4)?,
        ColorType::L8 | ColorType::Rgb8 => {}
        ColorType::L16 | ColorType::La16 | ColorType::Rgb16 | ColorType::Rgba16 => {
            return Err(BadImage::Depth("16 bits for each channel"));
        }
        _ => return Err(BadImage::Depth("floating-point numbers")),
    }
    Ok(match image {
        DynamicImage::ImageLuma8(_) | DynamicImage::ImageLumaA8(_) => {
            Planes { channels: 1, pixels: image.into_luma8().into_raw() }
        }
        image => {
            let pixels = image.into_rgb8();
            let plane = |channel| pixels.as_raw().iter().skip(channel).step_by(3);
            Planes { channels: 3, pixels: (0..3).flat_map(plane).copied().collect() }
        }
    })
}
