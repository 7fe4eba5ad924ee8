//! Queues, subscriptions and figures: one call or one listing each. None of these calls is tried again.

use std::time::Duration;

use forebay::proto::v1::{
    CreateQueueRequest, CreateSubscriptionRequest, DeleteQueueRequest, DeleteSubscriptionRequest,
    GetQueueRequest, GetServerInfoRequest, GetStatsRequest, GetSubscriptionRequest, ListQueuesRequest,
    ListSubscriptionsRequest, PausePublish, PauseRequest, PurgeRequest, Queue, ResumeRequest, RetryPolicy,
    Subscription,
};
use serde_json::{Value, json};
use tonic::Status;

use crate::args::{QueueCommand, ServerCommand, StatsArgs, SubscriptionCommand};
use crate::client::{Server, answer};
use crate::errors::CtlError;
use crate::names::{QueueName, namespace};
use crate::output::{self, Format};
use crate::plan::unique;
use crate::views;

pub async fn queue(server: &Server, command: QueueCommand) -> Result<(), CtlError> {
    let mut client = server.queues();
    match command {
        QueueCommand::Create { name, no_subscription, labels, output } => {
            let labels = unique("label", labels)?;
            let queue = Queue { name: name.as_str().to_owned(), labels, ..Queue::default() };
            let request = CreateQueueRequest {
                queue: Some(queue),
                skip_default_subscription: no_subscription,
                ..CreateQueueRequest::default()
            };
            let made = answer(client.create_queue(request)).await?;
            output::object(output.format, &views::queue(&made))
        }
        QueueCommand::List { namespace, output } => list_queues(server, &namespace, output.format).await,
        QueueCommand::Describe { name, output } => {
            let request = GetQueueRequest { name: name.as_str().to_owned() };
            let found = answer(client.get_queue(request)).await?;
            output::object(output.format, &views::queue(&found))
        }
        QueueCommand::Purge { name, below, output } => {
            let name = name.as_str().to_owned();
            let request = PurgeRequest { name: name.clone(), end_offset: below, ..PurgeRequest::default() };
            let barrier = answer(client.purge(request)).await?.barrier_offset;
            output::object(output.format, &json!({ "purged": name, "below": barrier }))
        }
        QueueCommand::Pause { name, refuse, reason, output } => {
            let publish = if refuse { PausePublish::Refuse } else { PausePublish::Hold }.into();
            let name = name.as_str().to_owned();
            let request = PauseRequest { name: name.clone(), publish, reason, ..PauseRequest::default() };
            let state = answer(client.pause(request)).await?.state.unwrap_or_default();
            let mut shown = views::pause(&state);
            shown["paused"] = name.into();
            output::object(output.format, &shown)
        }
        QueueCommand::Resume { name, output } => {
            let name = name.as_str().to_owned();
            let request = ResumeRequest { name: name.clone(), ..ResumeRequest::default() };
            let held = answer(client.resume(request)).await?.held_messages;
            output::object(output.format, &json!({ "resumed": name, "held_messages": held }))
        }
        QueueCommand::Delete { name, output } => {
            let name = name.as_str().to_owned();
            let request = DeleteQueueRequest { name: name.clone(), ..DeleteQueueRequest::default() };
            answer(client.delete_queue(request)).await?;
            output::object(output.format, &json!({ "deleted": name }))
        }
    }
}

async fn list_queues(server: &Server, name: &str, format: Format) -> Result<(), CtlError> {
    let mut client = server.queues();
    let mut request = ListQueuesRequest { parent: namespace(name), ..ListQueuesRequest::default() };
    let mut items = Vec::new();
    loop {
        let page = answer(client.list_queues(request.clone())).await?;
        items.extend(page.queues.iter().map(views::queue));
        if page.next_page_token.is_empty() {
            return output::list(format, &views::QUEUE_COLUMNS, &items);
        }
        request.page_token = page.next_page_token;
    }
}

