//! `tandem volume scrub` and `tandem volume verify`: begin, follow to the end, and say what was found.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use proto::BLOCK_BYTES;
use proto::admin as pb;
use proto::admin::volume_client::VolumeClient;
use serde_json::{Value, json};

use super::exit::Failure;
use super::session::Session;
use super::{json, progress, text};

/// Begins a scrub (`verify_only`: a verify) and, unless `no_wait`, stays until it has ended.
pub(super) async fn run(session: &Session, volume: &str, verify_only: bool, no_wait: bool) -> Result<(), Failure> {
    let request = &pb::StartScrubRequest { volume: volume.to_owned(), verify_only };
    let begun =
        session.call(|channel| async move { VolumeClient::new(channel).start_scrub(request.clone()).await }).await?;
    let what = name(verify_only);
    let primary = &begun.primary_name;
    if no_wait {
        let text = format!("The {what} of {volume} has begun on {primary}. See: tandem volume show {volume}\n");
        return session.print(&json!({ "volume": volume, "verify_only": verify_only, "primary_name": primary }), &text);
    }
    let ended = until_ended(session, volume, verify_only, &begun).await?;
    let mut value = json::scrub(&ended);
    if let Value::Object(fields) = &mut value {
        fields.insert("volume".into(), volume.into());
        fields.insert("primary_name".into(), primary.as_str().into());
    }
    session.print(&value, &report(volume, &ended))?;
    verdict(volume, &ended)
}

/// `scrub` or `verify`.
pub(super) fn name(verify_only: bool) -> &'static str {
    if verify_only { "verify" } else { "scrub" }
}

/// What became of it, out of one look at the volume.
#[derive(Debug, PartialEq)]
enum Look {
    /// It has ended so.
    Ended(pb::ScrubView),
    /// It goes on.
    UnderWay(pb::ScrubView),
    /// The node says nothing now.
    Silent,
    /// It is not there any more.
    Lost,
}

fn look(reply: &pb::ShowVolumeReply, verify_only: bool, begun: &pb::StartScrubReply) -> Look {
    let Some(primary) = reply.replicas.iter().find(|replica| replica.node == begun.primary) else { return Look::Lost };
    let is_ours =
        |last: &&pb::ScrubView| last.ended_boot_micros >= begun.begun_boot_micros && last.verify_only == verify_only;
    match (primary.last_scrub.as_ref().filter(is_ours), &primary.scrub) {
        (Some(ended), _) => Look::Ended(*ended),
        (None, Some(scrub)) if scrub.verify_only == verify_only => Look::UnderWay(*scrub),
        (None, None) if !primary.reachable || primary.role == "unknown" => Look::Silent,
        (None, _) => Look::Lost,
    }
}

async fn until_ended(
    session: &Session,
    volume: &str,
    verify_only: bool,
    begun: &pb::StartScrubReply,
) -> Result<pb::ScrubView, Failure> {
    let what = name(verify_only);
    let bar = (!session.json && io::stderr().is_terminal()).then(progress::bar);
    let mut heard = Instant::now();
    loop {
        let seen = match session.show(volume).await {
            Ok(reply) => look(&reply, verify_only, begun),
            Err(Failure::Unreachable(_)) => Look::Silent,
            Err(failure) => return Err(failure),
        };
        match seen {
            Look::Ended(ended) => {
                bar.as_ref().inspect(|bar| bar.finish_and_clear());
                return Ok(ended);
            }
            Look::UnderWay(scrub) => {
                heard = Instant::now();
                bar.as_ref().inspect(|bar| draw(bar, what, volume, &scrub));
            }
            Look::Silent if heard.elapsed() > progress::SILENCE_MAX => {
                return Err(Failure::Unreachable(format!(
                    "{} does not answer any more; what became of the {what} is not known",
                    begun.primary_name
                )));
            }
            Look::Silent => {}
            Look::Lost => {
                return Err(Failure::Failed(format!(
                    "the {what} of {volume} did not reach its end: {} stopped being primary, or started anew; begin again",
                    begun.primary_name
                )));
            }
        }
        tokio::time::sleep(progress::INTERVAL).await;
    }
}

