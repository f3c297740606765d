//! What is exported, where it is served, and what a client agreed to: the values that pass between the phases.
//!
//! No state of its own; the directory behind [`ExportDirectory`] belongs to the caller.

/// One export as a client sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Export name: the name of the volume.
    pub name: String,
    /// Text for people; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size_bytes: u64,
}

/// Answer to "is this export served here?".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Served by this node now.
    Serve(Export),
    /// Unknown, or served by another node. The message is shown to the client's user, so it names the primary where
    /// there is one: "volume `v` is served by node `b` (10.0.0.2:10809)".
    NotHere {
        /// Text for people.
        message: String,
    },
    /// Will be served here, but not yet or not any more (starting, frozen, switching over): worth trying again.
    NotNow {
        /// Text for people.
        message: String,
    },
}

/// What a listener knows of the volumes. Called during negotiation, from the control plane; answers come from memory.
pub trait ExportDirectory: Send + Sync {
    /// Exports to show in answer to `NBD_OPT_LIST`.
    fn list(&self) -> Vec<Export>;

    /// Looks up `name` (UTF-8, at most 4096 bytes; empty means "the default export").
    fn lookup(&self, name: &str) -> Lookup;
}

/// What negotiation settled; all that the transmission phase needs to know besides the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agreed {
    /// The chosen export. Its size is the one the client was told, and ranges are checked against it.
    pub export: Export,
    /// Structured replies were negotiated.
    pub structured_replies: bool,
    /// The metadata context `base:allocation` was selected, so BLOCK_STATUS is allowed.
    pub base_allocation: bool,
}
