//! Messages taken away by hand: purges, and single ones by their id.

use forebay::proto::v1::ack_result::Status as Outcome;
use forebay::proto::v1::*;
use forebay_testkit::{Clients, queue, subscription};
use tonic::{Code, Status};

use crate::support::*;

async fn purge(clients: &mut Clients, end_offset: Option<u64>) -> Result<u64, Status> {
    let request = PurgeRequest { name: queue("q"), end_offset, ..Default::default() };
    clients.queues.purge(request).await.map(|response| response.into_inner().barrier_offset)
}

async fn get(clients: &mut Clients, queue_name: &str, id: &str) -> Result<Message, Status> {
    let request = GetMessageRequest { queue: queue(queue_name), message_id: id.to_owned() };
    clients.messages.get_message(request).await.map(tonic::Response::into_inner)
}

async fn cancel(clients: &mut Clients, id: &str) -> Result<(), Status> {
    let request = CancelMessageRequest { queue: queue("q"), message_id: id.to_owned(), ..Default::default() };
    clients.messages.cancel_message(request).await.map(drop)
}

#[tokio::test]
async fn what_is_purged_comes_to_nobody_any_more() {
    let (site, server, mut clients) = with_queue().await;
    let own = subscription("q");
    let other = subscribe_to(&mut clients, "q", "narrow", None, 2).await;
    publish_numbered(&mut clients, "q", 500).await;
    let leased = pull(&mut clients, "q", 3).await;
    assert_eq!(pull_from(&mut clients, &other, 9, 0, None).await.len(), 2, "no more may be in flight");
    // A stream waits for room on the narrow one.
    let mut stream = Stream::open(&mut clients, &other, 10, 1 << 20).await;
    assert_eq!(purge(&mut clients, Some(400)).await.unwrap(), 400);
    assert_eq!(offsets(&stream.take(2).await), [400, 401], "void leases leave room");
    assert_eq!(outcomes(&nack(&mut clients, &own, ack_ids(&leased), retry(0)).await), [Outcome::Stale; 3]);
    assert_eq!(get_queue(&mut clients, "q").await.first_offset, 400);
    assert_eq!(offsets(&pull(&mut clients, "q", 2).await), [400, 401]);
    let error = purge(&mut clients, Some(501)).await.unwrap_err();
    check_error(&error, Code::OutOfRange, "OFFSET_OUT_OF_RANGE");
    drop((stream, server));

    let server = site.start();
    assert_eq!(server.recovered_messages, 100);
    let mut clients = server.clients();
    assert_eq!(stats_of(&mut clients, &other).await.ack_floor, 400);
    assert_eq!(purge(&mut clients, None).await.unwrap(), 500);
    assert_eq!(purge(&mut clients, Some(3)).await.unwrap(), 500);
    assert_eq!(stats_of(&mut clients, &own).await.backlog_messages, 0);
    assert_eq!(publish(&mut clients, "q", &["after"]).await, 500);
    assert_eq!(body(&pull_one(&mut clients, "q").await), b"after");
}

#[tokio::test]
async fn single_messages_are_read_and_cancelled_by_their_ids() {
    let (site, server, mut clients) = with_queue().await;
    let request = PublishRequest {
        queue: queue("q"),
        messages: bodies(4).into_iter().map(message).collect(),
        ..Default::default()
    };
    let published = clients.messages.publish(request).await.unwrap().into_inner().results;
    let ids: Vec<&str> = published.iter().map(|result| result.message_id.as_str()).collect();
    let leased = pull_one(&mut clients, "q").await;
    let message = get(&mut clients, "q", ids[2]).await.unwrap();
    assert_eq!((&message.body[..], message.message_id.as_str()), (&b"message 2"[..], ids[2]));

    let details = check_error(
        &cancel(&mut clients, ids[0]).await.unwrap_err(),
        Code::FailedPrecondition,
        "MESSAGE_LEASED",
    );
    assert_eq!(details.error_info().unwrap().metadata["subscription"], subscription("q"));
    cancel(&mut clients, ids[1]).await.unwrap();
    nack(&mut clients, &subscription("q"), vec![leased.ack_id], retry(3_600)).await;
    cancel(&mut clients, ids[0]).await.unwrap();
    let gone = cancel(&mut clients, ids[0]).await.unwrap_err();
    check_error(&gone, Code::NotFound, "MESSAGE_NOT_FOUND");
    drop(server);

    let server = site.start();
    let mut clients = server.clients();
    assert_eq!(offsets(&pull(&mut clients, "q", 9).await), [2, 3]);
    let gone = get(&mut clients, "q", ids[1]).await.unwrap_err();
    check_error(&gone, Code::NotFound, "MESSAGE_NOT_FOUND");
    // An id belongs to its queue, the one of this name and not a later one.
    create(&mut clients, "r").await;
    publish_numbered(&mut clients, "r", 4).await;
    let gone = get(&mut clients, "r", ids[2]).await.unwrap_err();
    check_error(&gone, Code::NotFound, "MESSAGE_NOT_FOUND");
    for bad in ["", "2", &ids[2][1..]] {
        check_field(&get(&mut clients, "q", bad).await.unwrap_err(), "INVALID_FIELD", "message_id");
        check_field(&cancel(&mut clients, bad).await.unwrap_err(), "INVALID_FIELD", "message_id");
    }
    let far = get(&mut clients, "q", "BwcHBwcHBwcHBwcHBwcHBwAAAAAAAAAB").await.unwrap_err();
    check_error(&far, Code::NotFound, "MESSAGE_NOT_FOUND");
}