fn draw(bar: &ProgressBar, what: &str, volume: &str, scrub: &pb::ScrubView) {
    bar.set_length(scrub.blocks.saturating_mul(BLOCK_BYTES));
    bar.set_position(scrub.done_blocks.saturating_mul(BLOCK_BYTES));
    let found = found_blocks(scrub);
    let found = if found == 0 { String::new() } else { format!(", {found} bad") };
    bar.set_message(format!("{what} {volume}{found}"));
    bar.enable_steady_tick(Duration::from_millis(500));
}

/// Blocks that were not as they should be.
fn found_blocks(scrub: &pb::ScrubView) -> u64 {
    scrub.bad_on_primary.saturating_add(scrub.bad_on_peers).saturating_add(scrub.differing)
}

/// What it has found, in words.
pub(super) fn findings(scrub: &pb::ScrubView) -> String {
    let found = found_blocks(scrub);
    let skipped = match scrub.skipped_parts {
        0 => String::new(),
        parts => format!("; {parts} parts of 1 MiB were not seen on every copy"),
    };
    if found == 0 {
        return format!("nothing wrong{skipped}");
    }
    let kinds = [
        (scrub.bad_on_primary, "bad on the primary"),
        (scrub.bad_on_peers, "bad on the other copy"),
        (scrub.differing, "not the same on both copies"),
    ];
    let kinds: Vec<String> =
        kinds.iter().filter(|(count, _)| *count > 0).map(|(count, kind)| format!("{count} {kind}")).collect();
    let mended = match scrub.verify_only {
        true => "none mended: it only verifies".to_owned(),
        false => format!("{} mended", scrub.repaired),
    };
    let blocks = if found == 1 { "block" } else { "blocks" };
    format!("{found} {blocks} ({}), {mended}{skipped}", kinds.join(", "))
}

/// The report at its end.
fn report(volume: &str, scrub: &pb::ScrubView) -> String {
    let seen = text::blocks(scrub.done_blocks);
    format!("The {} of {volume} has looked at {seen}. Found: {}.\n", name(scrub.verify_only), findings(scrub))
}

/// Whether all is well now. What was not seen is not well.
fn verdict(volume: &str, scrub: &pb::ScrubView) -> Result<(), Failure> {
    let found = found_blocks(scrub);
    if scrub.verify_only && found > 0 {
        let why = format!("{found} blocks of {volume} are not as they should be; `tandem volume scrub {volume}` mends");
        return Err(Failure::Damaged(why));
    }
    let left = found.saturating_sub(scrub.repaired);
    if !scrub.verify_only && left > 0 {
        let why =
            format!("{left} of {found} blocks of {volume} could not be mended; scrub again with both copies in sync");
        return Err(Failure::Damaged(why));
    }
    if scrub.skipped_parts > 0 {
        let why = format!("a copy of {volume} in sync was not connected all the time; begin again");
        return Err(Failure::Failed(why));
    }
    Ok(())
}

