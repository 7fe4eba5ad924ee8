//! Publishing into the files of segments that were filled and purged before.
//!
//! In rounds of one segment: publish, purge. A purged segment's file comes back after some seals and is written again,
//! so after the first rounds the same files go around and the disk use does not grow. Only publishing counts, and what
//! the server does behind a round is awaited. Files that it makes anew in the measured rounds are counted: there
//! should be hardly any.

use std::time::Duration;

use forebay::proto::v1::PurgeRequest;
use forebay_testkit::queue;

use super::BODY_BYTES;
use super::served::{Bed, IN_BATCHES};
use crate::Failure;
use crate::args::LimitsArgs;
use crate::fill::{Length, Published, publish_stream};
use crate::site::{Site, quiet};

/// Rounds before the measured ones: they make the files.
pub const ROUNDS_BEFORE: u64 = 12;
/// The server has done what is behind a round when it has written nothing for so long.
pub const QUIET: Duration = Duration::from_millis(50);
/// The metric of files that were made.
const MADE: &str = "forebay_log_segments_created_total";

/// What was published in the measured rounds, and the files that were made in them for each segment.
pub async fn measure(args: &LimitsArgs) -> Result<(Published, f64), Failure> {
    let mut site = Site::new(&args.server)?;
    site.configure(format!("segment_bytes = {}\n", args.scale.segment_bytes()));
    site.start()?;
    let bed = Bed::on(site, 1).await?;
    let round = Length::Messages(args.scale.segment_bytes() / BODY_BYTES);
    for _ in 0..ROUNDS_BEFORE {
        publish_and_purge(&bed, round).await?;
    }
    let before = bed.site.counter(MADE)?;
    let (mut all, mut rounds) = (Published { messages: 0, took: Duration::ZERO }, 0);
    while all.took < args.time() {
        let published = publish_and_purge(&bed, round).await?;
        all.messages += published.messages;
        all.took += published.took;
        rounds += 1;
    }
    let made = bed.site.counter(MADE)? - before;
    Ok((all, made as f64 / f64::from(rounds)))
}

async fn publish_and_purge(bed: &Bed, round: Length) -> Result<Published, Failure> {
    let published = publish_stream(&bed.clients, &bed.names, IN_BATCHES, round).await?;
    let request = PurgeRequest { name: queue(&bed.names[0]), ..PurgeRequest::default() };
    bed.clients.queues.clone().purge(request).await?;
    quiet(&bed.clients, QUIET).await?;
    Ok(published)
}
