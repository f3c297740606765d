//! `tandem fs …`: names and attributes in a volume's filesystem, and the filesystem itself.

use std::io::{self, IsTerminal};

use proto::admin as pb;
use proto::admin::files_client::FilesClient;
use serde_json::{Value, json};

use super::exit::Failure;
use super::fs_arguments::{FsCommand, Location};
use super::session::Session;
use super::table::{Align, Table};
use super::{progress, text, transfer};

pub(super) async fn run(session: &Session, command: FsCommand) -> Result<(), Failure> {
    match command {
        FsCommand::Make { volume, force } => {
            make(session, &volume, force).await?;
            session.print(&json!({ "made": volume }), &format!("Volume {volume} has a fresh ext4 filesystem.\n"))
        }
        FsCommand::Check { volume } => check(session, &volume).await,
        FsCommand::Close { volume } => close(session, &volume).await,
        FsCommand::Df { volume } => df(session, &volume).await,
        FsCommand::Ls { location, long } => ls(session, &location, long).await,
        FsCommand::Stat { location, dereference } => stat(session, &location, dereference).await,
        FsCommand::Mkdir { location, parents } => mkdir(session, &location, parents).await,
        FsCommand::Cat { location } => transfer::cat(session, &location).await,
        FsCommand::Get { location, local } => transfer::get(session, &location, &local).await,
        FsCommand::Put { local, location } => transfer::put(session, &local, &location).await,
        FsCommand::Cp { from, to } => transfer::copy(session, &from, &to).await,
        FsCommand::Rm { location, recursive, dir } => rm(session, &location, recursive, dir).await,
    }
}

/// Makes a filesystem, with a progress bar.
pub(super) async fn make(session: &Session, volume: &str, force: bool) -> Result<(), Failure> {
    let request = &pb::MakeFilesystemRequest { volume: volume.to_owned(), force };
    let mut parts =
        session.call(|channel| async move { FilesClient::new(channel).make(request.clone()).await }).await?;
    let bar = (!session.json && io::stderr().is_terminal()).then(progress::bar);
    let mut done = false;
    while let Some(part) = parts.message().await? {
        done = part.stage.is_empty();
        if let (Some(bar), false) = (&bar, done) {
            bar.set_length(part.total_bytes);
            bar.set_position(part.done_bytes);
            bar.set_message(part.stage);
        }
    }
    bar.inspect(|bar| bar.finish_and_clear());
    match done {
        true => Ok(()),
        false => Err(Failure::Unreachable("the node ended while it made the filesystem; make it again".into())),
    }
}

/// Ends with [`Failure::Damaged`] unless it is clean.
async fn check(session: &Session, volume: &str) -> Result<(), Failure> {
    let request = &pb::CheckFilesystemRequest { volume: volume.to_owned() };
    let reply = session.call(|channel| async move { FilesClient::new(channel).check(request.clone()).await }).await?;
    let sound = reply.clean && reply.not_opened.is_empty();
    let value = json!({
        "volume": volume,
        "clean": sound,
        "problems": reply.problems,
        "summary": reply.summary,
        "looked_at_bytes": reply.looked_at_bytes,
        "not_opened": if reply.not_opened.is_empty() { Value::Null } else { reply.not_opened.as_str().into() },
    });
    let mut said = match sound {
        true => format!("{volume}: clean\n"),
        false => format!("{volume}: not clean; e2fsck says:\n"),
    };
    said.extend(reply.problems.iter().map(|problem| format!("  {problem}\n")));
    said += &format!("{} of metadata looked at. {}\n", text::size(reply.looked_at_bytes), reply.summary);
    if !reply.not_opened.is_empty() {
        said += &format!("Our own engine does not open it: {}\n", reply.not_opened);
    }
    session.print(&value, &said)?;
    match sound {
        true => Ok(()),
        false => Err(Failure::Damaged(format!(
            "the filesystem of {volume} is not sound. First see that the copies are (tandem volume verify {volume}). Then save \
             what matters (tandem fs get), and mend it: connect the volume over NBD to a Linux machine and run `e2fsck -f` \
             on it there, with nobody else connected"
        ))),
    }
}

async fn close(session: &Session, volume: &str) -> Result<(), Failure> {
    let request = &pb::CloseFilesystemRequest { volume: volume.to_owned() };
    session.call(|channel| async move { FilesClient::new(channel).close(request.clone()).await }).await?;
    session.print(&json!({ "closed": volume }), &format!("The filesystem of {volume} is closed.\n"))
}

