//! A client that makes queues, fills them and deletes most of them again, so that segments die for other reasons than
//! acknowledgements. What it was told of its queues is compared with what is there in the end.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use forebay::proto::v1::{
    CreateQueueRequest, DeleteQueueRequest, ListQueuesRequest, Message, PublishRequest, Queue,
};
use tonic::{Code, Status};

use super::history::History;
use super::target::Target;
use crate::payload::Random;
use crate::{Clients, queue};

const PREFIX: &str = "churn-";
/// One queue in so many is kept.
const KEPT_EVERY: u64 = 8;
const BODY_BYTES_MAX: u64 = 150 << 10;

/// Which queues must be there: every name that was given, and whether it is there.
#[derive(Clone, Debug, Default)]
pub struct Fates(Arc<Mutex<BTreeMap<String, Fate>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// A call was not answered, and not repeated to its end.
    Unknown,
    Exists,
    Gone,
}

/// The client.
#[derive(Debug)]
pub struct Churner {
    pub target: Target,
    pub random: Random,
    pub fates: Fates,
}

impl Fates {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Fate>> {
        self.0.lock().expect("nobody panics with it")
    }

    fn set(&self, name: &str, fate: Fate) {
        self.lock().insert(name.to_owned(), fate);
    }

    /// Queues that were deleted and stay so.
    pub fn gone(&self) -> u64 {
        self.lock().values().filter(|fate| **fate == Fate::Gone).count() as u64
    }

    /// Compares with the queues that are there, of all that this client makes.
    pub fn verify(&self, history: &History, there: &[String]) {
        let mut fates = self.lock().clone();
        for name in there {
            match fates.remove(name.rsplit('/').next().unwrap_or_default()) {
                Some(Fate::Exists | Fate::Unknown) => {}
                Some(Fate::Gone) => history.unexpected(format!("{name} was deleted and is there")),
                None => history.unexpected(format!("{name} was never made and is there")),
            }
        }
        for (name, _) in fates.iter().filter(|(_, fate)| **fate == Fate::Exists) {
            history.unexpected(format!("{name} was made and is not there"));
        }
    }
}

/// Deletes all queues of this client, and gives their names.
pub async fn clear(clients: &mut Clients) -> Result<Vec<String>, Status> {
    let parent = "namespaces/default".to_owned();
    let mut request = ListQueuesRequest { parent, page_size: 1_000, ..ListQueuesRequest::default() };
    let mut there = Vec::new();
    loop {
        let page = clients.queues.list_queues(request.clone()).await?.into_inner();
        there.extend(page.queues.into_iter().map(|queue| queue.name));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    there.retain(|name| name.contains(PREFIX));
    for name in there.iter().cloned() {
        clients.queues.delete_queue(DeleteQueueRequest { name, ..DeleteQueueRequest::default() }).await?;
    }
    Ok(there)
}

impl Churner {
    /// Works until it is over.
    pub async fn run(mut self) {
        for number in 0u64.. {
            let name = format!("{PREFIX}{number}");
            self.fates.set(&name, Fate::Unknown);
            if !self.create(&name).await {
                return;
            }
            self.fates.set(&name, Fate::Exists);
            for _ in 0..self.random.below(6) {
                self.fill(&name).await;
            }
            if number % KEPT_EVERY != 0 {
                self.fates.set(&name, Fate::Unknown);
                if !self.delete(&name).await {
                    return;
                }
                self.fates.set(&name, Fate::Gone);
            }
        }
    }

    /// Repeats until the queue is there; false when it is over.
    async fn create(&mut self, name: &str) -> bool {
        while let Some(mut clients) = self.target.clients().await {
            let queue = Some(Queue { name: queue(name), ..Queue::default() });
            let request = CreateQueueRequest { queue, ..CreateQueueRequest::default() };
            match clients.queues.create_queue(request).await {
                Ok(_) => return true,
                // By an earlier try whose answer was lost.
                Err(status) if status.code() == Code::AlreadyExists => return true,
                Err(status) => self.target.failed("create queue", &status).await,
            };
        }
        false
    }

    /// Repeats until the queue is gone; false when it is over.
    async fn delete(&mut self, name: &str) -> bool {
        while let Some(mut clients) = self.target.clients().await {
            let request = DeleteQueueRequest { name: queue(name), ..DeleteQueueRequest::default() };
            match clients.queues.delete_queue(request).await {
                Ok(_) => return true,
                Err(status) if status.code() == Code::NotFound => return true,
                Err(status) => self.target.failed("delete queue", &status).await,
            };
        }
        false
    }

    async fn fill(&mut self, name: &str) {
        let Some(mut clients) = self.target.clients().await else { return };
        let size = self.random.below(BODY_BYTES_MAX) as usize;
        let message = Message { body: self.random.bytes(size), ..Message::default() };
        let request = PublishRequest { queue: queue(name), messages: vec![message], ..Default::default() };
        if let Err(status) = clients.messages.publish(request).await {
            self.target.failed("publish", &status).await;
        }
    }
}
