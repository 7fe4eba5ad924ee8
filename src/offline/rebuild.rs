//! `forebay fsck --rebuild`: a checkpoint for a log that has lost its own, so that a server can start on it.
//!
//! Every message that any segment still has waits again. Nothing is deleted: damaged checkpoints go to `quarantine/`.

use std::io::{self, Write};

use super::load::Loaded;
use super::report::Format;
use super::{OfflineError, Outcome};
use crate::broker::replica::image_of;
use crate::core::rebuild::Rebuilt;
use crate::log::inspect::Inspection;

/// Why nothing is rebuilt, if nothing is to be.
pub fn not_needed(inspection: &Inspection, loaded: &Loaded<'_>) -> Option<(String, Outcome)> {
    if let Some(fault) = inspection.identity_fault() {
        return Some((format!("not rebuilt: {fault}"), Outcome::Damaged));
    }
    match (&loaded.refusal, loaded.checkpoint) {
        (None, Some(lsn)) => Some((
            format!("not rebuilt: a server can start from the checkpoint at record {lsn}"),
            Outcome::Clean,
        )),
        (None, None) => Some((
            "not rebuilt: the log is there from its first record on; a server needs no checkpoint".to_owned(),
            Outcome::Clean,
        )),
        (Some(refusal), Some(_)) => Some((
            format!("not rebuilt: a checkpoint can be used once this is mended: {refusal}"),
            Outcome::Damaged,
        )),
        (Some(_), None) => None,
    }
}

/// Writes the checkpoint, and what became of each queue to `out`.
pub fn rebuild(
    inspection: &Inspection,
    loaded: Loaded<'_>,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), OfflineError> {
    let Loaded { scan, mut state, mut seen, .. } = loaded;
    seen.incarnation = seen.incarnation.max(scan.incarnation());
    let rebuilt = state.rebuild(&seen, scan.log_time_us());
    // In order of id.
    let (head, parts) = image_of(&state, rebuilt.iter().map(|one| one.queue));
    let (checkpoint, aside) = inspection.restart_at(scan, state.incarnation(), &head, &parts)?;
    for path in &aside {
        say(out, format, &format!("moved to {}", path.display()))?;
    }
    for one in &rebuilt {
        let name = &state.queue(one.queue).expect("it was just rebuilt").name;
        say(out, format, &describe(&name.to_string(), one))?;
    }
    let messages: u64 = rebuilt.iter().map(|one| one.waiting).sum();
    let path = checkpoint.display();
    say(
        out,
        format,
        &format!(
            "rebuilt: {messages} messages of {} queues wait; messages that were acknowledged may come again; the \
             checkpoint is {path}",
            rebuilt.len()
        ),
    )?;
    Ok(())
}

fn describe(name: &str, rebuilt: &Rebuilt) -> String {
    let absent: u64 = rebuilt.absent.iter().map(|(first, end)| end.0 - first.0).sum();
    let mut text = format!("queue {name}: {} messages wait again", rebuilt.waiting);
    if absent > 0 {
        text += &format!("; {absent} offsets between them are in no segment and count as finished");
    }
    if rebuilt.made_again {
        text += "; its name, its labels and its subscriptions are lost";
    }
    if rebuilt.subscribed {
        text += "; it was given the subscription \"default\"";
    }
    text
}

/// One line of what was done.
pub fn say(out: &mut dyn Write, format: Format, what: &str) -> io::Result<()> {
    match format {
        Format::Text => writeln!(out, "{what}"),
        Format::Ndjson => writeln!(out, "{}", serde_json::json!({ "kind": "rebuild", "what": what })),
    }?;
    out.flush()
}
