//! The device of a run by its name.

use candle_core::Device;

use crate::Error;
use crate::ranks::local_rank;

/// `cpu`, or `cuda:N`: the GPU of the first process of a machine, with the GPUs after it for the
/// others.
///
/// # Errors
/// If there is no such device.
pub fn open(name: &str) -> Result<Device, Error> {
    let unknown = || Error::UnknownDevice(name.to_string());
    match name.split_once(':') {
        None if name == "cpu" => Ok(Device::Cpu),
        Some(("cuda", ordinal)) => {
            let ordinal: usize = ordinal.parse().map_err(|_| unknown())?;
            if !candle_core::utils::cuda_is_available() {
                return Err(Error::BuiltForCpu(name.to_string()));
            }
            let ordinal = ordinal + local_rank()?;
            Device::new_cuda(ordinal).map_err(|e| {
                let (name, error) = (name.to_string(), e.into());
                Error::Gpu { name, ordinal, error }
            })
        }
        _ => Err(unknown()),
    }
}
