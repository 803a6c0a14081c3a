//! The header of a safetensors file. Files are not trusted: a header is no larger than its file and
//! the format's limit, and its tensors fill the rest of the file exactly.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};

use candle_core::DType;
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::strict;

/// The longest header that safetensors allows, in bytes.
pub const MAX_HEADER: u64 = 100_000_000;

/// A header that was read.
#[derive(Debug)]
pub struct Header {
    pub(super) metadata: Metadata,
    /// Where the tensors' bytes begin.
    pub(super) start: u64,
}

/// Where a tensor lies in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// None for a type that no weight has, such as booleans.
    pub dtype: Option<DType>,
    /// The type, as the format spells it.
    pub kind: String,
    /// Where it begins, from the start of the file.
    pub offset: u64,
    /// How many bytes it has.
    pub bytes: u64,
}

/// What is wrong with a header.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The operating system does not read the file.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The file is shorter than a header's size.
    #[error("the file ends in its header")]
    Truncated,
    /// The file is shorter than its header, or the header longer than the format allows.
    #[error("a header of {size} bytes in a file of {length}")]
    Size {
        /// Of the header, in bytes.
        size: u64,
        /// Of the file, in bytes.
        length: u64,
    },
    /// The header is no JSON, or has a key twice, or tensors overlap, leave gaps, or are not as long
    /// as their shapes say.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// The file ends before or behind its last tensor.
    #[error("it has {length} bytes, its header wants {wanted}")]
    Length {
        /// Of the file, in bytes.
        length: u64,
        /// As the header has it.
        wanted: u64,
    },
}

impl Header {
    /// Reads the header at the start of a file.
    ///
    /// # Errors
    /// [`Damage`], in whatever the file is not as its header says.
    pub fn read(file: &mut File) -> Result<Self, Damage> {
        let length = file.metadata()?.len();
        let mut size = [0; 8];
        file.read_exact(&mut size).map_err(|_| Damage::Truncated)?;
        let size = u64::from_le_bytes(size);
        if size > length.saturating_sub(8).min(MAX_HEADER) {
            return Err(Damage::Size { size, length });
        }
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes)?;
        strict::no_key_twice(&bytes)?;
        let metadata: Metadata = serde_json::from_slice(&bytes)?;
        let start = 8 + size;
        let wanted = start.saturating_add(metadata.data_len() as u64);
        if wanted != length {
            return Err(Damage::Length { length, wanted });
        }
        Ok(Self { metadata, start })
    }

    /// The metadata: texts under keys.
    pub fn metadata(&self) -> HashMap<String, String> {
        self.metadata.metadata().clone().unwrap_or_default()
    }

    /// Where each tensor lies.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
            let (from, to) = info.data_offsets;
            Entry {
                name,
                shape: info.shape.clone(),
                dtype: dtype(info.dtype),
                kind: info.dtype.to_string(),
                offset: self.start + from as u64,
                bytes: (to - from) as u64,
            }
        };
        self.metadata.tensors().into_iter().map(entry).collect()
    }
}

/// The type of a tensor, if it is computed with. Numbers of less than a byte have no size in
/// candle, and its conversion of those of one byte does not end.
pub(super) fn dtype(kind: Dtype) -> Option<DType> {
    match kind {
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        Dtype::U8 => Some(DType::U8),
        Dtype::U32 => Some(DType::U32),
        Dtype::I16 => Some(DType::I16),
        Dtype::I32 => Some(DType::I32),
        Dtype::I64 => Some(DType::I64),
        _ => None,
    }
}
