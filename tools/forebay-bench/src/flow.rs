//! Messages that flow through queues to their consumers: the frame of `latency` and `mixed`.

use std::time::{Duration, Instant};

use forebay_testkit::{Clients, subscription};

use crate::Failure;
use crate::args::FlowArgs;
use crate::consumers::{Consumers, Stream};
use crate::samples::{Samples, Window};
use crate::site::{Target, check, create_queues, delete_queues, queue_names, stored, waiting};

/// Queues on a server, with their consumers at work.
pub struct Flow {
    target: Target,
    clients: Clients,
    connections: u64,
    pub names: Vec<String>,
    pub window: Window,
    consumers: Consumers,
}

impl Flow {
    /// Makes the queues; the window begins when their consumers have been let in.
    pub async fn begin(args: &FlowArgs) -> Result<Self, Failure> {
        let target = Target::new(&args.server)?;
        let (clients, names) = (target.clients(), queue_names(args.queues));
        create_queues(&clients, &names).await?;
        let subscriptions: Vec<String> = names.iter().map(|name| subscription(name)).collect();
        let streams = Stream::open(&several(&target, args.connections), &subscriptions).await?;
        let (warm_up, length) = (Duration::from_secs(args.warm_up), Duration::from_secs(args.seconds));
        let window = Window { start: Instant::now(), warm_up, length: Some(length) };
        let consumers = Consumers::start(streams, window);
        Ok(Self { target, clients, connections: args.connections, names, window, consumers })
    }

    /// New connections for publishing.
    pub fn connections(&self) -> Vec<Clients> {
        several(&self.target, self.connections)
    }

    /// Messages that wait now.
    pub async fn waiting(&self) -> Result<u64, Failure> {
        waiting(&self.clients, &self.names).await
    }

    /// Waits until all that was published is consumed, proves it, and deletes the queues; what the consumers saw.
    pub async fn end(self, published: u64) -> Result<Samples, Failure> {
        let Self { target: _lives, clients, names, consumers, .. } = self;
        let delivered = consumers.finish(published).await?;
        check("messages in the queues", stored(&clients, &names).await?, published)?;
        check("messages left", waiting(&clients, &names).await?, 0)?;
        delete_queues(&clients, &names).await?;
        Ok(delivered)
    }
}

fn several(target: &Target, connections: u64) -> Vec<Clients> {
    (0..connections).map(|_| target.clients()).collect()
}
