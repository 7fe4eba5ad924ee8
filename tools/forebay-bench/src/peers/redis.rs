//! Redis Streams: one entry is one message.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Value, cmd, pipe};
use tokio::task::JoinSet;

use crate::Failure;
use crate::fill::{Load, all_done};
use crate::progress::Progress;
use crate::take::first_done;

const GROUP: &str = "default";
/// Pipelines under way on a connection: while one is answered the others are on their way.
const PIPELINES: usize = 4;
/// Consumers on a connection: while one looks at what came, the other's next batch comes.
const CONSUMERS: usize = 2;
/// How long to wait when nothing is left that others have not taken.
const LOOK: Duration = Duration::from_millis(1);

pub struct Queue {
    client: Client,
    key: String,
}

impl Queue {
    pub async fn create(url: &str, key: String) -> Result<Self, Failure> {
        let queue = Self { client: Client::open(url)?, key };
        let mut connection = queue.connect().await?;
        let mut create = cmd("XGROUP");
        create.arg("CREATE").arg(&queue.key).arg(GROUP).arg("0").arg("MKSTREAM");
        create.exec_async(&mut connection).await?;
        Ok(queue)
    }

    async fn connect(&self) -> Result<MultiplexedConnection, Failure> {
        // A slow answer is a figure, no error.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        Ok(self.client.get_multiplexed_async_connection_with_config(&config).await?)
    }

    pub async fn publish(&self, load: Arc<Load>, in_flight: usize) -> Result<(), Failure> {
        let connection = self.connect().await?;
        let (pipelines, mut workers) = (PIPELINES.min(in_flight), JoinSet::new());
        for number in 0..pipelines {
            let commands = (in_flight + number) / pipelines;
            workers.spawn(add(connection.clone(), self.key.clone(), Arc::clone(&load), commands));
        }
        all_done(workers).await
    }

    pub async fn consume(&self, batch: u64, total: u64, progress: Arc<Progress>) -> Result<(), Failure> {
        let (connection, mut workers) = (self.connect().await?, JoinSet::new());
        for number in 0..CONSUMERS {
            let taker = Taker { key: self.key.clone(), name: format!("consumer-{number}"), batch };
            workers.spawn(taker.take(connection.clone(), total, Arc::clone(&progress)));
        }
        first_done(workers).await
    }

    pub async fn stored(&self) -> Result<u64, Failure> {
        Ok(cmd("XLEN").arg(&self.key).query_async(&mut self.connect().await?).await?)
    }

    /// Entries that were delivered and not acknowledged.
    pub async fn unfinished(&self) -> Result<u64, Failure> {
        let mut connection = self.connect().await?;
        let pending: Vec<Value> =
            cmd("XPENDING").arg(&self.key).arg(GROUP).query_async(&mut connection).await?;
        match pending.first() {
            Some(Value::Int(count)) => Ok(*count as u64),
            other => Err(format!("XPENDING was answered with {other:?}").into()),
        }
    }

    pub async fn delete(&self) -> Result<(), Failure> {
        Ok(cmd("UNLINK").arg(&self.key).exec_async(&mut self.connect().await?).await?)
    }
}

/// Adds messages, so many commands in a pipeline, one pipeline after the other.
async fn add(
    mut connection: MultiplexedConnection,
    key: String,
    load: Arc<Load>,
    commands: usize,
) -> Result<(), Failure> {
    loop {
        let (mut pipeline, began) = (pipe(), Instant::now());
        while pipeline.len() < commands
            && let Some(body) = load.next_body()
        {
            pipeline.cmd("XADD").arg(&key).arg("*").arg("body").arg(&body[..]);
        }
        if pipeline.is_empty() {
            return Ok(());
        }
        let ids: Vec<String> = pipeline.query_async(&mut connection).await?;
        ids.iter().for_each(|_| load.answered(began, 1));
    }
}

/// A member of the group.
struct Taker {
    key: String,
    name: String,
    batch: u64,
}

impl Taker {
    async fn take(
        self,
        mut connection: MultiplexedConnection,
        total: u64,
        progress: Arc<Progress>,
    ) -> Result<(), Failure> {
        let mut came: Vec<Vec<u8>> = Vec::new();
        while progress.done() < total {
            let mut pipeline = pipe();
            if !came.is_empty() {
                pipeline.cmd("XACK").arg(&self.key).arg(GROUP).arg(&came);
            }
            pipeline.cmd("XREADGROUP").arg("GROUP").arg(GROUP).arg(&self.name).arg("COUNT").arg(self.batch);
            pipeline.arg("STREAMS").arg(&self.key).arg(">");
            let mut answers: Vec<Value> = pipeline.query_async(&mut connection).await?;
            let read = answers.pop().unwrap_or(Value::Nil);
            match answers.pop() {
                Some(Value::Int(count)) if count as usize == came.len() => progress.add(count as u64),
                None => {}
                other => return Err(format!("XACK of {} was answered with {other:?}", came.len()).into()),
            }
            came = ids(read).ok_or("XREADGROUP was answered with what is no list of entries")?;
            if came.is_empty() {
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }
}

/// The ids of what was read of one stream: `[[key, [[id, fields], …]]]`, or nothing.
fn ids(read: Value) -> Option<Vec<Vec<u8>>> {
    if read == Value::Nil {
        return Some(Vec::new());
    }
    let Value::Array(entries) = last(first(read)?)? else { return None };
    let id = |entry| if let Value::BulkString(id) = first(entry)? { Some(id) } else { None };
    entries.into_iter().map(id).collect()
}

fn first(value: Value) -> Option<Value> {
    let Value::Array(values) = value else { return None };
    values.into_iter().next()
}

fn last(value: Value) -> Option<Value> {
    let Value::Array(values) = value else { return None };
    values.into_iter().next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_those_of_the_entries() {
        let text = |text: &str| Value::BulkString(text.into());
        let entry = |id| Value::Array(vec![text(id), Value::Array(vec![text("body"), text("b")])]);
        let stream = Value::Array(vec![text("key"), Value::Array(vec![entry("1-0"), entry("1-1")])]);
        assert_eq!(ids(Value::Array(vec![stream])), Some(vec![b"1-0".to_vec(), b"1-1".to_vec()]));
        assert_eq!(ids(Value::Nil), Some(Vec::new()));
        assert_eq!(ids(Value::Okay), None);
    }
}