pub async fn subscription(server: &Server, command: SubscriptionCommand) -> Result<(), CtlError> {
    let mut client = server.queues();
    match command {
        SubscriptionCommand::Create {
            queue,
            name,
            lease,
            max_in_flight,
            max_attempts,
            min_backoff,
            max_backoff,
            dead_letter_queue,
            from,
            output,
        } => {
            let (min_backoff, max_backoff) = (duration(min_backoff)?, duration(max_backoff)?);
            let backoff = min_backoff.is_some() || max_backoff.is_some();
            let subscription = Subscription {
                name: queue.subscription(&name),
                lease_duration: duration(lease)?,
                max_in_flight: max_in_flight.unwrap_or_default(),
                max_attempts,
                retry_policy: backoff.then_some(RetryPolicy { min_backoff, max_backoff }),
                dead_letter_queue: dead_letter_queue.map(|name| name.as_str().to_owned()).unwrap_or_default(),
                ..Subscription::default()
            };
            let request = CreateSubscriptionRequest {
                subscription: Some(subscription),
                start: Some(from.position()),
                ..CreateSubscriptionRequest::default()
            };
            let made = answer(client.create_subscription(request)).await?;
            output::object(output.format, &views::subscription(&made))
        }
        SubscriptionCommand::List { queue, output } => {
            list_subscriptions(server, &queue, output.format).await
        }
        SubscriptionCommand::Describe { queue, name, output } => {
            let request = GetSubscriptionRequest { name: queue.subscription(&name) };
            let found = answer(client.get_subscription(request)).await?;
            output::object(output.format, &views::subscription(&found))
        }
        SubscriptionCommand::Delete { queue, name, output } => {
            let name = queue.subscription(&name);
            let request =
                DeleteSubscriptionRequest { name: name.clone(), ..DeleteSubscriptionRequest::default() };
            answer(client.delete_subscription(request)).await?;
            output::object(output.format, &json!({ "deleted": name }))
        }
    }
}

async fn list_subscriptions(server: &Server, queue: &QueueName, format: Format) -> Result<(), CtlError> {
    let mut client = server.queues();
    let parent = queue.as_str().to_owned();
    let mut request = ListSubscriptionsRequest { parent, ..ListSubscriptionsRequest::default() };
    let mut items = Vec::new();
    loop {
        let page = answer(client.list_subscriptions(request.clone())).await?;
        items.extend(page.subscriptions.iter().map(views::subscription));
        if page.next_page_token.is_empty() {
            return output::list(format, &views::SUBSCRIPTION_COLUMNS, &items);
        }
        request.page_token = page.next_page_token;
    }
}

fn duration(duration: Option<Duration>) -> Result<Option<prost_types::Duration>, CtlError> {
    let duration = duration.map(prost_types::Duration::try_from).transpose();
    duration.map_err(|_| CtlError::Usage("a duration is too long; give at most 7days".to_owned()))
}

pub async fn stats(server: &Server, args: StatsArgs) -> Result<(), CtlError> {
    let queue = args.queue.as_ref().map(|queue| queue.as_str().to_owned()).unwrap_or_default();
    let response = answer(server.admin().get_stats(GetStatsRequest { queue })).await?;
    let Some(stats) = response.queue.as_ref() else {
        let stats = response.server.as_ref().map(views::server_stats);
        return output::object(args.output.format, &stats.ok_or_else(empty)?);
    };
    let stats = views::queue_stats(stats);
    match args.output.format {
        Format::Table => queue_stats_table(stats),
        format => output::object(format, &stats),
    }
}

/// The queue's figures, then its subscriptions as a list.
fn queue_stats_table(mut stats: Value) -> Result<(), CtlError> {
    let subscriptions = stats.as_object_mut().and_then(|object| object.remove("subscriptions"));
    output::object(Format::Table, &stats)?;
    match subscriptions {
        Some(Value::Array(items)) if !items.is_empty() => {
            output::blank_line()?;
            output::list(Format::Table, &views::SUBSCRIPTION_STATS_COLUMNS, &items)
        }
        _ => Ok(()),
    }
}

fn empty() -> Status {
    Status::internal("the server answered without figures; is it a Forebay server?")
}

pub async fn server(server: &Server, command: ServerCommand) -> Result<(), CtlError> {
    let ServerCommand::Info { output } = command;
    let info = answer(server.admin().get_server_info(GetServerInfoRequest {})).await?;
    output::object(output.format, &views::server_info(&info))
}