async fn df(session: &Session, volume: &str) -> Result<(), Failure> {
    let request = &pb::UsageRequest { volume: volume.to_owned() };
    let usage = session.call(|channel| async move { FilesClient::new(channel).usage(request.clone()).await }).await?;
    let value = json!({
        "volume": volume,
        "total_bytes": usage.total_bytes,
        "free_bytes": usage.free_bytes,
        "inodes": usage.inodes,
        "free_inodes": usage.free_inodes,
        "block_bytes": usage.block_bytes,
        "available_bytes": usage.available_bytes,
    });
    let columns = ["VOLUME", "SIZE", "USED", "FREE", "USE", "INODES", "FREE INODES"];
    let mut table = Table::new(&columns.map(|name| (name, if name == "VOLUME" { Align::Left } else { Align::Right })));
    let used = usage.total_bytes.saturating_sub(usage.free_bytes);
    table.row([
        volume.to_owned(),
        text::size(usage.total_bytes),
        text::size(used),
        text::size(usage.free_bytes),
        format!("{} %", used.saturating_mul(100).div_ceil(usage.total_bytes.max(1))),
        usage.inodes.to_string(),
        usage.free_inodes.to_string(),
    ]);
    session.print(&value, &table.render())
}

async fn ls(session: &Session, location: &Location, long: bool) -> Result<(), Failure> {
    let request = &pb::ListFilesRequest { volume: location.volume.clone(), path: location.path.clone() };
    let mut parts =
        session.call(|channel| async move { FilesClient::new(channel).list(request.clone()).await }).await?;
    let mut entries = Vec::new();
    while let Some(part) = parts.message().await? {
        entries.extend(part.entries);
    }
    entries.sort_by(|one, other| one.name.cmp(&other.name));
    for entry in entries.iter_mut().filter(|entry| entry.name.is_empty()) {
        entry.name = location.path.clone();
    }
    let said = match long {
        true => long_list(&entries),
        false => entries.iter().map(|entry| format!("{}\n", shown(&entry.name))).collect(),
    };
    session.print(&entries.iter().map(entry_json).collect(), &said)
}

fn long_list(entries: &[pb::FileEntry]) -> String {
    let width = |of: fn(&pb::FileEntry) -> String| entries.iter().map(|entry| of(entry).len()).max().unwrap_or(0);
    let (links, size) = (width(|entry| entry.links.to_string()), width(size_or_device));
    let owner = width(|entry| format!("{} {}", entry.user, entry.group));
    let lines = entries.iter().map(|entry| {
        format!(
            "{} {:>links$} {:<owner$} {:>size$} {} {}{}\n",
            mode(entry),
            entry.links,
            format!("{} {}", entry.user, entry.group),
            size_or_device(entry),
            entry.modified.as_ref().map_or_else(String::new, moment),
            shown(&entry.name),
            arrow(entry),
        )
    });
    lines.collect()
}

async fn stat(session: &Session, location: &Location, follow: bool) -> Result<(), Failure> {
    let request = &pb::StatRequest { volume: location.volume.clone(), path: location.path.clone(), follow };
    let entry = session.call(|channel| async move { FilesClient::new(channel).stat(request.clone()).await }).await?;
    let times = [
        ("accessed", entry.accessed),
        ("modified", entry.modified),
        ("changed", entry.changed),
        ("created", entry.created),
    ];
    let times = times.iter().filter_map(|(name, time)| Some(format!("{name:10} {}\n", moment_exact(time.as_ref()?))));
    let said = format!(
        "{}{}\n{:10} {}\n{:10} {} ({:04o})\n{:10} {}, group {}\n{:10} {} bytes, {} in use\n{:10} {}, generation {}, {} \
         name(s), version {}\n{}",
        location.shown(),
        arrow(&entry),
        "kind",
        kind(entry.kind()),
        "mode",
        mode(&entry),
        entry.permissions,
        "owner",
        entry.user,
        entry.group,
        "size",
        size_or_device(&entry),
        text::size(entry.allocated_bytes),
        "inode",
        entry.inode,
        entry.generation,
        entry.links,
        entry.version,
        times.collect::<String>()
    );
    session.print(&entry_json(&entry), &said)
}

async fn mkdir(session: &Session, location: &Location, parents: bool) -> Result<(), Failure> {
    let request = &pb::MakeDirectoryRequest { volume: location.volume.clone(), path: location.path.clone(), parents };
    session.call(|channel| async move { FilesClient::new(channel).make_directory(request.clone()).await }).await?;
    session.print(&json!({ "made": location.shown() }), "")
}

async fn rm(session: &Session, location: &Location, recursive: bool, directory: bool) -> Result<(), Failure> {
    let request =
        &pb::RemoveFileRequest { volume: location.volume.clone(), path: location.path.clone(), recursive, directory };
    let removing = session.call(|channel| async move { FilesClient::new(channel).remove(request.clone()).await });
    let removed = removing.await.map_err(|failure| match failure {
        Failure::Refused(why) if why.ends_with("is a directory") => {
            Failure::Refused(format!("{why}: -r removes it with all that is in it, -d if it is empty"))
        }
        other => other,
    })?;
    let value = json!({ "files": removed.files, "directories": removed.directories });
    let said = match recursive {
        true => format!("Removed: {} file(s), {} directories.\n", removed.files, removed.directories),
        false => String::new(),
    };
    session.print(&value, &said)
}

