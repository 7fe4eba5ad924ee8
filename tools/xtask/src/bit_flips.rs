//! `cargo xtask bit-flips`: a server is started on a directory in which one bit has flipped, and emptied: what it hands
//! out is right, and what it does not is told as lost, and was hit.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use forebay::disk::RealDisk;
use forebay::proto::v1::{AcknowledgeRequest, PullRequest};
use forebay_testkit::flips::{Kind, SEGMENT_BYTES, Subject};
use forebay_testkit::{Server, ServerOptions, subscription};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const KINDS: [Kind; 4] = [Kind::Replayed, Kind::Sealed, Kind::Index, Kind::Checkpoint];
/// Pulls that empty a directory, those that are told of a loss included.
const PULLS_MAX: usize = 200;

/// How often which thing happened.
#[derive(Debug, Default)]
struct Counts {
    all_came: u64,
    losses_told: u64,
    refused: u64,
}

pub fn run(samples: u64) -> Result<(), String> {
    let subjects: Vec<Subject> = KINDS.into_iter().map(Subject::new).collect();
    let runtime = crate::runtime()?;
    let mut counts = Counts::default();
    for sample in 0..samples {
        let subject = &subjects[sample as usize % subjects.len()];
        // Fibonacci's sequence spreads them evenly over the file, whatever their number.
        let bit = (sample.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11) as usize % subject.bits().len();
        let told = |why| format!("bit {bit} of {} ({:?}): {why}", subject.file, subject.kind);
        try_one(subject, bit, &runtime, &mut counts).map_err(told)?;
    }
    println!("{samples} flips before a start of the server: {counts:?}");
    Ok(())
}

fn try_one(
    subject: &Subject,
    bit: usize,
    runtime: &tokio::runtime::Runtime,
    counts: &mut Counts,
) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
    subject.write(bit, dir.path()).map_err(|error| error.to_string())?;
    let config = format!("segment_bytes = {SEGMENT_BYTES}\n");
    let server = match Server::try_start(dir.path(), &ServerOptions { config, ..ServerOptions::default() }) {
        Ok(server) => server,
        Err(stderr) if stderr.contains("data loss") => {
            counts.refused += 1;
            return subject.judge_refused(bit);
        }
        Err(stderr) => return Err(format!("the server does not start: {stderr}")),
    };
    let (served, lost) = runtime.block_on(empty(&server))?;
    let (status, stderr) = server.terminate();
    if !status.success() {
        return Err(format!("the server ended with {status}: {stderr}"));
    }
    let missing = subject.judge_served(bit, &served, &lost, Arc::new(RealDisk::new(dir.path())))?;
    *if missing == 0 { &mut counts.all_came } else { &mut counts.losses_told } += 1;
    Ok(())
}

/// Takes and acknowledges what is there; bodies by offset, and the offsets that are told as lost.
async fn empty(server: &Server) -> Result<(BTreeMap<u64, Vec<u8>>, BTreeSet<u64>), String> {
    let (mut messages, mut served, mut lost) = (server.clients().messages, BTreeMap::new(), BTreeSet::new());
    let name = subscription("q");
    for _ in 0..PULLS_MAX {
        let request = PullRequest { subscription: name.clone(), max_messages: 5, ..PullRequest::default() };
        let received = match messages.pull(request).await {
            Ok(answer) => answer.into_inner().messages,
            Err(status) if status.code() == Code::DataLoss => {
                lost.insert(offset_of(&status).ok_or_else(|| format!("no offset in {status:?}"))?);
                continue;
            }
            // The creation of the queue was hit: whether that may be, the judge knows.
            Err(status) if status.code() == Code::NotFound => break,
            Err(status) => return Err(format!("pull: {status}")),
        };
        if received.is_empty() {
            break;
        }
        let ack_ids = received.iter().map(|received| received.ack_id.clone()).collect();
        for message in received.into_iter().filter_map(|received| received.message) {
            served.insert(message.offset, message.body.to_vec());
        }
        let request = AcknowledgeRequest { subscription: name.clone(), ack_ids };
        messages.acknowledge(request).await.map_err(|status| format!("acknowledge: {status}"))?;
    }
    Ok((served, lost))
}

/// The message that an error names.
fn offset_of(status: &Status) -> Option<u64> {
    status.get_error_details().error_info()?.metadata.get("offset")?.parse().ok()
}
