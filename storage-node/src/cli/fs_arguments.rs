//! The grammar of `tandem fs`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use clap::Subcommand;
use clap::builder::{OsStringValueParser, TypedValueParser};

/// A path in a volume: `VOLUME:PATH`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// Name or id.
    pub(crate) volume: String,
    /// From the volume's root.
    pub(crate) path: Vec<u8>,
}

impl Location {
    /// As it was given, for people.
    pub(crate) fn shown(&self) -> String {
        format!("{}:{}", self.volume, String::from_utf8_lossy(&self.path))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum FsCommand {
    /// Make a fresh ext4 filesystem in a volume. Refused if the volume holds a filesystem or data
    Make {
        /// Name or id
        volume: String,
        /// Also if it holds something: all of it is lost
        #[arg(long)]
        force: bool,
    },
    /// Ask e2fsck whether the filesystem is sound, and explain its answer. Changes nothing; the filesystem is closed for it
    Check {
        /// Name or id
        volume: String,
    },
    /// Close the filesystem, so that NBD clients can use the volume; it is opened again on its next use
    Close {
        /// Name or id
        volume: String,
    },
    /// How full it is
    Df {
        /// Name or id
        volume: String,
    },
    /// What is in a directory
    Ls {
        /// VOLUME:PATH
        #[arg(value_name = "VOLUME:PATH", value_parser = location())]
        location: Location,
        /// With modes, owners, sizes and times
        #[arg(short)]
        long: bool,
    },
    /// Everything about one file; a symbolic link is not followed
    Stat {
        /// VOLUME:PATH
        #[arg(value_name = "VOLUME:PATH", value_parser = location())]
        location: Location,
        /// Follow a symbolic link
        #[arg(short = 'L', long)]
        dereference: bool,
    },
    /// Make a directory
    Mkdir {
        /// VOLUME:PATH
        #[arg(value_name = "VOLUME:PATH", value_parser = location())]
        location: Location,
        /// Also the directories on the way; none has to be new
        #[arg(short, long)]
        parents: bool,
    },
    /// Write a file to standard output
    Cat {
        /// VOLUME:PATH
        #[arg(value_name = "VOLUME:PATH", value_parser = location())]
        location: Location,
    },
    /// Copy a file out of a volume; the local one is there when it is whole
    Get {
        /// VOLUME:PATH
        #[arg(value_name = "VOLUME:PATH", value_parser = location())]
        location: Location,
        /// A file, a directory, or - for standard output
        #[arg(default_value = ".")]
        local: PathBuf,
    },
    /// Copy a file into a volume. It is durable on both boxes when this returns; before that, and if it fails, the old file is
    /// there as it was
    Put {
        /// A file, or - for standard input
        local: PathBuf,
        /// VOLUME:PATH; a directory takes the file under its own name
        #[arg(value_name = "VOLUME:PATH", value_parser = location())]
        location: Location,
    },
    /// Copy a file to another place, also of another volume; otherwise as put
    Cp {
        /// VOLUME:PATH
        #[arg(value_name = "VOLUME:FROM", value_parser = location())]
        from: Location,
        /// VOLUME:PATH; a directory takes the file under its own name
        #[arg(value_name = "VOLUME:TO", value_parser = location())]
        to: Location,
    },
    /// Remove a file, or a directory with all that is in it
    Rm {
        /// VOLUME:PATH
        #[arg(value_name = "VOLUME:PATH", value_parser = location())]
        location: Location,
        /// A directory with all that is in it; symbolic links are removed, not followed
        #[arg(short, long)]
        recursive: bool,
        /// A directory that is empty
        #[arg(short, long)]
        dir: bool,
    },
}

fn location() -> impl TypedValueParser<Value = Location> {
    OsStringValueParser::new().try_map(parse_location)
}

fn parse_location(text: OsString) -> Result<Location, String> {
    let mut volume = text.into_vec();
    let colon = volume.iter().position(|byte| *byte == b':');
    let colon = colon.ok_or("write VOLUME:PATH, for example data:/reports/2024")?;
    let path = volume.split_off(colon + 1);
    volume.pop();
    match String::from_utf8(volume) {
        Ok(volume) if !volume.is_empty() => Ok(Location { volume, path }),
        _ => Err("the volume's name is missing before the colon: write VOLUME:PATH".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_volume_and_any_path() {
        let parse = |text: &[u8]| parse_location(OsString::from_vec(text.to_vec()));
        let location = |path: &[u8]| Ok(Location { volume: "data".into(), path: path.to_vec() });
        assert_eq!(parse(b"data:/a/b"), location(b"/a/b"));
        assert_eq!(parse(b"data:"), location(b""));
        assert_eq!(parse(b"data:a:b\xff"), location(b"a:b\xff"));
        assert!(parse(b"/a/b").is_err_and(|why| why.contains("VOLUME:PATH")));
        assert!(parse(b":/a").is_err_and(|why| why.contains("missing")));
    }
}
