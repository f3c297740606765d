//! `tandem node reset`: makes a stopped node one that has never been in a cluster. Nothing is deleted.

use std::path::Path;

use serde_json::json;

use super::exit::Failure;
use super::session::{confirm, emit};
use crate::config::NodeConfig;
use crate::node::data_dir::{DataDir, DataDirError};

/// Sets the node's identity, log, and stores aside, in its own directory. Refused while the node runs.
pub(super) fn run(config: &Path, yes: bool, as_json: bool) -> Result<(), Failure> {
    let config = NodeConfig::load(config).map_err(|why| Failure::Usage(why.to_string()))?;
    let directory = DataDir::open(&config.data_dir).map_err(|why| match why {
        DataDirError::InUse { .. } => Failure::Refused(format!("{why}; stop the node first")),
        _ => Failure::Failed(why.to_string()),
    })?;
    if !yes {
        confirm(
            &format!(
                "Node {} will be in no cluster: its identity, its vote, and its copies of volumes are set aside.",
                config.name
            ),
            &config.name,
        )?;
    }
    let aside = directory.set_aside().map_err(|why| Failure::Failed(why.to_string()))?;
    let path = aside.display().to_string();
    match as_json {
        true => emit(&format!("{:#}\n", json!({ "set_aside": path }))),
        false => emit(&format!(
            "Set aside in {path}; delete that once the volumes are in sync elsewhere.\nNext: `tandem node remove {}` on \
             another node (if it is still listed), start this one, then `tandem node join MEMBER` here.\n",
            config.name
        )),
    }
}