/// The scrub part of `volume show`: one under way, and the last one.
pub(super) fn lines(volume: &pb::ShowVolumeReply) -> String {
    let mut lines = String::new();
    if let Some(scrub) = volume.replicas.iter().find_map(|replica| replica.scrub.as_ref()) {
        let left = match scrub.left_micros {
            0 => String::new(),
            left => format!(", {} left", text::duration(left)),
        };
        let percent = text::percent(scrub.done_blocks, scrub.blocks);
        let what = name(scrub.verify_only);
        lines += &format!("Scrub    {what} under way: {percent} %{left}; found so far: {}\n", findings(scrub));
    }
    let ended = volume.replicas.iter().filter_map(|replica| Some((replica, replica.last_scrub.as_ref()?)));
    if let Some((replica, last)) = ended.max_by_key(|(_, last)| last.ended_unix_micros) {
        let (what, at) = (name(last.verify_only), text::date_time(last.ended_unix_micros));
        lines += &format!("Scrubbed {at} UTC ({what} by {}): {}\n", replica.node_name, findings(last));
    } else if lines.is_empty() {
        lines += "Scrubbed not since the nodes started\n";
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(verify_only: bool, bad: [u64; 3], repaired: u64) -> pb::ScrubView {
        let [bad_on_primary, bad_on_peers, differing] = bad;
        let blocks = 256;
        pb::ScrubView {
            verify_only,
            blocks,
            done_blocks: blocks,
            bad_on_primary,
            bad_on_peers,
            differing,
            repaired,
            ..Default::default()
        }
    }

    #[test]
    fn the_exit_code_tells_damage_that_is_left() {
        let code = |scrub| verdict("vm", &scrub).map_err(|failure| failure.code());
        assert_eq!(code(found(true, [0, 0, 0], 0)), Ok(()));
        assert_eq!(code(found(true, [0, 1, 0], 0)), Err(7));
        assert_eq!(code(found(false, [1, 1, 1], 3)), Ok(()));
        assert_eq!(code(found(false, [1, 1, 0], 1)), Err(7));
        assert_eq!(code(pb::ScrubView { skipped_parts: 1, ..found(true, [0, 0, 0], 0) }), Err(1));
    }

    #[test]
    fn the_report_says_what_was_found_where() {
        let text = report("vm", &found(false, [2, 0, 1], 3));
        let wanted = "The scrub of vm has looked at 1 MiB. Found: 3 blocks (2 bad on the primary, 1 not the same on both \
                      copies), 3 mended.\n";
        assert_eq!(text, wanted);
        assert!(report("vm", &found(true, [0, 0, 0], 0)).ends_with("Found: nothing wrong.\n"));
        assert!(report("vm", &found(true, [0, 1, 0], 0)).contains("1 block (1 bad on the other copy), none mended"));
        let partly = pb::ScrubView { skipped_parts: 4, ..found(true, [0, 0, 0], 0) };
        assert!(report("vm", &partly).contains("4 parts of 1 MiB were not seen on every copy"));
    }

    #[test]
    fn an_earlier_scrub_and_one_of_the_other_kind_are_not_taken_for_this_one() {
        let begun = pb::StartScrubReply { primary: 1, primary_name: "box-a".into(), begun_boot_micros: 50 };
        let reply = |scrub, last_scrub| pb::ShowVolumeReply {
            replicas: vec![pb::ReplicaView { node: 1, reachable: true, scrub, last_scrub, ..Default::default() }],
            ..Default::default()
        };
        let verify = found(true, [0, 0, 0], 0);
        let ended = |at, scrub| Some(pb::ScrubView { ended_boot_micros: at, ..scrub });
        assert_eq!(look(&reply(None, ended(49, verify)), true, &begun), Look::Lost);
        assert_eq!(look(&reply(None, ended(51, found(false, [0; 3], 0))), true, &begun), Look::Lost);
        assert_eq!(look(&reply(Some(verify), ended(49, verify)), true, &begun), Look::UnderWay(verify));
        assert!(matches!(look(&reply(None, ended(51, verify)), true, &begun), Look::Ended(_)));
        let mut silent = reply(None, None);
        silent.replicas[0].reachable = false;
        assert_eq!(look(&silent, true, &begun), Look::Silent);
    }

    #[test]
    fn show_tells_what_runs_and_what_ran() {
        let copy = |node: u64, last: u64| pb::ReplicaView {
            node_name: format!("box-{node}"),
            last_scrub: (last > 0).then(|| pb::ScrubView { ended_unix_micros: last, ..found(false, [0, 2, 0], 2) }),
            ..Default::default()
        };
        let mut reply = pb::ShowVolumeReply { replicas: vec![copy(1, 0), copy(2, 0)], ..Default::default() };
        assert_eq!(lines(&reply), "Scrubbed not since the nodes started\n");
        reply.replicas = vec![copy(1, 1_000_000), copy(2, 86_400_000_000)];
        reply.replicas[0].scrub =
            Some(pb::ScrubView { done_blocks: 64, left_micros: 90_000_000, ..found(true, [0; 3], 0) });
        let text = lines(&reply);
        assert!(text.contains("verify under way: 25 %, 90 s left; found so far: nothing wrong"), "{text}");
        assert!(
            text.contains("1970-01-02 00:00:00 UTC (scrub by box-2): 2 blocks (2 bad on the other copy)"),
            "{text}"
        );
    }
}