fn kind(kind: pb::FileKind) -> &'static str {
    match kind {
        pb::FileKind::Unspecified => "unknown",
        pb::FileKind::Regular => "file",
        pb::FileKind::Directory => "directory",
        pb::FileKind::Symlink => "symlink",
        pb::FileKind::CharacterDevice => "character device",
        pb::FileKind::BlockDevice => "block device",
        pb::FileKind::Fifo => "fifo",
        pb::FileKind::Socket => "socket",
    }
}

/// As `ls -l` writes it.
fn mode(entry: &pb::FileEntry) -> String {
    let first = match entry.kind() {
        pb::FileKind::Directory => 'd',
        pb::FileKind::Symlink => 'l',
        pb::FileKind::CharacterDevice => 'c',
        pb::FileKind::BlockDevice => 'b',
        pb::FileKind::Fifo => 'p',
        pb::FileKind::Socket => 's',
        pb::FileKind::Regular | pb::FileKind::Unspecified => '-',
    };
    let mut text = String::from(first);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = entry.permissions >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (entry.permissions & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn size_or_device(entry: &pb::FileEntry) -> String {
    match entry.kind() {
        pb::FileKind::CharacterDevice | pb::FileKind::BlockDevice => {
            format!("{},{}", entry.device_major, entry.device_minor)
        }
        _ => entry.size_bytes.to_string(),
    }
}

fn arrow(entry: &pb::FileEntry) -> String {
    match entry.kind() {
        pb::FileKind::Symlink => format!(" -> {}", shown(&entry.target)),
        _ => String::new(),
    }
}

/// A moment to the second; those before 1970 are not told apart.
fn moment(time: &pb::FileTime) -> String {
    text::date_time(u64::try_from(time.seconds).unwrap_or(0).saturating_mul(1_000_000))
}

fn moment_exact(time: &pb::FileTime) -> String {
    format!("{} UTC, {} ns", moment(time), time.nanoseconds)
}

/// A name for a terminal: what would move its cursor is escaped.
fn shown(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

fn entry_json(entry: &pb::FileEntry) -> Value {
    let time = |time: &Option<pb::FileTime>| match time {
        Some(time) => json!({ "seconds": time.seconds, "nanoseconds": time.nanoseconds }),
        None => Value::Null,
    };
    json!({
        "name": String::from_utf8_lossy(&entry.name),
        "kind": kind(entry.kind()),
        "permissions": entry.permissions,
        "inode": entry.inode,
        "generation": entry.generation,
        "links": entry.links,
        "user": entry.user,
        "group": entry.group,
        "size_bytes": entry.size_bytes,
        "allocated_bytes": entry.allocated_bytes,
        "accessed": time(&entry.accessed),
        "modified": time(&entry.modified),
        "changed": time(&entry.changed),
        "created": time(&entry.created),
        "version": entry.version,
        "target": String::from_utf8_lossy(&entry.target),
        "device_major": entry.device_major,
        "device_minor": entry.device_minor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(kind: pb::FileKind, permissions: u32) -> pb::FileEntry {
        let mut entry = pb::FileEntry { permissions, ..pb::FileEntry::default() };
        entry.set_kind(kind);
        entry
    }

    #[test]
    fn modes_are_written_as_ls_does() {
        assert_eq!(mode(&entry(pb::FileKind::Regular, 0o644)), "-rw-r--r--");
        assert_eq!(mode(&entry(pb::FileKind::Directory, 0o1777)), "drwxrwxrwt");
        assert_eq!(mode(&entry(pb::FileKind::Regular, 0o6750)), "-rwsr-s---");
        assert_eq!(mode(&entry(pb::FileKind::Symlink, 0o7000)), "l--S--S--T");
    }

    #[test]
    fn a_long_list_has_its_columns_under_one_another() {
        let mut link = entry(pb::FileKind::Symlink, 0o777);
        link.target = b"there\n".to_vec();
        link.name = b"l".to_vec();
        let mut file = entry(pb::FileKind::Regular, 0o600);
        file.name = b"f".to_vec();
        file.size_bytes = 12345;
        file.modified = Some(pb::FileTime { seconds: 0, nanoseconds: 0 });
        link.modified = file.modified;
        let lines = "lrwxrwxrwx 0 0 0     0 1970-01-01 00:00:00 UTC l -> there\\n\n\
                     -rw------- 0 0 0 12345 1970-01-01 00:00:00 UTC f\n";
        assert_eq!(long_list(&[link, file]).replace(" UTC", ""), lines.replace(" UTC", ""));
    }
}
