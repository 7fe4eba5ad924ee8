//! Publishing into the files of segments that were filled and purged before.
//!
//! In rounds of one segment: publish, purge. A purged segment's file comes back after some seals and is written again,
//! so after the first rounds the same files go around and the disk use does not grow. Only publishing counts, and what
//! the server does behind a measured round is awaited. Files that it makes anew in those rounds are counted: there
//! should be hardly any.

use std::time::Duration;

use forebay::proto::v1::PurgeRequest;
use forebay_testkit::queue;

use super::served::Bed;
use crate::Failure;
use crate::args::LimitsArgs;
use crate::fill::{Form, Length, Published, publish_stream};
use crate::site::{Site, server_stats, still};

/// Rounds before the measured ones: they make the files.
const ROUNDS_BEFORE: u64 = 12;
/// What is behind a round is done when nothing was written for so long.
const QUIET: Duration = Duration::from_millis(50);
/// Messages of a segment, at least.
const SEGMENT_MESSAGES_MIN: u64 = 8;
/// The metric of files that were made.
const MADE: &str = "forebay_log_segments_created_total";

/// Who publishes and purges in rounds.
pub trait Rounds {
    /// Publishes a segment's worth to a queue and purges it; what the publishing took.
    async fn round(&self) -> Result<Published, Failure>;

    /// All bytes written so far.
    async fn bytes_written(&self) -> Result<u64, Failure>;

    /// Before what is measured. Rounds do not wait for each other: files are made as fast as others are filled.
    async fn warm_up(&self) -> Result<(), Failure> {
        for _ in 0..ROUNDS_BEFORE {
            self.round().await?;
        }
        still(QUIET, async || self.bytes_written().await).await
    }

    /// What is published in rounds until publishing has taken so long.
    async fn measure(&self, time: Duration) -> Result<(Published, u64), Failure> {
        let (mut all, mut rounds) = (Published::default(), 0);
        while all.took < time {
            let published = self.round().await?;
            still(QUIET, async || self.bytes_written().await).await?;
            all.add(published);
            rounds += 1;
        }
        Ok((all, rounds))
    }
}

/// What was published in this form in the measured rounds, and the files that were made in them for each segment.
pub async fn measure(args: &LimitsArgs, form: Form) -> Result<(Published, f64), Failure> {
    let mut site = Site::new(&args.server)?;
    let segment_bytes = args.scale.segment_bytes().max(SEGMENT_MESSAGES_MIN * form.body_bytes);
    site.configure(format!("segment_bytes = {segment_bytes}\n"));
    site.start()?;
    let served = Served { bed: Bed::on(site, 1).await?, form, messages: segment_bytes / form.body_bytes };
    served.warm_up().await?;
    let before = served.bed.site.counter(MADE)?;
    let (all, rounds) = served.measure(args.time()).await?;
    let made = served.bed.site.counter(MADE)? - before;
    Ok((all, made as f64 / rounds as f64))
}

/// Rounds of a server.
struct Served {
    bed: Bed,
    form: Form,
    messages: u64,
}

impl Rounds for Served {
    async fn round(&self) -> Result<Published, Failure> {
        let Bed { clients, names, .. } = &self.bed;
        let published = publish_stream(clients, names, self.form, Length::Messages(self.messages)).await?;
        let request = PurgeRequest { name: queue(&names[0]), ..PurgeRequest::default() };
        clients.queues.clone().purge(request).await?;
        Ok(published)
    }

    async fn bytes_written(&self) -> Result<u64, Failure> {
        Ok(server_stats(&self.bed.clients).await?.written_bytes)
    }
}
