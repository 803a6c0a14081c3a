//! Files beside a model that change its function.

use std::path::Path;

use lipschitz_nn::Error;

use crate::config::ConfigReader;

/// Fails where something beside the weights makes them another function.
pub(crate) fn check(directory: &Path, config: &ConfigReader) -> Result<(), Error> {
    if let Some(method) = config.inside("quantization_config")? {
        let method = method.text_if("quant_method")?.unwrap_or("unknown").to_string();
        let what = format!(
            "says that the weights are quantised (method `{method}`), and how they are restored is \
             not known to this importer; save the model with its weights in full"
        );
        return Err(config.wrong("quantization_config", what));
    }
    let adapter = directory.join("adapter_config.json");
    if adapter.exists() {
        let what = "stands beside the model: the library adds this adapter to the weights; merge it \
                    into them (merge_and_unload) and save the result, or move it away";
        return Err(Error::file(&adapter, what));
    }
    Ok(())
}
